//! The egress policy: what a workspace may reach. One module for both paths, the TAP and the bypass, so that turning
//! the bypass on never widens anything. Pure: addresses in, a decision out.
//!
//! Without rules a workspace reaches everything the host reaches, except the host's loopback. The virtual gateway
//! stands for the host's loopback when `host_loopback` is set and for nothing otherwise.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::network::{Role, VirtualNetwork};

/// What the workspace may reach.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// `--host-loopback`: the gateway's address leads to the host's 127.0.0.1 and ::1.
    pub host_loopback: bool,
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

/// Why a destination is refused; the workspace sees an unreachable network in every case.
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
}

impl Policy {
    /// Decides about one destination as the workspace named it. A v4-mapped IPv6 address counts as the IPv4 one.
    pub fn egress(&self, network: &VirtualNetwork, destination: SocketAddr) -> Egress {
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
        match denied_everywhere(addr) {
            Some(denial) => Egress::Denied(denial),
            None => Egress::Host(SocketAddr::new(addr, destination.port())),
        }
    }
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
        VirtualNetwork {
            v4: Ipv4Subnet::DEFAULT,
            v6: Some(Ipv6Subnet::DEFAULT),
            mtu: 1500,
            guest_mac: [2; 6],
            gateway_mac: [4; 6],
        }
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
        ] {
            let destination = SocketAddr::new(addr.parse().unwrap(), 80);
            for host_loopback in [false, true] {
                let got = Policy { host_loopback }.egress(&network(), destination);
                assert_eq!(got, Egress::Denied(Denial::HostLoopback), "{addr} host_loopback={host_loopback}");
            }
        }
    }

    #[test]
    fn the_gateway_is_the_host_loopback_only_when_asked() {
        let open = Policy { host_loopback: true };
        let cases = [
            ("10.0.2.2:80", Egress::Denied(Denial::Gateway), "127.0.0.1:80"),
            ("[fd00::2]:80", Egress::Denied(Denial::Gateway), "[::1]:80"),
            ("[::ffff:10.0.2.2]:80", Egress::Denied(Denial::Gateway), "127.0.0.1:80"),
        ];
        for (destination, closed, host) in cases {
            let destination = destination.parse().unwrap();
            assert_eq!(Policy::default().egress(&network(), destination), closed);
            assert_eq!(open.egress(&network(), destination), Egress::Host(host.parse().unwrap()));
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
            assert_eq!(Policy::default().egress(&network(), destination.parse().unwrap()), want, "{destination}");
        }
    }
}
