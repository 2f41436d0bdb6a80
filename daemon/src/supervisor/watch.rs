//! Looks after calls whose thread does not come back or whose caller has left, and lets go of what was kept for callers
//! that have ended, until the monitor is gone.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::io::Interest;
use tokio::time::{MissedTickBehavior, interval};

use crate::sys::readiness;

use super::active::STUCK_REPLY;
use super::session::Session;

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(250);

/// Until `monitor`, our channel to it, is closed at the other end. Without a session nothing is looked after.
pub async fn until_closed(session: Option<Arc<Session>>, monitor: OwnedFd) -> anyhow::Result<()> {
    let monitor = readiness::register(monitor, Interest::READABLE).context("cannot watch the monitor")?;
    let Some(session) = session else {
        monitor.readable().await?.retain_ready();
        return Ok(());
    };
    let mut tick = interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = monitor.readable() => return Ok(()),
            _ = tick.tick() => look(&session, Instant::now()),
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
