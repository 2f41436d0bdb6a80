//! What `-p/--publish` says, and the host's sockets that follow from it.

pub mod group;
mod listen;
mod owner;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use sidestep_forwarder::policy::Transport;
use sidestep_forwarder::ports::Publication;
use thiserror::Error;

pub use listen::{Sharing, is_free, listen};

/// `[IP:]PORT[-PORT]:[IP:]PORT[-PORT][/tcp|udp]`: ports of the host and where they lead inside, as docker and
/// RootlessKit write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    transport: Transport,
    host: Option<IpAddr>,
    host_ports: RangeInclusive<u16>,
    guest: Option<IpAddr>,
    guest_ports: RangeInclusive<u16>,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum SpecError {
    #[error("not [IP:]PORT[-PORT]:PORT[-PORT][/tcp|udp], such as 8080:80 or 127.0.0.1:5353:53/udp")]
    Shape,
    #[error("{0} is no port from 1 to 65535, nor a range of them")]
    Port(String),
    #[error("{0} is no IP address (IPv6 goes in brackets)")]
    Address(String),
    #[error("an IPv6 address is written in brackets, as in [::1]:8080:80")]
    Brackets,
    #[error("{0} is no address at which something inside could listen")]
    Guest(IpAddr),
    #[error("UDP cannot be led to the loopback inside")]
    Loopback,
    #[error("{0} ports outside and {1} inside: both ranges need the same length")]
    Lengths(usize, usize),
}

impl Spec {
    /// One for each port.
    pub fn publications(&self) -> impl Iterator<Item = Publication> + use<> {
        let (transport, host, guest) = (self.transport, self.host, self.guest);
        let pairs = self.host_ports.clone().zip(self.guest_ports.clone());
        pairs.map(move |(host_port, guest_port)| Publication { transport, host, host_port, guest, guest_port })
    }
}

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (rest, transport) = match text.rsplit_once('/') {
            Some((rest, "tcp")) => (rest, Transport::Tcp),
            Some((rest, "udp")) => (rest, Transport::Udp),
            Some(_) => return Err(SpecError::Shape),
            None => (text, Transport::Tcp),
        };
        let (host, host_ports, rest) = side(rest)?;
        let (guest, guest_ports, rest) = side(rest.ok_or(SpecError::Shape)?)?;
        if rest.is_some() {
            return Err(SpecError::Shape);
        }
        if let Some(guest) = guest.filter(|guest| guest.is_unspecified() || guest.is_multicast()) {
            return Err(SpecError::Guest(guest));
        }
        if transport == Transport::Udp && guest.is_some_and(|guest| guest.is_loopback()) {
            return Err(SpecError::Loopback);
        }
        let (outside, inside) = (host_ports.len(), guest_ports.len());
        if outside != inside {
            return Err(SpecError::Lengths(outside, inside));
        }
        Ok(Self { transport, host, host_ports, guest, guest_ports })
    }
}

/// `[IP:]PORT[-PORT]`, and what follows its colon.
type Side<'a> = (Option<IpAddr>, RangeInclusive<u16>, Option<&'a str>);

fn side(text: &str) -> Result<Side<'_>, SpecError> {
    let (address, rest) = if let Some(bracketed) = text.strip_prefix('[') {
        let (address, rest) = bracketed.split_once("]:").ok_or(SpecError::Shape)?;
        let address: Ipv6Addr = address.parse().map_err(|_| SpecError::Address(address.to_owned()))?;
        (Some(IpAddr::V6(address).to_canonical()), rest)
    } else {
        match text.split_once(':') {
            Some((address, rest)) if address.contains('.') => {
                let address: Ipv4Addr = address.parse().map_err(|_| SpecError::Address(address.to_owned()))?;
                (Some(IpAddr::V4(address)), rest)
            }
            _ => (None, text),
        }
    };
    let (range, rest) = match rest.split_once(':') {
        Some((range, rest)) => (range, Some(rest)),
        None => (rest, None),
    };
    if rest.is_some_and(|rest| rest.starts_with(':')) {
        return Err(SpecError::Brackets);
    }
    Ok((address, ports(range)?, rest))
}

fn ports(text: &str) -> Result<RangeInclusive<u16>, SpecError> {
    if text.is_empty() {
        return Err(SpecError::Shape);
    }
    let wrong = || SpecError::Port(text.to_owned());
    let number = |text: &str| text.parse::<u16>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first).ok_or_else(wrong)?, number(last).ok_or_else(wrong)?);
    if first == 0 || first > last { Err(wrong()) } else { Ok(first..=last) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_published() {
        let v6 = IpAddr::from(Ipv6Addr::LOCALHOST);
        let v4 = IpAddr::from(Ipv4Addr::LOCALHOST);
        let cases = [
            ("8080:80", (Transport::Tcp, None, 8080..=8080, None, 80..=80)),
            ("8080:80/udp", (Transport::Udp, None, 8080..=8080, None, 80..=80)),
            ("127.0.0.1:8080:80/tcp", (Transport::Tcp, Some(v4), 8080..=8080, None, 80..=80)),
            ("[::1]:1-3:4-6", (Transport::Tcp, Some(v6), 1..=3, None, 4..=6)),
            ("8080:127.0.0.1:80", (Transport::Tcp, None, 8080..=8080, Some(v4), 80..=80)),
            ("127.0.0.1:1:[::1]:2", (Transport::Tcp, Some(v4), 1..=1, Some(v6), 2..=2)),
        ];
        for (text, (transport, host, host_ports, guest, guest_ports)) in cases {
            assert_eq!(text.parse(), Ok(Spec { transport, host, host_ports, guest, guest_ports }), "{text}");
        }
        let range: Vec<_> = "1-3:4-6".parse::<Spec>().unwrap().publications().collect();
        assert_eq!(range.iter().map(|p| (p.host_port, p.guest_port)).collect::<Vec<_>>(), [(1, 4), (2, 5), (3, 6)]);
    }

    #[test]
    fn what_cannot() {
        let port = |text: &str| SpecError::Port(text.into());
        let cases = [
            ("8080", SpecError::Shape),
            ("8080:80:90", SpecError::Shape),
            ("8080:80/sctp", SpecError::Shape),
            ("", SpecError::Shape),
            ("8080:", SpecError::Shape),
            ("127.0.0.1::80", SpecError::Shape),
            ("0:80", port("0")),
            ("80:65536", port("65536")),
            ("9-8:1-2", port("9-8")),
            ("+1:1", port("+1")),
            ("1-3:1-2", SpecError::Lengths(3, 2)),
            ("1.2.3:1:1", SpecError::Address("1.2.3".into())),
            ("::1:80:80", SpecError::Brackets),
            ("2001:db8::1:80:80", SpecError::Brackets),
            ("80:::1:80", SpecError::Brackets),
            ("[::g]:80:80", SpecError::Address("::g".into())),
            ("53:127.0.0.1:53/udp", SpecError::Loopback),
            ("80:0.0.0.0:80", SpecError::Guest(Ipv4Addr::UNSPECIFIED.into())),
        ];
        for (text, want) in cases {
            assert_eq!(text.parse::<Spec>(), Err(want), "{text}");
        }
    }
}
