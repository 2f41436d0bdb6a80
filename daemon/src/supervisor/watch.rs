//! Looks after calls whose thread does not come back or whose caller has left, and lets go of what was kept for callers
//! that have ended, until the monitor is gone.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::io::Interest;
use tokio::sync::watch::Sender;
use tokio::time::{MissedTickBehavior, interval};

use crate::channel::{Channel, Received};
use crate::monitor::worker::ToSupervisor;
use crate::sys::readiness;

use super::active::STUCK_REPLY;
use super::session::Session;

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(250);

/// Until `monitor`, our channel to it, is closed at the other end; what it says of the state is passed on. Without a
/// session nothing is looked after.
pub async fn until_closed(
    session: Option<Arc<Session>>,
    monitor: OwnedFd,
    state: Sender<Option<String>>,
) -> anyhow::Result<()> {
    let channel = Channel::from(monitor.try_clone()?);
    let monitor = readiness::register(monitor, Interest::READABLE).context("cannot watch the monitor")?;
    let mut tick = interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            readable = monitor.readable() => match channel.receive(Some(Duration::ZERO))? {
                Received::Message(ToSupervisor::State(said), _) => drop(state.send_replace(Some(said.to_string()))),
                Received::Timeout => readable?.clear_ready(),
                Received::Closed => return Ok(()),
            },
            _ = tick.tick(), if session.is_some() => if let Some(session) = &session {
                look(session, Instant::now());
            },
        }
    }
}

fn look(session: &Session, now: Instant) {
    let found = session.active.inspect(now);
    if let Some((_, tid)) = found.stuck.first() {
        tracing::warn!(
            tid,
            count = found.stuck.len(),
            "calls of the workspace hold on to the supervisor: they get EIO"
        );
    }
    for (id, _) in found.stuck {
        session.counters.stuck.count();
        let _ = session.send(id, STUCK_REPLY);
    }
    for id in found.sleeping {
        if !session.listener.is_waiting(id) {
            session.active.interrupt(id);
        }
    }
    for id in found.overdue {
        session.active.interrupt(id);
    }
    session.swap.memory.expire(now);
    if let Some(nested) = &session.nested {
        nested.expire(now);
    }
    session.tracees.forget_ended();
}
