//! The threads that receive calls, and answer what they received.
//!
//! Leader and followers: a thread that comes back from the kernel with a call first makes sure that another one is
//! receiving, then works on the call itself, so an ordinary call needs no hand-over between threads. Any of them may be
//! lost to a tracee; nobody waits for it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::sys::listener::Received;

use super::ledger::Phase;
use super::session::Session;

/// Threads that receive when calls come one at a time: one is enough to receive while the other works. The kernel wakes
/// all of them for every call, and all but one for nothing.
const IDLE: usize = 2;
/// The same while calls come faster: a thread for each that was not there when it was needed would cost more.
const IDLE_BUSY: usize = 4;
/// After so many calls that found somebody receiving, they come one at a time again.
const CALM: usize = 4096;
/// Threads at most: the sleeping ones, the stuck ones and those at work. With all taken, callers wait in the kernel.
const MAX: usize = 1024;
/// What answering needs, debug output included.
const STACK: usize = 256 * 1024;

#[derive(Default)]
struct Count {
    receiving: AtomicUsize,
    threads: AtomicUsize,
    /// Calls until it is calm again.
    busy: AtomicUsize,
    /// That there are no more threads to be had has been said: the workspace could have it said at every call.
    complained: AtomicBool,
}

impl Count {
    fn leaves(&self) -> usize {
        self.receiving.fetch_sub(1, Ordering::AcqRel) - 1
    }

    /// A thread without work receives again, unless enough do.
    fn returns(&self) -> Option<()> {
        let less = |calls: usize| calls.checked_sub(1);
        let busy = self.busy.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok();
        let enough = if busy { IDLE_BUSY } else { IDLE };
        let one_more = |receiving| (receiving < enough).then_some(receiving + 1);
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
    // Said before the answer is sent: whoever gets it may call again before this thread has come to receive.
    let mut again = None;
    session.answer(slot, || {
        again = Some(count.returns());
    });
    again.unwrap_or_else(|| count.returns())
}

/// This thread has a call to work on: sees to it that somebody else receives.
fn relieve(session: &Arc<Session>, count: &Arc<Count>) {
    if count.leaves() > 0 {
        return;
    }
    count.busy.store(CALM, Ordering::Relaxed);
    if count.threads.load(Ordering::Acquire) < MAX
        && let Err(error) = spawn(session, count)
        && !count.complained.swap(true, Ordering::Relaxed)
    {
        tracing::warn!(%error, "cannot start another receiver");
    }
}
