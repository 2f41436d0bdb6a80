//! Clients of published UDP ports: the workspace sees each under an address and port of its own, and what it sends there
//! leaves by the published socket, from the very address the client wrote to; what comes together leaves together, both
//! ways (UDP_SEGMENT, UDP_GRO, USO). What it sends to anybody else is not ours to carry: the egress policy decides about
//! that.
//!
//! Limits: [`MAX_CLIENTS`], half of them without an answer, of which the one that was used longest ago gives way, for
//! anybody can send from any number of addresses; a client that the workspace does not answer is forgotten after
//! [`UNANSWERED_MS`]. A client is known by the address of its own family, if the workspace has one.

use std::collections::HashMap;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::Publication;
use super::client::keys;
use crate::edge::Edge;
use crate::flow::list::{Listed, Page, Protocol, State};
use crate::flow::{FlowId, FlowKey, Kind, Table};
use crate::path_mtu::PathMtu;
use crate::recency::Recency;
use crate::sys::datagram::{self, Local, Received};
use crate::timer::{Time, TimerId};
use crate::udp::{RECEIVES_A_TURN, Train, retry, send_segments};
use crate::wire::build::Datagrams;
use crate::wire::{IpPacket, Quote, UdpDatagram};

/// Clients at once: they cost no descriptor.
const MAX_CLIENTS: usize = 8_192;
/// Of which so many may have had no answer once there is room for no more.
const MAX_UNANSWERED: usize = MAX_CLIENTS / 2;
/// Idle time after which a client is forgotten (RFC 4787), and the same where it has had no answer yet.
const IDLE_MS: u64 = 180_000;
const UNANSWERED_MS: u64 = 30_000;
/// Other ports tried for a client whose own another client of the same address has inside.
const PORT_TRIES: u16 = 16;

#[derive(Debug)]
pub struct Client {
    id: FlowId,
    /// Which port it came to, and as whom.
    pub port: FlowId,
    address: SocketAddr,
    local: Option<Local>,
    key: FlowKey,
    timer: TimerId,
    since: Time,
    last_used: Time,
    /// Bytes of payload each way.
    from_tap: u64,
    to_tap: u64,
    is_answered: bool,
    /// The host has not refused UDP_SEGMENT on the way to it.
    takes_segments: bool,
    /// What the workspace has said of the way to whoever serves it.
    path_mtu: PathMtu,
}

#[derive(Debug)]
pub struct Clients {
    /// By what they are inside.
    clients: Table<FlowKey, Client>,
    by_address: HashMap<(u32, SocketAddr), u32>,
    order: Order,
}

/// Which client was used longest ago, of those that have been answered and of those that have not.
#[derive(Debug)]
struct Order {
    answered: Recency,
    unanswered: Recency,
}

impl Order {
    fn of(&mut self, client: &Client) -> &mut Recency {
        if client.is_answered { &mut self.answered } else { &mut self.unanswered }
    }

    fn gives_way(&self) -> Option<u32> {
        if self.unanswered.len() > MAX_UNANSWERED { self.unanswered.oldest() } else { self.answered.oldest() }
    }
}

impl Clients {
    pub fn new() -> Self {
        Self {
            clients: Table::new(Kind::PortClient, MAX_CLIENTS),
            by_address: HashMap::new(),
            order: Order { answered: Recency::new(), unanswered: Recency::new() },
        }
    }

    /// One turn of what has come to the port's socket. True: there is no more.
    pub fn datagrams_to_tap(
        &mut self,
        edge: &mut Edge,
        (port, publication, socket): (FlowId, &Publication, &OwnedFd),
    ) -> bool {
        let mut train = Train::default();
        let mut is_empty = false;
        for _ in 0..RECEIVES_A_TURN {
            if edge.is_tap_full() {
                break;
            }
            let received = match datagram::receive(socket, train.room(edge)) {
                Ok(Some(received)) => received,
                Err(Errno::AGAIN) => {
                    is_empty = true;
                    break;
                }
                // From nobody, or what became of an earlier answer.
                Ok(None) | Err(_) => continue,
            };
            match self.seen_inside(edge, (port, publication), &received) {
                Some((datagrams, path)) => train.add(edge, datagrams, path),
                None => edge.counters.ports.exhausted += 1,
            }
        }
        train.send(edge);
        is_empty
    }

    /// What has been received as the workspace is to see it, and by which way. None: there is no room for its client.
    fn seen_inside(
        &mut self,
        edge: &mut Edge,
        (port, publication): (FlowId, &Publication),
        received: &Received,
    ) -> Option<(Datagrams, PathMtu)> {
        let found = self.by_address.get(&(port.index, received.source)).copied();
        let index = found.or_else(|| self.open(edge, port, publication, received.source))?;
        let client = self.clients.get_mut(index)?;
        self.order.of(client).touch(index);
        client.local = received.local;
        client.last_used = edge.now;
        client.to_tap += received.len as u64;
        let FlowKey { guest, guest_port, remote, remote_port } = client.key;
        let (src, dst) = ((remote, remote_port), (guest, guest_port));
        let datagrams = Datagrams { src, dst, tos: received.tos, size: received.size, len: received.len };
        Some((datagrams, client.path_mtu))
    }

    fn open(&mut self, edge: &mut Edge, port: FlowId, publication: &Publication, address: SocketAddr) -> Option<u32> {
        let key =
            keys(&edge.config.network, edge.guest.address(), publication, address).into_iter().flatten().next()?;
        let other_ports =
            (1..=PORT_TRIES).map(|step| FlowKey { remote_port: key.remote_port.wrapping_add(step), ..key });
        let key =
            std::iter::once(key).chain(other_ports).find(|k| k.remote_port != 0 && self.clients.find(k).is_none())?;
        if self.clients.is_full() {
            self.remove(edge, self.order.gives_way()?);
        }
        let index = self.clients.insert(key, |id| {
            let timer = edge.timers.insert(id);
            edge.timers.set(timer, edge.now.after(UNANSWERED_MS));
            Some(Client {
                id,
                port,
                address,
                local: None,
                key,
                timer,
                since: edge.now,
                last_used: edge.now,
                from_tap: 0,
                to_tap: 0,
                is_answered: false,
                takes_segments: true,
                path_mtu: PathMtu::default(),
            })
        })?;
        self.order.unanswered.insert(index);
        self.by_address.insert((port.index, address), index);
        edge.counters.ports.udp_clients += 1;
        Some(index)
    }

    /// Whom a datagram of the workspace answers; None where it is no client.
    pub fn answered(&mut self, ip: &IpPacket<'_>, datagram: &UdpDatagram<'_>, now: Time) -> Option<FlowId> {
        if self.by_address.is_empty() {
            return None;
        }
        let key =
            FlowKey { guest: ip.src, guest_port: datagram.src_port, remote: ip.dst, remote_port: datagram.dst_port };
        let index = self.clients.find(&key)?;
        let client = self.clients.get_mut(index)?;
        client.last_used = now;
        if std::mem::replace(&mut client.is_answered, true) {
            self.order.answered.touch(index);
        } else {
            self.order.unanswered.remove(index);
            self.order.answered.insert(index);
        }
        Some(client.id)
    }

    pub fn current(&mut self, id: FlowId) -> Option<&mut Client> {
        let index = self.clients.current(id)?;
        self.clients.get_mut(index)
    }

    /// A client's datagram was too big for a link inside. False: there is no such client.
    pub fn too_big(&mut self, now: Time, quote: &Quote, mtu: u16) -> bool {
        let found = self.clients.find(&quote.flow()).and_then(|index| self.clients.get_mut(index));
        found.map(|client| client.path_mtu.heard(mtu, now)).is_some()
    }

    /// Puts clients on a page.
    pub fn list(&self, page: &mut Page) {
        page.list(&self.clients, |client, now| Listed {
            protocol: Protocol::Udp,
            guest: SocketAddr::new(client.key.guest, client.key.guest_port),
            remote: Some(client.key.remote_addr()),
            state: if client.is_answered { State::Open } else { State::Opening },
            from_tap: client.from_tap,
            to_tap: client.to_tap,
            age_ms: now.since(client.since),
            idle_ms: now.since(client.last_used),
        });
    }

    /// A client may have been idle.
    pub fn timer(&mut self, edge: &mut Edge, id: FlowId) {
        let Some(client) = self.clients.current(id).and_then(|index| self.clients.get(index)) else { return };
        let expiry = client.last_used.after(if client.is_answered { IDLE_MS } else { UNANSWERED_MS });
        if edge.now < expiry {
            return edge.timers.set(client.timer, expiry);
        }
        self.remove(edge, id.index);
    }

    /// The port is not served any more.
    pub fn forget(&mut self, edge: &mut Edge, port: FlowId) {
        let gone: Vec<_> = self.clients.values().filter(|client| client.port == port).map(|client| client.id).collect();
        for id in gone {
            self.remove(edge, id.index);
        }
    }

    fn remove(&mut self, edge: &mut Edge, index: u32) {
        if let Some(client) = self.clients.remove(index) {
            self.order.of(&client).remove(index);
            edge.timers.remove(client.timer);
            self.by_address.remove(&(client.port.index, client.address));
        }
    }
}

impl Client {
    /// Sends datagrams of `size` bytes, by one call where the host's path takes that. Returns how many were lost.
    pub fn answer(&mut self, socket: &OwnedFd, parts: &[IoSlice<'_>], size: usize) -> u64 {
        let (from, to) = (self.local, self.address);
        let len: usize = parts.iter().map(|part| part.len()).sum();
        self.from_tap += len as u64;
        if len > size && self.takes_segments {
            match send_segments(socket, parts, size, from, to) {
                Ok(()) => return 0,
                Err(Errno::AGAIN) => return len.div_ceil(size.max(1)) as u64,
                Err(_) => self.takes_segments = false,
            }
        }
        let lost = |datagram: &[u8]| {
            u64::from(retry(|| datagram::send(socket, &[IoSlice::new(datagram)], None, from, to)).is_err())
        };
        match parts {
            // It may be empty.
            [whole] if len <= size => lost(whole),
            parts => parts.iter().flat_map(|part| part.chunks(size.max(1))).map(lost).sum(),
        }
    }
}
