//! The host-to-workspace half of a connection: what has been sent and acknowledged, what the workspace's window still
//! admits, and when to send again.
//!
//! ```text
//!   una ────────── nxt ─────── max        una + window
//!    │  in flight   │ to go again │  may follow   │
//! ```
//!
//! The bytes themselves stay in the host socket's receive queue until they are acknowledged; this half only says which
//! offset of the queue to send from. `nxt` falls back to `una` on a retransmission timeout (RFC 6298, go-back-N); a
//! third duplicate acknowledgement sends the first bytes again without it (RFC 6582). There is no congestion window:
//! the path is a queue in memory, and the workspace's own window is its limit.
#![forbid(unsafe_code)]

use super::Seq;

/// Fast retransmit threshold (RFC 5681).
const DUPLICATE_ACKS: u8 = 3;

/// What an acknowledgement meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acked {
    /// It acknowledged something new.
    pub progress: bool,
    /// The segment at `una` is to be sent again now.
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
    widest: u32,
    shift: u8,
    mss: u16,
    /// Where the host's stream ends, once its end was read.
    fin: Option<Seq>,
    duplicates: u8,
    /// In fast recovery until this is acknowledged.
    recover: Option<Seq>,
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
            widest: u32::from(window),
            shift,
            mss,
            fin: None,
            duplicates: 0,
            recover: None,
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
    pub fn answered(&mut self, window: u16, shift: u8, mss: u16) {
        *self = Self::new(self.una, window, shift, mss);
        self.established();
    }

    /// Takes our SYN as acknowledged.
    pub fn established(&mut self) {
        self.una = self.nxt;
    }

    /// Whether our SYN is what `ack` acknowledges.
    pub fn acks_syn(&self, ack: Seq) -> bool {
        ack == self.max
    }

    pub fn set_window(&mut self, field: u16) {
        self.window = u32::from(field) << self.shift;
        self.widest = self.widest.max(self.window);
    }

    /// Takes in an acknowledgement. `bare`: the segment has no payload, SYN or FIN, so it may be a duplicate.
    pub fn acknowledge(&mut self, ack: Seq, field: u16, bare: bool) -> Acked {
        if self.max.before(ack) {
            return Acked { unsent: true, ..Acked::default() };
        }
        if ack.before(self.una) {
            return Acked::default();
        }
        let old_window = self.window;
        self.set_window(field);
        if ack == self.una {
            return self.duplicate(bare && self.window == old_window);
        }
        let end = self.fin.map_or(ack, |fin| ack.earlier_of(fin));
        let acknowledged = end.past(self.una);
        self.unread = self.unread.saturating_add(acknowledged);
        self.total += u64::from(acknowledged);
        self.una = ack;
        self.nxt = self.nxt.later_of(ack);
        self.duplicates = 0;
        let retransmit = match self.recover {
            Some(recover) if ack.before(recover) => true,
            _ => {
                self.recover = None;
                false
            }
        };
        Acked { progress: true, retransmit, unsent: false }
    }

    fn duplicate(&mut self, counts: bool) -> Acked {
        if !counts || !self.in_flight() {
            return Acked::default();
        }
        self.duplicates = self.duplicates.saturating_add(1);
        let retransmit = self.duplicates == DUPLICATE_ACKS && self.recover.is_none();
        if retransmit {
            self.recover = Some(self.max);
        }
        Acked { retransmit, ..Acked::default() }
    }

    /// The retransmission timer fired: everything in flight goes again.
    pub fn timed_out(&mut self) {
        self.nxt = self.una;
        self.duplicates = 0;
        self.recover = None;
    }

    /// How many bytes may be sent from `nxt`: at most `frame`, cut to whole segments, and nothing silly (RFC 1122
    /// 4.2.3.4) while something is in flight.
    pub fn sendable(&self, frame: usize) -> usize {
        let mss = usize::from(self.mss).max(1);
        if self.fin.is_some_and(|fin| !self.nxt.before(fin)) {
            return 0;
        }
        let room = self.room() as usize;
        let silly = room < mss && (room as u64) < u64::from(self.widest / 2) && self.in_flight();
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

    /// Where in the queue the byte at `una` is, and how many bytes from there were sent before.
    pub fn retransmission(&self, frame: usize) -> (u32, usize) {
        let end = self.fin.map_or(self.max, |fin| self.max.earlier_of(fin));
        (self.unread, (end.past(self.una) as usize).min(frame))
    }

    fn offset_of(&self, seq: Seq) -> u32 {
        let end = self.fin.map_or(seq, |fin| seq.earlier_of(fin));
        self.unread.saturating_add(end.past(self.una))
    }

    pub fn sent(&mut self, count: usize) {
        self.nxt += u32::try_from(count).unwrap_or(0);
        self.max = self.max.later_of(self.nxt);
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
mod tests {
    use super::*;

    /// Established at sequence number 1, window 10,000, MSS 1,000.
    fn open() -> Send {
        let mut send = Send::new(Seq(0), 10_000, 0, 1000);
        send.established();
        send
    }

    #[test]
    fn frames_are_whole_segments_within_the_window() {
        // (in flight, window, frame limit, want)
        let cases = [
            (0, 10_000, 65_000, 10_000),
            (0, 10_000, 5500, 5000),
            (0, 10_000, 500, 500),
            (9500, 10_000, 65_000, 0),
            (0, 500, 65_000, 500),
            (4000, 10_000, 65_000, 6000),
            (10_000, 10_000, 65_000, 0),
            (5000, 4000, 65_000, 0),
        ];
        for (flight, window, frame, want) in cases {
            let mut send = open();
            send.sent(flight);
            send.set_window(window);
            assert_eq!(send.sendable(frame), want, "{flight} {window} {frame}");
        }
    }

    #[test]
    fn offsets_follow_the_queue() {
        let mut send = open();
        send.sent(5000);
        assert_eq!(send.offset(), 5000);
        assert!(send.acknowledge(Seq(2001), 10_000, true).progress);
        // Two thousand are acknowledged but still in the queue.
        assert_eq!((send.unread(), send.offset()), (2000, 5000));
        send.discarded(2000);
        assert_eq!((send.unread(), send.offset()), (0, 3000));
        send.timed_out();
        assert_eq!(send.offset(), 0);
        send.sent(1000);
        // An acknowledgement of the first transmission overtakes.
        send.acknowledge(Seq(5001), 10_000, true);
        assert_eq!((send.nxt(), send.unread()), (Seq(5001), 3000));
        assert!(!send.in_flight());
    }

    #[test]
    fn three_duplicates_then_partial_acknowledgements() {
        let mut send = open();
        send.sent(5000);
        let outcomes: Vec<bool> = (0..5).map(|_| send.acknowledge(Seq(1), 10_000, true).retransmit).collect();
        assert_eq!(outcomes, [false, false, true, false, false]);
        assert_eq!(send.retransmission(2000), (0, 2000));
        assert!(send.acknowledge(Seq(1001), 10_000, true).retransmit);
        let done = send.acknowledge(Seq(5001), 10_000, true);
        assert_eq!(done, Acked { progress: true, retransmit: false, unsent: false });
    }

    #[test]
    fn what_is_no_duplicate() {
        let mut send = open();
        send.sent(5000);
        for (field, bare) in [(9000, true), (8000, true), (8000, false), (8000, false)] {
            assert!(!send.acknowledge(Seq(1), field, bare).retransmit);
        }
        assert!(send.acknowledge(Seq(6000), 8000, true).unsent);
        assert_eq!(send.acknowledge(Seq(0), 8000, true), Acked::default());
    }

    #[test]
    fn fin_goes_last_and_is_no_byte_of_the_queue() {
        let mut send = open();
        send.sent(100);
        send.end_of_stream();
        assert!(send.is_fin_due());
        assert_eq!(send.sendable(1000), 0);
        send.sent(1);
        assert!(!send.is_fin_due() && !send.is_finished());
        assert_eq!(send.offset(), 100);
        assert_eq!(send.retransmission(1000), (0, 100));
        send.timed_out();
        assert_eq!(send.sendable(1000), 100);
        send.sent(100);
        assert!(send.is_fin_due());
        send.sent(1);
        send.acknowledge(Seq(102), 10_000, true);
        assert_eq!(send.unread(), 100);
        assert!(send.is_finished());
    }
}
