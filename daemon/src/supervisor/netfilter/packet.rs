//! The packets of a connection that does not exist yet, as far as their bits are known before it does.
//!
//! A rule is asked about three of them: the first one out (conntrack calls it new), any later one out, and any that
//! comes back. What a program or the network may still choose (its port, flags, marks of its own) is unknown, bit by
//! bit, and a rule that looks there may match or not.

use std::cmp::Ordering;
use std::net::{IpAddr, SocketAddr};

use super::ruleset::Base;

/// linux/netfilter.h
pub const NF_INET_PRE_ROUTING: u32 = 0;
pub const NF_INET_LOCAL_IN: u32 = 1;
pub const NF_INET_FORWARD: u32 = 2;
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
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
/// Room for the name of a device.
pub const IFNAMSIZ: usize = 16;
/// linux/netfilter_ipv4.h; IPv6 has the same. Where addresses are translated, of a reply back.
const NF_IP_PRI_NAT_DST: i32 = -100;
const NF_IP_PRI_NAT_SRC: i32 = 100;

/// A connection that does not exist yet.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// None: the kernel did not say which address it would use.
    pub source: Option<IpAddr>,
    /// Canonical: an IPv4 destination reached by an IPv6 socket is an IPv4 address here.
    pub destination: SocketAddr,
    /// IPPROTO_TCP or IPPROTO_UDP.
    pub l4proto: u8,
    pub way: Way<Device>,
}

/// How a connection goes through the namespace whose rules are asked.
#[derive(Clone, Copy, Debug)]
pub enum Way<D> {
    /// From a socket here, out by our TAP.
    ByTap(D),
    /// From a socket of a namespace nested in the workspace, out by its device.
    Nested(D),
    /// Forwarded: in by `input`, out by our TAP. `outer` is the address that masquerading would give it.
    Through { input: D, tap: D, outer: Option<IpAddr> },
    /// From anywhere to a socket here, in by our TAP.
    Inward(D),
    /// From a socket here to another one, over the loopback.
    Within(D),
}

impl Way<u32> {
    pub fn try_map<E>(self, device: impl Fn(u32) -> Result<Device, E>) -> Result<Way<Device>, E> {
        Ok(match self {
            Self::ByTap(tap) => Way::ByTap(device(tap)?),
            Self::Nested(out) => Way::Nested(device(out)?),
            Self::Inward(tap) => Way::Inward(device(tap)?),
            Self::Within(loopback) => Way::Within(device(loopback)?),
            Self::Through { input, tap, outer } => Way::Through { input: device(input)?, tap: device(tap)?, outer },
        })
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Device {
    pub index: u32,
    /// As the kernel compares it: with zeros behind it.
    pub name: [u8; IFNAMSIZ],
}

impl Device {
    /// Of a name that is too long to be one, nothing is kept.
    pub fn new(index: u32, name: &[u8]) -> Self {
        let mut bytes = [0; IFNAMSIZ];
        if let Some(place) = bytes.get_mut(..name.len()) {
            place.copy_from_slice(name);
        }
        Self { index, name: bytes }
    }
}

/// The device a hook names.
#[derive(Clone, Copy, Debug)]
pub enum Port {
    None,
    Is(Device),
    Unknown,
}

/// The near end's address where a hook sees the packet: before or after the translation of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Near {
    Source,
    Outer,
    Unknown,
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

/// One packet at one hook.
#[derive(Clone, Debug)]
pub struct Packet {
    pub stage: Stage,
    pub ipv6: bool,
    /// The IP header and the TCP or UDP header.
    pub network: Image<40>,
    pub transport: Image<20>,
    pub l4proto: u8,
    pub source_port: Option<u16>,
    pub destination_port: Option<u16>,
    pub input: Port,
    pub output: Port,
    near: Near,
    /// Whether the connection begins, and ends, at a socket of this namespace.
    begins_here: bool,
    ends_here: bool,
}

impl Packet {
    /// None: it does not come to that hook.
    pub fn at(base: &Base, stage: Stage, of: &Connection, masqueraded: bool) -> Option<Self> {
        let ipv6 = of.destination.is_ipv6();
        match i32::from(base.family) {
            libc::NFPROTO_IPV4 if ipv6 => return None,
            libc::NFPROTO_IPV6 if !ipv6 => return None,
            _ => {}
        }
        let (input, output) = ports(base, stage, of.way)?;
        let (near, here) = match of.way {
            Way::Through { outer, .. } if masqueraded => match near(base, stage) {
                Near::Source => (Near::Source, of.source),
                Near::Outer => (Near::Outer, outer),
                Near::Unknown => (Near::Unknown, None),
            },
            _ => (Near::Source, of.source),
        };
        let (there, port) = (Some(of.destination.ip()), Some(of.destination.port()));
        let (source, destination, source_port, destination_port) =
            if stage == Stage::Reply { (there, here, port, None) } else { (here, there, None, port) };
        let mut network = Image::UNKNOWN;
        network.set(if ipv6 { 6 } else { 9 }, &[of.l4proto]);
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
        let begins_here = !matches!(of.way, Way::Through { .. } | Way::Inward(_));
        let ends_here = matches!(of.way, Way::Inward(_) | Way::Within(_));
        Some(Self {
            stage,
            ipv6,
            network,
            transport,
            l4proto: of.l4proto,
            source_port,
            destination_port,
            input,
            output,
            near,
            begins_here,
            ends_here,
        })
    }

    pub fn ethertype(&self) -> u16 {
        if self.ipv6 { ETH_P_IPV6 } else { ETH_P_IP }
    }

    pub fn nfproto(&self) -> u8 {
        let family = if self.ipv6 { libc::NFPROTO_IPV6 } else { libc::NFPROTO_IPV4 };
        u8::try_from(family).unwrap_or(0)
    }

    /// A bit set of conntrack's, as both nftables and xt_conntrack have it.
    pub fn conntrack_state(&self) -> u32 {
        if self.stage == Stage::First { NEW } else { ESTABLISHED }
    }

    /// RTN_*: what the tables of local addresses say. None: it depends on a translation.
    pub fn address_type(&self, of_source: bool) -> Option<u8> {
        let is_near = of_source == (self.stage != Stage::Reply);
        match (is_near, self.near) {
            (false, _) if self.ends_here => Some(libc::RTN_LOCAL),
            (false, _) => Some(libc::RTN_UNICAST),
            (true, _) if self.begins_here => Some(libc::RTN_LOCAL),
            (true, Near::Source) => Some(libc::RTN_UNICAST),
            (true, Near::Outer) => Some(libc::RTN_LOCAL),
            (true, Near::Unknown) => None,
        }
    }
}

/// Input and output device at a hook; None: the packet does not come there.
fn ports(base: &Base, stage: Stage, way: Way<Device>) -> Option<(Port, Port)> {
    let out = stage != Stage::Reply;
    let forwarded = matches!(way, Way::Through { .. });
    let (inward, outward) = match way {
        Way::ByTap(device) | Way::Nested(device) | Way::Inward(device) | Way::Within(device) => (device, device),
        Way::Through { input, tap, .. } if out => (input, tap),
        Way::Through { input, tap, .. } => (tap, input),
    };
    let (enters, leaves) = match way {
        Way::ByTap(_) | Way::Nested(_) => (!out, out),
        Way::Inward(_) => (out, !out),
        Way::Through { .. } | Way::Within(_) => (true, true),
    };
    let (inward, outward) = (Port::Is(inward), Port::Is(outward));
    match (i32::from(base.family), base.hook) {
        (libc::NFPROTO_INET | libc::NFPROTO_IPV4 | libc::NFPROTO_IPV6, hook) => match hook {
            // A bridge and its port both have the hook.
            NF_INET_INGRESS if forwarded && out => Some((Port::Unknown, Port::None)),
            NF_INET_INGRESS | NF_INET_PRE_ROUTING if enters => Some((inward, Port::None)),
            NF_INET_LOCAL_IN if !forwarded && enters => Some((inward, Port::None)),
            NF_INET_FORWARD if forwarded => Some((inward, outward)),
            NF_INET_LOCAL_OUT if !forwarded && leaves => Some((Port::None, outward)),
            NF_INET_POST_ROUTING if forwarded => Some((inward, outward)),
            NF_INET_POST_ROUTING if leaves => Some((Port::None, outward)),
            _ => None,
        },
        (libc::NFPROTO_NETDEV, NF_NETDEV_INGRESS) if forwarded && out => Some((Port::Unknown, Port::None)),
        (libc::NFPROTO_NETDEV, NF_NETDEV_INGRESS) if enters => Some((inward, Port::None)),
        (libc::NFPROTO_NETDEV, NF_NETDEV_EGRESS) if forwarded && !out => Some((Port::None, Port::Unknown)),
        (libc::NFPROTO_NETDEV, NF_NETDEV_EGRESS) if leaves => Some((Port::None, outward)),
        // Between a bridge's port and the bridge, which need not be there: whatever is known of them is left out.
        (libc::NFPROTO_BRIDGE, _) if forwarded => Some((Port::Unknown, Port::Unknown)),
        _ => None,
    }
}

/// Of a masqueraded connection. Address translation has its place among the hooks of its own, whatever priorities the
/// chains have that decide about it.
fn near(base: &Base, stage: Stage) -> Near {
    let after = |translation: i32| match base.priority.cmp(&translation) {
        // To the chains that decide about it, the packet is as it came.
        _ if base.nat => Some(false),
        Ordering::Less => Some(false),
        Ordering::Greater => Some(true),
        Ordering::Equal => None,
    };
    let translated = match (i32::from(base.family), base.hook, stage) {
        (libc::NFPROTO_BRIDGE, ..) => None,
        (libc::NFPROTO_NETDEV, NF_NETDEV_EGRESS, Stage::Reply) => Some(true),
        (libc::NFPROTO_NETDEV, NF_NETDEV_INGRESS, _) => Some(false),
        (libc::NFPROTO_NETDEV, ..) => Some(true),
        (_, NF_INET_INGRESS, _) => Some(false),
        (_, NF_INET_PRE_ROUTING, Stage::Reply) => after(NF_IP_PRI_NAT_DST),
        (_, NF_INET_POST_ROUTING, Stage::First | Stage::Later) => after(NF_IP_PRI_NAT_SRC),
        (_, _, Stage::Reply) => Some(true),
        _ => Some(false),
    };
    // Out, the translation gives the outer address; back, it takes it away.
    match translated {
        Some(translated) if translated == (stage != Stage::Reply) => Near::Outer,
        Some(_) => Near::Source,
        None => Near::Unknown,
    }
}
