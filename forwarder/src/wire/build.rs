//! Frames for the workspace, built in one reused buffer: the payload sits at a fixed place, and headers are written
//! in front of it, innermost first. TCP and UDP leave their checksums to the workspace's kernel (NEEDS_CSUM, with the
//! pseudo-header's sum in the field), as a local sender's device would.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

use zerocopy::IntoBytes;

use super::checksum::Sum;
use super::ip::{FRAGMENT, Ipv4Header, Ipv6Header};
use super::transport::{IcmpHeader, TcpHeader, UdpHeader};
use super::{
    ETHERNET_LEN, EVERYBODY, EthernetHeader, FRAGMENT_LEN, Fragment, ICMP_LEN, IPV4_LEN, IPV6_LEN, PROTOCOL_ICMP,
    PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, TCP_LEN, UDP_LEN, VNET_LEN, VnetHeader,
};
use crate::network::MacAddr;

const VNET: usize = VNET_LEN as usize;
/// TCP options on frames to the workspace, at most (the header's own limit).
const MAX_TCP_OPTIONS: usize = 40;
/// Where the payload starts: behind the longest headers.
const HEADROOM: usize = VNET + ETHERNET_LEN + IPV6_LEN + TCP_LEN + MAX_TCP_OPTIONS;
/// Where UDP's and ICMP's headers start, which are of one length.
const TRANSPORT: usize = HEADROOM - UDP_LEN;
/// The longest payload: a whole IP packet's 65,535 bytes.
pub const MAX_PAYLOAD: usize = 65_535;
const HOP_LIMIT: u8 = 64;
/// Neighbour discovery messages must come with it (RFC 4861).
pub const NDP_HOP_LIMIT: u8 = 255;
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;

/// Both ends of the workspace's Ethernet.
#[derive(Clone, Copy, Debug)]
pub struct Macs {
    pub gateway: MacAddr,
    pub guest: MacAddr,
}

impl Macs {
    /// The guest's end as whoever hears `to`: of an IPv6 multicast group that is the group's address (RFC 2464 7), of
    /// everybody's IPv4 address everybody's.
    pub fn towards(self, to: IpAddr) -> Self {
        match to {
            IpAddr::V6(group) if group.is_multicast() => {
                let [.., a, b, c, d] = group.octets();
                Self { guest: [0x33, 0x33, a, b, c, d], ..self }
            }
            IpAddr::V4(Ipv4Addr::BROADCAST) => Self { guest: EVERYBODY, ..self },
            _ => self,
        }
    }
}

/// The buffer one outgoing frame is built in.
#[derive(Debug)]
pub struct FrameBuffer {
    bytes: Box<[u8]>,
}

/// The offload fields of a frame about to be finished.
struct Offload {
    /// Where in the transport header its checksum is, when the device is to finish it.
    checksum_at: Option<u16>,
    gso_type: u8,
    gso_size: u16,
}

impl Offload {
    const NONE: Self = Self { checksum_at: None, gso_type: 0, gso_size: 0 };
}

/// What differs between the IP headers of one pair of ends.
struct IpFields {
    protocol: u8,
    hop_limit: u8,
    tos: u8,
    cutting: Cutting,
}

/// Fragmentation as the IPv4 header says it; IPv6 has a header of its own for it.
enum Cutting {
    Forbidden,
    /// Routers inside may cut the packet: identifications must differ.
    Allowed(u32),
    Done(Fragment),
}

/// Datagrams of one sender in a row: each of `size` bytes, but the last may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagrams {
    pub src: (IpAddr, u16),
    pub dst: (IpAddr, u16),
    pub tos: u8,
    pub size: usize,
    /// Of all together.
    pub len: usize,
}

impl Default for FrameBuffer {
    fn default() -> Self {
        Self { bytes: vec![0; HEADROOM + 2 * MAX_PAYLOAD].into_boxed_slice() }
    }
}

impl FrameBuffer {
    /// Where to put a payload of up to `len` bytes before one of the builders is called.
    pub fn payload_mut(&mut self, len: usize) -> &mut [u8] {
        let len = len.min(MAX_PAYLOAD);
        &mut self.bytes[HEADROOM..HEADROOM + len]
    }

    /// Room for one more datagram behind a payload of `len` bytes.
    pub fn after_payload_mut(&mut self, len: usize) -> &mut [u8] {
        let at = HEADROOM + len.min(MAX_PAYLOAD);
        &mut self.bytes[at..at + MAX_PAYLOAD]
    }

    /// Makes the `len` bytes at `from` of the payload its beginning.
    pub fn move_payload(&mut self, from: usize, len: usize) {
        let from = HEADROOM + from.min(MAX_PAYLOAD);
        self.bytes.copy_within(from..from + len.min(MAX_PAYLOAD), HEADROOM);
    }

    /// Copies a payload in; what does not fit is cut off. Returns the length copied.
    pub fn put_payload(&mut self, payload: &[u8]) -> usize {
        let len = payload.len().min(MAX_PAYLOAD);
        self.bytes[HEADROOM..HEADROOM + len].copy_from_slice(&payload[..len]);
        len
    }

    /// A TCP segment; longer than `mss`, it is left to the workspace's kernel to cut. The header's checksum and data
    /// offset are filled in here. At most 40 bytes of options, a multiple of 4.
    pub fn tcp(
        &mut self,
        macs: Macs,
        (src, dst): (IpAddr, IpAddr),
        mut header: TcpHeader,
        options: &[u8],
        payload_len: usize,
        mss: u16,
    ) -> &[u8] {
        let options = &options[..options.len().min(MAX_TCP_OPTIONS)];
        let header_len = TCP_LEN + options.len();
        let segment_len = header_len + payload_len;
        header.data_offset = u8::try_from(header_len / 4).unwrap_or(5) << 4;
        header.checksum = Sum::pseudo(src, dst, PROTOCOL_TCP, segment_len).fold().into();
        let at = HEADROOM - header_len;
        self.bytes[at + TCP_LEN..HEADROOM].copy_from_slice(options);
        self.bytes[at..at + TCP_LEN].copy_from_slice(header.as_bytes());
        let gso_type = match (payload_len > usize::from(mss), dst.is_ipv4()) {
            (false, _) => 0,
            (true, true) => VnetHeader::GSO_TCPV4,
            (true, false) => VnetHeader::GSO_TCPV6,
        };
        let offload = Offload { checksum_at: Some(16), gso_type, gso_size: if gso_type == 0 { 0 } else { mss } };
        let ip = IpFields { protocol: PROTOCOL_TCP, hop_limit: HOP_LIMIT, tos: 0, cutting: Cutting::Forbidden };
        self.ip(macs, (src, dst), ip, at..HEADROOM + payload_len, HEADROOM, &offload)
    }

    /// Datagrams whose payload is in place; several are left to the workspace's kernel to cut (USO). `id` is the first
    /// one's IPv4 identification.
    pub fn udp(&mut self, macs: Macs, datagrams: &Datagrams, id: u32) -> &[u8] {
        let Datagrams { src, dst, tos, size, len } = *datagrams;
        self.udp_header(src, dst, len, Sum::fold);
        let is_several = len > size;
        let offload = Offload {
            checksum_at: Some(6),
            gso_type: if is_several { VnetHeader::GSO_UDP_L4 } else { 0 },
            gso_size: if is_several { u16::try_from(size).unwrap_or(u16::MAX) } else { 0 },
        };
        let ip = IpFields { protocol: PROTOCOL_UDP, hop_limit: HOP_LIMIT, tos, cutting: Cutting::Allowed(id) };
        self.ip(macs, (src.0, dst.0), ip, TRANSPORT..HEADROOM + len, HEADROOM, &offload)
    }

    /// The header of a datagram whose payload is in place, its checksum made by `sum` of the pseudo-header's.
    fn udp_header(&mut self, src: (IpAddr, u16), dst: (IpAddr, u16), payload_len: usize, sum: impl FnOnce(Sum) -> u16) {
        let len = UDP_LEN + payload_len;
        let header = UdpHeader {
            src_port: src.1.into(),
            dst_port: dst.1.into(),
            len: u16::try_from(len).unwrap_or(u16::MAX).into(),
            checksum: sum(Sum::pseudo(src.0, dst.0, PROTOCOL_UDP, len)).into(),
        };
        self.bytes[TRANSPORT..HEADROOM].copy_from_slice(header.as_bytes());
    }

    /// An ICMP or ICMPv6 message that [`Self::icmp_whole`] prepared. `id` is its IPv4 identification, for a smaller link
    /// to cut it.
    pub fn icmp(&mut self, macs: Macs, ends: (IpAddr, IpAddr), len: usize, hop_limit: u8, id: u32) -> &[u8] {
        let protocol = if ends.1.is_ipv4() { PROTOCOL_ICMP } else { PROTOCOL_ICMPV6 };
        let ip = IpFields { protocol, hop_limit, tos: 0, cutting: Cutting::Allowed(id) };
        self.ip(macs, ends, ip, TRANSPORT..TRANSPORT + len, HEADROOM, &Offload::NONE)
    }

    /// Puts the first eight bytes of an ICMP or ICMPv6 message, with the right checksum, in front of the rest, which
    /// is in place as the payload. Returns the length of both.
    pub fn icmp_whole(&mut self, (src, dst): (IpAddr, IpAddr), mut header: IcmpHeader, payload_len: usize) -> usize {
        let len = ICMP_LEN + payload_len;
        let sum = match dst {
            IpAddr::V4(_) => Sum::default(),
            IpAddr::V6(_) => Sum::pseudo(src, dst, PROTOCOL_ICMPV6, len),
        };
        header.checksum = 0.into();
        let sum = sum.bytes(header.as_bytes()).bytes(&self.bytes[HEADROOM..HEADROOM + payload_len]);
        header.checksum = sum.finish().into();
        self.bytes[TRANSPORT..HEADROOM].copy_from_slice(header.as_bytes());
        len
    }

    /// A frame of another ethertype whose body is in place as the payload.
    pub fn ethernet(&mut self, macs: Macs, ethertype: u16, payload_len: usize) -> &[u8] {
        self.link(macs, ethertype, HEADROOM..HEADROOM + payload_len, VnetHeader::default())
    }

    /// A UDP datagram whose payload is in place, to be sent in fragments: its header with a finished checksum, which
    /// no device can do for fragments. Returns the length of both.
    pub fn udp_whole(&mut self, src: (IpAddr, u16), dst: (IpAddr, u16), payload_len: usize) -> usize {
        self.udp_header(src, dst, payload_len, |_| 0);
        let len = UDP_LEN + payload_len;
        let sum = Sum::pseudo(src.0, dst.0, PROTOCOL_UDP, len).bytes(&self.bytes[TRANSPORT..TRANSPORT + len]).finish();
        // A sum of zero is sent as its other form: zero means that there is none (RFC 768).
        let sum = if sum == 0 { u16::MAX } else { sum };
        self.bytes[TRANSPORT + 6..HEADROOM].copy_from_slice(&sum.to_be_bytes());
        len
    }

    /// One piece of what [`Self::udp_whole`] or [`Self::icmp_whole`] prepared. To be called in the order of the pieces:
    /// the headers of each overwrite the end of the one before.
    pub fn fragment(
        &mut self,
        macs: Macs,
        ends: (IpAddr, IpAddr),
        (protocol, tos): (u8, u8),
        fragment: Fragment,
        len: usize,
    ) -> &[u8] {
        let start = TRANSPORT + usize::from(fragment.offset);
        let (protocol, at) = if ends.1.is_ipv4() {
            (protocol, start)
        } else {
            let [i3, i2, i1, i0] = fragment.id.to_be_bytes();
            let [o1, o0] = (fragment.offset | u16::from(fragment.more)).to_be_bytes();
            let at = start - FRAGMENT_LEN;
            self.bytes[at..start].copy_from_slice(&[protocol, 0, o1, o0, i3, i2, i1, i0]);
            (FRAGMENT, at)
        };
        let ip = IpFields { protocol, hop_limit: HOP_LIMIT, tos, cutting: Cutting::Done(fragment) };
        self.ip(macs, ends, ip, at..start + len, start, &Offload::NONE)
    }

    /// The IP header in front of `transport`, and the frame around both. `headers_end`: where the payload starts.
    fn ip(
        &mut self,
        macs: Macs,
        (src, dst): (IpAddr, IpAddr),
        fields: IpFields,
        transport: Range<usize>,
        headers_end: usize,
        offload: &Offload,
    ) -> &[u8] {
        let len = transport.len();
        let (ethertype, at) = match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let (id, flags_offset) = match fields.cutting {
                    Cutting::Forbidden => (0, DONT_FRAGMENT),
                    Cutting::Allowed(id) => (id, 0),
                    Cutting::Done(f) => (f.id, (f.offset >> 3) | if f.more { MORE_FRAGMENTS } else { 0 }),
                };
                let [_, _, id @ ..] = u32::to_be_bytes(id);
                let mut header = Ipv4Header {
                    version_ihl: 0x45,
                    tos: fields.tos,
                    total_len: u16::try_from(IPV4_LEN + len).unwrap_or(u16::MAX).into(),
                    id: id.into(),
                    flags_offset: flags_offset.into(),
                    ttl: fields.hop_limit,
                    protocol: fields.protocol,
                    checksum: 0.into(),
                    src: src.octets(),
                    dst: dst.octets(),
                };
                header.checksum = Sum::default().bytes(header.as_bytes()).finish().into();
                let at = transport.start - IPV4_LEN;
                self.bytes[at..transport.start].copy_from_slice(header.as_bytes());
                (EthernetHeader::IPV4, at)
            }
            (src, dst) => {
                let header = Ipv6Header {
                    version_class_flow: [0x60 | fields.tos >> 4, fields.tos << 4, 0, 0],
                    payload_len: u16::try_from(len).unwrap_or(u16::MAX).into(),
                    next_header: fields.protocol,
                    hop_limit: fields.hop_limit,
                    src: octets_v6(src),
                    dst: octets_v6(dst),
                };
                let at = transport.start - IPV6_LEN;
                self.bytes[at..transport.start].copy_from_slice(header.as_bytes());
                (EthernetHeader::IPV6, at)
            }
        };
        let mut vnet = VnetHeader::default();
        let frame_start = at - ETHERNET_LEN;
        if let Some(offset) = offload.checksum_at {
            vnet.flags = VnetHeader::NEEDS_CSUM;
            vnet.csum_start = u16::try_from(transport.start - frame_start).unwrap_or(0).into();
            vnet.csum_offset = offset.into();
            vnet.hdr_len = u16::try_from(headers_end - frame_start).unwrap_or(0).into();
            vnet.gso_type = offload.gso_type;
            vnet.gso_size = offload.gso_size.into();
        }
        self.link(macs, ethertype, at..transport.end, vnet)
    }

    fn link(&mut self, macs: Macs, ethertype: u16, body: Range<usize>, vnet: VnetHeader) -> &[u8] {
        let ethernet = EthernetHeader { dst: macs.guest, src: macs.gateway, ethertype: ethertype.into() };
        let at = body.start - ETHERNET_LEN;
        self.bytes[at..body.start].copy_from_slice(ethernet.as_bytes());
        self.bytes[at - VNET..at].copy_from_slice(vnet.as_bytes());
        &self.bytes[at - VNET..body.end]
    }
}

fn octets_v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
        IpAddr::V6(a) => a.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Frame, IpPacket, TcpFlags, TcpSegment, UdpDatagram};
    use super::*;

    const MACS: Macs = Macs { gateway: [2, 0, 0, 0, 0, 1], guest: [2, 0, 0, 0, 0, 2] };

    fn header() -> TcpHeader {
        TcpHeader {
            src_port: 80.into(),
            dst_port: 4000.into(),
            seq: 5.into(),
            ack: 6.into(),
            data_offset: 0,
            flags: TcpFlags::ACK.0,
            window: 100.into(),
            checksum: 0.into(),
            urgent: 0.into(),
        }
    }

    #[test]
    fn tcp_frames_say_where_they_are_to_be_cut() {
        // (addresses, options, payload, gso_type, csum_start, hdr_len)
        let v4: (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [10, 0, 2, 100].into());
        let v6: (IpAddr, IpAddr) = ("2001:db8::1".parse().unwrap(), "fd00::64".parse().unwrap());
        let cases: [(_, &[u8], usize, u8, u16, u16); 4] = [
            (v4, &[], 1460, 0, 34, 54),
            (v4, &[1, 1, 1, 1], 40_000, 1, 34, 58),
            (v6, &[], 1461, 4, 54, 74),
            (v6, &[], 0, 0, 54, 74),
        ];
        for (ends, options, len, gso_type, csum_start, hdr_len) in cases {
            let mut buffer = FrameBuffer::default();
            buffer.payload_mut(len).fill(0x5a);
            let frame = Frame::parse(buffer.tcp(MACS, ends, header(), options, len, 1460)).unwrap();
            assert_eq!(frame.vnet.gso_type, gso_type);
            assert_eq!(frame.vnet.csum_start.get(), csum_start);
            assert_eq!(frame.vnet.hdr_len.get(), hdr_len);
            assert!(frame.vnet.is_partial());
            assert_eq!(frame.ethernet.dst, MACS.guest);
            let ip = IpPacket::parse(frame.ethernet.ethertype.get(), frame.body).unwrap();
            assert_eq!((ip.src, ip.dst), ends);
            let segment = TcpSegment::parse(&ip, true).unwrap();
            assert_eq!(segment.payload, vec![0x5a; len]);
            assert_eq!(segment.options, options);
            // Finishing the partial checksum as a device does must give a right one.
            let mut finished = ip.payload.to_vec();
            let sum = Sum::default().bytes(&finished).finish();
            finished[16..18].copy_from_slice(&sum.to_be_bytes());
            assert!(TcpSegment::parse(&IpPacket { payload: &finished, ..ip }, false).is_ok());
        }
    }

    #[test]
    fn udp_and_icmp_frames_are_read_back() {
        let mut buffer = FrameBuffer::default();
        let len = buffer.put_payload(b"hello");
        let (src, dst) = (([192, 0, 2, 1].into(), 53), ([10, 0, 2, 100].into(), 4000));
        let datagram = Datagrams { src, dst, tos: 0x2e, size: len, len };
        let frame = Frame::parse(buffer.udp(MACS, &datagram, 7)).unwrap();
        let ip = IpPacket::parse(frame.ethernet.ethertype.get(), frame.body).unwrap();
        assert_eq!((ip.tos, ip.dont_fragment), (0x2e, false));
        assert_eq!(UdpDatagram::parse(&ip, true).unwrap().payload, b"hello");

        let echo = IcmpHeader { kind: 128, code: 0, checksum: 0.into(), id: 1.into(), sequence: 2.into() };
        let ends = ("fd00::2".parse().unwrap(), "fd00::64".parse().unwrap());
        let len = buffer.put_payload(b"ping!");
        let whole = buffer.icmp_whole(ends, echo, len);
        let frame = Frame::parse(buffer.icmp(MACS, ends, whole, HOP_LIMIT, 7)).unwrap();
        let ip = IpPacket::parse(frame.ethernet.ethertype.get(), frame.body).unwrap();
        let echo = super::super::IcmpEcho::parse_request(&ip).unwrap().unwrap();
        assert_eq!((echo.id, echo.sequence, echo.payload), (1, 2, &b"ping!"[..]));
    }
}
