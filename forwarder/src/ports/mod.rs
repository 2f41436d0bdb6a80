//! Published ports: sockets of the host that lead into the workspace.
//!
//! A client of a TCP port is accepted and the workspace dialled for it (`tcp/inbound.rs`), under the client's own
//! address wherever the workspace can answer to that; for UDP see [`datagrams`]. Clients of the host's loopback, which have
//! no such address, do not pass the TAP at all ([`splice`]). The listening sockets come from outside and outlive a
//! forwarder: clients that come while there is none wait in the kernel's queue.
//!
//! Under the bypass a program may have the clients itself, on a socket beside ours that the kernel prefers; a [`shadow`]
//! then listens inside in its stead, and leads to it.
//!
//! Limits: [`MAX_PORTS`] sockets; so many clients and datagrams before others have their turn; a client for whom there is no
//! descriptor or no room is left in the queue and looked for again soon ([`arrivals`]).
#![forbid(unsafe_code)]

mod arrivals;
mod client;
mod datagrams;
mod guest;
mod pipe;
mod shadow;
mod splice;
mod stock;

pub(crate) use guest::{Guest, Whereabouts};
pub use shadow::{EVERYWHERE_V4, Shadow};
pub(crate) use stock::Stock;

use std::io::IoSlice;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use serde::{Deserialize, Serialize};

use crate::edge::Edge;
use crate::flow::list::Page;
use crate::flow::{FlowId, FlowKey, Kind, Table};
use crate::policy::Transport;
use crate::sys::datagram;
use crate::tcp::{Tcp, reset_at_death};
use crate::timer::{Time, TimerId};
use crate::turns::Turns;
use crate::wire::{IpPacket, Quote, UdpDatagram};
use arrivals::Arrivals;
use datagrams::Clients;
use shadow::Shadowed;
use splice::Splices;

/// Sockets at once: the monitor holds all of them, within the usual soft limit of 1024 descriptors.
pub const MAX_PORTS: usize = 512;

/// Where one port of the host leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    pub transport: Transport,
    /// None: all addresses of the host, of both families.
    pub host: Option<IpAddr>,
    pub host_port: u16,
    /// None: the workspace's own address ([`Guest`]), of the client's family or the other one.
    pub guest: Option<IpAddr>,
    pub guest_port: u16,
}

impl Publication {
    /// Where its socket is bound: `::` stands for all addresses of both families.
    pub fn host_addr(&self) -> SocketAddr {
        SocketAddr::new(self.host.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)), self.host_port)
    }
}

/// Who wanted a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// `--publish`: until it is removed, whoever of ours dies.
    Start,
    /// `sidestep ports add`: until it is removed.
    Added,
    /// `--publish-auto`: for as long as something listens inside.
    Auto,
}

/// A published port as others know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name: no other port of the workspace ever has the same.
    pub number: u64,
    pub origin: Origin,
    #[serde(flatten)]
    pub publication: Publication,
}

/// A port with its socket: nonblocking, bound, and listening where it is TCP.
#[derive(Debug)]
pub struct Published {
    pub entry: Entry,
    pub socket: OwnedFd,
}

#[derive(Debug)]
struct Port {
    id: FlowId,
    entry: Entry,
    socket: OwnedFd,
    timer: TimerId,
}

/// All published ports.
#[derive(Debug)]
pub struct Ports {
    published: Table<(Transport, SocketAddr), Port>,
    /// By the cookie of the program's socket.
    shadows: Table<u64, Shadowed>,
    clients: Clients,
    splices: Splices,
    /// Ports with more clients than their turn allowed.
    ready: Turns,
    /// Shadows with more clients than theirs.
    ready_shadows: Turns,
}

impl Ports {
    pub(crate) fn new() -> Self {
        Self {
            published: Table::new(Kind::Port, MAX_PORTS),
            shadows: Table::new(Kind::Shadow, MAX_PORTS),
            clients: Clients::new(),
            splices: Splices::new(),
            ready: Turns::default(),
            ready_shadows: Turns::default(),
        }
    }

    /// Serves one more port. False: there is no room, or it is served already.
    pub fn add(&mut self, edge: &mut Edge, Published { entry, socket }: Published) -> bool {
        let publication = entry.publication;
        let added = self.published.insert((publication.transport, publication.host_addr()), |id| {
            if publication.transport == Transport::Udp {
                if publication.host.is_none_or(|host| host.is_unspecified()) {
                    // The answer leaves by the address that was written to. A host without IPv6 has a socket of the
                    // other family.
                    datagram::receive_local(&socket, false).or_else(|_| datagram::receive_local(&socket, true)).ok()?;
                }
                // One of both families takes both; where the kernel refuses, each datagram comes by itself.
                let _ = datagram::receive_offloaded(&socket, false);
                let _ = datagram::receive_offloaded(&socket, true);
            }
            if publication.transport == Transport::Tcp {
                edge.stock.want();
            }
            edge.watch(&socket, id).ok()?;
            let timer = edge.timers.insert(id);
            Some(Port { id, entry, socket, timer })
        });
        added.is_some()
    }

    /// Closes the port with this number; its clients stay connected.
    pub fn remove(&mut self, edge: &mut Edge, number: u64) {
        let found = self.published.values().find(|port| port.entry.number == number).map(|port| port.id);
        if let Some(id) = found {
            self.close_one(edge, id);
        }
    }

    fn close_one(&mut self, edge: &mut Edge, id: FlowId) {
        let Some(port) = self.published.remove(id.index) else { return };
        edge.unwatch(&port.socket);
        edge.timers.remove(port.timer);
        self.clients.forget(edge, port.id);
        // Only as long as the port is ours does a shadow lead to its program and nowhere else.
        let its = self.shadows.values().filter(|shadow| shadow.port() == port.entry.number);
        let programs: Vec<_> = its.map(Shadowed::program).collect();
        programs.into_iter().for_each(|program| self.remove_shadow(edge, program));
    }

    /// Relays what comes to a shadow of a program's socket. False: there is no room, or it is served already, or its
    /// port is not.
    pub fn add_shadow(&mut self, edge: &mut Edge, shadow: Shadow, socket: OwnedFd) -> bool {
        if !self.published.values().any(|port| port.entry.number == shadow.port) {
            return false;
        }
        let added = self.shadows.insert(shadow.program, |id| Shadowed::watch(edge, id, shadow, socket));
        added.is_some()
    }

    /// Closes a shadow; what it relays stays connected.
    pub fn remove_shadow(&mut self, edge: &mut Edge, program: u64) {
        let Some(shadow) = self.shadows.find(&program).and_then(|index| self.shadows.remove(index)) else { return };
        shadow.unwatch(edge);
    }

    /// Up to `count` shadows, by the cookies of their programs' sockets from `from` on, with their own sockets.
    pub fn list_shadows(&self, from: u64, count: usize) -> Vec<(Shadow, BorrowedFd<'_>)> {
        let mut listed: Vec<_> = self.shadows.values().filter(|shadow| shadow.program() >= from).collect();
        listed.sort_by_key(|shadow| shadow.program());
        listed.into_iter().take(count).map(Shadowed::entry).collect()
    }

    /// Up to `count` ports in the order of their numbers, from `from` on, with their sockets.
    pub fn list(&self, from: u64, count: usize) -> Vec<(Entry, BorrowedFd<'_>)> {
        let mut listed: Vec<_> = self.published.values().filter(|port| port.entry.number >= from).collect();
        listed.sort_by_key(|port| port.entry.number);
        listed.into_iter().take(count).map(|port| (port.entry, port.socket.as_fd())).collect()
    }

    /// Accepts nobody any more, of the workspace neither.
    pub fn close(&mut self, edge: &mut Edge) {
        let ids: Vec<_> = self.published.values().map(|port| port.id).collect();
        ids.into_iter().for_each(|id| self.close_one(edge, id));
    }

    /// Clients have come, or something for one that was spliced.
    pub fn host_event(&mut self, edge: &mut Edge, tcp: &mut Tcp, id: FlowId, events: EventFlags) {
        if matches!(id.kind, Kind::SplicedClient | Kind::SplicedInside) {
            return self.splices.host_event(edge, id, events);
        }
        if id.kind == Kind::Shadow {
            if let Some(index) = self.shadows.current(id) {
                self.shadow_turn(edge, index);
            }
        } else if let Some(index) = self.published.current(id) {
            self.turn(edge, tcp, index);
        }
    }

    /// A port that could not be served is tried again.
    pub fn timer(&mut self, edge: &mut Edge, tcp: &mut Tcp, id: FlowId) {
        match id.kind {
            Kind::PortClient => self.clients.timer(edge, id),
            _ => self.host_event(edge, tcp, id, EventFlags::IN),
        }
    }

    /// Whom a datagram of the workspace answers. None: no client.
    pub fn answered(&mut self, edge: &Edge, ip: &IpPacket<'_>, datagram: &UdpDatagram<'_>) -> Option<FlowId> {
        self.clients.answered(ip, datagram, edge.now)
    }

    /// Sends it to that client: a datagram, or several of `size` bytes but the last, which may be shorter.
    pub fn answer(&mut self, edge: &mut Edge, client: FlowId, parts: &[IoSlice<'_>], size: usize) {
        let Some(client) = self.clients.current(client) else { return };
        let Some(port) = self.published.current(client.port).and_then(|index| self.published.get(index)) else {
            return;
        };
        edge.counters.drops.host_full += client.answer(&port.socket, parts, size);
    }

    /// A client's datagram was too big for a link inside. False: it was none of a client's.
    pub fn too_big(&mut self, now: Time, quote: &Quote, mtu: u16) -> bool {
        self.clients.too_big(now, quote, mtu)
    }

    /// Puts clients that the TCP engine does not know on a page.
    pub fn list_clients(&self, page: &mut Page) {
        self.clients.list(page);
        self.splices.list(page);
    }

    /// Something the workspace has sent is not with its client yet.
    pub fn is_owed_to_host(&self) -> bool {
        self.splices.is_owed_to_host()
    }

    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty() || !self.ready_shadows.is_empty() || self.splices.has_ready()
    }

    pub fn run_ready(&mut self, edge: &mut Edge, tcp: &mut Tcp) {
        self.splices.run_ready(edge);
        for _ in 0..self.ready.due() {
            if let Some(index) = self.ready.next() {
                self.turn(edge, tcp, index);
            }
        }
        for _ in 0..self.ready_shadows.due() {
            if let Some(index) = self.ready_shadows.next() {
                self.shadow_turn(edge, index);
            }
        }
    }

    /// Takes some of what has come to a port; what is left gets another turn.
    fn turn(&mut self, edge: &mut Edge, tcp: &mut Tcp, index: u32) {
        let Some(port) = self.published.get(index) else { return };
        let is_done = match port.entry.publication.transport {
            Transport::Udp => self.clients.datagrams_to_tap(edge, (port.id, &port.entry.publication, &port.socket)),
            _ => accept(edge, tcp, &mut self.splices, port),
        };
        while let Some(program) = self.splices.next_lost() {
            self.remove_shadow(edge, program);
        }
        if !is_done {
            self.ready.wait(index);
        }
    }

    /// The same of a shadow.
    fn shadow_turn(&mut self, edge: &mut Edge, index: u32) {
        let Some(shadow) = self.shadows.get(index) else { return };
        if !shadow.accept(edge, &mut self.splices) {
            self.ready_shadows.wait(index);
        }
    }
}

/// True: there is nobody more, or nobody more can be served for now.
fn accept(edge: &mut Edge, tcp: &mut Tcp, splices: &mut Splices, port: &Port) -> bool {
    let mut arrivals = Arrivals::new(&port.socket, port.timer);
    while let Some((socket, client)) = arrivals.next(edge, tcp.has_room_for_client()) {
        if splices.is_relay(client) {
            // A shadow's, of a program that listens no more: dropped, and so is the shadow.
            continue;
        }
        edge.counters.ports.accepted += 1;
        let [first, other] = client::keys(&edge.config.network, edge.guest.address(), &port.entry.publication, client);
        if let Some(key) = first {
            lead_inside(edge, tcp, splices, (socket, client), (key, other));
        }
    }
    arrivals.is_over()
}

/// Past the TAP where the client's address would be lost in any case; and to the workspace's loopback there is no other
/// way.
fn lead_inside(
    edge: &mut Edge,
    tcp: &mut Tcp,
    splices: &mut Splices,
    (socket, client): (OwnedFd, SocketAddr),
    (key, other): (FlowKey, Option<FlowKey>),
) {
    let is_loopback_inside = key.guest.is_loopback();
    let left = if client.ip().to_canonical().is_loopback() || is_loopback_inside {
        splices.open(edge, (socket, client), key, other)
    } else {
        Some(socket)
    };
    match left {
        Some(socket) if is_loopback_inside => {
            edge.counters.ports.exhausted += 1;
            reset_at_death(&socket);
        }
        Some(socket) => tcp.open_to_guest(edge, socket, key, other),
        None => {}
    }
}
