//! `--outbound-addr` and `--outbound-addr6`: an address of this host, or an interface that has one.

use std::net::IpAddr;

use anyhow::{Context, bail, ensure};
use nix::ifaddrs::getifaddrs;
use sidestep_forwarder::outbound::Outbound;
use sidestep_forwarder::policy;

pub fn resolve(v4: Option<&str>, v6: Option<&str>) -> anyhow::Result<Outbound> {
    let mut outbound = Outbound::default();
    for (flag, text) in [("--outbound-addr", v4), ("--outbound-addr6", v6)] {
        let Some(text) = text else { continue };
        match address(flag, text, flag == "--outbound-addr6")? {
            IpAddr::V4(addr) => outbound.v4 = Some(addr),
            IpAddr::V6(addr) => outbound.v6 = Some(addr),
        }
    }
    Ok(outbound)
}

fn address(flag: &str, text: &str, ipv6: bool) -> anyhow::Result<IpAddr> {
    let Ok(addr) = text.parse::<IpAddr>() else { return of_interface(flag, text, ipv6) };
    let other = if ipv6 { "--outbound-addr" } else { "--outbound-addr6" };
    ensure!(addr.is_ipv6() == ipv6, "{flag}: {addr} is an {} address; give it to {other}", family(!ipv6));
    ensure!(
        is_global(addr),
        "{flag}: {addr} is no address that leaves this host; give one that other hosts can answer"
    );
    ensure!(policy::is_assigned(addr), "{flag}: {addr} is no address of this host; `ip address` lists those it has");
    Ok(addr)
}

/// The first address of an interface that others can answer.
pub fn of_interface(flag: &str, name: &str, ipv6: bool) -> anyhow::Result<IpAddr> {
    let all: Vec<_> = getifaddrs().with_context(|| format!("{flag}: cannot list this host's interfaces"))?.collect();
    let mut own = all.into_iter().filter(|interface| interface.interface_name == name).peekable();
    if own.peek().is_none() {
        bail!("{flag}: {name} is neither an {} address nor an interface of this host", family(ipv6));
    }
    let addresses = own.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    });
    let mut fitting = addresses.filter(|addr| addr.is_ipv6() == ipv6 && is_global(*addr));
    fitting.next().with_context(|| format!("{flag}: the interface {name} has no global {} address", family(ipv6)))
}

/// Others can answer it, on whatever link they are.
fn is_global(addr: IpAddr) -> bool {
    let is_link_local = matches!(addr, IpAddr::V6(v6) if v6.is_unicast_link_local());
    !(addr.is_loopback() || addr.is_unspecified() || addr.is_multicast() || is_link_local)
}

fn family(ipv6: bool) -> &'static str {
    if ipv6 { "IPv6" } else { "IPv4" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_says_what_is_wrong() {
        let cases = [
            (Some("198.51.100.77"), None, "198.51.100.77 is no address of this host"),
            (Some("127.0.0.1"), None, "leaves this host"),
            (Some("lo"), None, "lo has no global IPv4 address"),
            (Some("2001:db8::1"), None, "give it to --outbound-addr6"),
            (None, Some("192.0.2.1"), "give it to --outbound-addr"),
            (None, Some("fe80::1"), "leaves this host"),
            (None, Some("no-such-if"), "neither an IPv6 address nor an interface"),
        ];
        for (v4, v6, want) in cases {
            let text = resolve(v4, v6).unwrap_err().to_string();
            assert!(text.starts_with("--outbound-addr") && text.contains(want), "{text}");
        }
        assert_eq!(resolve(None, None).unwrap(), Outbound::default());
    }
}
