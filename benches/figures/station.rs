//! Where a figure is measured: a path to the network, in a lab of its own with servers at its remote end.
//!
//! Every path has its own lab, made alike, so that no path inherits another's TIME_WAITs or buffers.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};

use serde::de::DeserializeOwned;

use crate::bypass4netns;
use crate::connections;
use crate::lab::Lab;
use crate::lab::command::{Program, Running};
use crate::lab::workspace::Workspace;
use crate::lab::{iperf3, world};
use crate::latency;
use crate::machine::find;
use crate::nested;
use crate::peers::Peer;

pub const IPERF3_PORT: u16 = 5201;
/// The workspace's published port.
pub const PUBLISHED: u16 = 5301;

/// What carries the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    Host,
    /// The host under another name: the control.
    HostAgain,
    Tap {
        mtu: u32,
    },
    /// The TAP, from a namespace within the workspace.
    Nested,
    Bypass,
    /// A published port: by the forwarder, unless the bypass has taken it out.
    Published {
        bypass: bool,
    },
    Peer(Peer),
    Bypass4netns,
}

pub struct Station {
    pub contender: Contender,
    pub workspace: Workspace,
    _iperf3: Option<Running>,
}

impl Contender {
    /// The contenders that every figure has.
    pub const OURS: [Self; 3] = [Self::Host, Self::TAP, Self::Bypass];
    /// As it is by default.
    pub const TAP: Self = Self::Tap { mtu: 1500 };

    /// Not ours and not the kernel: it may fail.
    pub fn is_another_system(self) -> bool {
        matches!(self, Self::Peer(_) | Self::Bypass4netns)
    }

    /// `sidestep run --bypass`.
    pub fn has_bypass(self) -> bool {
        matches!(self, Self::Bypass | Self::Published { bypass: true })
    }

    /// What `sidestep run` is called with; None without it.
    fn flags(self) -> Option<Vec<String>> {
        match self {
            Self::Host | Self::HostAgain | Self::Peer(_) | Self::Bypass4netns => None,
            Self::Tap { mtu } => Some(vec![format!("--mtu={mtu}")]),
            Self::Nested => Some(Vec::new()),
            Self::Bypass => Some(vec!["--bypass=require".to_owned()]),
            Self::Published { bypass } => {
                let bypass = bypass.then(|| "--bypass=require".to_owned());
                Some(bypass.into_iter().chain([format!("--publish={PUBLISHED}:{PUBLISHED}")]).collect())
            }
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.pad("host"),
            Self::HostAgain => f.pad("host again"),
            Self::Tap { mtu } => write!(f, "TAP, MTU {mtu}"),
            Self::Nested => f.pad("TAP, bridge and masquerade inside"),
            Self::Bypass => f.pad("bypass"),
            Self::Published { bypass: false } => f.pad("published port"),
            Self::Published { bypass: true } => f.pad("published port, bypass"),
            Self::Peer(peer) => peer.fmt(f),
            Self::Bypass4netns => f.pad("bypass4netns"),
        }
    }
}

impl Station {
    /// A station for each, each with its own lab.
    pub fn all(contenders: &[Contender]) -> Result<Vec<Self>> {
        contenders.iter().map(|&contender| Self::new(contender)).collect()
    }

    fn new(contender: Contender) -> Result<Self> {
        let lab = Lab::new()?;
        for addr in crate::lab::REMOTE {
            connections::serve(&lab.remote, addr)?;
            latency::serve(&lab.remote, addr)?;
        }
        let server = find("iperf3").map(|_| iperf3(&lab.remote, IPERF3_PORT)).transpose()?;
        Ok(Self { contender, workspace: Workspace::new(lab, contender.flags()), _iperf3: server })
    }

    /// The machine itself, which has a server somewhere.
    pub fn of_the_machine(contenders: &[Contender]) -> Result<Vec<Self>> {
        let one = |&contender: &Contender| {
            let workspace = Workspace::new(Lab::of_the_machine()?, contender.flags());
            Ok(Self { contender, workspace, _iperf3: None })
        };
        contenders.iter().map(one).collect()
    }

    /// The same station, where everything that is run prints at its end what it took of the processors.
    pub fn accounted(mut self) -> Self {
        self.workspace.before = inside(&["accounted", "--"]);
        self
    }

    pub fn program(&self, argv: &[String]) -> Program {
        self.workspace.program(argv)
    }

    /// Standard output of a command that this station's path carried.
    pub fn run(&self, argv: &[String], deadline: Duration) -> Result<String> {
        let measured = match self.contender {
            Contender::Peer(peer) => peer.run(&self.workspace, argv, deadline),
            Contender::Bypass4netns => bypass4netns::run(&self.workspace, argv, deadline),
            Contender::Nested => self.on_host(&nested::argv(argv), deadline),
            _ => self.on_host(argv, deadline),
        };
        measured.with_context(|| format!("measuring {}", self.contender))
    }

    fn on_host(&self, argv: &[String], deadline: Duration) -> Result<String> {
        self.program(argv).deadline(deadline).run(&self.workspace.lab.host)?.output()
    }

    /// Standard output of a command line, split at blanks.
    pub fn line(&self, line: &str) -> Result<String> {
        let argv: Vec<String> = line.split(' ').map(str::to_owned).collect();
        self.run(&argv, Duration::from_secs(60))
    }

    /// What a mode of this program, [`crate::Inside`], prints on this station's path.
    pub fn answer<T: DeserializeOwned>(&self, words: &[&str]) -> Result<T> {
        let text = self.run(&inside(words), Duration::from_secs(60))?;
        serde_json::from_str(&text).with_context(|| format!("{words:?} printed {text:?}"))
    }

    /// The same where it is one number.
    pub fn figure(&self, words: &[&str]) -> Result<f64> {
        self.answer(words)
    }
}

/// A command line of [`crate::Inside`].
pub fn inside(words: &[&str]) -> Vec<String> {
    let program = world::program().display().to_string();
    [program, "bench".to_owned()].into_iter().chain(words.iter().map(|&word| word.to_owned())).collect()
}

/// Where connections are closed at once, at the remote's address.
pub fn closer(addr: IpAddr) -> SocketAddr {
    SocketAddr::new(addr, connections::PORT)
}
