//! The workers: processes of ours that can die and be started again with the same descriptors.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sidestep_forwarder::MEMORY_WORDS;
use sidestep_forwarder::ports::{Entry, Published};

use crate::channel::{Channel, DESCRIPTORS_MAX, Received};
use crate::launcher::{Active, Made, Plan};
use crate::logging::{self, LogSettings};
use crate::state_dir::{State, StateDir};
use crate::supervisor::counters::Restarts;
use crate::supervisor::{self, ledger};
use crate::sys::{shared_memory, spawn};

/// How long a worker may take to be ready.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// What is done for the supervisor between two looks at the signals: more than its channel holds of what it has asked
/// (net.core.wmem_default), so that one that does not stop asking keeps nobody from them.
const ASKED_MAX: usize = 512;
/// How long a worker may take to stop by itself once the workspace has ended.
const STOP_WITHIN: Duration = Duration::from_secs(6);
/// More restarts than this ...
const RESTARTS_MAX: usize = 5;
/// ... in this time end the workspace.
const RESTARTS_WITHIN: Duration = Duration::from_secs(10);

/// The message a worker starts with.
#[derive(Serialize, Deserialize)]
struct Start<T> {
    log: LogSettings,
    config: T,
}

/// The forwarder's configuration, and how often it has died.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ForwarderStart {
    pub config: sidestep_forwarder::Config,
    pub restarts: u64,
}

/// What a worker tells the monitor.
#[derive(Serialize, Deserialize)]
pub enum ToMonitor {
    /// It works.
    Ready,
    /// The supervisor's: the port of `--publish` with this number is published no more. The descriptor beside it is
    /// closed when the port's socket is.
    Unpublish { number: u64 },
}

/// What the monitor tells a supervisor after its start.
#[derive(Serialize, Deserialize)]
pub enum ToSupervisor {
    /// What state.json says: the file is the workspace's to change.
    State(serde_json::Value),
}

/// In a worker: what it was started with.
pub struct Started<T> {
    pub config: T,
    pub channel: Channel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Supervisor,
    Forwarder,
}

struct Worker {
    kind: Kind,
    pid: Pid,
    channel: Channel,
}

/// What every supervisor and every forwarder gets, those included that come after one which died.
struct Kept {
    made: Made,
    state_dir: OwnedFd,
    /// What the supervisor has not answered, and which connections the forwarder has.
    ledger: OwnedFd,
    connections: OwnedFd,
    /// The link between the two: the supervisor's end and the forwarder's.
    link: (Channel, Channel),
    /// The forwarder's, until they are removed: nobody who connects while there is none is turned away.
    ports: Vec<Published>,
    /// `--pcap`: the forwarder's file.
    capture: Option<OwnedFd>,
}

/// Both workers, and everything they need to be started again.
pub struct Workers {
    kept: Kept,
    log: LogSettings,
    supervisor_start: supervisor::Start,
    forwarder_start: ForwarderStart,
    supervisor: Worker,
    forwarder: Worker,
    restarts: VecDeque<Instant>,
}

impl Workers {
    /// Starts both and waits until they are ready.
    pub fn start(
        plan: &mut Plan,
        made: Made,
        log: LogSettings,
        state_dir: &StateDir,
        capture: Option<OwnedFd>,
    ) -> anyhow::Result<Self> {
        let kept = Kept {
            ledger: shared_memory::create("sidestep-ledger", ledger::SIZE)?,
            connections: shared_memory::create("sidestep-connections", MEMORY_WORDS * size_of::<u64>())?,
            link: Channel::pair().context("cannot make a socket pair")?,
            capture,
            ports: std::mem::take(&mut plan.ports),
            state_dir: state_dir.directory().try_clone()?,
            made,
        };
        let made = &kept.made;
        let supervisor_start = supervisor::Start {
            strict: made.active == Active::Strict,
            network: plan.network.clone(),
            policy: plan.policy.clone(),
            outbound: plan.outbound,
            extent: plan.extent,
            tap_ifindex: made.tap_ifindex,
            publish_auto: plan.publish_auto,
            state_dir: state_dir.path().to_owned(),
            restarts: Restarts::default(),
        };
        let config = sidestep_forwarder::Config {
            network: plan.network.clone(),
            policy: plan.policy.clone(),
            outbound: plan.outbound,
            resolvers: plan.resolvers.clone(),
            search: plan.search.clone(),
        };
        let forwarder_start = ForwarderStart { config, restarts: 0 };
        let supervisor = start(Kind::Supervisor, log, &supervisor_start, &kept.supervisor_fds())?;
        let forwarder = start(Kind::Forwarder, log, &forwarder_start, &kept.forwarder_fds())?;
        forwarder.send_ports(&kept.ports);
        for worker in [&supervisor, &forwarder] {
            worker.wait_ready()?;
        }
        let restarts = VecDeque::new();
        Ok(Self { kept, log, supervisor_start, forwarder_start, supervisor, forwarder, restarts })
    }

    pub fn made(&self) -> &Made {
        &self.kept.made
    }

    pub fn supervisor(&self) -> Pid {
        self.supervisor.pid
    }

    pub fn forwarder(&self) -> Pid {
        self.forwarder.pid
    }

    /// The supervisor answers from this until it is told again. One that has died is told when it is started again.
    pub fn tell(&self, state: &State<'_>) -> anyhow::Result<()> {
        let message = ToSupervisor::State(serde_json::to_value(state)?);
        if !self.supervisor.channel.try_send(&message, &[]).unwrap_or(false) {
            tracing::debug!("the supervisor is not told of the state");
        }
        Ok(())
    }

    /// A child of ours has been reaped. A worker is started again, with the same descriptors: then true.
    pub fn ended(&mut self, pid: Pid, status: WaitStatus) -> anyhow::Result<bool> {
        let kind = [&self.supervisor, &self.forwarder].into_iter().find(|worker| worker.pid == pid).map(|w| w.kind);
        let Some(kind) = kind else { return Ok(false) };
        let how = match status {
            WaitStatus::Signaled(_, signal, _) => signal.to_string(),
            WaitStatus::Exited(_, code) => format!("exit code {code}"),
            other => format!("{other:?}"),
        };
        if too_many(&mut self.restarts, Instant::now()) {
            bail!("the {} ended again and again (last with {how}): the workspace is ended", kind.name());
        }
        tracing::warn!("the {} ended with {how} and is started again", kind.name());
        match kind {
            Kind::Supervisor => {
                self.supervisor_start.restarts.supervisor += 1;
                self.supervisor = start(kind, self.log, &self.supervisor_start, &self.kept.supervisor_fds())?;
            }
            Kind::Forwarder => {
                self.supervisor_start.restarts.forwarder += 1;
                self.forwarder_start.restarts += 1;
                self.forwarder = start(kind, self.log, &self.forwarder_start, &self.kept.forwarder_fds())?;
                self.forwarder.send_ports(&self.kept.ports);
            }
        }
        Ok(true)
    }

    /// Does what the supervisor asks until `signals` can be read, and first what it had asked by then: a forwarder that is
    /// about to be started again does not have what was taken back.
    pub fn serve_until(&mut self, signals: BorrowedFd<'_>) -> anyhow::Result<()> {
        // One that has ended is about to be reaped, which is a signal.
        let mut is_there = true;
        loop {
            let mut fds = [signals, self.supervisor.channel.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            let watched = if is_there { &mut fds[..] } else { &mut fds[..1] };
            match poll(watched, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                polled => polled.context("cannot wait for signals")?,
            };
            let has_signal = fds[0].any().unwrap_or(true);
            is_there = self.asked();
            if has_signal {
                return Ok(());
            }
        }
    }

    /// False: the supervisor has ended.
    fn asked(&mut self) -> bool {
        for _ in 0..ASKED_MAX {
            match self.supervisor.channel.receive(Some(Duration::ZERO)) {
                Ok(Received::Message(ToMonitor::Ready, _)) => {}
                Ok(Received::Message(ToMonitor::Unpublish { number }, done)) => {
                    self.kept.unpublish(number, done);
                }
                Ok(Received::Timeout) => return true,
                Ok(Received::Closed) => return false,
                Err(error) => {
                    tracing::debug!("from the supervisor: {error:#}");
                    return true;
                }
            }
        }
        true
    }

    /// Closes their channels, and everything we hold for them, and waits for their end.
    pub fn stop(self) {
        let workers = [self.supervisor, self.forwarder].map(|worker| worker.pid);
        drop(self.kept);
        let deadline = Instant::now() + STOP_WITHIN;
        for pid in workers {
            wait_until(pid, deadline);
        }
    }
}

/// Notes a restart at `now`; true when there were too many of late.
fn too_many(restarts: &mut VecDeque<Instant>, now: Instant) -> bool {
    restarts.retain(|&at| now.duration_since(at) < RESTARTS_WITHIN);
    restarts.push_back(now);
    restarts.len() > RESTARTS_MAX
}

impl Kept {
    /// A port is published no more, where somebody still waits at the other end of `done` to hear of it: a supervisor that
    /// has given up (we were stopped, say) has said that the port stays.
    fn unpublish(&mut self, number: u64, done: Vec<OwnedFd>) {
        let done: Vec<_> = done.into_iter().map(Channel::from).collect();
        if done.iter().any(|done| !done.is_closed().unwrap_or(true)) {
            self.ports.retain(|port| port.entry.number != number);
        }
    }

    /// In the order in which [`crate::cli`] takes them.
    fn supervisor_fds(&self) -> Vec<BorrowedFd<'_>> {
        let made = &self.made;
        let always = [&self.ledger, &made.userns, &made.netns, &made.init, &self.state_dir].map(AsFd::as_fd);
        let listener = self.made.listener.as_ref().map(AsFd::as_fd);
        always.into_iter().chain([self.link.0.as_fd()]).chain(listener).collect()
    }

    /// The same.
    fn forwarder_fds(&self) -> Vec<BorrowedFd<'_>> {
        let always = [self.made.tap.as_fd(), self.connections.as_fd(), self.link.1.as_fd()];
        always.into_iter().chain(self.capture.as_ref().map(AsFd::as_fd)).collect()
    }
}

fn start<T: Serialize>(kind: Kind, log: LogSettings, config: &T, fds: &[BorrowedFd<'_>]) -> anyhow::Result<Worker> {
    let (channel, theirs) = Channel::pair().context("cannot make a socket pair")?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("sidestep").arg(kind.name()).stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).current_dir("/");
    // Sent first, so that a supervisor learns what to clear up even where the monitor is killed during the fork.
    channel.send(&Start { log, config }, fds)?;
    let spawned = spawn::worker(&mut command, kind == Kind::Forwarder).spawn();
    let child = spawned.with_context(|| format!("cannot start the {}", kind.name()))?;
    Ok(Worker { kind, pid: Pid::from_raw(child.id().cast_signed()), channel })
}

/// Waits for one of our children with a deadline, then kills it.
fn wait_until(pid: Pid, deadline: Instant) {
    while matches!(waitpid(pid, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive)) {
        if Instant::now() >= deadline {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Supervisor => "supervisor",
            Self::Forwarder => "forwarder",
        }
    }
}

impl Worker {
    /// Gives the forwarder the published ports, some at a time, and none at the end. They come after its start, as all
    /// of them may be more than a channel holds.
    fn send_ports(&self, ports: &[Published]) {
        for part in ports.chunks(DESCRIPTORS_MAX).chain([&[][..]]) {
            let entries: Vec<_> = part.iter().map(|port| port.entry).collect();
            let sockets: Vec<_> = part.iter().map(|port| port.socket.as_fd()).collect();
            if let Err(error) = self.channel.send(&entries, &sockets) {
                // It is dead: whoever reaps it starts another.
                tracing::debug!("ports to the forwarder: {error:#}");
                return;
            }
        }
    }

    fn wait_ready(&self) -> anyhow::Result<()> {
        match self.channel.receive(Some(READY_WITHIN))? {
            Received::Message(ToMonitor::Ready, _) => Ok(()),
            Received::Timeout => bail!("the {} was not ready in {} s", self.kind.name(), READY_WITHIN.as_secs()),
            Received::Message(..) | Received::Closed => bail!("the {} did not start", self.kind.name()),
        }
    }
}

/// In a worker, first of all: takes its name, signals and as many descriptors as it may have, receives its start from
/// standard input, sets up logging.
pub fn receive_start<T: DeserializeOwned>(name: &CStr) -> anyhow::Result<(Started<T>, Vec<OwnedFd>)> {
    rustix::thread::set_name(name)?;
    let channel = Channel::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let Received::Message(start, fds) = channel.receive::<Start<T>>(Some(READY_WITHIN))? else {
        bail!("started by hand: `sidestep run` starts this command");
    };
    logging::init(start.log);
    // The other signals stay blocked: a worker's life is the channel's. Who stops a whole group (systemd does) ends the
    // command by it, and the workers go with the workspace.
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_unblock()?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok((Started { config: start.config, channel }, fds))
}

/// In the forwarder: the published ports.
pub fn receive_ports(channel: &Channel) -> anyhow::Result<Vec<Published>> {
    let mut ports = Vec::new();
    loop {
        match channel.receive::<Vec<Entry>>(Some(READY_WITHIN))? {
            Received::Message(part, _) if part.is_empty() => return Ok(ports),
            Received::Message(part, sockets) => {
                let pairs = part.into_iter().zip(sockets);
                ports.extend(pairs.map(|(entry, socket)| Published { entry, socket }));
            }
            Received::Timeout | Received::Closed => bail!("the monitor has not sent the published ports"),
        }
    }
}

/// In a worker: what to call once it works.
pub fn ready(channel: &Channel) -> anyhow::Result<impl FnOnce() -> anyhow::Result<()> + use<>> {
    let channel = channel.try_clone()?;
    Ok(move || match channel.send(&ToMonitor::Ready, &[]) {
        // Without a monitor nobody waits for it, and the worker is about to see its channel's end.
        Err(_) if channel.is_closed()? => Ok(()),
        sent => sent,
    })
}
