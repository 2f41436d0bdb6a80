//! Programs with a deadline, whose whole output is in the message of whatever goes wrong with them.
//!
//! [`Program`] → [`Running`] (lines can be read and written while it runs) → [`Finished`].

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::netns::Netns;
use super::processes::Tree;

pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long a program may take unless a test says otherwise: generous, since four compilers may share the machine.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A command to be run with a clean environment.
#[derive(Debug, Clone)]
pub struct Program {
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    uid: Option<u32>,
    stdin: String,
    deadline: Duration,
}

/// What a program printed so far, filled by the threads that read its pipes.
#[derive(Default)]
struct Output {
    text: Mutex<Streams>,
    grown: Condvar,
}

#[derive(Default)]
struct Streams {
    out: Vec<u8>,
    err: Vec<u8>,
    /// Streams not yet at their end.
    open: usize,
}

/// A program under way; killed when dropped.
pub struct Running {
    line: String,
    child: Child,
    stdin: Option<ChildStdin>,
    output: Arc<Output>,
    /// How much of its standard output [`Running::line`] has handed out.
    read: usize,
    started: Instant,
    deadline: Instant,
}

/// A program that ended, and all it said.
#[derive(Debug)]
pub struct Finished {
    pub line: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Program {
    pub fn new<A: AsRef<OsStr>>(argv: impl IntoIterator<Item = A>) -> Self {
        Self {
            argv: argv.into_iter().map(|arg| arg.as_ref().to_owned()).collect(),
            env: vec![
                ("PATH".into(), PATH.into()),
                ("LC_ALL".into(), "C.UTF-8".into()),
                ("HOME".into(), "/tmp".into()),
            ],
            uid: None,
            stdin: String::new(),
            deadline: DEADLINE,
        }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.argv.push(arg.as_ref().to_owned());
        self
    }

    /// The same program started by another, which gets these words in front.
    pub fn behind<A: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = A>) -> Self {
        self.argv.splice(0..0, words.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Runs as this uid and gid, without other groups.
    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    pub fn stdin(mut self, text: impl Into<String>) -> Self {
        self.stdin = text.into();
        self
    }

    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs to the end; not to end before the deadline is an error, to fail is not.
    pub fn run(&self, netns: &Netns) -> Result<Finished> {
        let mut running = self.start(netns)?;
        running.write(&self.stdin)?;
        running.finish()
    }

    pub fn start(&self, netns: &Netns) -> Result<Running> {
        let mut command = self.command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = netns.spawn(&mut command).with_context(|| format!("cannot start `{}`", self.line()))?;
        let output =
            Arc::new(Output { text: Mutex::new(Streams { open: 2, ..Streams::default() }), grown: Condvar::new() });
        if let Some(out) = child.stdout.take() {
            collect(out, output.clone(), |streams| &mut streams.out);
        }
        if let Some(err) = child.stderr.take() {
            collect(err, output.clone(), |streams| &mut streams.err);
        }
        Ok(Running {
            line: self.line(),
            stdin: child.stdin.take(),
            child,
            output,
            read: 0,
            started: Instant::now(),
            deadline: Instant::now() + self.deadline,
        })
    }

    /// The bare command, for callers that have their own idea of its descriptors.
    pub fn command(&self) -> Command {
        let mut argv = self.argv.iter();
        let mut command = Command::new(argv.next().map_or(OsStr::new("false"), OsString::as_os_str));
        command.args(argv).env_clear().envs(self.env.iter().map(|(name, value)| (name, value))).current_dir("/");
        if let Some(uid) = self.uid {
            // With this, std also drops the other groups.
            command.uid(uid).gid(uid);
        }
        command
    }

    fn line(&self) -> String {
        let words: Vec<_> = self.argv.iter().map(|arg| arg.to_string_lossy()).collect();
        words.join(" ")
    }
}

impl Running {
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub fn write(&mut self, text: &str) -> Result<()> {
        let Some(stdin) = &mut self.stdin else { bail!("standard input of `{}` is closed", self.line) };
        match stdin.write_all(text.as_bytes()) {
            // It ended without reading: what it said tells why, and finish() shows that.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => Ok(other?),
        }
    }

    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    pub fn kill(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid(), signal)?)
    }

    /// The next line of its standard output, without the newline.
    pub fn line(&mut self) -> Result<String> {
        let (from, deadline) = (self.read, self.deadline);
        let found = self.wait_for(deadline, |streams| {
            let rest = &streams.out[from..];
            rest.iter().position(|&byte| byte == b'\n').map(|end| String::from_utf8_lossy(&rest[..end]).into_owned())
        })?;
        match found {
            Some(line) => {
                self.read += line.len() + 1;
                Ok(line)
            }
            None => bail!("no further line from {}", self.so_far()),
        }
    }

    /// Reads lines of its standard output up to the one that contains `text`, and returns that.
    pub fn line_with(&mut self, text: &str) -> Result<String> {
        loop {
            let line = self.line().with_context(|| format!("waiting for {text:?}"))?;
            if line.contains(text) {
                return Ok(line);
            }
        }
    }

    /// All of its standard output until now.
    pub fn all_so_far(&self) -> String {
        String::from_utf8_lossy(&self.streams().out).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.streams().err).into_owned()
    }

    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Closes its standard input and waits for its end; at its deadline all that it has started ends with it.
    pub fn finish(mut self) -> Result<Finished> {
        self.close_stdin();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() >= self.deadline {
                Tree::of(self.pid())?.kill();
                bail!("still running at its deadline: {}", self.so_far());
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        // Daemons it left may hold its pipes open; what it wrote itself is there at once.
        let grace = Instant::now() + Duration::from_secs(2);
        self.wait_for(grace, |streams| (streams.open == 0).then_some(()))?;
        let streams = self.streams();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Finished {
            line: self.line.clone(),
            status,
            stdout: text(&streams.out),
            stderr: text(&streams.err),
            took: self.started.elapsed(),
        })
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.output.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `look` finds something; None at the end of both streams.
    fn wait_for<T>(&self, deadline: Instant, look: impl Fn(&Streams) -> Option<T>) -> Result<Option<T>> {
        let mut streams = self.streams();
        loop {
            if let Some(found) = look(&streams) {
                return Ok(Some(found));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if streams.open == 0 {
                return Ok(None);
            }
            if left.is_zero() {
                drop(streams);
                return Ok(None);
            }
            (streams, _) = self.output.grown.wait_timeout(streams, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn so_far(&self) -> String {
        let streams = self.streams();
        format!(
            "`{}`\n--- stdout\n{}\n--- stderr\n{}",
            self.line,
            String::from_utf8_lossy(&streams.out),
            String::from_utf8_lossy(&streams.err)
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            // Failing means that it is gone already.
            let _gone = self.child.kill();
            let _gone = self.child.wait();
        }
    }
}

impl Finished {
    /// Exit code as a shell tells it: 128+n for signal n.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    pub fn succeeded(self) -> Result<Self> {
        self.exited(0)
    }

    pub fn exited(self, code: i32) -> Result<Self> {
        ensure!(self.code() == code, "exit code {} instead of {code}: {self}", self.code());
        Ok(self)
    }

    /// Standard output of a program that must have succeeded, trimmed.
    pub fn output(self) -> Result<String> {
        Ok(self.succeeded()?.stdout.trim().to_owned())
    }

    /// Succeeded, and printed exactly this.
    pub fn printed(self, want: &str) -> Result<()> {
        let done = self.succeeded()?;
        ensure!(done.stdout.trim() == want, "printed something else than {want:?}: {done}");
        Ok(())
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` ({}, after {:.1?})\n--- stdout\n{}\n--- stderr\n{}",
            self.line,
            self.status,
            self.took,
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }
}

fn collect(from: impl Read + Send + 'static, output: Arc<Output>, stream: fn(&mut Streams) -> &mut Vec<u8>) {
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        loop {
            // An error ends a pipe like its end does.
            let chunk = from.fill_buf().unwrap_or_default();
            let mut streams = output.text.lock().unwrap_or_else(PoisonError::into_inner);
            if chunk.is_empty() {
                streams.open -= 1;
                output.grown.notify_all();
                return;
            }
            stream(&mut streams).extend_from_slice(chunk);
            output.grown.notify_all();
            drop(streams);
            let length = chunk.len();
            from.consume(length);
        }
    });
}
