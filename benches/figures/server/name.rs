//! What `--server HOST[:PORT]` names: addresses, at most one of each family.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::station::IPERF3_PORT;

/// The first address of each family, as the machine looks names up.
pub fn resolve(server: &str) -> Result<Vec<SocketAddr>> {
    let (host, port) = split(server).with_context(|| format!("the server {server:?} has no port after its colon"))?;
    let all = look_up(host, port).with_context(|| format!("cannot resolve the server {server:?}"))?;
    let first = |wanted: fn(&SocketAddr) -> bool| all.iter().find(|addr| wanted(addr)).copied();
    let chosen: Vec<SocketAddr> =
        [first(SocketAddr::is_ipv4), first(SocketAddr::is_ipv6)].into_iter().flatten().collect();
    ensure!(!chosen.is_empty(), "the server {server:?} has no address");
    Ok(chosen)
}

/// A name or an address, and the port; None where what follows the colon is none.
fn split(server: &str) -> Option<(&str, u16)> {
    let (host, port) = match server.rsplit_once(':') {
        // An IPv6 address has its port behind brackets only.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port.parse().ok()?),
        _ => (server, IPERF3_PORT),
    };
    Some((host.trim_start_matches('[').trim_end_matches(']'), port))
}

/// The C library's answer; in a static binary, which could not load the C library's modules for it, getent(1)'s.
fn look_up(host: &str, port: u16) -> Result<Vec<SocketAddr>> {
    if cfg!(target_feature = "crt-static") {
        ask_getent(host, port)
    } else {
        Ok((host, port).to_socket_addrs()?.collect())
    }
}

fn ask_getent(host: &str, port: u16) -> Result<Vec<SocketAddr>> {
    if let Ok(addr) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(addr, port)]);
    }
    let output = Command::new("getent").args(["ahosts", "--", host]).output();
    let output = output.context("getent, which a static binary asks for names, does not start; give an address")?;
    let addrs = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| Some(SocketAddr::new(line.split_whitespace().next()?.parse().ok()?, port)))
        .collect();
    Ok(addrs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_host_and_perhaps_a_port() {
        let cases = [
            ("iperf.example.net", Some(("iperf.example.net", 5201))),
            ("iperf.example.net:80", Some(("iperf.example.net", 80))),
            ("192.0.2.1", Some(("192.0.2.1", 5201))),
            ("192.0.2.1:80", Some(("192.0.2.1", 80))),
            ("2001:db8::1", Some(("2001:db8::1", 5201))),
            ("[2001:db8::1]", Some(("2001:db8::1", 5201))),
            ("[2001:db8::1]:80", Some(("2001:db8::1", 80))),
            ("iperf.example.net:http", None),
            ("192.0.2.1:65536", None),
        ];
        for (server, want) in cases {
            assert_eq!(split(server), want, "{server}");
        }
    }

    #[test]
    fn getent_has_nothing_that_the_c_library_has_not() {
        for host in ["localhost", "127.0.0.1", "::1"] {
            let (ours, theirs) = (look_up(host, 80).unwrap(), ask_getent(host, 80).unwrap());
            assert!(!theirs.is_empty() && theirs.iter().all(|addr| ours.contains(addr)), "{host}: {theirs:?}");
        }
    }
}
