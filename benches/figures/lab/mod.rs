//! Two hosts as network namespaces joined by a veth pair, and programs run in them; the whole-program tests build on it.
//!
//! ```text
//!   contender ─ host 192.0.2.1 ═════ veth ═════ 192.0.2.2 remote
//!               2001:db8:1::1                2001:db8:1::2
//! ```
//!
//! The host's default routes lead to the remote. The addresses are the same in every lab. Making one takes a process
//! that is root of its user namespace: for `sidestep bench` that is [`world`].

pub mod command;
pub mod netns;
pub mod processes;
pub(crate) mod workspace;
pub(crate) mod world;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use command::{DEADLINE, Program, Running};
use netns::Netns;

pub const HOST_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const REMOTE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
pub const REMOTE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
/// The remote in both families.
pub const REMOTE: [IpAddr; 2] = [IpAddr::V4(REMOTE_V4), IpAddr::V6(REMOTE_V6)];

pub struct Lab {
    pub host: Netns,
    pub remote: Netns,
}

impl Lab {
    /// Two fresh hosts, connected.
    pub fn new() -> Result<Self> {
        let lab = Self { host: Netns::new()?, remote: Netns::new()? };
        for netns in [&lab.host, &lab.remote] {
            netns.sysctl("ipv6/conf/default/accept_dad", "0")?;
            // TIME_WAIT is not for reuse across a second: short connections by the thousand need the whole range.
            netns.sysctl("ipv4/ip_local_port_range", "10000 65000")?;
        }
        lab.cable()?;
        Ok(lab)
    }

    /// The machine as it is. The other end is somebody else's: nothing runs in `remote`.
    pub(crate) fn of_the_machine() -> Result<Self> {
        Ok(Self { host: Netns::current()?, remote: Netns::new()? })
    }

    fn cable(&self) -> Result<()> {
        // ip(8) names the other namespace by a descriptor of its own: /proc/PID/fd of this process is what it sees.
        let remote = self.remote.path();
        self.host.run(&format!("ip link add veth0 type veth peer name veth0 netns {remote}"))?;
        let default = format!("route add default via {REMOTE_V4} {CUBIC}\nroute add default via {REMOTE_V6} {CUBIC}\n");
        batch(&self.host, interface(HOST_V4, HOST_V6) + &default)?;
        batch(&self.remote, interface(REMOTE_V4, REMOTE_V6))
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

/// Runs lines of ip(8).
pub fn batch(netns: &Netns, lines: String) -> Result<()> {
    Program::new(["ip", "-batch", "-"]).stdin(lines).run(netns)?.succeeded()?;
    Ok(())
}

/// An iperf3 server on the given port, ready.
pub fn iperf3(netns: &Netns, port: u16) -> Result<Running> {
    let port = port.to_string();
    let server = Program::new(["iperf3", "--server", "--forceflush", "--port", &port]).env("PATH", world::path());
    let mut server = server.deadline(DEADLINE * 100).start(netns)?;
    server.line_with("Server listening")?;
    Ok(server)
}

/// Asks until there is an answer, an error, or the deadline.
pub fn poll<T>(what: &str, deadline: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        // Looked at first: who was kept from asking until then asks once more.
        let is_over = Instant::now() >= end;
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if is_over {
            bail!("{what}: not within {deadline:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
