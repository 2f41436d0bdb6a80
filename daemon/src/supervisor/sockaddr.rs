//! A socket address as a process passes it: bytes, looked at once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// sizeof(struct sockaddr_storage): the kernel refuses more with EINVAL.
pub const MAX_LENGTH: usize = 128;

const V4_LENGTH: usize = 16;
/// Without the scope id, which the kernel does not require (SIN6_LEN_RFC2133).
const V6_LENGTH: usize = 24;
const V6_LENGTH_WITH_SCOPE: usize = 28;

/// The supervisor's own copy of what the tracee passed. Never read again from the tracee.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RawAddress {
    bytes: [u8; MAX_LENGTH],
    length: usize,
}

/// What the bytes mean to an IP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    Ip(SocketAddr),
    /// AF_UNSPEC: connect dissolves the association, bind takes it as AF_INET.
    Unspecified,
    /// Another family or too short: only the kernel knows the right errno.
    Other,
}

impl RawAddress {
    /// `bytes` must not exceed [`MAX_LENGTH`]; what does is cut off.
    pub fn new(bytes: &[u8]) -> Self {
        let length = bytes.len().min(MAX_LENGTH);
        let mut copy = [0; MAX_LENGTH];
        for (to, from) in copy.iter_mut().zip(bytes) {
            *to = *from;
        }
        Self { bytes: copy, length }
    }

    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&self.bytes)
    }

    pub fn meaning(&self) -> Meaning {
        let Some(family) = self.family() else { return Meaning::Other };
        match family {
            libc::AF_UNSPEC => Meaning::Unspecified,
            libc::AF_INET if self.length >= V4_LENGTH => Meaning::Ip(SocketAddr::V4(self.v4())),
            libc::AF_INET6 if self.length >= V6_LENGTH => Meaning::Ip(SocketAddr::V6(self.v6())),
            _ => Meaning::Other,
        }
    }

    fn family(&self) -> Option<i32> {
        self.bytes().first_chunk().map(|family| i32::from(u16::from_ne_bytes(*family)))
    }

    /// The port bind(2) would read: at the same place for AF_INET, AF_INET6 and AF_UNSPEC taken as AF_INET.
    pub fn port(&self) -> u16 {
        u16::from_be_bytes(self.array(2))
    }

    /// What bind(2) looks at before the port, with any port: the length and the family, the whole of an IPv4 address, and
    /// whether one of IPv6 is multicast.
    pub fn before_port(mut self) -> Self {
        const MULTICAST: u8 = 0xff;
        let end =
            if self.family() == Some(libc::AF_INET6) && self.bytes.get(8) != Some(&MULTICAST) { MAX_LENGTH } else { 4 };
        if let Some(rest) = self.bytes.get_mut(2..end) {
            rest.fill(0);
        }
        self
    }

    fn v4(&self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::from(self.array::<4>(4)), self.port())
    }

    fn v6(&self) -> SocketAddrV6 {
        let scope = if self.length >= V6_LENGTH_WITH_SCOPE { u32::from_ne_bytes(self.array(24)) } else { 0 };
        let flow = u32::from_ne_bytes(self.array(4));
        SocketAddrV6::new(Ipv6Addr::from(self.array::<16>(8)), self.port(), flow, scope)
    }

    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        self.bytes.get(at..).and_then(|tail| tail.first_chunk()).copied().unwrap_or([0; N])
    }
}

impl From<SocketAddr> for RawAddress {
    fn from(address: SocketAddr) -> Self {
        let mut bytes = Vec::with_capacity(V6_LENGTH_WITH_SCOPE);
        let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        bytes.extend(u16::try_from(family).unwrap_or(0).to_ne_bytes());
        bytes.extend(address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                bytes.extend(v4.ip().octets());
                bytes.extend([0; 8]);
            }
            SocketAddr::V6(v6) => {
                bytes.extend(v6.flowinfo().to_ne_bytes());
                bytes.extend(v6.ip().octets());
                bytes.extend(v6.scope_id().to_ne_bytes());
            }
        }
        Self::new(&bytes)
    }
}

/// The same destination in the form a socket of `domain` takes: IPv4 as ::ffff:a.b.c.d for an IPv6 socket.
pub fn for_domain(address: SocketAddr, ipv6_socket: bool) -> SocketAddr {
    match (address.ip(), ipv6_socket) {
        (IpAddr::V4(v4), true) => SocketAddr::new(IpAddr::V6(v4.to_ipv6_mapped()), address.port()),
        _ => address,
    }
}

impl std::fmt::Debug for RawAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.meaning() {
            Meaning::Ip(address) => write!(f, "{address}"),
            other => write!(f, "{other:?}, {} bytes", self.length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_bytes() {
        for text in ["192.0.2.1:80", "[2001:db8::1]:443", "[::ffff:192.0.2.1]:80"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(RawAddress::from(address).meaning(), Meaning::Ip(address));
        }
        let scoped: SocketAddr = "[fe80::1%7]:80".parse().unwrap();
        assert_eq!(RawAddress::from(scoped).meaning(), Meaning::Ip(scoped));
    }

    #[test]
    fn odd_bytes() {
        let v4 = RawAddress::from("192.0.2.1:80".parse::<SocketAddr>().unwrap());
        let v6 = RawAddress::from("[fe80::1%7]:80".parse::<SocketAddr>().unwrap());
        let cases: [(&str, &[u8], Meaning); 7] = [
            ("empty", &[], Meaning::Other),
            ("one byte", &[2], Meaning::Other),
            ("unspec", &[0, 0], Meaning::Unspecified),
            ("unix", &[1, 0, b'/'], Meaning::Other),
            ("v4 one short", &v4.bytes()[..15], Meaning::Other),
            ("v6 one short", &v6.bytes()[..23], Meaning::Other),
            ("v6 without scope", &v6.bytes()[..24], Meaning::Ip("[fe80::1]:80".parse().unwrap())),
        ];
        for (name, bytes, want) in cases {
            assert_eq!(RawAddress::new(bytes).meaning(), want, "{name}");
        }
    }
}
