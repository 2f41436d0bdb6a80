//! A program on a terminal of its own: what a person at a shell sees and types.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::unistd::Pid;

use super::command::{DEADLINE, Program};
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
        let (master, slave) = pair().context("make a terminal")?;
        let mut command = program.behind(["setsid", "--ctty"]).env("TERM", "dumb").command();
        command
            .stdin(Stdio::from(slave.try_clone()?))
            .stdout(Stdio::from(slave.try_clone()?))
            .stderr(Stdio::from(slave));
        let child = netns.spawn(&mut command).context("cannot start setsid")?;
        drop(command);
        Ok(Self { master, child, screen: String::new(), passed: 0 })
    }

    pub fn type_keys(&mut self, keys: &str) -> Result<()> {
        Ok(self.master.write_all(keys.as_bytes())?)
    }

    /// Waits until `text` appears after what was expected before.
    pub fn expect(&mut self, text: &str) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
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

    pub fn screen(&self) -> &str {
        &self.screen
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Takes the terminal away.
    pub fn hang_up(mut self) -> Result<()> {
        let other = File::open("/dev/null")?;
        drop(std::mem::replace(&mut self.master, other));
        self.child.wait()?;
        Ok(())
    }

    /// Exit code of the program, as a shell tells it.
    pub fn exit_code(&mut self) -> Result<i32> {
        let status = super::poll("the program on the terminal ends", DEADLINE, || {
            // Emptied meanwhile: a full terminal would stop the program.
            self.read(Duration::ZERO)?;
            Ok(self.child.try_wait()?)
        });
        let status = status.with_context(|| format!("the screen:\n{}", self.screen))?;
        Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
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

/// Both ends of a new terminal. openpty(3) would make them without O_CLOEXEC: a copy in a child that another test starts
/// at this moment would keep the terminal from ever hanging up.
fn pair() -> Result<(File, File)> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let slave = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(ptsname_r(&master)?)?;
    Ok((File::from(OwnedFd::from(master)), slave))
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Failing means that it is gone already; the rest of its session gets the hangup.
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}
