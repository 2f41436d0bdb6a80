//! What is sent, sent again, and when.

use super::*;

const NOW: Time = Time(0);

/// Established at sequence number 1, window 10,000, MSS 1,000.
fn open() -> Send {
    let mut send = Send::new(Seq(0), 10_000, 0, 1000);
    send.established(NOW);
    send
}

fn ack(send: &mut Send, number: u32, window: u16, bare: bool) -> Acked {
    send.acknowledge(Ack { seq: Seq(0), number: Seq(number), window, bare }, [].into_iter(), NOW)
}

/// A bare acknowledgement that names stretches.
fn sack(send: &mut Send, number: u32, stretches: &[(u32, u32)]) -> Acked {
    let stretches = stretches.iter().map(|&(from, to)| (Seq(from), Seq(to)));
    send.acknowledge(Ack { seq: Seq(0), number: Seq(number), window: 10_000, bare: true }, stretches, NOW)
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
        send.sent(flight, NOW);
        send.set_window(window);
        assert_eq!(send.sendable(frame), want, "{flight} {window} {frame}");
    }
}

/// An acknowledgement that another one has overtaken makes no window smaller.
#[test]
fn windows_follow_the_newest_segment() {
    let mut send = open();
    send.sent(3000, NOW);
    for (seq, number, window, want) in [
        (10, 1, 9000, 9000),
        (10, 1, 1000, 9000),
        (9, 1, 20_000, 9000),
        (11, 1, 1000, 1000),
        (11, 1, 2000, 2000),
        (11, 1, 0, 0),
        (11, 1, 500, 500),
        (5, 1001, 400, 400),
    ] {
        send.acknowledge(Ack { seq: Seq(seq), number: Seq(number), window, bare: true }, [].into_iter(), NOW);
        assert_eq!(send.window, want, "{seq} {number} {window}");
    }
}

/// A timeout sends what fits in however small a window: waiting for a larger one would be waiting for ever.
#[test]
fn small_windows_do_not_keep_what_is_lost() {
    let mut send = open();
    send.sent(5000, NOW);
    send.set_window(300);
    assert_eq!(send.sendable(65_000), 0);
    send.timed_out();
    assert_eq!(send.sendable(65_000), 300);
}

#[test]
fn offsets_follow_the_queue() {
    let mut send = open();
    send.sent(5000, NOW);
    assert_eq!(send.offset(), 5000);
    assert!(ack(&mut send, 2001, 10_000, true).progress);
    // Two thousand are acknowledged but still in the queue.
    assert_eq!((send.unread(), send.offset()), (2000, 5000));
    send.discarded(2000);
    assert_eq!((send.unread(), send.offset()), (0, 3000));
    send.timed_out();
    assert_eq!(send.offset(), 0);
    send.sent(1000, NOW);
    // An acknowledgement of the first transmission overtakes.
    ack(&mut send, 5001, 10_000, true);
    assert_eq!((send.nxt(), send.unread()), (Seq(5001), 3000));
    assert!(!send.in_flight());
}

#[test]
fn three_duplicates_then_partial_acknowledgements() {
    let mut send = open();
    send.sent(5000, NOW);
    let outcomes: Vec<bool> = (0..3).map(|_| ack(&mut send, 1, 10_000, true).retransmit).collect();
    assert_eq!(outcomes, [false, false, true]);
    assert_eq!(send.lost(1000), Some((Seq(1), 1000)));
    send.sent_again(Seq(1001));
    assert_eq!(send.lost(1000), None);
    assert!(!ack(&mut send, 1, 10_000, true).retransmit);
    assert!(ack(&mut send, 1001, 10_000, true).retransmit);
    assert_eq!(send.lost(9000), Some((Seq(1001), 4000)));
    let done = ack(&mut send, 5001, 10_000, true);
    assert_eq!(done, Acked { progress: true, retransmit: false, unsent: false });
}

#[test]
fn what_is_no_duplicate() {
    let mut send = open();
    send.sent(5000, NOW);
    for (field, bare) in [(9000, true), (8000, true), (8000, false), (8000, false)] {
        assert!(!ack(&mut send, 1, field, bare).retransmit);
    }
    assert!(ack(&mut send, 6000, 8000, true).unsent);
    assert_eq!(ack(&mut send, 0, 8000, true), Acked::default());
}

#[test]
fn fin_goes_last_and_is_no_byte_of_the_queue() {
    let mut send = open();
    send.sent(100, NOW);
    send.end_of_stream();
    assert!(send.is_fin_due());
    assert_eq!(send.sendable(1000), 0);
    send.sent(1, NOW);
    assert!(!send.is_fin_due() && !send.is_finished());
    assert_eq!(send.offset(), 100);
    send.timed_out();
    assert_eq!(send.sendable(1000), 100);
    send.sent(100, NOW);
    assert!(send.is_fin_due());
    send.sent(1, NOW);
    ack(&mut send, 102, 10_000, true);
    assert_eq!(send.unread(), 100);
    assert!(send.is_finished());
}

#[test]
fn each_gap_between_what_has_arrived_goes_again_once() {
    let mut send = open();
    send.sent(9000, NOW);
    // One segment beyond the gap may be early, three are not.
    assert!(!sack(&mut send, 1, &[(1001, 2001)]).retransmit);
    assert!(sack(&mut send, 1, &[(4001, 6001), (1001, 2001)]).retransmit);
    assert_eq!(send.lost(65_000), Some((Seq(1), 1000)));
    send.sent_again(Seq(1001));
    assert_eq!(send.lost(1500), Some((Seq(2001), 1500)));
    send.sent_again(Seq(3501));
    assert_eq!(send.lost(65_000), Some((Seq(3501), 500)));
    send.sent_again(Seq(4001));
    // Nothing says that what follows the last stretch is lost.
    assert_eq!(send.lost(65_000), None);
    assert!(!sack(&mut send, 2001, &[(4001, 6001)]).retransmit);
    assert!(sack(&mut send, 2001, &[(7001, 8001), (4001, 6001)]).retransmit);
    assert_eq!(send.lost(65_000), Some((Seq(6001), 1000)));
    send.sent_again(Seq(7001));
    // A partial acknowledgement that leaves no stretch: what it stops at was lost.
    assert!(ack(&mut send, 8001, 10_000, true).retransmit);
    assert_eq!(send.lost(65_000), Some((Seq(8001), 1000)));
    assert!(!ack(&mut send, 9001, 10_000, true).retransmit);
    assert_eq!(send.lost(65_000), None);
}

#[test]
fn nonsense_stretches_are_not_kept() {
    let mut send = open();
    send.sent(5000, NOW);
    for bad in [(6001, 7001), (3001, 2001), (0, 2000), (1, 5001), (4001, 5002), (2001, 2001)] {
        assert!(!sack(&mut send, 1, &[bad]).retransmit, "{bad:?}");
        send.duplicates = 0;
    }
    assert!(send.sacked.is_empty());
    assert!(sack(&mut send, 1, &[(1001, 5001)]).retransmit);
    // The timeout forgets what the workspace may have dropped since.
    send.timed_out();
    assert_eq!((send.lost(65_000), send.sendable(65_000)), (None, 10_000));
}

#[test]
fn a_lost_end_of_stream_alone() {
    let mut send = open();
    send.end_of_stream();
    send.sent(1, NOW);
    for _ in 0..3 {
        ack(&mut send, 1, 10_000, true);
    }
    assert_eq!(send.lost(1000), Some((Seq(1), 0)));
}

#[test]
fn the_timeout_follows_the_round_trip() {
    let mut send = open();
    assert_eq!(send.retransmission_timeout(), limits::RTO_MS);
    let trip = |send: &mut Send, millis| {
        send.sent(1000, NOW);
        send.sent(1000, NOW.after(1));
        let ack = Ack { seq: Seq(0), number: send.max(), window: 10_000, bare: true };
        send.acknowledge(ack, [].into_iter(), NOW.after(millis));
    };
    trip(&mut send, 400);
    assert_eq!(send.retransmission_timeout(), 400 + 4 * 200);
    for _ in 0..40 {
        trip(&mut send, 400);
    }
    assert_eq!(send.retransmission_timeout(), 400);
    // What was sent twice says nothing.
    let before = send.round_trip;
    send.sent(1000, NOW);
    send.timed_out();
    send.sent(1000, NOW);
    let ack = Ack { seq: Seq(0), number: send.max(), window: 10_000, bare: true };
    send.acknowledge(ack, [].into_iter(), NOW.after(9000));
    assert_eq!(send.round_trip, before);
}

#[test]
fn urgent_pointers_end_behind_the_byte() {
    let mut send = open();
    send.sent(100, NOW);
    send.next_is_urgent();
    for (seq, want) in [(1, Some(101)), (101, Some(1)), (102, None)] {
        assert_eq!(send.urgent_pointer(Seq(seq)), want, "{seq}");
    }
    send.sent(1, NOW);
    ack(&mut send, 102, 10_000, true);
    assert_eq!(send.urgent_pointer(Seq(1)), None);
}

#[test]
fn what_is_too_big_goes_again_in_shorter_segments() {
    let mut send = open();
    send.sent(5000, NOW);
    ack(&mut send, 2001, 10_000, true);
    // Acknowledged, never sent, and no shorter than it is.
    for (seq, mss) in [(2000, 900), (5001, 900), (2001, 1000)] {
        assert!(!send.too_big(Seq(seq), mss), "{seq} {mss}");
    }
    assert!(send.too_big(Seq(3001), 900));
    assert_eq!((send.mss(), send.nxt(), send.sendable(65_000)), (900, Seq(2001), 9900));
    // The other segments of the same flight are no news.
    assert!(!send.too_big(Seq(4001), 900));
}
