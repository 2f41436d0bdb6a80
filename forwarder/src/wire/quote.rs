//! The packet an ICMP error is about (RFC 792, RFC 4443): as much of it as the error quotes, which is the IP header and
//! at least eight bytes more. Nothing here is checked by a sum; whoever uses it finds the flow, or there is none.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use zerocopy::FromBytes;

use super::ip::{FRAGMENT, Ipv4Header, Ipv6Header};
use super::transport::{ICMP_ECHO_REPLY, ICMPV6_ECHO_REPLY};
use super::{EthernetHeader, FRAGMENT_LEN, IPV4_LEN, PROTOCOL_ICMP, PROTOCOL_ICMPV6};
use crate::flow::FlowKey;
use crate::tcp::Seq;

/// What is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    pub src: (IpAddr, u16),
    pub dst: (IpAddr, u16),
    pub protocol: u8,
    /// The four bytes behind the ports: of TCP the sequence number.
    pub seq: Seq,
}

impl Quote {
    /// Reads the beginning of an IP packet of this ethertype. None: it has no ports, being the later part of one, say.
    pub fn parse(ethertype: u16, bytes: &[u8]) -> Option<Self> {
        let (src, dst, protocol, transport): (IpAddr, IpAddr, _, _) = if ethertype == EthernetHeader::IPV4 {
            let (header, _) = Ipv4Header::ref_from_prefix(bytes).ok()?;
            let header_len = usize::from(header.version_ihl & 15) * 4;
            if header.version_ihl >> 4 != 4 || header_len < IPV4_LEN || header.flags_offset.get() & 0x1fff != 0 {
                return None;
            }
            (header.src.into(), header.dst.into(), header.protocol, bytes.get(header_len..)?)
        } else {
            let (header, rest) = Ipv6Header::ref_from_prefix(bytes).ok()?;
            if header.version_class_flow[0] >> 4 != 6 {
                return None;
            }
            // Of extension headers we only ever send this one.
            let (protocol, transport) = match (header.next_header, rest) {
                (FRAGMENT, [next, _, o1, o0, ..]) if u16::from_be_bytes([*o1, *o0]) & 0xfff8 == 0 => {
                    (*next, rest.get(FRAGMENT_LEN..)?)
                }
                (FRAGMENT, _) => return None,
                (protocol, transport) => (protocol, transport),
            };
            (header.src.into(), header.dst.into(), protocol, transport)
        };
        let &[s1, s0, d1, d0, a, b, c, d, ..] = transport else { return None };
        let (src_port, dst_port) = (u16::from_be_bytes([s1, s0]), u16::from_be_bytes([d1, d0]));
        let seq = Seq(u32::from_be_bytes([a, b, c, d]));
        Some(Self { src: (src, src_port), dst: (dst, dst_port), protocol, seq })
    }

    /// The pings whose reply it was, sent to the workspace, with their identifier as its port. None: it was no such reply.
    pub fn echo_reply(&self) -> Option<FlowKey> {
        // An ICMP header has its type and code where others have a port, and the identifier behind the checksum.
        let [kind, _] = self.src.1.to_be_bytes();
        let [i1, i0, _, _] = self.seq.0.to_be_bytes();
        let is_reply =
            matches!((self.protocol, kind), (PROTOCOL_ICMP, ICMP_ECHO_REPLY) | (PROTOCOL_ICMPV6, ICMPV6_ECHO_REPLY));
        let id = u16::from_be_bytes([i1, i0]);
        let (guest, remote) = (self.dst.0, self.src.0);
        is_reply.then_some(FlowKey { guest, guest_port: id, remote, remote_port: 0 })
    }

    /// The flow whose packet it was, sent to the workspace.
    pub fn flow(&self) -> FlowKey {
        let ((remote, remote_port), (guest, guest_port)) = (self.src, self.dst);
        FlowKey { guest, guest_port, remote, remote_port }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_are_found_or_nothing_is() {
        let transport = [0, 80, 15, 160, 0, 0, 1, 2];
        let v4 = |first: u8, offset: u16| {
            let [o1, o0] = offset.to_be_bytes();
            // The whole packet was longer, and its header's sum is none of ours.
            [first, 0, 5, 220, 0, 0, o1, o0, 64, 6, 0, 0, 192, 0, 2, 1, 10, 0, 2, 100]
        };
        let v6 = |next: u8| {
            let mut header = [0; 40];
            (header[0], header[4], header[6], header[8], header[24]) = (0x60, 5, next, 0x20, 0xfd);
            header
        };
        let fragment = |offset: u8| [6, 0, 0, offset, 0, 0, 0, 9];
        let cases: [(u16, Vec<u8>, Option<&str>); 9] = [
            (EthernetHeader::IPV4, [&v4(0x45, 0x4000)[..], &transport].concat(), Some("192.0.2.1")),
            (EthernetHeader::IPV4, [&v4(0x46, 0)[..], &[1; 4], &transport].concat(), Some("192.0.2.1")),
            (EthernetHeader::IPV4, [&v4(0x45, 0x2001)[..], &transport].concat(), None),
            (EthernetHeader::IPV4, [&v4(0x44, 0)[..], &transport].concat(), None),
            (EthernetHeader::IPV4, [&v4(0x45, 0)[..], &transport[..7]].concat(), None),
            (EthernetHeader::IPV6, [&v6(6)[..], &transport].concat(), Some("2000::")),
            (EthernetHeader::IPV6, [&v6(44)[..], &fragment(1), &transport].concat(), Some("2000::")),
            (EthernetHeader::IPV6, [&v6(44)[..], &fragment(8), &transport].concat(), None),
            (EthernetHeader::IPV6, v4(0x45, 0).to_vec(), None),
        ];
        for (ethertype, bytes, want) in cases {
            let quote = Quote::parse(ethertype, &bytes);
            assert_eq!(quote.map(|quote| quote.src), want.map(|src| (src.parse().unwrap(), 80)), "{bytes:?}");
            assert!(quote.is_none_or(|quote| (quote.dst.1, quote.protocol, quote.seq) == (4000, 6, Seq(0x102))));
        }
    }

    #[test]
    fn replies_are_known_by_their_identifier() {
        let (guest, remote) = ("fd00::64".parse().unwrap(), "2001:db8::1".parse().unwrap());
        let quote = |protocol, kind: u8| Quote {
            src: (remote, u16::from(kind) << 8),
            dst: (guest, 0x1c4f),
            protocol,
            seq: Seq(0x1234_0001),
        };
        let key = FlowKey { guest, guest_port: 0x1234, remote, remote_port: 0 };
        for (protocol, kind, want) in
            [(58, 129, Some(key)), (1, 0, Some(key)), (58, 128, None), (58, 0, None), (6, 0, None)]
        {
            assert_eq!(quote(protocol, kind).echo_reply(), want, "{protocol} {kind}");
        }
    }
}
