//! Connects that take their time: the event loop that waits for them, for their deadline, and for callers that leave.
//!
//! A host socket is watched with epoll; everything that could take its lock (the result, the close) runs on a thread of
//! the runtime's pool, which may be lost. A caller that a signal took away gives no event on the listener, so each wait
//! looks at its notification now and then: otherwise our copy would outlive the caller's own.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::runtime::Handle;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use crate::sys::listener::Reply;
use crate::sys::readiness;

use super::ledger::Slot;
use super::session::Session;
use super::stopped::{End, Wait};

/// How soon a caller that left is noticed.
const LOOK: Duration = Duration::from_millis(250);

pub struct Waits {
    runtime: Handle,
}

impl Waits {
    pub fn new(runtime: Handle) -> Self {
        Self { runtime }
    }

    /// Waits for the connect under way, then has the session conclude.
    pub fn start(&self, session: &Arc<Session>, slot: Slot, wait: Wait) {
        let session = Arc::clone(session);
        self.runtime.spawn(async move {
            let id = slot.notification().id;
            let Wait { host, cookie, deadline, late } = wait;
            match until_end(&session, id, host, deadline).await {
                Ok((host, end)) => {
                    let wait = Wait { host, cookie, deadline, late };
                    tokio::task::spawn_blocking(move || session.resume(slot, wait, end));
                }
                Err((host, error)) => {
                    tracing::debug!(%error, "cannot wait for a connect");
                    let _ = session.reply(&slot, Reply::Errno(libc::ENOBUFS));
                    session.ledger.release(slot);
                    tokio::task::spawn_blocking(move || drop(host));
                }
            }
        });
    }
}

/// Err: the event loop does not take the socket.
async fn until_end(
    session: &Session,
    id: u64,
    host: OwnedFd,
    deadline: Option<Instant>,
) -> Result<(OwnedFd, End), (OwnedFd, io::Error)> {
    let host = readiness::register_or_return(host, Interest::WRITABLE)?;
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let end = loop {
        tokio::select! {
            _ = host.writable() => break End::Ready,
            () = until(deadline) => break End::TimedOut,
            _ = look.tick() => if !session.listener.is_waiting(id) { break End::CallerLeft },
        }
    };
    Ok((host.into_inner(), end))
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
