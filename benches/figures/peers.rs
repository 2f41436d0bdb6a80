//! The systems that do the same job, each in a user and network namespace of its own, called by the same user.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::lab::command::{DEADLINE, Program};
use crate::lab::workspace::Workspace;
use crate::lab::world::runtime_dir;
use crate::lab::{CUBIC, poll};
use crate::machine::find;
use crate::report::Report;
use crate::station::Contender;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Slirp4netns,
    Pasta,
}

/// At which both are fastest, by far.
const BEST_MTU: &str = "65520";

/// Those on this machine; the report names the others.
pub fn installed(report: &Report) -> Vec<Contender> {
    let mut here = Vec::new();
    for peer in [Peer::Slirp4netns, Peer::Pasta] {
        match find(peer.program()) {
            None => report.left_out(peer.program(), "not installed"),
            Some(program) if is_sidestep(&program) => report.left_out(peer.program(), "is sidestep by that name"),
            Some(_) => here.push(Contender::Peer(peer)),
        }
    }
    here
}

/// As `make install SLIRP4NETNS=1` has it.
fn is_sidestep(program: &Path) -> bool {
    let said = Command::new(program).arg("--version").output();
    said.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).contains("sidestep"))
}

/// One slirp4netns at a time has it.
fn api() -> PathBuf {
    runtime_dir().join("slirp4netns.sock")
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, MTU {BEST_MTU}", self.program())
    }
}

impl Peer {
    fn program(self) -> &'static str {
        match self {
            Self::Slirp4netns => "slirp4netns",
            Self::Pasta => "pasta",
        }
    }

    /// Standard output of a command run behind this peer, started by the caller in the lab's host.
    pub fn run(self, workspace: &Workspace, argv: &[String], deadline: Duration) -> Result<String> {
        match self {
            Self::Slirp4netns => run_slirp4netns(workspace, argv, deadline),
            Self::Pasta => run_pasta(workspace, argv, deadline),
        }
    }

    /// A server behind this peer, at a port of its own that is to be published. Once it listens, see [`Self::publish`].
    pub fn server(self, workspace: &Workspace, port: u16, argv: &[String]) -> Program {
        match self {
            Self::Slirp4netns => slirp4netns_with(workspace, &format!("--api-socket {}", api().display()), argv),
            Self::Pasta => pasta_with(workspace, &["--tcp-ports", &port.to_string()], argv),
        }
    }

    /// Has slirp4netns publish the port; pasta has it since its start.
    pub fn publish(self, port: u16) -> Result<()> {
        if self == Self::Pasta {
            return Ok(());
        }
        let arguments = json!({ "proto": "tcp", "host_port": port, "guest_port": port });
        let mut api = poll("slirp4netns's API", DEADLINE, || Ok(UnixStream::connect(api()).ok()))?;
        // In one piece: it reads once.
        api.write_all(json!({ "execute": "add_hostfwd", "arguments": arguments }).to_string().as_bytes())?;
        let mut answer = String::new();
        api.read_to_string(&mut answer)?;
        ensure!(answer.contains("return"), "slirp4netns does not publish port {port}: {answer}");
        Ok(())
    }
}

/// A command behind pasta with further flags of its own.
fn pasta_with(workspace: &Workspace, flags: &[&str], argv: &[String]) -> Program {
    let script = script();
    let line = format!("pasta --quiet --config-net --mtu {BEST_MTU} {PASTA_ADDRESSES}");
    let argv = argv.iter().map(String::as_str);
    let argv = ["--", "sh", "-c", &script, "sh"].into_iter().chain(argv);
    workspace.program(line.split(' ').chain(flags.iter().copied()).chain(argv))
}

fn run_pasta(workspace: &Workspace, argv: &[String], deadline: Duration) -> Result<String> {
    let program = pasta_with(workspace, &[], argv);
    after_ready(&program.deadline(deadline).run(&workspace.lab.host)?.output()?)
}

fn run_slirp4netns(workspace: &Workspace, argv: &[String], deadline: Duration) -> Result<String> {
    after_ready(&slirp4netns_with(workspace, "", argv).deadline(deadline).run(&workspace.lab.host)?.output()?)
}

/// slirp4netns is given a process that waits in its namespaces until it has a default route. Both have one parent: where
/// there is one id, a user namespace of its own around each would hide them from each other.
fn slirp4netns_with(workspace: &Workspace, flags: &str, argv: &[String]) -> Program {
    let both = BOTH.replace("MTU", BEST_MTU).replace("FLAGS", flags);
    workspace.outside(["sh", "-c", &both, "sh", &script()].into_iter().chain(argv.iter().map(String::as_str)))
}

/// What a shell starts in the background has its standard input from elsewhere.
const BOTH: &str = r#"script=$1; shift
exec 3<&0
unshare --user --map-root-user --net sh -c "$script" sh "$@" <&3 & inside=$!
until net=$(readlink /proc/$inside/ns/net) && test "$net" != "$(readlink /proc/self/ns/net)"; do sleep 0.01; done
slirp4netns --configure --enable-ipv6 --mtu MTU FLAGS $inside tap0 >&2 & network=$!
status=0
wait $inside || status=$?
kill $network
# The next one's API has the same path.
wait $network || :
exit $status"#;

/// Without its own it takes the host's address, and old versions then get no answer across the lab's cable.
const PASTA_ADDRESSES: &str = "--address 10.0.2.100 --netmask 24 --gateway 10.0.2.2 --address fd00::100 --gateway \
                               fd00::2 --ns-ifname tap0";
const READY: &str = "in the namespace";
/// Runs its arguments once there is a default route, with the congestion control that all paths have, and without
/// waiting for duplicate addresses.
const WAIT_AND_RUN: &str = "echo in the namespace
until route=$(ip -4 route show default) && test -n \"$route\"; do sleep 0.02; done
ip link set lo up
ip route change $route CUBIC
ip -6 addr flush dev tap0 scope global
ip -6 addr add fd00::100/64 dev tap0 nodad
ip -6 route replace default via fd00::2 dev tap0 CUBIC
exec \"$@\"";

fn script() -> String {
    WAIT_AND_RUN.replace("CUBIC", CUBIC)
}

fn after_ready(text: &str) -> Result<String> {
    let rest = text.split_once(READY).map(|(_, rest)| rest.trim().to_owned());
    rest.with_context(|| format!("never got into its namespace: {text}"))
}
