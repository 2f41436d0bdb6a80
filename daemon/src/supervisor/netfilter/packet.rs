//! The packets of a connection that does not exist yet, as far as their bits are known before it does.
//!
//! A rule is asked about three of them: the first one out (conntrack calls it new), any later one out, and any that
//! comes back. What a program or the network may still choose (its port, flags, marks of its own) is unknown, bit by
//! bit, and a rule that looks there may match or not.

use std::net::{IpAddr, SocketAddr};

/// linux/netfilter.h
pub const NF_INET_PRE_ROUTING: u32 = 0;
pub const NF_INET_LOCAL_IN: u32 = 1;
pub const NF_INET_LOCAL_OUT: u32 = 3;
pub const NF_INET_POST_ROUTING: u32 = 4;
pub const NF_NETDEV_INGRESS: u32 = 0;
pub const NF_NETDEV_EGRESS: u32 = 1;
/// An ingress hook of the inet family.
pub const NF_INET_INGRESS: u32 = 5;

/// NF_CT_STATE_BIT() of linux/netfilter/nf_conntrack_common.h.
const ESTABLISHED: u32 = 2;
const NEW: u32 = 8;

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const TCP: u8 = 6;

/// Whose traffic: a connection from the workspace's `source`, out by the device `tap`.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// None: the kernel did not say which address it would use.
    pub source: Option<IpAddr>,
    /// Canonical: an IPv4 destination reached by an IPv6 socket is an IPv4 address here.
    pub destination: SocketAddr,
    pub tap: Device<'a>,
}

#[derive(Clone, Copy, Debug)]
pub struct Device<'a> {
    pub index: u32,
    pub name: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    First,
    Later,
    Reply,
}

/// `N` bytes of which those bits are known that `known` has.
#[derive(Clone, Copy, Debug)]
pub struct Image<const N: usize> {
    pub value: [u8; N],
    pub known: [u8; N],
}

impl<const N: usize> Image<N> {
    pub const UNKNOWN: Self = Self { value: [0; N], known: [0; N] };

    pub fn set(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.value.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
        if let Some(place) = self.known.get_mut(at..at + bytes.len()) {
            place.fill(0xff);
        }
    }
}

/// One packet at the hooks it passes.
#[derive(Clone, Debug)]
pub struct Packet<'a> {
    pub stage: Stage,
    pub ipv6: bool,
    /// The IP header and the TCP header.
    pub network: Image<40>,
    pub transport: Image<20>,
    pub tap: Device<'a>,
    pub source_port: Option<u16>,
    pub destination_port: Option<u16>,
}

impl<'a> Packet<'a> {
    pub fn new(stage: Stage, of: &Connection<'a>) -> Self {
        let (here, there, port) = (of.source, Some(of.destination.ip()), Some(of.destination.port()));
        let ipv6 = of.destination.is_ipv6();
        let (source, destination, source_port, destination_port) =
            if stage == Stage::Reply { (there, here, port, None) } else { (here, there, None, port) };
        let mut network = Image::UNKNOWN;
        network.set(if ipv6 { 6 } else { 9 }, &[TCP]);
        for (address, at_v4, at_v6) in [(source, 12, 8), (destination, 16, 24)] {
            match address {
                Some(IpAddr::V4(v4)) if !ipv6 => network.set(at_v4, &v4.octets()),
                Some(IpAddr::V6(v6)) if ipv6 => network.set(at_v6, &v6.octets()),
                _ => {}
            }
        }
        let mut transport = Image::UNKNOWN;
        for (port, at) in [(source_port, 0), (destination_port, 2)] {
            if let Some(port) = port {
                transport.set(at, &port.to_be_bytes());
            }
        }
        Self { stage, ipv6, network, transport, tap: of.tap, source_port, destination_port }
    }

    /// Whether the packet passes `hook` of a chain of `family` (NFPROTO_*).
    pub fn passes(&self, family: u8, hook: u32) -> bool {
        let out = self.stage != Stage::Reply;
        match i32::from(family) {
            libc::NFPROTO_IPV4 if self.ipv6 => false,
            libc::NFPROTO_IPV6 if !self.ipv6 => false,
            libc::NFPROTO_INET | libc::NFPROTO_IPV4 | libc::NFPROTO_IPV6 => match hook {
                NF_INET_LOCAL_OUT | NF_INET_POST_ROUTING => out,
                NF_INET_PRE_ROUTING | NF_INET_LOCAL_IN | NF_INET_INGRESS => !out,
                _ => false,
            },
            libc::NFPROTO_NETDEV => hook == if out { NF_NETDEV_EGRESS } else { NF_NETDEV_INGRESS },
            _ => false,
        }
    }

    pub fn ethertype(&self) -> u16 {
        if self.ipv6 { ETH_P_IPV6 } else { ETH_P_IP }
    }

    pub fn nfproto(&self) -> u8 {
        let family = if self.ipv6 { libc::NFPROTO_IPV6 } else { libc::NFPROTO_IPV4 };
        u8::try_from(family).unwrap_or(0)
    }

    pub fn l4proto(&self) -> u8 {
        TCP
    }

    /// A bit set of conntrack's, as both nftables and xt_conntrack have it.
    pub fn conntrack_state(&self) -> u32 {
        if self.stage == Stage::First { NEW } else { ESTABLISHED }
    }

    /// RTN_*: what the tables of local addresses say. The workspace's own address is the local one of the two.
    pub fn address_type(&self, of_source: bool) -> u8 {
        if of_source == (self.stage != Stage::Reply) { libc::RTN_LOCAL } else { libc::RTN_UNICAST }
    }

    pub fn input(&self) -> Option<Device<'a>> {
        (self.stage == Stage::Reply).then_some(self.tap)
    }

    pub fn output(&self) -> Option<Device<'a>> {
        (self.stage != Stage::Reply).then_some(self.tap)
    }
}
