//! A network namespace held by a descriptor: it ends with the last process in it and the last [`Netns`] of it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::process::{Child, Command};
use std::thread;

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns, unshare};

use super::command::{Finished, Program};

pub struct Netns {
    file: File,
    /// Entering it takes power over its user namespace, which nobody has over the machine's and nobody needs inside.
    entered: bool,
}

impl Netns {
    pub fn new() -> Result<Self> {
        // A thread of its own: it takes its changed namespace with it.
        let maker = thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        });
        let file = join(maker.join())?;
        Ok(Self { file, entered: false })
    }

    /// The one that this program is in.
    pub fn current() -> Result<Self> {
        Ok(Self { file: File::open("/proc/thread-self/ns/net")?, entered: true })
    }

    /// Runs `work` on a thread inside: sockets it makes and processes it starts belong to this namespace for good.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        if self.entered {
            return work();
        }
        let entered = || setns(&self.file, CloneFlags::CLONE_NEWNET).map(|()| work());
        match thread::scope(|scope| join(scope.spawn(entered).join())) {
            Ok(value) => value,
            Err(errno) => panic!("cannot enter a network namespace of the lab: {errno}"),
        }
    }

    /// A path to it for programs that take one, such as ip(8) and nsenter(1); good while this value lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        self.within(|| command.spawn())
    }

    /// Runs a command line of the harness's own, split at blanks; anything but success is an error with its output.
    pub fn run(&self, line: &str) -> Result<Finished> {
        let finished = Program::new(line.split_whitespace()).run(self)?;
        finished.succeeded()
    }

    /// Sets a /proc/sys/net entry, `/`-separated: that tree shows the namespace of the thread that opens it.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.within(|| std::fs::write(format!("/proc/sys/net/{name}"), value))
            .with_context(|| format!("sysctl net/{name}={value}"))
    }
}

fn join<T>(result: thread::Result<T>) -> T {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
