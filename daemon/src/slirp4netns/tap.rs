//! The TAP in somebody else's network namespace: a process of its own enters that, makes the TAP or attaches to the one
//! its owner made, configures it if asked to, and hands its descriptor back.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, bail};
use nix::sched::CloneFlags;
use nix::sys::wait::waitpid;
use sidestep_forwarder::slirp4netns::command_line::{Settings, Target};

use crate::channel::{Channel, Received};
use crate::launcher::{needs, tap};
use crate::supervisor::factory::enter;
use crate::sys::fork;

/// The network namespace, and the user namespace from which it is entered: that of the process named, of the path
/// given, or our own.
pub struct Namespaces {
    pub userns: OwnedFd,
    pub netns: OwnedFd,
}

impl Namespaces {
    pub fn open(settings: &Settings) -> anyhow::Result<Self> {
        let open = |path: &Path| -> anyhow::Result<OwnedFd> {
            Ok(File::open(path).with_context(|| path.display().to_string())?.into())
        };
        let of_process = |pid: u32, kind: &str| open(Path::new(&format!("/proc/{pid}/ns/{kind}")));
        let netns = match &settings.target {
            Target::Pid(pid) => of_process(*pid, "net")?,
            Target::Path(path) => open(path).context("existing path expected when --netns-type=path")?,
        };
        let userns = match (&settings.userns, &settings.target) {
            (Some(path), _) => open(path).context("userns path doesn't exist")?,
            (None, Target::Pid(pid)) => of_process(*pid, "user")?,
            (None, Target::Path(_)) => open(Path::new("/proc/self/ns/user"))?,
        };
        Ok(Self { userns, netns })
    }
}

/// Only in a process with one thread.
pub fn make(namespaces: &Namespaces, settings: &Settings) -> anyhow::Result<OwnedFd> {
    let (ours, theirs) = Channel::pair().context("cannot make a socket pair")?;
    let child = fork::fork(|| {
        let made = make_inside(namespaces, settings);
        let sent = match &made {
            Ok(tap) => theirs.send(&None::<String>, &[tap.as_fd()]),
            Err(error) => theirs.send(&Some(format!("{error:#}")), &[]),
        };
        i32::from(sent.is_err())
    })?;
    drop(theirs);
    let received = ours.receive::<Option<String>>(None)?;
    waitpid(child, None)?;
    match received {
        Received::Message(None, taps) => taps.into_iter().next().context("no TAP received"),
        Received::Message(Some(error), _) => bail!(error),
        Received::Timeout | Received::Closed => bail!("the process that makes the TAP ended without a word"),
    }
}

fn make_inside(namespaces: &Namespaces, settings: &Settings) -> anyhow::Result<OwnedFd> {
    enter(&namespaces.userns, CloneFlags::CLONE_NEWUSER).context("cannot enter the user namespace")?;
    enter(&namespaces.netns, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
    let tap = sidestep_forwarder::tap::open(&settings.ifname).map_err(|error| needs::tap_refused(&error))?.into_fd();
    if settings.configure {
        tap::set_up(&settings.network, &settings.ifname)?;
    }
    Ok(tap)
}
