//! Frames to the workspace: built in the one buffer, addressed to whoever has the address, written, and counted.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use super::Edge;
use crate::gateway::unreachable::{self, Reason};
use crate::neighbours::sought::Kept;
use crate::network::MacAddr;
use crate::path_mtu::PathMtu;
use crate::tap::Written;
use crate::wire::build::{Datagrams, Macs};
use crate::wire::transport::{IcmpHeader, TcpHeader};
use crate::wire::{
    FRAGMENT_LEN, Fragment, FrameBuffer, IPV4_LEN, IPV6_LEN, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_UDP, UDP_LEN,
};

impl Edge {
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

    /// Sends a frame that was kept until now.
    pub fn kept_to_tap(&mut self, frame: &[u8]) {
        let written = self.tap.write(frame);
        self.count_written(written, frame.len());
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
