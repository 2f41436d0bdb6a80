//! TCP as RFC 9293 has it, where it matters and where it is easy to get wrong.

use std::io::{Read, Write};

use super::*;

const ACK: TcpFlags = TcpFlags::ACK;
/// The workspace's first sequence number after its SYN.
const FIRST: u32 = 1001;

/// One open connection.
struct Open {
    lab: Lab,
    host: TcpStream,
    ports: (u16, u16),
    /// Our first sequence number after the SYN.
    first: u32,
    /// For a second connection.
    _listener: TcpListener,
}

impl Open {
    fn new() -> Self {
        let listener = listener();
        let ports = (4000, listener.local_addr().unwrap().port());
        let mut lab = Lab::new();
        let syn = lab.tcp(ports, FIRST - 1, 0, TcpFlags::SYN, &[]);
        lab.feed(&[syn]);
        lab.turn(1);
        let first = segments(&lab.received())[0].1.wrapping_add(1);
        let mut open = Self { lab, host: accept(&listener), ports, first, _listener: listener };
        open.send(0, 0, ACK, &[]);
        open
    }

    /// The workspace sends a segment, at offsets of both streams, with a wide window.
    fn send(&mut self, at: u32, acked: u32, flags: TcpFlags, payload: &[u8]) -> Vec<Segment> {
        let frame = self.lab.tcp(self.ports, FIRST.wrapping_add(at), self.first.wrapping_add(acked), flags, payload);
        self.lab.feed(&[frame]);
        self.received()
    }

    /// The same with a window of its own.
    fn send_window(&mut self, at: u32, acked: u32, window: u16) -> Vec<Segment> {
        let mut frame = self.lab.tcp(self.ports, FIRST.wrapping_add(at), self.first.wrapping_add(acked), ACK, &[]);
        let field = usize::from(VNET_LEN) + ETHERNET_LEN + IPV4_LEN + 14;
        frame[field..field + 2].copy_from_slice(&window.to_be_bytes());
        self.lab.feed(&[frame]);
        self.received()
    }

    fn received(&mut self) -> Vec<Segment> {
        segments(&self.lab.received())
    }

    /// Lets time pass; what the workspace was sent meanwhile.
    fn wait(&mut self, millis: u64) -> Vec<Segment> {
        self.lab.turn(millis);
        self.received()
    }

    fn closed(&self) -> u64 {
        self.lab.edge.counters.tcp.flows.closed
    }
}

#[test]
fn refused_reset_and_unknown() {
    let mut lab = Lab::new();
    let port = closed_port();
    let syn = lab.tcp((4000, port), 1000, 0, TcpFlags::SYN, &[]);
    let stray = lab.tcp((4001, port), 5, 9, TcpFlags::ACK, &[]);
    let reset = lab.tcp((4002, port), 5, 9, TcpFlags::RST, &[]);
    lab.feed(&[syn, stray, reset]);
    lab.turn(1);
    let answers = segments(&lab.received());
    let refused = (TcpFlags::RST.with(TcpFlags::ACK), 0, 1001, vec![]);
    let unknown = (TcpFlags::RST, 9, 0, vec![]);
    assert_eq!(answers.len(), 2);
    assert!(answers.contains(&refused) && answers.contains(&unknown), "{answers:?}");
}

#[test]
fn segments_out_of_order_and_lost_answers() {
    let listener = listener();
    let ports = (4000, listener.local_addr().unwrap().port());
    let mut lab = Lab::new();
    let syn = lab.tcp(ports, 1000, 0, TcpFlags::SYN, &[]);
    lab.feed(&[syn]);
    lab.turn(1);
    let iss = segments(&lab.received())[0].1;
    let first_ack = iss.wrapping_add(1);
    let ack = lab.tcp(ports, 1001, first_ack, TcpFlags::ACK, &[]);
    lab.feed(&[ack]);
    let mut host = accept(&listener);

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

#[test]
fn a_half_closed_connection_whose_owner_is_gone_ends() {
    let mut open = Open::new();
    // The long idle deadline is set before the close.
    open.wait(1000);
    open.send(0, 0, ACK.with(TcpFlags::FIN), &[]);
    assert_eq!(open.host.read(&mut [0; 8]).unwrap(), 0);
    let probe = open.wait(91_000);
    assert_eq!(probe.len(), 1, "{probe:?}");
    // The workspace's kernel has forgotten the connection.
    open.send(1, 0, TcpFlags::RST, &[]);
    assert_eq!(open.closed(), 1);
    assert!(open.host.write_all(b"anyone?").is_err());
}

#[test]
fn resets_outside_the_window_are_ignored_and_early_ones_challenged() {
    let mut open = Open::new();
    for at in [u32::MAX, 1 << 20, 1 << 31] {
        assert!(open.send(at, 0, TcpFlags::RST, &[]).is_empty());
        assert_eq!(open.closed(), 0, "{at}");
    }
    let challenge = open.send(700, 0, TcpFlags::RST, &[]);
    assert_eq!((challenge.len(), challenge[0].0, challenge[0].2), (1, ACK, FIRST));
    assert_eq!(open.closed(), 0);
    open.send(0, 0, TcpFlags::RST, &[]);
    assert_eq!(open.closed(), 1);
}

/// A SYN of the same ends: of a connection that is open it is an old one, or its sender has forgotten this one.
#[test]
fn a_syn_on_an_open_connection_is_challenged() {
    let mut open = Open::new();
    let challenge = open.send(90_000, 0, TcpFlags::SYN, &[]);
    assert_eq!((challenge.len(), challenge[0].0, challenge[0].2), (1, ACK, FIRST));
    // An end that has forgotten it answers so.
    open.send(0, 0, TcpFlags::RST, &[]);
    assert_eq!(open.closed(), 1);
}

#[test]
fn ports_are_used_again_before_the_host_has_closed() {
    let mut open = Open::new();
    open.send(0, 0, ACK.with(TcpFlags::FIN), b"last");
    assert_eq!(open.send(90_000, 0, TcpFlags::SYN, &[]), []);
    open.lab.turn(1);
    let answers = open.received();
    let syn_ack = TcpFlags::SYN.with(ACK);
    assert_eq!((answers.len(), answers[0].0, answers[0].2), (1, syn_ack, FIRST + 90_001), "{answers:?}");
    let mut text = String::new();
    open.host.read_to_string(&mut text).unwrap();
    assert_eq!(text, "last");
    // Its acknowledgement is lost, the program gives up and tries again.
    open.send(190_000, 0, TcpFlags::SYN, &[]);
    open.lab.turn(1);
    let answers = open.received();
    assert_eq!((answers.len(), answers[0].0, answers[0].2), (1, syn_ack, FIRST + 190_001), "{answers:?}");
}

#[test]
fn a_syn_ack_that_nobody_acknowledges_ends() {
    let listener = listener();
    let ports = (4000, listener.local_addr().unwrap().port());
    let mut lab = Lab::new();
    let syn = lab.tcp(ports, FIRST - 1, 0, TcpFlags::SYN, &[]);
    lab.feed(&[syn]);
    let sent: usize = (0..100)
        .map(|_| {
            lab.turn(1000);
            segments(&lab.received()).iter().filter(|s| s.0.has(TcpFlags::SYN)).count()
        })
        .sum();
    assert_eq!((sent, lab.edge.counters.tcp.flows.closed), (6, 1));
    assert!(accept(&listener).read(&mut [0]).is_err(), "a reset");
}

/// A container that was killed with its network: nobody answers for its connection any more.
#[test]
fn an_idle_connection_whose_end_has_vanished_ends() {
    let mut open = Open::new();
    let sent: Vec<_> = (0..200).flat_map(|_| open.wait(60_000)).collect();
    assert!(sent.last().unwrap().0.has(TcpFlags::RST) && sent.len() < 20, "{sent:?}");
    assert_eq!(open.closed(), 1);
    assert!(open.host.read(&mut [0]).is_err(), "a reset");
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
fn urgent_bytes_towards_the_host() {
    let mut open = Open::new();
    rustix::net::sockopt::set_socket_oobinline(&open.host, true).unwrap();
    // The pointer comes before the byte.
    for (at, pointer, payload) in [(0, 6, &b"abc"[..]), (3, 3, b"deUf")] {
        let ends = (open.ports, FIRST + at, open.first, ACK.with(TcpFlags::URG));
        let mut frame = open.lab.tcp_with(ends, &[], payload);
        let field = usize::from(VNET_LEN) + ETHERNET_LEN + IPV4_LEN + 18;
        frame[field + 1] = pointer;
        open.lab.feed(&[frame]);
    }
    let mut buffer = [0; 9];
    for want in [&b"abcde"[..], b"Uf"] {
        let count = open.host.read(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], want, "a read ends before the mark");
    }
}

#[test]
fn urgent_bytes_towards_the_workspace() {
    let mut open = Open::new();
    for before in [&b"abcde"[..], b""] {
        open.host.write_all(before).unwrap();
        rustix::net::send(&open.host, b"U", rustix::net::SendFlags::OOB).unwrap();
        open.host.write_all(b"fgh").unwrap();
        let at = u32::try_from(before.len()).unwrap();
        let first = open.first;
        for attempt in 0..2 {
            // The second time after a timeout.
            let sent = open.wait(400);
            let stream: Vec<u8> = sent.iter().flat_map(|s| s.3.clone()).collect();
            assert_eq!(stream, [before, b"Ufgh"].concat(), "{attempt}");
            let urgent = sent.iter().find(|s| s.1 == first.wrapping_add(at)).unwrap();
            assert!(urgent.0.has(TcpFlags::URG), "{attempt}: {sent:?}");
        }
        assert!(open.send(0, at + 4, ACK, &[]).is_empty());
        open.first = first.wrapping_add(at + 4);
    }
}

#[test]
fn simultaneous_close_and_the_end_of_both() {
    let mut open = Open::new();
    open.host.write_all(b"last words").unwrap();
    open.host.shutdown(std::net::Shutdown::Write).unwrap();
    // Our data and FIN are on the way when the workspace's FIN, with data, sets out.
    let sent = open.wait(1);
    assert!(sent.iter().any(|s| s.0.has(TcpFlags::FIN)), "{sent:?}");
    let sent = open.send(0, 0, ACK.with(TcpFlags::FIN), b"mine");
    assert_eq!(sent.last().unwrap().2, FIRST + 5);
    let mut text = String::new();
    open.host.read_to_string(&mut text).unwrap();
    assert_eq!(text, "mine");
    assert_eq!(open.closed(), 0);
    // The FIN of the workspace again: its acknowledgement was lost.
    let sent = open.send(0, 0, ACK.with(TcpFlags::FIN), b"mine");
    assert_eq!(sent.last().unwrap().2, FIRST + 5);
    open.send(5, 11, ACK, &[]);
    assert_eq!(open.closed(), 1);
}

/// A listener whose queue is full: connects to it neither succeed nor fail.
fn silent_listener() -> (OwnedFd, Vec<OwnedFd>, u16) {
    let socket = || rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::NONBLOCK, None);
    let listener = socket().unwrap();
    rustix::net::bind(&listener, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let address = SocketAddr::try_from(rustix::net::getsockname(&listener).unwrap()).unwrap();
    let fill = |_| {
        let socket = socket().unwrap();
        let _ = rustix::net::connect(&socket, &address);
        socket
    };
    (listener, (0..3).map(fill).collect(), address.port())
}

#[test]
fn a_dial_ends_with_a_reset_or_with_another_syn() {
    let (_listener, _queue, port) = silent_listener();
    let mut lab = Lab::new();
    let flows = |lab: &Lab| (lab.edge.counters.tcp.flows.opened, lab.edge.counters.tcp.flows.closed);
    let syn = lab.tcp((4000, port), 1000, 0, TcpFlags::SYN, &[]);
    lab.feed(&[syn.clone(), syn]);
    lab.turn(10);
    assert_eq!(flows(&lab), (1, 0));
    // connect(2) was given up and the port used again.
    let syn = lab.tcp((4000, port), 777_000, 0, TcpFlags::SYN, &[]);
    lab.feed(&[syn]);
    assert_eq!(flows(&lab), (2, 1));
    let reset = lab.tcp((4000, port), 777_001, 0, TcpFlags::RST, &[]);
    lab.feed(&[reset]);
    assert_eq!(flows(&lab), (2, 2));
    assert!(lab.received().is_empty());
}

#[test]
fn what_the_host_said_before_it_hung_up_arrives() {
    let mut open = Open::new();
    // The host answers early and closes with the request unread: its kernel sends data, then a reset.
    open.send(0, 0, ACK, b"a long request");
    open.host.write_all(b"413").unwrap();
    let Open { mut lab, host, ports, first, .. } = open;
    drop(host);
    let more = lab.tcp(ports, FIRST + 14, first, ACK, b" goes on");
    lab.feed(&[more]);
    lab.turn(1);
    let sent = segments(&lab.received());
    assert!(sent.iter().any(|s| s.3 == b"413"), "{sent:?}");
    assert!(sent.last().unwrap().0.has(TcpFlags::RST), "{sent:?}");
    assert_eq!(sent.last().unwrap().1, first.wrapping_add(3));
}

/// A stalled host: everything the window promised is kept, nothing more is promised, and all of it arrives in order.
#[test]
fn what_the_host_does_not_take_is_kept() {
    let listener = listener();
    let ports = (4000, listener.local_addr().unwrap().port());
    let mut lab = Lab::new();
    let syn = lab.tcp(ports, FIRST - 1, 0, TcpFlags::SYN, &[]);
    lab.feed(&[syn]);
    lab.turn(1);
    let first = segments(&lab.received())[0].1.wrapping_add(1);
    let mut host = accept(&listener);
    let data: Vec<u8> = (0..12_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24).to_be_bytes()[3]).collect();
    let (mut sent, mut got, mut stalls) = (0usize, Vec::new(), 0);
    let mut read = vec![0; 1 << 20];
    let ack = lab.tcp(ports, FIRST, first, ACK, &[]);
    lab.feed(&[ack]);
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

/// With both streams at their end the workspace forgets the connection; what the host has not taken yet is still its.
#[test]
fn a_reset_after_both_ends_takes_nothing_back() {
    let mut open = Open::new();
    let piece = vec![7; 60_000];
    let mut sent = 0;
    loop {
        let got = open.send(sent, 0, ACK, &piece);
        let taken = got.last().map_or(sent, |segment| segment.2.wrapping_sub(FIRST));
        if taken == sent {
            break;
        }
        sent = taken;
    }
    open.send(sent, 0, ACK.with(TcpFlags::FIN), &[]);
    open.host.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(open.wait(1).iter().any(|segment| segment.0.has(TcpFlags::FIN)));
    open.send(sent + 1, 1, ACK, &[]);
    open.send(sent + 1, 1, TcpFlags::RST, &[]);

    open.host.set_nonblocking(true).unwrap();
    let (mut buffer, mut read) = (vec![0; 1 << 16], 0);
    loop {
        match open.host.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                assert_eq!(open.wait(1), [], "nobody listens any more");
            }
            Err(error) => panic!("{error} after {read} of {sent}"),
        }
    }
    assert_eq!(read, sent as usize);
}
