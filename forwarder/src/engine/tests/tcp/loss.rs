//! What is lost or overtaken on the way, and what is too long for it, is sent again, and no more than that.

use super::*;

#[test]
fn segments_out_of_order_and_lost_answers() {
    let Open { mut lab, mut host, ports, first: first_ack, .. } = Open::new();

    // "world" and the FIN overtake "hello "; the gap is named, then closed.
    let late = lab.tcp(ports, 1007, first_ack, TcpFlags::ACK.with(TcpFlags::FIN), b"world");
    lab.feed(&[late]);
    assert_eq!(segments(&lab.received())[0].2, 1001);
    let first = lab.tcp(ports, 1001, first_ack, TcpFlags::ACK, b"hello ");
    lab.feed(&[first]);
    assert_eq!(segments(&lab.received())[0].2, 1013);
    let mut text = String::new();
    host.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello world");

    // The answer is lost: it comes again after the timeout, and again until it is acknowledged.
    host.write_all(b"answer").unwrap();
    drop(host);
    let mut sent = Vec::new();
    for _ in 0..20 {
        lab.turn(100);
        sent.extend(segments(&lab.received()));
    }
    let answers = sent.iter().filter(|s| s.3 == b"answer" && s.1 == first_ack).count();
    let ends = sent.iter().filter(|s| s.0.has(TcpFlags::FIN) && s.1 == first_ack.wrapping_add(6)).count();
    assert!(answers >= 3 && ends >= 3, "{sent:?}");
    let ack = lab.tcp(ports, 1013, first_ack.wrapping_add(7), TcpFlags::ACK, &[]);
    lab.feed(&[ack]);
    assert_eq!(lab.edge.counters.tcp.flows.closed, 1);
}

#[test]
fn an_end_that_keeps_sending_does_not_put_off_retransmission() {
    let mut open = Open::new();
    open.host.write_all(b"lost").unwrap();
    let mut copies = 0;
    for n in 0..20 {
        copies += open.wait(100).iter().filter(|s| s.3 == b"lost").count();
        copies += open.send(n, 0, ACK, b"x").iter().filter(|s| s.3 == b"lost").count();
    }
    assert!(copies >= 3, "{copies}");
}

/// What the workspace has is not sent again.
#[test]
fn only_the_gap_is_sent_again() {
    let mut open = Open::new();
    let data: Vec<u8> = (0..40_000u32).map(|n| n.to_be_bytes()[2]).collect();
    // In two frames, the first of which is lost.
    for part in data.chunks(20_000) {
        open.host.write_all(part).unwrap();
        let sent = open.wait(1);
        assert_eq!(sent.iter().map(|s| s.3.len()).sum::<usize>(), 20_000, "{}", sent.len());
    }
    let (from, to) = (open.first.wrapping_add(20_000), open.first.wrapping_add(40_000));
    let [a, b, c, d] = from.to_be_bytes();
    let [e, f, g, h] = to.to_be_bytes();
    let frame = open.lab.tcp_with((open.ports, FIRST, open.first, ACK), &[1, 1, 5, 10, a, b, c, d, e, f, g, h], &[]);
    open.lab.feed(&[frame.clone(), frame]);
    let again = open.received();
    assert_eq!((again.len(), again[0].1), (1, open.first));
    assert!(again[0].3 == data[..20_000]);
    assert!(open.send(0, 40_000, ACK, &[]).is_empty());
    assert_eq!(open.lab.edge.counters.tcp.retransmits_to_tap, 1);
}

#[test]
fn a_small_link_inside_makes_shorter_segments() {
    let mut open = Open::new();
    open.host.write_all(&[1; 4000]).unwrap();
    open.lab.turn(1);
    let frames = open.lab.received();
    let gso = |frame: &Vec<u8>| u16::from_ne_bytes([frame[4], frame[5]]);
    assert_eq!(frames.iter().map(gso).collect::<Vec<_>>(), [536]);
    let told = |open: &mut Open, quoted: &[u8], mtu: u16| {
        let error = open.lab.too_big(quoted, mtu);
        open.lab.feed(&[error]);
        open.lab.received()
    };
    // Not of what is in flight.
    let mut old = frames[0].clone();
    old[26 + 27] = old[26 + 27].wrapping_add(200);
    old[26 + 26] = old[26 + 26].wrapping_add(100);
    assert_eq!(told(&mut open, &old, 560), Vec::<Vec<u8>>::new());
    // Nor less than is believed.
    let again = told(&mut open, &frames[0], 100);
    assert_eq!(again.iter().map(gso).collect::<Vec<_>>(), [512]);
    assert_eq!(segments(&again)[0].1, open.first);
    assert_eq!(segments(&again)[0].3, [1; 4000]);
    assert_eq!(told(&mut open, &frames[0], 100), Vec::<Vec<u8>>::new());
}
