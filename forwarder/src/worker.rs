//! The forwarder's loop: frames, host events and deadlines to the engine, one wake after another, on one thread.
//!
//! A wake reads at most [`BATCH`] frames and [`EVENTS`] events, then lets flows that have more to send take their
//! turns, so that neither side starves the other. When the TAP is full nothing is sent until epoll says it is
//! writable; the data waits in the host's sockets.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::capture::Capture;
use crate::edge::{Config, Edge};
use crate::engine::Engine;
use crate::flow::FlowId;
use crate::link::Link;
use crate::neighbours::sought;
use crate::ports::Published;
use crate::tap::Tap;
use crate::timer::Time;
use crate::wire::MAX_FRAME;

/// Frames read in one wake. One a wake costs 30 % of the throughput; more only adds delay.
const BATCH: usize = 16;
/// Events taken from epoll in one wake.
const EVENTS: usize = 64;
/// Epoll numbers that are no flows (a flow's upper byte is its kind, never 0).
const TAP_EVENT: u64 = 0;
const STOP_EVENT: u64 = 1;
const LINK_EVENT: u64 = 2;
/// How soon a full TAP is tried again should its writability never be reported.
const TAP_RETRY_MS: u64 = 10;
/// At the workspace's end its kernel still sends what its programs left behind. So long is waited for more of it, which
/// is longer than its first retransmission takes, and so long altogether.
const DRAIN_QUIET_MS: u64 = 500;
const DRAIN_MS: u64 = 5000;

/// Words of the memory that outlives a forwarder.
pub const MEMORY_WORDS: usize = crate::tcp::ledger::WORDS;

/// Descriptors, which the forwarder's successor gets as well.
#[derive(Debug)]
pub struct Handles {
    pub tap: OwnedFd,
    /// The channel to the monitor.
    pub stop: OwnedFd,
    /// The channel to the supervisor, where there is one.
    pub link: Option<Link>,
    /// `--pcap`: where frames are captured, see [`crate::capture`].
    pub capture: Option<OwnedFd>,
    /// Published ports.
    pub ports: Vec<Published>,
}

/// Frames of one wake, each in a slot of its own.
struct Batch {
    bytes: Box<[u8]>,
    lens: [usize; BATCH],
}

/// Runs until the channel to the monitor is closed at the other end, and then until what the workspace sent is
/// with the host's sockets: the TAP's descriptor keeps its namespace alive. What is not by then is reset, as half an
/// upload must not look like a whole one. Before the first frame `confine` enters the sandbox, for good; `ready` is
/// called once frames are read.
/// `memory` ([`MEMORY_WORDS`]) outlives this process: in it the next one finds which connections have died with this one.
pub fn run(
    config: Config,
    handles: Handles,
    memory: &'static [AtomicU64],
    confine: impl FnOnce() -> anyhow::Result<()>,
    ready: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    raise_descriptor_limit();
    let Handles { tap, stop, link, capture, ports } = handles;
    let mut tap = match Tap::adopt(tap) {
        Err(error) if is_deleted(&error) => {
            confine()?;
            if let Some(link) = &link {
                link.start();
            }
            ready()?;
            return wait_without_tap(&stop, link.as_ref(), None);
        }
        adopted => adopted.context("cannot set up the TAP")?,
    };
    if let Some(capture) = capture {
        tap.capture(Capture::resume(capture.into()).context("cannot go on with the capture")?);
    }
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("cannot create an epoll")?;
    let tap_events = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
    epoll::add(&epoll, &tap, epoll::EventData::new_u64(TAP_EVENT), tap_events).context("cannot watch the TAP")?;
    epoll::add(&epoll, &stop, epoll::EventData::new_u64(STOP_EVENT), epoll::EventFlags::IN)
        .context("cannot watch the stop descriptor")?;
    if let Some(link) = &link {
        epoll::add(&epoll, link, epoll::EventData::new_u64(LINK_EVENT), epoll::EventFlags::IN)
            .context("cannot watch the channel to the supervisor")?;
        link.start();
    }
    let start = Instant::now();
    let mut worker = Worker {
        edge: Edge::new(config, tap, epoll, Time(0)),
        engine: Engine::new(memory),
        link,
        batch: Batch { bytes: vec![0; BATCH * MAX_FRAME].into_boxed_slice(), lens: [0; BATCH] },
        tap_readable: true,
        draining: None,
        start,
    };
    confine()?;
    worker.engine.recall(&mut worker.edge);
    for published in ports {
        let publication = published.entry.publication;
        if !worker.engine.publish(&mut worker.edge, published) {
            tracing::warn!("port {} cannot be served", publication.host_addr());
        }
    }
    ready()?;
    worker.run(&stop)
}

struct Worker {
    edge: Edge,
    engine: Engine,
    link: Option<Link>,
    batch: Batch,
    /// The TAP may hold more frames.
    tap_readable: bool,
    /// The workspace has ended: when the draining began, and when something last moved.
    draining: Option<(Time, Time)>,
    start: Instant,
}

impl Worker {
    fn run(mut self, stop: &OwnedFd) -> anyhow::Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        let mut due = Vec::new();
        loop {
            events.clear();
            match epoll::wait(self.edge.epoll(), rustix::buffer::spare_capacity(&mut events), self.timeout().as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for events"),
            }
            self.edge.now = Time(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX));
            for event in &events {
                let data = event.data.u64();
                match data {
                    TAP_EVENT => self.tap_event(event.flags),
                    STOP_EVENT if is_closed(stop, event.flags) => {
                        epoll::delete(self.edge.epoll(), stop).context("cannot stop watching the stop descriptor")?;
                        self.draining = Some((self.edge.now, self.edge.now));
                        self.engine.close_ports(&mut self.edge);
                    }
                    STOP_EVENT => {}
                    LINK_EVENT => self.link_event()?,
                    _ => {
                        if let Some(id) = FlowId::from_bits(data) {
                            self.engine.host_event(&mut self.edge, id, event.flags);
                        }
                    }
                }
            }
            if self.tap_readable {
                match self.read_tap() {
                    Err(error) if is_deleted(&error) && self.draining.is_some() => return Ok(()),
                    Err(error) if is_deleted(&error) => {
                        // Its connections end with it; what was counted stays.
                        let Self { edge, link, .. } = self;
                        return wait_without_tap(stop, link.as_ref(), Some(edge));
                    }
                    read => read.context("cannot read the TAP")?,
                }
            }
            if self.edge.is_tap_full() && events.is_empty() {
                self.edge.tap_writable();
            }
            self.edge.timers.expire(self.edge.now, &mut due);
            for id in due.drain(..) {
                self.engine.timer(&mut self.edge, id);
            }
            self.engine.probe_orphans(&mut self.edge);
            self.engine.advertise(&mut self.edge);
            self.engine.run_ready(&mut self.edge);
            sought::ask(&mut self.edge);
            if let Some(link) = self.link.as_ref().filter(|_| self.draining.is_none()) {
                link.ask(&mut self.edge);
            }
            if self.is_drained(!events.is_empty()) {
                return Ok(());
            }
        }
    }

    /// A link whose other end has gone, at the end of everything, is readable for ever.
    fn link_event(&mut self) -> anyhow::Result<()> {
        let Some(link) = &self.link else { return Ok(()) };
        if !link.messages(Some(&mut self.edge), Some(&mut self.engine)) {
            epoll::delete(self.edge.epoll(), link).context("cannot stop watching the link")?;
            self.link = None;
        }
        Ok(())
    }

    /// Whether the workspace has ended and nothing of what it sent is worth waiting for.
    fn is_drained(&mut self, moved: bool) -> bool {
        let Some((since, last)) = &mut self.draining else { return false };
        let now = self.edge.now;
        if moved {
            *last = now;
        }
        !self.tap_readable
            && (!self.engine.is_owed_to_host() || now >= last.after(DRAIN_QUIET_MS) || now >= since.after(DRAIN_MS))
    }

    fn tap_event(&mut self, flags: epoll::EventFlags) {
        self.tap_readable |= flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::ERR);
        if flags.contains(epoll::EventFlags::OUT) {
            self.edge.tap_writable();
        }
    }

    /// Reads up to a batch of frames and hands them to the engine.
    fn read_tap(&mut self) -> io::Result<()> {
        let mut count = 0;
        for (slot, len) in self.batch.bytes.chunks_exact_mut(MAX_FRAME).zip(&mut self.batch.lens) {
            match self.edge.tap().read(slot)? {
                Some(read) => *len = read,
                None => {
                    self.tap_readable = false;
                    break;
                }
            }
            count += 1;
        }
        let slots = self.batch.bytes.chunks_exact(MAX_FRAME).zip(&self.batch.lens).take(count);
        let frames = slots.map(|(slot, &len)| slot.get(..len).unwrap_or(slot));
        self.engine.batch_from_tap(&mut self.edge, frames);
        Ok(())
    }

    /// How long to wait: not at all with work at hand, else until the next deadline.
    fn timeout(&self) -> Option<Timespec> {
        let millis = if self.edge.is_tap_full() {
            TAP_RETRY_MS
        } else if self.tap_readable || self.engine.has_ready() {
            0
        } else {
            let drained = self.draining.map(|(_, last)| last.after(DRAIN_QUIET_MS));
            let advertisement = self.engine.advertisement_deadline(&self.edge);
            let (timer, sought) = (self.edge.timers.next_deadline(), self.edge.sought.deadline());
            let deadlines = [timer, sought, self.engine.orphans_deadline(), advertisement, drained];
            deadlines.into_iter().flatten().min()?.since(self.edge.now)
        };
        let seconds = i64::try_from(millis / 1000).unwrap_or(i64::MAX);
        let nanos = i64::try_from(millis % 1000).unwrap_or(0) * 1_000_000;
        Some(Timespec { tv_sec: seconds, tv_nsec: nanos })
    }
}

/// The workspace, which may, has deleted the interface: the descriptor is of no use any more.
fn is_deleted(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBADFD)
}

/// A workspace without its TAP has no network, but it goes on, and so do its connections on host sockets.
fn wait_without_tap(stop: &OwnedFd, mut link: Option<&Link>, mut edge: Option<Edge>) -> anyhow::Result<()> {
    tracing::warn!("the workspace has deleted its TAP: it has no network except by the bypass");
    loop {
        let watched = [Some(stop.as_fd()), link.map(Link::as_fd)];
        let mut polled = watched.map(|fd| PollFd::from_borrowed_fd(fd.unwrap_or(stop.as_fd()), PollFlags::IN));
        match poll(&mut polled, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the monitor"),
        }
        let [stopped, said] = polled.map(|fd| fd.revents());
        let is_gone = stopped.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL);
        if is_gone || (stopped.contains(PollFlags::IN) && is_closed(stop, epoll::EventFlags::IN)) {
            return Ok(());
        }
        link = link.filter(|link| said.is_empty() || link.messages(edge.as_mut(), None));
    }
}

/// The other end of `stop` is gone: a hang-up, or a read that finds the end. Bytes sent over it mean nothing here.
fn is_closed(stop: &OwnedFd, flags: epoll::EventFlags) -> bool {
    if flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
        return true;
    }
    matches!(rustix::io::read(stop, &mut [0u8; 256]), Ok(0))
}

/// Every flow is a descriptor: use as many as the hard limit admits. Failing that, fewer flows are possible.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open descriptors");
    }
}
