//! The parent of a workspace, outside its namespaces: one thread and little memory.
//!
//! It holds the TAP, the listener, the ledger and the ports of `--publish`, so that no worker's death loses them; starts
//! the workers and starts them again; hands signals on to the workspace's init; gives the exit code. When it is killed,
//! the kernel kills init and the forwarder, and the supervisor clears up behind it.

mod capture;
mod terminal;
pub mod worker;

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{getpid, getsid};

use crate::launcher::{self, Active, Made, Plan, Settings, Workspace};
use crate::signals::{self, Origin, exit_code, mask_to_bits};
use crate::state_dir::{State, StateDir};
use crate::sys::{descriptors, disposition, inherited};
use terminal::Terminal;
use worker::Workers;

/// A running workspace, seen from outside.
struct Monitor {
    plan: Plan,
    workspace: Workspace,
    workers: Workers,
    state_dir: StateDir,
}

/// Makes the workspace, runs the command in it and gives the command's exit code.
pub fn run(settings: Settings) -> anyhow::Result<ExitCode> {
    let ready = settings.ready_fd.map(|fd| inherited::take("--ready-fd", fd)).transpose()?;
    let terminal = Terminal::of_caller();
    let caller_mask = SigSet::thread_get_mask()?;
    disposition::default_sigchld()?;
    let handled = signals::handled();
    handled.thread_block()?;
    let signals = SignalFd::with_flags(&handled, SfdFlags::SFD_CLOEXEC)?;

    let capture = settings.pcap.as_deref().map(capture::open).transpose()?;
    let mut plan = Plan::new(&settings, mask_to_bits(&caller_mask))?;
    let (workspace, made) = launcher::launch(&plan)?;
    // Only now, just before the supervisor exists, which removes it where a monitor is killed.
    let state_dir = StateDir::create(settings.state_dir.as_deref())?;
    let workers = Workers::start(&mut plan, made, settings.log, &state_dir, capture.map(OwnedFd::from))?;
    let mut monitor = Monitor { plan, workspace, workers, state_dir };
    monitor.write_state()?;
    tracing::info!("{}", start_line(&monitor.plan, monitor.workers.made()));
    monitor.workspace.exec(monitor.state_dir.path())?;
    if let Some(mut ready) = ready {
        // A reader that is gone does not want to know.
        drop(ready.write_all(b"1"));
    }
    descriptors::release_standard()?;

    let code = monitor.supervise(&signals);
    // In this order: nobody waits for an answer when the supervisor goes, and the shell in it is gone when its terminal
    // is taken back.
    drop(monitor.workspace);
    monitor.workers.stop();
    terminal.take_back();
    Ok(ExitCode::from(code?))
}

impl Monitor {
    /// Until the workspace's init ends; gives its code.
    fn supervise(&mut self, signals: &SignalFd) -> anyhow::Result<u8> {
        let session_leader = getsid(None)? == getpid();
        loop {
            self.workers.serve_until(signals.as_fd())?;
            match signals::next(signals)? {
                (Signal::SIGCHLD, _) => {
                    if let Some(code) = self.reap()? {
                        return Ok(code);
                    }
                }
                // A terminal that hangs up tells its session's leader and the foreground group, which may be another.
                (signal @ Signal::SIGHUP, _) if session_leader => self.hand_on(signal),
                (signal, Origin::Process) => self.hand_on(signal),
                (_, Origin::Kernel) => {}
            }
        }
    }

    /// An init that has just ended needs no signal.
    fn hand_on(&self, signal: Signal) {
        let _ = kill(self.workspace.pid(), signal);
    }

    /// Reaps what has ended, and starts workers again; Some(code) when the workspace is among it.
    fn reap(&mut self) -> anyhow::Result<Option<u8>> {
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(None),
                Err(Errno::EINTR) => continue,
                other => other.context("cannot wait for the workspace")?,
            };
            let Some(pid) = status.pid() else { continue };
            if pid == self.workspace.pid() {
                self.workspace.waited_for();
                if let WaitStatus::Signaled(_, signal, _) = status {
                    // Init gives the command's end as a code: this is its own.
                    tracing::error!("the workspace's init was ended by {signal}, and the workspace with it");
                }
                return exit_code(status).context("the workspace ended without a code").map(Some);
            }
            if self.workers.ended(pid, status)?
                && let Err(error) = self.write_state()
            {
                // Somebody has taken the directory away, say: the workspace needs none.
                tracing::warn!("others are not told of the new process: {error:#}");
            }
        }
    }

    fn write_state(&self) -> anyhow::Result<()> {
        let made = self.workers.made();
        let state = State {
            version: env!("CARGO_PKG_VERSION"),
            monitor: getpid().as_raw(),
            init: self.workspace.pid().as_raw(),
            supervisor: self.workers.supervisor().as_raw(),
            forwarder: self.workers.forwarder().as_raw(),
            bypass: made.active,
            landlock_abi: self.plan.confinement.landlock_abi,
            pid_namespace: made.pid_namespace,
            ifname: &self.plan.ifname,
            network: &self.plan.network,
            policy: &self.plan.policy,
        };
        self.workers.tell(&state)?;
        self.state_dir.write(&state)
    }
}

/// `tap0 10.0.2.100/24 mtu=1500 bypass=strict (landlock abi 7) pidns=on`
fn start_line(plan: &Plan, made: &Made) -> String {
    let network = &plan.network;
    let v6 = network.v6.map(|v6| format!(" {}/64", v6.guest())).unwrap_or_default();
    let why = match made.active {
        Active::Strict => format!(" (landlock abi {})", plan.confinement.landlock_abi),
        Active::Unconfined => " (an optimisation, not a boundary)".to_owned(),
        Active::Off => String::new(),
    };
    let pidns = match (made.pid_namespace, plan.wants_pid_namespace()) {
        (true, _) => "on",
        (false, true) => "off (/proc cannot be mounted here)",
        (false, false) => "off",
    };
    let loopback = if plan.policy.host_loopback { " host-loopback" } else { "" };
    format!(
        "{} {}/{}{v6} mtu={} bypass={}{why} pidns={pidns}{loopback}",
        plan.ifname,
        network.v4.guest(),
        network.v4.prefix_len(),
        network.mtu,
        made.active.name(),
    )
}
