//! The calls being worked on, each by a thread that may be lost.
//!
//! A hostile thread can hold a socket's lock for ever, and any call of ours on that socket then sleeps where no signal
//! reaches it. So no thread here is precious: each one that takes a call first sees to it that another one receives
//! ([`super::receivers`]), and this register lets the watch find threads that do not come back.

use std::cell::Cell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::sys::listener::Reply;
use crate::sys::thread::{ThreadHandle, ThreadId};

use super::facts::SocketCookie;
use super::ledger::Slot;
use super::tracee;

/// A call at work this long is stuck, unless its thread only waits for a processor: nothing else that a thread does for a
/// call waits for anybody.
pub const STUCK_AFTER: Duration = Duration::from_secs(5);

pub const STUCK_REPLY: Reply = Reply::Errno(libc::EIO);

/// Calls of one process at work at the same time, before more are refused: each may cost a thread. Nothing harmless
/// comes near it, as a call takes a tenth of a millisecond.
const MAX_PER_PROCESS: usize = 128;

/// Threads of all processes together that may sleep in a connect in place.
const MAX_SLEEPING: usize = 512;

/// An interrupt that comes before its thread sleeps is lost: after this time there is another.
const AGAIN: Duration = Duration::from_millis(1);

/// Work on one call.
struct Work {
    slot: Slot,
    tid: u32,
    /// Our thread.
    thread: ThreadId,
    tgid: Option<u32>,
    since: Instant,
    doing: Doing,
}

#[derive(Clone, Copy)]
enum Doing {
    /// Asking and acting, which takes no time.
    Acting,
    /// In a blocking connect(2) on the caller's own socket; the thread can be interrupted. The kernel keeps the socket's
    /// timeout, but begins it anew where a successor sleeps on: `until` is when it would have run out.
    Sleeping { thread: ThreadHandle, until: Option<Instant> },
    /// The answer is being sent, nothing else is done any more. A thread whose answer has come calls again before this
    /// call is off the register: only what it may have left for that call, the answer about this socket, is to be waited
    /// for.
    Answering(Option<SocketCookie>),
    /// Given up: the caller has its answer, the thread is stuck.
    Lost,
}

/// Calls at work, by notification id.
#[derive(Default)]
pub struct Active {
    works: Mutex<HashMap<u64, Work>>,
    left: Condvar,
    /// Threads that wait for `left`; changed under the lock.
    waiting: AtomicUsize,
}

/// What a look at the register found: notification ids.
#[derive(Default)]
pub struct Inspection {
    /// To be sent [`STUCK_REPLY`]; with the thread that called.
    pub stuck: Vec<(u64, u32)>,
    pub sleeping: Vec<u64>,
    /// Asleep past their time: to be interrupted.
    pub overdue: Vec<u64>,
}

/// Why a call is not taken up: too much of its kind is at work. The caller gets EAGAIN.
#[derive(Debug)]
pub struct Busy;

/// Takes the call off the register when its thread is done with it.
pub struct Entry<'a> {
    active: &'a Active,
    id: u64,
    after: Cell<Option<OwnedFd>>,
}

impl Active {
    /// Puts a call on the register, and waits until nothing is done for its thread's earlier ones.
    ///
    /// A thread makes one call at a time, so one that calls again was interrupted. What had been begun for it is
    /// finished or given up first: its answer may be the answer to this call.
    pub fn enter(&self, id: u64, tid: u32, slot: &Slot, now: Instant) -> Result<Entry<'_>, Busy> {
        let mut works = self.works.lock().map_err(|_| Busy)?;
        if works.len() >= MAX_PER_PROCESS && count_of_process(&mut works, tid) >= MAX_PER_PROCESS {
            return Err(Busy);
        }
        works.insert(
            id,
            Work { slot: slot.watch(), tid, thread: ThreadId::current(), tgid: None, since: now, doing: Doing::Acting },
        );
        let entry = Entry { active: self, id, after: Cell::new(None) };
        while let Some(earlier) = earlier_of_thread(&works, tid, id, |doing| !matches!(doing, Doing::Answering(_))) {
            if let Doing::Sleeping { thread, .. } = earlier {
                thread.interrupt();
            }
            works = self.wait(works)?;
        }
        drop(works);
        Ok(entry)
    }

    /// Waits a moment, or until a call leaves the register.
    fn wait<'a>(
        &'a self,
        works: MutexGuard<'a, HashMap<u64, Work>>,
    ) -> Result<MutexGuard<'a, HashMap<u64, Work>>, Busy> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let waited = self.left.wait_timeout(works, AGAIN);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        waited.map(|(works, _)| works).map_err(|_| Busy)
    }

    /// What the watch is to look at. A call found stuck is answered in the ledger here, while it cannot leave the
    /// register: its slot cannot have come to hold another call.
    pub fn inspect(&self, now: Instant) -> Inspection {
        let mut found = Inspection::default();
        let Ok(mut works) = self.works.lock() else { return found };
        for (&id, work) in works.iter_mut() {
            match work.doing {
                Doing::Sleeping { until: Some(until), .. } if now >= until => found.overdue.push(id),
                Doing::Sleeping { .. } => found.sleeping.push(id),
                Doing::Acting
                    if now.saturating_duration_since(work.since) >= STUCK_AFTER && !work.thread.is_runnable() =>
                {
                    work.doing = Doing::Lost;
                    if work.slot.set_answer(STUCK_REPLY) {
                        found.stuck.push((id, work.tid));
                    }
                }
                Doing::Acting | Doing::Answering(_) | Doing::Lost => {}
            }
        }
        found
    }

    /// Interrupts a sleeper, if it still is one: its handle is good only while it is on the register.
    pub fn interrupt(&self, id: u64) {
        let Ok(works) = self.works.lock() else { return };
        if let Some(Work { doing: Doing::Sleeping { thread, .. }, .. }) = works.get(&id) {
            thread.interrupt();
        }
    }

    fn set(&self, id: u64, doing: Doing) -> Result<(), Busy> {
        let mut works = self.works.lock().map_err(|_| Busy)?;
        let sleeping = |works: &HashMap<u64, Work>| {
            works.values().filter(|work| matches!(work.doing, Doing::Sleeping { .. })).count()
        };
        if matches!(doing, Doing::Sleeping { .. }) && sleeping(&works) >= MAX_SLEEPING {
            return Err(Busy);
        }
        if let Some(work) = works.get_mut(&id) {
            work.doing = doing;
            work.since = Instant::now();
        }
        Ok(())
    }
}

impl Entry<'_> {
    /// Waits until the answers to earlier calls of the thread are given, or kept for it, if they are about this socket.
    pub fn settle(&self, tid: u32, cookie: SocketCookie) -> Result<(), Busy> {
        let mut works = self.active.works.lock().map_err(|_| Busy)?;
        let matters = |doing: &Doing| match doing {
            Doing::Answering(about) => *about == Some(cookie),
            _ => true,
        };
        while earlier_of_thread(&works, tid, self.id, matters).is_some() {
            works = self.active.wait(works)?;
        }
        Ok(())
    }

    /// Closes a file once the answer is given: where it is the last of a socket, that takes its time.
    pub fn close_afterwards(&self, file: OwnedFd) {
        self.after.set(Some(file));
    }

    /// From here on only the answer is sent, or kept: `about` says for calls on which socket.
    pub fn answers(&self, about: Option<SocketCookie>) {
        // Where a thread died with the register locked, nothing is taken up any more anyhow.
        let _ = self.active.set(self.id, Doing::Answering(about));
    }

    /// Runs a call that may sleep as long as the network wants, unless too many do already.
    pub fn asleep<T>(&self, until: Option<Instant>, call: impl FnOnce() -> T) -> Result<T, Busy> {
        self.active.set(self.id, Doing::Sleeping { thread: ThreadHandle::current(), until })?;
        let result = call();
        self.active.set(self.id, Doing::Acting)?;
        Ok(result)
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if let Ok(mut works) = self.active.works.lock() {
            works.remove(&self.id);
            if self.active.waiting.load(Ordering::Relaxed) != 0 {
                self.active.left.notify_all();
            }
        }
    }
}

/// What is still done for calls that the thread made before the one with this id; the kernel counts ids up.
fn earlier_of_thread(
    works: &HashMap<u64, Work>,
    tid: u32,
    id: u64,
    of_interest: impl Fn(&Doing) -> bool,
) -> Option<Doing> {
    let earlier = works.iter().filter(|(other, work)| work.tid == tid && id.wrapping_sub(**other).cast_signed() > 0);
    earlier.map(|(_, work)| work.doing).find(|doing| !matches!(doing, Doing::Lost) && of_interest(doing))
}

/// Calls of the process of `tid` that hold a thread. Reads /proc, but only where very much is going on.
fn count_of_process(works: &mut HashMap<u64, Work>, tid: u32) -> usize {
    let Some(own) = tracee::process_of(tid) else { return usize::MAX };
    works
        .values_mut()
        .filter(|work| !matches!(work.doing, Doing::Sleeping { .. }))
        .filter_map(|work| {
            work.tgid = work.tgid.or_else(|| tracee::process_of(work.tid));
            work.tgid
        })
        .filter(|&tgid| tgid == own)
        .count()
}
