//! TCP segments (RFC 9293), UDP datagrams (RFC 768) and ICMP echoes (RFC 792, RFC 4443) as views of an IP payload.
#![forbid(unsafe_code)]

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::Sum;
use super::{IpPacket, Malformed, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, TCP_LEN, UDP_LEN};
use crate::tcp::Seq;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct TcpHeader {
    pub src_port: U16,
    pub dst_port: U16,
    pub seq: U32,
    pub ack: U32,
    /// Upper four bits: header length in words.
    pub data_offset: u8,
    pub flags: u8,
    pub window: U16,
    pub checksum: U16,
    pub urgent: U16,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct UdpHeader {
    pub src_port: U16,
    pub dst_port: U16,
    pub len: U16,
    pub checksum: U16,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IcmpHeader {
    pub kind: u8,
    pub code: u8,
    pub checksum: U16,
    pub id: U16,
    pub sequence: U16,
}

/// The flag bits of a TCP header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    pub const FIN: Self = Self(0x01);
    pub const SYN: Self = Self(0x02);
    pub const RST: Self = Self(0x04);
    pub const PSH: Self = Self(0x08);
    pub const ACK: Self = Self(0x10);
    pub const URG: Self = Self(0x20);

    pub fn has(self, flag: Self) -> bool {
        self.0 & flag.0 != 0
    }

    #[must_use]
    pub fn with(self, flag: Self) -> Self {
        Self(self.0 | flag.0)
    }
}

/// One TCP segment of the workspace's.
#[derive(Clone, Copy, Debug)]
pub struct TcpSegment<'a> {
    pub src_port: u16,
    pub dst_port: u16,
    pub seq: Seq,
    pub ack: Seq,
    pub flags: TcpFlags,
    /// As in the header, not scaled.
    pub window: u16,
    /// Behind `seq`, where the flags have URG.
    pub urgent: u16,
    pub options: &'a [u8],
    pub payload: &'a [u8],
}

/// What a SYN's options say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SynOptions {
    pub mss: Option<u16>,
    pub window_scale: Option<u8>,
    pub sack_permitted: bool,
}

/// Option kinds (RFC 9293 3.1, RFC 7323, RFC 2018).
const OPTION_END: u8 = 0;
pub const OPTION_NOP: u8 = 1;
pub const OPTION_MSS: u8 = 2;
pub const OPTION_WINDOW_SCALE: u8 = 3;
pub const OPTION_SACK_PERMITTED: u8 = 4;
pub const OPTION_SACK: u8 = 5;

impl<'a> TcpSegment<'a> {
    /// `partial`: the checksum is for the device to finish, so there is none to check.
    pub fn parse(ip: &IpPacket<'a>, partial: bool) -> Result<Self, Malformed> {
        let (header, _) = TcpHeader::ref_from_prefix(ip.payload).map_err(|_| Malformed::Truncated)?;
        let header_len = usize::from(header.data_offset >> 4) * 4;
        if header_len < TCP_LEN {
            return Err(Malformed::Header);
        }
        let (head, payload) = ip.payload.split_at_checked(header_len).ok_or(Malformed::Truncated)?;
        let options = head.get(TCP_LEN..).ok_or(Malformed::Truncated)?;
        if !partial && !pseudo(ip, PROTOCOL_TCP).bytes(ip.payload).is_valid() {
            return Err(Malformed::Checksum);
        }
        Ok(Self {
            src_port: header.src_port.get(),
            dst_port: header.dst_port.get(),
            seq: Seq(header.seq.get()),
            ack: Seq(header.ack.get()),
            flags: TcpFlags(header.flags),
            window: header.window.get(),
            urgent: header.urgent.get(),
            options,
            payload,
        })
    }

    /// Sequence numbers this segment takes.
    pub fn seq_len(&self) -> u32 {
        let payload = u32::try_from(self.payload.len()).unwrap_or(0);
        payload + u32::from(self.flags.has(TcpFlags::SYN)) + u32::from(self.flags.has(TcpFlags::FIN))
    }

    pub fn syn_options(&self) -> SynOptions {
        let mut found = SynOptions::default();
        for option in self.options() {
            match option {
                (OPTION_MSS, [a, b]) => found.mss = Some(u16::from_be_bytes([*a, *b])),
                (OPTION_WINDOW_SCALE, [shift]) => found.window_scale = Some((*shift).min(14)),
                (OPTION_SACK_PERMITTED, []) => found.sack_permitted = true,
                _ => {}
            }
        }
        found
    }

    /// What the sender has beyond a gap, as (from, to).
    pub fn sack_blocks(&self) -> impl Iterator<Item = (Seq, Seq)> {
        let blocks = self.options().filter(|(kind, _)| *kind == OPTION_SACK).flat_map(|(_, body)| body.as_chunks().0);
        blocks.map(|&[a, b, c, d, e, f, g, h]| {
            (Seq(u32::from_be_bytes([a, b, c, d])), Seq(u32::from_be_bytes([e, f, g, h])))
        })
    }

    /// Kinds and bodies, up to the end or the first that cannot be.
    fn options(&self) -> impl Iterator<Item = (u8, &'a [u8])> {
        let mut rest = self.options;
        std::iter::from_fn(move || {
            loop {
                match rest {
                    [OPTION_NOP, tail @ ..] => rest = tail,
                    [OPTION_END, ..] => return None,
                    [kind, len, ..] => {
                        let (option, tail) = rest.split_at_checked(usize::from(*len))?;
                        rest = tail;
                        return Some((*kind, option.get(2..)?));
                    }
                    _ => return None,
                }
            }
        })
    }
}

/// One UDP datagram, or several of one size in a row (USO).
#[derive(Clone, Copy, Debug)]
pub struct UdpDatagram<'a> {
    pub src_port: u16,
    pub dst_port: u16,
    pub payload: &'a [u8],
}

impl<'a> UdpDatagram<'a> {
    /// `partial` as for TCP.
    pub fn parse(ip: &IpPacket<'a>, partial: bool) -> Result<Self, Malformed> {
        let (header, _) = UdpHeader::ref_from_prefix(ip.payload).map_err(|_| Malformed::Truncated)?;
        let len = usize::from(header.len.get());
        let datagram = ip.payload.get(..len).ok_or(Malformed::Truncated)?;
        let payload = datagram.get(UDP_LEN..).ok_or(Malformed::Header)?;
        // Nobody's (RFC 768 reserves it as a source only).
        if header.dst_port.get() == 0 {
            return Err(Malformed::Header);
        }
        let has_checksum = header.checksum.get() != 0;
        if ip.dst.is_ipv6() && !has_checksum && !partial {
            return Err(Malformed::Checksum);
        }
        if has_checksum && !partial {
            let sum = Sum::pseudo(ip.src, ip.dst, PROTOCOL_UDP, len);
            if !sum.bytes(datagram).is_valid() {
                return Err(Malformed::Checksum);
            }
        }
        Ok(Self { src_port: header.src_port.get(), dst_port: header.dst_port.get(), payload })
    }
}

/// An echo request of either ICMP.
#[derive(Clone, Copy, Debug)]
pub struct IcmpEcho<'a> {
    pub id: u16,
    pub sequence: u16,
    pub payload: &'a [u8],
}

pub const ICMP_ECHO_REPLY: u8 = 0;
pub const ICMP_ECHO_REQUEST: u8 = 8;
pub const ICMPV6_ECHO_REQUEST: u8 = 128;
pub const ICMPV6_ECHO_REPLY: u8 = 129;

impl<'a> IcmpEcho<'a> {
    /// None: some other ICMP message.
    pub fn parse_request(ip: &IpPacket<'a>) -> Result<Option<Self>, Malformed> {
        let (header, payload) = IcmpHeader::ref_from_prefix(ip.payload).map_err(|_| Malformed::Truncated)?;
        let (request, sum) = if ip.protocol == PROTOCOL_ICMPV6 {
            (ICMPV6_ECHO_REQUEST, pseudo(ip, PROTOCOL_ICMPV6))
        } else {
            (ICMP_ECHO_REQUEST, Sum::default())
        };
        if !sum.bytes(ip.payload).is_valid() {
            return Err(Malformed::Checksum);
        }
        let echo = Self { id: header.id.get(), sequence: header.sequence.get(), payload };
        Ok((header.kind == request && header.code == 0).then_some(echo))
    }
}

fn pseudo(ip: &IpPacket<'_>, protocol: u8) -> Sum {
    Sum::pseudo(ip.src, ip.dst, protocol, ip.payload.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(payload: &[u8], protocol: u8) -> IpPacket<'_> {
        IpPacket {
            src: [10, 0, 2, 100].into(),
            dst: [192, 0, 2, 1].into(),
            protocol,
            hop_limit: 64,
            tos: 0,
            dont_fragment: false,
            fragment: None,
            payload,
            bytes: payload,
        }
    }

    fn syn(options: &[u8]) -> Vec<u8> {
        let words = u8::try_from((TCP_LEN + options.len()) / 4).unwrap();
        let header = TcpHeader {
            src_port: 4000.into(),
            dst_port: 80.into(),
            seq: 1.into(),
            ack: 0.into(),
            data_offset: words << 4,
            flags: TcpFlags::SYN.0,
            window: 64240.into(),
            checksum: 0.into(),
            urgent: 0.into(),
        };
        [header.as_bytes(), options].concat()
    }

    #[test]
    fn syn_options_of_linux_and_of_nobody() {
        let all = SynOptions { mss: Some(1460), window_scale: Some(7), sack_permitted: true };
        let cases: [(&[u8], SynOptions); 5] = [
            (&[2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7], all),
            (&[1, 1, 1, 0], SynOptions::default()),
            (&[3, 3, 200, 0], SynOptions { window_scale: Some(14), ..SynOptions::default() }),
            (&[9, 0, 2, 4], SynOptions::default()),
            (&[2, 40, 5, 180], SynOptions::default()),
        ];
        for (options, want) in cases {
            let bytes = syn(options);
            let packet = ip(&bytes, PROTOCOL_TCP);
            assert_eq!(TcpSegment::parse(&packet, true).map(|s| s.syn_options()), Ok(want), "{options:?}");
        }
    }

    #[test]
    fn a_wrong_checksum_counts_only_when_it_is_finished() {
        let bytes = syn(&[]);
        let packet = ip(&bytes, PROTOCOL_TCP);
        assert_eq!(TcpSegment::parse(&packet, false).map(|_| ()), Err(Malformed::Checksum));
        assert_eq!(TcpSegment::parse(&packet, true).map(|s| s.seq_len()), Ok(1));
    }

    #[test]
    fn tcp_header_lengths() {
        for (words, want) in [(4, Some(Malformed::Header)), (5, None), (6, Some(Malformed::Truncated))] {
            let mut bytes = syn(&[]);
            bytes[12] = words << 4;
            assert_eq!(TcpSegment::parse(&ip(&bytes, PROTOCOL_TCP), true).err(), want, "{words}");
        }
    }

    #[test]
    fn udp_lengths() {
        for (len, want) in [(7, Err(Malformed::Header)), (8, Ok(0)), (12, Ok(4)), (13, Err(Malformed::Truncated))] {
            let mut bytes = vec![1, 0, 2, 0, 0, len, 0, 0];
            bytes.resize(12, 7);
            assert_eq!(UdpDatagram::parse(&ip(&bytes, PROTOCOL_UDP), false).map(|d| d.payload.len()), want, "{len}");
        }
    }
}
