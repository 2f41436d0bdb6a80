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

/// The window shift offered: 65,535 << 7 covers the largest window with 128-byte steps.
pub const WINDOW_SHIFT: u8 = 7;
/// Room in the ring for rounding the window up to a step.
const SLACK: u32 = 256;
/// A connection starts with a ring of 64 KB, as much as an unscaled window can promise.
const INITIAL_RING: u32 = 1 << 16;
/// The memory a connection may cost at most; 4 MB is what FACTS' prototype needed to keep a slow host socket busy.
const MAX_RING: u32 = 1 << 22;
/// Separate stretches held ahead of gaps; more than reordering ever makes, and a bound on the work for each segment.
const MAX_RANGES: usize = 32;

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
    /// Sorted, disjoint, not touching: (from, to) stretches after `next`.
    ahead: Vec<(Seq, Seq)>,
    since_growth: u32,
    /// Where the workspace's stream ends, once a FIN said so.
    fin: Option<Seq>,
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
            ahead: Vec::new(),
            since_growth: 0,
            fin: None,
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

    /// Nothing is kept in the ring: in-order payload may go to the host's socket without a copy.
    pub fn is_direct(&self) -> bool {
        self.ahead.is_empty()
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

    /// A quarter of the window has opened since it was last advertised: worth telling.
    pub fn should_update(&self) -> bool {
        let window = self.ring_size - SLACK;
        let open = window.saturating_sub(self.pending());
        open.saturating_sub(self.edge.past(self.next)) >= window / 4
    }

    /// Whether a reset at `seq` is believed: anywhere in the window (RFC 9293 3.10.7.4), or next after the
    /// workspace's FIN, which a closed window leaves outside.
    pub fn admits_reset(&self, seq: Seq) -> bool {
        seq == self.ack() || (!seq.before(self.next) && !self.edge.before(seq))
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
        let contradicts = at.before(self.next) || self.ahead.last().is_some_and(|&(_, to)| at.before(to));
        if self.fin.is_none() && !past_window && !contradicts {
            self.fin = Some(at);
        }
    }

    /// Takes `count` bytes as received in order. They are pending until [`Self::took`] or [`Self::store_pending_at`].
    pub fn advance(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(0);
        self.next += count;
        self.since_growth = self.since_growth.saturating_add(count);
        while let Some(&(from, to)) = self.ahead.first() {
            if self.next.before(from) {
                break;
            }
            self.next = self.next.later_of(to);
            self.ahead.remove(0);
        }
    }

    /// The host's socket took `count` of the pending bytes.
    pub fn took(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(0).min(self.pending());
        self.taken += count;
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
        let (mut from, mut to) = (seq, seq + len);
        let first = self.ahead.iter().take_while(|range| range.1.before(from)).count();
        let touching = self.ahead[first..].iter().take_while(|range| !to.before(range.0)).count();
        if touching == 0 && self.ahead.len() == MAX_RANGES {
            return false;
        }
        self.store(seq, data);
        for range in self.ahead.drain(first..first + touching) {
            from = from.earlier_of(range.0);
            to = to.later_of(range.1);
        }
        self.ahead.insert(first, (from, to));
        true
    }

    /// Keeps pending bytes that the host's socket did not take: `data` starts `before_next` bytes before `next`.
    pub fn store_pending_at(&mut self, before_next: usize, data: &[u8]) {
        let Ok(before_next) = u32::try_from(before_next) else { return };
        if !data.is_empty() {
            self.store(Seq(self.next.0.wrapping_sub(before_next)), data);
        }
    }

    /// The pending bytes, in two parts where the ring wraps.
    pub fn pending_slices(&self) -> (&[u8], &[u8]) {
        if self.ring.is_empty() || self.taken == self.next {
            return (&[], &[]);
        }
        let at = self.taken.0 as usize & (self.ring.len() - 1);
        let len = (self.pending() as usize).min(self.ring.len());
        let first = len.min(self.ring.len() - at);
        (&self.ring[at..at + first], &self.ring[..len - first])
    }

    /// Stretches received ahead of gaps, for SACK blocks.
    pub fn ahead(&self) -> &[(Seq, Seq)] {
        &self.ahead
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
        let held = self.ahead.last().map_or(self.next, |range| range.1) - self.taken;
        for offset in 0..held {
            let seq = (self.taken + offset).0 as usize;
            self.ring[seq & (size - 1)] = old[seq & (old.len() - 1)];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(start: u32) -> Receive {
        let mut receive = Receive::new(Seq(start), true);
        receive.advertise(false);
        receive
    }

    #[test]
    fn placement() {
        // (seq offset from next, len, want), window 65,280
        let cases = [
            (0, 100, Placement::InOrder { skip: 0, take: 100 }),
            (-10, 100, Placement::InOrder { skip: 10, take: 90 }),
            (-100, 100, Placement::Unacceptable),
            (5, 10, Placement::Ahead { skip: 0, take: 10 }),
            (65_270, 100, Placement::Ahead { skip: 0, take: 10 }),
            (65_280, 1, Placement::Unacceptable),
            (0, 65_400, Placement::InOrder { skip: 0, take: 65_280 }),
            (0, 0, Placement::Unacceptable),
        ];
        for start in [1000, u32::MAX - 5] {
            let receive = open(start);
            for (offset, len, want) in cases {
                let seq = Seq(start.wrapping_add_signed(offset));
                assert_eq!(receive.place(seq, len), want, "{start} {offset} {len}");
            }
        }
    }

    #[test]
    fn a_stream_in_any_order_comes_out_in_order() {
        let start = u32::MAX - 30_000;
        let data: Vec<u8> = (0..60_000u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        let mut receive = open(start);
        let pieces: Vec<usize> = (0..60).collect();
        // Swap neighbours in threes, and send every fifth piece twice.
        let mut order: Vec<usize> = pieces.chunks(3).flat_map(|c| c.iter().rev().copied()).collect();
        order.extend(pieces.iter().filter(|n| *n % 5 == 0));
        let mut out = Vec::new();
        for piece in order {
            let bytes = &data[piece * 1000..(piece + 1) * 1000];
            let seq = Seq(start.wrapping_add(u32::try_from(piece * 1000).unwrap()));
            match receive.place(seq, bytes.len()) {
                Placement::InOrder { skip, take } => {
                    receive.store(seq + u32::try_from(skip).unwrap(), &bytes[skip..skip + take]);
                    receive.advance(take);
                }
                Placement::Ahead { skip, take } => {
                    assert!(receive.store_ahead(seq + u32::try_from(skip).unwrap(), &bytes[skip..skip + take]));
                }
                Placement::Unacceptable => {}
            }
            let (a, b) = receive.pending_slices();
            out.extend_from_slice(a);
            out.extend_from_slice(b);
            let all = a.len() + b.len();
            receive.took(all);
        }
        assert!(out == data);
        assert!(receive.ahead().is_empty());
    }

    #[test]
    fn the_right_edge_never_moves_left_and_reopens_in_quarters() {
        let mut receive = open(0);
        let mut edge = receive.edge;
        for _ in 0..65 {
            receive.store(receive.next, &[7; 1000]);
            receive.advance(1000);
            if receive.earned().is_some() {
                receive.grow();
            }
            receive.advertise(false);
            assert!(!receive.edge.before(edge));
            edge = receive.edge;
        }
        assert!(receive.pending() <= receive.ring_size);
        receive.took(1000);
        assert!(!receive.should_update());
        receive.took(40_000);
        assert!(receive.should_update());
        receive.advertise(false);
        assert!(!receive.should_update());
    }

    #[test]
    fn rounding_never_promises_more_than_the_ring_holds() {
        // A sender that fills whatever it is shown, in sizes that never fit the window's step, to a host that stalls.
        for size in [1, 33, 127, 129, 1000, 1460] {
            let mut receive = open(77);
            for round in 0..20_000 {
                let room = receive.edge.past(receive.next) as usize;
                let data = vec![7; room.min(size)];
                receive.store(receive.next, &data);
                receive.advance(data.len());
                if round % 500 == 0 && receive.earned().is_some() {
                    receive.grow();
                }
                receive.advertise(false);
                assert!(receive.edge - receive.taken <= receive.ring_size, "{size} {round}");
                if round % 100 == 99 {
                    receive.took(333);
                }
            }
        }
    }

    #[test]
    fn growing_keeps_what_is_held() {
        let mut receive = open(40_000);
        let mut sent = 0u32;
        // 60,000 bytes are taken at once and earn nothing yet; the rest stays and grows the ring under it.
        receive.advance(60_000);
        receive.took(60_000);
        sent += 60_000;
        receive.advertise(false);
        for _ in 0..10 {
            let byte = sent.to_be_bytes()[2];
            receive.store(receive.next, &[byte; 6000]);
            receive.advance(6000);
            if receive.earned().is_some() {
                receive.grow();
            }
            receive.advertise(false);
            sent += 6000;
        }
        assert_eq!(receive.ring_size, 2 * INITIAL_RING);
        let (a, b) = receive.pending_slices();
        let held = [a, b].concat();
        assert_eq!(held.len(), 60_000);
        for (n, chunk) in held.chunks(6000).enumerate() {
            let want = (60_000 + 6000 * u32::try_from(n).unwrap()).to_be_bytes()[2];
            assert!(chunk.iter().all(|&b| b == want), "{n}");
        }
    }

    #[test]
    fn fin_is_acknowledged_after_the_last_byte() {
        let mut receive = open(0);
        receive.note_fin(Seq(10));
        assert_eq!(receive.ack(), Seq(0));
        assert_eq!(receive.place(Seq(0), 20), Placement::InOrder { skip: 0, take: 10 });
        receive.store(Seq(0), &[0; 10]);
        receive.advance(10);
        assert_eq!(receive.ack(), Seq(11));
        assert!(!receive.is_drained());
        receive.took(10);
        assert!(receive.is_drained());
        assert_eq!(receive.place(Seq(10), 1), Placement::Unacceptable);
    }

    #[test]
    fn a_reset_is_believed_in_the_window_only() {
        let mut receive = open(1000);
        for (seq, want) in [(999, false), (1000, true), (66_280, true), (66_281, false)] {
            assert_eq!(receive.admits_reset(Seq(seq)), want, "{seq}");
        }
        // The window is full and the stream has ended: the sender's next number is one beyond.
        receive.store(Seq(1000), &[0; 65_280]);
        receive.advance(65_280);
        receive.note_fin(Seq(66_280));
        assert!(receive.admits_reset(Seq(66_281)));
    }

    #[test]
    fn stretches_are_bounded() {
        let mut receive = open(0);
        for n in 0..40u32 {
            let stored = receive.store_ahead(Seq(10 + n * 20), &[0; 5]);
            assert_eq!(stored, n < 32, "{n}");
        }
        assert!(receive.store_ahead(Seq(10), &[0; 580]));
        assert_eq!(receive.ahead().len(), 3);
    }
}
