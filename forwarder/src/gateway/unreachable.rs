//! Destination unreachable (RFC 792, RFC 4443 3.1): the workspace's `connect` fails at once with the error the host
//! got, instead of waiting for a timeout.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::io::Errno;
use zerocopy::FromBytes;

use crate::network::VirtualNetwork;
use crate::policy::Denial;
use crate::wire::ip::{Ipv4Header, Ipv6Header};
use crate::wire::transport::IcmpHeader;
use crate::wire::{EthernetHeader, FrameBuffer, IpPacket};

/// The packet that a destination unreachable of the workspace's quotes, if it quotes all of it, as Linux does with
/// segments that have no payload.
pub fn parse<'a>(ip: &IpPacket<'a>) -> Option<IpPacket<'a>> {
    let (header, quoted) = IcmpHeader::ref_from_prefix(ip.payload).ok()?;
    let (kind, ethertype) = if ip.src.is_ipv4() { (3, EthernetHeader::IPV4) } else { (1, EthernetHeader::IPV6) };
    if header.kind != kind {
        return None;
    }
    IpPacket::parse(ethertype, quoted).ok()
}

/// What is unreachable, as the workspace's errno will say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// ENETUNREACH.
    Network,
    /// EHOSTUNREACH.
    Host,
    /// ECONNREFUSED, for datagrams.
    Port,
    /// ENETUNREACH (EACCES over IPv6), for datagrams: sockets ignore [`Self::Network`], as routes come and go.
    Prohibited,
    /// EHOSTUNREACH (ECONNREFUSED over IPv6, which has no such code), for datagrams.
    HostProhibited,
    /// EMSGSIZE, with the MTU that fits.
    TooBig(u16),
}

/// A message whose body is in the frame buffer.
pub struct Message {
    pub ends: (IpAddr, IpAddr),
    pub header: IcmpHeader,
    pub payload_len: usize,
}

/// Quotes at most this much: the whole ICMPv4 message stays within 576 bytes (RFC 1812 4.3.2.3), ICMPv6's within 1280.
const QUOTE_V4: usize = 548;
const QUOTE_V6: usize = 1232;

impl Reason {
    /// What a failed host call means for the workspace; None when it is not about reachability.
    pub fn of(errno: Errno) -> Option<Self> {
        match errno {
            Errno::NETUNREACH | Errno::NETDOWN | Errno::ACCESS | Errno::PERM | Errno::NONET => Some(Self::Network),
            Errno::HOSTUNREACH | Errno::HOSTDOWN => Some(Self::Host),
            _ => None,
        }
    }

    pub fn of_denial(denial: Denial) -> Self {
        if denial == Denial::Rule { Self::Host } else { Self::Network }
    }

    pub fn of_denied_datagram(denial: Denial) -> Self {
        if denial == Denial::Rule { Self::HostProhibited } else { Self::Prohibited }
    }

    /// Type, code and the last two bytes of the ICMP header.
    fn v4(self) -> (u8, u8, u16) {
        match self {
            Self::Network => (3, 0, 0),
            Self::Host => (3, 1, 0),
            Self::Port => (3, 3, 0),
            Self::Prohibited => (3, 9, 0),
            Self::HostProhibited => (3, 10, 0),
            Self::TooBig(mtu) => (3, 4, mtu),
        }
    }

    fn v6(self) -> (u8, u8, u16) {
        match self {
            Self::Network => (1, 0, 0),
            Self::Host => (1, 3, 0),
            Self::Port | Self::HostProhibited => (1, 4, 0),
            Self::Prohibited => (1, 1, 0),
            Self::TooBig(mtu) => (2, 0, mtu),
        }
    }
}

/// Builds the answer to the IP packet that begins with `quoted`; None when there is nobody to answer.
pub fn build(frame: &mut FrameBuffer, network: &VirtualNetwork, quoted: &[u8], reason: Reason) -> Option<Message> {
    let (ends, (kind, code, tail), limit) = match quoted.first()? >> 4 {
        4 => {
            let (header, _) = Ipv4Header::ref_from_prefix(quoted).ok()?;
            let src = Ipv4Addr::from(header.src);
            let from = IpAddr::V4(network.v4.gateway());
            ((from, IpAddr::V4(src)), reason.v4(), QUOTE_V4)
        }
        6 => {
            let (header, _) = Ipv6Header::ref_from_prefix(quoted).ok()?;
            let src = Ipv6Addr::from(header.src);
            let from = IpAddr::V6(network.v6?.gateway());
            ((from, IpAddr::V6(src)), reason.v6(), QUOTE_V6)
        }
        _ => return None,
    };
    let answerable = !ends.1.is_multicast() && !ends.1.is_unspecified();
    if !answerable {
        return None;
    }
    let payload_len = frame.put_payload(quoted.get(..limit).unwrap_or(quoted));
    let header = IcmpHeader { kind, code, checksum: 0.into(), id: 0.into(), sequence: tail.into() };
    Some(Message { ends, header, payload_len })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Ipv4Subnet, Ipv6Subnet};

    #[test]
    fn only_senders_that_exist_are_answered() {
        let network = VirtualNetwork::new(Ipv4Subnet::DEFAULT, Some(Ipv6Subnet::DEFAULT), 1500);
        let quoted = |src: [u8; 4]| {
            let mut bytes = vec![0u8; 2000];
            bytes[0] = 0x45;
            bytes[12..16].copy_from_slice(&src);
            bytes
        };
        let mut frame = FrameBuffer::default();
        for (src, want) in [([10, 0, 2, 100], Some(548)), ([0; 4], None), ([224, 0, 0, 1], None)] {
            let message = build(&mut frame, &network, &quoted(src), Reason::Host);
            assert_eq!(message.map(|m| m.payload_len), want, "{src:?}");
        }
        assert!(build(&mut frame, &network, &[0x45, 0], Reason::Host).is_none());
        assert!(build(&mut frame, &network, &[], Reason::Host).is_none());
    }
}
