//! The lab: the two hosts of `sidestep bench` with more networks behind the remote, in a world of their own ([`world`]).
//!
//! ```text
//!   workspace ─ sidestep ─ host 192.0.2.1 ═════ veth ═════ 192.0.2.2 remote ─┬─ 198.51.100.0/24  answers unreachable
//!                          2001:db8:1::1                2001:db8:1::2        └─ 203.0.113.0/24   swallows everything
//! ```
//!
//! The host's default routes lead to the remote. Each test makes a lab of its own.

pub mod dns;
pub mod effort;
pub mod login;
pub mod servers;
pub mod terminal;
pub mod workspace;
pub mod world;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::Result;
use sidestep_bench::lab::{self, batch};
pub use sidestep_bench::lab::{HOST_V4, HOST_V6, REMOTE, REMOTE_V4, REMOTE_V6, command, netns, poll, processes};

use netns::Netns;

/// Addresses that the remote answers with an ICMP error, and what a connect to them gives on Linux: an `unreachable`
/// route answers "host unreachable" in IPv4 and "no route" in IPv6.
pub const UNREACHABLE: [(IpAddr, &str); 2] = [
    (IpAddr::V4(Ipv4Addr::new(198, 51, 100, 9)), "EHOSTUNREACH"),
    (IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 9)), "ENETUNREACH"),
];
/// Nothing ever comes back from these.
pub const BLACK_HOLE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 9))];

/// The remote at the other end of [`Lab::slow_cable`].
pub const SLOW_REMOTE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 3, 2);

pub struct Lab {
    pub host: Netns,
    pub remote: Netns,
}

impl Lab {
    /// Two fresh hosts, connected, with ping sockets for everyone.
    pub fn new() -> Result<Self> {
        let lab::Lab { host, remote } = lab::Lab::new()?;
        let lab = Self { host, remote };
        for netns in [&lab.host, &lab.remote] {
            // An ordinary user's world has one group to allow.
            let groups = if world::is_single_id() { "0 0" } else { "0 2147483647" };
            netns.sysctl("ipv4/ping_group_range", groups)?;
        }
        batch(
            &lab.remote,
            "route add unreachable 198.51.100.0/24\nroute add blackhole 203.0.113.0/24\n\
             route add unreachable 2001:db8:51::/48\nroute add blackhole 2001:db8:113::/48\n"
                .to_owned(),
        )?;
        lab.remote.sysctl("ipv4/ip_forward", "1")?;
        lab.remote.sysctl("ipv6/conf/all/forwarding", "1")?;
        lab.remote.sysctl("ipv4/icmp_ratelimit", "0")?;
        lab.remote.sysctl("ipv6/icmp/ratelimit", "0")?;
        Ok(lab)
    }

    /// A second cable, on which everything takes so many seconds each way; it lasts as long as what is returned.
    pub fn slow_cable(&self, seconds: f64) -> Result<command::Running> {
        let argv = ["/usr/bin/python3", world::SHIM, &self.host.path(), &self.remote.path(), &seconds.to_string()];
        let mut shim = command::Program::new(argv).deadline(Duration::from_secs(600)).start(&self.host)?;
        shim.line_with("ready")?;
        Ok(shim)
    }
}
