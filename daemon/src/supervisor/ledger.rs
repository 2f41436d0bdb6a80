//! What was received and not yet answered, in memory that outlives a supervisor.
//!
//! The monitor holds the memory; a supervisor that takes over finds in it every notification its predecessor had
//! received, how far the act behind it had come, and how often it was tried. The kernel writes a notification straight
//! into its slot, so there is no moment in which one exists only in a process that may die.
//!
//! A slot's life: `Free` → `Receiving` (zeroed, given to the kernel) → `Received` → `Acting` (something the workspace
//! can see may have happened) → `Answered` (the result is stored, the answer is on its way) → `Free`.
//!
//! Beside that a slot holds what a successor could not find out: when the call's own timeout runs out, and the epolls
//! that watched a socket which is being exchanged. Behind the slots is what was ever [`touched`](super::touched).
//!
//! Limits: [`SLOTS`] notifications at once; with all taken nobody receives, and callers wait in the kernel.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::sys::epoll::Interest;
use crate::sys::listener::{self, NOTIFICATION_WORDS, Reply};

use super::notification::Notification;
use super::touched::Touched;

/// Slots: as many calls of one workspace may wait at once (connects into black holes, mostly).
const SLOTS: usize = 4096;
const SLOT_WORDS: usize = 32;

/// The word behind the slots: the rare options that were set.
const TOUCHED: usize = SLOTS * SLOT_WORDS;

/// Bytes of the shared memory the monitor makes.
pub const SIZE: usize = (TOUCHED + 1) * size_of::<u64>();

/// A notification with which supervisors died this often at work is answered with EIO instead of being tried again. Well
/// below the deaths that end a workspace; on a busy machine one that is innocent may be at work in two in a row.
pub const MAX_ATTEMPTS: u64 = 3;

const PHASE: usize = NOTIFICATION_WORDS;
const ATTEMPTS: usize = NOTIFICATION_WORDS + 1;
const RESULT: usize = NOTIFICATION_WORDS + 2;
/// Nanoseconds of CLOCK_MONOTONIC, which all processes share; 0 for none.
const DEADLINE: usize = NOTIFICATION_WORDS + 3;
/// How many registrations follow, two words each: epoll and events, data.
const REGISTRATIONS: usize = NOTIFICATION_WORDS + 4;
/// Registrations of one socket that survive a supervisor; hardly a program has a second one.
const MAX_REGISTRATIONS: usize = (SLOT_WORDS - REGISTRATIONS - 1) / 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Phase {
    Free = 0,
    Receiving = 1,
    Received = 2,
    Acting = 3,
    /// The same of a listen at a published port: SO_REUSEPORT is ours on the caller's socket.
    Sharing = 4,
    Answered = 5,
}

impl Phase {
    fn from_word(word: u64) -> Self {
        match word {
            0 => Self::Free,
            1 => Self::Receiving,
            2 => Self::Received,
            3 => Self::Acting,
            4 => Self::Sharing,
            _ => Self::Answered,
        }
    }
}

pub struct Ledger {
    pub touched: Touched,
    free: Mutex<Vec<&'static [AtomicU64; SLOT_WORDS]>>,
    released: Condvar,
    /// Threads that wait for `released`; changed under the lock.
    waiting: AtomicUsize,
}

/// One notification's place; given back to the ledger by [`Ledger::release`].
pub struct Slot(&'static [AtomicU64; SLOT_WORDS]);

impl Ledger {
    /// Takes over the memory and what is unanswered in it.
    pub fn open(words: &'static [AtomicU64]) -> (Self, Vec<Slot>) {
        let (slots, behind) = words.split_at(TOUCHED);
        let (slots, _) = slots.as_chunks::<SLOT_WORDS>();
        // Free slots are taken from the end: the first pages stay warm.
        let (unanswered, free) = slots.iter().rev().partition(|&slot| Slot(slot).holds_notification());
        let unanswered = Vec::into_iter(unanswered).map(Slot).collect();
        let touched = Touched::new(&behind[0]);
        (Self { touched, free: Mutex::new(free), released: Condvar::new(), waiting: AtomicUsize::new(0) }, unanswered)
    }

    /// A slot to receive into; waits while every one holds a call that waits itself.
    pub fn take(&self) -> Option<Slot> {
        let mut free = self.free.lock().ok()?;
        if free.is_empty() {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            let waited = self.released.wait_while(free, |free| free.is_empty());
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            free = waited.ok()?;
        }
        let slot = Slot(free.pop()?);
        drop(free);
        listener::clear(slot.notification_words());
        for word in [ATTEMPTS, RESULT, DEADLINE, REGISTRATIONS] {
            slot.0[word].store(0, Ordering::Relaxed);
        }
        slot.set_phase(Phase::Receiving);
        Some(slot)
    }

    pub fn release(&self, slot: Slot) {
        listener::clear(slot.notification_words());
        slot.set_phase(Phase::Free);
        if let Ok(mut free) = self.free.lock() {
            free.push(slot.0);
            if self.waiting.load(Ordering::Relaxed) != 0 {
                self.released.notify_one();
            }
        }
    }
}

impl Slot {
    /// Where the kernel writes the notification.
    pub fn notification_words(&self) -> &'static [AtomicU64; NOTIFICATION_WORDS] {
        let words: &'static [AtomicU64; SLOT_WORDS] = self.0;
        words.first_chunk().unwrap_or_else(|| unreachable!("a slot begins with a notification"))
    }

    pub fn notification(&self) -> Notification {
        Notification::from_words(self.notification_words())
    }

    pub fn phase(&self) -> Phase {
        Phase::from_word(self.0[PHASE].load(Ordering::Acquire))
    }

    /// Written before what it announces is done.
    pub fn set_phase(&self, phase: Phase) {
        self.0[PHASE].store(phase as u64, Ordering::Release);
    }

    /// Counts one more try and says how many there were before that did not end.
    pub fn begin_attempt(&self) -> u64 {
        self.0[ATTEMPTS].fetch_add(1, Ordering::AcqRel)
    }

    /// The try has come to an end that this process has survived: from here on the call only waits.
    pub fn end_attempt(&self) {
        self.0[ATTEMPTS].fetch_sub(1, Ordering::AcqRel);
    }

    /// Notes when the call's own timeout runs out. The first note stays: a successor's wait is the same wait.
    pub fn note_deadline(&self, deadline: Option<Instant>) -> Option<Instant> {
        let (now, here) = (monotonic(), Instant::now());
        let noted = deadline.map_or(0, |deadline| nanos(now + deadline.saturating_duration_since(here)));
        match self.0[DEADLINE].compare_exchange(0, noted, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => deadline,
            Err(first) => here.checked_add(Duration::from_nanos(first).saturating_sub(now)),
        }
    }

    /// Notes which of the caller's epolls watch the socket that is about to be replaced, and how.
    pub fn note_registrations(&self, registrations: impl Iterator<Item = (RawFd, Interest)>) {
        let mut count = 0;
        let words = self.0[REGISTRATIONS + 1..].chunks_exact(2);
        for (words, (epoll, Interest { events, data })) in words.zip(registrations) {
            words[0].store(u64::from(epoll.cast_unsigned()) << 32 | u64::from(events), Ordering::Relaxed);
            words[1].store(data, Ordering::Relaxed);
            count += 1;
        }
        self.0[REGISTRATIONS].store(count, Ordering::Release);
    }

    pub fn registrations(&self) -> Vec<(RawFd, Interest)> {
        let count = usize::try_from(self.0[REGISTRATIONS].load(Ordering::Acquire)).unwrap_or(0).min(MAX_REGISTRATIONS);
        let words = self.0[REGISTRATIONS + 1..].chunks_exact(2).take(count);
        words
            .map(|words| {
                let [a, b, c, d, e, f, g, h] = words[0].load(Ordering::Relaxed).to_be_bytes();
                let interest =
                    Interest { events: u32::from_be_bytes([e, f, g, h]), data: words[1].load(Ordering::Relaxed) };
                (RawFd::from_be_bytes([a, b, c, d]), interest)
            })
            .collect()
    }

    /// Stores the answer; false when somebody else has already answered.
    pub fn set_answer(&self, reply: Reply) -> bool {
        self.0[RESULT].store(encode(reply), Ordering::Release);
        self.0[PHASE].swap(Phase::Answered as u64, Ordering::AcqRel) != Phase::Answered as u64
    }

    pub fn answer(&self) -> Reply {
        decode(self.0[RESULT].load(Ordering::Acquire))
    }

    /// A second view of the same slot, for whoever watches over its deadline.
    pub fn watch(&self) -> Self {
        Self(self.0)
    }

    fn holds_notification(&self) -> bool {
        self.phase() != Phase::Free && self.0[0].load(Ordering::Acquire) != 0
    }
}

fn monotonic() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default()
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Two bits of kind, the rest the number. Answers with a value other than 0 do not occur.
fn encode(reply: Reply) -> u64 {
    match reply {
        Reply::Return(value) => value.cast_unsigned() << 2,
        Reply::Errno(errno) => u64::from(errno.cast_unsigned()) << 2 | 1,
        Reply::Continue => 2,
    }
}

fn decode(word: u64) -> Reply {
    match word & 3 {
        0 => Reply::Return((word >> 2).cast_signed()),
        1 => i32::try_from(word >> 2).map_or(Reply::Errno(libc::EIO), Reply::Errno),
        _ => Reply::Continue,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> &'static [AtomicU64] {
        (0..SIZE / 8).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak()
    }

    fn in_flight(ledger: &Ledger) -> usize {
        SLOTS - ledger.free.lock().unwrap().len()
    }

    #[test]
    fn a_received_notification_is_found_by_the_next_supervisor() {
        let words = memory();
        let (ledger, unanswered) = Ledger::open(words);
        assert!(unanswered.is_empty());
        let (received, waiting) = (ledger.take().unwrap(), ledger.take().unwrap());
        received.notification_words()[0].store(77, Ordering::Relaxed);
        received.set_phase(Phase::Acting);
        assert_eq!(received.begin_attempt(), 0);
        assert_eq!(in_flight(&ledger), 2);
        drop((ledger, waiting));

        let (next, unanswered) = Ledger::open(words);
        assert_eq!(unanswered.len(), 1, "a slot in which nothing arrived is free again");
        assert_eq!(unanswered[0].notification().id, 77);
        assert_eq!(unanswered[0].phase(), Phase::Acting);
        assert_eq!(unanswered[0].begin_attempt(), 1);
        assert_eq!(in_flight(&next), 1);
        next.release(unanswered.into_iter().next().unwrap());
        assert_eq!(in_flight(&next), 0);
    }

    #[test]
    fn a_wait_is_no_attempt_and_its_deadline_stays() {
        let (ledger, _) = Ledger::open(memory());
        let slot = ledger.take().unwrap();
        for _ in 0..5 {
            assert_eq!(slot.begin_attempt(), 0);
            slot.end_attempt();
        }
        let (first, later) = (Instant::now() + Duration::from_secs(5), Instant::now() + Duration::from_secs(50));
        assert_eq!(slot.note_deadline(Some(first)), Some(first));
        let kept = slot.note_deadline(Some(later)).unwrap();
        assert!(kept.max(first) - kept.min(first) < Duration::from_secs(1), "{first:?} {kept:?}");
        ledger.release(slot);
        assert_eq!(ledger.take().unwrap().note_deadline(None), None);
    }

    #[test]
    fn registrations_are_found_by_the_next_supervisor() {
        let (ledger, _) = Ledger::open(memory());
        let slot = ledger.take().unwrap();
        assert_eq!(slot.registrations(), []);
        let interest = |n: u64| Interest { events: 0x8000_201d, data: u64::MAX - n };
        slot.note_registrations((0..100).map(|n| (7, interest(n))));
        let kept = slot.registrations();
        assert_eq!(kept, (0..8).map(|n| (7, interest(n))).collect::<Vec<_>>());
        ledger.release(slot);
        assert_eq!(ledger.take().unwrap().registrations(), []);
    }

    #[test]
    fn only_the_first_answer_counts() {
        let (ledger, _) = Ledger::open(memory());
        let slot = ledger.take().unwrap();
        assert!(slot.set_answer(Reply::Errno(libc::ECONNREFUSED)));
        assert_eq!(slot.answer(), Reply::Errno(libc::ECONNREFUSED));
        assert!(!slot.watch().set_answer(Reply::Return(0)));
    }

    #[test]
    fn the_ledger_is_bounded() {
        let (ledger, _) = Ledger::open(memory());
        let mut taken: Vec<_> = (0..SLOTS).filter_map(|_| ledger.take()).collect();
        assert_eq!((taken.len(), in_flight(&ledger)), (SLOTS, SLOTS));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| ledger.take().is_some());
            ledger.release(taken.pop().unwrap());
            assert!(waiting.join().unwrap(), "a slot given back is taken by who waits for one");
        });
    }

    #[test]
    fn answers_survive_the_memory() {
        for reply in [Reply::Return(0), Reply::Errno(libc::EINPROGRESS), Reply::Continue] {
            assert_eq!(decode(encode(reply)), reply);
        }
    }
}
