//! Ping: echo requests of the workspace through the host's ping sockets (icmp(7), SOCK_DGRAM), which need no
//! privilege where net.ipv4.ping_group_range admits the user. The gateway and the resolver answer by themselves.
//!
//! One socket for each (workspace address, destination, identifier). The kernel puts an identifier of its own on the
//! wire; the workspace's comes back with the reply, and with what routers say about a request (ping -t, tracepath, mtr).
//! Replies that are too long for a link inside are cut by whoever is before it; over IPv6 by us, once we are told.
//! Where the host allows no ping sockets the workspace is told that pings are prohibited. Other ICMP messages of the
//! workspace are dropped.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};
use zerocopy::{FromBytes, IntoBytes};

use crate::edge::Edge;
use crate::flow::list::{Listed, Page, Protocol, State};
use crate::flow::{FlowId, FlowKey, Kind, Table};
use crate::gateway::unreachable::{self, Reason};
use crate::marks::{Marked, Marks};
use crate::network::Role;
use crate::path_mtu::PathMtu;
use crate::policy::{Egress, Transport};
use crate::sys::socket::{self, ErrorReport};
use crate::timer::{Time, TimerId};
use crate::wire::ip::header_for_quote;
use crate::wire::transport::{ICMP_ECHO_REPLY, ICMP_ECHO_REQUEST, ICMPV6_ECHO_REPLY, ICMPV6_ECHO_REQUEST, IcmpHeader};
use crate::wire::{ICMP_LEN, IcmpEcho, IpPacket, PROTOCOL_ICMP, PROTOCOL_ICMPV6, Quote};

/// Pings at once; each holds a descriptor.
const MAX_FLOWS: usize = 256;
/// After the last request: replies later than this are nobody's.
const IDLE_MS: u64 = 30_000;
/// Replies read for one socket before others have their turn.
const REPLIES_A_TURN: usize = 64;
const HOP_LIMIT: u8 = 64;

/// One series of pings.
#[derive(Debug)]
struct Ping {
    socket: OwnedFd,
    marked: Marked,
    key: FlowKey,
    timer: TimerId,
    since: Time,
    last_used: Time,
    /// Bytes of payload each way.
    from_tap: u64,
    to_tap: u64,
    /// What the workspace has said of the way to whoever pings.
    path_mtu: PathMtu,
}

/// All pings.
#[derive(Debug)]
pub struct Icmp {
    flows: Table<FlowKey, Ping>,
    /// Who was last sent a reply of the gateway's or the resolver's own that was too big, and what they were told.
    own_path_mtu: Option<(IpAddr, PathMtu)>,
    message: Vec<u8>,
}

impl Icmp {
    pub fn new() -> Self {
        Self { flows: Table::new(Kind::Ping, MAX_FLOWS), own_path_mtu: None, message: Vec::new() }
    }

    /// Takes in an echo request.
    pub fn echo_from_tap(&mut self, edge: &mut Edge, ip: &IpPacket<'_>, echo: &IcmpEcho<'_>) {
        if is_answered_here(edge, ip.dst) {
            let path =
                self.own_path_mtu.filter(|(guest, _)| *guest == ip.src).map(|(_, path)| path).unwrap_or_default();
            let len = edge.frame.put_payload(echo.payload);
            reply_to_tap(edge, path, (ip.dst, ip.src), (echo.id, echo.sequence), len);
            return;
        }
        let Some(destination) = route(edge, ip) else { return };
        if ip.hop_limit <= 1 && !destination.ip().is_loopback() {
            return edge.unreachable_to_tap(ip.bytes, Reason::HopLimit);
        }
        let key = FlowKey { guest: ip.src, guest_port: echo.id, remote: ip.dst, remote_port: 0 };
        let index = match self.flows.find(&key) {
            Some(index) => index,
            None => match self.open(edge, key, destination, Marks::of(ip)) {
                Ok(index) => index,
                Err(errno) => {
                    if let Some(reason) = Reason::of_datagram(errno) {
                        edge.unreachable_to_tap(ip.bytes, reason);
                    }
                    return;
                }
            },
        };
        let Some(flow) = self.flows.get_mut(index) else { return };
        flow.last_used = edge.now;
        flow.from_tap += echo.payload.len() as u64;
        flow.marked.set(&flow.socket, Marks::of(ip));
        let kind = if ip.dst.is_ipv4() { ICMP_ECHO_REQUEST } else { ICMPV6_ECHO_REQUEST };
        let header = IcmpHeader { kind, code: 0, checksum: 0.into(), id: 0.into(), sequence: echo.sequence.into() };
        self.message.clear();
        self.message.extend_from_slice(header.as_bytes());
        self.message.extend_from_slice(echo.payload);
        let send = || rustix::net::send(&flow.socket, &self.message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        // The first failure may be an earlier request's.
        if let Err(errno) = send().or_else(|_| send()) {
            edge.counters.ping.failed += 1;
            if errno == Errno::MSGSIZE {
                let mtu = errors_to_tap(edge, flow);
                edge.unreachable_to_tap(ip.bytes, Reason::TooBig(mtu));
            } else if let Some(reason) = Reason::of_datagram(errno) {
                edge.unreachable_to_tap(ip.bytes, reason);
            }
        }
    }

    fn open(&mut self, edge: &mut Edge, key: FlowKey, destination: SocketAddr, marks: Marks) -> Result<u32, Errno> {
        if self.flows.is_full() {
            edge.counters.ping.exhausted += 1;
            return Err(Errno::AGAIN);
        }
        let (family, protocol) = match destination.ip() {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, Some(protocol)).inspect_err(|_| {
            edge.counters.ping.exhausted += 1;
        })?;
        edge.config.outbound.bind(&socket, destination.ip())?;
        rustix::net::connect(&socket, &destination).inspect_err(|_| edge.counters.ping.failed += 1)?;
        socket::receive_errors(&socket, destination.is_ipv4())?;
        let marked = Marked::new(&socket, destination.is_ipv4(), marks);
        let inserted = self.flows.insert(key, |id| {
            edge.watch(&socket, id).ok()?;
            let timer = edge.timers.insert(id);
            edge.timers.set(timer, edge.now.after(IDLE_MS));
            Some(Ping {
                socket,
                marked,
                key,
                timer,
                since: edge.now,
                last_used: edge.now,
                from_tap: 0,
                to_tap: 0,
                path_mtu: PathMtu::default(),
            })
        });
        match inserted {
            Some(_) => edge.counters.ping.opened += 1,
            None => edge.counters.ping.exhausted += 1,
        }
        inserted.ok_or(Errno::AGAIN)
    }

    /// Puts pings on a page, with their identifier as the workspace's port.
    pub fn list(&self, page: &mut Page) {
        page.list(&self.flows, |flow, now| Listed {
            protocol: Protocol::Ping,
            guest: SocketAddr::new(flow.key.guest, flow.key.guest_port),
            remote: Some(flow.key.remote_addr()),
            state: State::Open,
            from_tap: flow.from_tap,
            to_tap: flow.to_tap,
            age_ms: now.since(flow.since),
            idle_ms: now.since(flow.last_used),
        });
    }

    /// Replies have come, or errors.
    pub fn host_event(&mut self, edge: &mut Edge, id: FlowId, events: EventFlags) {
        let Some(flow) = self.flows.current(id).and_then(|index| self.flows.get_mut(index)) else { return };
        if events.contains(EventFlags::ERR) {
            errors_to_tap(edge, flow);
        }
        let (path, ends, identifier) = (flow.path_mtu, (flow.key.remote, flow.key.guest), flow.key.guest_port);
        let reply = if flow.key.remote.is_ipv4() { ICMP_ECHO_REPLY } else { ICMPV6_ECHO_REPLY };
        self.message.resize(usize::from(u16::MAX), 0);
        for _ in 0..REPLIES_A_TURN {
            let count = match rustix::net::recv(&flow.socket, &mut self.message[..], RecvFlags::DONTWAIT) {
                Ok((count, _)) => count,
                Err(Errno::AGAIN) => return,
                // What the error queue told, once more; the replies behind it are read after it.
                Err(_) => continue,
            };
            let message = self.message.get(..count).unwrap_or_default();
            let Ok((header, payload)) = IcmpHeader::ref_from_prefix(message) else { continue };
            if header.kind == reply {
                let len = edge.frame.put_payload(payload);
                flow.to_tap += len as u64;
                reply_to_tap(edge, path, ends, (identifier, header.sequence.get()), len);
            }
        }
        // The next wake reports what is left. Failing, it is there with the next reply.
        let _ = edge.watch(&flow.socket, id);
    }

    /// A reply was too big for a link inside. False: it was none.
    pub fn too_big(&mut self, edge: &Edge, quote: &Quote, mtu: u16) -> bool {
        let Some(key) = quote.echo_reply() else { return false };
        let path = if is_answered_here(edge, key.remote) {
            &mut self.own_path_mtu.insert((key.guest, PathMtu::default())).1
        } else {
            let Some(flow) = self.flows.find(&key).and_then(|index| self.flows.get_mut(index)) else { return false };
            &mut flow.path_mtu
        };
        path.heard(mtu, edge.now);
        true
    }

    /// A series has been silent, or was used meanwhile.
    pub fn timer(&mut self, edge: &mut Edge, id: FlowId) {
        let Some(index) = self.flows.current(id) else { return };
        let Some(flow) = self.flows.get(index) else { return };
        let expiry = flow.last_used.after(IDLE_MS);
        if edge.now < expiry {
            return edge.timers.set(flow.timer, expiry);
        }
        edge.timers.remove(flow.timer);
        edge.counters.ping.closed += 1;
        self.flows.remove(index);
    }
}

/// Where the policy sends a request; None when it has been dealt with.
fn route(edge: &mut Edge, ip: &IpPacket<'_>) -> Option<SocketAddr> {
    // Ping has no ports; any will do for the policy's question.
    match edge.egress(SocketAddr::new(ip.dst, 0), Transport::Icmp) {
        Egress::Host(address) => return Some(address),
        Egress::Resolver => {
            edge.counters.ping.denied += 1;
            edge.counters.denied.resolver += 1;
        }
        Egress::Denied(denial) => {
            edge.counters.ping.denied += 1;
            edge.counters.denied.count(denial);
            if !ip.dst.is_multicast() {
                edge.unreachable_to_tap(ip.bytes, Reason::of_denial(denial));
            }
        }
    }
    None
}

/// What routers and the destination said about requests, told to the workspace. Returns the MTU of the one that the host
/// itself found too big.
fn errors_to_tap(edge: &mut Edge, flow: &Ping) -> u16 {
    let relayed = unreachable::relay(edge, &flow.socket, |_, report| quoted(&flow.key, report));
    edge.counters.ping.failed += relayed.count;
    relayed.mtu
}

/// The request a report is about, as the workspace sent it.
fn quoted(key: &FlowKey, report: &ErrorReport) -> Option<Vec<u8>> {
    let (header, payload) = IcmpHeader::ref_from_prefix(report.payload()).ok()?;
    let protocol = if key.remote.is_ipv4() { PROTOCOL_ICMP } else { PROTOCOL_ICMPV6 };
    let header = IcmpHeader { id: key.guest_port.into(), ..*header };
    let mut quoted = header_for_quote(key.guest, key.remote, protocol, ICMP_LEN + payload.len());
    quoted.extend_from_slice(header.as_bytes());
    quoted.extend_from_slice(payload);
    Some(quoted)
}

fn is_answered_here(edge: &Edge, address: IpAddr) -> bool {
    matches!(edge.config.network.role(address), Some(Role::Gateway | Role::Resolver))
}

fn reply_to_tap(edge: &mut Edge, path: PathMtu, ends: (IpAddr, IpAddr), (id, sequence): (u16, u16), len: usize) {
    let kind = if ends.1.is_ipv4() { ICMP_ECHO_REPLY } else { ICMPV6_ECHO_REPLY };
    let header = IcmpHeader { kind, code: 0, checksum: 0.into(), id: id.into(), sequence: sequence.into() };
    edge.icmp_to_tap_within(path, ends, header, len, HOP_LIMIT);
}
