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

use crate::monitor::signals;
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

/// What a shell would give: the code, or 128+n for signal n. None when it has not ended.
pub fn exit_code(status: WaitStatus) -> Option<u8> {
    match status {
        WaitStatus::Exited(_, code) => u8::try_from(code & 0xff).ok(),
        WaitStatus::Signaled(_, signal, _) => u8::try_from(128 + signal as i32).ok(),
        _ => None,
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

/// A signal mask from the bits of /proc/PID/status: bit n-1 for signal n. Realtime signals are left out.
pub fn mask_from_bits(bits: u64) -> SigSet {
    Signal::iterator().filter(|&signal| bits & bit(signal) != 0).collect()
}

/// The bits of a signal mask; the opposite of [`mask_from_bits`].
pub fn mask_to_bits(mask: &SigSet) -> u64 {
    mask.iter().map(bit).fold(0, |bits, bit| bits | bit)
}

fn bit(signal: Signal) -> u64 {
    1 << (signal as u32 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_shells() {
        let pid = Pid::from_raw(2);
        let cases = [
            (WaitStatus::Exited(pid, 0), Some(0)),
            (WaitStatus::Exited(pid, 7), Some(7)),
            (WaitStatus::Signaled(pid, Signal::SIGTERM, false), Some(143)),
            (WaitStatus::Signaled(pid, Signal::SIGKILL, true), Some(137)),
            (WaitStatus::Stopped(pid, Signal::SIGTSTP), None),
        ];
        for (status, want) in cases {
            assert_eq!(exit_code(status), want, "{status:?}");
        }
    }

    #[test]
    fn masks_survive_the_command_line() {
        for bits in [0, 1, 0b1000_0000_0010, 1 << 16] {
            assert_eq!(mask_to_bits(&mask_from_bits(bits)), bits);
        }
        assert_eq!(mask_to_bits(&[Signal::SIGHUP, Signal::SIGINT].into_iter().collect()), 0b11);
    }
}
