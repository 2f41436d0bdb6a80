//! One egress rule as a person writes it: `CIDR[:PORT[-PORT]][/tcp|udp]`, or a keyword in the CIDR's place.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Where clouds hand out credentials to whoever asks from the machine. Link-local addresses of IPv6 (OpenStack has one)
/// are out of reach in any case.
const METADATA: [IpAddr; 11] = [
    // EC2, GCE, Azure, OpenStack and most others.
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    // EC2 and GCE over IPv6.
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    // ECS tasks; EKS pods, over both.
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    // Alibaba Cloud, Oracle Cloud Classic.
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    // Scaleway, over both.
    IpAddr::V4(Ipv4Addr::new(169, 254, 42, 42)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42)),
    // Azure's WireServer, which configures machines.
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
];

/// What is asked to leave. A ping has no port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Transport {
    Tcp,
    Udp,
    Icmp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    Allow,
    Deny,
}

/// An action and what it applies to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    pub action: Action,
    pub matches: Match,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Match {
    target: Target,
    /// None: every port, and what has none.
    ports: Option<RangeInclusive<u16>>,
    /// None: every transport that fits `ports`.
    transport: Option<Transport>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Target {
    Net(IpNet),
    Metadata,
    /// The host's own addresses, at the time of asking.
    Host,
}

/// Why a rule cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    #[error("{0:?} is no address, CIDR, metadata or host; with a port, IPv6 goes in brackets: [2001:db8::/32]:443")]
    Target(String),
    #[error("{0} has bits set beyond its prefix; write {1}")]
    HostBits(String, IpNet),
    #[error("{0:?} is no port or range of ports, as in 443 or 8000-8999")]
    Ports(String),
}

impl Match {
    /// `is_own` tells whether an address is one of the host's; it is asked only where a rule needs it.
    pub fn applies(&self, addr: IpAddr, port: u16, transport: Transport, is_own: impl FnOnce() -> bool) -> bool {
        let has_port = transport != Transport::Icmp;
        self.transport.is_none_or(|only| only == transport)
            && self.ports.as_ref().is_none_or(|ports| has_port && ports.contains(&port))
            && match self.target {
                Target::Net(net) => net.contains(&addr),
                Target::Metadata => METADATA.contains(&addr),
                Target::Host => is_own(),
            }
    }

    pub fn could_apply_to(&self, transport: Transport) -> bool {
        self.transport.is_none_or(|only| only == transport)
    }
}

impl FromStr for Match {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (rest, transport) = match text.rsplit_once('/') {
            Some((rest, "tcp")) => (rest, Some(Transport::Tcp)),
            Some((rest, "udp")) => (rest, Some(Transport::Udp)),
            _ => (text, None),
        };
        let (target, ports) = split_ports(rest).ok_or_else(|| RuleError::Target(rest.to_owned()))?;
        Ok(Self { target: target.parse()?, ports: ports.map(parse_ports).transpose()?, transport })
    }
}

/// The target and its ports: after the bracket, after the only colon, or nowhere (IPv6 without brackets).
fn split_ports(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(bracketed) = text.strip_prefix('[') {
        let (target, rest) = bracketed.split_once(']')?;
        return match rest.strip_prefix(':') {
            Some(ports) => Some((target, Some(ports))),
            None => rest.is_empty().then_some((target, None)),
        };
    }
    match text.split_once(':') {
        Some((target, ports)) if !ports.contains(':') => Some((target, Some(ports))),
        _ => Some((text, None)),
    }
}

fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, RuleError> {
    let wrong = || RuleError::Ports(text.to_owned());
    let number = |text: &str| text.parse::<u16>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first).ok_or_else(wrong)?, number(last).ok_or_else(wrong)?);
    if first == 0 || first > last { Err(wrong()) } else { Ok(first..=last) }
}

impl FromStr for Target {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        match text {
            "metadata" => return Ok(Self::Metadata),
            "host" => return Ok(Self::Host),
            _ => {}
        }
        if let Ok(addr) = text.parse::<IpAddr>() {
            return Ok(Self::Net(addr.to_canonical().into()));
        }
        let net: IpNet = text.parse().map_err(|_| RuleError::Target(text.to_owned()))?;
        if net.trunc() == net { Ok(Self::Net(net)) } else { Err(RuleError::HostBits(text.to_owned(), net.trunc())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rule_applies_to() {
        use Transport::{Icmp, Tcp, Udp};
        let cases = [
            ("192.0.2.0/24", "192.0.2.9", 80, Tcp, true),
            ("192.0.2.0/24", "192.0.2.9", 0, Icmp, true),
            ("192.0.2.0/24", "192.0.3.9", 80, Tcp, false),
            ("192.0.2.9", "192.0.2.9", 80, Udp, true),
            ("192.0.2.9:80", "192.0.2.9", 80, Udp, true),
            ("192.0.2.9:80", "192.0.2.9", 81, Udp, false),
            ("192.0.2.9:80", "192.0.2.9", 80, Icmp, false),
            ("192.0.2.9:80-90/tcp", "192.0.2.9", 90, Tcp, true),
            ("192.0.2.9:80-90/tcp", "192.0.2.9", 90, Udp, false),
            ("192.0.2.0/24/udp", "192.0.2.9", 90, Udp, true),
            ("192.0.2.0/24/udp", "192.0.2.9", 0, Icmp, false),
            ("2001:db8::/32", "2001:db8::7", 443, Tcp, true),
            ("2001:db8::7", "2001:db8::7", 443, Tcp, true),
            ("[2001:db8::/32]:443/tcp", "2001:db8::7", 443, Tcp, true),
            ("[2001:db8::/32]:443/tcp", "2001:db8::7", 444, Tcp, false),
            ("[2001:db8::7]", "2001:db8::7", 1, Udp, true),
            ("0.0.0.0/0", "192.0.2.1", 1, Tcp, true),
            ("0.0.0.0/0", "2001:db8::7", 1, Tcp, false),
            ("::/0", "2001:db8::7", 1, Tcp, true),
            ("::ffff:192.0.2.1", "192.0.2.1", 1, Tcp, true),
            ("metadata", "169.254.169.254", 80, Tcp, true),
            ("metadata:80/tcp", "fd00:ec2::254", 80, Tcp, true),
            ("metadata", "100.100.100.200", 53, Udp, true),
            ("metadata", "fd20:ce::254", 80, Tcp, true),
            ("metadata", "fd00:ec2::23", 80, Tcp, true),
            ("metadata", "fd00:42::42", 80, Tcp, true),
            ("metadata", "169.254.169.253", 80, Tcp, false),
            ("host", "198.51.100.1", 22, Tcp, true),
            ("host", "198.51.100.2", 22, Tcp, false),
            ("host:22", "198.51.100.1", 23, Tcp, false),
        ];
        for (rule, addr, port, transport, want) in cases {
            let matches: Match = rule.parse().unwrap();
            let addr: IpAddr = addr.parse().unwrap();
            let is_own = || addr.to_string() == "198.51.100.1";
            assert_eq!(matches.applies(addr, port, transport, is_own), want, "{rule} {addr} {port} {transport:?}");
        }
    }

    #[test]
    fn what_is_no_rule() {
        for text in [
            "",
            ":80",
            "/tcp",
            "x",
            "192.0.2.0/33",
            "192.0.2.1/24",
            "192.0.2.1:0",
            "192.0.2.1:90-80",
            "192.0.2.1:65536",
            "192.0.2.1:",
            "192.0.2.1/sctp",
            "[2001:db8::1",
            "[2001:db8::1]443",
            "2001:db8::1/129",
            "Host",
            "192.0.2.1:80-",
            "192.0.2.1:+80",
            "192.0.2.1 ",
        ] {
            assert!(text.parse::<Match>().is_err(), "{text:?}");
        }
        let error = "192.0.2.1/24".parse::<Match>().unwrap_err().to_string();
        assert_eq!(error, "192.0.2.1/24 has bits set beyond its prefix; write 192.0.2.0/24");
    }
}
