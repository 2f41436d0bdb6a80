//! The lab: two hosts as network namespaces joined by a veth pair, in a world of their own (see [`world`]).
//!
//! ```text
//!   workspace ─ sidestep ─ host 192.0.2.1 ═════ veth ═════ 192.0.2.2 remote ─┬─ 198.51.100.0/24  answers unreachable
//!                          2001:db8:1::1                2001:db8:1::2        └─ 203.0.113.0/24   swallows everything
//! ```
//!
//! The host's default routes lead to the remote. Each test makes a lab of its own: the addresses are the same in all.

pub mod command;
pub mod dns;
pub mod effort;
pub mod login;
pub mod netns;
pub mod processes;
pub mod servers;
pub mod terminal;
pub mod workspace;
pub mod world;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use netns::Netns;

pub const HOST_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const REMOTE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
pub const REMOTE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
/// Addresses that the remote answers with an ICMP error, and what a connect to them gives on Linux: an `unreachable`
/// route answers "host unreachable" in IPv4 and "no route" in IPv6.
pub const UNREACHABLE: [(IpAddr, &str); 2] = [
    (IpAddr::V4(Ipv4Addr::new(198, 51, 100, 9)), "EHOSTUNREACH"),
    (IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 9)), "ENETUNREACH"),
];
/// Nothing ever comes back from these.
pub const BLACK_HOLE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 9))];
/// The remote in both families.
pub const REMOTE: [IpAddr; 2] = [IpAddr::V4(REMOTE_V4), IpAddr::V6(REMOTE_V6)];

/// The remote at the other end of [`Lab::slow_cable`].
pub const SLOW_REMOTE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 3, 2);

pub struct Lab {
    pub host: Netns,
    pub remote: Netns,
}

impl Lab {
    /// Two fresh hosts, connected, with ping sockets for everyone.
    pub fn new() -> Result<Self> {
        let lab = Self { host: Netns::new()?, remote: Netns::new()? };
        for netns in [&lab.host, &lab.remote] {
            // An ordinary user's world has one group to allow.
            let groups = if world::is_single_id() { "0 0" } else { "0 2147483647" };
            netns.sysctl("ipv4/ping_group_range", groups)?;
            netns.sysctl("ipv6/conf/default/accept_dad", "0")?;
            // TIME_WAIT is not for reuse across a second: short connections by the thousand need the whole range.
            netns.sysctl("ipv4/ip_local_port_range", "10000 65000")?;
        }
        lab.cable()?;
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

    fn cable(&self) -> Result<()> {
        // ip(8) names the other namespace by a descriptor of its own: /proc/PID/fd of this process is what it sees.
        let remote = self.remote.path();
        self.host.run(&format!("ip link add veth0 type veth peer name veth0 netns {remote}"))?;
        let batch = |netns: &Netns, lines: String| -> Result<()> {
            command::Program::new(["ip", "-batch", "-"]).stdin(lines).run(netns)?.succeeded()?;
            Ok(())
        };
        batch(
            &self.host,
            format!(
                "{}route add default via {REMOTE_V4} {CUBIC}\nroute add default via {REMOTE_V6} {CUBIC}\n",
                interface(HOST_V4, HOST_V6)
            ),
        )?;
        batch(
            &self.remote,
            format!(
                "{}\
                 route add unreachable 198.51.100.0/24\nroute add blackhole 203.0.113.0/24\n\
                 route add unreachable 2001:db8:51::/48\nroute add blackhole 2001:db8:113::/48\n",
                interface(REMOTE_V4, REMOTE_V6)
            ),
        )
    }
}

/// Congestion control is the routes' business here: some machines default to BBR, which makes every TAP path look bad,
/// and do not let a namespace choose another default.
pub const CUBIC: &str = "congctl cubic";

/// ip(8) commands for one host's end of the cable. IPv6 addresses skip duplicate detection, which takes a second.
fn interface(v4: Ipv4Addr, v6: Ipv6Addr) -> String {
    format!(
        "link set lo up\nlink set veth0 up\n\
         addr add {v4}/24 dev veth0 noprefixroute\naddr add {v6}/64 dev veth0 nodad noprefixroute\n\
         route add 192.0.2.0/24 dev veth0 {CUBIC}\nroute add 2001:db8:1::/64 dev veth0 {CUBIC}\n"
    )
}

/// Asks until there is an answer, an error, or the deadline.
pub fn poll<T>(what: &str, deadline: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() >= end {
            bail!("{what}: not within {deadline:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
