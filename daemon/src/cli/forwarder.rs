//! `sidestep forwarder`: started by the monitor, with the channel to it as standard input.

use std::process::ExitCode;

use anyhow::Context;
use sidestep_forwarder::Config;

use crate::monitor::worker;

pub fn run() -> anyhow::Result<ExitCode> {
    let (started, fds) = worker::receive_start::<Config>(c"forwarder")?;
    let tap = fds.into_iter().next().context("no TAP received")?;
    let ready = worker::ready(&started.channel)?;
    sidestep_forwarder::run(started.config, tap, started.channel.into(), ready)?;
    Ok(ExitCode::SUCCESS)
}
