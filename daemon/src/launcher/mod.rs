//! From a command line to a command running in its workspace.
//!
//! ```text
//! Settings ─ plan ─> Plan ─ clone ─> Namespaces ─ tap ─> Networked ─ files ─> Furnished ─ confine ─> Confined ─> exec
//! ```
//!
//! `Plan` holds everything that can be decided on the host, before anything is made. After the clone(2) the child goes
//! through the other steps, each consuming the one before, and reports over a [`Channel`]; the monitor writes the id
//! maps in between and lets it go on once the workers are ready.

pub(crate) mod confine;
mod exec;
pub(crate) mod files;
pub(crate) mod host;
pub(crate) mod id_map;
pub(crate) mod namespaces;
pub(crate) mod needs;
pub(crate) mod outbound;
mod plan;
pub mod resolv_conf;
pub(crate) mod tap;
mod workspace;

use std::ffi::OsString;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sidestep_forwarder::network::{Ipv4Subnet, MacAddr};
use sidestep_forwarder::policy::Rule;

pub use plan::Plan;
pub use workspace::{Made, Workspace, launch};

use crate::logging::LogSettings;
use crate::publish::Spec;

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Settings {
    pub bypass: Bypass,
    pub bypass_udp: bool,
    pub bypass_nested: bool,
    pub mtu: Mtu,
    pub cidr: Ipv4Subnet,
    pub ifname: String,
    pub ipv6: Choice,
    pub macaddress: Option<MacAddr>,
    /// An address or an interface.
    pub outbound_addr: Option<String>,
    pub outbound_addr6: Option<String>,
    pub disable_dns: bool,
    pub host_loopback: bool,
    pub egress_rules: Vec<Rule>,
    pub publish: Vec<Spec>,
    pub publish_auto: Option<Option<IpAddr>>,
    pub pidns: Choice,
    pub keep_id: bool,
    pub state_dir: Option<PathBuf>,
    pub ready_fd: Option<RawFd>,
    pub pcap: Option<PathBuf>,
    pub log: LogSettings,
    pub command: Vec<OsString>,
}

/// `--bypass`: whether TCP leaves the TAP, and what happens where that cannot be guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Bypass {
    /// Everything through the TAP
    Off,
    /// Bypass where it can be enforced, otherwise the TAP with one warning
    Auto,
    /// Bypass or exit code 125
    Require,
    /// Bypass without Landlock's rules: an optimisation, not a boundary
    Unconfined,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// Where it is possible and of use
    Auto,
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mtu {
    Auto,
    Fixed(u16),
}

/// What carries the workspace's TCP in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Active {
    /// The TAP alone.
    Off,
    /// The bypass, with Landlock's network rules.
    Strict,
    /// The bypass, without them.
    Unconfined,
}

impl Active {
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Strict => "strict",
            Self::Unconfined => "unconfined",
        }
    }

    /// The value of SIDESTEP_ACTIVE.
    pub fn path(self) -> &'static str {
        if self == Self::Off { "tap" } else { "bypass" }
    }
}
