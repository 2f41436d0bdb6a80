//! Shadows: what listens inside for a program that got a listening socket of the host.
//!
//! One listens in the workspace's namespace, so the port is seen there, and is there for whoever has no other way
//! to the program: what comes to it (connections from inside, from containers, and what we lead inside ourselves) is
//! accepted here and relayed by splice(2) to where the program listens on the host.
//!
//! A relayed client is known by an address of this host: by the loopback's only who came from the workspace itself, for
//! that is who a program takes for local.
//!
//! A program that has closed its socket leaves its port to ours, and the relay would lead into the workspace again. So
//! each relayed connection is known by its own address, and one that comes back to us ends, and with it the shadow.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, getsockname, socket_with};
use serde::{Deserialize, Serialize};

use super::arrivals::Arrivals;
use super::splice::Splices;
use crate::edge::Edge;
use crate::flow::{FlowId, FlowKey};
use crate::timer::TimerId;

/// Addresses of RFC 5737 and RFC 3849, to which nothing is sent: the host's route to them says which of its own it uses.
const SOMEWHERE_V4: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);
const SOMEWHERE_V6: (Ipv6Addr, u16) = (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9);

/// Where a program that listens at every IPv4 address of the host is reached: at one of the loopback's that nobody else
/// has. The same port of 127.0.0.1 may be another program's, which shares it (SO_REUSEPORT).
pub const EVERYWHERE_V4: Ipv4Addr = Ipv4Addr::new(127, 83, 68, 83);

/// Whose shadow, and where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shadow {
    /// SO_COOKIE of the program's listening socket: no other socket ever has the same.
    pub program: u64,
    /// The number of the published port that it shares.
    pub port: u64,
    /// Where that leads inside, and the shadow listens.
    pub guest_port: u16,
    /// Where the program's socket is reached from this host.
    pub to: SocketAddr,
}

#[derive(Debug)]
pub(super) struct Shadowed {
    shadow: Shadow,
    socket: OwnedFd,
    timer: TimerId,
}

impl Shadowed {
    pub fn watch(edge: &mut Edge, id: FlowId, shadow: Shadow, socket: OwnedFd) -> Option<Self> {
        edge.watch(&socket, id).ok()?;
        Some(Self { shadow, socket, timer: edge.timers.insert(id) })
    }

    pub fn unwatch(self, edge: &mut Edge) {
        edge.unwatch(&self.socket);
        edge.timers.remove(self.timer);
    }

    pub fn program(&self) -> u64 {
        self.shadow.program
    }

    pub fn port(&self) -> u64 {
        self.shadow.port
    }

    pub fn entry(&self) -> (Shadow, BorrowedFd<'_>) {
        (self.shadow, self.socket.as_fd())
    }

    /// True: there is nobody more, or nobody more can be served for now.
    pub fn accept(&self, edge: &mut Edge, splices: &mut Splices) -> bool {
        let mut arrivals = Arrivals::new(&self.socket, self.timer);
        while let Some((socket, client)) = arrivals.next(edge, !splices.is_full()) {
            self.relay(edge, splices, socket, client);
        }
        arrivals.is_over()
    }

    /// A client for whom there is no way is reset, as by a program that has just gone.
    fn relay(&self, edge: &mut Edge, splices: &mut Splices, client: OwnedFd, address: SocketAddr) {
        let Some(at) = getsockname(&client).ok().and_then(|name| SocketAddr::try_from(name).ok()) else { return };
        let (from, at) = (address.ip().to_canonical(), at.ip().to_canonical());
        let is_local = from.is_loopback() || from == at;
        let to = if is_local { self.shadow.to } else { not_by_loopback(self.shadow.to) };
        let key = FlowKey { guest: at, guest_port: self.shadow.guest_port, remote: from, remote_port: address.port() };
        match dial(to) {
            Ok((program, own)) => splices.relay(edge, (client, address), (program, own), key, self.shadow.program),
            Err(_) => {
                edge.counters.ports.exhausted += 1;
                crate::tcp::reset_at_death(&client);
            }
        }
    }
}

/// The same port at an address of this host that is not the loopback's, where it has one and that is not asked for.
fn not_by_loopback(to: SocketAddr) -> SocketAddr {
    let own = || {
        let probe = if to.is_ipv4() {
            let probe = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
            probe.connect(SOMEWHERE_V4).ok()?;
            probe
        } else {
            let probe = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).ok()?;
            probe.connect(SOMEWHERE_V6).ok()?;
            probe
        };
        Some(SocketAddr::new(probe.local_addr().ok()?.ip(), to.port()))
    };
    let is_everywhere = match to.ip() {
        IpAddr::V4(v4) => v4 == EVERYWHERE_V4,
        IpAddr::V6(v6) => v6 == Ipv6Addr::LOCALHOST,
    };
    if is_everywhere { own().unwrap_or(to) } else { to }
}

/// A socket on its way there, and its own address.
fn dial(to: SocketAddr) -> Result<(OwnedFd, SocketAddr), Errno> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => {}
        Err(error) => return Err(error),
    }
    let own = SocketAddr::try_from(getsockname(&socket)?)?;
    Ok((socket, own))
}
