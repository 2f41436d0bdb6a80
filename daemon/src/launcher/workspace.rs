//! The two sides of the clone: the monitor's, which writes the id maps and receives what was made, and the child's,
//! which goes through the steps.

use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::id_map::IdMaps;
use super::namespaces::{self, Namespaces, ProcRefused};
use super::needs::{self, Missing, UsernsSysctls};
use super::{Active, Choice, Plan, files, tap};
use crate::FAILURE;
use crate::channel::{Channel, Received};
use crate::sys::{self, pidfd};

/// The child's steps take milliseconds; a machine under load gets this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Monitor → child.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    MapsWritten,
    /// With the value of SIDESTEP_STATE_DIR.
    Exec {
        state_dir: PathBuf,
    },
}

/// Child → monitor.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// With the TAP, the user namespace, the network namespace and, under the bypass, the listener.
    Made {
        active: Active,
        tap_ifindex: u32,
    },
    ProcRefused,
    Failed(Missing),
}

/// What the monitor keeps of a workspace.
pub struct Made {
    pub active: Active,
    pub tap_ifindex: u32,
    pub pid_namespace: bool,
    /// A pidfd of its first process.
    pub init: OwnedFd,
    pub tap: OwnedFd,
    pub userns: OwnedFd,
    pub netns: OwnedFd,
    pub listener: Option<OwnedFd>,
}

/// The workspace's first process. Dropped before it has been waited for, it is killed.
pub struct Workspace {
    pid: Pid,
    channel: Channel,
    waited_for: bool,
}

/// Makes the workspace up to the exec. With `--pidns=auto` a refused /proc means a second try without pid namespace.
pub fn launch(plan: &Plan) -> anyhow::Result<(Workspace, Made)> {
    if plan.pidns != Choice::Off {
        match attempt(plan, true) {
            Err(error) if error.is::<ProcRefused>() && plan.pidns == Choice::Auto => {}
            Err(error) if error.is::<ProcRefused>() => bail!("--pidns=on: {error}"),
            other => return other,
        }
    }
    attempt(plan, false)
}

fn attempt(plan: &Plan, pid_namespace: bool) -> anyhow::Result<(Workspace, Made)> {
    let workspace = Workspace::cloned(pid_namespace, |channel| child(plan, channel, pid_namespace))?;
    if let Some(missing) = workspace.map_ids(&plan.id_maps)? {
        tracing::warn!("{missing}; going on with one user inside");
    }
    let (report, fds) = match workspace.channel.receive(Some(PATIENCE))? {
        Received::Message(report, fds) => (report, fds),
        Received::Timeout => bail!("the workspace was not ready within {} s", PATIENCE.as_secs()),
        Received::Closed => bail!("the workspace's first process ended before it was ready"),
    };
    match report {
        Report::Made { active, tap_ifindex } => {
            let mut fds = fds.into_iter();
            let mut next = |name: &str| fds.next().with_context(|| format!("no {name} received"));
            let made = Made {
                active,
                tap_ifindex,
                pid_namespace,
                init: pidfd::open_process(workspace.pid.as_raw().cast_unsigned())?,
                tap: next("TAP")?,
                userns: next("user namespace")?,
                netns: next("network namespace")?,
                listener: if active == Active::Off { None } else { Some(next("listener")?) },
            };
            Ok((workspace, made))
        }
        Report::ProcRefused => Err(ProcRefused.into()),
        Report::Failed(missing) => bail!(missing),
    }
}

/// The child: step after step; what goes wrong is the monitor's to say.
fn child(plan: &Plan, channel: &Channel, pid_namespace: bool) {
    let Err(error) = steps(plan, channel, pid_namespace);
    let report = if error.is::<ProcRefused>() { Report::ProcRefused } else { Report::Failed(needs::inside(&error)) };
    // A monitor that is gone needs no report.
    drop(channel.send(&report, &[]));
}

fn steps(plan: &Plan, channel: &Channel, pid_namespace: bool) -> anyhow::Result<Infallible> {
    let namespaces = Namespaces::entered(channel, pid_namespace)?;
    let networked = tap::bring_up(namespaces, &plan.network, &plan.ifname)?;
    let furnished = files::provide(networked, &plan.resolv_conf)?;
    let confined = plan.confinement.confine(furnished)?;
    confined.exec(plan, channel)
}

impl Workspace {
    /// Clones the first process, which goes through `steps` and no further, should these come back.
    pub fn cloned(pid_namespace: bool, steps: impl FnOnce(&Channel)) -> anyhow::Result<Self> {
        let (channel, childs) = Channel::pair().context("cannot make a socket pair")?;
        let cloned = sys::clone::clone(namespaces::flags(pid_namespace));
        let Some(pid) = cloned.map_err(|error| UsernsSysctls::read().clone_refused(&error))? else {
            drop(channel);
            steps(&childs);
            std::process::exit(FAILURE.into());
        };
        Ok(Self { pid, channel, waited_for: false })
    }

    /// Writes the maps of its ids and lets it go on; gives what the subordinate ids lack where it has one id alone.
    pub fn map_ids(&self, maps: &IdMaps) -> anyhow::Result<Option<Missing>> {
        let missing = maps.write(self.pid)?;
        self.channel.send(&Order::MapsWritten, &[])?;
        Ok(missing)
    }

    /// Our end of the channel to it.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Lets the child execute `sidestep init` and returns once it has: its end of the channel closes with the exec.
    pub fn exec(&self, state_dir: &Path) -> anyhow::Result<()> {
        self.channel.send(&Order::Exec { state_dir: state_dir.to_owned() }, &[])?;
        match self.channel.receive::<Report>(Some(PATIENCE))? {
            Received::Closed => Ok(()),
            Received::Message(Report::Failed(missing), _) => bail!(missing),
            Received::Message(..) | Received::Timeout => bail!("the workspace's first process is stuck"),
        }
    }

    /// For whoever has reaped it.
    pub fn waited_for(&mut self) {
        self.waited_for = true;
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if !self.waited_for {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}
