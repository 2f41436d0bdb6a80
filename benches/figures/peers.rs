//! The systems that do the same job, each in a user and network namespace of its own, called by the same user.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::lab::CUBIC;
use crate::lab::command::PATH;
use crate::lab::workspace::Workspace;
use crate::station::Contender;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum System {
    Slirp4netns,
    Pasta,
}

/// One of them at an MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    system: System,
    mtu: u32,
}

/// Those on this machine, at each of these MTUs.
pub fn installed(mtus: &[u32]) -> Vec<Contender> {
    let found = [System::Slirp4netns, System::Pasta]
        .into_iter()
        .filter(|system| PATH.split(':').any(|dir| std::path::Path::new(dir).join(system.program()).is_file()));
    found.flat_map(|system| mtus.iter().map(move |&mtu| Contender::Peer(Peer { system, mtu }))).collect()
}

impl System {
    fn program(self) -> &'static str {
        match self {
            Self::Slirp4netns => "slirp4netns",
            Self::Pasta => "pasta",
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, MTU {}", self.system.program(), self.mtu)
    }
}

impl Peer {
    /// Standard output of a command run behind this peer, started by the caller in the lab's host.
    pub fn run(self, workspace: &Workspace, argv: &[String], deadline: Duration) -> Result<String> {
        match self.system {
            System::Slirp4netns => self.run_slirp4netns(workspace, argv, deadline),
            System::Pasta => self.run_pasta(workspace, argv, deadline),
        }
    }

    fn run_pasta(self, workspace: &Workspace, argv: &[String], deadline: Duration) -> Result<String> {
        let mtu = self.mtu;
        let line = format!("pasta --quiet --config-net --ipv4-only --mtu {mtu} {PASTA_ADDRESSES} -- sh -c");
        let words: Vec<&str> = line.split(' ').collect();
        let script = WAIT_AND_RUN.replace("CUBIC", CUBIC);
        let program = workspace.program(words).arg(script).arg("sh");
        let program = argv.iter().fold(program, |program, word| program.arg(word));
        after_ready(&program.deadline(deadline).run(&workspace.lab.host)?.output()?)
    }

    /// slirp4netns is given a process that waits in the namespace until it has a default route.
    fn run_slirp4netns(self, workspace: &Workspace, argv: &[String], deadline: Duration) -> Result<String> {
        let script = WAIT_AND_RUN.replace("CUBIC", CUBIC);
        let program =
            workspace.program(["unshare", "--user", "--map-root-user", "--net", "sh", "-c"]).arg(script).arg("sh");
        let program = argv.iter().fold(program, |program, word| program.arg(word)).deadline(deadline);
        let mut inside = program.start(&workspace.lab.host)?;
        inside.line_with(READY)?;
        let (mtu, pid) = (self.mtu.to_string(), inside.pid().to_string());
        let _network = workspace
            .program(["slirp4netns", "--configure", "--mtu", &mtu, &pid, "tap0"])
            .deadline(deadline)
            .start(&workspace.lab.host)?;
        after_ready(&inside.finish()?.output()?)
    }
}

/// Without its own it takes the host's address, and old versions then get no answer across the lab's cable.
const PASTA_ADDRESSES: &str = "--address 10.0.2.100 --netmask 24 --gateway 10.0.2.2 --ns-ifname tap0";
const READY: &str = "in the namespace";
/// Runs its arguments once there is a default route, with the congestion control that all paths have.
const WAIT_AND_RUN: &str = "echo in the namespace
until route=$(ip -4 route show default) && test -n \"$route\"; do sleep 0.02; done
ip link set lo up
ip route change $route CUBIC
exec \"$@\"";

fn after_ready(text: &str) -> Result<String> {
    let rest = text.split_once(READY).map(|(_, rest)| rest.trim().to_owned());
    rest.with_context(|| format!("never got into its namespace: {text}"))
}
