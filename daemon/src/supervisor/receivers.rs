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

/// Starts the first receiver; it starts the others as they are needed.
pub fn start(session: &Arc<Session>) -> io::Result<()> {
    spawn(session, &Arc::new(Count::default()))
}

fn spawn(session: &Arc<Session>, count: &Arc<Count>) -> io::Result<()> {
    let (session, mine) = (Arc::clone(session), Arc::clone(count));
    count.threads.fetch_add(1, Ordering::AcqRel);
    let spawned = thread::Builder::new().name("receiver".into()).stack_size(STACK).spawn(move || {
        while let Some(()) = receive(&session, &mine) {}
        mine.threads.fetch_sub(1, Ordering::AcqRel);
    });
    spawned.map(drop).inspect_err(|_| {
        count.threads.fetch_sub(1, Ordering::AcqRel);
    })
}

/// One call. None: this thread is not needed any longer.
fn receive(session: &Arc<Session>, count: &Arc<Count>) -> Option<()> {
    // A predecessor's calls have waited longest. They are taken up like new ones: any of them may cost its thread.
    let inherited = session.inherited.lock().ok()?.pop();
    if let Some(slot) = inherited {
        relieve(session, count, count.receiving.load(Ordering::Acquire));
        session.recover(slot);
        return Some(());
    }
    let slot = session.ledger.take()?;
    count.receiving.fetch_add(1, Ordering::AcqRel);
    let received = session.listener.receive(slot.notification_words());
    let others = count.receiving.fetch_sub(1, Ordering::AcqRel) - 1;
    match received {
        Ok(Received::Notification) => slot.set_phase(Phase::Received),
        Ok(Received::Nothing) => {
            session.ledger.release(slot);
            return Some(());
        }
        Ok(Received::FilterUnused) => {
            session.ledger.release(slot);
            return None;
        }
        Err(error) => {
            // Nobody would answer this workspace again: the monitor starts a supervisor that can.
            tracing::error!(%error, "cannot receive from the seccomp listener");
            std::process::exit(1);
        }
    }
    relieve(session, count, others);
    session.answer(slot);
    (count.receiving.load(Ordering::Acquire) < IDLE).then_some(())
}

/// Sees to it that somebody receives while this thread works on a call.
fn relieve(session: &Arc<Session>, count: &Arc<Count>, others: usize) {
    if others == 0
        && count.threads.load(Ordering::Acquire) < MAX
        && let Err(error) = spawn(session, count)
    {
        tracing::warn!(%error, "cannot start another receiver");
    }
}
