//! sidestep under the name slirp4netns: its command line, what it makes of a namespace, and where it stands itself.
//! What slirp4netns's own tests check is checked here, too.

pub mod api;
pub mod life;
mod target;
pub mod traffic;

use std::fs;

use anyhow::{Context as _, Result, ensure};

use crate::lab::workspace::{Workspace, contains};
use crate::lab::world::{SIDESTEP, SLIRP4NETNS};
use target::Target;

crate::cases! {
    TAP: configures, leaves_alone, dhcp, cidr, macaddress, attaches, namespaces_by_path, refusals, sandboxed;
    TAP_AS_ROOT: empty_root;
    USER: help_and_version;
}

const ADDRESSES: &str = "ip -o addr show dev tap0 scope global | awk '{print $4}' | sort | xargs";

fn configures(ws: Workspace) -> Result<()> {
    let target = Target::new(ws)?;
    let running = target.start("-c -6 -m 1400", &target.pid())?;
    target.sh(ADDRESSES)?.printed("10.0.2.100/24 fd00::100/64")?;
    target
        .sh("for v in 4 6; do ip -$v route show default | cut -d' ' -f1-5; done")?
        .printed("default via 10.0.2.2 dev tap0\ndefault via fd00::2 dev tap0")?;
    // lo as well.
    target.sh("ip -o link show up | wc -l")?.printed("2")?;
    target.sh("ip -o link show dev tap0 | grep -o 'mtu [0-9]*'")?.printed("mtu 1400")?;
    contains(&running.all_so_far(), "* Recommended IP:  10.0.2.100")?;
    contains(&running.all_so_far(), "* MTU:             1400")
}

/// Without -c the TAP is there, and its owner does the rest.
fn leaves_alone(ws: Workspace) -> Result<()> {
    let target = Target::new(ws)?;
    let _running = target.start("", &target.pid())?;
    target.sh("ip -o link show up | wc -l; ip -o addr | wc -l; ip -o link show dev tap0 | wc -l")?.printed("0\n0\n1")
}

fn dhcp(ws: Workspace) -> Result<()> {
    let target = Target::new(ws)?;
    let _running = target.start("", &target.pid())?;
    let script = "printf '#!/bin/sh\\n[ \"$1\" = bound ] && echo \"$ip/$mask $router $dns\"\\n:' > $f; chmod +x $f; \
                  busybox udhcpc -i tap0 -n -q -f -s $f 2>/dev/null";
    target.sh(&format!("f=$(mktemp); ip link set tap0 up; {script}"))?.printed("10.0.2.15/24 10.0.2.2 10.0.2.3")
}

fn cidr(ws: Workspace) -> Result<()> {
    let target = Target::new(ws)?;
    let _running = target.start("-c --cidr=10.0.135.128/25", &target.pid())?;
    target.sh(ADDRESSES)?.printed("10.0.135.228/25")?;
    // The link's own IPv6 is left alone.
    target.sh("ip -6 -o addr show dev tap0 scope link | wc -l")?.printed("1")?;
    target.sh("ping -c1 -W10 10.0.135.130 >/dev/null && echo answered")?.printed("answered")
}

fn macaddress(ws: Workspace) -> Result<()> {
    let target = Target::new(ws)?;
    let _running = target.start("-c --macaddress=0e:d4:98:5e:56:12", &target.pid())?;
    target.sh("ip -o link show tap0 | grep -o 'ether [^ ]*'")?.printed("ether 0e:d4:98:5e:56:12")?;
    target.sh("ping -c1 -W10 10.0.2.2 >/dev/null && echo answered")?.printed("answered")
}

/// RootlessKit makes the TAP itself and gives it what it wants.
fn attaches(ws: Workspace) -> Result<()> {
    let target = Target::new(ws)?;
    target
        .sh("ip tuntap add name tap0 mode tap && ip link set tap0 address 02:50:00:00:00:01 && ip link set tap0 up")?
        .succeeded()?;
    let _running =
        target.start("--mtu 65520 --disable-host-loopback --enable-sandbox --enable-seccomp", &target.pid())?;
    target
        .sh("ip link set tap0 mtu 65520 && ip addr add 10.0.2.100/24 dev tap0 && ip route add default via 10.0.2.2 \
         && ping -c1 -W10 10.0.2.2 >/dev/null && ip -o link show tap0 | grep -o 02:50:00:00:00:01")?
        .printed("02:50:00:00:00:01")
}

fn namespaces_by_path(ws: Workspace) -> Result<()> {
    let target = Target::new(ws)?;
    let pid = target.pid();
    let named = format!("--userns-path=/proc/{pid}/ns/user --netns-type=path");
    let running = target.start(&format!("-c {named}"), &format!("/proc/{pid}/ns/net"))?;
    target.sh(ADDRESSES)?.printed("10.0.2.100/24")?;
    drop(running);
    // Podman is in the user namespace itself.
    let words = ["nsenter", "--target", &pid, "--user", "--preserve-credentials", "--", "bash", "-c"];
    let podman = target.outside(words).arg("exec \"$0\" \"$@\" 3>&1").arg(SLIRP4NETNS);
    let podman = ["-c", "-r", "3", "--netns-type=path"].into_iter().fold(podman, |podman, word| podman.arg(word));
    let started = podman.arg(format!("/proc/{pid}/ns/net")).arg("tap0").start(&target.ws.lab.host)?;
    let _running = target.until_ready(started)?;
    target.sh(ADDRESSES)?.printed("10.0.2.100/24")
}

/// Nothing is made, one line says why, and the exit code is 1.
fn refusals(ws: Workspace) -> Result<()> {
    let target = Target::new(ws)?;
    let pid = target.pid();
    let long = format!("-c -a /tmp/{} {pid} tap0", "A".repeat(120));
    let cases = [
        (format!("-c --cidr=24 {pid} tap0"), "invalid CIDR"),
        (format!("-c --cidr=foo {pid} tap0"), "invalid CIDR"),
        (
            format!("-c --cidr=10.0.2.100/24 {pid} tap0"),
            "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24",
        ),
        (format!("-c --cidr=10.0.2.0/26 {pid} tap0"), "prefix length needs to be 1-25"),
        (long, "API socket path is too long"),
        (format!("-c -a /no/such/dir/api {pid} tap0"), "cannot make the API socket /no/such/dir/api"),
        (format!("-c -r 77 {pid} tap0"), "--ready-fd 77: not an open descriptor"),
        (format!("-c --outbound-addr=no-such-if {pid} tap0"), "outbound-addr has to be valid ipv4 address"),
        (format!("-c --outbound-addr6=192.0.2.1 {pid} tap0"), "outbound-addr6 has to be valid ipv6 address"),
        ("-c --target-type=bess /tmp/bess.sock".to_owned(), "use --target-type=netns"),
        ("-c 2147483647 tap0".to_owned(), "/proc/2147483647/ns/net: No such file or directory"),
        ("-c --netns-type=path /no/such tap0".to_owned(), "existing path expected when --netns-type=path"),
        (format!("-c --userns-path=/no/such {pid} tap0"), "userns path doesn't exist"),
        (format!("--no-such-option {pid} tap0"), "unrecognized option '--no-such-option'"),
        (format!("-c {pid}"), "Usage: slirp4netns"),
    ];
    for (arguments, why) in cases {
        let done = target.slirp4netns(arguments.split(' ')).run(&target.ws.lab.host)?.exited(1)?;
        contains(&format!("{}{}", done.stderr, done.stdout), why).context(arguments)?;
    }
    target.sh("ip -o link | grep -c tap0; true")?.printed("0")
}

fn help_and_version(ws: Workspace) -> Result<()> {
    let help = ws.outside([SLIRP4NETNS, "--help"]).run(&ws.lab.host)?.output()?;
    // Podman and RootlessKit look for these.
    for option in [
        "--configure",
        "--exit-fd",
        "--ready-fd",
        "--mtu",
        "--enable-ipv6",
        "--api-socket",
        "--cidr",
        "--disable-host-loopback",
        "--netns-type",
        "--userns-path",
        "--enable-sandbox",
        "--enable-seccomp",
        "--outbound-addr",
        "--outbound-addr6",
        "--disable-dns",
        "--macaddress",
        "--target-type",
    ] {
        contains(&help, option)?;
    }
    let version = ws.outside([SLIRP4NETNS, "-v"]).run(&ws.lab.host)?.output()?;
    contains(&version, "slirp4netns version 1.")?;
    ensure!(version.lines().any(|line| line == "SLIRP_CONFIG_VERSION_MAX: 6"), "{version}");
    contains(&ws.outside([SIDESTEP, "--help"]).run(&ws.lab.host)?.output()?, "sidestep")
}

/// The one capability that callers look for is of a namespace without any say.
fn sandboxed(ws: Workspace) -> Result<()> {
    let target = Target::new(ws)?;
    for flags in ["", "--enable-sandbox", "--enable-seccomp"] {
        let running = target.start(flags, &target.pid())?;
        let status = fs::read_to_string(format!("/proc/{}/status", running.pid()))?;
        let port = "0000000000000400";
        for (field, want) in [
            ("CapInh", port),
            ("CapPrm", port),
            ("CapEff", port),
            ("CapBnd", port),
            ("CapAmb", "0000000000000000"),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
            ("Threads", "1"),
        ] {
            let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
            ensure!(line.map(str::trim) == Some(want), "{flags}: {field} is {line:?}");
        }
    }
    Ok(())
}

fn empty_root(ws: Workspace) -> Result<()> {
    let target = Target::new(ws)?;
    let running = target.start("--enable-sandbox", &target.pid())?;
    let root = format!("/proc/{}/root", running.pid());
    ensure!(fs::read_dir(format!("{root}/"))?.count() == 0, "{root} is not empty");
    for name in ["home", "root", "var", "etc"] {
        ensure!(!fs::exists(format!("{root}/{name}"))?, "{root}/{name}");
    }
    Ok(())
}
