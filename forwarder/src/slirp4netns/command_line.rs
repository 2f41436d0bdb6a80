//! slirp4netns's command line, as getopt_long(3) reads it: options anywhere, short ones joined, long ones cut short where
//! that is clear. The messages are those that its callers and its users know.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::path::PathBuf;

use lexopt::Arg;
use thiserror::Error;

use crate::network::{CidrError, Ipv4Subnet, Ipv6Subnet, MAX_MTU, MIN_MTU, MacAddr, VirtualNetwork};
use crate::network::{parse_ifname, parse_mac};

/// Podman, RootlessKit and Docker look in here for the names of options.
pub const HELP: &str = "\
Usage: slirp4netns [OPTION]... PID|PATH TAPNAME
User-mode networking for unprivileged network namespaces, by sidestep.

-c, --configure          give the TAP its address and route, and bring it and lo up
-e, --exit-fd=FD         end when the other end of FD is closed
-r, --ready-fd=FD        write \"1\" to FD when the network is ready
-m, --mtu=MTU            MTU (default=1500, max=65521)
-6, --enable-ipv6        IPv6 as well: fd00::/64
-a, --api-socket=PATH    Unix socket on which ports can be forwarded
--cidr=CIDR              IPv4 network (default=10.0.2.0/24)
--disable-host-loopback  no way to the host's 127.0.0.1 by the gateway's address
--netns-type=TYPE        what names the network namespace ([path|pid], default=pid)
--userns-path=PATH       user namespace to enter first (default: that of PID)
--enable-sandbox         refuse to run without the sandbox, which is entered in any case where it can be
--enable-seccomp         the same: its system calls are filtered in any case
--outbound-addr=IPv4     source address of what leaves the host: one of its own, or an interface
--outbound-addr6=IPv6    the same for IPv6
--disable-dns            nothing answers at 10.0.2.3
--macaddress=MAC         hardware address of the TAP (only valid with -c)
--target-type=TYPE       only netns ([netns|bess], default=netns)
-h, --help               show this help and exit
-v, --version            show version and exit
";

/// The interface of slirp4netns that this program keeps to. Its callers compare the last number.
pub const VERSION: &str = "slirp4netns version 1.3.3";
pub const SLIRP_CONFIG_VERSION_MAX: u32 = 6;

/// slirp4netns's own limit, one byte more than ours.
const SLIRP_MTU_MAX: u16 = 65521;
/// Every IPv4 host takes this much (RFC 791); less leaves too little for headers.
const MTU_MIN: u16 = 576;
/// sun_path holds 107 bytes and a terminating zero (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    Help,
    Version,
    Start(Box<Settings>),
}

/// What names the network namespace.
#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    Pid(u32),
    Path(PathBuf),
}

#[derive(Debug, PartialEq, Eq)]
pub struct Settings {
    pub target: Target,
    pub userns: Option<PathBuf>,
    pub ifname: String,
    pub configure: bool,
    pub exit_fd: Option<RawFd>,
    pub ready_fd: Option<RawFd>,
    pub network: VirtualNetwork,
    pub host_loopback: bool,
    pub api_socket: Option<PathBuf>,
    /// Addresses or interfaces.
    pub outbound_addr: Option<String>,
    pub outbound_addr6: Option<String>,
    /// A sandbox was asked for: without one it is not to run.
    pub needs_sandbox: bool,
}

/// Why a command line was refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{text}")]
pub struct Refusal {
    text: String,
    /// Whether the help is to be shown as well.
    pub with_help: bool,
}

impl Refusal {
    fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), with_help: true }
    }

    fn brief(text: impl Into<String>) -> Self {
        Self { text: text.into(), with_help: false }
    }
}

/// Long options with their short form.
const OPTIONS: [(&str, Option<char>); 19] = [
    ("configure", Some('c')),
    ("exit-fd", Some('e')),
    ("ready-fd", Some('r')),
    ("mtu", Some('m')),
    ("enable-ipv6", Some('6')),
    ("api-socket", Some('a')),
    ("cidr", None),
    ("disable-host-loopback", None),
    ("netns-type", None),
    ("userns-path", None),
    ("enable-sandbox", None),
    ("enable-seccomp", None),
    ("outbound-addr", None),
    ("outbound-addr6", None),
    ("disable-dns", None),
    ("macaddress", None),
    ("target-type", None),
    ("help", Some('h')),
    ("version", Some('v')),
];

/// The command line as it was given.
#[derive(Default)]
struct Given {
    configure: bool,
    exit_fd: Option<RawFd>,
    ready_fd: Option<RawFd>,
    mtu: Option<u16>,
    ipv6: bool,
    api_socket: Option<PathBuf>,
    cidr: Option<Ipv4Subnet>,
    disable_host_loopback: bool,
    netns_type: Option<String>,
    userns: Option<PathBuf>,
    needs_sandbox: bool,
    outbound_addr: Option<String>,
    outbound_addr6: Option<String>,
    disable_dns: bool,
    mac: Option<String>,
    target_type: Option<String>,
    positional: Vec<OsString>,
}

/// Reads the arguments after the program's name.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Parsed, Refusal> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut given = Given::default();
    while let Some(argument) = parser.next().map_err(|error| Refusal::new(format!("slirp4netns: {error}")))? {
        let name = match argument {
            Arg::Short(letter) => OPTIONS.iter().find(|(_, short)| *short == Some(letter)).map(|&(name, _)| name),
            Arg::Long(text) => Some(long(text)?),
            Arg::Value(value) => {
                given.positional.push(value);
                continue;
            }
        };
        match name {
            Some("help") => return Ok(Parsed::Help),
            Some("version") => return Ok(Parsed::Version),
            Some(name) => given.take(name, &mut parser)?,
            None => return Err(Refusal::new("slirp4netns: invalid option")),
        }
    }
    given.checked().map(|settings| Parsed::Start(Box::new(settings)))
}

/// The option called `text`, or the only one that begins so.
fn long(text: &str) -> Result<&'static str, Refusal> {
    let mut fitting = OPTIONS.iter().map(|&(name, _)| name).filter(|name| name.starts_with(text));
    match (OPTIONS.iter().find(|(name, _)| *name == text), fitting.next(), fitting.next()) {
        (Some(&(name, _)), ..) | (None, Some(name), None) => Ok(name),
        (None, Some(_), Some(_)) => Err(Refusal::new(format!("slirp4netns: option '--{text}' is ambiguous"))),
        (None, None, _) => Err(Refusal::new(format!("slirp4netns: unrecognized option '--{text}'"))),
    }
}

impl Given {
    fn take(&mut self, name: &str, parser: &mut lexopt::Parser) -> Result<(), Refusal> {
        let mut value =
            || parser.value().map_err(|_| Refusal::new(format!("slirp4netns: option '--{name}' requires an argument")));
        match name {
            "configure" => self.configure = true,
            "exit-fd" => self.exit_fd = Some(descriptor(name, &value()?)?),
            "ready-fd" => self.ready_fd = Some(descriptor(name, &value()?)?),
            "mtu" => self.mtu = Some(mtu(&value()?)?),
            "enable-ipv6" => self.ipv6 = true,
            "api-socket" => self.api_socket = Some(value()?.into()),
            "cidr" => self.cidr = Some(cidr(&text(name, value()?)?)?),
            "disable-host-loopback" => self.disable_host_loopback = true,
            "netns-type" => self.netns_type = Some(text(name, value()?)?),
            "userns-path" => self.userns = Some(value()?.into()),
            "enable-sandbox" | "enable-seccomp" => self.needs_sandbox = true,
            "outbound-addr" => self.outbound_addr = Some(text(name, value()?)?),
            "outbound-addr6" => self.outbound_addr6 = Some(text(name, value()?)?),
            "disable-dns" => self.disable_dns = true,
            "macaddress" => self.mac = Some(text(name, value()?)?),
            _ => self.target_type = Some(text(name, value()?)?),
        }
        Ok(())
    }

    fn checked(self) -> Result<Settings, Refusal> {
        match self.target_type.as_deref() {
            None | Some("netns") => {}
            Some("bess") => {
                return Err(Refusal::brief("--target-type=bess is not supported by sidestep; use --target-type=netns"));
            }
            Some(_) => return Err(Refusal::new("--target-type must be either \"netns\" or \"bess\"")),
        }
        let [target, ifname, ..] = self.positional.as_slice() else {
            return Err(Refusal::new("slirp4netns: PID or PATH, and TAPNAME are needed"));
        };
        let target = match self.netns_type.as_deref() {
            None | Some("pid") => Target::Pid(pid(target)?),
            Some("path") => Target::Path(target.into()),
            Some(_) => return Err(Refusal::new("--netns-type must be either \"path\" or \"pid\"")),
        };
        let ifname = ifname.to_str().ok_or_else(|| "not UTF-8".to_owned()).and_then(parse_ifname);
        let ifname = ifname.map_err(|why| Refusal::new(format!("TAPNAME: {why}")))?;
        if self.exit_fd.is_some() && self.exit_fd == self.ready_fd {
            return Err(Refusal::new("exit-fd and ready-fd cannot be the same"));
        }
        if self.mac.is_some() && !self.configure {
            return Err(Refusal::new("--macaddr cannot be specified when --configure or -c is not specified"));
        }
        let mac: Option<MacAddr> = self
            .mac
            .map(|mac| parse_mac(&mac))
            .transpose()
            .map_err(|why| Refusal::new(format!("--macaddress: {why}")))?;
        if self.api_socket.as_ref().is_some_and(|path| path.as_os_str().len() > SOCKET_PATH_MAX) {
            return Err(Refusal::brief(format!(
                "the specified API socket path is too long (>= {})",
                SOCKET_PATH_MAX + 1
            )));
        }
        let mtu = self.mtu.unwrap_or(1500).min(MAX_MTU);
        let least = if self.ipv6 { MIN_MTU } else { MTU_MIN };
        if mtu < least {
            return Err(Refusal::new(format!(
                "MTU must be at least {least}{}",
                if self.ipv6 { " with IPv6" } else { "" }
            )));
        }
        let v6 = self.ipv6.then_some(Ipv6Subnet::SLIRP4NETNS);
        let mut network = VirtualNetwork::new(self.cidr.unwrap_or(Ipv4Subnet::DEFAULT), v6, mtu);
        network.dns = !self.disable_dns;
        network.guest_mac = mac.unwrap_or(network.guest_mac);
        Ok(Settings {
            target,
            userns: self.userns,
            ifname,
            configure: self.configure,
            exit_fd: self.exit_fd,
            ready_fd: self.ready_fd,
            network,
            host_loopback: !self.disable_host_loopback,
            api_socket: self.api_socket,
            outbound_addr: self.outbound_addr,
            outbound_addr6: self.outbound_addr6,
            needs_sandbox: self.needs_sandbox,
        })
    }
}

fn text(name: &str, value: OsString) -> Result<String, Refusal> {
    value.into_string().map_err(|_| Refusal::new(format!("--{name}: not UTF-8")))
}

fn number<T: std::str::FromStr>(value: &OsStr) -> Option<T> {
    value.to_str()?.trim_start().parse().ok()
}

fn descriptor(name: &str, value: &OsStr) -> Result<RawFd, Refusal> {
    let number = number::<RawFd>(value).filter(|&number| number >= 0);
    number.ok_or_else(|| Refusal::new(format!("{name} must be a non-negative integer")))
}

fn mtu(value: &OsStr) -> Result<u16, Refusal> {
    let number = number::<u16>(value).filter(|number| (1..=SLIRP_MTU_MAX).contains(number));
    number.ok_or_else(|| Refusal::new(format!("MTU must be a positive integer (< {})", SLIRP_MTU_MAX + 1)))
}

fn pid(value: &OsStr) -> Result<u32, Refusal> {
    let number = number::<i32>(value).and_then(|number| u32::try_from(number).ok()).filter(|&number| number > 0);
    number.ok_or_else(|| Refusal::new("PID must be a positive integer"))
}

fn cidr(value: &str) -> Result<Ipv4Subnet, Refusal> {
    value.parse().map_err(|error: CidrError| match error {
        CidrError::Syntax => Refusal::brief(format!("{error}: {value}")),
        _ => Refusal::brief(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Parsed, Refusal> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn started(line: &str) -> Settings {
        match parsed(line) {
            Ok(Parsed::Start(settings)) => *settings,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn what_podman_and_rootlesskit_write() {
        let podman = started(
            "--disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp --enable-ipv6 --cidr=10.1.0.0/16 \
             --outbound-addr=192.0.2.1 -c -r 3 -e 4 --api-socket /run/api --netns-type=path /run/netns/x tap0",
        );
        assert_eq!(podman.target, Target::Path("/run/netns/x".into()));
        assert_eq!((podman.ready_fd, podman.exit_fd, podman.configure), (Some(3), Some(4), true));
        assert_eq!((podman.network.mtu, podman.network.v4.guest()), (65520, [10, 1, 0, 100].into()));
        assert_eq!(podman.network.v6.unwrap().guest().to_string(), "fd00::100");
        assert!(podman.needs_sandbox && !podman.host_loopback);
        assert_eq!((podman.outbound_addr.as_deref(), podman.ifname.as_str()), (Some("192.0.2.1"), "tap0"));

        let rootlesskit = started("--mtu 65520 -r 3 --disable-host-loopback --userns-path=/proc/7/ns/user 4711 tap0");
        assert_eq!((rootlesskit.target, rootlesskit.userns), (Target::Pid(4711), Some("/proc/7/ns/user".into())));
        assert!(!rootlesskit.configure && !rootlesskit.needs_sandbox && rootlesskit.network.v6.is_none());

        let mixed = started("-c6m1400 4711 --macadd 02:00:00:00:00:01 tap0 --disable-d -r5");
        assert_eq!((mixed.network.mtu, mixed.network.guest_mac), (1400, [2, 0, 0, 0, 0, 1]));
        assert!(!mixed.network.dns && mixed.network.v6.is_some() && mixed.host_loopback);
        assert_eq!(started("-m 65521 1 tap0").network.mtu, MAX_MTU);
    }

    #[test]
    fn every_refusal_in_slirp4netns_words() {
        let long = format!("-a /{} 1 tap0", "a".repeat(107));
        let cases = [
            ("--bogus 1 tap0", "slirp4netns: unrecognized option '--bogus'", true),
            ("--enable 1 tap0", "slirp4netns: option '--enable' is ambiguous", true),
            ("1 tap0 --cidr", "slirp4netns: option '--cidr' requires an argument", true),
            ("--cidr=foo 1 tap0", "invalid CIDR: foo", false),
            ("--cidr=10.0.2.0/26 1 tap0", "prefix length needs to be 1-25", false),
            (
                "--cidr=10.0.2.100/24 1 tap0",
                "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24",
                false,
            ),
            ("-m 65522 1 tap0", "MTU must be a positive integer (< 65522)", true),
            ("-m x 1 tap0", "MTU must be a positive integer (< 65522)", true),
            ("-6 -m 1279 1 tap0", "MTU must be at least 1280 with IPv6", true),
            ("-e -5 1 tap0", "exit-fd must be a non-negative integer", true),
            ("-r x 1 tap0", "ready-fd must be a non-negative integer", true),
            ("-e 3 -r3 1 tap0", "exit-fd and ready-fd cannot be the same", true),
            ("abc tap0", "PID must be a positive integer", true),
            ("0 tap0", "PID must be a positive integer", true),
            ("--netns-type=x 1 tap0", "--netns-type must be either \"path\" or \"pid\"", true),
            ("--target-type=x 1 tap0", "--target-type must be either \"netns\" or \"bess\"", true),
            (
                "--target-type=bess /tmp/x",
                "--target-type=bess is not supported by sidestep; use --target-type=netns",
                false,
            ),
            (
                "--macaddress=02:00:00:00:00:01 1 tap0",
                "--macaddr cannot be specified when --configure or -c is not specified",
                true,
            ),
            ("-c --macaddress=zz 1 tap0", "--macaddress: six bytes, as 02:00:00:00:00:01", true),
            (&long, "the specified API socket path is too long (>= 108)", false),
            ("1", "slirp4netns: PID or PATH, and TAPNAME are needed", true),
            ("", "slirp4netns: PID or PATH, and TAPNAME are needed", true),
        ];
        for (line, text, with_help) in cases {
            assert_eq!(parsed(line), Err(Refusal { text: text.to_owned(), with_help }), "{line}");
        }
    }

    #[test]
    fn help_and_version_come_first() {
        assert_eq!(parsed("-hv"), Ok(Parsed::Help));
        assert_eq!(parsed("-c --version --bogus"), Ok(Parsed::Version));
        for (name, short) in OPTIONS {
            assert!(HELP.contains(&format!("--{name}")), "{name}");
            assert!(short.is_none_or(|short| HELP.contains(&format!("-{short}, --{name}"))), "{name}");
        }
    }
}
