//! The workspace-to-host half of a connection: what has been received in order, what the host's socket has not taken
//! yet, what arrived ahead of a gap, and the window that follows from it.
//!
//! ```text
//!   taken ─────── next ───────────────── edge
//!     │  pending    │  gaps and ranges    │   beyond: refused
//! ```
//!
//! Bytes between `taken` and `edge` that must be kept live in one ring, each at its sequence number modulo the ring's
//! size; it is allocated only when the host's socket does not take everything or a segment arrives ahead. The right
//! edge never moves left, and what was promised is never dropped.
#![forbid(unsafe_code)]

use super::Seq;
use super::stretches::Stretches;

/// The window shift offered: 65,535 << 7 covers the largest window with 128-byte steps.
const WINDOW_SHIFT: u8 = 7;
/// Room in the ring for rounding the window up to a step.
const SLACK: u32 = 256;
/// A connection starts with a ring of 64 KB, as much as an unscaled window can promise.
const INITIAL_RING: u32 = 1 << 16;
/// The memory a connection may cost at most; 4 MB is what a prototype needed to keep a slow host socket busy.
const MAX_RING: u32 = 1 << 22;

/// What to do with a segment's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Nothing new, or outside the window: acknowledge and drop.
    Unacceptable,
    /// The next bytes: `skip` were received before, `take` are new.
    InOrder { skip: usize, take: usize },
    /// New, behind a gap.
    Ahead { skip: usize, take: usize },
}

/// State of the half.
#[derive(Debug)]
pub struct Receive {
    taken: Seq,
    next: Seq,
    edge: Seq,
    /// Ring size this connection has earned.
    ring_size: u32,
    shift: u8,
    ring: Vec<u8>,
    /// After `next`.
    ahead: Stretches,
    since_growth: u32,
    /// Bytes received in order since the beginning.
    total: u64,
    /// Where the workspace's stream ends, once a FIN said so.
    fin: Option<Seq>,
    /// The workspace's urgent byte ends here (RFC 9293 3.8.5), and the host's socket has not taken it.
    urgent: Option<Seq>,
}

/// What a reset at some number is worth (RFC 5961 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    Believed,
    /// In the window, but not next: whoever sent it is asked.
    Challenged,
    Ignored,
}

impl Receive {
    /// `next`: the sequence number after the SYN. `scaled`: the workspace agreed to window scaling.
    pub fn new(next: Seq, scaled: bool) -> Self {
        Self {
            taken: next,
            next,
            edge: next,
            ring_size: INITIAL_RING,
            shift: if scaled { WINDOW_SHIFT } else { 0 },
            ring: Vec::new(),
            ahead: Stretches::default(),
            since_growth: 0,
            total: 0,
            fin: None,
            urgent: None,
        }
    }

    pub fn shift(&self) -> u8 {
        self.shift
    }

    /// The acknowledgement number to send.
    pub fn ack(&self) -> Seq {
        if self.is_finished() { self.next + 1 } else { self.next }
    }

    /// The workspace's FIN and everything before it have been received.
    pub fn is_finished(&self) -> bool {
        self.fin == Some(self.next)
    }

    /// Finished, and the host's socket has everything.
    pub fn is_drained(&self) -> bool {
        self.is_finished() && self.taken == self.next
    }

    /// Bytes received in order that the host's socket has not taken.
    pub fn pending(&self) -> u32 {
        self.next - self.taken
    }

    /// In-order payload may go to the host's socket without a copy: nothing is kept in the ring, and none of it is urgent.
    pub fn is_direct(&self) -> bool {
        self.ahead.is_empty() && self.urgent.is_none()
    }

    /// The window field for a segment sent now. Records the promise.
    ///
    /// A promise that is no multiple of the step is rounded up while the ring has room for that, and down after: the
    /// field then says up to a step less than was promised (RFC 7323 2.4), but what was promised is still taken.
    pub fn advertise(&mut self, is_syn: bool) -> u16 {
        let shift = if is_syn { 0 } else { self.shift };
        let open = (self.ring_size - SLACK).saturating_sub(self.pending());
        let room = self.ring_size.saturating_sub(self.pending());
        let promised = self.edge.past(self.next);
        let rounded = ((promised + (1u32 << shift) - 1) >> shift).min(room >> shift);
        let field = u16::try_from((open >> shift).max(rounded)).unwrap_or(u16::MAX);
        self.edge = self.edge.later_of(self.next + (u32::from(field) << shift));
        field
    }

    /// A quarter of the window has opened since it was last advertised: worth telling, unless nothing more will come. (Who
    /// has had the end of both streams acknowledged has forgotten the connection, and would answer with a reset.)
    pub fn should_update(&self) -> bool {
        if self.is_finished() {
            return false;
        }
        let window = self.ring_size - SLACK;
        let open = window.saturating_sub(self.pending());
        open.saturating_sub(self.edge.past(self.next)) >= window / 4
    }

    pub fn reset(&self, seq: Seq) -> Reset {
        if seq == self.ack() {
            Reset::Believed
        } else if !seq.before(self.next) && !self.edge.before(seq) {
            Reset::Challenged
        } else {
            Reset::Ignored
        }
    }

    /// Where `len` bytes at `seq` belong.
    pub fn place(&self, seq: Seq, len: usize) -> Placement {
        let Ok(len) = u32::try_from(len) else { return Placement::Unacceptable };
        let limit = self.fin.map_or(self.edge, |fin| self.edge.earlier_of(fin));
        let end = (seq + len).earlier_of(limit);
        let start = seq.later_of(self.next);
        if !start.before(end) {
            return Placement::Unacceptable;
        }
        let (skip, take) = ((start - seq) as usize, (end - start) as usize);
        if start == self.next { Placement::InOrder { skip, take } } else { Placement::Ahead { skip, take } }
    }

    /// Notes a FIN that follows the stream's byte `at` - 1, unless it contradicts what is known or lies outside.
    pub fn note_fin(&mut self, at: Seq) {
        let past_window = self.edge.before(at);
        let contradicts = at.before(self.next) || self.ahead.end().is_some_and(|end| at.before(end));
        if self.fin.is_none() && !past_window && !contradicts {
            self.fin = Some(at);
        }
    }

    /// Takes `count` bytes as received in order. They are pending until [`Self::took`] or [`Self::store_pending_at`].
    pub fn advance(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(0);
        let before = self.next;
        self.next = self.ahead.reach(self.next + count);
        self.total += u64::from(self.next - before);
        self.since_growth = self.since_growth.saturating_add(count);
    }

    /// The workspace's urgent data ends at `end`: one byte, as everybody has it (RFC 6093). A later one takes its place.
    pub fn note_urgent(&mut self, end: Seq) {
        if self.taken.before(end) {
            self.urgent = Some(end);
        }
    }

    /// How many of the pending bytes may be written in one call, and whether they are the urgent one.
    pub fn writable(&self) -> (usize, bool) {
        let pending = self.pending() as usize;
        match self.urgent.map(|end| (end - self.taken) as usize) {
            Some(1) => (pending.min(1), true),
            Some(ahead) => (pending.min(ahead - 1), false),
            None => (pending, false),
        }
    }

    /// Bytes received in order since the beginning.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The host's socket took `count` of the pending bytes.
    pub fn took(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(0).min(self.pending());
        self.taken += count;
        self.urgent = self.urgent.filter(|&end| self.taken.before(end));
    }

    /// Keeps bytes at `seq` that [`Self::place`] allowed, before [`Self::advance`] is told of them or after.
    pub fn store(&mut self, seq: Seq, data: &[u8]) {
        self.ensure_ring();
        let mask = self.ring.len() - 1;
        let at = seq.0 as usize & mask;
        let first = data.len().min(self.ring.len() - at);
        self.ring[at..at + first].copy_from_slice(&data[..first]);
        let rest = (data.len() - first).min(at);
        self.ring[..rest].copy_from_slice(&data[first..first + rest]);
    }

    /// Keeps bytes behind a gap. False when there are too many stretches: the segment is dropped.
    pub fn store_ahead(&mut self, seq: Seq, data: &[u8]) -> bool {
        let Ok(len) = u32::try_from(data.len()) else { return false };
        let is_kept = self.ahead.add(seq, seq + len);
        if is_kept {
            self.store(seq, data);
        }
        is_kept
    }

    /// Keeps pending bytes that the host's socket did not take: `data` starts `before_next` bytes before `next`.
    pub fn store_pending_at(&mut self, before_next: usize, data: &[u8]) {
        let Ok(before_next) = u32::try_from(before_next) else { return };
        if !data.is_empty() {
            self.store(Seq(self.next.0.wrapping_sub(before_next)), data);
        }
    }

    /// The first `count` pending bytes, in two parts where the ring wraps.
    pub fn pending_slices(&self, count: usize) -> (&[u8], &[u8]) {
        if self.ring.is_empty() || self.taken == self.next {
            return (&[], &[]);
        }
        let at = self.taken.0 as usize & (self.ring.len() - 1);
        let len = count.min(self.pending() as usize).min(self.ring.len());
        let first = len.min(self.ring.len() - at);
        (&self.ring[at..at + first], &self.ring[..len - first])
    }

    /// Stretches received ahead of gaps, for SACK blocks.
    pub fn ahead(&self) -> &[(Seq, Seq)] {
        self.ahead.as_slice()
    }

    /// Gives the ring's memory back when nothing is in it.
    pub fn release_idle_memory(&mut self) {
        if self.taken == self.next && self.ahead.is_empty() {
            self.ring = Vec::new();
        }
    }

    /// A connection that moves a ring's worth of bytes earns one of twice the size: by how much it would grow.
    pub fn earned(&self) -> Option<usize> {
        let is_earned = self.since_growth >= self.ring_size && self.ring_size < MAX_RING && self.shift > 0;
        is_earned.then_some(self.ring_size as usize)
    }

    /// Doubles the ring, and with it what may be promised.
    pub fn grow(&mut self) {
        self.since_growth = 0;
        self.ring_size = (self.ring_size * 2).min(MAX_RING);
    }

    /// What it has grown by since it began.
    pub fn grown(&self) -> usize {
        (self.ring_size - INITIAL_RING) as usize
    }

    /// It has a ring, in use or not.
    pub fn holds_memory(&self) -> bool {
        !self.ring.is_empty()
    }

    /// Makes the ring as large as the window, moving what it holds.
    fn ensure_ring(&mut self) {
        let size = self.ring_size as usize;
        if self.ring.len() >= size {
            return;
        }
        let old = std::mem::replace(&mut self.ring, vec![0; size]);
        if old.is_empty() {
            return;
        }
        let held = self.ahead.end().unwrap_or(self.next) - self.taken;
        for offset in 0..held {
            let seq = (self.taken + offset).0 as usize;
            self.ring[seq & (size - 1)] = old[seq & (old.len() - 1)];
        }
    }
}

#[cfg(test)]
mod tests;
