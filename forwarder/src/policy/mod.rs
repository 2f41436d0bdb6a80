//! The egress policy: what a workspace may reach. One module for both paths, the TAP and the bypass, so that turning
//! the bypass on never widens anything. Pure: addresses in, a decision out; whether an address is the host's own is
//! asked through a function ([`is_own`]).
//!
//! Without rules a workspace reaches everything the host reaches, except the host's loopback. The virtual gateway
//! stands for the host's loopback when `host_loopback` is set and for nothing otherwise.
//!
//! Rules (`--deny`, `--allow`) are about what the host would be asked for, the first that applies decides, and none of
//! them opens what is closed without rules. The virtual resolver is not subject to them: it asks the host's resolvers.
#![forbid(unsafe_code)]

mod own_address;
mod rule;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::network::{Role, VirtualNetwork};

pub use own_address::{is_assigned, is_own};
pub use rule::{Action, Match, Rule, RuleError, Transport};

/// RFC 6052: IPv4 addresses as an IPv6-only network writes them. A network with a NAT64 leads there, so what is denied
/// in one spelling is denied in the other.
const NAT64_PREFIX: u128 = 0x0064_ff9b_0000_0000_0000_0000_0000_0000;

/// What the workspace may reach.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// `--host-loopback`: the gateway's address leads to the host's 127.0.0.1 and ::1.
    pub host_loopback: bool,
    /// `--deny` and `--allow`, in the order given.
    pub rules: Vec<Rule>,
}

/// What is asked for: a ping has port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// As the workspace named it.
    pub destination: SocketAddr,
    pub transport: Transport,
}

/// Where traffic for a destination goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// To this address, with the host's sockets.
    Host(SocketAddr),
    /// To the virtual resolver: only DNS answers there.
    Resolver,
    /// Nowhere.
    Denied(Denial),
}

/// Why a destination is refused. The workspace sees an unreachable host where a rule says so, otherwise an unreachable
/// network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// 127/8, ::1, and the unspecified addresses that the kernel takes for them.
    HostLoopback,
    /// The gateway's own address, without `--host-loopback`.
    Gateway,
    /// An address of the virtual subnet that nobody has, or the guest's own.
    Unassigned,
    /// Multicast or broadcast: nothing on the host side would answer for a workspace.
    Multicast,
    /// Link-local IPv6 without a meaning on the host's links.
    LinkLocal,
    /// A `--deny`.
    Rule,
}

impl Policy {
    /// Decides about one request. A v4-mapped IPv6 address counts as the IPv4 one. `is_own` tells whether an address is
    /// one of the host's.
    pub fn egress(&self, network: &VirtualNetwork, request: Request, is_own: impl Fn(IpAddr) -> bool) -> Egress {
        match self.without_rules(network, request.destination) {
            Egress::Host(to) if self.is_denied(to, request.transport, is_own) => Egress::Denied(Denial::Rule),
            egress => egress,
        }
    }

    /// Whether some destination could be denied by a rule, for this transport.
    pub fn restricts(&self, transport: Transport) -> bool {
        self.rules.iter().any(|rule| rule.action == Action::Deny && rule.matches.could_apply_to(transport))
    }

    fn without_rules(&self, network: &VirtualNetwork, destination: SocketAddr) -> Egress {
        let addr = destination.ip().to_canonical();
        match network.role(addr) {
            Some(Role::Gateway) if self.host_loopback => {
                let loopback = match addr {
                    IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                    IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
                };
                return Egress::Host(SocketAddr::new(loopback, destination.port()));
            }
            Some(Role::Gateway) => return Egress::Denied(Denial::Gateway),
            Some(Role::Resolver) => return Egress::Resolver,
            Some(Role::Guest | Role::Unassigned) => return Egress::Denied(Denial::Unassigned),
            None => {}
        }
        let spellings = [Some(addr), behind_nat64(addr).map(IpAddr::V4)];
        match spellings.into_iter().flatten().find_map(denied_everywhere) {
            Some(denial) => Egress::Denied(denial),
            None => Egress::Host(SocketAddr::new(addr, destination.port())),
        }
    }

    /// The first rule that applies decides; of an address behind a NAT64, both spellings are looked at.
    fn is_denied(&self, to: SocketAddr, transport: Transport, is_own: impl Fn(IpAddr) -> bool) -> bool {
        let denied = |addr: IpAddr| {
            let applies = |rule: &&Rule| rule.matches.applies(addr, to.port(), transport, || is_own(addr));
            self.rules.iter().find(applies).is_some_and(|rule| rule.action == Action::Deny)
        };
        denied(to.ip()) || behind_nat64(to.ip()).is_some_and(|v4| denied(IpAddr::V4(v4)))
    }
}

fn behind_nat64(addr: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(v6) = addr else { return None };
    let [.., a, b, c, d] = v6.octets();
    (v6.to_bits() >> 32 == NAT64_PREFIX >> 32).then_some(Ipv4Addr::new(a, b, c, d))
}

fn denied_everywhere(addr: IpAddr) -> Option<Denial> {
    if addr.is_loopback() || addr.is_unspecified() {
        return Some(Denial::HostLoopback);
    }
    if addr.is_multicast() || addr == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Some(Denial::Multicast);
    }
    match addr {
        // 0.0.0.0/8 is "this network" (RFC 791): Linux sends some of it to itself.
        IpAddr::V4(a) if a.octets()[0] == 0 => Some(Denial::HostLoopback),
        // ::a.b.c.d (deprecated v4-compatible) has no meaning on any link; ::127.0.0.1 least of all.
        IpAddr::V6(a) if a.to_bits() >> 32 == 0 => Some(Denial::HostLoopback),
        IpAddr::V6(a) if a.is_unicast_link_local() => Some(Denial::LinkLocal),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Ipv4Subnet, Ipv6Subnet};

    fn network() -> VirtualNetwork {
        VirtualNetwork::new(Ipv4Subnet::DEFAULT, Some(Ipv6Subnet::DEFAULT), 1500)
    }

    fn tcp(policy: &Policy, destination: SocketAddr) -> Egress {
        policy.egress(&network(), Request { destination, transport: Transport::Tcp }, |_| false)
    }

    #[test]
    fn every_spelling_of_the_host_loopback_is_denied() {
        for addr in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.0.0.1",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:0.0.0.0",
            "::127.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::",
        ] {
            let destination = SocketAddr::new(addr.parse().unwrap(), 80);
            for host_loopback in [false, true] {
                let got = tcp(&Policy { host_loopback, ..Policy::default() }, destination);
                assert_eq!(got, Egress::Denied(Denial::HostLoopback), "{addr} host_loopback={host_loopback}");
            }
        }
    }

    #[test]
    fn the_gateway_is_the_host_loopback_only_when_asked() {
        let open = Policy { host_loopback: true, ..Policy::default() };
        let cases = [
            ("10.0.2.2:80", Egress::Denied(Denial::Gateway), "127.0.0.1:80"),
            ("[fd00::2]:80", Egress::Denied(Denial::Gateway), "[::1]:80"),
            ("[::ffff:10.0.2.2]:80", Egress::Denied(Denial::Gateway), "127.0.0.1:80"),
        ];
        for (destination, closed, host) in cases {
            let destination = destination.parse().unwrap();
            assert_eq!(tcp(&Policy::default(), destination), closed);
            assert_eq!(tcp(&open, destination), Egress::Host(host.parse().unwrap()));
        }
    }

    #[test]
    fn others() {
        let cases = [
            ("192.0.2.1:443", Egress::Host("192.0.2.1:443".parse().unwrap())),
            ("[2001:db8::1]:443", Egress::Host("[2001:db8::1]:443".parse().unwrap())),
            ("[::ffff:192.0.2.1]:443", Egress::Host("192.0.2.1:443".parse().unwrap())),
            ("10.0.2.3:53", Egress::Resolver),
            ("10.0.2.9:53", Egress::Denied(Denial::Unassigned)),
            ("224.0.0.1:5353", Egress::Denied(Denial::Multicast)),
            ("255.255.255.255:67", Egress::Denied(Denial::Multicast)),
            ("[ff02::1]:5353", Egress::Denied(Denial::Multicast)),
            ("[fe80::1]:80", Egress::Denied(Denial::LinkLocal)),
        ];
        for (destination, want) in cases {
            assert_eq!(tcp(&Policy::default(), destination.parse().unwrap()), want, "{destination}");
        }
    }

    fn rules(rules: &[(Action, &str)]) -> Policy {
        let rule = |&(action, text): &(Action, &str)| Rule { action, matches: text.parse().unwrap() };
        Policy { host_loopback: true, rules: rules.iter().map(rule).collect() }
    }

    #[test]
    fn the_first_rule_that_applies_decides() {
        use Action::{Allow, Deny};
        let policy = rules(&[
            (Allow, "192.0.2.7:443/tcp"),
            (Deny, "192.0.2.0/24"),
            (Deny, "metadata"),
            (Deny, "host:22"),
            (Allow, "127.0.0.0/8"),
        ]);
        let own: IpAddr = "198.51.100.1".parse().unwrap();
        let cases = [
            ("192.0.2.7:443", Transport::Tcp, false),
            ("192.0.2.7:443", Transport::Udp, true),
            ("192.0.2.8:443", Transport::Tcp, true),
            ("[::ffff:192.0.2.8]:443", Transport::Tcp, true),
            ("[64:ff9b::192.0.2.8]:443", Transport::Tcp, true),
            ("[64:ff9b::192.0.2.7]:443", Transport::Tcp, false),
            ("[64:ff9b::192.0.3.8]:443", Transport::Tcp, false),
            ("169.254.169.254:80", Transport::Tcp, true),
            ("198.51.100.1:22", Transport::Tcp, true),
            ("198.51.100.1:80", Transport::Tcp, false),
            ("198.51.100.2:22", Transport::Tcp, false),
        ];
        for (destination, transport, denied) in cases {
            let request = Request { destination: destination.parse().unwrap(), transport };
            let got = policy.egress(&network(), request, |addr| addr == own);
            assert_eq!(got == Egress::Denied(Denial::Rule), denied, "{destination} {transport:?}: {got:?}");
        }
        // No rule opens what is closed without rules; those about the host's loopback see where the gateway leads.
        let loopback = "127.0.0.1:80".parse().unwrap();
        assert_eq!(tcp(&policy, loopback), Egress::Denied(Denial::HostLoopback));
        let closed = rules(&[(Deny, "127.0.0.1:22")]);
        assert_eq!(tcp(&closed, "10.0.2.2:22".parse().unwrap()), Egress::Denied(Denial::Rule));
        assert_eq!(tcp(&closed, "10.0.2.2:80".parse().unwrap()), Egress::Host(loopback));
    }

    #[test]
    fn what_restricts_a_transport() {
        use Action::{Allow, Deny};
        let cases = [
            (&[][..], false),
            (&[(Allow, "0.0.0.0/0")], false),
            (&[(Deny, "192.0.2.1:1/tcp")], false),
            (&[(Deny, "192.0.2.1:1")], true),
            (&[(Deny, "metadata/udp")], true),
        ];
        for (list, want) in cases {
            assert_eq!(rules(list).restricts(Transport::Udp), want, "{list:?}");
        }
    }
}
