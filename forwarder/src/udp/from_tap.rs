//! Datagrams from the workspace. Those of one mapping to one destination that come in one batch are gathered and sent
//! with one call (UDP_SEGMENT), as long as they are of one size; so is what the workspace's kernel left uncut (USO).
//! Where the host's path refuses that, each datagram is sent by itself.

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};

use rustix::io::Errno;
use rustix::net::SendFlags;

use super::gather::{Gather, MAX_SEGMENTS, Way, retry, send_segments};
use super::mapping::Route;
use super::{ASK_AGAIN_MS, IDLE_MS, Udp};
use crate::edge::Edge;
use crate::gateway::dns;
use crate::gateway::unreachable::Reason;
use crate::marks::Marks;
use crate::policy::{Denial, Egress, Transport};
use crate::wire::{IpPacket, UdpDatagram};

impl Udp {
    /// Takes in one datagram, or several in a row of `segment` bytes each (USO). It may stay in `gather`, where nothing
    /// is, until [`Self::flush`].
    pub fn datagram_from_tap<'b>(
        &mut self,
        edge: &mut Edge,
        gather: &mut Gather<'b>,
        ip: &IpPacket<'b>,
        datagram: &UdpDatagram<'b>,
        segment: Option<u16>,
    ) {
        let destination = SocketAddr::new(ip.dst, datagram.dst_port);
        let Some((index, host)) = self.mapping_from_tap(edge, ip, datagram, destination) else { return };
        match segment.map(usize::from).filter(|&size| size < datagram.payload.len()) {
            Some(size) => self.send_uncut(edge, index, host, ip.bytes, datagram.payload, size),
            None => gather.begin(Way::Mapping(index), ip, datagram),
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
        let holds = |route: &Route| route.destination == destination && edge.now < route.asked.after(ASK_AGAIN_MS);
        let route = match found.and_then(|index| self.flows.get(index)?.route).filter(holds) {
            Some(route) => route,
            None => Route { destination, host: self.route(edge, ip, datagram, destination)?, asked: edge.now },
        };
        let host = route.host;
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
        flow.takes_segments |= flow.route.is_none_or(|last| (last.destination, last.host) != (destination, host));
        flow.route = Some(route);
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

    /// Sends what has been gathered for a mapping.
    pub fn flush(&mut self, edge: &mut Edge, index: u32, gather: &Gather<'_>) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        let Some(Route { host, .. }) = flow.route else { return };
        flow.from_tap += gather.followed();
        let payloads = gather.payloads();
        if payloads.len() > 1 && flow.takes_segments {
            match send_segments(&flow.socket, payloads, gather.size(), None, host) {
                Ok(()) => return,
                Err(Errno::AGAIN) => return edge.counters.drops.host_full += payloads.len() as u64,
                Err(_) => flow.takes_segments = false,
            }
        }
        for (payload, packet) in gather.packets() {
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
                match send_segments(&flow.socket, &[IoSlice::new(part)], size, None, host) {
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
