//! resolv.conf(5): the host's, as far as the forwarder and the workspace use it, and the one written for the workspace.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use nix::net::if_::if_nametoindex;
use sidestep_forwarder::link::{RESOLVERS_MAX, SEARCH_MAX};
use sidestep_forwarder::network::VirtualNetwork;

pub const PATH: &str = "/etc/resolv.conf";

/// Of DNS.
const PORT: u16 = 53;
/// The longest name of DNS, with its dot at the end.
const NAME_MAX: usize = 254;

/// What a resolv.conf says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvConf {
    /// The host's resolvers, which the forwarder asks; loopback ones too, since it runs on the host.
    pub resolvers: Vec<SocketAddr>,
    /// Of the last `search` or `domain` line.
    pub search: Vec<String>,
    /// `search`, `domain`, `options` and `sortlist` lines as they are.
    kept: Vec<String>,
}

impl ResolvConf {
    /// Without a nameserver line, resolv.conf(5) says, the resolver is on the local machine.
    pub fn parse(text: &str) -> Self {
        let (mut resolvers, mut search, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for line in text.lines().map(str::trim) {
            let words: Vec<_> = line.split_whitespace().collect();
            match words[..] {
                ["nameserver", addr, ..] => resolvers.extend(resolver(addr)),
                ["search" | "domain", ref domains @ ..] => {
                    search = domains
                        .iter()
                        .filter(|domain| domain.len() <= NAME_MAX)
                        .map(|&domain| domain.to_owned())
                        .take(SEARCH_MAX)
                        .collect();
                    kept.push(line.to_owned());
                }
                ["options" | "sortlist", ..] => kept.push(line.to_owned()),
                _ => {}
            }
        }
        if resolvers.is_empty() {
            resolvers.push((Ipv4Addr::LOCALHOST, PORT).into());
        }
        resolvers.truncate(RESOLVERS_MAX);
        Self { resolvers, search, kept }
    }

    /// The workspace's file: the virtual resolver, and the host's search and options lines. Without that resolver
    /// (`--disable-dns`) the host's, as far as they are the same from inside.
    pub fn for_workspace(&self, network: &VirtualNetwork) -> String {
        let resolvers: Vec<IpAddr> = if network.dns {
            let v6 = network.v6.map(|v6| IpAddr::V6(v6.resolver()));
            [IpAddr::V4(network.v4.resolver())].into_iter().chain(v6).collect()
        } else {
            self.resolvers.iter().map(SocketAddr::ip).filter(|&addr| is_everywhere(addr)).collect()
        };
        let mut text = "# written by sidestep\n".to_owned();
        for line in resolvers.iter().map(|addr| format!("nameserver {addr}")).chain(self.kept.iter().cloned()) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{line}");
        }
        text
    }
}

/// A link-local address comes with the name of its link (RFC 4007 11).
fn resolver(text: &str) -> Option<SocketAddr> {
    let Some((addr, zone)) = text.split_once('%') else { return Some(SocketAddr::new(text.parse().ok()?, PORT)) };
    let scope = zone.parse().or_else(|_| if_nametoindex(zone)).ok()?;
    Some(SocketAddrV6::new(addr.parse::<Ipv6Addr>().ok()?, PORT, 0, scope).into())
}

fn is_everywhere(addr: IpAddr) -> bool {
    !addr.is_loopback() && !addr.is_unspecified() && !matches!(addr, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use sidestep_forwarder::network::{Ipv4Subnet, Ipv6Subnet};

    use super::*;

    #[test]
    fn resolvers_go_to_the_forwarder_and_the_rest_is_kept() {
        let cases = [
            (
                "# stub\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan example.org\n",
                &["127.0.0.53:53"][..],
                "options edns0 trust-ad\nsearch lan example.org\n",
            ),
            (
                " nameserver\t192.0.2.1 # one\nnameserver 2001:db8::1\nnameserver x\nnameserver fe80::1%no-such-if\n",
                &["192.0.2.1:53", "[2001:db8::1]:53"],
                "",
            ),
            ("nameserver fe80::1%lo\nnameserver fe80::2%7\n", &["[fe80::1%1]:53", "[fe80::2%7]:53"], ""),
            ("; nothing\nnameserver\n", &["127.0.0.1:53"], ""),
        ];
        let network = VirtualNetwork::new(Ipv4Subnet::DEFAULT, None, 1500);
        for (text, resolvers, kept) in cases {
            let parsed = ResolvConf::parse(text);
            let want: Vec<SocketAddr> = resolvers.iter().map(|a| a.parse().unwrap()).collect();
            assert_eq!(parsed.resolvers, want, "{text}");
            let head = "# written by sidestep\nnameserver 10.0.2.3\n";
            assert_eq!(parsed.for_workspace(&network), format!("{head}{kept}"));
            let both = VirtualNetwork { v6: Some(Ipv6Subnet::DEFAULT), ..network.clone() };
            assert_eq!(parsed.for_workspace(&both), format!("{head}nameserver fd00::3\n{kept}"));
        }
    }

    #[test]
    fn the_last_search_list_counts() {
        for (text, want) in
            [("search a b\ndomain c\n", &["c"][..]), ("domain c\nsearch a b\n", &["a", "b"]), ("options x\n", &[])]
        {
            assert_eq!(ResolvConf::parse(text).search, want, "{text}");
        }
    }

    #[test]
    fn without_the_virtual_resolver_those_that_are_no_loopback_stay() {
        let network = VirtualNetwork { dns: false, ..VirtualNetwork::new(Ipv4Subnet::DEFAULT, None, 1500) };
        let text = "nameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver fe80::1%1\nnameserver ::1\nsearch lan\n";
        let want = "# written by sidestep\nnameserver 192.0.2.1\nsearch lan\n";
        assert_eq!(ResolvConf::parse(text).for_workspace(&network), want);
    }
}
