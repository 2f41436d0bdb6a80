//! Clients of published ports over the TAP: the handshake with the workspace, and what goes wrong with it.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd as _;

use rustix::net::sockopt;

use super::udp::{datagrams, host, taken, udp_from};
use super::*;
use crate::policy::Transport;
use crate::ports::{Entry, Origin, Publication, Published};
use crate::sys::datagram::{receive_offloaded, send};

const SYN_ACK: TcpFlags = TcpFlags(0x12);
/// The workspace's first sequence number.
const ISS: u32 = 70_000;
const PORT: u16 = 80;

/// One client, accepted, and our SYN.
struct Inbound {
    lab: Lab,
    client: TcpStream,
    port: u16,
    syn: u32,
}

/// At one address inside only: where else it is tried is told by the whole program's tests.
fn publish(lab: &mut Lab, transport: Transport, guest: IpAddr, at: SocketAddr, socket: OwnedFd) {
    let (host, host_port) = (Some(at.ip()), at.port());
    let publication = Publication { transport, host, host_port, guest: Some(guest), guest_port: PORT };
    let entry = Entry { number: 1, origin: Origin::Start, publication };
    assert!(lab.engine.publish(&mut lab.edge, Published { entry, socket }));
}

/// The same of a UDP port at any free number of `address`.
pub fn publish_datagrams(lab: &mut Lab, guest: IpAddr, address: Ipv4Addr) -> SocketAddr {
    let published = UdpSocket::bind((address, 0)).unwrap();
    published.set_nonblocking(true).unwrap();
    let at = published.local_addr().unwrap();
    publish(lab, Transport::Udp, guest, at, published.into());
    at
}

impl Inbound {
    fn new() -> Self {
        let mut lab = Lab::new();
        let listener = listener();
        let to = listener.local_addr().unwrap();
        publish(&mut lab, Transport::Tcp, GUEST.into(), to, listener.into());
        let client = TcpStream::connect(to).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        let port = client.local_addr().unwrap().port();
        lab.turn(1);
        let sent = segments(&lab.received());
        assert_eq!(sent.len(), 1);
        assert_eq!((sent[0].0, sent[0].2), (TcpFlags::SYN, 0));
        Self { syn: sent[0].1, lab, client, port }
    }

    /// The workspace sends a segment.
    fn send(&mut self, seq: u32, ack: u32, flags: TcpFlags, payload: &[u8]) -> Vec<Segment> {
        let frame = self.lab.tcp((PORT, self.port), seq, self.syn.wrapping_add(ack), flags, payload);
        self.lab.feed(&[frame]);
        segments(&self.lab.received())
    }

    fn end(&mut self) -> Result<usize, ErrorKind> {
        self.client.read(&mut [0; 9]).map_err(|error| error.kind())
    }
}

#[test]
fn what_the_client_said_meanwhile_follows_the_handshake() {
    let mut inbound = Inbound::new();
    inbound.client.write_all(b"early").unwrap();
    let first = inbound.syn.wrapping_add(1);
    let answers = inbound.send(ISS, 1, SYN_ACK, &[]);
    let data = answers.iter().find(|segment| segment.3 == b"early").expect("data");
    assert_eq!((data.1, data.2), (first, ISS + 1), "{answers:?}");
    inbound.send(ISS + 1, 6, TcpFlags::ACK.with(TcpFlags::FIN), b"late");
    let mut text = String::new();
    inbound.client.read_to_string(&mut text).unwrap();
    assert_eq!(text, "late");
    drop(inbound.client);
    inbound.lab.turn(1);
    let end = segments(&inbound.lab.received());
    assert!(end.iter().any(|s| s.0.has(TcpFlags::FIN) && s.1 == first.wrapping_add(5)), "{end:?}");
}

#[test]
fn a_refusal_is_a_reset_for_the_client() {
    let mut inbound = Inbound::new();
    // Not to us, or not about our SYN.
    assert!(inbound.send(0, 9, TcpFlags::RST.with(TcpFlags::ACK), &[]).is_empty());
    assert!(inbound.send(0, 1, TcpFlags::RST, &[]).is_empty());
    assert_eq!(inbound.lab.edge.counters.ports.refused, 0);
    inbound.send(0, 1, TcpFlags::RST.with(TcpFlags::ACK), &[]);
    assert_eq!(inbound.lab.edge.counters.ports.refused, 1);
    assert_eq!(inbound.end(), Err(ErrorKind::ConnectionReset));
}

#[test]
fn a_rejected_syn_is_a_refusal() {
    let mut inbound = Inbound::new();
    let frame = inbound.lab.tcp((inbound.port, PORT), inbound.syn, 0, TcpFlags::SYN, &[]);
    // The harness builds frames from the guest to the gateway: turned round, and quoted.
    let mut quoted = frame[usize::from(VNET_LEN) + ETHERNET_LEN..].to_vec();
    let (source, destination) = (GATEWAY.octets(), GUEST.octets());
    quoted[12..16].copy_from_slice(&source);
    quoted[16..20].copy_from_slice(&destination);
    let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&quoted);
    let sum = Sum::default().bytes(&message).finish();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    inbound.lab.feed(&[ipv4_frame(1, 0, false, &message)]);
    assert_eq!(inbound.lab.edge.counters.ports.refused, 1);
    assert_eq!(inbound.end(), Err(ErrorKind::ConnectionReset));
}

#[test]
fn time_wait_inside_is_cleared_away() {
    let mut inbound = Inbound::new();
    // A challenge about numbers of the connection before.
    let answers = inbound.send(5, 5000, TcpFlags::ACK, &[]);
    let flags: Vec<_> = answers.iter().map(|segment| segment.0).collect();
    assert_eq!(flags, [TcpFlags::RST, TcpFlags::SYN], "{answers:?}");
    assert_eq!(answers[0].1, inbound.syn.wrapping_add(5000));
    let answers = inbound.send(ISS, 1, SYN_ACK, &[]);
    assert_eq!(answers.last().map(|segment| segment.2), Some(ISS + 1));
}

#[test]
fn silence_is_asked_again_and_given_up() {
    let mut inbound = Inbound::new();
    let mut syns = 0;
    for _ in 0..70 {
        inbound.lab.turn(1000);
        syns += segments(&inbound.lab.received()).iter().filter(|s| s.0 == TcpFlags::SYN && s.1 == inbound.syn).count();
    }
    assert_eq!(syns, 5);
    assert_eq!(inbound.lab.edge.counters.tcp.flows.timed_out, 1);
    assert_eq!(inbound.end(), Err(ErrorKind::ConnectionReset));
}

#[test]
fn a_client_that_leaves_takes_its_connection_along() {
    let mut inbound = Inbound::new();
    sockopt::set_socket_linger(&inbound.client, Some(Duration::ZERO)).unwrap();
    drop(inbound.client);
    inbound.lab.turn(1);
    let sent = segments(&inbound.lab.received());
    assert!(sent.iter().any(|s| s.0.has(TcpFlags::RST) && s.1 == inbound.syn.wrapping_add(1)), "{sent:?}");
    assert_eq!(inbound.lab.edge.counters.tcp.flows.closed, 1);
}

/// As from those that the workspace has called: trains of the host's kernel and datagrams that wait go in as one frame.
#[test]
fn datagrams_that_come_together_go_in_together() {
    let mut lab = Lab::new();
    let port = publish_datagrams(&mut lab, GUEST.into(), Ipv4Addr::UNSPECIFIED).port();
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let [(one, _), (other, _)] = [host(), host()];
    let train: Vec<u8> = (0..14_000u32).map(|n| n.to_be_bytes()[3]).collect();
    let socket = one.as_fd().try_clone_to_owned().unwrap();
    send(&socket, &[std::io::IoSlice::new(&train)], Some(1400), None, to).unwrap();
    for len in [700, 700, 20] {
        other.send_to(&vec![1; len], to).unwrap();
    }
    sockopt::set_ip_tos(&one, 0xb8).unwrap();
    one.send_to(b"marked", to).unwrap();
    lab.turn(1);
    let (got, frames) = datagrams(&mut lab);
    let mut want: Vec<_> = train.chunks(1400).map(|piece| (0, piece.to_vec())).collect();
    want.extend([700, 700, 20].map(|len| (0, vec![1; len])));
    want.push((0xb8, b"marked".to_vec()));
    assert!(got == want, "{:?}", got.iter().map(|(tos, bytes)| (tos, bytes.len())).collect::<Vec<_>>());
    assert_eq!(frames, 3);
    assert_eq!(lab.edge.counters.ports.udp_clients, 2);
}

/// As over the outbound path: one call, and for the client the same datagrams.
#[test]
fn answers_that_come_together_leave_together() {
    let mut lab = Lab::new();
    let at = publish_datagrams(&mut lab, GUEST.into(), Ipv4Addr::LOCALHOST);
    let (client, port) = host();
    receive_offloaded(&client.as_fd().try_clone_to_owned().unwrap(), true).unwrap();
    client.send_to(b"question", at).unwrap();
    lab.turn(1);
    assert_eq!(lab.received().len(), 1);
    let sizes = [700, 700, 700, 20, 700, 0, 9];
    let frames: Vec<_> =
        sizes.iter().zip(1u8..).map(|(&len, n)| udp_from(&mut lab, PORT, port, &vec![n; len])).collect();
    lab.feed(&frames);
    let mut buffer = vec![0; 70_000];
    let mut next = || {
        let received = taken(&client, &mut buffer);
        assert_eq!(received.source, at);
        (received.size, received.len, buffer[0])
    };
    assert_eq!([next(), next(), next(), next()], [(700, 2120, 1), (700, 700, 5), (0, 0, 5), (9, 9, 7)]);
    let (listed, _) = lab.engine.list(lab.edge.now, None);
    assert_eq!(listed.iter().map(|client| client.from_tap).collect::<Vec<_>>(), [2829]);
}

/// Whoever sends from more addresses than there is room for drives out others of whom nothing is known, not those whom
/// the workspace has answered.
#[test]
fn a_flood_of_clients_drives_out_none_that_was_answered() {
    let mut lab = Lab::new();
    let at = publish_datagrams(&mut lab, GUEST.into(), Ipv4Addr::LOCALHOST);
    let (client, port) = host();
    let ask = |lab: &mut Lab| {
        client.send_to(b"question", at).unwrap();
        lab.turn(1);
        lab.received();
        let answer = udp_from(lab, PORT, port, b"answer");
        lab.feed(&[answer]);
        client.recv_from(&mut [0; 9]).map(|(_, from)| from).unwrap()
    };
    assert_eq!(ask(&mut lab), at);
    let mut clients = 1;
    for port in 20_000..29_000u16 {
        let Ok(other) = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)) else { continue };
        other.send_to(b"x", at).unwrap();
        clients += 1;
        if port % 64 == 0 {
            lab.turn(0);
            lab.received();
        }
    }
    lab.turn(0);
    assert_eq!(lab.edge.counters.ports.udp_clients, clients);
    assert!(clients > 8192, "{clients}");
    // It is no new one.
    assert_eq!(ask(&mut lab), at);
    assert_eq!(lab.edge.counters.ports.udp_clients, clients);
}

/// However much clients of the host's loopback send, they share a wake with the TAP.
#[test]
fn spliced_connections_leave_frames_their_turn() {
    const CLIENTS: usize = 48;
    let mut lab = Lab::new();
    let (published, server) = (listener(), listener());
    let (at, to) = (published.local_addr().unwrap(), server.local_addr().unwrap());
    // What is accepted has it from these.
    sockopt::set_socket_recv_buffer_size(&published, 1 << 20).unwrap();
    sockopt::set_socket_recv_buffer_size(&server, 1 << 20).unwrap();
    let publication = Publication {
        transport: Transport::Tcp,
        host: Some(at.ip()),
        host_port: at.port(),
        guest: Some(to.ip()),
        guest_port: to.port(),
    };
    let entry = Entry { number: 1, origin: Origin::Start, publication };
    assert!(lab.engine.publish(&mut lab.edge, Published { entry, socket: published.into() }));
    let socket = |_| {
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::NONBLOCK, None);
        socket.inspect(|socket| sockopt::set_socket_send_buffer_size(socket, 1 << 20).unwrap()).unwrap()
    };
    lab.edge.stock.add(false, (0..CLIENTS).map(socket).collect());
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| TcpStream::connect(at).unwrap()).collect();
    let mut served = Vec::new();
    for _ in 0..1000 {
        lab.turn(1);
        served.extend(server.accept());
    }
    assert_eq!(served.len(), CLIENTS);
    for client in &mut clients {
        sockopt::set_socket_send_buffer_size(&*client, 1 << 20).unwrap();
        client.set_nonblocking(true).unwrap();
        while client.write(&[7; 65_536]).is_ok() {}
    }
    let moved = |lab: &Lab| lab.engine.list(lab.edge.now, None).0.iter().map(|flow| flow.to_tap).sum::<u64>();
    let mut turns = vec![0];
    loop {
        lab.turn(1);
        turns.push(moved(&lab));
        if !lab.engine.has_ready() {
            break;
        }
    }
    // A wake's share, and what the last of its connections had beyond that.
    assert!(turns.windows(2).all(|pair| pair[1] - pair[0] <= 16 << 20), "{turns:?}");
    assert!(turns.len() > 2, "it came in one wake: {turns:?}");
}
