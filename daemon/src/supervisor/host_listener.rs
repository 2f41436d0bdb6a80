//! listen(2) at a published port, by the bypass: the program gets a listening socket of the host, beside ours
//! ([`crate::publish::group`]), and where it would have listened inside is its shadow
//! ([`sidestep_forwarder::ports::Shadow`]): a socket of ours, for the forwarder never waits, and who has a copy of a socket
//! can make anybody wait who accepts there (O_NONBLOCK belongs to the open file; a lock can be held for ever).
//!
//! The order: the host socket is bound; the program's own listens, which may fail as it always may; the shadow is bound
//! beside that (SO_REUSEPORT) and listens in its stead; the forwarder is told of it; the host socket goes in the place of
//! the program's; the call is answered. A supervisor that dies before that leaves the call to its successor. No copy of
//! the host socket is kept, so its last close is the program's.
//!
//! The program's end is seen in the host's table of listening sockets, which is looked at every [`PERIOD`], and before a
//! bind or listen inside that the shadow would be in the way of.
//!
//! Limits: what a program has copied (dup, fork) before it listens stays the old socket, and listens no more until it is
//! called for that; then it is one of two at the port. Rules that the workspace's netfilter gets after that are for the
//! shadow only.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use sidestep_forwarder::policy::{Request, Transport};
use sidestep_forwarder::ports::{Entry, Shadow};
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::{MissedTickBehavior, interval};

use crate::publish::group::{Family, Place};
use crate::sys::listener::Caller;
use crate::sys::socket;

use super::auto::Auto;
use super::facts::{SocketCookie, SocketFacts, TcpState};
use super::host_socket;
use super::ledger::Phase;
use super::link::{self, Link};
use super::listening::{LOOPBACK, Listening};
use super::netfilter::{Netfilter, Way};
use super::ports::Ports;
use super::reason::Reason;
use super::route::InsideRoute;
use super::session::Session;
use super::sockaddr::RawAddress;
use super::stopped::{Outcome, Stopped};

/// Addresses of RFC 5737 and RFC 3849: what the workspace would come from, if it went there, its clients come to.
const SOMEWHERE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const SOMEWHERE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
/// Between two looks at what still listens.
const PERIOD: Duration = Duration::from_millis(250);

/// What listens on the host for programs of the workspace.
pub struct HostListeners {
    pub ports: Arc<Ports>,
    pub link: Arc<Link>,
    /// Of the host's namespace.
    pub listening: Listening,
    /// None: without `--publish-auto`.
    pub auto: Option<Arc<Auto>>,
    pub event_loop: Handle,
    pub removing: Mutex<()>,
}

/// A share of a published port.
struct Share {
    entry: Entry,
    ours: Arc<OwnedFd>,
    place: Place,
    /// Until the shadow says so.
    _shared: link::Shared,
}

impl HostListeners {
    /// Closes shadows of programs that have gone, for as long as the event loop runs.
    pub async fn follow(self: Arc<Self>) {
        let mut tick = interval(PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let shadows = self.link.shadows();
            if shadows.is_empty() {
                continue;
            }
            let looking = Arc::clone(&self);
            let looked = tokio::task::spawn_blocking(move || looking.gone(shadows)).await;
            let _turn = self.removing.lock().await;
            self.remove(looked.unwrap_or_default()).await;
        }
    }

    /// Sees to it that no shadow holds this port for a program that has gone.
    pub fn make_room(&self, guest_port: u16) {
        // A predecessor's hold ports as well.
        self.event_loop.block_on(self.ports.are_known());
        // One that is being removed is not among the shadows any more, and may still be there.
        let _turn = self.event_loop.block_on(self.removing.lock());
        let shadows = self.link.shadows_at(guest_port).into_iter().map(|(shadow, _)| shadow).collect();
        self.event_loop.block_on(self.remove(self.gone(shadows)));
    }

    async fn remove(&self, programs: Vec<u64>) {
        for program in programs {
            // A forwarder that does not answer in time is gone, and its sockets with it.
            if let Err(silent) = self.link.remove_shadow(program).await {
                tracing::debug!("a shadow may still hold its port inside: {silent}");
                return;
            }
        }
    }

    /// Programs that listen no more; one that cannot be asked about is taken to listen still.
    fn gone(&self, shadows: Vec<Shadow>) -> Vec<u64> {
        let is_gone = |shadow: &Shadow| match self.listening.at(shadow.to.port()) {
            Ok(cookies) => !cookies.contains(&SocketCookie(shadow.program)),
            Err(error) => {
                tracing::debug!("what listens on the host: {error}");
                false
            }
        };
        shadows.into_iter().filter(is_gone).map(|shadow| shadow.program).collect()
    }

    /// Something inside has begun to listen in place.
    pub fn listened(&self) {
        if let Some(auto) = &self.auto {
            auto.look_now();
        }
    }

    fn share(&self, guest_port: u16, family: Family) -> Result<Share, Reason> {
        if let Some(auto) = &self.auto {
            self.event_loop.block_on(auto.ahead(guest_port));
        }
        let mut leading = self.ports.leading_to(guest_port, &self.event_loop).into_iter();
        match (leading.next(), leading.next()) {
            (Some(entry), None) => {
                let place = Place::of(&entry.publication, family).ok_or(Reason::NotPublished)?;
                let (ours, shared) = self.link.share(entry.number).ok_or(Reason::NotPublished)?;
                Ok(Share { entry, ours, place, _shared: shared })
            }
            (None, _) => Err(Reason::NotPublished),
            // The forwarder keeps the addresses of clients of both.
            (_, Some(_)) => Err(Reason::SharedPort),
        }
    }
}

impl Session {
    /// Has a socket that is bound to `port` of the workspace listen on the host. Err: why it listens in place.
    pub(super) fn listen_on_host(&self, stopped: &Stopped<'_>, port: u16, backlog: i32) -> Result<Outcome, Reason> {
        // A predecessor may have come so far that it listens.
        if stopped.slot.phase() == Phase::Sharing {
            share_no_more(stopped.copy.as_fd());
        } else if stopped.facts.state == TcpState::Listening {
            return Err(Reason::InUse);
        }
        let family = family(stopped.copy.as_fd());
        let untouched = self.swap.workspace.of(&stopped.facts).ok_or(Reason::NoFamily)?;
        let difference = untouched.difference_listening(stopped.copy.as_fd(), self.ledger.touched.to_be_read())?;
        self.clients_are_untouched(family, port, stopped.facts.uid)?;
        let share = self.host_listeners.share(port, family)?;
        self.host_listeners.make_room(port);
        let host = host_socket::like(&stopped.facts).ok().flatten().ok_or(Reason::NoFamily)?;
        if !difference.apply(host.as_fd()) {
            return Err(Reason::NotTaken);
        }
        let shared = share.place.take(&host, share.ours.as_fd()).map_err(io::Error::from);
        let Ok(program) = shared.and_then(|()| cookie(host.as_fd())) else {
            tracing::debug!(tid = stopped.tid, port, "a published port cannot be shared");
            return Err(Reason::HostPort);
        };
        stopped.slot.set_phase(Phase::Sharing);
        if let Err(error) = socket::listen(stopped.copy.as_fd(), backlog) {
            return Ok(Outcome::of(Err(error)));
        }
        let in_place = |error: io::Error| {
            tracing::debug!(tid = stopped.tid, port, %error, "a program cannot listen on the host");
            share_no_more(stopped.copy.as_fd());
            Reason::HostPort
        };
        let inside = self.shadow_beside(stopped, port).map_err(in_place)?;
        socket::listen(host.as_fd(), backlog).map_err(in_place)?;
        let number = share.entry.number;
        let shadow = Shadow { program, port: number, guest_port: port, to: share.place.on_this_host() };
        self.keep_shadow(shadow, inside);
        let put = self.swap.put(&self.listener, stopped, host.as_fd());
        drop(host);
        if !matches!(put, Ok(Caller::Waiting)) {
            self.host_listeners.event_loop.block_on(self.host_listeners.remove(vec![program]));
        }
        match put {
            Ok(Caller::Waiting) => Ok(Outcome::SUCCESS),
            // As it was, for the call that is made again.
            Ok(Caller::Left) => {
                share_no_more(stopped.copy.as_fd());
                Ok(Outcome::CallerLeft)
            }
            Err(error) => Err(in_place(error)),
        }
    }

    /// A socket that listens inside in the stead of the program's own, which is bound there, and listens no more.
    fn shadow_beside(&self, stopped: &Stopped<'_>, port: u16) -> io::Result<OwnedFd> {
        let theirs = stopped.copy.as_fd();
        let ours = self.factory.beside(self.swap.userns.as_fd(), theirs, host_socket::domain(&stopped.facts))?;
        for socket in [theirs, ours.as_fd()] {
            rustix::net::sockopt::set_socket_reuseport(socket, true)?;
        }
        bind_anywhere(ours.as_fd(), family(theirs), port)?;
        rustix::net::shutdown(theirs, rustix::net::Shutdown::Both)?;
        socket::listen(ours.as_fd(), libc::SOMAXCONN)?;
        Ok(ours)
    }

    /// Err where the workspace's netfilter could touch a client: one that the forwarder would have led in by the TAP, from
    /// anywhere, or one of the host's loopback, which it knows by its own address.
    fn clients_are_untouched(&self, family: Family, port: u16, uid: u32) -> Result<(), Reason> {
        if self.netfilter.is_empty() {
            return Ok(());
        }
        let tap = self.ground.tap_ifindex;
        let v4 = (family != Family::V6).then_some(SOMEWHERE_V4);
        let v6 = (family != Family::V4 && self.ground.network.v6.is_some()).then_some(SOMEWHERE_V6);
        for somewhere in v4.into_iter().chain(v6) {
            let to = |ip, port| Request { destination: SocketAddr::new(ip, port), transport: Transport::Tcp };
            // A client's port is whatever it chooses.
            let InsideRoute::OurTap { source: Some(own) } = self.inside.inside(to(somewhere, 0), uid, tap) else {
                return Err(Reason::Netfilter);
            };
            let request = to(own, port);
            let ways = [(None, Way::Inward(tap)), (Some(own), Way::Within(LOOPBACK))];
            if ways.iter().any(|&(from, way)| self.netfilter.ask(from, request, way) == Netfilter::CouldTouch) {
                return Err(Reason::Netfilter);
            }
        }
        Ok(())
    }

    /// listen(2) on a host socket that listens: another backlog. Where a supervisor died before it could keep the
    /// shadow, there is a new one.
    pub(super) fn listen_again(&self, stopped: &Stopped<'_>, backlog: i32) -> Outcome {
        stopped.begin_act();
        let listens = socket::listen(stopped.copy.as_fd(), backlog);
        if listens.is_ok()
            && let Err(error) = self.renew_shadow(stopped)
        {
            tracing::debug!(tid = stopped.tid, %error, "a program on the host has no shadow");
        }
        Outcome::of(listens)
    }

    fn renew_shadow(&self, stopped: &Stopped<'_>) -> io::Result<()> {
        // By then what the forwarder had of a predecessor is known.
        let Some(shadow) = self.host_listeners.shadow_of(stopped) else { return Ok(()) };
        if self.host_listeners.link.shadows().iter().any(|known| known.program == shadow.program) {
            return Ok(());
        }
        let kind = (host_socket::domain(&stopped.facts), libc::SOCK_STREAM, libc::IPPROTO_TCP);
        let fresh = self.factory.socket(self.swap.userns.as_fd(), self.swap.netns.as_fd(), kind)?;
        bind_anywhere(fresh.as_fd(), family(stopped.copy.as_fd()), shadow.guest_port)?;
        socket::listen(fresh.as_fd(), libc::SOMAXCONN)?;
        self.keep_shadow(shadow, fresh);
        Ok(())
    }

    /// A socket that listened on the host is one of the workspace again, and still has its port, as after every
    /// shutdown.
    pub(super) fn bind_again(&self, socket: BorrowedFd<'_>, facts: &SocketFacts, listener: Shadow) {
        share_no_more(socket);
        self.host_listeners.make_room(listener.guest_port);
        let ip = if facts.ipv6 { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
        if let Err(error) = rustix::net::bind(socket, &SocketAddr::new(ip, listener.guest_port)) {
            tracing::debug!(%error, "port {} inside is no longer the program's", listener.guest_port);
        }
    }

    /// From here on a successor has the shadow from the forwarder.
    fn keep_shadow(&self, shadow: Shadow, socket: OwnedFd) {
        let HostListeners { link, event_loop, .. } = &*self.host_listeners;
        event_loop.block_on(link.has_told(link.add_shadow(shadow, socket)));
    }
}

impl HostListeners {
    /// The port inside that a host socket stands for by its own port, and what its shadow is.
    pub fn shadow_of(&self, stopped: &Stopped<'_>) -> Option<Shadow> {
        let mut name = [0; 128];
        let length = socket::name(stopped.copy.as_fd(), &mut name).ok()?;
        let host_port = RawAddress::new(name.get(..length)?).port();
        let family = family(stopped.copy.as_fd());
        let (entry, place) = self.ports.at(host_port, &self.event_loop).into_iter().find_map(|entry| {
            let place = Place::of(&entry.publication, family)?;
            entry.publication.guest.is_none().then_some((entry, place))
        })?;
        let (program, guest_port) = (stopped.facts.cookie.0, entry.publication.guest_port);
        Some(Shadow { program, port: entry.number, guest_port, to: place.on_this_host() })
    }
}

pub fn family(socket: BorrowedFd<'_>) -> Family {
    match socket::int_option(socket, libc::SOL_SOCKET, libc::SO_DOMAIN) {
        Ok(libc::AF_INET6) if rustix::net::sockopt::ipv6_v6only(socket).unwrap_or(false) => Family::V6,
        Ok(libc::AF_INET6) => Family::Both,
        _ => Family::V4,
    }
}

pub fn cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    socket::u64_option(socket, libc::SOL_SOCKET, libc::SO_COOKIE)
}

/// The program's own again, without what let our socket be bound beside it.
fn share_no_more(socket: BorrowedFd<'_>) {
    let _ = rustix::net::sockopt::set_socket_reuseport(socket, false);
}

/// Binds a shadow, also where connections that came to an earlier one have not ended.
fn bind_anywhere(shadow: BorrowedFd<'_>, family: Family, port: u16) -> io::Result<()> {
    rustix::net::sockopt::set_socket_reuseaddr(shadow, true)?;
    let ip = if family == Family::V4 {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        rustix::net::sockopt::set_ipv6_v6only(shadow, family == Family::V6)?;
        IpAddr::from(Ipv6Addr::UNSPECIFIED)
    };
    Ok(rustix::net::bind(shadow, &SocketAddr::new(ip, port))?)
}

#[cfg(test)]
mod tests;
