//! The supervisor: answers the workspace's stopped system calls.

pub mod ledger;

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use sidestep_forwarder::network::VirtualNetwork;
use sidestep_forwarder::policy::Policy;

/// What the supervisor needs to know; its descriptors come beside it, in [`Handles`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    /// The workspace runs in a Landlock domain that denies TCP bind and connect (DESIGN, security 2).
    pub strict: bool,
    pub network: VirtualNetwork,
    pub policy: Policy,
    /// Index of the TAP inside the workspace's network namespace.
    pub tap_ifindex: u32,
}

/// Descriptors the monitor keeps copies of, in the order in which they are sent.
pub struct Handles {
    /// The seccomp listener; None without `--bypass`.
    pub listener: Option<OwnedFd>,
    /// Memory of [`ledger::SIZE`] bytes that outlives a supervisor.
    pub ledger: OwnedFd,
    /// The workspace's user and network namespaces (/proc/self/ns/user, /proc/self/ns/net as opened inside).
    pub userns: OwnedFd,
    pub netns: OwnedFd,
}

/// Runs until `stop` (the channel to the monitor) is closed at the other end. Called in a process that has one thread.
pub fn run(
    _start: Start,
    _handles: Handles,
    _stop: OwnedFd,
    _ready: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
