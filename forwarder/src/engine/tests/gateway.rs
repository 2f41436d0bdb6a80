//! What the gateway says by itself, and what it refuses.

use std::net::Ipv6Addr;

use super::*;
use crate::wire::build::Datagrams;
use crate::wire::{PROTOCOL_ICMPV6, PROTOCOL_UDP, UdpDatagram};

/// Payloads of UDP datagrams among frames, with where they went.
fn datagrams(frames: &[Vec<u8>]) -> Vec<(SocketAddr, Vec<u8>)> {
    let parse = |bytes: &Vec<u8>| {
        let frame = Frame::parse(bytes).ok()?;
        let ip = IpPacket::parse(frame.ethernet.ethertype.get(), frame.body).ok()?;
        let datagram = UdpDatagram::parse(&ip, true).ok()?;
        let to = SocketAddr::new(ip.dst, datagram.dst_port);
        (ip.protocol == PROTOCOL_UDP).then(|| (to, datagram.payload.to_vec()))
    };
    frames.iter().filter_map(parse).collect()
}

/// Hardware and IP addresses that ICMPv6 messages of this type went to.
fn heard_by(frames: &[Vec<u8>], kind: u8) -> Vec<([u8; 6], IpAddr)> {
    let parse = |bytes: &Vec<u8>| {
        let frame = Frame::parse(bytes).ok()?;
        let ip = IpPacket::parse(frame.ethernet.ethertype.get(), frame.body).ok()?;
        (ip.protocol == PROTOCOL_ICMPV6 && ip.payload.first() == Some(&kind)).then_some((frame.ethernet.dst, ip.dst))
    };
    frames.iter().filter_map(parse).collect()
}

impl Lab {
    fn udp_from(&mut self, from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
        let len = self.buffer.put_payload(payload);
        self.buffer.udp(MACS, &Datagrams { src: from, dst: to, tos: 0, size: len, len }, 0).to_vec()
    }
}

/// A DISCOVER of a client without an address.
fn discover() -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..3].copy_from_slice(&[1, 1, 6]);
    message[4..8].copy_from_slice(&[1, 2, 3, 4]);
    message[28..34].copy_from_slice(&[2; 6]);
    message[236..].copy_from_slice(&[99, 130, 83, 99]);
    message.extend_from_slice(&[53, 1, 1, 255]);
    message
}

#[test]
fn a_client_without_an_address_gets_one() {
    let mut lab = Lab::new();
    let from = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 68);
    let frame = lab.udp_from(from, (IpAddr::V4(Ipv4Addr::BROADCAST), 67), &discover());
    lab.feed(&[frame]);
    let offered = datagrams(&lab.received());
    let [(to, offer)] = &offered[..] else { panic!("{offered:?}") };
    assert_eq!(*to, "10.0.2.15:68".parse().unwrap());
    assert_eq!((&offer[..8], &offer[16..20]), (&[2, 1, 6, 0, 1, 2, 3, 4][..], &[10, 0, 2, 15][..]));
    // Elsewhere port 67 is one like any other, and what is not a message of DHCP is counted.
    let elsewhere = lab.udp_from((IpAddr::V4(GUEST), 68), (IpAddr::V4([10, 0, 2, 9].into()), 67), &discover());
    let nonsense = lab.udp_from(from, (IpAddr::V4(GATEWAY), 67), b"nonsense");
    lab.feed(&[elsewhere, nonsense]);
    assert_eq!(datagrams(&lab.received()), []);
    assert_eq!((lab.edge.counters.udp.flows.denied, lab.edge.counters.drops.malformed), (1, 1));
}

#[test]
fn advertisements_come_before_what_they_say_runs_out() {
    let mut lab = Lab::new();
    let (group, everyone) = ([0x33, 0x33, 0, 0, 0, 1], IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)));
    for _ in 0..3 {
        lab.edge.now = lab.engine.advertisement_deadline(&lab.edge).unwrap();
        lab.engine.advertise(&mut lab.edge);
        assert_eq!(heard_by(&lab.received(), 134), [(group, everyone)]);
        lab.engine.advertise(&mut lab.edge);
        assert_eq!(heard_by(&lab.received(), 134), []);
    }
    let next = lab.engine.advertisement_deadline(&lab.edge).unwrap();
    assert!((200_000..=600_000).contains(&next.since(lab.edge.now)), "every several minutes");
    lab.edge.config.network.v6 = None;
    assert_eq!(lab.engine.advertisement_deadline(&lab.edge), None);
}

/// One TCP SYN, one datagram and one ping to an address of the virtual network.
fn try_all(lab: &mut Lab, to: IpAddr, port: u16) {
    let guest = IpAddr::V4(GUEST);
    let header = hot::header((4000, port), 1, 0, TcpFlags::SYN);
    let syn = lab.buffer.tcp(MACS, (guest, to), header, &[], 0, u16::MAX).to_vec();
    let datagram = lab.udp_from((guest, 4000), (to, port), &[0; 20]);
    let echo = IcmpHeader { kind: 8, code: 0, checksum: 0.into(), id: 0.into(), sequence: 1.into() };
    let len = lab.buffer.icmp_whole((guest, to), echo, 0);
    let ping = lab.buffer.icmp(MACS, (guest, to), len, 64, 0).to_vec();
    lab.feed(&[syn, datagram, ping]);
}

#[test]
fn refusals_are_counted() {
    // (address, port, host loopback, refused of TCP, UDP and ping)
    for (last, port, open, want) in [
        (2, 80, false, [1, 1, 0]),
        (2, 53, false, [1, 1, 0]),
        (3, 80, false, [1, 1, 0]),
        (3, 80, true, [1, 1, 0]),
        (9, 80, true, [1, 1, 1]),
    ] {
        let mut lab = Lab::new();
        lab.edge.config.policy.host_loopback = open;
        try_all(&mut lab, IpAddr::V4([10, 0, 2, last].into()), port);
        let counted = &lab.edge.counters;
        let denied = [counted.tcp.flows.denied, counted.udp.flows.denied, counted.ping.denied];
        assert_eq!(denied, want, "10.0.2.{last}:{port} host_loopback={open}");
        // Nobody waits: each is told, by a reset, an ICMP error or (ping) the answer.
        assert_eq!(lab.received().len(), 3, "10.0.2.{last}:{port} host_loopback={open}");
    }
}

#[test]
fn without_dns_the_resolver_is_silent() {
    let mut lab = Lab::new();
    lab.edge.config.network.dns = false;
    lab.edge.config.resolvers = vec!["127.0.0.1:53".parse().unwrap()];
    try_all(&mut lab, IpAddr::V4([10, 0, 2, 3].into()), 53);
    assert_eq!(lab.received().len(), 1, "ping alone is answered");
    assert_eq!((lab.edge.counters.dns.disabled, lab.edge.counters.dns.queries), (2, 0));
}

fn to_resolver(lab: &mut Lab, port: u16, seq: u32, ack: u32, flags: TcpFlags) {
    let ends = (IpAddr::V4(GUEST), IpAddr::V4([10, 0, 2, 3].into()));
    let segment = lab.buffer.tcp(MACS, ends, hot::header((port, 53), seq, ack, flags), &[], 0, u16::MAX).to_vec();
    lab.feed(&[segment]);
}

/// What a workspace keeps open there others of the host do not get.
#[test]
fn a_resolver_is_not_used_up() {
    let mut lab = Lab::new();
    let resolver = listener();
    lab.edge.set_resolvers(vec![resolver.local_addr().unwrap()]);
    let open = |lab: &mut Lab, ports: std::ops::Range<u16>| {
        for port in ports {
            to_resolver(lab, port, 1, 0, TcpFlags::SYN);
            lab.turn(1);
            for (flags, seq, ..) in segments(&lab.received()) {
                assert!(!flags.has(TcpFlags::RST), "{port}");
                to_resolver(lab, port, 2, seq.wrapping_add(1), TcpFlags::ACK);
            }
        }
        let flows = lab.edge.counters.tcp.flows;
        (flows.opened, flows.closed, flows.exhausted)
    };
    assert_eq!(open(&mut lab, 4000..4040), (32, 0, 8));
    // One that ends makes room for one that asks again.
    to_resolver(&mut lab, 4000, 2, 0, TcpFlags::RST);
    assert_eq!(open(&mut lab, 4039..4041), (33, 1, 9));
    // So do those that say nothing.
    lab.turn(30_100);
    lab.received();
    assert_eq!(open(&mut lab, 4040..4041), (34, 33, 9));
    assert!(lab.is_alive());
}
