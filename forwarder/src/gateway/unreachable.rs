//! ICMP errors (RFC 792, RFC 4443): the workspace's `connect` fails at once with the error the host got, instead of
//! waiting for a timeout, its datagrams find their path MTU, and traceroute the routers.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use zerocopy::FromBytes;

use crate::edge::Edge;
use crate::network::VirtualNetwork;
use crate::policy::Denial;
use crate::sys::socket::{ErrorReport, Origin, next_error};
use crate::wire::ip::{Ipv4Header, Ipv6Header};
use crate::wire::transport::IcmpHeader;
use crate::wire::{EthernetHeader, FrameBuffer, IpPacket, Quote};

/// What the workspace says of a packet that was sent to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// Nobody is there.
    Unreachable,
    /// A link behind takes only packets of so many bytes.
    TooBig(u16),
}

/// What an ICMP error of the workspace's says, and about which packet. None: something else, or about nobody's.
pub fn parse(ip: &IpPacket<'_>) -> Option<(Said, Quote)> {
    let (header, quoted) = IcmpHeader::ref_from_prefix(ip.payload).ok()?;
    let ethertype = if ip.src.is_ipv4() { EthernetHeader::IPV4 } else { EthernetHeader::IPV6 };
    let said = match (ip.src.is_ipv4(), header.kind, header.code) {
        (true, 3, 4) => Said::TooBig(header.sequence.get()),
        // The MTU has four bytes here.
        (false, 2, _) => Said::TooBig(if header.id.get() == 0 { header.sequence.get() } else { u16::MAX }),
        (true, 3, _) | (false, 1, _) => Said::Unreachable,
        _ => return None,
    };
    Some((said, Quote::parse(ethertype, quoted)?))
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
    /// The packet's hop limit ends at the gateway.
    HopLimit,
    /// What a router or the destination itself has said: type, code and MTU, if it is about that.
    Reported(u8, u8, u16),
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

/// Reports of one socket that are told at once: a queue holds few.
const MAX_REPORTS: usize = 64;
/// What a path that refuses without saying its MTU is taken to have.
const DEFAULT_MTU: u16 = 1_500;

/// What a socket's error queue held.
pub struct Relayed {
    /// Messages to the workspace.
    pub count: u64,
    /// Of the last packet that the host itself found too big.
    pub mtu: u16,
}

/// Tells the workspace what the host's network said about packets that left by `socket`, as those say it who found out.
/// `quote` rebuilds the packet in question, as the workspace sent it.
pub fn relay(edge: &mut Edge, socket: &OwnedFd, quote: impl Fn(&Edge, &ErrorReport) -> Option<Vec<u8>>) -> Relayed {
    let mut relayed = Relayed { count: 0, mtu: DEFAULT_MTU };
    for report in std::iter::from_fn(|| next_error(socket)).take(MAX_REPORTS) {
        if report.origin == Origin::Local && report.errno == Errno::MSGSIZE {
            relayed.mtu = u16::try_from(report.info).unwrap_or(DEFAULT_MTU);
        }
        let Some((reason, quoted)) = Reason::of_report(&report).zip(quote(edge, &report)) else { continue };
        let reporter = report.offender.and_then(|address| edge.guest_view(address));
        relayed.count += 1;
        edge.reported_to_tap(&quoted, reason, reporter);
    }
    relayed
}

impl Reason {
    /// What a failed host call means for the workspace; None when it is not about reachability.
    pub fn of(errno: Errno) -> Option<Self> {
        match errno {
            Errno::NETUNREACH | Errno::NETDOWN | Errno::ACCESS | Errno::PERM | Errno::NONET => Some(Self::Network),
            Errno::HOSTUNREACH | Errno::HOSTDOWN => Some(Self::Host),
            _ => None,
        }
    }

    /// The same for datagrams, as their sockets are to see it: what the host's own rules forbid is no passing state.
    pub fn of_datagram(errno: Errno) -> Option<Self> {
        match errno {
            Errno::ACCESS | Errno::PERM => Some(Self::Prohibited),
            _ => Self::of(errno),
        }
    }

    /// What the host's error queue says; None for what does not concern the workspace.
    fn of_report(report: &ErrorReport) -> Option<Self> {
        let Origin::Network { kind, code } = report.origin else { return None };
        let mtu = || u16::try_from(report.info).unwrap_or(u16::MAX);
        match (report.is_ipv4, kind, code) {
            (true, 3, 4) | (false, 2, _) => Some(Self::Reported(kind, code, mtu())),
            (true, 3 | 11 | 12, _) | (false, 1 | 3 | 4, _) => Some(Self::Reported(kind, code, 0)),
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
            Self::HopLimit => (11, 0, 0),
            Self::Reported(kind, code, mtu) => (kind, code, mtu),
        }
    }

    fn v6(self) -> (u8, u8, u16) {
        match self {
            Self::Network => (1, 0, 0),
            Self::Host => (1, 3, 0),
            Self::Port | Self::HostProhibited => (1, 4, 0),
            Self::Prohibited => (1, 1, 0),
            Self::TooBig(mtu) => (2, 0, mtu),
            Self::HopLimit => (3, 0, 0),
            Self::Reported(kind, code, mtu) => (kind, code, mtu),
        }
    }
}

/// Builds the answer to the IP packet that begins with `quoted`, from the gateway where nobody else is named; None when
/// there is nobody to answer.
pub fn build(
    frame: &mut FrameBuffer,
    network: &VirtualNetwork,
    quoted: &[u8],
    reason: Reason,
    reporter: Option<IpAddr>,
) -> Option<Message> {
    let (ends, (kind, code, tail), limit) = match quoted.first()? >> 4 {
        4 => {
            let (header, _) = Ipv4Header::ref_from_prefix(quoted).ok()?;
            let src = Ipv4Addr::from(header.src);
            let from = reporter.filter(IpAddr::is_ipv4).unwrap_or(IpAddr::V4(network.v4.gateway()));
            ((from, IpAddr::V4(src)), reason.v4(), QUOTE_V4)
        }
        6 => {
            let (header, _) = Ipv6Header::ref_from_prefix(quoted).ok()?;
            let src = Ipv6Addr::from(header.src);
            let from = reporter.filter(IpAddr::is_ipv6).unwrap_or(IpAddr::V6(network.v6?.gateway()));
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
            let message = build(&mut frame, &network, &quoted(src), Reason::Host, None);
            assert_eq!(message.map(|m| m.payload_len), want, "{src:?}");
        }
        assert!(build(&mut frame, &network, &[0x45, 0], Reason::Host, None).is_none());
        assert!(build(&mut frame, &network, &[], Reason::Host, None).is_none());
    }
}
