//! Neighbour discovery (RFC 4861) for the gateway and the resolver, and the router advertisement that gives the
//! workspace its prefix, route, MTU and resolver (RFC 8106) when it configures itself.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr};

use super::search;
use crate::edge::Edge;
use crate::network::{Ipv6Subnet, Role, VirtualNetwork};
use crate::wire::build::NDP_HOP_LIMIT;
use crate::wire::checksum::Sum;
use crate::wire::transport::IcmpHeader;
use crate::wire::{IpPacket, Malformed, PROTOCOL_ICMPV6};

/// The gateway's link-local address: router advertisements must come from one.
pub const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Router, solicited, override: the upper bits of a neighbour advertisement.
const FLAG_ROUTER: u16 = 0x8000;
const FLAG_SOLICITED: u16 = 0x4000;
const FLAG_OVERRIDE: u16 = 0x2000;
/// How often an advertisement is sent that nobody asked for (MaxRtrAdvInterval, RFC 4861 6.2.1). There is one router on
/// the link, whose advertisements need no random distance from others'.
pub const INTERVAL_MS: u64 = 600_000;
/// Three times that, as the RFCs have it for the router (4861), its resolver and its search list (8106): two
/// advertisements may be lost.
const ROUTER_LIFETIME_S: u16 = 1_800;
/// How long an address made from the prefix is good; a shorter one could be another's attack (RFC 4862 5.5.3).
const PREFIX_LIFETIME_S: u32 = 86_400;
/// What the search list may take of an advertisement; with it that is less than 400 bytes.
const SEARCH_MAX: usize = 256;
const HOP_LIMIT: u8 = 64;

/// What is sent: its ends, its first eight bytes, and the rest.
struct Message {
    ends: (Ipv6Addr, Ipv6Addr),
    header: IcmpHeader,
    body: Vec<u8>,
}

/// Answers an ICMPv6 message if it is a solicitation for us. False: it was no neighbour discovery at all.
pub fn packet_from_tap(edge: &mut Edge, ip: &IpPacket<'_>) -> Result<bool, Malformed> {
    let kind = *ip.payload.first().ok_or(Malformed::Truncated)?;
    if !(ROUTER_SOLICITATION..=NEIGHBOUR_ADVERTISEMENT).contains(&kind) {
        return Ok(false);
    }
    let sum = Sum::pseudo(ip.src, ip.dst, PROTOCOL_ICMPV6, ip.payload.len());
    if !sum.bytes(ip.payload).is_valid() {
        return Err(Malformed::Checksum);
    }
    // Anything else came from beyond the link (RFC 4861 6.1.1, 7.1.1).
    if ip.hop_limit != NDP_HOP_LIMIT {
        return Err(Malformed::Header);
    }
    let answer = match kind {
        ROUTER_SOLICITATION => router_advertisement(&edge.config.network, &edge.config.search, ip.src),
        NEIGHBOUR_SOLICITATION => neighbour_advertisement(&edge.config.network, ip)?,
        NEIGHBOUR_ADVERTISEMENT => {
            // Mostly from the target itself, of which the packet has told by its source then.
            edge.heard(target(ip)?.into(), edge.speaker());
            None
        }
        _ => None,
    };
    if let Some(answer) = answer {
        send(edge, &answer);
    }
    Ok(true)
}

/// Tells every node of the link, unasked, what holds.
pub fn advertise(edge: &mut Edge) {
    let unasked = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    if let Some(advertisement) = router_advertisement(&edge.config.network, &edge.config.search, unasked) {
        send(edge, &advertisement);
    }
}

fn send(edge: &mut Edge, message: &Message) {
    let len = edge.frame.put_payload(&message.body);
    let ends = (IpAddr::V6(message.ends.0), IpAddr::V6(message.ends.1));
    edge.icmp_to_tap(ends, message.header, len, NDP_HOP_LIMIT);
}

/// Asks who has `address` (RFC 4861 7.2.2).
pub fn ask(edge: &mut Edge, address: Ipv6Addr) {
    let network = &edge.config.network;
    let from = network.v6.filter(|v6| v6.contains(address)).map_or(ROUTER, |v6| v6.gateway());
    let mut body = address.octets().to_vec();
    // Source link-layer address.
    body.extend_from_slice(&[1, 1]);
    body.extend_from_slice(&network.gateway_mac);
    let ends = (from, solicited_node(address));
    send(edge, &Message { ends, header: header(NEIGHBOUR_SOLICITATION, 0, 0), body });
}

/// The group that whoever has `address` listens to (RFC 4291 2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., low, last] = address.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | low & 0xff, last)
}

/// Of a neighbour solicitation or advertisement.
fn target(ip: &IpPacket<'_>) -> Result<Ipv6Addr, Malformed> {
    let octets = ip.payload.get(8..24).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    octets.map(Ipv6Addr::from).ok_or(Malformed::Truncated)
}

fn neighbour_advertisement(network: &VirtualNetwork, ip: &IpPacket<'_>) -> Result<Option<Message>, Malformed> {
    let target = target(ip)?;
    let role = network.role(IpAddr::V6(target));
    let is_router = target == ROUTER || role == Some(Role::Gateway);
    if network.v6.is_none() || !(is_router || role == Some(Role::Resolver)) {
        return Ok(None);
    }
    // A sender without an address asks whether the target is taken (RFC 4862 5.4): everyone is told.
    let (to, solicited) = match ip.src {
        IpAddr::V6(src) if !src.is_unspecified() => (src, FLAG_SOLICITED),
        _ => (ALL_NODES, 0),
    };
    let flags = FLAG_OVERRIDE | solicited | if is_router { FLAG_ROUTER } else { 0 };
    let header = header(NEIGHBOUR_ADVERTISEMENT, flags, 0);
    let mut body = target.octets().to_vec();
    body.extend_from_slice(&[2, 1]);
    body.extend_from_slice(&network.gateway_mac);
    Ok(Some(Message { ends: (target, to), header, body }))
}

fn router_advertisement(network: &VirtualNetwork, search: &[String], src: IpAddr) -> Option<Message> {
    let v6 = network.v6?;
    let to = match src {
        IpAddr::V6(src) if !src.is_unspecified() => src,
        _ => ALL_NODES,
    };
    let header = header(ROUTER_ADVERTISEMENT, u16::from_be_bytes([HOP_LIMIT, 0]), ROUTER_LIFETIME_S);
    let (lifetime, dns_lifetime) = (PREFIX_LIFETIME_S.to_be_bytes(), u32::from(ROUTER_LIFETIME_S).to_be_bytes());
    // Reachable time and retransmission timer: unspecified.
    let mut body = vec![0; 8];
    // Source link-layer address.
    body.extend_from_slice(&[1, 1]);
    body.extend_from_slice(&network.gateway_mac);
    // MTU.
    body.extend_from_slice(&[5, 1, 0, 0]);
    body.extend_from_slice(&u32::from(network.mtu).to_be_bytes());
    // Prefix: on-link, usable for autoconfiguration; valid and preferred lifetimes.
    body.extend_from_slice(&[3, 4, Ipv6Subnet::PREFIX_LEN, 0xc0]);
    body.extend_from_slice(&lifetime);
    body.extend_from_slice(&lifetime);
    body.extend_from_slice(&[0; 4]);
    body.extend_from_slice(&v6.network().octets());
    // Recursive DNS server.
    if network.dns {
        body.extend_from_slice(&[25, 3, 0, 0]);
        body.extend_from_slice(&dns_lifetime);
        body.extend_from_slice(&v6.resolver().octets());
    }
    // DNS search list, in units of eight bytes.
    let mut list = search::encode(search, SEARCH_MAX);
    if !list.is_empty() {
        list.resize(list.len().next_multiple_of(8), 0);
        body.extend_from_slice(&[31, u8::try_from(1 + list.len() / 8).unwrap_or(0), 0, 0]);
        body.extend_from_slice(&dns_lifetime);
        body.extend_from_slice(&list);
    }
    Some(Message { ends: (ROUTER, to), header, body })
}

fn header(kind: u8, high: u16, low: u16) -> IcmpHeader {
    IcmpHeader { kind, code: 0, checksum: 0.into(), id: high.into(), sequence: low.into() }
}

#[cfg(test)]
mod tests {
    use smoltcp::wire::{Icmpv6Packet, NdiscNeighborFlags, NdiscRepr};
    use zerocopy::IntoBytes;

    use super::*;
    use crate::network::Ipv4Subnet;

    fn network() -> VirtualNetwork {
        VirtualNetwork::new(Ipv4Subnet::DEFAULT, Some(Ipv6Subnet::DEFAULT), 1500)
    }

    fn solicitation<'a>(payload: &'a [u8], src: &str) -> IpPacket<'a> {
        IpPacket {
            src: src.parse().unwrap(),
            dst: "ff02::1:ff00:2".parse().unwrap(),
            protocol: PROTOCOL_ICMPV6,
            hop_limit: 255,
            tos: 0,
            dont_fragment: false,
            fragment: None,
            payload,
            bytes: payload,
        }
    }

    #[test]
    fn neighbours() {
        // (target, source, answered to)
        let cases = [
            ("fd00::2", "fd00::64", Some("fd00::64")),
            ("fd00::3", "fd00::64", Some("fd00::64")),
            ("fe80::2", "fe80::64", Some("fe80::64")),
            ("fd00::2", "::", Some("ff02::1")),
            ("fd00::64", "::", None),
            ("fd00::9", "fd00::64", None),
        ];
        for (target, src, want) in cases {
            let target: Ipv6Addr = target.parse().unwrap();
            let payload = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat();
            let answer = neighbour_advertisement(&network(), &solicitation(&payload, src)).unwrap();
            assert_eq!(answer.as_ref().map(|a| a.ends.1), want.map(|w| w.parse().unwrap()), "{target} {src}");
            let Some(answer) = answer else { continue };
            let bytes = [answer.header.as_bytes(), &answer.body].concat();
            let NdiscRepr::NeighborAdvert { flags, target_addr, lladdr } =
                NdiscRepr::parse(&Icmpv6Packet::new_checked(&bytes[..]).unwrap()).unwrap()
            else {
                panic!("no advertisement")
            };
            assert_eq!(target_addr, target);
            assert_eq!(lladdr.unwrap().as_bytes(), network().gateway_mac);
            assert_eq!(flags.contains(NdiscNeighborFlags::SOLICITED), src != "::");
        }
        let short = solicitation(&[135; 20], "fd00::64");
        assert!(neighbour_advertisement(&network(), &short).is_err());
    }

    #[test]
    fn router_advertisement_is_what_smoltcp_reads() {
        let answer = router_advertisement(&network(), &[], "fe80::64".parse().unwrap()).unwrap();
        let bytes = [answer.header.as_bytes(), &answer.body].concat();
        let NdiscRepr::RouterAdvert { mtu, prefix_info, router_lifetime, .. } =
            NdiscRepr::parse(&Icmpv6Packet::new_checked(&bytes[..]).unwrap()).unwrap()
        else {
            panic!("no advertisement")
        };
        assert_eq!(mtu, Some(1500));
        assert_eq!(router_lifetime.secs(), 1800);
        let prefix = prefix_info.unwrap();
        assert_eq!((prefix.prefix, prefix.prefix_len), ("fd00::".parse().unwrap(), 64));
    }

    /// Types and bodies of an advertisement's options.
    fn options_of(network: &VirtualNetwork, search: &[&str]) -> Vec<(u8, Vec<u8>)> {
        let search: Vec<_> = search.iter().map(|&domain| domain.to_owned()).collect();
        let body = router_advertisement(network, &search, "::".parse().unwrap()).unwrap().body;
        let mut rest = &body[8..];
        let mut options = Vec::new();
        while let [kind, units, ..] = *rest {
            let (option, after) = rest.split_at(usize::from(units) * 8);
            options.push((kind, option[2..].to_vec()));
            rest = after;
        }
        options
    }

    #[test]
    fn resolver_and_search_list() {
        let kinds = |options: &[(u8, Vec<u8>)]| options.iter().map(|(kind, _)| *kind).collect::<Vec<_>>();
        let options = options_of(&network(), &["lab.example.org"]);
        assert_eq!(kinds(&options), [1, 5, 3, 25, 31]);
        assert_eq!(options[3].1, [&[0, 0, 0, 0, 7, 8][..], &network().v6.unwrap().resolver().octets()].concat());
        assert_eq!(options[4].1, b"\0\0\0\0\x07\x08\x03lab\x07example\x03org\0\0\0\0\0\0\0\0");
        let silent = VirtualNetwork { dns: false, ..network() };
        assert_eq!(kinds(&options_of(&silent, &[])), [1, 5, 3]);
        let many = vec!["a-name-that-is-not-short.example.org"; 40];
        assert!(options_of(&network(), &many)[4].1.len() <= SEARCH_MAX + 8);
    }
}
