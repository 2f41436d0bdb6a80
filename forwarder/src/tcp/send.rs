//! The host-to-workspace half of a connection: what has been sent and acknowledged, what the workspace's window still
//! admits, and when to send again.
//!
//! ```text
//!   una ────────── nxt ─────── max        una + window
//!    │  in flight   │ to go again │  may follow   │
//! ```
//!
//! The bytes themselves stay in the host socket's receive queue until they are acknowledged; this half only says which
//! offset of the queue to send from. A third duplicate acknowledgement, or as much received beyond a gap, begins a
//! recovery (RFC 6675): what lies between the stretches that the workspace has is sent again, each gap once; where it
//! does not say what it has, the first bytes (RFC 6582). `nxt` falls back to `una` on a retransmission timeout
//! (RFC 6298, go-back-N). There is no congestion window: the path is a queue in memory, and the workspace's own window
//! is its limit.
#![forbid(unsafe_code)]

use super::stretches::Stretches;
use super::{Seq, limits};
use crate::timer::Time;

/// Fast retransmit threshold (RFC 5681), in acknowledgements and, where there is SACK, in segments received.
const DUPLICATE_ACKS: u8 = 3;

/// What a segment says about our half.
#[derive(Clone, Copy, Debug)]
pub struct Ack {
    /// Where the segment begins that says so.
    pub seq: Seq,
    pub number: Seq,
    /// The window as in the header.
    pub window: u16,
    /// The segment has no payload, SYN or FIN, so it may be a duplicate.
    pub bare: bool,
}

/// What an acknowledgement meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acked {
    /// It acknowledged something new.
    pub progress: bool,
    /// What is lost ([`Send::lost`]) is to be sent again now.
    pub retransmit: bool,
    /// It acknowledged what was never sent: answer with an acknowledgement (RFC 9293 3.10.7.4).
    pub unsent: bool,
}

/// State of the half.
#[derive(Debug)]
pub struct Send {
    una: Seq,
    nxt: Seq,
    max: Seq,
    window: u32,
    /// Where the segment began that said so (RFC 9293's SND.WL1).
    window_from: Option<Seq>,
    widest: u32,
    shift: u8,
    mss: u16,
    /// Where the host's stream ends, once its end was read.
    fin: Option<Seq>,
    duplicates: u8,
    /// In fast recovery until this is acknowledged.
    recover: Option<Seq>,
    /// What this recovery has sent again ends here.
    resent: Seq,
    /// What the workspace has of what follows `una`.
    sacked: Stretches,
    /// When this is acknowledged, a round trip has passed since (RFC 6298 3, with one measurement at a time).
    timed: Option<(Seq, Time)>,
    /// The round trip, smoothed, and its variation, in ms; None before the first measurement.
    round_trip: Option<(u64, u64)>,
    /// The host's urgent byte ends here (RFC 9293 3.8.5).
    urgent: Option<Seq>,
    /// Acknowledged bytes still in the host socket's queue.
    unread: u32,
    /// Bytes acknowledged since the beginning.
    total: u64,
}

impl Send {
    /// `iss`: our SYN's sequence number; `window` and `shift` as the workspace's SYN said; `mss` already limited.
    pub fn new(iss: Seq, window: u16, shift: u8, mss: u16) -> Self {
        Self {
            una: iss,
            nxt: iss + 1,
            max: iss + 1,
            window: u32::from(window),
            window_from: None,
            widest: u32::from(window),
            shift,
            mss,
            fin: None,
            duplicates: 0,
            recover: None,
            resent: iss,
            sacked: Stretches::default(),
            timed: None,
            round_trip: None,
            urgent: None,
            unread: 0,
            total: 0,
        }
    }

    pub fn una(&self) -> Seq {
        self.una
    }

    pub fn nxt(&self) -> Seq {
        self.nxt
    }

    /// The highest sequence number ever sent: where control segments go.
    pub fn max(&self) -> Seq {
        self.max
    }

    /// Bytes acknowledged since the beginning.
    pub fn total(&self) -> u64 {
        self.total
    }

    pub fn mss(&self) -> u16 {
        self.mss
    }

    pub fn in_flight(&self) -> bool {
        self.una != self.max
    }

    pub fn has_fin(&self) -> bool {
        self.fin.is_some()
    }

    /// The workspace has acknowledged everything, the end included.
    pub fn is_finished(&self) -> bool {
        self.fin.is_some_and(|fin| fin.before(self.una))
    }

    /// The workspace's SYN has answered ours, and says what [`Self::new`] was not told.
    pub fn answered(&mut self, window: u16, shift: u8, mss: u16, now: Time) {
        *self = Self { timed: self.timed, ..Self::new(self.una, window, shift, mss) };
        self.established(now);
    }

    /// Our SYN is sent: its acknowledgement is the first measurement, unless it is sent again.
    pub fn syn_sent(&mut self, now: Time) {
        self.timed = Some((self.nxt, now));
    }

    pub fn syn_sent_again(&mut self) {
        self.timed = None;
    }

    /// Takes our SYN as acknowledged.
    pub fn established(&mut self, now: Time) {
        self.una = self.nxt;
        self.measure(now);
    }

    /// Whether our SYN is what `ack` acknowledges.
    pub fn acks_syn(&self, ack: Seq) -> bool {
        ack == self.max
    }

    pub fn set_window(&mut self, field: u16) {
        self.window = u32::from(field) << self.shift;
        self.widest = self.widest.max(self.window);
    }

    /// Takes in an acknowledgement, and the stretches it names.
    pub fn acknowledge(&mut self, ack: Ack, sack: impl Iterator<Item = (Seq, Seq)>, now: Time) -> Acked {
        let Ack { seq, number, window, bare } = ack;
        if self.max.before(number) {
            return Acked { unsent: true, ..Acked::default() };
        }
        if number.before(self.una) {
            return Acked::default();
        }
        let (old_window, said) = (self.window, u32::from(window) << self.shift);
        let progress = number != self.una;
        if progress || self.is_newer_window(seq, said) {
            self.window_from = Some(seq);
            self.set_window(window);
        }
        if progress {
            self.advance(number, now);
        } else if bare && said == old_window && self.in_flight() {
            self.duplicates = self.duplicates.saturating_add(1);
        }
        for (from, to) in sack {
            // Below `una` it tells of what came twice (RFC 2883).
            if self.una.before(from) && from.before(to) && !self.max.before(to) {
                self.sacked.add(from, to);
            }
        }
        if self.recover.is_none() && self.has_lost() {
            self.recover = Some(self.max);
            self.resent = self.una;
        }
        Acked { progress, retransmit: self.lost(1).is_some(), unsent: false }
    }

    /// Whether a segment at `seq` that acknowledges nothing new comes after the one that said the window. Of two at one
    /// place the larger window is, for what was promised is not taken back, and one that closes (as tcp_ack of Linux has
    /// it): what came late would make the window small for good.
    fn is_newer_window(&self, seq: Seq, said: u32) -> bool {
        self.window_from.is_none_or(|from| from.before(seq) || (from == seq && (said > self.window || said == 0)))
    }

    fn advance(&mut self, una: Seq, now: Time) {
        let end = self.fin.map_or(una, |fin| una.earlier_of(fin));
        let acknowledged = end.past(self.una);
        self.unread = self.unread.saturating_add(acknowledged);
        self.total += u64::from(acknowledged);
        self.una = una;
        self.nxt = self.nxt.later_of(una);
        self.sacked.reach(una);
        self.urgent = self.urgent.filter(|&end| una.before(end));
        self.duplicates = 0;
        self.measure(now);
        match self.recover {
            // Only this says that more is lost (RFC 6582 3.2).
            Some(recover) if una.before(recover) && self.sacked.is_empty() => self.resent = una,
            Some(recover) if una.before(recover) => {}
            _ => self.recover = None,
        }
    }

    /// Too much has arrived without what is at `una` for it to be merely late.
    fn has_lost(&self) -> bool {
        let sacked = self.sacked.as_slice().iter().fold(0u32, |sum, &(from, to)| sum.saturating_add(to - from));
        self.duplicates >= DUPLICATE_ACKS || sacked >= u32::from(DUPLICATE_ACKS) * u32::from(self.mss)
    }

    /// In a recovery, the next to be sent again: from where, and how much of it, at most `frame`; nothing but the FIN
    /// when that is 0.
    pub fn lost(&self, frame: usize) -> Option<(Seq, usize)> {
        self.recover?;
        let mut from = self.resent.later_of(self.una);
        for &(start, end) in self.sacked.as_slice() {
            if from.before(start) {
                return Some((from, ((start - from) as usize).min(frame)));
            }
            from = from.later_of(end);
        }
        // Beyond all that the workspace has, only the first is known to be missing.
        let end = self.fin.map_or(self.max, |fin| self.max.earlier_of(fin));
        (from == self.una && from != self.max).then(|| (from, (end.past(from) as usize).min(frame)))
    }

    /// What [`Self::lost`] told of was sent, up to `end`.
    pub fn sent_again(&mut self, end: Seq) {
        self.resent = end;
        // Whatever is acknowledged next may be either copy (RFC 6298 3).
        self.timed = None;
    }

    /// The retransmission timer fired: everything in flight goes again, for the workspace may have dropped what it said
    /// it has (RFC 2018 8).
    pub fn timed_out(&mut self) {
        self.nxt = self.una;
        self.duplicates = 0;
        self.recover = None;
        self.sacked.clear();
        self.timed = None;
    }

    /// The segment at `seq` was too long for a link inside: what is in flight goes again in shorter ones, since of the
    /// long ones none has arrived. False: it is no news.
    pub fn too_big(&mut self, seq: Seq, mss: u16) -> bool {
        let is_in_flight = !seq.before(self.una) && seq.before(self.max);
        if !is_in_flight || mss >= self.mss {
            return false;
        }
        self.mss = mss;
        self.timed_out();
        true
    }

    /// Takes the round trip if what was timed is acknowledged.
    fn measure(&mut self, now: Time) {
        let Some((_, sent)) = self.timed.filter(|&(end, _)| !self.una.before(end)) else { return };
        self.timed = None;
        let sample = now.since(sent);
        self.round_trip = Some(match self.round_trip {
            None => (sample, sample / 2),
            Some((smoothed, variation)) => {
                ((7 * smoothed + sample) / 8, (3 * variation + smoothed.abs_diff(sample)) / 4)
            }
        });
    }

    /// 0 before the first measurement, and on a link that is memory.
    pub fn round_trip_ms(&self) -> u64 {
        self.round_trip.map_or(0, |(smoothed, _)| smoothed)
    }

    /// How long an acknowledgement may take, in ms, before its data is sent again (RFC 6298 2).
    pub fn retransmission_timeout(&self) -> u64 {
        let (smoothed, variation) = self.round_trip.unwrap_or_default();
        (smoothed + 4 * variation).max(limits::RTO_MS)
    }

    /// The next byte of the host's is its urgent one.
    pub fn next_is_urgent(&mut self) {
        self.urgent = Some(self.nxt + 1);
    }

    /// For a segment at `seq`: how far behind it the urgent data ends. Such segments are not for the kernel to cut,
    /// which would give each piece the same distance.
    pub fn urgent_pointer(&self, seq: Seq) -> Option<u16> {
        let end = self.urgent.filter(|&end| seq.before(end))?;
        u16::try_from(end - seq).ok()
    }

    /// How many bytes may be sent from `nxt`: at most `frame`, cut to whole segments, and nothing new that is silly (RFC
    /// 1122 4.2.3.4) while something is in flight.
    pub fn sendable(&self, frame: usize) -> usize {
        let mss = usize::from(self.mss).max(1);
        if self.fin.is_some_and(|fin| !self.nxt.before(fin)) {
            return 0;
        }
        let room = self.room() as usize;
        let is_new = self.nxt == self.max;
        let silly = is_new && room < mss && (room as u64) < u64::from(self.widest / 2) && self.in_flight();
        if silly {
            return 0;
        }
        let left = self.fin.map_or(frame, |fin| fin.past(self.nxt) as usize);
        let most = room.min(frame).min(left);
        if most > mss { most - most % mss } else { most }
    }

    /// The workspace's window admits nothing at all, not even what is in flight.
    pub fn is_window_closed(&self) -> bool {
        self.window == 0
    }

    fn room(&self) -> u32 {
        (self.una + self.window).past(self.nxt)
    }

    /// Where in the host socket's queue the byte at `nxt` is.
    pub fn offset(&self) -> u32 {
        self.offset_of(self.nxt)
    }

    /// Where in it the byte at `seq` is, at `una` or behind.
    pub fn offset_of(&self, seq: Seq) -> u32 {
        let end = self.fin.map_or(seq, |fin| seq.earlier_of(fin));
        self.unread.saturating_add(end.past(self.una))
    }

    pub fn sent(&mut self, count: usize, now: Time) {
        let is_new = self.nxt == self.max;
        self.nxt += u32::try_from(count).unwrap_or(0);
        self.max = self.max.later_of(self.nxt);
        if is_new && self.timed.is_none() {
            self.timed = Some((self.nxt, now));
        }
    }

    /// The host's stream ends at `nxt`.
    pub fn end_of_stream(&mut self) {
        if self.fin.is_none() {
            self.fin = Some(self.nxt);
        }
    }

    /// Everything before the FIN has been sent, and the FIN is next.
    pub fn is_fin_due(&self) -> bool {
        self.fin == Some(self.nxt)
    }

    /// Acknowledged bytes to drop from the host socket's queue.
    pub fn unread(&self) -> u32 {
        self.unread
    }

    pub fn discarded(&mut self, count: usize) {
        self.unread = self.unread.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
mod tests;
