//! Datagrams of one mapping and the errors of others.

use super::*;

fn udp(lab: &mut Lab, port: u16, payload: &[u8]) -> Vec<u8> {
    let len = lab.buffer.put_payload(payload);
    let ends = ((IpAddr::V4(GUEST), 5000), (IpAddr::V4(GATEWAY), port));
    lab.buffer.udp(MACS, ends.0, ends.1, len).to_vec()
}

fn host() -> (UdpSocket, u16) {
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
    // Port unreachable, from the gateway, about the port that is closed.
    let frames = lab.received();
    let quoted: Vec<u16> = frames
        .iter()
        .filter_map(|frame| {
            let frame = Frame::parse(frame).ok()?;
            let ip = IpPacket::parse(frame.ethernet.ethertype.get(), frame.body).ok()?;
            let is_unreachable = ip.protocol == PROTOCOL_ICMP && ip.payload.starts_with(&[3, 3]);
            is_unreachable.then(|| u16::from_be_bytes([ip.payload[30], ip.payload[31]]))
        })
        .collect();
    assert!(!quoted.is_empty() && quoted.iter().all(|&port| port == closed), "{quoted:?}");
}

#[test]
fn more_segments_than_the_kernel_takes_at_once_are_split() {
    let mut lab = Lab::new();
    let (host, port) = host();
    let payload: Vec<u8> = (0..1405u32).map(|n| n.to_be_bytes()[3]).collect();
    let mut frame = udp(&mut lab, port, &payload);
    // A USO read: the type and the size of the pieces in the virtio-net header.
    frame[1] = 5;
    frame[4..6].copy_from_slice(&10u16.to_ne_bytes());
    lab.feed(&[frame]);
    let mut got = Vec::new();
    for _ in 0..141 {
        let mut buffer = [0; 100];
        let count = host.recv(&mut buffer).unwrap();
        assert!(count == 10 || got.len() == 1400);
        got.extend_from_slice(&buffer[..count]);
    }
    assert!(got == payload);
}

#[test]
fn a_mapped_address_is_no_way_out() {
    let mut lab = Lab::new();
    let (host, port) = host();
    let mapped = |address: Ipv4Addr| IpAddr::V6(address.to_ipv6_mapped());
    let len = lab.buffer.put_payload(b"mapped");
    let frame = lab.buffer.udp(MACS, (mapped(GUEST), 5000), (mapped(GATEWAY), port), len).to_vec();
    lab.feed(&[frame]);
    host.set_nonblocking(true).unwrap();
    assert!(host.recv(&mut [0; 8]).is_err());
    assert_eq!(lab.edge.counters.drops.source, 1);
}
