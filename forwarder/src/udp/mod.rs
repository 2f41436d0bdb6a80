//! UDP between the workspace and the host: one host socket for each of the workspace's addresses and ports, whatever
//! it sends to (endpoint-independent mapping, RFC 4787), unconnected, so whoever hears of it may answer. It has the
//! workspace's port where the host has that one free. A mapping ends when nothing has used it for a while, or when the
//! table is full and it was used longest ago.
//!
//! - [`from_tap`]: datagrams of one mapping that come together leave together (UDP_SEGMENT).
//! - [`to_tap`]: datagrams of one sender that wait together go in as one frame ([`train`], USO), and what the host's
//!   network said about others as ICMP errors.
//!
//! Datagrams that the host's socket does not take are dropped and counted, as a network would. So are broadcast and
//! multicast: nobody beyond the gateway is meant.
#![forbid(unsafe_code)]

mod from_tap;
mod gather;
mod mapping;
mod to_tap;
mod train;

use std::net::{IpAddr, SocketAddr};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use crate::edge::Edge;
use crate::flow::list::{Listed, Page, Protocol, State};
use crate::flow::{FlowId, Kind, Table};
use crate::gateway::dns::{self, Dns};
use crate::gateway::unreachable::Reason;
use crate::marks::{Marked, Marks};
use crate::path_mtu::PathMtu;
use crate::recency::Recency;
use crate::timer::Time;
use crate::turns::Turns;
use crate::wire::{IpPacket, Quote, UdpDatagram};
pub use gather::{Gather, MAX_SEGMENTS, Way, retry, send_segments};
use mapping::Mapping;
pub use train::{RECEIVES_A_TURN, Train};

/// Mappings at once: each holds a descriptor, and busy resolvers or peer-to-peer programs open thousands. What waits in
/// them is in the host's socket buffers, which the kernel bounds.
pub const MAX_FLOWS: usize = 8_192;
/// Datagrams in one frame of the workspace's: UDP_MAX_SEGMENTS (linux/udp.h). Its kernel, where it is an older one, hands
/// on whatever a packet socket asks for, down to a byte in each.
pub const MAX_UNCUT: usize = 128;
/// How long what the policy said about a destination holds for more datagrams to it: an address may become the host's.
const ASK_AGAIN_MS: u64 = 1_000;
/// Idle time after which a mapping ends; RFC 4787 asks for at least two minutes.
const IDLE_MS: u64 = 180_000;
/// The same when all it ever carried was DNS, where each query has a port of its own.
const DNS_IDLE_MS: u64 = 15_000;

/// All mappings, and the queries to the virtual resolver.
#[derive(Debug)]
pub struct Udp {
    flows: Table<(IpAddr, u16), Mapping>,
    recency: Recency,
    ready: Turns,
    dns: Dns,
}

impl Udp {
    /// At most `capacity` mappings.
    pub fn new(capacity: usize) -> Self {
        Self {
            flows: Table::new(Kind::Udp, capacity),
            recency: Recency::new(),
            ready: Turns::default(),
            dns: Dns::new(),
        }
    }

    fn open(&mut self, edge: &mut Edge, ip: &IpPacket<'_>, datagram: &UdpDatagram<'_>) -> Option<u32> {
        if self.flows.is_full() {
            self.evict(edge);
        }
        let port = datagram.src_port;
        let mut opened = mapping::open_socket(&edge.config.outbound, ip.src.is_ipv4(), port);
        if let Err(Errno::MFILE | Errno::NFILE) = opened {
            // Mappings age; connections, which need descriptors too, do not.
            self.evict(edge);
            opened = mapping::open_socket(&edge.config.outbound, ip.src.is_ipv4(), port);
        }
        let socket = match opened {
            Ok(socket) => socket,
            Err(errno) => {
                edge.counters.udp.flows.exhausted += 1;
                edge.unreachable_to_tap(ip.bytes, Reason::of_datagram(errno).unwrap_or(Reason::Port));
                return None;
            }
        };
        let marked = Marked::new(&socket, ip.src.is_ipv4(), Marks::of(ip));
        let idle_ms = if datagram.dst_port == dns::PORT { DNS_IDLE_MS } else { IDLE_MS };
        let index = self.flows.insert((ip.src, port), |id| {
            edge.watch(&socket, id).ok()?;
            let timer = edge.timers.insert(id);
            edge.timers.set(timer, edge.now.after(idle_ms));
            Some(Mapping {
                socket,
                guest: (ip.src, port),
                marked,
                timer,
                since: edge.now,
                last_used: edge.now,
                from_tap: 0,
                to_tap: 0,
                idle_ms,
                route: None,
                takes_segments: true,
                path_mtu: PathMtu::default(),
            })
        });
        match index {
            Some(index) => {
                self.recency.insert(index);
                edge.counters.udp.flows.opened += 1;
            }
            None => edge.counters.udp.flows.exhausted += 1,
        }
        index
    }

    /// Ends the mapping that was used longest ago.
    fn evict(&mut self, edge: &mut Edge) {
        if let Some(index) = self.recency.oldest() {
            edge.counters.udp.evicted += 1;
            self.remove(edge, index);
        }
    }

    fn remove(&mut self, edge: &mut Edge, index: u32) {
        let Some(flow) = self.flows.remove(index) else { return };
        self.recency.remove(index);
        edge.timers.remove(flow.timer);
        edge.counters.udp.flows.closed += 1;
    }

    /// Something came for a mapping, or for a query.
    pub fn host_event(&mut self, edge: &mut Edge, id: FlowId, events: EventFlags) {
        if id.kind == Kind::Dns {
            return self.dns.host_event(edge, id);
        }
        let Some(index) = self.flows.current(id) else { return };
        if events.contains(EventFlags::ERR) {
            self.errors_to_tap(edge, index);
        }
        if events.contains(EventFlags::IN) {
            self.datagrams_to_tap(edge, index);
        }
    }

    /// A datagram to this mapping's end was too big for a link inside. False: there is no such mapping.
    pub fn too_big(&mut self, now: Time, quote: &Quote, mtu: u16) -> bool {
        let found = self.flows.find(&quote.dst).and_then(|index| self.flows.get_mut(index));
        found.map(|flow| flow.path_mtu.heard(mtu, now)).is_some()
    }

    /// Puts mappings on a page.
    pub fn list(&self, page: &mut Page) {
        page.list(&self.flows, |flow, now| Listed {
            protocol: Protocol::Udp,
            guest: SocketAddr::from(flow.guest),
            remote: flow.route.map(|route| route.destination),
            state: State::Open,
            from_tap: flow.from_tap,
            to_tap: flow.to_tap,
            age_ms: now.since(flow.since),
            idle_ms: now.since(flow.last_used),
        });
    }

    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Gives every mapping with more to read one turn.
    pub fn run_ready(&mut self, edge: &mut Edge) {
        if edge.is_tap_full() {
            return;
        }
        for _ in 0..self.ready.due() {
            if let Some(index) = self.ready.next() {
                self.datagrams_to_tap(edge, index);
            }
        }
    }

    /// A mapping may have been idle, a query unanswered.
    pub fn timer(&mut self, edge: &mut Edge, id: FlowId) {
        if id.kind == Kind::Dns {
            return self.dns.timer(edge, id);
        }
        let Some(index) = self.flows.current(id) else { return };
        let Some(flow) = self.flows.get(index) else { return };
        let expiry = flow.last_used.after(flow.idle_ms);
        if edge.now < expiry {
            return edge.timers.set(flow.timer, expiry);
        }
        self.remove(edge, index);
    }
}
