//! UDP between the workspace and the host: one host socket for each of the workspace's addresses and ports, whatever
//! it sends to (endpoint-independent mapping, RFC 4787), unconnected, so anyone it has opened the mapping for may
//! answer. A mapping ends when nothing has used it for a while, or when the table is full and it is not among the
//! recently used.
//!
//! Errors of the host's network come back through the sockets' error queues (IP_RECVERR) and reach the workspace as
//! ICMP. Datagrams the host's socket does not take are dropped and counted, as a network would.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use zerocopy::IntoBytes;

use crate::edge::Edge;
use crate::flow::list::{Listed, Page, Protocol, State};
use crate::flow::{FlowId, FlowKey, Kind, Table};
use crate::gateway::dns::{self, Dns};
use crate::gateway::unreachable::Reason;
use crate::policy::{Denial, Egress, Transport};
use crate::sys;
use crate::tap::Written;
use crate::timer::{Time, TimerId};
use crate::wire::transport::UdpHeader;
use crate::wire::{IpPacket, PROTOCOL_UDP, UDP_LEN, UdpDatagram};

/// Mappings at once: each holds a descriptor, and busy resolvers or peer-to-peer programs open thousands.
const MAX_FLOWS: usize = 8_192;
/// Idle time after which a mapping ends; RFC 4787 asks for at least two minutes.
const IDLE_MS: u64 = 180_000;
/// The same when all it ever carried was DNS, where each query has a port of its own.
const DNS_IDLE_MS: u64 = 15_000;
/// Datagrams relayed for one mapping before others have their turn.
const DATAGRAMS_A_TURN: usize = 32;
/// Mappings looked at to find one to evict; recently used ones lose their mark in passing.
const EVICTION_STEPS: usize = 64;

/// One mapping.
#[derive(Debug)]
struct Mapping {
    id: FlowId,
    socket: OwnedFd,
    guest: IpAddr,
    guest_port: u16,
    timer: TimerId,
    since: Time,
    last_used: Time,
    /// Bytes of payload each way.
    from_tap: u64,
    to_tap: u64,
    idle_ms: u64,
    /// Used since the eviction last came by.
    is_recent: bool,
    is_ready: bool,
    /// The last destination and what the policy made of it.
    route: Option<(SocketAddr, SocketAddr)>,
}

/// All mappings, and the queries to the virtual resolver.
#[derive(Debug)]
pub struct Udp {
    flows: Table<(IpAddr, u16), Mapping>,
    ready: VecDeque<FlowId>,
    /// Where eviction looks next.
    hand: u32,
    dns: Dns,
}

impl Udp {
    pub fn new() -> Self {
        Self { flows: Table::new(Kind::Udp, MAX_FLOWS), ready: VecDeque::new(), hand: 0, dns: Dns::new() }
    }

    /// Takes in one datagram, or several in a row of `segment` bytes each (USO).
    pub fn datagram_from_tap(
        &mut self,
        edge: &mut Edge,
        ip: &IpPacket<'_>,
        datagram: &UdpDatagram<'_>,
        segment: Option<u16>,
    ) {
        let destination = SocketAddr::new(ip.dst, datagram.dst_port);
        let found = self.flows.find(&(ip.src, datagram.src_port));
        let known = found.and_then(|index| self.flows.get(index)).and_then(|flow| flow.route);
        let host = match known {
            Some((guest_side, host_side)) if guest_side == destination => host_side,
            _ => match self.route(edge, ip, datagram, destination) {
                Some(host) => host,
                None => return,
            },
        };
        let Some(index) = found.or_else(|| self.open(edge, ip, datagram)) else { return };
        let Some(flow) = self.flows.get_mut(index) else { return };
        flow.last_used = edge.now;
        flow.from_tap += datagram.payload.len() as u64;
        flow.is_recent = true;
        flow.route = Some((destination, host));
        if host.port() != dns::PORT && flow.idle_ms != IDLE_MS {
            flow.idle_ms = IDLE_MS;
        }
        match send(&flow.socket, datagram.payload, host, segment) {
            Ok(()) => {}
            Err(Errno::MSGSIZE) => {
                edge.counters.drops.host_full += 1;
                let mtu = edge.config.network.mtu.min(1500);
                edge.unreachable_to_tap(ip.bytes, Reason::TooBig(mtu));
            }
            Err(errno) => {
                edge.counters.drops.host_full += 1;
                if let Some(reason) = Reason::of(errno) {
                    edge.unreachable_to_tap(ip.bytes, reason);
                }
            }
        }
    }

    /// Where the policy sends this datagram; None when it has been dealt with.
    fn route(
        &mut self,
        edge: &mut Edge,
        ip: &IpPacket<'_>,
        datagram: &UdpDatagram<'_>,
        destination: SocketAddr,
    ) -> Option<SocketAddr> {
        let is_broadcast = ip.dst == IpAddr::V4(edge.config.network.v4.broadcast());
        match edge.egress(destination, Transport::Udp) {
            Egress::Host(host) => return Some(host),
            Egress::Resolver if destination.port() == dns::PORT => self.dns.query_from_tap(edge, ip, datagram),
            Egress::Resolver => {
                edge.counters.drops.no_service += 1;
                edge.unreachable_to_tap(ip.bytes, Reason::Port);
            }
            Egress::Denied(Denial::Multicast) => edge.counters.drops.multicast += 1,
            Egress::Denied(_) if is_broadcast => edge.counters.drops.multicast += 1,
            Egress::Denied(denial) => {
                edge.counters.udp.flows.denied += 1;
                edge.counters.denied.count(denial);
                edge.unreachable_to_tap(ip.bytes, Reason::of_denied_datagram(denial));
            }
        }
        None
    }

    fn open(&mut self, edge: &mut Edge, ip: &IpPacket<'_>, datagram: &UdpDatagram<'_>) -> Option<u32> {
        if self.flows.is_full() {
            self.evict(edge);
        }
        let mut opened = open_socket(ip.src.is_ipv4());
        if let Err(Errno::MFILE | Errno::NFILE) = opened {
            // Mappings age; connections, which need descriptors too, do not.
            self.evict(edge);
            opened = open_socket(ip.src.is_ipv4());
        }
        let socket = match opened {
            Ok(socket) => socket,
            Err(_) => {
                edge.counters.udp.flows.exhausted += 1;
                edge.unreachable_to_tap(ip.bytes, Reason::Port);
                return None;
            }
        };
        let idle_ms = if datagram.dst_port == dns::PORT { DNS_IDLE_MS } else { IDLE_MS };
        let index = self.flows.insert((ip.src, datagram.src_port), |id| {
            edge.watch(&socket, id).ok()?;
            let timer = edge.timers.insert(id);
            edge.timers.set(timer, edge.now.after(idle_ms));
            Some(Mapping {
                id,
                socket,
                guest: ip.src,
                guest_port: datagram.src_port,
                timer,
                since: edge.now,
                last_used: edge.now,
                from_tap: 0,
                to_tap: 0,
                idle_ms,
                is_recent: true,
                is_ready: false,
                route: None,
            })
        });
        match index {
            Some(_) => edge.counters.udp.flows.opened += 1,
            None => edge.counters.udp.flows.exhausted += 1,
        }
        index
    }

    /// Ends one mapping that was not used since eviction last passed it (second chance), or the last one passed.
    fn evict(&mut self, edge: &mut Edge) {
        let mut chosen = None;
        for _ in 0..EVICTION_STEPS {
            let index = self.hand;
            self.hand = (self.hand + 1) % u32::try_from(MAX_FLOWS).unwrap_or(u32::MAX);
            let Some(flow) = self.flows.get_mut(index) else { continue };
            chosen = Some(index);
            if !std::mem::take(&mut flow.is_recent) {
                break;
            }
        }
        if let Some(index) = chosen {
            edge.counters.udp.evicted += 1;
            self.remove(edge, index);
        }
    }

    fn remove(&mut self, edge: &mut Edge, index: u32) {
        if let Some(flow) = self.flows.remove(index) {
            edge.timers.remove(flow.timer);
            edge.counters.udp.flows.closed += 1;
        }
    }

    /// Something came for a mapping, or for a query.
    pub fn host_event(&mut self, edge: &mut Edge, id: FlowId, events: EventFlags) {
        if id.kind == Kind::Dns {
            return self.dns.host_event(edge, id);
        }
        let Some(index) = self.flows.current(id) else { return };
        if events.contains(EventFlags::ERR) {
            self.relay_errors(edge, index);
        }
        if events.contains(EventFlags::IN) {
            self.datagrams_to_tap(edge, index);
        }
    }

    /// One turn of a mapping's datagrams.
    fn datagrams_to_tap(&mut self, edge: &mut Edge, index: u32) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        for _ in 0..DATAGRAMS_A_TURN {
            if edge.is_tap_full() {
                break;
            }
            let buffer = edge.frame.payload_mut(usize::from(u16::MAX));
            let (count, source) = match rustix::net::recvfrom(&flow.socket, buffer, RecvFlags::DONTWAIT) {
                Ok((count, _, source)) => (count, source),
                Err(Errno::AGAIN) => return,
                // A pending error is reported once; the datagrams behind it are read after it.
                Err(_) => continue,
            };
            let source = source.and_then(|address| SocketAddr::try_from(address).ok());
            let remote = source.and_then(|source| Some((edge.guest_view(source.ip())?, source.port())));
            let Some(remote) = remote.filter(|(remote, _)| remote.is_ipv4() == flow.guest.is_ipv4()) else {
                edge.counters.drops.hidden_source += 1;
                continue;
            };
            flow.to_tap += count as u64;
            flow.last_used = edge.now;
            flow.is_recent = true;
            if edge.udp_to_tap(remote, (flow.guest, flow.guest_port), count) == Written::Full {
                break;
            }
        }
        if !flow.is_ready {
            flow.is_ready = true;
            self.ready.push_back(flow.id);
        }
    }

    /// What the host's network said about datagrams of this mapping, told to the workspace.
    fn relay_errors(&mut self, edge: &mut Edge, index: u32) {
        for _ in 0..DATAGRAMS_A_TURN {
            let Some(flow) = self.flows.get(index) else { return };
            let Some(report) = sys::socket::next_error(&flow.socket) else { return };
            let Some(remote) = report.destination.and_then(|address| edge.guest_view(address.ip())) else { continue };
            let port = report.destination.map_or(0, |address| address.port());
            let reason = match report.errno {
                Errno::CONNREFUSED => Reason::Port,
                errno => match Reason::of(errno) {
                    Some(reason) => reason,
                    None => continue,
                },
            };
            let key = FlowKey { guest: flow.guest, guest_port: flow.guest_port, remote, remote_port: port };
            edge.counters.udp.errors_relayed += 1;
            edge.unreachable_to_tap(&quoted(&key), reason);
        }
    }

    /// Puts mappings on a page.
    pub fn list(&self, page: &mut Page) {
        page.list(&self.flows, |flow, now| Listed {
            protocol: Protocol::Udp,
            guest: SocketAddr::new(flow.guest, flow.guest_port),
            remote: flow.route.map(|(remote, _)| remote),
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
        for _ in 0..self.ready.len() {
            let Some(id) = self.ready.pop_front() else { return };
            let Some(index) = self.flows.current(id) else { continue };
            if let Some(flow) = self.flows.get_mut(index) {
                flow.is_ready = false;
            }
            self.datagrams_to_tap(edge, index);
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

fn open_socket(is_ipv4: bool) -> rustix::io::Result<OwnedFd> {
    let family = if is_ipv4 { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    if !is_ipv4 {
        // Else IPv4 senders, the host's loopback among them, would come in as ::ffff:a.b.c.d.
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
    }
    sys::socket::receive_errors(&socket, is_ipv4)?;
    Ok(socket)
}

/// Sends one datagram, or several of `segment` bytes each: in one call where the host's route admits it (UDP_SEGMENT
/// refuses sizes above its MTU and more than 64 or 128 of them), else one by one.
fn send(socket: &OwnedFd, payload: &[u8], to: SocketAddr, segment: Option<u16>) -> rustix::io::Result<()> {
    match segment.map(usize::from).filter(|&size| size < payload.len()) {
        Some(size) => match sys::socket::send_segments(socket, payload, to, u16::try_from(size).unwrap_or(u16::MAX)) {
            Ok(_) => Ok(()),
            Err(Errno::AGAIN | Errno::NOBUFS) => Err(Errno::AGAIN),
            Err(_) => payload.chunks(size).try_for_each(|datagram| send_one(socket, datagram, to)),
        },
        None => send_one(socket, payload, to),
    }
}

/// A failure may be an earlier datagram's, to anyone: the kernel reports what is pending before it sends, once.
fn send_one(socket: &OwnedFd, payload: &[u8], to: SocketAddr) -> rustix::io::Result<()> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match rustix::net::sendto(socket, payload, flags, &to) {
        Ok(_) => Ok(()),
        Err(Errno::AGAIN) => Err(Errno::AGAIN),
        Err(_) => rustix::net::sendto(socket, payload, flags, &to).map(drop),
    }
}

/// The headers of a datagram the workspace sent, rebuilt for an ICMP error to quote.
fn quoted(key: &FlowKey) -> Vec<u8> {
    let header = UdpHeader {
        src_port: key.guest_port.into(),
        dst_port: key.remote_port.into(),
        len: 8.into(),
        checksum: 0.into(),
    };
    let mut bytes = crate::wire::ip::header_for_quote(key.guest, key.remote, PROTOCOL_UDP, UDP_LEN);
    bytes.extend_from_slice(header.as_bytes());
    bytes
}
