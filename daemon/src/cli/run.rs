//! `sidestep run`: the entrypoint ahead of a workspace's command.

use std::env;
use std::ffi::OsString;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, ValueEnum};
use sidestep_forwarder::network::{Ipv4Subnet, MAX_MTU, MIN_MTU, MacAddr, parse_ifname, parse_mac};

use super::egress::EgressRules;
use crate::launcher::{Bypass, Choice, Mtu, Settings};
use crate::logging::{self, LogFormat, LogLevel, LogSettings};
use crate::monitor;
use crate::publish::Spec;

/// Run a command in user and network namespaces of its own.
#[derive(Debug, Args)]
#[command(
    after_help = "Without privileges, for an ordinary user and for root in a container. See --help for the modes.",
    after_long_help = "\
Examples:
  sidestep run -- bash                          a shell; you are root inside, files stay yours
  sidestep run --bypass -- make -j8             TCP at the host's own speed where the kernel can guard it
  sidestep run --keep-id -- code-server         the same user inside as outside
  sidestep run --mtu 65520 --ipv6=on -- iperf3 -c 192.0.2.1

Exit code: the command's own; 128+n when signal n ended it; 125 when sidestep itself failed; 126
when the command cannot be executed, 127 when it is not found. `sidestep doctor` says beforehand
what is missing here.

The command finds SIDESTEP_ACTIVE=tap|bypass and SIDESTEP_STATE_DIR in its environment."
)]
pub struct Run {
    /// Take TCP connections off the TAP, to the host's network, checked against the same egress policy
    ///
    /// off: everything goes through the TAP. auto (also a bare --bypass): strict mode where the kernel has Landlock's
    /// network rules (ABI 4, Linux 6.7), otherwise the TAP with one warning. require: strict mode or exit code 125.
    /// unconfined: bypass without Landlock's rules, an optimisation and not a boundary: a hostile workspace can reach
    /// what the policy denies. Default: $SIDESTEP_BYPASS, or off where that is unset or empty.
    #[arg(long, value_enum, value_name = "MODE", default_missing_value = "auto", num_args = 0..=1,
          require_equals = true)]
    bypass: Option<Bypass>,

    /// With --bypass: take connected UDP sockets out as well
    ///
    /// A UDP socket on the host's network can send to any address there, not only where it was connected: a workspace
    /// then reaches by UDP what its own routes and firewall rules would keep from it, the host's loopback included.
    /// So it goes with no --deny that applies to UDP.
    #[arg(long)]
    bypass_udp: bool,

    /// With --bypass: take connections out of containers as well, network namespaces nested in the workspace
    ///
    /// Those whose route leads by a gateway into the workspace (a veth, with a bridge or without) and from there on
    /// through the TAP, where no netfilter rule of either could touch them: what `docker run` has by default. Networks
    /// without a way out (--internal), other containers and the workspace itself are reached as before. A container
    /// then sees the host's address in getsockname; its namespace lives on for a second after its last connect.
    #[arg(long)]
    bypass_nested: bool,

    /// MTU of the TAP, 1280 to 65520; auto: that of the device of the host's default route
    #[arg(long, value_name = "N|auto", default_value = "auto", value_parser = parse_mtu)]
    mtu: Mtu,

    /// IPv4 network inside: gateway .2, resolver .3, workspace .100; DHCP leases from .15
    #[arg(long, value_name = "CIDR", default_value = "10.0.2.0/24")]
    cidr: Ipv4Subnet,

    /// Name of the TAP device inside
    #[arg(long, value_name = "NAME", default_value = "tap0", value_parser = parse_ifname)]
    ifname: String,

    /// IPv6 inside (fd00::/64); auto: when the host has a default IPv6 route
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto", require_equals = true)]
    ipv6: Choice,

    /// Hardware address of the TAP inside, as 02:00:00:00:00:01 [default: made from the IPv4 network]
    #[arg(long, value_name = "MAC", value_parser = parse_mac)]
    macaddress: Option<MacAddr>,

    /// Source address of what leaves the host over IPv4: one of its addresses, or an interface for its first
    ///
    /// With and without the bypass. The host's own loopback (its resolver, --host-loopback) is reached from itself.
    #[arg(long, value_name = "ADDR|IFNAME")]
    outbound_addr: Option<String>,

    /// The same for IPv6
    #[arg(long, value_name = "ADDR|IFNAME")]
    outbound_addr6: Option<String>,

    /// No virtual resolver at .3: what is sent to its port 53 is not answered
    ///
    /// The workspace's resolv.conf then names the host's resolvers, without those on the host's loopback, which it
    /// cannot reach; a host that has only such a resolver leaves it without.
    #[arg(long)]
    disable_dns: bool,

    /// Let the workspace reach the host's 127.0.0.1 and ::1 by the gateway's address (default: refused)
    #[arg(long, overrides_with = "disable_host_loopback")]
    host_loopback: bool,

    /// Refuse that, which is the default; the last of both counts
    #[arg(long, overrides_with = "host_loopback")]
    disable_host_loopback: bool,

    #[command(flatten)]
    egress: EgressRules,

    /// Lead a port of the host into the workspace; may be repeated
    ///
    /// Without IP it is open at all addresses of the host, of both families, as with docker: 127.0.0.1:8080:80 keeps it
    /// to this machine. A taken port is an error. A server inside sees its clients' own addresses; clients of the host's
    /// loopback are seen with the workspace's. What listens on 127.0.0.1 inside is not reached, unless it is named:
    /// 8080:127.0.0.1:80 (TCP only), as any other address inside can be. With --bypass a server that listens at all
    /// addresses has the host's port itself.
    #[arg(short, long, value_name = "[IP:]PORT[-PORT]:PORT[-PORT][/tcp|udp]")]
    publish: Vec<Spec>,

    /// Publish every TCP port from 1024 on that something inside listens at, for as long as it does
    ///
    /// Under its own number, at all addresses of the host or at the one given. What listens on 127.0.0.1 inside stays
    /// there. A port that the host has already is named in a warning and left out; 128 ports at most.
    #[arg(long, value_name = "IP", num_args = 0..=1, require_equals = true)]
    publish_auto: Option<Option<IpAddr>>,

    /// Pid namespace: nothing is left behind when it ends; auto: wherever /proc can be mounted
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto", require_equals = true)]
    pidns: Choice,

    /// Keep user and group id inside (with CAP_NET_ADMIN) instead of being mapped to root
    #[arg(long)]
    keep_id: bool,

    /// Where state.json and the control socket go [default: $XDG_RUNTIME_DIR/sidestep/PID or /tmp/sidestep-UID/PID; in a
    /// container, PID-NAMESPACE]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// Write "1" to this descriptor and close it when the command is about to be executed
    #[arg(long, value_name = "FD")]
    ready_fd: Option<RawFd>,

    /// Keep the newest frames of the TAP, in both directions, in FILE (pcapng, for Wireshark and tcpdump -r)
    ///
    /// A file of at most 16 MiB, some 32,000 frames; what was in it is lost. Of each frame 468 bytes are kept. When it
    /// is full the newest frames take the place of the oldest, so that they are no longer in the order of time: sort by
    /// Time in Wireshark, or use reordercap. It can be read at any moment, also after a crash or kill -9. A frame may be
    /// up to 64 KB long, whatever the MTU, and its checksum not yet computed. Connections taken out by --bypass have no
    /// frames.
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,

    /// Least important messages to show on stderr; error hides the start line and warnings
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "info")]
    log_level: LogLevel,

    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text", help = "Log lines for people or machines")]
    log_format: LogFormat,

    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Run {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let log = LogSettings { level: self.log_level, format: self.log_format };
        logging::init(log);
        monitor::run(Settings {
            bypass: match self.bypass {
                Some(bypass) => bypass,
                None => bypass_from(&env::var("SIDESTEP_BYPASS").unwrap_or_default())?,
            },
            bypass_udp: self.bypass_udp,
            bypass_nested: self.bypass_nested,
            mtu: self.mtu,
            cidr: self.cidr,
            ifname: self.ifname,
            ipv6: self.ipv6,
            macaddress: self.macaddress,
            outbound_addr: self.outbound_addr,
            outbound_addr6: self.outbound_addr6,
            disable_dns: self.disable_dns,
            host_loopback: self.host_loopback && !self.disable_host_loopback,
            egress_rules: self.egress.0,
            publish: self.publish,
            publish_auto: self.publish_auto,
            pidns: self.pidns,
            keep_id: self.keep_id,
            state_dir: self.state_dir,
            ready_fd: self.ready_fd,
            pcap: self.pcap,
            log,
            command: self.command,
        })
    }
}

/// SIDESTEP_BYPASS: clap's own handling takes a variable that is set but empty for an error.
fn bypass_from(value: &str) -> anyhow::Result<Bypass> {
    if value.is_empty() {
        return Ok(Bypass::Off);
    }
    match Bypass::from_str(value, false) {
        Ok(bypass) => Ok(bypass),
        Err(_) => bail!("SIDESTEP_BYPASS={value} is none of off, auto, require, unconfined"),
    }
}

fn parse_mtu(text: &str) -> Result<Mtu, String> {
    if text == "auto" {
        return Ok(Mtu::Auto);
    }
    match text.parse() {
        Ok(mtu) if (MIN_MTU..=MAX_MTU).contains(&mtu) => Ok(Mtu::Fixed(mtu)),
        _ => Err(format!("auto or a number from {MIN_MTU} to {MAX_MTU}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        run: Run,
    }

    fn parse(args: &[&str]) -> Result<Run, clap::Error> {
        Cli::try_parse_from(["run"].iter().chain(args)).map(|cli| cli.run)
    }

    #[test]
    fn bypass_modes() {
        let cases = [
            (&["--", "sh"][..], None),
            (&["--bypass", "--", "sh"], Some(Bypass::Auto)),
            (&["--bypass", "sh"], Some(Bypass::Auto)),
            (&["--bypass=off", "sh"], Some(Bypass::Off)),
            (&["--bypass=require", "sh"], Some(Bypass::Require)),
            (&["--bypass=unconfined", "sh"], Some(Bypass::Unconfined)),
        ];
        for (args, want) in cases {
            let run = parse(args).unwrap();
            assert_eq!((run.bypass, run.command), (want, vec!["sh".into()]), "{args:?}");
        }
    }

    #[test]
    fn bypass_from_the_environment() {
        for (value, want) in [("", Some(Bypass::Off)), ("require", Some(Bypass::Require)), ("yes", None)] {
            assert_eq!(bypass_from(value).ok(), want, "{value}");
        }
    }

    #[test]
    fn the_command_keeps_its_own_flags() {
        let run = parse(&["--keep-id", "sh", "-c", "exit 3", "--mtu"]).unwrap();
        assert_eq!(run.command, ["sh", "-c", "exit 3", "--mtu"]);
    }

    #[test]
    fn the_last_word_about_the_hosts_loopback_counts() {
        for (flags, want) in [
            (&["--host-loopback"][..], true),
            (&["--disable-host-loopback"], false),
            (&["--host-loopback", "--disable-host-loopback"], false),
            (&["--disable-host-loopback", "--host-loopback"], true),
        ] {
            let run = parse(&[flags, &["sh"]].concat()).unwrap();
            assert_eq!(run.host_loopback && !run.disable_host_loopback, want, "{flags:?}");
        }
    }

    #[test]
    fn mtu_bounds() {
        let cases = [
            ("auto", Some(Mtu::Auto)),
            ("1280", Some(Mtu::Fixed(1280))),
            ("65520", Some(Mtu::Fixed(65520))),
            ("1279", None),
            ("65521", None),
            ("x", None),
        ];
        for (text, want) in cases {
            assert_eq!(parse_mtu(text).ok(), want, "{text}");
        }
    }

    #[test]
    fn what_is_refused() {
        for args in [&[][..], &["--bypass=maybe", "sh"], &["--cidr", "10.0.2.100/24", "sh"], &["--ifname", "lo", "sh"]]
        {
            assert!(parse(args).is_err(), "{args:?}");
        }
    }
}
