//! Datagrams from the workspace. Those of one mapping to one destination that come in one batch are gathered and sent
//! with one call (UDP_SEGMENT), as long as they are of one size; so is what the workspace's kernel left uncut (USO).
//! Where the host's path refuses that, each datagram is sent by itself.

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::SendFlags;

use super::{IDLE_MS, Udp};
use crate::edge::Edge;
use crate::gateway::dns;
use crate::gateway::unreachable::Reason;
use crate::marks::Marks;
use crate::policy::{Denial, Egress, Transport};
use crate::sys;
use crate::wire::{IpPacket, UdpDatagram};

/// Datagrams in one call: what every kernel takes with UDP_SEGMENT.
const MAX_SEGMENTS: usize = 64;
/// Bytes in one call: an IP packet's 65,535 less both headers.
const MAX_BYTES: usize = 65_487;

/// Datagrams of one size on their way from one mapping to one destination.
#[derive(Debug)]
pub struct Gather<'b> {
    /// The mapping; None when there is nothing.
    index: Option<u32>,
    source: (IpAddr, u16),
    destination: SocketAddr,
    marks: Marks,
    size: usize,
    len: usize,
    count: usize,
    payloads: [IoSlice<'b>; MAX_SEGMENTS],
    /// The packets they came in, for errors to quote.
    packets: [&'b [u8]; MAX_SEGMENTS],
}

impl<'b> Gather<'b> {
    pub fn new() -> Self {
        let nobody = IpAddr::from([0; 4]);
        Self {
            index: None,
            source: (nobody, 0),
            destination: SocketAddr::new(nobody, 0),
            marks: Marks::NONE,
            size: 0,
            len: 0,
            count: 0,
            payloads: [IoSlice::new(&[]); MAX_SEGMENTS],
            packets: [&[]; MAX_SEGMENTS],
        }
    }

    /// Whether this datagram may follow those that are there.
    fn admits(&self, ip: &IpPacket<'_>, datagram: &UdpDatagram<'_>) -> bool {
        let len = datagram.payload.len();
        // A shorter one is the last.
        let is_open = self.len == self.size * self.count;
        self.index.is_some()
            && is_open
            && (1..=self.size).contains(&len)
            && self.len + len <= MAX_BYTES
            && self.source == (ip.src, datagram.src_port)
            && self.destination.port() == datagram.dst_port
            && self.destination.ip() == ip.dst
            && self.marks == Marks::of(ip)
    }

    fn push(&mut self, payload: &'b [u8], packet: &'b [u8]) {
        if let (Some(slice), Some(quoted)) = (self.payloads.get_mut(self.count), self.packets.get_mut(self.count)) {
            *slice = IoSlice::new(payload);
            *quoted = packet;
            self.len += payload.len();
            self.count += 1;
        }
    }
}

impl Udp {
    /// Takes in one datagram, or several in a row of `segment` bytes each (USO). It may stay in `gather` until
    /// [`Self::flush`].
    pub fn datagram_from_tap<'b>(
        &mut self,
        edge: &mut Edge,
        gather: &mut Gather<'b>,
        ip: &IpPacket<'b>,
        datagram: &UdpDatagram<'b>,
        segment: Option<u16>,
    ) {
        if segment.is_none() && gather.count < MAX_SEGMENTS && gather.admits(ip, datagram) {
            if let Some(flow) = gather.index.and_then(|index| self.flows.get_mut(index)) {
                flow.from_tap += datagram.payload.len() as u64;
            }
            return gather.push(datagram.payload, ip.bytes);
        }
        self.flush(edge, gather);
        let destination = SocketAddr::new(ip.dst, datagram.dst_port);
        let Some((index, host)) = self.mapping_from_tap(edge, ip, datagram, destination) else { return };
        match segment.map(usize::from).filter(|&size| size < datagram.payload.len()) {
            Some(size) => self.send_uncut(edge, index, host, ip.bytes, datagram.payload, size),
            None => {
                gather.index = Some(index);
                gather.source = (ip.src, datagram.src_port);
                gather.destination = destination;
                gather.marks = Marks::of(ip);
                gather.size = datagram.payload.len();
                (gather.len, gather.count) = (0, 0);
                gather.push(datagram.payload, ip.bytes);
            }
        }
    }

    /// A datagram put together from fragments: nothing follows it that it could be gathered with.
    pub fn whole_from_tap(&mut self, edge: &mut Edge, ip: &IpPacket<'_>, datagram: &UdpDatagram<'_>) {
        let destination = SocketAddr::new(ip.dst, datagram.dst_port);
        if let Some((index, host)) = self.mapping_from_tap(edge, ip, datagram, destination) {
            self.send_one(edge, index, host, ip.bytes, datagram.payload);
        }
    }

    /// The mapping a datagram goes out by, ready for it, and where it goes; None when it has been dealt with.
    fn mapping_from_tap(
        &mut self,
        edge: &mut Edge,
        ip: &IpPacket<'_>,
        datagram: &UdpDatagram<'_>,
        destination: SocketAddr,
    ) -> Option<(u32, SocketAddr)> {
        let found = self.flows.find(&(ip.src, datagram.src_port));
        let known = found.and_then(|index| self.flows.get(index)).and_then(|flow| flow.route);
        let host = match known {
            Some((guest_side, host_side)) if guest_side == destination => host_side,
            _ => self.route(edge, ip, datagram, destination)?,
        };
        // What goes to the gateway itself is not forwarded.
        if ip.hop_limit <= 1 && !host.ip().is_loopback() {
            edge.unreachable_to_tap(ip.bytes, Reason::HopLimit);
            return None;
        }
        let index = found.or_else(|| self.open(edge, ip, datagram))?;
        self.recency.touch(index);
        let flow = self.flows.get_mut(index)?;
        flow.last_used = edge.now;
        flow.from_tap += datagram.payload.len() as u64;
        flow.takes_segments |= flow.route != Some((destination, host));
        flow.route = Some((destination, host));
        flow.marked.set(&flow.socket, Marks::of(ip));
        if host.port() != dns::PORT && flow.idle_ms != IDLE_MS {
            flow.idle_ms = IDLE_MS;
        }
        Some((index, host))
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
                edge.counters.udp.flows.denied += 1;
                edge.counters.denied.resolver += 1;
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

    /// Sends what has been gathered.
    pub fn flush(&mut self, edge: &mut Edge, gather: &mut Gather<'_>) {
        let Some(index) = gather.index.take() else { return };
        let Some((flow, (_, host))) = self.flows.get_mut(index).and_then(|flow| flow.route.map(|r| (flow, r))) else {
            return;
        };
        let payloads = gather.payloads.get(..gather.count).unwrap_or_default();
        if gather.count > 1 && flow.takes_segments {
            match send_segments(&flow.socket, payloads, host, gather.size) {
                Ok(()) => return,
                Err(Errno::AGAIN) => return edge.counters.drops.host_full += gather.count as u64,
                Err(_) => flow.takes_segments = false,
            }
        }
        for (payload, packet) in payloads.iter().zip(gather.packets) {
            self.send_one(edge, index, host, packet, payload);
        }
    }

    /// Sends what the workspace's kernel has left uncut.
    fn send_uncut(
        &mut self,
        edge: &mut Edge,
        index: u32,
        host: SocketAddr,
        packet: &[u8],
        payload: &[u8],
        size: usize,
    ) {
        for part in payload.chunks(size * MAX_SEGMENTS) {
            let Some(flow) = self.flows.get_mut(index) else { return };
            if flow.takes_segments && part.len() > size {
                match send_segments(&flow.socket, &[IoSlice::new(part)], host, size) {
                    Ok(()) => continue,
                    Err(Errno::AGAIN) => {
                        edge.counters.drops.host_full += part.len().div_ceil(size) as u64;
                        continue;
                    }
                    Err(_) => flow.takes_segments = false,
                }
            }
            for datagram in part.chunks(size) {
                self.send_one(edge, index, host, packet, datagram);
            }
        }
    }

    /// Sends one datagram; what is in the way of it the workspace is told.
    fn send_one(&mut self, edge: &mut Edge, index: u32, host: SocketAddr, packet: &[u8], payload: &[u8]) {
        let Some(flow) = self.flows.get(index) else { return };
        let send = || rustix::net::sendto(&flow.socket, payload, SendFlags::NOSIGNAL | SendFlags::DONTWAIT, &host);
        let Err(errno) = retry(send) else { return };
        edge.counters.drops.host_full += 1;
        let reason = match errno {
            Errno::MSGSIZE => self.errors_to_tap(edge, index).map(Reason::TooBig),
            errno => Reason::of_datagram(errno),
        };
        if let Some(reason) = reason {
            edge.unreachable_to_tap(packet, reason);
        }
    }
}

/// All or, with an error, none of them are sent. EAGAIN: there is no room for them. Another error: the host's path
/// refuses to cut them, or one of that size.
fn send_segments(socket: &OwnedFd, parts: &[IoSlice<'_>], to: SocketAddr, size: usize) -> Result<(), Errno> {
    let size = u16::try_from(size).map_err(|_| Errno::INVAL)?;
    match retry(|| sys::datagram::send(socket, parts, Some(size), None, to)) {
        Ok(_) => Ok(()),
        Err(Errno::NOBUFS) => Err(Errno::AGAIN),
        Err(errno) => Err(errno),
    }
}

/// A failure may be an earlier datagram's, to anyone: the kernel reports what is pending before it sends, once.
fn retry<T>(send: impl Fn() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    match send() {
        Err(errno) if errno != Errno::AGAIN => send(),
        sent => sent,
    }
}
