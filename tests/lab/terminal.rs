//! A program on a terminal of its own: what a person at a shell sees and types.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;

use super::command::Program;
use super::netns::Netns;

pub const CTRL_C: &str = "\u{3}";
pub const CTRL_Z: &str = "\u{1a}";

pub struct Terminal {
    master: File,
    child: Child,
    /// All that appeared, and how much of it [`Terminal::expect`] has passed.
    screen: String,
    passed: usize,
}

impl Terminal {
    /// Starts `program` as the leader of a session with this terminal.
    pub fn start(program: Program, netns: &Netns) -> Result<Self> {
        let pty = openpty(None, None).context("make a terminal")?;
        let mut command = program.behind(["setsid", "--ctty"]).env("TERM", "dumb").command();
        let slave = File::from(pty.slave);
        command.stdin(Stdio::from(slave.try_clone()?)).stdout(Stdio::from(slave.try_clone()?)).stderr(Stdio::from(slave));
        let child = netns.spawn(&mut command).context("cannot start setsid")?;
        drop(command);
        Ok(Self { master: File::from(pty.master), child, screen: String::new(), passed: 0 })
    }

    pub fn type_keys(&mut self, keys: &str) -> Result<()> {
        Ok(self.master.write_all(keys.as_bytes())?)
    }

    /// Waits until `text` appears after what was expected before.
    pub fn expect(&mut self, text: &str) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(at) = self.screen[self.passed..].find(text) {
                self.passed += at + text.len();
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.read(left)? {
                bail!("{text:?} did not appear; the screen since then:\n{}", &self.screen[self.passed..]);
            }
        }
    }

    /// Reads what is there within `timeout`; false if there was nothing, or the terminal hung up.
    fn read(&mut self, timeout: Duration) -> Result<bool> {
        let mut ready = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        let millis = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        if poll(&mut ready, millis)? == 0 {
            return Ok(false);
        }
        let mut bytes = [0; 4096];
        match self.master.read(&mut bytes) {
            Ok(0) => Ok(false),
            Ok(length) => {
                self.screen.push_str(&String::from_utf8_lossy(&bytes[..length]));
                Ok(true)
            }
            Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Failing means that it is gone already; the rest of its session gets the hangup.
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}
