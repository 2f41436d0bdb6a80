//! What was received and not yet answered, in memory that outlives a supervisor.
//!
//! The monitor holds the memory; a supervisor that takes over finds in it every notification its predecessor had
//! received, how far the act behind it had come, and how often it was tried. The kernel writes a notification straight
//! into its slot, so there is no moment in which one exists only in a process that may die.
//!
//! A slot's life: `Free` → `Receiving` (zeroed, given to the kernel) → `Received` → `Acting` (something the workspace
//! can see may have happened) → `Answered` (the result is stored, the answer is on its way) → `Free`.
//!
//! Limits: [`SLOTS`] notifications at once; with all taken nobody receives, and callers wait in the kernel.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};

use crate::sys::listener::{self, NOTIFICATION_WORDS, Reply};

use super::notification::Notification;

/// Slots: as many calls of one workspace may wait at once (connects into black holes, mostly).
const SLOTS: usize = 4096;
const SLOT_WORDS: usize = 16;

/// Bytes of the shared memory the monitor makes.
pub const SIZE: usize = SLOTS * SLOT_WORDS * size_of::<u64>();

/// A notification that made a supervisor die this often is answered with EIO instead of being tried again.
pub const MAX_ATTEMPTS: u64 = 2;

const PHASE: usize = NOTIFICATION_WORDS;
const ATTEMPTS: usize = NOTIFICATION_WORDS + 1;
const RESULT: usize = NOTIFICATION_WORDS + 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Phase {
    Free = 0,
    Receiving = 1,
    Received = 2,
    Acting = 3,
    Answered = 4,
}

impl Phase {
    fn from_word(word: u64) -> Self {
        match word {
            0 => Self::Free,
            1 => Self::Receiving,
            2 => Self::Received,
            3 => Self::Acting,
            _ => Self::Answered,
        }
    }
}

pub struct Ledger {
    slots: &'static [[AtomicU64; SLOT_WORDS]],
    free: Mutex<Vec<&'static [AtomicU64; SLOT_WORDS]>>,
    released: Condvar,
}

/// One notification's place; given back to the ledger by [`Ledger::release`].
pub struct Slot(&'static [AtomicU64; SLOT_WORDS]);

impl Ledger {
    /// Takes over the memory and what is unanswered in it.
    pub fn open(words: &'static [AtomicU64]) -> (Self, Vec<Slot>) {
        let (slots, _) = words.as_chunks::<SLOT_WORDS>();
        let slots = slots.get(..SLOTS).unwrap_or(slots);
        // Free slots are taken from the end: the first pages stay warm.
        let (unanswered, free) = slots.iter().rev().partition(|&slot| Slot(slot).holds_notification());
        let unanswered = Vec::into_iter(unanswered).map(Slot).collect();
        (Self { slots, free: Mutex::new(free), released: Condvar::new() }, unanswered)
    }

    /// A slot to receive into; waits while every one holds a call that waits itself.
    pub fn take(&self) -> Option<Slot> {
        let mut free = self.released.wait_while(self.free.lock().ok()?, |free| free.is_empty()).ok()?;
        let slot = Slot(free.pop()?);
        drop(free);
        listener::clear(slot.notification_words());
        slot.0[ATTEMPTS].store(0, Ordering::Relaxed);
        slot.0[RESULT].store(0, Ordering::Relaxed);
        slot.set_phase(Phase::Receiving);
        Some(slot)
    }

    pub fn release(&self, slot: Slot) {
        listener::clear(slot.notification_words());
        slot.set_phase(Phase::Free);
        if let Ok(mut free) = self.free.lock() {
            free.push(slot.0);
            self.released.notify_one();
        }
    }

    /// Calls received and not answered.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.lock().map(|free| free.len()).unwrap_or(0)
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

    /// Counts one more try and says how many there were before.
    pub fn count_attempt(&self) -> u64 {
        self.0[ATTEMPTS].fetch_add(1, Ordering::AcqRel)
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

    #[test]
    fn a_received_notification_is_found_by_the_next_supervisor() {
        let words = memory();
        let (ledger, unanswered) = Ledger::open(words);
        assert!(unanswered.is_empty());
        let (received, waiting) = (ledger.take().unwrap(), ledger.take().unwrap());
        received.notification_words()[0].store(77, Ordering::Relaxed);
        received.set_phase(Phase::Acting);
        assert_eq!(received.count_attempt(), 0);
        assert_eq!(ledger.in_flight(), 2);
        drop((ledger, waiting));

        let (next, unanswered) = Ledger::open(words);
        assert_eq!(unanswered.len(), 1, "a slot in which nothing arrived is free again");
        assert_eq!(unanswered[0].notification().id, 77);
        assert_eq!(unanswered[0].phase(), Phase::Acting);
        assert_eq!(unanswered[0].count_attempt(), 1);
        assert_eq!(next.in_flight(), 1);
        next.release(unanswered.into_iter().next().unwrap());
        assert_eq!(next.in_flight(), 0);
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
        assert_eq!((taken.len(), ledger.in_flight()), (SLOTS, SLOTS));
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
