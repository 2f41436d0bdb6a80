//! The first process of a workspace: inside its namespaces, Landlock domain and filter, holding no descriptor of the
//! host's network.
//!
//! It forks the command, hands signals on to it, reaps what is orphaned, and ends with the command's code. As pid 1 its
//! end takes the whole pid namespace along; without a pid namespace it adopts orphans as a subreaper and kills them at
//! the end.

use std::ffi::OsString;
use std::io;
use std::process::{Command, ExitCode};

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::signals::{self, exit_code};
use crate::sys::{descriptors, disposition, spawn};

/// The command was found but cannot be executed, as env(1) has it.
const NOT_EXECUTABLE: u8 = 126;
/// The command was not found, as env(1) has it.
const NOT_FOUND: u8 = 127;
/// Rounds of killing adopted orphans before giving up on a workspace that forks faster than that.
const KILL_ROUNDS: usize = 100;

/// Runs the command to its end; `mask` is the signal mask it starts with.
pub fn run(command: &[OsString], mask: SigSet) -> anyhow::Result<ExitCode> {
    rustix::thread::set_name(c"sidestep-init")?;
    disposition::default_sigchld()?;
    let own = signals::handled();
    own.thread_block()?;
    let pid_namespace = Pid::this() == Pid::from_raw(1);
    if !pid_namespace {
        set_child_subreaper(true)?;
    }
    let child = match start(command, mask, !pid_namespace) {
        Ok(pid) => pid,
        Err((code, reason)) => {
            tracing::error!("{reason}");
            return Ok(ExitCode::from(code));
        }
    };
    descriptors::let_go()?;
    let signals = SignalFd::with_flags(&own, SfdFlags::SFD_CLOEXEC)?;
    let code = supervise(&signals, child)?;
    if !pid_namespace {
        kill_orphans();
    }
    Ok(ExitCode::from(code))
}

fn start(command: &[OsString], mask: SigSet, die_with_parent: bool) -> Result<Pid, (u8, String)> {
    let [program, arguments @ ..] = command else { return Err((NOT_FOUND, "no command".into())) };
    let mut prepared = Command::new(program);
    prepared.args(arguments);
    let spawned = spawn::workspace_command(&mut prepared, mask, die_with_parent).spawn();
    let child = spawned.map_err(|error| {
        let code = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
        (code, format!("'{}': {}", program.display(), describe(&error)))
    })?;
    Ok(Pid::from_raw(child.id().cast_signed()))
}

/// Hands on signals and reaps until the command ends; gives its code.
fn supervise(signals: &SignalFd, command: Pid) -> anyhow::Result<u8> {
    loop {
        match signals::next(signals)? {
            (Signal::SIGCHLD, _) => {
                if let Some(code) = reap(command)? {
                    return Ok(code);
                }
            }
            // ESRCH: it has just ended. EPERM: it changed its user; then it is out of our reach.
            (signal, signals::Origin::Process) => {
                let _ = kill(command, signal);
            }
            // The terminal sent it to the command as well.
            (_, signals::Origin::Kernel) => {}
        }
    }
}

/// Reaps everything that has ended; Some(code) when the command is among it.
fn reap(command: Pid) -> anyhow::Result<Option<u8>> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(code),
            Ok(status) if status.pid() == Some(command) => code = exit_code(status),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait for the command"),
        }
    }
}

/// Kills what the command left behind, as far as it is our child or becomes it.
fn kill_orphans() {
    for _ in 0..KILL_ROUNDS {
        let listed = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        let children: Vec<Pid> = listed.split_whitespace().filter_map(|p| p.parse().ok()).map(Pid::from_raw).collect();
        if children.is_empty() {
            return;
        }
        for child in children {
            if kill(child, Signal::SIGKILL).is_ok() {
                let _ = waitpid(child, None);
            }
        }
    }
}

/// The kernel's own sentence for an error, without Rust's "(os error n)".
fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => Errno::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    }
}
