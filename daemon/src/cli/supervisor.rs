//! `sidestep supervisor`: started by the monitor, with the channel to it as standard input.
//!
//! It is the one process that outlives a killed monitor for a moment: the channel's end stops it, and it kills the
//! workspace and removes the state directory before it goes.

use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::Context;

use crate::monitor::worker;
use crate::state_dir;
use crate::supervisor::{self, Handles, Start};

pub fn run() -> anyhow::Result<ExitCode> {
    let (started, fds) = worker::receive_start::<Start>(c"supervisor")?;
    let state_dir = started.config.state_dir.clone();
    let mut fds = fds.into_iter();
    let mut next = |name: &str| fds.next().with_context(|| format!("no {name} received"));
    let (ledger, userns, netns) = (next("ledger")?, next("user namespace")?, next("network namespace")?);
    let (init, directory) = (next("pidfd of init")?, next("state directory")?);
    let link = next("channel to the forwarder")?;
    let held = directory.try_clone()?;
    let handles = Handles { ledger, userns, netns, init, state_dir: directory, listener: fds.next() };
    let ready = worker::ready(&started.channel)?;
    let ended = supervisor::run(started.config, handles, link, started.channel.try_clone()?.into(), ready);
    if started.channel.is_closed()? {
        state_dir::remove(&state_dir, held.as_fd());
    }
    ended?;
    Ok(ExitCode::SUCCESS)
}
