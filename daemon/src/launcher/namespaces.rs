//! The first step in the child: it waits for its ids, ties its life to the monitor's, and mounts /proc where it is the
//! first process of a pid namespace.

use std::fs::File;
use std::os::fd::OwnedFd;

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsmount, fsopen, move_mount,
};

use super::needs;
use super::workspace::Order;
use crate::channel::{Channel, Received};

/// Namespaces with ids mapped; references for the supervisor.
pub struct Namespaces {
    pub userns: OwnedFd,
    pub netns: OwnedFd,
}

/// Mounting a new /proc is refused where parts of the one in place are masked, as in Docker.
#[derive(Debug, thiserror::Error)]
#[error("{}", needs::masked_proc())]
pub struct ProcRefused;

/// What is unshared first. Mounts of a less privileged mount namespace are slaves of the host's: none of ours gets out.
pub fn flags(pid_namespace: bool) -> CloneFlags {
    let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS;
    if pid_namespace { flags | CloneFlags::CLONE_NEWPID } else { flags }
}

impl Namespaces {
    pub fn entered(channel: &Channel, pid_namespace: bool) -> anyhow::Result<Self> {
        set_pdeathsig(Signal::SIGKILL).context("cannot ask to end with the monitor")?;
        // A monitor that died before that call is seen here, for its end of the channel is closed.
        match channel.receive(None)? {
            Received::Message(Order::MapsWritten, _) => {}
            _ => bail!("the monitor is gone"),
        }
        // Only now: files of /proc/net belong to the root that the user namespace has when the network namespace is made.
        unshare(CloneFlags::CLONE_NEWNET).map_err(needs::network_refused)?;
        if pid_namespace {
            mount_proc()?;
        }
        let open = |name: &str| File::open(name).with_context(|| format!("cannot open {name}"));
        Ok(Self { userns: open("/proc/self/ns/user")?.into(), netns: open("/proc/self/ns/net")?.into() })
    }
}

/// In the first process of a pid namespace.
pub fn mount_proc() -> anyhow::Result<()> {
    let mounted = (|| {
        let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        let attributes =
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let proc = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        move_mount(&proc, "", CWD, "/proc", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
    })();
    match mounted {
        Err(Errno::PERM) => Err(ProcRefused.into()),
        other => other.context("cannot mount /proc"),
    }
}
