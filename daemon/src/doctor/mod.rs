//! What `sidestep run` needs, tried for real: a workspace is made that runs no command ([`workspace`]), one of its
//! connects is stopped and answered ([`call`]), and the host is asked for the rest ([`host`]).
//!
//! Everything that is made is gone with the trial's process, and nothing of the machine is changed. The reasons are those
//! that `sidestep run` gives ([`needs`](crate::launcher::needs)).

mod call;
mod host;
mod workspace;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::launcher::needs::Missing;

/// A step takes milliseconds; a machine under load gets this long for one.
const PATIENCE: Duration = Duration::from_secs(20);

/// What of `sidestep run` a check is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Every workspace.
    Tap,
    Bypass,
    Strict,
}

/// In the order in which they are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Check {
    #[serde(rename = "user namespace")]
    UserNamespace,
    #[serde(rename = "ids")]
    Ids,
    #[serde(rename = "network namespace")]
    NetworkNamespace,
    #[serde(rename = "pid namespace")]
    PidNamespace,
    #[serde(rename = "/dev/net/tun")]
    Tun,
    #[serde(rename = "resolv.conf")]
    ResolvConf,
    #[serde(rename = "ping")]
    Ping,
    #[serde(rename = "state directory")]
    StateDir,
    #[serde(rename = "sandbox")]
    Sandbox,
    #[serde(rename = "listener")]
    Listener,
    #[serde(rename = "SYNC_WAKE_UP")]
    SyncWakeUp,
    #[serde(rename = "pidfd_getfd")]
    PidfdGetfd,
    #[serde(rename = "SO_NETNS_COOKIE")]
    NetnsCookie,
    #[serde(rename = "ADDFD")]
    Addfd,
    #[serde(rename = "Landlock")]
    Landlock,
}

impl Check {
    pub const ALL: [Self; 15] = [
        Self::UserNamespace,
        Self::Ids,
        Self::NetworkNamespace,
        Self::PidNamespace,
        Self::Tun,
        Self::ResolvConf,
        Self::Ping,
        Self::StateDir,
        Self::Sandbox,
        Self::Listener,
        Self::SyncWakeUp,
        Self::PidfdGetfd,
        Self::NetnsCookie,
        Self::Addfd,
        Self::Landlock,
    ];

    fn mode(self) -> Mode {
        match self {
            Self::UserNamespace
            | Self::Ids
            | Self::NetworkNamespace
            | Self::PidNamespace
            | Self::Tun
            | Self::ResolvConf
            | Self::Ping
            | Self::StateDir
            | Self::Sandbox => Mode::Tap,
            Self::Listener | Self::SyncWakeUp | Self::PidfdGetfd | Self::NetnsCookie | Self::Addfd => Mode::Bypass,
            Self::Landlock => Mode::Strict,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    /// The mode works, with less than it could have.
    Warn,
    /// The mode does not work.
    Fail,
    /// Not tried: what comes before it has failed.
    Skip,
}

/// What came of one check.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finding {
    #[serde(rename = "for")]
    pub mode: Mode,
    #[serde(rename = "name")]
    pub check: Check,
    pub status: Status,
    pub found: String,
    pub fix: Option<String>,
}

impl Finding {
    fn ok(check: Check, found: impl Into<String>) -> Self {
        Self { mode: check.mode(), check, status: Status::Ok, found: found.into(), fix: None }
    }

    fn warn(check: Check, missing: Missing) -> Self {
        Self { mode: check.mode(), check, status: Status::Warn, found: missing.cause, fix: missing.fix }
    }

    fn fail(check: Check, missing: Missing) -> Self {
        Self { status: Status::Fail, ..Self::warn(check, missing) }
    }

    fn skip(check: Check) -> Self {
        Self { status: Status::Skip, ..Self::ok(check, "not tried, for what comes before it has failed") }
    }
}

/// Tries everything; one finding for each of [`Check::ALL`], in that order.
pub fn examine() -> anyhow::Result<Vec<Finding>> {
    let mut findings = workspace::tried()?;
    findings.extend([host::ping(), host::state_dir()]);
    // The forwarder's sandbox is made of such a namespace, too.
    if findings.iter().all(|finding| (finding.check, finding.status) != (Check::UserNamespace, Status::Fail)) {
        findings.push(host::sandbox()?);
    }
    let untried = Check::ALL.into_iter().filter(|&check| findings.iter().all(|finding| finding.check != check));
    let untried: Vec<_> = untried.map(Finding::skip).collect();
    findings.extend(untried);
    findings.sort_by_key(|finding| finding.check);
    Ok(findings)
}

/// Whether a mode works: nothing has failed that it needs, nor of what the modes before it need.
pub fn works(findings: &[Finding], mode: Mode) -> bool {
    let needed = findings.iter().filter(|finding| finding.mode <= mode);
    needed.map(|finding| finding.status).all(|status| matches!(status, Status::Ok | Status::Warn))
}
