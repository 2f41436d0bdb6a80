//! Datagrams of one mapping and the errors of others: what goes in comes out, in the same pieces.

use std::os::fd::AsFd as _;

use super::*;
use crate::sys::datagram::{Received, receive, receive_offloaded, send};
use crate::udp::Udp;
use crate::wire::build::Datagrams;
use crate::wire::{UdpDatagram, VnetHeader};

fn from_guest(port: u16, to: (IpAddr, u16), len: usize) -> Datagrams {
    Datagrams { src: (IpAddr::V4(GUEST), port), dst: to, tos: 0, size: len, len }
}

/// A datagram from a port of the workspace's to one of the host's.
pub fn udp_from(lab: &mut Lab, from: u16, port: u16, payload: &[u8]) -> Vec<u8> {
    let len = lab.buffer.put_payload(payload);
    lab.buffer.udp(MACS, &from_guest(from, (IpAddr::V4(GATEWAY), port), len), 0).to_vec()
}

pub fn udp(lab: &mut Lab, port: u16, payload: &[u8]) -> Vec<u8> {
    udp_from(lab, 5000, port, payload)
}

/// Changes the IPv4 header of a frame and makes its checksum right again.
pub fn with_header(mut frame: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let header = &mut frame[26..46];
    change(header);
    header[10..12].fill(0);
    let sum = Sum::default().bytes(header).finish();
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// TOS and payload of each datagram the workspace was sent, cut as its kernel would, and in how many frames.
pub fn datagrams(lab: &mut Lab) -> (Vec<(u8, Vec<u8>)>, usize) {
    let frames = lab.received();
    let mut cut = Vec::new();
    for frame in &frames {
        let frame = Frame::parse(frame).unwrap();
        let ip = IpPacket::parse(frame.ethernet.ethertype.get(), frame.body).unwrap();
        let datagram = UdpDatagram::parse(&ip, true).unwrap();
        let size = usize::from(frame.vnet.gso_size.get());
        if size == 0 {
            cut.push((ip.tos, datagram.payload.to_vec()));
        } else {
            assert_eq!((frame.vnet.gso_type, frame.vnet.hdr_len.get()), (VnetHeader::GSO_UDP_L4, 42));
            assert!(size + 28 <= 1500 && datagram.payload.len() > size);
            cut.extend(datagram.payload.chunks(size).map(|piece| (ip.tos, piece.to_vec())));
        }
    }
    (cut, frames.len())
}

/// ICMP messages among frames: type, code and what follows the ICMP header.
fn icmp(lab: &mut Lab) -> Vec<(u8, u8, Vec<u8>)> {
    let parse = |bytes: &Vec<u8>| {
        let frame = Frame::parse(bytes).ok()?;
        let ip = IpPacket::parse(frame.ethernet.ethertype.get(), frame.body).ok()?;
        (ip.protocol == PROTOCOL_ICMP).then(|| (ip.payload[0], ip.payload[1], ip.payload[8..].to_vec()))
    };
    lab.received().iter().filter_map(parse).collect()
}

/// What the host's socket was given, as it came over the loopback.
pub fn taken(socket: &UdpSocket, buffer: &mut [u8]) -> Received {
    let socket = socket.as_fd().try_clone_to_owned().unwrap();
    receive(&socket, buffer).unwrap().unwrap()
}

pub fn host() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

#[test]
fn an_error_of_one_destination_loses_nothing_for_another() {
    let mut lab = Lab::new();
    let (host, port) = host();
    let closed = closed_port();
    for n in 0..20u8 {
        let (refused, taken) = (udp(&mut lab, closed, b"nobody"), udp(&mut lab, port, &[n]));
        lab.feed(&[refused, taken]);
        let mut got = [0; 8];
        assert_eq!(host.recv(&mut got).unwrap(), 1);
        assert_eq!(got[0], n);
    }
    lab.turn(1);
    // Port unreachable, about the port that is closed.
    let quoted: Vec<_> = icmp(&mut lab)
        .iter()
        .map(|(kind, code, quoted)| (*kind, *code, u16::from_be_bytes([quoted[22], quoted[23]])))
        .collect();
    assert!(!quoted.is_empty() && quoted.iter().all(|&seen| seen == (3, 3, closed)), "{quoted:?}");
}

#[test]
fn more_segments_than_the_kernel_takes_at_once_are_split() {
    let mut lab = Lab::new();
    let (host, port) = host();
    let payload: Vec<u8> = (0..1275u32).map(|n| n.to_be_bytes()[3]).collect();
    let uncut = |lab: &mut Lab, payload: &[u8], size: u16| {
        let mut frame = udp(lab, port, payload);
        // A USO read: the type and the size of the pieces in the virtio-net header.
        frame[1] = 5;
        frame[4..6].copy_from_slice(&size.to_ne_bytes());
        lab.feed(&[frame]);
    };
    uncut(&mut lab, &payload, 10);
    let mut got = Vec::new();
    for _ in 0..128 {
        let mut buffer = [0; 100];
        let count = host.recv(&mut buffer).unwrap();
        assert!(count == 10 || got.len() == 1270);
        got.extend_from_slice(&buffer[..count]);
    }
    assert!(got == payload);
    // No kernel's own: one frame would be tens of thousands of datagrams.
    uncut(&mut lab, &payload, 9);
    uncut(&mut lab, &[0; 60_000], 1);
    assert_eq!(lab.edge.counters.drops.malformed, 2);
    host.set_nonblocking(true).unwrap();
    assert!(host.recv(&mut [0; 100]).is_err());
}

/// An address that becomes the host's, say, while datagrams go there.
#[test]
fn a_destination_is_asked_about_again() {
    let mut lab = Lab::new();
    let (host, port) = host();
    let send = |lab: &mut Lab| {
        let frame = udp(lab, port, b"x");
        lab.feed(&[frame]);
        lab.edge.counters.denied.rule
    };
    assert_eq!(send(&mut lab), 0);
    let matches = "127.0.0.1".parse().unwrap();
    lab.edge.config.policy.rules = vec![crate::policy::Rule { action: crate::policy::Action::Deny, matches }];
    lab.turn(999);
    assert_eq!(send(&mut lab), 0);
    lab.turn(1);
    assert_eq!((send(&mut lab), send(&mut lab)), (1, 2));
    lab.edge.config.policy.rules.clear();
    assert_eq!(send(&mut lab), 2);
    let heard = (0..3).filter(|_| host.recv(&mut [0; 8]).is_ok()).count();
    assert_eq!(heard, 3);
    host.set_nonblocking(true).unwrap();
    assert!(host.recv(&mut [0; 8]).is_err());
}

#[test]
fn a_mapped_address_is_no_way_out() {
    let mut lab = Lab::new();
    let (host, port) = host();
    let mapped = |address: Ipv4Addr| IpAddr::V6(address.to_ipv6_mapped());
    let len = lab.buffer.put_payload(b"mapped");
    let (src, dst) = ((mapped(GUEST), 5000), (mapped(GATEWAY), port));
    let frame = lab.buffer.udp(MACS, &Datagrams { src, dst, tos: 0, size: len, len }, 0).to_vec();
    lab.feed(&[frame]);
    host.set_nonblocking(true).unwrap();
    assert!(host.recv(&mut [0; 8]).is_err());
    assert_eq!(lab.edge.counters.drops.source, 1);
}

#[test]
fn what_comes_together_leaves_together() {
    let mut lab = Lab::new();
    let (host, port) = host();
    let (other, other_port) = self::host();
    receive_offloaded(&host.as_fd().try_clone_to_owned().unwrap(), true).unwrap();
    let sizes = [
        (port, 700),
        (port, 700),
        (port, 700),
        (port, 20),
        (port, 700),
        (other_port, 700),
        (port, 700),
        (port, 0),
        (port, 9),
    ];
    let frames: Vec<_> = sizes.iter().zip(1u8..).map(|(&(port, len), n)| udp(&mut lab, port, &vec![n; len])).collect();
    lab.feed(&frames);
    let mut got = Vec::new();
    let mut buffer = vec![0; 70_000];
    for _ in 0..5 {
        let received = taken(&host, &mut buffer);
        got.push((received.size, received.len, buffer[0]));
    }
    assert_eq!(got, [(700, 2120, 1), (700, 700, 5), (700, 700, 7), (0, 0, 7), (9, 9, 9)]);
    assert_eq!(other.recv(&mut buffer).unwrap(), 700);
    assert_eq!(lab.edge.counters.udp.flows.opened, 1);
}

#[test]
fn what_waits_together_goes_in_as_one_frame() {
    let mut lab = Lab::new();
    let (host, port) = host();
    let (other, other_port) = self::host();
    let openings = [udp(&mut lab, port, b"a"), udp(&mut lab, other_port, b"b")];
    lab.feed(&openings);
    let (_, mapping) = host.recv_from(&mut [0; 8]).unwrap();
    let mut want = Vec::new();
    for (n, len) in (0u8..).zip([300, 300, 300, 7, 300, 0, 300, 301, 300, 300]) {
        host.send_to(&vec![n; len], mapping).unwrap();
        want.push((0, vec![n; len]));
    }
    other.send_to(&[9; 300], mapping).unwrap();
    want.push((0, vec![9; 300]));
    rustix::net::sockopt::set_ip_tos(&host, 0xb9).unwrap();
    host.send_to(&[10; 300], mapping).unwrap();
    want.push((0xb9, vec![10; 300]));
    lab.turn(1);
    let (got, frames) = datagrams(&mut lab);
    assert!(got == want, "{:?}", got.iter().map(|(tos, bytes)| (tos, bytes.len())).collect::<Vec<_>>());
    // Three and the short one, one, the empty one, one, 301 and the shorter one, one, the other's, the marked one.
    assert_eq!(frames, 8);
}

#[test]
fn a_train_of_the_hosts_kernel_goes_in_whole() {
    let mut lab = Lab::new();
    let (host, port) = host();
    let opening = udp(&mut lab, port, b"a");
    lab.feed(&[opening]);
    let (_, mapping) = host.recv_from(&mut [0; 8]).unwrap();
    let payload: Vec<u8> = (0..44_444u32).map(|n| n.to_be_bytes()[3]).collect();
    let socket = host.as_fd().try_clone_to_owned().unwrap();
    send(&socket, &[std::io::IoSlice::new(&payload)], Some(1400), None, mapping).unwrap();
    lab.turn(1);
    let (got, frames) = datagrams(&mut lab);
    assert_eq!(frames, 1);
    assert!(got.iter().map(|(_, bytes)| &bytes[..]).eq(payload.chunks(1400)));
    // Longer than the workspace's MTU: each in fragments.
    send(&socket, &[std::io::IoSlice::new(&payload[..6000])], Some(3000), None, mapping).unwrap();
    lab.turn(1);
    let fragments = lab.received();
    assert_eq!(fragments.len(), 6);
    assert!(fragments.iter().all(|frame| frame.len() <= 12 + 14 + 1500 && frame[1] == 0));
}

#[test]
fn marks_go_out_with_each_datagram() {
    let mut lab = Lab::new();
    let (host, port) = host();
    receive_offloaded(&host.as_fd().try_clone_to_owned().unwrap(), true).unwrap();
    let marks = [0u8, 0x02, 0x02, 0xb8, 0];
    let frames: Vec<_> =
        marks.iter().map(|&tos| with_header(udp(&mut lab, port, &[tos; 10]), |header| header[1] = tos)).collect();
    lab.feed(&frames);
    let mut buffer = vec![0; 70_000];
    let got: Vec<_> = (0..4).map(|_| taken(&host, &mut buffer)).map(|received| (received.tos, received.len)).collect();
    assert_eq!(got, [(0, 10), (2, 20), (0xb8, 10), (0, 10)]);
}

#[test]
fn the_gateway_is_the_first_hop() {
    let mut lab = Lab::new();
    for hops in [0, 1] {
        let len = lab.buffer.put_payload(b"probe");
        let far = from_guest(5000, ([192, 0, 2, 77].into(), 33_434), len);
        let frame = with_header(lab.buffer.udp(MACS, &far, 0).to_vec(), |header| header[8] = hops);
        lab.feed(std::slice::from_ref(&frame));
        assert_eq!(icmp(&mut lab), [(11, 0, frame[26..].to_vec())]);
    }
    assert_eq!(lab.edge.counters.udp.flows.opened, 0);
    // Not what is for the gateway itself.
    let (host, port) = host();
    let frame = with_header(udp(&mut lab, port, b"here"), |header| header[8] = 1);
    lab.feed(&[frame]);
    assert_eq!(host.recv(&mut [0; 8]).unwrap(), 4);
}

#[test]
fn the_port_is_kept_where_it_is_free() {
    let mut lab = Lab::new();
    let (host, port) = host();
    let taken = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let taken = taken.local_addr().map(|address| (taken, address.port())).unwrap();
    // Another program may take a port that was just free; not every one of these.
    let free = |_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port();
    let kept = (0..20).map(free).any(|from| {
        let frame = udp_from(&mut lab, from, port, b"x");
        lab.feed(&[frame]);
        host.recv_from(&mut [0; 8]).unwrap().1.port() == from
    });
    assert!(kept);
    for other in [taken.1, 999] {
        let frame = udp_from(&mut lab, other, port, b"x");
        lab.feed(&[frame]);
        let (_, from) = host.recv_from(&mut [0; 8]).unwrap();
        assert!(from.port() >= 1024 && from.port() != other, "{from} {other}");
        host.send_to(b"back", from).unwrap();
        lab.turn(1);
        assert_eq!(datagrams(&mut lab).0, [(0, b"back".to_vec())]);
    }
}

#[test]
fn mappings_end_when_idle_those_of_dns_sooner() {
    let mut lab = Lab::new();
    let (_host, port) = host();
    let frames = [udp_from(&mut lab, 6000, 53, b"query"), udp_from(&mut lab, 6001, port, b"x")];
    lab.feed(&frames);
    // One that began as DNS and is not any more.
    let frames = [udp_from(&mut lab, 6002, 53, b"query"), udp_from(&mut lab, 6002, port, b"x")];
    lab.feed(&frames);
    for (wait, closed) in [(14_000, 0), (2_000, 1), (100_000, 1)] {
        lab.turn(wait);
        assert_eq!(lab.edge.counters.udp.flows.closed, closed, "after {wait} more");
    }
    let used = udp_from(&mut lab, 6001, port, b"x");
    lab.feed(&[used]);
    lab.turn(70_000);
    assert_eq!(lab.edge.counters.udp.flows.closed, 2);
    lab.turn(120_000);
    assert_eq!(lab.edge.counters.udp.flows.closed, 3);
}

#[test]
fn a_full_table_gives_up_what_was_used_longest_ago() {
    let mut lab = Lab::new();
    lab.engine.udp = Udp::new(3);
    let (host, port) = host();
    let mut send = |from: u16| {
        let frame = udp_from(&mut lab, from, port, &from.to_be_bytes());
        lab.feed(&[frame]);
        let (_, from) = host.recv_from(&mut [0; 8]).unwrap();
        (lab.edge.counters.udp.evicted, from)
    };
    let first = [6100, 6101, 6102].map(&mut send).map(|(_, from)| from);
    assert_eq!(send(6100), (0, first[0]));
    // 6101 goes.
    assert_eq!(send(6103).0, 1);
    assert_eq!(send(6102), (1, first[2]));
    assert_eq!(send(6100), (1, first[0]));
    // 6103 goes.
    assert_eq!(send(6101).0, 2);
    assert_eq!(send(6100), (2, first[0]));
    // What comes from the host counts as use, too.
    host.send_to(b"x", first[2]).unwrap();
    lab.turn(1);
    let frame = udp_from(&mut lab, 6104, port, b"x");
    lab.feed(&[frame]);
    assert_eq!(datagrams(&mut lab).0.len(), 1);
    host.send_to(b"y", first[2]).unwrap();
    lab.turn(1);
    assert_eq!(datagrams(&mut lab).0, [(0, b"y".to_vec())]);
}

#[test]
fn nobody_hears_of_broadcast_multicast_and_port_0() {
    let mut lab = Lab::new();
    let (_host, _) = host();
    for to in [[255, 255, 255, 255], [10, 0, 2, 255], [224, 0, 0, 251], [239, 255, 255, 250]] {
        let len = lab.buffer.put_payload(b"anybody?");
        let frame = lab.buffer.udp(MACS, &from_guest(5353, (to.into(), 5353), len), 0).to_vec();
        lab.feed(&[frame]);
    }
    assert_eq!(lab.edge.counters.drops.multicast, 4);
    let nowhere = udp(&mut lab, 0, b"x");
    lab.feed(&[nowhere]);
    assert_eq!(lab.edge.counters.drops.malformed, 1);
    assert_eq!(lab.edge.counters.udp.flows.opened, 0);
    assert!(lab.received().is_empty());
    assert!(lab.is_alive());
}

#[test]
fn a_small_link_inside_is_remembered_for_its_mapping_alone() {
    let mut lab = Lab::new();
    let (host, port) = host();
    let frames = [udp_from(&mut lab, 5000, port, b"small"), udp_from(&mut lab, 5001, port, b"wide")];
    lab.feed(&frames);
    let [small, wide] = [(), ()].map(|()| host.recv_from(&mut [0; 8]).unwrap().1);
    let payload = vec![7; 1400];
    let lens = |lab: &mut Lab, to: SocketAddr| {
        host.send_to(&payload, to).unwrap();
        lab.turn(1);
        let frames = lab.received();
        (frames.iter().map(|frame| frame.len() - 26).collect::<Vec<_>>(), frames)
    };
    let (sent, frames) = lens(&mut lab, small);
    assert_eq!(sent, [1428]);
    let error = lab.too_big(&frames[0], 1000);
    lab.feed(&[error]);
    assert_eq!(lens(&mut lab, small).0, [996, 452]);
    assert_eq!(lens(&mut lab, wide).0, [1428]);
    // About nobody's packet, and for ten minutes at most.
    let mut unknown = frames[0].clone();
    unknown[26 + 22] ^= 0x40;
    let error = lab.too_big(&unknown, 600);
    lab.feed(&[error]);
    assert_eq!(lab.edge.counters.drops.unsupported, 1);
    for _ in 0..6 {
        let frames = [udp_from(&mut lab, 5000, port, b"x")];
        lab.feed(&frames);
        lab.turn(110_000);
    }
    assert_eq!(lens(&mut lab, small).0, [1428]);
}
