//! A connect of the workspace to its own loopback, where a program of it listens on the host ([`super::host_listener`]):
//! the client gets a socket of the host as well, straight to the program, where neither end can tell the difference. That
//! is so on the loopback, at a port that has the same number on the host: there the addresses are the same. Any other
//! client (by the workspace's own address, at a port that has another number) finds the shadow, and is relayed.
//!
//! Nothing else of the host's loopback may be reached. The host may have others at that port (SO_REUSEPORT, of the same
//! user), so its kernel is asked to whom a client would get, before and after the connection is made; and one that is not
//! made by then (the program's queue is full) is given up, for nobody would ask again when it is.
//!
//! A program that goes in between leaves the connection to our own socket, which leads it inside as any client's.
//!
//! Limits: `ip link set lo down` inside is not asked for.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sidestep_forwarder::policy::{Request, Transport};
use sidestep_forwarder::ports::Shadow;

use crate::publish::group::Family;

use super::decide::{Exit, Verdict};
use super::facts::{self, SocketCookie, TcpState};
use super::host_listener::{HostListeners, cookie, family};
use super::listening::LOOPBACK;
use super::netfilter::{Netfilter, Way};
use super::reason::Reason;
use super::route::{HostRoute, Packet, Route};
use super::session::Session;
use super::stopped::Stopped;

/// How long a connection over the loopback may take to get to its listener.
const ARRIVES_WITHIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
/// Clients asked about, so that of two sockets that share a port the program's is named with all but 1 in 65,000.
const LOOKS: u8 = 16;

/// Whose listener a client on the host's loopback would get to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Program,
    /// Nobody but ourselves: the program listens no more.
    Nobody,
    /// Another program of the host, which shares our port there.
    Stranger,
}

impl Session {
    /// A connection over the loopback, straight to the program that listens at that port on the host, where it is to be
    /// had under the same name there, and where the workspace would have led it there.
    pub(super) fn inward(&self, to: SocketAddr, stopped: &Stopped<'_>) -> Verdict {
        let (ip, in_place) = (to.ip().to_canonical(), Verdict::InPlace);
        let program = self.is_of_workspace(stopped).then(|| self.host_listeners.at(to)).flatten();
        let Some(program) = program else { return in_place(Reason::VirtualAddress) };
        if program.to.port() != to.port() || self.host_listeners.found(&program, to) != Found::Program {
            self.host_listeners.leave_to_relay(&program);
            return in_place(Reason::Relayed);
        }
        let packet = Packet::Own { uid: Some(stopped.facts.uid), source: None };
        let Ok(Some(Route { kind: libc::RTN_LOCAL, device: LOOPBACK, source, .. })) = self.inside.route(ip, packet)
        else {
            return in_place(Reason::Route);
        };
        let request = Request { destination: to, transport: Transport::Tcp };
        if self.netfilter.ask(source, request, Way::Within(LOOPBACK)) == Netfilter::CouldTouch {
            return in_place(Reason::Netfilter);
        }
        match self.host_route(ip) {
            HostRoute::Own => Verdict::Bypass(Exit { to, device: None, program: Some(program) }),
            _ => in_place(Reason::HostRoute),
        }
    }
}

impl HostListeners {
    /// The program that listens on the host instead of at this address of the workspace's loopback.
    fn at(&self, to: SocketAddr) -> Option<Shadow> {
        let wants = |socket: &OwnedFd| match (to.ip().to_canonical(), family(socket.as_fd())) {
            (IpAddr::V4(_), family) => family != Family::V6,
            (IpAddr::V6(_), family) => family != Family::V4,
        };
        self.link.shadows_at(to.port()).into_iter().find(|(_, socket)| wants(socket)).map(|(shadow, _)| shadow)
    }

    /// Who a client of the host's loopback would get to at an address where the program may be.
    fn found(&self, program: &Shadow, to: SocketAddr) -> Found {
        let ours = self.link.socket_of(program.port).and_then(|ours| cookie(ours.as_fd()).ok());
        for client in 0..LOOKS {
            let client = match to.ip().to_canonical() {
                IpAddr::V4(_) => IpAddr::from([127, 0, 0, client]),
                IpAddr::V6(_) => Ipv6Addr::from(u128::from(client)).into(),
            };
            match self.listening.reached(to, client) {
                Ok(Some(SocketCookie(found))) if found == program.program => return Found::Program,
                Ok(Some(SocketCookie(found))) if Some(found) == ours => {}
                Ok(None) => return Found::Nobody,
                Ok(Some(_)) => return Found::Stranger,
                Err(error) => {
                    tracing::debug!("who listens on the host: {error}");
                    return Found::Stranger;
                }
            }
        }
        Found::Nobody
    }

    /// Why a socket that was to go to the program may not be given away. A program that is gone by now may have taken it
    /// before, and otherwise it is ours to lead inside.
    pub fn has_missed(&self, host: BorrowedFd<'_>, program: Shadow, to: SocketAddr) -> Option<Reason> {
        let _ = poll(&mut [PollFd::from_borrowed_fd(host, PollFlags::OUT)], Some(&ARRIVES_WITHIN));
        let is_over = facts::tcp_state(host).is_ok_and(|state| state != TcpState::Connecting);
        (!is_over || self.found(&program, to) == Found::Stranger).then_some(Reason::Relayed)
    }

    /// A client is about to come to a program's shadow: it is not to find one whose program has gone.
    fn leave_to_relay(&self, program: &Shadow) {
        if self.found(program, program.to) != Found::Program {
            self.make_room(program.guest_port);
        }
    }
}
