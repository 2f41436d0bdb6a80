//! `sidestep forwarder`: started by the monitor, with the channel to it as standard input.

use std::process::ExitCode;

use anyhow::Context;
use sidestep_forwarder::link::Link;
use sidestep_forwarder::{Handles, MEMORY_WORDS, sandbox};

use crate::monitor::worker::{self, ForwarderStart};
use crate::sys::shared_memory;

pub fn run() -> anyhow::Result<ExitCode> {
    let (started, fds) = worker::receive_start::<ForwarderStart>(c"forwarder")?;
    let mut fds = fds.into_iter();
    let tap = fds.next().context("no TAP received")?;
    let memory = fds.next().context("no memory received")?;
    let link = fds.next().context("no channel to the supervisor received")?;
    let memory = shared_memory::map_words(memory, MEMORY_WORDS).context("cannot map the connections' ledger")?;
    let ports = worker::receive_ports(&started.channel)?;
    let ready = worker::ready(&started.channel)?;
    let ForwarderStart { config, restarts } = started.config;
    let link = Some(Link::new(link.into(), restarts));
    let handles = Handles { tap, stop: started.channel.into(), link, capture: fds.next(), ports };
    sidestep_forwarder::run(config, handles, memory, sandbox::enter, ready)?;
    Ok(ExitCode::SUCCESS)
}
