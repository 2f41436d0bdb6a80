//! Placement, order, window and end of stream.

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
        let (a, b) = receive.pending_slices(usize::MAX);
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
    let (a, b) = receive.pending_slices(usize::MAX);
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
fn resets_next_in_the_window_and_outside() {
    let mut receive = open(1000);
    for (seq, want) in [
        (999, Reset::Ignored),
        (1000, Reset::Believed),
        (1001, Reset::Challenged),
        (66_280, Reset::Challenged),
        (66_281, Reset::Ignored),
    ] {
        assert_eq!(receive.reset(Seq(seq)), want, "{seq}");
    }
    // The window is full and the stream has ended: the sender's next number is one beyond.
    receive.store(Seq(1000), &[0; 65_280]);
    receive.advance(65_280);
    receive.note_fin(Seq(66_280));
    assert_eq!(receive.reset(Seq(66_281)), Reset::Believed);
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

#[test]
fn an_urgent_byte_is_written_alone() {
    let mut receive = open(0);
    // Told of before it is there, and replaced by a later one.
    receive.note_urgent(Seq(3));
    receive.note_urgent(Seq(6));
    assert!(!receive.is_direct());
    receive.store(Seq(0), b"abcdeUf");
    receive.advance(7);
    for (want, is_urgent) in [(5, false), (1, true), (1, false)] {
        assert_eq!(receive.writable(), (want, is_urgent));
        receive.took(want);
    }
    assert!(receive.is_direct());
    receive.note_urgent(Seq(7));
    assert!(receive.is_direct(), "it has gone");
}
