//! The forwarder's loop: frames, host events and timers to the engine, its actions back out.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::network::VirtualNetwork;
use crate::policy::Policy;

/// What the forwarder needs to know; the TAP comes beside it, as a descriptor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    pub network: VirtualNetwork,
    pub policy: Policy,
    /// The host's resolvers, in order; DNS to the virtual resolver goes to them.
    pub resolvers: Vec<IpAddr>,
}

/// Runs until `stop` (the channel to the monitor) is closed at the other end. `ready` is called once frames are read.
pub fn run(
    _config: Config,
    _tap: OwnedFd,
    _stop: OwnedFd,
    _ready: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
