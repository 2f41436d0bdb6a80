//! What every protocol engine works with: the TAP on one side, the host's sockets with their events and deadlines on
//! the other, and the configuration between them.
#![forbid(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll;
use rustix::io::Errno;

use crate::counters::Counters;
use crate::flow::FlowId;
use crate::gateway::unreachable::{self, Reason};
use crate::neighbours::sought::{Kept, Sought};
use crate::neighbours::{Neighbours, is_unicast};
use crate::network::MacAddr;
use crate::path_mtu::PathMtu;
use crate::policy::{self, Egress, Request, Transport};
use crate::ports::{Guest, Stock, Whereabouts};
use crate::tap::{Tap, Written};
use crate::timer::{Time, Wheel};
use crate::wire::build::{Datagrams, Macs};
use crate::wire::transport::{IcmpHeader, TcpHeader};
use crate::wire::{
    FRAGMENT_LEN, Fragment, FrameBuffer, IPV4_LEN, IPV6_LEN, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_UDP, UDP_LEN,
    VNET_LEN,
};
use crate::worker::Config;

/// Where a frame's destination is, behind the virtio-net header.
const DST_MAC: Range<usize> = VNET_LEN as usize..VNET_LEN as usize + size_of::<MacAddr>();

/// The forwarder between its two sides.
#[derive(Debug)]
pub struct Edge {
    pub config: Config,
    tap: Tap,
    /// The frame being built; payloads are received straight into it.
    pub frame: FrameBuffer,
    neighbours: Neighbours,
    /// Those that are asked for.
    pub sought: Sought,
    /// Who spoke last.
    speaker: MacAddr,
    /// Where published ports lead.
    pub guest: Guest,
    epoll: OwnedFd,
    pub timers: Wheel,
    pub counters: Counters,
    /// Sockets of the workspace's network namespace.
    pub stock: Stock,
    /// The time of the wake being handled.
    pub now: Time,
    /// The TAP was full: nothing is sent before it can be written again.
    tap_full: bool,
    /// The next datagram's identification.
    next_id: u32,
    /// Which of the host's resolvers answered last, by its place among them: it is asked first.
    preferred_resolver: usize,
}

impl Edge {
    pub fn new(mut config: Config, tap: Tap, epoll: OwnedFd, now: Time) -> Self {
        let (speaker, guest) = (config.network.guest_mac, Guest::new(config.network.v4));
        let resolvers = std::mem::take(&mut config.resolvers);
        let mut edge = Self {
            config,
            tap,
            frame: FrameBuffer::default(),
            neighbours: Neighbours::new(),
            sought: Sought::default(),
            speaker,
            guest,
            epoll,
            timers: Wheel::new(now),
            counters: Counters::default(),
            stock: Stock::default(),
            now,
            tap_full: false,
            next_id: 0,
            preferred_resolver: 0,
        };
        edge.set_resolvers(resolvers);
        edge
    }

    pub fn tap(&mut self) -> &mut Tap {
        &mut self.tap
    }

    pub fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    /// A frame has come from `mac`.
    pub fn speaks(&mut self, mac: MacAddr) {
        if is_unicast(mac) {
            self.speaker = mac;
            self.guest.speaks(mac);
        }
    }

    /// Who spoke last.
    pub fn speaker(&self) -> MacAddr {
        self.speaker
    }

    /// It was one of `address`.
    pub fn heard(&mut self, address: IpAddr, mac: MacAddr) {
        if self.neighbours.learn(address, mac) {
            if let IpAddr::V4(address) = address {
                self.guest.heard(address, mac);
            }
            self.found(address);
        }
    }

    /// A predecessor knew where the workspace is.
    pub fn recall(&mut self, whereabouts: Whereabouts) {
        self.guest.recall(whereabouts);
        if let Whereabouts { mac: Some(mac), address: Some(address) } = whereabouts {
            self.neighbours.learn(address.into(), mac);
        }
    }

    /// What was kept for an address goes there.
    fn found(&mut self, address: IpAddr) {
        for mut frame in self.sought.found(address) {
            if let (Some(dst), Some(mac)) = (frame.get_mut(DST_MAC), self.neighbours.find(address)) {
                dst.copy_from_slice(&mac);
            }
            self.kept_to_tap(&frame);
        }
    }

    /// Sends a frame that was kept until now.
    pub fn kept_to_tap(&mut self, frame: &[u8]) {
        let written = self.tap.write(frame);
        self.count_written(written, frame.len());
    }

    /// DHCP offers `address` to whoever has just spoken, or has given it.
    pub fn leases(&mut self, address: Ipv4Addr, is_given: bool) {
        self.neighbours.learn(address.into(), self.speaker);
        if is_given {
            self.guest.leased(address, self.speaker);
        }
        self.found(address.into());
    }

    /// Builds a frame for `to` and sends it, or keeps it while it is asked on the link who has that address. What is
    /// beyond the link the workspace has the way to.
    fn frame_to_tap(
        &mut self,
        to: IpAddr,
        build: impl for<'f> FnOnce(&'f mut FrameBuffer, Macs) -> &'f [u8],
    ) -> Written {
        let network = &self.config.network;
        let found = self.neighbours.find(to);
        let guest = found.unwrap_or_else(|| self.guest.mac().unwrap_or(network.guest_mac));
        let frame = build(&mut self.frame, Macs { gateway: network.gateway_mac, guest }.towards(to));
        if found.is_none() && network.may_be_on_link(to) {
            match self.sought.keep(to, frame, self.now) {
                Kept::Yes => return Written::Sent,
                Kept::Dropped => {
                    self.counters.drops.neighbour += 1;
                    return Written::Dropped;
                }
                Kept::No => {}
            }
        }
        let len = frame.len();
        let written = self.tap.write(frame);
        self.count_written(written, len)
    }

    /// The address under which the workspace knows a host-side sender; None when it must not hear from it.
    pub fn guest_view(&self, source: IpAddr) -> Option<IpAddr> {
        if !source.is_loopback() {
            return Some(source);
        }
        let network = &self.config.network;
        match source {
            _ if !self.config.policy.host_loopback => None,
            IpAddr::V4(_) => Some(IpAddr::V4(network.v4.gateway())),
            IpAddr::V6(_) => network.v6.map(|v6| IpAddr::V6(v6.gateway())),
        }
    }

    /// What the policy says about a destination of the workspace.
    pub fn egress(&self, destination: SocketAddr, transport: Transport) -> Egress {
        self.config.policy.egress(&self.config.network, Request { destination, transport }, policy::is_own)
    }

    /// The host's resolver to ask after `step` others, beginning with the one that answered last; None after all.
    pub fn resolver(&self, step: usize) -> Option<SocketAddr> {
        let count = self.config.resolvers.len();
        if step >= count {
            return None;
        }
        self.config.resolvers.get((self.preferred_resolver + step) % count).copied()
    }

    /// The resolver that follows `last` in the configuration; None where there is no other.
    pub fn resolver_after(&self, last: SocketAddr) -> Option<SocketAddr> {
        let resolvers = &self.config.resolvers;
        let next = resolvers.iter().position(|&resolver| resolver == last).map_or(0, |at| (at + 1) % resolvers.len());
        resolvers.get(next).copied().filter(|&resolver| resolver != last)
    }

    /// `resolver` has answered.
    pub fn prefer_resolver(&mut self, resolver: SocketAddr) {
        let place = self.config.resolvers.iter().position(|&configured| configured == resolver);
        self.preferred_resolver = place.unwrap_or(self.preferred_resolver);
    }

    /// The host's resolvers from now on, each once; the preferred one stays so where it is still among them.
    pub fn set_resolvers(&mut self, resolvers: Vec<SocketAddr>) {
        let preferred = self.resolver(0);
        self.config.resolvers.clear();
        for resolver in resolvers {
            if !self.config.resolvers.contains(&resolver) {
                self.config.resolvers.push(resolver);
            }
        }
        self.preferred_resolver = 0;
        if let Some(preferred) = preferred {
            self.prefer_resolver(preferred);
        }
    }

    pub fn is_tap_full(&self) -> bool {
        self.tap_full
    }

    pub fn tap_writable(&mut self) {
        self.tap_full = false;
    }

    /// Has epoll report on a flow's socket, edge-triggered, everything it can report, urgent data included.
    pub fn watch(&self, socket: impl AsFd, id: FlowId) -> io::Result<()> {
        let events = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        let events = events | epoll::EventFlags::PRI;
        let data = epoll::EventData::new_u64(id.to_bits());
        match epoll::add(&self.epoll, &socket, data, events) {
            // Another flow had it before.
            Err(Errno::EXIST) => epoll::modify(&self.epoll, socket, data, events)?,
            added => added?,
        }
        Ok(())
    }

    /// Ends that for a socket of which others hold copies, whose closing does not.
    pub fn unwatch(&self, socket: impl AsFd) {
        // It was never watched, else.
        let _ = epoll::delete(&self.epoll, socket);
    }

    /// Sends a TCP segment whose payload is in the frame buffer.
    pub fn tcp_to_tap(
        &mut self,
        ends: (IpAddr, IpAddr),
        header: TcpHeader,
        options: &[u8],
        payload_len: usize,
        mss: u16,
    ) -> Written {
        self.frame_to_tap(ends.1, |frame, macs| frame.tcp(macs, ends, header, options, payload_len, mss))
    }

    /// Sends a UDP datagram whose payload is in the frame buffer.
    pub fn udp_to_tap(&mut self, src: (IpAddr, u16), dst: (IpAddr, u16), payload_len: usize) -> Written {
        let datagram = Datagrams { src, dst, tos: 0, size: payload_len, len: payload_len };
        self.datagrams_to_tap(&datagram, PathMtu::default())
    }

    /// Sends UDP datagrams whose payload is in the frame buffer: several as one frame where the kernel cuts it, and such
    /// that are longer than the MTU in fragments.
    pub fn datagrams_to_tap(&mut self, datagrams: &Datagrams, path: PathMtu) -> Written {
        let Datagrams { src, dst, tos, size, len } = *datagrams;
        let ip_len = if dst.0.is_ipv4() { IPV4_LEN } else { IPV6_LEN };
        let is_one = len <= size;
        let mtu = path.within(self.config.network.mtu, self.now);
        if ip_len + UDP_LEN + size <= usize::from(mtu) && (is_one || self.tap.cuts_datagrams()) {
            let id = self.take_ids(if is_one { 1 } else { len.div_ceil(size) });
            return self.frame_to_tap(dst.0, |frame, macs| frame.udp(macs, datagrams, id));
        }
        if is_one {
            let whole = self.frame.udp_whole(src, dst, len);
            return self.fragments_to_tap((src.0, dst.0), (PROTOCOL_UDP, tos), whole, mtu);
        }
        let mut written = Written::Sent;
        for from in (0..len).step_by(size) {
            let len = size.min(len - from);
            self.frame.move_payload(from, len);
            written = self.datagrams_to_tap(&Datagrams { size: len, len, ..*datagrams }, path);
        }
        written
    }

    /// Sends what has been prepared in the frame buffer, `len` bytes with the transport's header, in packets of `mtu`.
    fn fragments_to_tap(&mut self, ends: (IpAddr, IpAddr), protocol_tos: (u8, u8), len: usize, mtu: u16) -> Written {
        let overhead = if ends.1.is_ipv4() { IPV4_LEN } else { IPV6_LEN + FRAGMENT_LEN };
        let piece = usize::from(mtu).saturating_sub(overhead).max(8) & !7;
        let id = self.take_ids(1);
        let mut written = Written::Sent;
        for offset in (0..len).step_by(piece) {
            let piece_len = piece.min(len - offset);
            let more = offset + piece_len < len;
            let fragment = Fragment { id, offset: u16::try_from(offset).unwrap_or(0), more };
            written =
                self.frame_to_tap(ends.1, |frame, macs| frame.fragment(macs, ends, protocol_tos, fragment, piece_len));
            if written != Written::Sent {
                break;
            }
        }
        written
    }

    /// Identifications for the next `count` datagrams, which follow each other.
    fn take_ids(&mut self, count: usize) -> u32 {
        let first = self.next_id;
        self.next_id = first.wrapping_add(u32::try_from(count).unwrap_or(1));
        first
    }

    /// Sends an ICMP or ICMPv6 message whose body after the first eight bytes is in the frame buffer.
    pub fn icmp_to_tap(
        &mut self,
        ends: (IpAddr, IpAddr),
        header: IcmpHeader,
        payload_len: usize,
        hop_limit: u8,
    ) -> Written {
        self.icmp_to_tap_within(PathMtu::default(), ends, header, payload_len, hop_limit)
    }

    /// The same by a way inside that may take less than the TAP does.
    pub fn icmp_to_tap_within(
        &mut self,
        path: PathMtu,
        ends: (IpAddr, IpAddr),
        header: IcmpHeader,
        payload_len: usize,
        hop_limit: u8,
    ) -> Written {
        let whole = self.frame.icmp_whole(ends, header, payload_len);
        let (protocol, ip_len) = if ends.1.is_ipv4() { (PROTOCOL_ICMP, IPV4_LEN) } else { (PROTOCOL_ICMPV6, IPV6_LEN) };
        let mtu = path.within(self.config.network.mtu, self.now);
        if ip_len + whole > usize::from(mtu) {
            return self.fragments_to_tap(ends, (protocol, 0), whole, mtu);
        }
        let id = self.take_ids(1);
        self.frame_to_tap(ends.1, |frame, macs| frame.icmp(macs, ends, whole, hop_limit, id))
    }

    /// Sends a frame of another ethertype whose body is in the frame buffer.
    pub fn ethernet_to_tap(&mut self, to: MacAddr, ethertype: u16, payload_len: usize) -> Written {
        let macs = Macs { gateway: self.config.network.gateway_mac, guest: to };
        let frame = self.frame.ethernet(macs, ethertype, payload_len);
        let len = frame.len();
        let written = self.tap.write(frame);
        self.count_written(written, len)
    }

    /// Tells the workspace that the packet starting with `quoted` did not arrive.
    pub fn unreachable_to_tap(&mut self, quoted: &[u8], reason: Reason) {
        self.reported_to_tap(quoted, reason, None);
    }

    /// The same as said by someone out there, if not by the gateway.
    pub fn reported_to_tap(&mut self, quoted: &[u8], reason: Reason, reporter: Option<IpAddr>) {
        let network = &self.config.network;
        let Some(message) = unreachable::build(&mut self.frame, network, quoted, reason, reporter) else { return };
        self.icmp_to_tap(message.ends, message.header, message.payload_len, 64);
    }

    fn count_written(&mut self, written: Written, len: usize) -> Written {
        match written {
            Written::Sent => self.counters.to_tap.count(len),
            Written::Full => {
                self.counters.drops.tap_full += 1;
                self.tap_full = true;
            }
            Written::Dropped => self.counters.drops.tap_down += 1,
        }
        written
    }
}
