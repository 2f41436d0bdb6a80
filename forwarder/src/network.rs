//! The virtual network one workspace sees on its TAP: addresses, MTU, hardware addresses.
//!
//! Everything that needs to agree on them takes them from here: the launcher configures the guest side, the forwarder
//! answers for the gateway and the resolver, the supervisor leaves every address of these subnets in place.
//! The offsets are slirp4netns's: gateway .2, resolver .3, guest .100, leases of DHCP from .15.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

const GATEWAY: u8 = 2;
const RESOLVER: u8 = 3;
const GUEST: u8 = 100;
const LEASES: RangeInclusive<u8> = 15..=30;

/// Largest MTU a TAP can carry here: an IPv4 packet's 65,535 bytes less the 14 of Ethernet, rounded down to 16.
pub const MAX_MTU: u16 = 65520;
/// Smallest MTU IPv6 may run over (RFC 8200, section 5).
pub const MIN_MTU: u16 = 1280;

pub type MacAddr = [u8; 6];

/// Addresses of the workspace's network, both ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualNetwork {
    pub v4: Ipv4Subnet,
    /// None: the workspace has no IPv6.
    pub v6: Option<Ipv6Subnet>,
    /// False (`--disable-dns`): the resolver's address is silent, and nobody is told of it.
    pub dns: bool,
    pub mtu: u16,
    pub guest_mac: MacAddr,
    pub gateway_mac: MacAddr,
}

/// What a destination inside the virtual network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Gateway,
    Resolver,
    Guest,
    /// In the subnet, but nobody's: unreachable.
    Unassigned,
}

/// An IPv4 subnet with room for the guest, /1 to /25.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv4Subnet {
    network: Ipv4Addr,
    prefix_len: u8,
}

/// An IPv6 subnet, always a /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6Subnet {
    network: Ipv6Addr,
    guest: u16,
}

/// Why a `--cidr` was refused; the texts are slirp4netns's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    #[error("invalid CIDR")]
    Syntax,
    #[error("CIDR needs to be a network address like {0}, not like {1}")]
    NotNetwork(String, String),
    #[error("prefix length needs to be 1-25")]
    Prefix,
}

impl Ipv4Subnet {
    /// 10.0.2.0/24, what slirp4netns uses.
    pub const DEFAULT: Self = Self { network: Ipv4Addr::new(10, 0, 2, 0), prefix_len: 24 };

    pub fn prefix_len(self) -> u8 {
        self.prefix_len
    }

    pub fn network(self) -> Ipv4Addr {
        self.network
    }

    pub fn gateway(self) -> Ipv4Addr {
        self.host(GATEWAY)
    }

    pub fn resolver(self) -> Ipv4Addr {
        self.host(RESOLVER)
    }

    pub fn guest(self) -> Ipv4Addr {
        self.host(GUEST)
    }

    /// The addresses that DHCP gives out.
    pub fn leases(self) -> impl Iterator<Item = Ipv4Addr> {
        LEASES.map(move |number| self.host(number))
    }

    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | !self.mask())
    }

    pub fn netmask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.mask())
    }

    pub fn contains(self, addr: Ipv4Addr) -> bool {
        addr.to_bits() & self.mask() == self.network.to_bits()
    }

    /// Whether it can be the address of something on the TAP.
    pub fn may_be_guest(self, addr: Ipv4Addr) -> bool {
        let taken = [self.network, self.gateway(), self.resolver(), self.broadcast()];
        self.contains(addr) && !taken.contains(&addr)
    }

    fn host(self, number: u8) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | u32::from(number))
    }

    fn mask(self) -> u32 {
        u32::MAX << (32 - u32::from(self.prefix_len))
    }
}

impl std::str::FromStr for Ipv4Subnet {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (addr, prefix) = text.split_once('/').ok_or(CidrError::Syntax)?;
        let addr: Ipv4Addr = addr.parse().map_err(|_| CidrError::Syntax)?;
        let prefix_len: u8 = prefix.parse().map_err(|_| CidrError::Syntax)?;
        if !(1..=25).contains(&prefix_len) {
            return Err(CidrError::Prefix);
        }
        let mask = u32::MAX << (32 - u32::from(prefix_len));
        let network = Ipv4Addr::from_bits(addr.to_bits() & mask);
        if network != addr {
            return Err(CidrError::NotNetwork(format!("{network}/{prefix_len}"), text.to_owned()));
        }
        Ok(Self { network, prefix_len })
    }
}

impl std::fmt::Display for Ipv4Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix_len)
    }
}

impl Ipv6Subnet {
    /// fd00::/64, what slirp4netns uses.
    pub const DEFAULT: Self = Self { network: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0), guest: GUEST as u16 };
    /// The same with the guest at fd00::100, as those who call slirp4netns write it.
    pub const SLIRP4NETNS: Self = Self { guest: 0x100, ..Self::DEFAULT };
    pub const PREFIX_LEN: u8 = 64;

    pub fn network(self) -> Ipv6Addr {
        self.network
    }

    pub fn gateway(self) -> Ipv6Addr {
        self.host(GATEWAY.into())
    }

    pub fn resolver(self) -> Ipv6Addr {
        self.host(RESOLVER.into())
    }

    pub fn guest(self) -> Ipv6Addr {
        self.host(self.guest)
    }

    pub fn contains(self, addr: Ipv6Addr) -> bool {
        addr.to_bits() >> 64 == self.network.to_bits() >> 64
    }

    /// `number` is written as it reads: guest 100 is fd00::64 in hexadecimal.
    fn host(self, number: u16) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.network.to_bits() | u128::from(number))
    }
}

impl VirtualNetwork {
    /// The hardware addresses follow from the IPv4 ones: the same network, the same addresses.
    pub fn new(v4: Ipv4Subnet, v6: Option<Ipv6Subnet>, mtu: u16) -> Self {
        Self { v4, v6, dns: true, mtu, guest_mac: mac(v4.guest()), gateway_mac: mac(v4.gateway()) }
    }

    /// Whether it can be the address of something on the TAP: the workspace, or a machine bridged to it.
    pub fn may_be_on_link(&self, addr: IpAddr) -> bool {
        match (addr, self.v6) {
            (IpAddr::V4(a), _) => self.v4.may_be_guest(a),
            (IpAddr::V6(a), Some(v6)) => {
                let taken = [v6.network(), v6.gateway(), v6.resolver()];
                a.is_unicast_link_local() || v6.contains(a) && !taken.contains(&a)
            }
            (IpAddr::V6(_), None) => false,
        }
    }

    /// Whose address this is, or None when it lies outside the virtual network.
    pub fn role(&self, addr: IpAddr) -> Option<Role> {
        let assigned = |gateway: bool, resolver: bool, guest: bool| {
            if gateway {
                Role::Gateway
            } else if resolver {
                Role::Resolver
            } else if guest {
                Role::Guest
            } else {
                Role::Unassigned
            }
        };
        match addr {
            IpAddr::V4(a) => self
                .v4
                .contains(a)
                .then(|| assigned(a == self.v4.gateway(), a == self.v4.resolver(), a == self.v4.guest())),
            IpAddr::V6(a) => match (a.to_ipv4_mapped(), self.v6) {
                (Some(mapped), _) => self.role(IpAddr::V4(mapped)),
                (None, Some(v6)) if v6.contains(a) => {
                    Some(assigned(a == v6.gateway(), a == v6.resolver(), a == v6.guest()))
                }
                _ => None,
            },
        }
    }
}

/// A locally administered address made from an IPv4 one, as slirp does.
fn mac(addr: Ipv4Addr) -> MacAddr {
    let [a, b, c, d] = addr.octets();
    [0x52, 0x55, a, b, c, d]
}

/// Six bytes in hexadecimal: of one device (the lowest bit of the first is for groups), and not all zero.
pub fn parse_mac(text: &str) -> Result<MacAddr, String> {
    let bytes: Option<Vec<_>> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok().filter(|_| byte.len() == 2 && !byte.starts_with('+')))
        .collect();
    let mac = bytes.and_then(|bytes| MacAddr::try_from(bytes).ok()).ok_or("six bytes, as 02:00:00:00:00:01")?;
    match mac {
        [first, ..] if first & 1 == 1 => Err("a group's address (the first byte is odd), not a device's".into()),
        [0, 0, 0, 0, 0, 0] => Err("no device's address".into()),
        _ => Ok(mac),
    }
}

/// A name the kernel takes (dev_valid_name): 1 to 15 bytes without slash, colon or space, and not . or ..
pub fn parse_ifname(text: &str) -> Result<String, String> {
    let valid = (1..=15).contains(&text.len())
        && !matches!(text, "." | ".." | "lo")
        && !text.contains(['/', ':', '%'])
        && text.chars().all(|c| c.is_ascii_graphic());
    if valid { Ok(text.to_owned()) } else { Err("1 to 15 letters, digits or signs other than / : %, not lo".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cidr_is_checked_as_slirp4netns_does() {
        let cases: [(&str, Result<&str, &str>); 7] = [
            ("10.0.2.0/24", Ok("10.0.2.100")),
            ("10.0.128.0/17", Ok("10.0.128.100")),
            ("10.0.2.100/24", Err("CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24")),
            ("10.0.2.0/26", Err("prefix length needs to be 1-25")),
            ("10.0.2.0/0", Err("prefix length needs to be 1-25")),
            ("10.0.2.0", Err("invalid CIDR")),
            ("foo/24", Err("invalid CIDR")),
        ];
        for (text, want) in cases {
            let got = text.parse::<Ipv4Subnet>().map(|s| s.guest().to_string()).map_err(|e| e.to_string());
            assert_eq!(got, want.map(str::to_owned).map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn hardware_addresses_of_devices() {
        let cases = [
            ("02:00:00:00:00:0a", Some([2, 0, 0, 0, 0, 10])),
            ("52:55:0A:00:02:64", Some([0x52, 0x55, 10, 0, 2, 100])),
            ("03:00:00:00:00:01", None),
            ("00:00:00:00:00:00", None),
            ("ff:ff:ff:ff:ff:ff", None),
            ("02:00:00:00:00", None),
            ("02:00:00:00:00:00:00", None),
            ("2:0:0:0:0:1", None),
            ("02:00:00:00:00:+1", None),
            ("02-00-00-00-00-01", None),
        ];
        for (text, want) in cases {
            assert_eq!(parse_mac(text).ok(), want, "{text}");
        }
    }

    #[test]
    fn names_of_devices() {
        for (name, valid) in [("tap0", true), ("a23456789012345", true), ("a234567890123456", false), ("a b", false)] {
            assert_eq!(parse_ifname(name).is_ok(), valid, "{name}");
        }
    }

    #[test]
    fn roles() {
        let network = VirtualNetwork::new(Ipv4Subnet::DEFAULT, Some(Ipv6Subnet::DEFAULT), 1500);
        let cases = [
            ("10.0.2.2", Some(Role::Gateway)),
            ("10.0.2.3", Some(Role::Resolver)),
            ("10.0.2.100", Some(Role::Guest)),
            ("10.0.2.7", Some(Role::Unassigned)),
            ("10.0.3.2", None),
            ("fd00::2", Some(Role::Gateway)),
            ("fd00::64", Some(Role::Guest)),
            ("fd00:0:0:1::2", None),
            ("::ffff:10.0.2.3", Some(Role::Resolver)),
        ];
        for (addr, want) in cases {
            assert_eq!(network.role(addr.parse().unwrap()), want, "{addr}");
            let may_be = matches!(want, Some(Role::Guest | Role::Unassigned));
            assert_eq!(network.may_be_on_link(addr.parse().unwrap()), may_be, "{addr}");
        }
        for (addr, want) in [("fe80::9", true), ("10.0.2.255", false), ("255.255.255.255", false), ("ff02::1", false)] {
            assert_eq!(network.may_be_on_link(addr.parse().unwrap()), want, "{addr}");
        }
    }
}
