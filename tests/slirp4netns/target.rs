//! A network namespace as Podman and RootlessKit make it: a process in a user and a network namespace of its own, of the
//! caller's, for slirp4netns to serve.

use std::ffi::OsStr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::lab::command::{Finished, Program, Running};
use crate::lab::poll;
use crate::lab::workspace::{Workspace, contains};
use crate::lab::world::SLIRP4NETNS;

/// It ends with this value.
pub struct Target {
    pub ws: Workspace,
    holder: Running,
    pid: i32,
}

/// How long it may take to be ready on a loaded machine.
const READY: Duration = Duration::from_secs(30);

impl Target {
    pub fn new(ws: Workspace) -> Result<Self> {
        // The shell stays outside: where the caller's slirp4netns has to be.
        let inside = "unshare -rn sh -c 'echo inside $$; exec cat' <&0 & wait";
        let mut holder = ws.shell(inside).deadline(Duration::from_secs(600)).start(&ws.lab.host)?;
        let line = holder.line_with("inside ")?;
        let pid = line.trim_start_matches("inside ").parse().context(line)?;
        Ok(Self { ws, holder, pid })
    }

    pub fn pid(&self) -> String {
        self.pid.to_string()
    }

    /// A program of the caller's, beside the namespace.
    pub fn outside<A: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = A>) -> Program {
        self.ws.beside(&self.holder, argv)
    }

    /// One in it.
    pub fn inside<A: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = A>) -> Program {
        let pid = self.pid();
        let enter = ["nsenter", "--target", &pid, "--user", "--net", "--preserve-credentials", "--"].map(OsStr::new);
        let argv: Vec<_> = argv.into_iter().map(|word| word.as_ref().to_owned()).collect();
        self.outside(enter.into_iter().map(OsStr::to_owned).chain(argv))
    }

    pub fn sh(&self, script: &str) -> Result<Finished> {
        self.inside(["sh", "-c", script]).run(&self.ws.lab.host)
    }

    /// With the names of tests/lab/inside.py.
    pub fn python_program(&self, code: &str) -> Program {
        let import = "import sys; sys.path.insert(0, '/run/lab'); from inside import *";
        self.inside(["/usr/bin/python3", "-c", &format!("{import}\n{code}")])
    }

    pub fn python(&self, code: &str) -> Result<Finished> {
        self.python_program(code).run(&self.ws.lab.host)
    }

    pub fn slirp4netns<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Program {
        self.outside([SLIRP4NETNS].into_iter().chain(arguments))
    }

    /// Starts slirp4netns for `whom` (a pid or a path) and waits until it says that it is ready. Its standard input is
    /// the exit descriptor.
    pub fn start(&self, flags: &str, whom: &str) -> Result<Running> {
        let words = ["bash", "-c", "exec \"$0\" \"$@\" 3>&1 4<&0", SLIRP4NETNS, "-r", "3", "-e", "4"];
        let words = words.into_iter().chain(flags.split_whitespace()).chain([whom, "tap0"]);
        self.until_ready(self.outside(words).deadline(Duration::from_secs(600)).start(&self.ws.lab.host)?)
    }

    /// "1" is written where its standard output goes, after what it says there.
    pub fn until_ready(&self, mut running: Running) -> Result<Running> {
        poll("ready", READY, || {
            if running.all_so_far().ends_with("\n1") {
                return Ok(Some(()));
            }
            ensure!(!running.has_ended()?, "it ended: {}{}", running.all_so_far(), running.stderr());
            Ok(None)
        })?;
        contains(&running.all_so_far(), "Starting slirp")?;
        Ok(running)
    }
}
