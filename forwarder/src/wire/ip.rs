//! IPv4 (RFC 791) and IPv6 (RFC 8200) packets, with IPv6 extension headers walked and fragments recognised.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::Sum;
use super::{EthernetHeader, FRAGMENT_LEN, IPV4_LEN, Malformed};

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ipv4Header {
    pub version_ihl: u8,
    pub tos: u8,
    pub total_len: U16,
    pub id: U16,
    pub flags_offset: U16,
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: U16,
    pub src: [u8; 4],
    pub dst: [u8; 4],
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ipv6Header {
    pub version_class_flow: [u8; 4],
    pub payload_len: U16,
    pub next_header: u8,
    pub hop_limit: u8,
    pub src: [u8; 16],
    pub dst: [u8; 16],
}

/// A piece of a larger packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    pub id: u32,
    /// In bytes.
    pub offset: u16,
    /// More pieces follow.
    pub more: bool,
}

/// One IP packet of either version.
#[derive(Clone, Copy, Debug)]
pub struct IpPacket<'a> {
    pub src: IpAddr,
    pub dst: IpAddr,
    /// Of the payload, after any extension headers.
    pub protocol: u8,
    pub hop_limit: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Not to be cut on its way: always so with IPv6, where routers do not.
    pub dont_fragment: bool,
    pub fragment: Option<Fragment>,
    pub payload: &'a [u8],
    /// From the IP header to the end: what an ICMP error quotes.
    pub bytes: &'a [u8],
}

/// An IP header as the workspace would have sent it, for an ICMP error to quote; checksums are left out, and nothing
/// reads them there.
pub fn header_for_quote(src: IpAddr, dst: IpAddr, protocol: u8, payload_len: usize) -> Vec<u8> {
    let len = |headers: usize| u16::try_from(headers + payload_len).unwrap_or(u16::MAX);
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => Ipv4Header {
            version_ihl: 0x45,
            tos: 0,
            total_len: len(IPV4_LEN).into(),
            id: 0.into(),
            flags_offset: 0.into(),
            ttl: 64,
            protocol,
            checksum: 0.into(),
            src: src.octets(),
            dst: dst.octets(),
        }
        .as_bytes()
        .to_vec(),
        (IpAddr::V6(src), IpAddr::V6(dst)) => Ipv6Header {
            version_class_flow: [0x60, 0, 0, 0],
            payload_len: len(0).into(),
            next_header: protocol,
            hop_limit: 64,
            src: src.octets(),
            dst: dst.octets(),
        }
        .as_bytes()
        .to_vec(),
        _ => Vec::new(),
    }
}

/// More extension headers than any sender has reason for.
const MAX_EXTENSION_HEADERS: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

impl<'a> IpPacket<'a> {
    /// Reads the body of a frame with this ethertype, which must be one of IP.
    pub fn parse(ethertype: u16, body: &'a [u8]) -> Result<Self, Malformed> {
        match ethertype {
            EthernetHeader::IPV4 => parse_v4(body),
            EthernetHeader::IPV6 => parse_v6(body),
            _ => Err(Malformed::Protocol),
        }
    }
}

fn parse_v4(body: &[u8]) -> Result<IpPacket<'_>, Malformed> {
    let (header, _) = Ipv4Header::ref_from_prefix(body).map_err(|_| Malformed::Truncated)?;
    if header.version_ihl >> 4 != 4 {
        return Err(Malformed::Header);
    }
    let header_len = usize::from(header.version_ihl & 15) * 4;
    let total_len = usize::from(header.total_len.get());
    if header_len < IPV4_LEN || total_len < header_len {
        return Err(Malformed::Header);
    }
    let bytes = body.get(..total_len).ok_or(Malformed::Truncated)?;
    let (header_bytes, payload) = bytes.split_at_checked(header_len).ok_or(Malformed::Truncated)?;
    if !Sum::default().bytes(header_bytes).is_valid() {
        return Err(Malformed::Checksum);
    }
    let flags_offset = header.flags_offset.get();
    let (more, offset) = (flags_offset & 0x2000 != 0, (flags_offset & 0x1fff) << 3);
    let fragment = (more || offset != 0).then_some(Fragment { id: u32::from(header.id.get()), offset, more });
    Ok(IpPacket {
        src: IpAddr::V4(Ipv4Addr::from(header.src)),
        dst: IpAddr::V4(Ipv4Addr::from(header.dst)),
        protocol: header.protocol,
        hop_limit: header.ttl,
        tos: header.tos,
        dont_fragment: flags_offset & 0x4000 != 0,
        fragment,
        payload,
        bytes,
    })
}

fn parse_v6(body: &[u8]) -> Result<IpPacket<'_>, Malformed> {
    let (header, rest) = Ipv6Header::ref_from_prefix(body).map_err(|_| Malformed::Truncated)?;
    if header.version_class_flow[0] >> 4 != 6 {
        return Err(Malformed::Header);
    }
    let payload_len = usize::from(header.payload_len.get());
    let mut payload = rest.get(..payload_len).ok_or(Malformed::Truncated)?;
    let bytes = body.get(..size_of::<Ipv6Header>() + payload_len).ok_or(Malformed::Truncated)?;
    let [version_class, class_flow, ..] = header.version_class_flow;
    let tos = version_class << 4 | class_flow >> 4;
    let mut protocol = header.next_header;
    let mut fragment: Option<Fragment> = None;
    let mut headers = 0;
    // What follows in a later fragment is the middle of something.
    while matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
        && fragment.is_none_or(|fragment| fragment.offset == 0)
    {
        let &[next, extra, o1, o0, i3, i2, i1, i0, ..] = payload else { return Err(Malformed::Truncated) };
        let mut len = 8 * (1 + usize::from(extra));
        if protocol == FRAGMENT {
            len = FRAGMENT_LEN;
            let flags_offset = u16::from_be_bytes([o1, o0]);
            let (more, offset) = (flags_offset & 1 != 0, flags_offset & 0xfff8);
            // An atomic fragment (RFC 6946) is a whole packet.
            if more || offset != 0 {
                fragment = Some(Fragment { id: u32::from_be_bytes([i3, i2, i1, i0]), offset, more });
            }
        }
        payload = payload.get(len..).ok_or(Malformed::Truncated)?;
        protocol = next;
        headers += 1;
        if headers > MAX_EXTENSION_HEADERS {
            return Err(Malformed::Header);
        }
    }
    Ok(IpPacket {
        src: IpAddr::V6(Ipv6Addr::from(header.src)),
        dst: IpAddr::V6(Ipv6Addr::from(header.dst)),
        protocol,
        hop_limit: header.hop_limit,
        tos,
        dont_fragment: true,
        fragment,
        payload,
        bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(total_len: u16, flags_offset: u16, body: usize) -> Vec<u8> {
        let mut header = Ipv4Header {
            version_ihl: 0x45,
            tos: 0,
            total_len: total_len.into(),
            id: 7.into(),
            flags_offset: flags_offset.into(),
            ttl: 64,
            protocol: 17,
            checksum: 0.into(),
            src: [10, 0, 2, 100],
            dst: [192, 0, 2, 1],
        };
        header.checksum = Sum::default().bytes(header.as_bytes()).finish().into();
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(20 + body, 0xaa);
        bytes
    }

    #[test]
    fn v4_lengths() {
        // (total_len, bytes after the header, payload or error)
        let cases = [
            (28, 8, Ok(8)),
            (28, 26, Ok(8)),
            (20, 0, Ok(0)),
            (29, 8, Err(Malformed::Truncated)),
            (19, 8, Err(Malformed::Header)),
        ];
        for (total_len, body, want) in cases {
            let bytes = v4(total_len, 0, body);
            let got = IpPacket::parse(EthernetHeader::IPV4, &bytes).map(|p| p.payload.len());
            assert_eq!(got, want, "{total_len} {body}");
        }
        let mut damaged = v4(28, 0, 8);
        damaged[8] ^= 1;
        assert_eq!(IpPacket::parse(EthernetHeader::IPV4, &damaged).map(|_| ()), Err(Malformed::Checksum));
    }

    #[test]
    fn fragments() {
        let cases = [
            (0x4000, None),
            (0x2000, Some(Fragment { id: 7, offset: 0, more: true })),
            (0x2001, Some(Fragment { id: 7, offset: 8, more: true })),
            (0x00b9, Some(Fragment { id: 7, offset: 1480, more: false })),
        ];
        for (flags_offset, want) in cases {
            let bytes = v4(28, flags_offset, 8);
            assert_eq!(IpPacket::parse(EthernetHeader::IPV4, &bytes).map(|p| p.fragment), Ok(want));
        }
    }

    fn v6(next_header: u8, payload: &[u8]) -> Vec<u8> {
        let header = Ipv6Header {
            version_class_flow: [0x60, 0, 0, 0],
            payload_len: u16::try_from(payload.len()).unwrap().into(),
            next_header,
            hop_limit: 64,
            src: [0xfd; 16],
            dst: [0x20; 16],
        };
        [header.as_bytes(), payload].concat()
    }

    #[test]
    fn v6_extension_headers() {
        let udp = [9u8; 8];
        let hop = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
        let fragment = |next: u8, offset: u16| {
            let [a, b] = offset.to_be_bytes();
            [next, 0, a, b, 0, 0, 0, 5]
        };
        /// Protocol, payload length, fragment offset.
        type Read = Result<(u8, usize, Option<u16>), Malformed>;
        let cases: [(u8, Vec<u8>, Read); 9] = [
            (17, udp.to_vec(), Ok((17, 8, None))),
            (HOP_BY_HOP, [hop(17), udp].concat(), Ok((17, 8, None))),
            (HOP_BY_HOP, [hop(DESTINATION_OPTIONS), hop(17), udp].concat(), Ok((17, 8, None))),
            (FRAGMENT, [fragment(17, 0), udp].concat(), Ok((17, 8, None))),
            (FRAGMENT, [fragment(17, 1), udp].concat(), Ok((17, 8, Some(0)))),
            (FRAGMENT, [fragment(HOP_BY_HOP, 8), udp].concat(), Ok((HOP_BY_HOP, 8, Some(8)))),
            (HOP_BY_HOP, vec![17, 4, 0, 0], Err(Malformed::Truncated)),
            (HOP_BY_HOP, [&[17, 1][..], &udp[2..]].concat(), Err(Malformed::Truncated)),
            (HOP_BY_HOP, hop(17).to_vec(), Ok((17, 0, None))),
        ];
        for (next, payload, want) in cases {
            let bytes = v6(next, &payload);
            let got = IpPacket::parse(EthernetHeader::IPV6, &bytes)
                .map(|p| (p.protocol, p.payload.len(), p.fragment.map(|f| f.offset)));
            assert_eq!(got, want, "{next} {payload:?}");
        }
        for (headers, want) in [(MAX_EXTENSION_HEADERS, true), (MAX_EXTENSION_HEADERS + 1, false), (30, false)] {
            let chain = [hop(HOP_BY_HOP).repeat(headers - 1), hop(17).to_vec()].concat();
            assert_eq!(IpPacket::parse(EthernetHeader::IPV6, &v6(HOP_BY_HOP, &chain)).is_ok(), want, "{headers}");
        }
    }
}
