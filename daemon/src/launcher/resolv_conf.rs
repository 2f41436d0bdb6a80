//! resolv.conf(5): the host's, as far as the workspace keeps it, and the one written for the workspace.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use sidestep_forwarder::network::VirtualNetwork;

pub const PATH: &str = "/etc/resolv.conf";

/// What a resolv.conf says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvConf {
    /// The host's resolvers, which the forwarder asks; loopback ones too, since it runs on the host.
    pub nameservers: Vec<IpAddr>,
    /// `search`, `domain`, `options` and `sortlist` lines as they are.
    kept: Vec<String>,
}

impl ResolvConf {
    /// Without a nameserver line, resolv.conf(5) says, the resolver is on the local machine.
    pub fn parse(text: &str) -> Self {
        let mut nameservers = Vec::new();
        let mut kept = Vec::new();
        for line in text.lines().map(str::trim) {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["nameserver", addr, ..] => nameservers.extend(addr.parse::<IpAddr>()),
                ["search" | "domain" | "options" | "sortlist", ..] => kept.push(line.to_owned()),
                _ => {}
            }
        }
        if nameservers.is_empty() {
            nameservers.push(Ipv4Addr::LOCALHOST.into());
        }
        Self { nameservers, kept }
    }

    /// The workspace's file: the virtual resolver, and the host's search and options lines.
    pub fn for_workspace(&self, network: &VirtualNetwork) -> String {
        let mut text = format!("# written by sidestep\nnameserver {}\n", network.v4.resolver());
        let v6 = network.v6.map(|v6| format!("nameserver {}", v6.resolver()));
        for line in v6.iter().chain(&self.kept) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{line}");
        }
        text
    }
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
                &["127.0.0.53"][..],
                "options edns0 trust-ad\nsearch lan example.org\n",
            ),
            (" nameserver\t192.0.2.1 # one\nnameserver 2001:db8::1\nnameserver x\n", &["192.0.2.1", "2001:db8::1"], ""),
            ("; nothing\nnameserver\n", &["127.0.0.1"], ""),
        ];
        let network = VirtualNetwork::new(Ipv4Subnet::DEFAULT, None, 1500);
        for (text, nameservers, kept) in cases {
            let parsed = ResolvConf::parse(text);
            let want: Vec<IpAddr> = nameservers.iter().map(|a| a.parse().unwrap()).collect();
            assert_eq!(parsed.nameservers, want, "{text}");
            let head = "# written by sidestep\nnameserver 10.0.2.3\n";
            assert_eq!(parsed.for_workspace(&network), format!("{head}{kept}"));
            let both = VirtualNetwork { v6: Some(Ipv6Subnet::DEFAULT), ..network.clone() };
            assert_eq!(parsed.for_workspace(&both), format!("{head}nameserver fd00::3\n{kept}"));
        }
    }
}
