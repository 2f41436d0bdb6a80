//! How connections begin and end: refusals, resets, old segments, and ends that vanish.

use super::*;

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
