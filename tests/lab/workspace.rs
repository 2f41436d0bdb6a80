//! `sidestep run` in the lab: every way a test wants it, through the TAP or past it, as root or as a user.

use std::ffi::OsStr;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::Lab;
use super::command::{DEADLINE, Finished, Program, Running};
use super::world::{self, SIDESTEP, USER};

/// How the workspace's TCP gets to the host's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// No workspace at all: the program runs on the host.
    Host,
    Tap,
    Bypass,
}

/// Who calls sidestep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    Root,
    User,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub path: Path,
    pub caller: Caller,
}

/// A lab and the way sidestep is run in it.
pub struct Workspace {
    pub lab: Lab,
    pub way: Way,
    flags: Vec<String>,
    env: Vec<(String, String)>,
    deadline: Duration,
}

impl Workspace {
    pub fn new(way: Way) -> Result<Self> {
        Ok(Self { lab: Lab::new()?, way, flags: Vec::new(), env: Vec::new(), deadline: DEADLINE })
    }

    /// One more flag for `sidestep run`.
    pub fn flag(mut self, flag: impl Into<String>) -> Self {
        self.flags.push(flag.into());
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    pub fn bypasses(&self) -> bool {
        self.way.path == Path::Bypass
    }

    /// `sidestep run ... -- argv` as the caller, or argv itself on the host.
    pub fn program<A: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = A>) -> Program {
        let mut program = self.way.caller.program(self.prefix());
        for arg in argv {
            program = program.arg(arg);
        }
        for (name, value) in &self.env {
            program = program.env(name, value);
        }
        program.deadline(self.deadline)
    }

    /// The words that put a command into a workspace: nothing on the host.
    pub fn prefix(&self) -> Vec<String> {
        if self.way.path == Path::Host {
            return Vec::new();
        }
        let mut words = vec![SIDESTEP.to_owned(), "run".to_owned()];
        words.extend(self.flags.iter().cloned());
        let chosen = self.flags.iter().any(|flag| flag.starts_with("--bypass"));
        if self.bypasses() && !chosen && !self.env.iter().any(|(name, _)| name == "SIDESTEP_BYPASS") {
            words.push("--bypass=require".to_owned());
        }
        if let Ok(level) = std::env::var("LAB_LOG") {
            words.push(format!("--log-level={level}"));
        }
        words.push("--".to_owned());
        words
    }

    /// A shell of the caller's, on the host.
    pub fn shell(&self, script: &str) -> Program {
        self.outside(["bash", "--norc", "-c"]).arg(script)
    }

    /// A program of the caller's, on the host.
    pub fn outside(&self, argv: impl IntoIterator<Item = &'static str>) -> Program {
        self.way.caller.program(argv.into_iter().map(str::to_owned).collect()).deadline(self.deadline)
    }

    /// A program of the caller's that meets a running workspace's monitor in its own namespaces.
    pub fn beside<A: AsRef<OsStr>>(&self, running: &Running, argv: impl IntoIterator<Item = A>) -> Program {
        let argv = argv.into_iter().map(|word| word.as_ref().to_owned());
        match self.way.caller {
            // Another unshare(1) would make another user namespace.
            Caller::User if world::is_single_id() => {
                let pid = running.pid().to_string();
                Program::new(argv).behind(["nsenter", "--user", "--preserve-credentials", "--target", &pid, "--"])
            }
            Caller::User => Program::new(argv).uid(USER),
            Caller::Root => Program::new(argv),
        }
        .deadline(self.deadline)
    }

    pub fn run<A: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = A>) -> Result<Finished> {
        self.program(argv).run(&self.lab.host)
    }

    pub fn start<A: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = A>) -> Result<Running> {
        self.program(argv).start(&self.lab.host)
    }

    /// Runs a shell script inside.
    pub fn sh(&self, script: &str) -> Result<Finished> {
        self.run(["sh", "-c", script])
    }

    /// The same in a workspace of a host that has this resolv.conf. Takes a caller that may mount.
    pub fn sh_with_resolv_conf(&self, resolv_conf: &str, script: &str) -> Result<Finished> {
        let bind = format!(
            "f=$(mktemp) && printf '%b\\n' '{resolv_conf}' > $f && mount --bind $f $(readlink -f /etc/resolv.conf) && exec \"$@\""
        );
        self.program(["sh", "-c", script]).behind(["unshare", "--mount", "sh", "-c", &bind, "sh"]).run(&self.lab.host)
    }

    /// A Python program inside, with the names of tests/lab/inside.py.
    pub fn python_program(&self, code: &str) -> Program {
        self.program(["/usr/bin/python3", "-c", &format!("{IMPORT}\n{code}")])
    }

    pub fn python(&self, code: &str) -> Result<Finished> {
        self.python_program(code).run(&self.lab.host)
    }

    pub fn start_python(&self, code: &str) -> Result<Running> {
        self.python_program(code).start(&self.lab.host)
    }

    /// The same on the host, whatever the way.
    pub fn python_outside(&self, code: &str) -> Result<Finished> {
        self.outside(["/usr/bin/python3", "-c"]).arg(format!("{IMPORT}\n{code}")).run(&self.lab.host)
    }

    /// Runs a shell script inside that moves at least `bytes` over TCP; fails unless they took this workspace's path.
    pub fn carries(&self, bytes: u64, script: &str) -> Result<Finished> {
        let counted = format!(
            "{script}\nstatus=$?\nawk '/tap0:/ {{ printf \"tap0 carried %d\\n\", $2 + $10 }}' /proc/net/dev\nexit $status"
        );
        let done = self.sh(&counted)?.succeeded()?;
        let carried =
            done.stdout.lines().rev().find_map(|line| line.strip_prefix("tap0 carried ")?.parse::<u64>().ok());
        match (self.way.path, carried) {
            (Path::Host, _) => {}
            (Path::Tap, Some(carried)) => ensure!(carried >= bytes, "not through the TAP: {done}"),
            // DNS, neighbours and router solicitations go over the TAP in any case.
            (Path::Bypass, Some(carried)) => ensure!(carried < bytes / 2, "through the TAP: {done}"),
            (_, None) => bail!("no tap0 in /proc/net/dev: {done}"),
        }
        Ok(done)
    }

    /// Fails unless a connection to `server` takes this workspace's path: past the TAP with the bypass, and only then.
    pub fn takes_its_path(&self, server: SocketAddr) -> Result<()> {
        let (addr, port) = (server.ip(), server.port());
        let want = if self.bypasses() { "host" } else { "workspace" };
        self.python(&format!("s = dial('{addr}', {port})\nprint(side(s))"))?.printed(want)
    }
}

/// Path of the [`inside`](../inside.py) module's directory.
const IMPORT: &str = "import sys; sys.path.insert(0, '/run/lab'); from inside import *";

impl Caller {
    /// A program run as this caller, from the outermost ids of the world.
    pub fn program(self, argv: Vec<String>) -> Program {
        match self {
            Self::Root => Program::new(argv).env("XDG_RUNTIME_DIR", "/run/user/0"),
            // With one id in the world an ordinary user is that id without its capabilities: a user namespace around
            // it where it is not root, so that nothing over the host's network is left to it.
            Self::User if world::is_single_id() => {
                let user = USER.to_string();
                let wrap = ["unshare", "--user", "--map-user", &user, "--map-group", &user, "--"].map(str::to_owned);
                Program::new(wrap.into_iter().chain(argv)).env("XDG_RUNTIME_DIR", "/run/user/1000")
            }
            Self::User => Program::new(argv).uid(USER).env("XDG_RUNTIME_DIR", "/run/user/1000"),
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = match self.path {
            Path::Host => "host",
            Path::Tap => "tap",
            Path::Bypass => "bypass",
        };
        let caller = match self.caller {
            Caller::Root => "root",
            Caller::User => "user",
        };
        write!(f, "{path}_{caller}")
    }
}

/// An address as it stands in a URL.
pub fn url_host(addr: IpAddr) -> String {
    match addr {
        IpAddr::V4(addr) => addr.to_string(),
        IpAddr::V6(addr) => format!("[{addr}]"),
    }
}

/// In bash: what is written to descriptor 4 from here on, nobody is there to read.
pub const UNREAD: &str = "dir=$(mktemp -d); mkfifo $dir/pipe; exec 3<>$dir/pipe 4>$dir/pipe 3>&-; rm -r $dir";

/// Fails unless `text` contains `needle`, showing both.
pub fn contains(text: &str, needle: &str) -> Result<()> {
    ensure!(text.contains(needle), "no {needle:?} in:\n{text}");
    Ok(())
}
