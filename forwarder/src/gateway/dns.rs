//! The virtual resolver's UDP port 53: queries of the workspace to the host's resolvers, one after the other until one
//! answers.
//!
//! Each query has a host socket of its own, connected to one resolver: its port is as random as the kernel makes it,
//! and only that resolver can answer. Silence for [`FAILOVER_MS`], or an ICMP error, moves the query to the next
//! resolver, while those asked before may still answer; the one that answered last is asked first. A query is known by its
//! sender and identifier, so one sent again by the workspace is sent again. DNS over TCP is an ordinary flow (see `tcp`).

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::edge::Edge;
use crate::flow::{FlowId, Kind, Table};
use crate::gateway::unreachable::Reason;
use crate::outbound::Outbound;
use crate::timer::{Time, TimerId};
use crate::wire::{IpPacket, UdpDatagram};

pub const PORT: u16 = 53;
/// Unanswered queries at once, each with a descriptor.
const MAX_QUERIES: usize = 1024;
/// How long one resolver is waited for; below the 5 s after which the workspace's own resolver asks again.
const FAILOVER_MS: u64 = 2_000;
/// How long a query lives.
const LIFETIME_MS: u64 = 12_000;
/// A query longer than this is none: they hold one question (RFC 9619).
const MAX_QUERY: usize = 2_048;
/// Datagrams read for one query at an event; all but one are no answer.
const ANSWERS_A_TURN: usize = 4;
/// The QR bit in a header's third byte and the RCODE in its fourth (RFC 1035 4.1.1).
const RESPONSE: u8 = 0x80;
const SERVER_FAILURE: u8 = 2;
/// Bytes of a DNS header.
const HEADER_LEN: usize = 12;

/// Who asked: address, port and the query's identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct QueryKey {
    guest: IpAddr,
    guest_port: u16,
    resolver: IpAddr,
    id: [u8; 2],
}

#[derive(Debug)]
struct Query {
    key: QueryKey,
    /// Resolvers asked, each with its socket; the last one is being waited for. The configured ones may be others by now.
    asked: Vec<(SocketAddr, OwnedFd)>,
    bytes: Vec<u8>,
    /// Resolvers that refused, one after the other.
    refusals: usize,
    timer: TimerId,
    failover_at: Time,
    expires_at: Time,
}

/// What the resolvers of one query have said.
#[derive(Debug)]
enum Heard {
    Nothing,
    Answer {
        len: usize,
        resolver: SocketAddr,
    },
    /// One of them cannot be asked: an ICMP error.
    Refusal,
}

impl Query {
    /// Reads what has come, an answer before anything else.
    fn hear(&self, buffer: &mut [u8]) -> Heard {
        let mut heard = Heard::Nothing;
        for (resolver, socket) in &self.asked {
            for _ in 0..ANSWERS_A_TURN {
                match rustix::net::recv(socket, &mut *buffer, RecvFlags::DONTWAIT) {
                    Ok((len, _)) if buffer.get(..2) == Some(&self.key.id[..]) && len >= HEADER_LEN => {
                        return Heard::Answer { len, resolver: *resolver };
                    }
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => break,
                    Err(_) => heard = Heard::Refusal,
                }
            }
        }
        heard
    }
}

/// All unanswered queries.
#[derive(Debug)]
pub struct Dns {
    queries: Table<QueryKey, Query>,
}

impl Dns {
    pub fn new() -> Self {
        Self { queries: Table::new(Kind::Dns, MAX_QUERIES) }
    }

    /// Takes in one datagram for the virtual resolver.
    pub fn query_from_tap(&mut self, edge: &mut Edge, ip: &IpPacket<'_>, datagram: &UdpDatagram<'_>) {
        let is_query = (HEADER_LEN..=MAX_QUERY).contains(&datagram.payload.len());
        let (true, &[a, b, ..]) = (is_query, datagram.payload) else {
            edge.counters.drops.malformed += 1;
            return;
        };
        if !edge.config.network.dns {
            edge.counters.dns.disabled += 1;
            return;
        }
        edge.counters.dns.queries += 1;
        let key = QueryKey { guest: ip.src, guest_port: datagram.src_port, resolver: ip.dst, id: [a, b] };
        if let Some(query) = self.queries.find(&key).and_then(|index| self.queries.get(index)) {
            // A failure here is met by the failover.
            if let Some((_, socket)) = query.asked.last() {
                let _ = rustix::net::send(socket, datagram.payload, SendFlags::NOSIGNAL);
            }
            return;
        }
        if self.queries.is_full() {
            edge.counters.drops.host_full += 1;
            return;
        }
        let count = edge.config.resolvers.len();
        let first = (0..count).find_map(|step| {
            let resolver = edge.resolver(step)?;
            Some((resolver, ask(&edge.config.outbound, resolver, datagram.payload)?))
        });
        let Some((resolver, socket)) = first else {
            edge.counters.dns.unanswered += 1;
            return edge.unreachable_to_tap(ip.bytes, Reason::Port);
        };
        let inserted = self.queries.insert(key, |id| {
            edge.watch(&socket, id).ok()?;
            let timer = edge.timers.insert(id);
            let (failover_at, expires_at) = (edge.now.after(FAILOVER_MS), edge.now.after(LIFETIME_MS));
            edge.timers.set(timer, failover_at);
            let bytes = datagram.payload.to_vec();
            Some(Query { key, asked: vec![(resolver, socket)], bytes, refusals: 0, timer, failover_at, expires_at })
        });
        if inserted.is_none() {
            edge.counters.drops.host_full += 1;
        }
    }

    /// A resolver answered, or its host said that it cannot.
    pub fn host_event(&mut self, edge: &mut Edge, id: FlowId) {
        let Some(index) = self.queries.current(id) else { return };
        let Some(query) = self.queries.get(index) else { return };
        match query.hear(edge.frame.payload_mut(usize::from(u16::MAX))) {
            Heard::Nothing => {}
            Heard::Refusal => self.refused(edge, index),
            Heard::Answer { len, resolver } => {
                let key = query.key;
                edge.udp_to_tap((key.resolver, PORT), (key.guest, key.guest_port), len);
                edge.counters.dns.answers += 1;
                edge.prefer_resolver(resolver);
                self.remove(edge, index);
            }
        }
    }

    /// A query has waited for one resolver, or for all, long enough.
    pub fn timer(&mut self, edge: &mut Edge, id: FlowId) {
        let Some(index) = self.queries.current(id) else { return };
        let Some(query) = self.queries.get(index) else { return };
        if edge.now >= query.expires_at {
            edge.counters.dns.unanswered += 1;
            self.remove(edge, index);
        } else if edge.now >= query.failover_at {
            self.fail_over(edge, index);
        } else {
            edge.timers.set(query.timer, query.failover_at);
        }
    }

    /// A resolver's host refused the query. Once all have, the workspace is told so.
    fn refused(&mut self, edge: &mut Edge, index: u32) {
        let Some(query) = self.queries.get_mut(index) else { return };
        query.refusals += 1;
        if query.refusals < edge.config.resolvers.len() {
            return self.fail_over(edge, index);
        }
        if let [_, _, flags, code, ..] = &mut query.bytes[..] {
            *flags |= RESPONSE;
            *code = (*code & 0xf0) | SERVER_FAILURE;
        }
        let len = edge.frame.put_payload(&query.bytes);
        let key = query.key;
        edge.udp_to_tap((key.resolver, PORT), (key.guest, key.guest_port), len);
        edge.counters.dns.unanswered += 1;
        self.remove(edge, index);
    }

    /// Asks the next resolver, round and round until the query expires.
    fn fail_over(&mut self, edge: &mut Edge, index: u32) {
        let Some(query) = self.queries.get_mut(index) else { return };
        query.failover_at = edge.now.after(FAILOVER_MS);
        edge.timers.set(query.timer, query.failover_at);
        let Some(next) = query.asked.last().and_then(|&(last, _)| edge.resolver_after(last)) else { return };
        if let Some(at) = query.asked.iter().position(|&(resolver, _)| resolver == next) {
            let again = query.asked.remove(at);
            // A failure here is met by the next failover.
            let _ = rustix::net::send(&again.1, &query.bytes, SendFlags::NOSIGNAL);
            query.asked.push(again);
            edge.counters.dns.failovers += 1;
            return;
        }
        let Some(socket) = ask(&edge.config.outbound, next, &query.bytes) else { return };
        let Some(id) = self.queries.id(index) else { return };
        if edge.watch(&socket, id).is_ok()
            && let Some(query) = self.queries.get_mut(index)
        {
            edge.counters.dns.failovers += 1;
            query.asked.push((next, socket));
        }
    }

    fn remove(&mut self, edge: &mut Edge, index: u32) {
        if let Some(query) = self.queries.remove(index) {
            edge.timers.remove(query.timer);
        }
    }
}

/// Sends a query to one resolver from a socket that hears only from it.
fn ask(outbound: &Outbound, resolver: SocketAddr, query: &[u8]) -> Option<OwnedFd> {
    let family = if resolver.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None).ok()?;
    outbound.bind(&socket, resolver.ip()).ok()?;
    rustix::net::connect(&socket, &resolver).ok()?;
    rustix::net::send(&socket, query, SendFlags::NOSIGNAL).ok()?;
    Some(socket)
}
