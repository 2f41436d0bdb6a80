//! Machines bridged to the TAP beside the workspace: each is sent what is its own, though it has said nothing yet.

use std::sync::atomic::AtomicU64;

use super::ports::publish_datagrams;
use super::udp::{host, udp, with_header};
use super::*;
use crate::network::MacAddr;
use crate::wire::EVERYBODY;

const SILENT: MacAddr = [2, 0, 0, 0, 0, 40];

#[test]
fn each_neighbour_gets_its_own() {
    let mut lab = Lab::new();
    let (host, port) = host();
    let mut from = |last: u8| {
        let mut frame = with_header(udp(&mut lab, port, &[last]), |header| header[15] = last);
        frame[18..24].copy_from_slice(&[2, 0, 0, 0, 0, last]);
        frame
    };
    let frames = [from(100), from(40), from(41)];
    lab.feed(&frames);
    let mut got = Vec::new();
    for _ in 0..frames.len() {
        let (_, mapping) = host.recv_from(&mut [0; 8]).unwrap();
        host.send_to(b"answer", mapping).unwrap();
        lab.turn(1);
        got.extend(lab.received().iter().map(|frame| (frame[17], frame[45])));
    }
    assert_eq!(got, [(100, 100), (40, 40), (41, 41)]);
}

/// What a bridge sends to everybody, for it does not know where a machine is, is that one's business.
#[test]
fn frames_to_another_machine_are_not_answered() {
    let mut lab = Lab::new();
    let flooded = |mut frame: Vec<u8>| {
        frame[12..18].copy_from_slice(&SILENT);
        frame
    };
    let frames = [lab.tcp((4000, 80), 1, 1, TcpFlags::ACK, b"x"), udp(&mut lab, closed_port(), b"x"), lab.ping(1)];
    lab.feed(&frames.map(flooded));
    assert_eq!(lab.received(), Vec::<Vec<u8>>::new());
    assert_eq!(lab.edge.counters.drops.flooded, 3);
    assert!(lab.is_alive());
}

/// Ethernet destination, ethertype and body.
fn parts(frame: &[u8]) -> (MacAddr, u16, &[u8]) {
    let frame = Frame::parse(frame).unwrap();
    (frame.ethernet.dst, frame.ethernet.ethertype.get(), frame.body)
}

/// A client of a published UDP port that leads to `guest` has sent something.
fn with_client(lab: &mut Lab, guest: IpAddr) {
    let at = publish_datagrams(lab, guest, Ipv4Addr::LOCALHOST);
    let (client, _) = host();
    client.send_to(b"first", at).unwrap();
    client.send_to(b"second", at).unwrap();
    lab.turn(1);
}

#[test]
fn a_silent_machine_is_asked_for() {
    // (address, the question's beginning and where it ends with the address, the answer)
    let arp = |operation: u8, from: &[u8], to: &[u8]| [&[0, 1, 8, 0, 6, 4, 0, operation][..], from, to].concat();
    let silent_v4 = [&SILENT[..], &[10, 0, 2, 40]].concat();
    let gateway_v4 = [&[0x52, 0x55, 10, 0, 2, 2][..], &[10, 0, 2, 2]].concat();
    let question = arp(1, &gateway_v4, &[0, 0, 0, 0, 0, 0, 10, 0, 2, 40]);
    let mut answer = vec![0; 12];
    answer.extend_from_slice(&[&gateway_v4[..6], &SILENT, &[8, 6], &arp(2, &silent_v4, &gateway_v4)].concat());

    let mut lab = Lab::new();
    with_client(&mut lab, [10, 0, 2, 40].into());
    let sent = lab.received();
    assert_eq!(sent.iter().map(|frame| parts(frame)).collect::<Vec<_>>(), [(EVERYBODY, 0x0806, &question[..])]);
    lab.feed(&[answer]);
    let sent = lab.received();
    let payloads: Vec<_> = sent.iter().map(|frame| (parts(frame).0, &frame[26 + 28..])).collect();
    assert_eq!(payloads, [(SILENT, &b"first"[..]), (SILENT, b"second")]);
    assert_eq!(lab.edge.sought.deadline(), None);
}

#[test]
fn the_same_over_ipv6() {
    let silent: std::net::Ipv6Addr = "fd00::1:2345".parse().unwrap();
    let mut lab = Lab::new();
    with_client(&mut lab, silent.into());
    let sent = lab.received();
    assert_eq!(sent.len(), 1);
    let (to, _, body) = parts(&sent[0]);
    // To the group that it listens to, by hardware and by IP address.
    assert_eq!(
        (to, body[7], body[24..40].to_vec()),
        (
            [0x33, 0x33, 0xff, 1, 0x23, 0x45],
            255,
            "ff02::1:ff01:2345".parse::<std::net::Ipv6Addr>().unwrap().octets().to_vec()
        )
    );
    assert_eq!((body[40], &body[48..64]), (135, &silent.octets()[..]));
    // Its answer, from its other address.
    let message = [&[136, 0, 0, 0, 0x60, 0, 0, 0][..], &silent.octets()].concat();
    let (src, dst) = ("fe80::40".parse().unwrap(), "fd00::2".parse().unwrap());
    let header = IcmpHeader { kind: 136, code: 0, checksum: 0.into(), id: 0x6000.into(), sequence: 0.into() };
    let len = lab.buffer.put_payload(&message[8..]);
    let whole = lab.buffer.icmp_whole((src, dst), header, len);
    let answer = lab.buffer.icmp(Macs { gateway: SILENT, ..MACS }, (src, dst), whole, 255, 0).to_vec();
    lab.feed(&[answer]);
    assert_eq!(lab.received().iter().map(|frame| parts(frame).0).collect::<Vec<_>>(), [SILENT, SILENT]);
}

/// It may not answer ARP, or know the way.
#[test]
fn what_nobody_answers_for_goes_to_the_workspace() {
    let mut lab = Lab::new();
    with_client(&mut lab, [10, 0, 2, 40].into());
    let mut asked = 0;
    let sent = loop {
        let sent = lab.received();
        if sent.iter().any(|frame| parts(frame).1 == EthernetHeader::IPV4) {
            break sent;
        }
        asked += sent.len();
        lab.turn(100);
    };
    assert_eq!(asked, 3);
    assert_eq!(sent.iter().map(|frame| parts(frame).0).collect::<Vec<_>>(), [MACS.gateway; 2]);
    // What is beyond the link is not asked for.
    with_client(&mut lab, [172, 17, 0, 2].into());
    let sent: Vec<_> = lab.received().iter().map(|frame| (parts(frame).0, parts(frame).1)).collect();
    assert_eq!(sent, [(MACS.gateway, EthernetHeader::IPV4); 2]);
}

#[test]
fn a_successor_knows_where_the_workspace_is() {
    let words: &'static [AtomicU64] = (0..8).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak();
    let mut lab = Lab::new();
    lab.edge.guest = crate::ports::Guest::new(Ipv4Subnet::DEFAULT);
    lab.engine = Engine::new(words);
    let (_host, port) = host();
    let frame = with_header(udp(&mut lab, port, b"x"), |header| header[15] = 50);
    lab.feed(&[frame]);

    let mut next = Lab::new();
    Engine::new(words).recall(&mut next.edge);
    assert_eq!((next.edge.guest.address(), next.edge.guest.mac()), ([10, 0, 2, 50].into(), Some(MACS.gateway)));
}
