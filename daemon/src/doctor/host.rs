//! What the workers need of the host itself.

use anyhow::bail;
use nix::errno::Errno;
use nix::sys::wait::waitpid;
use nix::unistd::{AccessFlags, access, getegid};
use sidestep_forwarder::sandbox;

use super::{Check, Finding, PATIENCE};
use crate::channel::{Channel, Received};
use crate::launcher::needs;
use crate::state_dir;
use crate::sys::{fork, socket};

/// The forwarder's ping sockets, icmp(7).
pub fn ping() -> Finding {
    let group = getegid().as_raw();
    match socket::new(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP) {
        Ok(_) => Finding::ok(Check::Ping, format!("net.ipv4.ping_group_range has group {group}")),
        Err(error) => Finding::warn(Check::Ping, needs::no_ping(&error, group)),
    }
}

/// Where the state directory would be made, if none is named. None is made.
pub fn state_dir() -> Finding {
    let parent = state_dir::usual_parent();
    let there = [Some(parent.as_path()), parent.parent()].into_iter().flatten().find(|path| path.exists());
    let usable = there.map_or(Err(Errno::ENOENT), |there| access(there, AccessFlags::W_OK | AccessFlags::X_OK));
    match usable {
        Ok(()) => Finding::ok(Check::StateDir, format!("in {}", parent.display())),
        Err(errno) => Finding::fail(Check::StateDir, needs::no_state_dir(&parent, &errno.into())),
    }
}

/// Entered by a process that does nothing else.
pub fn sandbox() -> anyhow::Result<Finding> {
    let (ours, theirs) = Channel::pair()?;
    let child = fork::fork(|| {
        let refused = sandbox::enter().err().map(|error| needs::no_sandbox(&error));
        i32::from(theirs.send(&refused, &[]).is_err())
    })?;
    drop(theirs);
    let finding = match ours.receive(Some(PATIENCE))? {
        Received::Message(None, _) => Finding::ok(Check::Sandbox, "no files, no capabilities, few system calls"),
        Received::Message(Some(missing), _) => Finding::fail(Check::Sandbox, missing),
        Received::Closed => bail!("the process that entered the forwarder's sandbox said nothing"),
        Received::Timeout => bail!("the process that enters the forwarder's sandbox is stuck"),
    };
    waitpid(child, None)?;
    Ok(finding)
}
