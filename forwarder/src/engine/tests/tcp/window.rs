//! Who does not read stops the other end, and nobody else.

use super::*;

#[test]
fn a_closed_window_is_probed_for_as_long_as_the_workspace_answers() {
    let mut open = Open::new();
    // Without new bytes only a closed window becomes smaller.
    open.send_window(0, 0, 0);
    open.send_window(0, 0, 4);
    open.host.write_all(b"fourmore").unwrap();
    open.host.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(open.wait(1)[0].3, b"four");
    // Half an hour of a program that does not read.
    open.send_window(0, 4, 0);
    let mut probes = 0;
    for _ in 0..180 {
        let sent = open.wait(10_000);
        assert!(sent.iter().all(|s| s.3.is_empty() && !s.0.has(TcpFlags::RST)), "{sent:?}");
        if !sent.is_empty() {
            probes += 1;
            assert_eq!(sent[0].1, open.first.wrapping_add(3));
            open.send_window(0, 4, 0);
        }
    }
    assert!((20..60).contains(&probes), "{probes}");
    let sent = open.send_window(0, 4, 1000);
    assert_eq!(sent[0].3, b"more");
    assert!(sent[1].0.has(TcpFlags::FIN));
    // Now it has vanished: bounded retransmissions, then a reset.
    let sent: Vec<_> = (0..60).flat_map(|_| open.wait(10_000)).collect();
    assert!(sent.last().unwrap().0.has(TcpFlags::RST) && sent.len() < 40, "{sent:?}");
    assert_eq!(open.closed(), 1);
}

#[test]
fn keepalives_and_window_probes_are_answered() {
    let mut open = Open::new();
    open.send(0, 0, ACK, b"abc");
    open.host.write_all(b"data").unwrap();
    open.wait(1);
    // At the byte before the next, once with old and once with new acknowledgements.
    for acked in [0, 4, 4] {
        let answers = open.send(2, acked, ACK, &[]);
        assert_eq!(answers.len(), 1, "{acked}");
        assert_eq!(answers[0].2, FIRST + 3);
    }
}

/// A stalled host: everything the window promised is kept, nothing more is promised, and all of it arrives in order.
#[test]
fn what_the_host_does_not_take_is_kept() {
    let Open { mut lab, mut host, ports, first, .. } = Open::new();
    let data: Vec<u8> = (0..12_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24).to_be_bytes()[3]).collect();
    let (mut sent, mut got, mut stalls) = (0usize, Vec::new(), 0);
    let mut read = vec![0; 1 << 20];
    while sent < data.len() {
        let end = (sent + 20_000).min(data.len());
        let frame = lab.tcp(ports, FIRST.wrapping_add(u32::try_from(sent).unwrap()), first, ACK, &data[sent..end]);
        lab.feed(&[frame]);
        let acked = segments(&lab.received()).last().map_or(FIRST, |s| s.2).wrapping_sub(FIRST) as usize;
        assert!(acked <= end, "{acked} {end}");
        if acked == sent {
            // The window is closed: the host reads a little.
            stalls += 1;
            let count = host.read(&mut read).unwrap();
            got.extend_from_slice(&read[..count]);
            lab.turn(1);
        }
        sent = acked.max(sent);
    }
    let fin = lab.tcp(ports, FIRST.wrapping_add(u32::try_from(sent).unwrap()), first, ACK.with(TcpFlags::FIN), &[]);
    lab.feed(&[fin]);
    loop {
        lab.turn(1);
        let count = host.read(&mut read).unwrap();
        if count == 0 {
            break;
        }
        got.extend_from_slice(&read[..count]);
    }
    assert!(got == data, "{} of {}", got.len(), data.len());
    assert!(stalls > 3, "{stalls}");
}
