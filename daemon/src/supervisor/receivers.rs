//! The threads that receive calls, and answer what they received.
//!
//! Leader and followers: a thread that comes back from the kernel with a call first makes sure that another one is
//! receiving, then works on the call itself, so an ordinary call needs no hand-over between threads. Any of them may be
//! lost to a tracee; nobody waits for it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::sys::listener::Received;

use super::ledger::Phase;
use super::session::Session;

/// Threads kept when there is nothing to do.
const IDLE: usize = 4;
/// Threads at most: the sleeping ones, the stuck ones and those at work. With all taken, callers wait in the kernel.
const MAX: usize = 1024;
/// What answering needs, debug output included.
const STACK: usize = 256 * 1024;

#[derive(Default)]
struct Count {
    receiving: AtomicUsize,
    threads: AtomicUsize,
}

impl Count {
    fn leaves(&self) -> usize {
        self.receiving.fetch_sub(1, Ordering::AcqRel) - 1
    }

    /// A thread without work receives again, unless enough do.
    fn returns(&self) -> Option<()> {
        let one_more = |receiving| (receiving < IDLE).then_some(receiving + 1);
        self.receiving.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok().map(drop)
    }
}

/// Starts the first receiver; it starts the others as they are needed.
pub fn start(session: &Arc<Session>) -> io::Result<()> {
    spawn(session, &Arc::new(Count::default()))
}

fn spawn(session: &Arc<Session>, count: &Arc<Count>) -> io::Result<()> {
    let (session, mine) = (Arc::clone(session), Arc::clone(count));
    count.threads.fetch_add(1, Ordering::AcqRel);
    count.receiving.fetch_add(1, Ordering::AcqRel);
    let spawned = thread::Builder::new().name("receiver".into()).stack_size(STACK).spawn(move || {
        while let Some(()) = receive(&session, &mine) {}
        mine.threads.fetch_sub(1, Ordering::AcqRel);
    });
    spawned.map(drop).inspect_err(|_| {
        count.leaves();
        count.threads.fetch_sub(1, Ordering::AcqRel);
    })
}

/// One call, by a thread that is counted among the receiving. None: it is not needed any longer.
fn receive(session: &Arc<Session>, count: &Arc<Count>) -> Option<()> {
    // A predecessor's calls have waited longest. They are taken up like new ones: any of them may cost its thread.
    let inherited = session.inherited.lock().ok().and_then(|mut calls| calls.pop());
    if let Some(slot) = inherited {
        relieve(session, count);
        session.recover(slot);
        return count.returns();
    }
    let Some(slot) = session.ledger.take() else {
        count.leaves();
        return None;
    };
    match session.listener.receive(slot.notification_words()) {
        Ok(Received::Notification) => slot.set_phase(Phase::Received),
        Ok(Received::Nothing) => {
            session.ledger.release(slot);
            return Some(());
        }
        Ok(Received::FilterUnused) => {
            session.ledger.release(slot);
            count.leaves();
            return None;
        }
        Err(error) => {
            // Nobody would answer this workspace again: the monitor starts a supervisor that can.
            tracing::error!(%error, "cannot receive from the seccomp listener");
            std::process::exit(1);
        }
    }
    relieve(session, count);
    session.answer(slot);
    count.returns()
}

/// This thread has a call to work on: sees to it that somebody else receives.
fn relieve(session: &Arc<Session>, count: &Arc<Count>) {
    if count.leaves() == 0
        && count.threads.load(Ordering::Acquire) < MAX
        && let Err(error) = spawn(session, count)
    {
        tracing::warn!(%error, "cannot start another receiver");
    }
}
