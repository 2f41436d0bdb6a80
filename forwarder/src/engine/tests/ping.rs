//! Pings that are longer than a link takes.

use std::net::Ipv6Addr;

use super::*;
use crate::wire::PROTOCOL_ICMPV6;

#[test]
fn a_ping_in_fragments_is_answered_in_fragments() {
    let mut lab = Lab::new();
    let payload: Vec<u8> = (0..3000u32).map(|n| n.to_be_bytes()[3]).collect();
    let mut message = vec![8, 0, 0, 0, 0, 7, 0, 1];
    message.extend_from_slice(&payload);
    let sum = Sum::default().bytes(&message).finish();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    for (n, piece) in (0u16..).zip(message.chunks(1480)) {
        let more = if n < 2 { 0x2000 } else { 0 };
        let frame = ipv4_frame(PROTOCOL_ICMP, more | (n * 185), false, piece);
        lab.feed(&[frame]);
    }
    let mut answer = Vec::new();
    for frame in lab.received() {
        let frame = Frame::parse(&frame).unwrap();
        let ip = IpPacket::parse(frame.ethernet.ethertype.get(), frame.body).unwrap();
        let fragment = ip.fragment.unwrap();
        assert_eq!((usize::from(fragment.offset), fragment.more), (answer.len(), answer.len() < 2960));
        answer.extend_from_slice(ip.payload);
    }
    assert!(Sum::default().bytes(&answer).is_valid());
    assert_eq!(answer[..2], [0, 0]);
    assert!(answer[4..8] == message[4..8] && answer[8..] == payload);
    // Other protocols are not put together.
    let frame = ipv4_frame(PROTOCOL_TCP, 185, false, &[0; 80]);
    lab.feed(&[frame]);
    assert!(lab.is_alive());
}

/// An ICMPv6 message from the guest to the gateway.
fn icmpv6(header: [u8; 8], body: &[u8]) -> Vec<u8> {
    let ends = ["fd00::64", "fd00::2"].map(|address| IpAddr::V6(address.parse::<Ipv6Addr>().unwrap()));
    let mut message = [&header[..], body].concat();
    let sum = Sum::pseudo(ends[0], ends[1], PROTOCOL_ICMPV6, message.len()).bytes(&message).finish();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv6_frame(PROTOCOL_ICMPV6, false, &message)
}

/// Over IPv6 nobody on the way may cut.
#[test]
fn replies_are_cut_once_a_small_link_has_been_told_of() {
    let mut lab = Lab::new();
    let ping = icmpv6([128, 0, 0, 0, 0, 7, 0, 1], &[9; 1400]);
    let lens = |frames: &[Vec<u8>]| frames.iter().map(|frame| frame.len() - 26).collect::<Vec<_>>();
    lab.feed(std::slice::from_ref(&ping));
    let whole = lab.received();
    assert_eq!(lens(&whole), [1448]);
    let too_big = icmpv6([2, 0, 0, 0, 0, 0, 5, 0], &whole[0][26..26 + 96]);
    lab.feed(&[too_big, ping]);
    assert_eq!(lens(&lab.received()), [1280, 224]);
    assert_eq!(lab.edge.counters.drops.unsupported, 0);
    // What is no reply.
    let mut other = whole[0][26..26 + 96].to_vec();
    other[40] = 135;
    lab.feed(&[icmpv6([2, 0, 0, 0, 0, 0, 5, 0], &other)]);
    assert_eq!(lab.edge.counters.drops.unsupported, 1);
}
