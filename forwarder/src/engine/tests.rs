//! The whole engine over a socket pair in place of the TAP, with the host's loopback behind the gateway: nothing it is
//! fed makes it panic, and it keeps answering.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use rustix::event::Timespec;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

use super::Engine;
use crate::edge::Edge;
use crate::hot::{self, GATEWAY, GUEST, MACS};
use crate::neighbours::sought;
use crate::network::Ipv4Subnet;
use crate::wire::build::Macs;
use crate::wire::checksum::Sum;
use crate::wire::transport::IcmpHeader;
use crate::wire::{
    ETHERNET_LEN, EthernetHeader, Frame, FrameBuffer, IPV4_LEN, IpPacket, PROTOCOL_ICMP, PROTOCOL_TCP, TcpFlags,
    TcpSegment, VNET_LEN,
};

/// No host call of a test waits longer.
const DEADLINE: Duration = Duration::from_secs(5);

/// An engine and the workspace's end of its link.
pub struct Lab {
    pub edge: Edge,
    engine: Engine,
    guest: OwnedFd,
    buffer: FrameBuffer,
}

impl Lab {
    pub fn new() -> Self {
        let (mut edge, engine, guest) = hot::set_up();
        edge.heard(GUEST.into(), MACS.gateway);
        Self { edge, engine, guest, buffer: FrameBuffer::default() }
    }

    fn feed(&mut self, frames: &[Vec<u8>]) {
        for batch in frames.chunks(16) {
            self.engine.batch_from_tap(&mut self.edge, batch.iter().map(Vec::as_slice));
            self.edge.tap_writable();
        }
    }

    /// Host events and deadlines, as the worker would hand them over.
    fn turn(&mut self, millis: u64) {
        self.edge.now = self.edge.now.after(millis);
        hot::host_events(&mut self.edge, &mut self.engine, Timespec { tv_sec: 0, tv_nsec: 1_000_000 });
        let mut due = Vec::new();
        self.edge.timers.expire(self.edge.now, &mut due);
        for id in due {
            self.engine.timer(&mut self.edge, id);
        }
        self.engine.run_ready(&mut self.edge);
        sought::ask(&mut self.edge);
        self.edge.tap_writable();
    }

    /// Everything the workspace was sent.
    fn received(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 70_000];
        while let Ok((count, _)) = rustix::net::recv(&self.guest, &mut buffer[..], RecvFlags::DONTWAIT) {
            frames.push(buffer[..count].to_vec());
        }
        frames
    }

    fn tcp(&mut self, ports: (u16, u16), seq: u32, ack: u32, flags: TcpFlags, payload: &[u8]) -> Vec<u8> {
        self.tcp_with((ports, seq, ack, flags), &[], payload)
    }

    /// The same with options.
    fn tcp_with(
        &mut self,
        (ports, seq, ack, flags): ((u16, u16), u32, u32, TcpFlags),
        options: &[u8],
        payload: &[u8],
    ) -> Vec<u8> {
        let header = hot::header(ports, seq, ack, flags);
        let len = self.buffer.put_payload(payload);
        let ends = (IpAddr::V4(GUEST), IpAddr::V4(GATEWAY));
        self.buffer.tcp(MACS, ends, header, options, len, u16::MAX).to_vec()
    }

    fn ping(&mut self, sequence: u16) -> Vec<u8> {
        let header = IcmpHeader { kind: 8, code: 0, checksum: 0.into(), id: 0.into(), sequence: sequence.into() };
        let len = self.buffer.put_payload(b"abc");
        let ends = (IpAddr::V4(GUEST), IpAddr::V4(GATEWAY));
        let whole = self.buffer.icmp_whole(ends, header, len);
        self.buffer.icmp(MACS, ends, whole, 64, 0).to_vec()
    }

    /// The workspace's word for a packet that it was sent: fragmentation needed, and how much its link takes.
    fn too_big(&mut self, sent: &[u8], mtu: u16) -> Vec<u8> {
        // As much as RFC 792 asks for: the header and eight bytes.
        let len = self.buffer.put_payload(&sent[26..26 + IPV4_LEN + 8]);
        let header = IcmpHeader { kind: 3, code: 4, checksum: 0.into(), id: 0.into(), sequence: mtu.into() };
        let ends = (IpAddr::V4(GUEST), IpAddr::V4(GATEWAY));
        let whole = self.buffer.icmp_whole(ends, header, len);
        self.buffer.icmp(MACS, ends, whole, 64, 0).to_vec()
    }

    /// Whether the gateway still answers a ping.
    fn is_alive(&mut self) -> bool {
        self.received();
        let ping = self.ping(77);
        self.feed(&[ping]);
        self.received().iter().any(|frame| {
            let Ok(frame) = Frame::parse(frame) else { return false };
            IpPacket::parse(frame.ethernet.ethertype.get(), frame.body)
                .is_ok_and(|ip| ip.protocol == PROTOCOL_ICMP && ip.payload.get(7) == Some(&77))
        })
    }
}

/// Flags, sequence and acknowledgement numbers, payload.
type Segment = (TcpFlags, u32, u32, Vec<u8>);

/// TCP segments among frames.
fn segments(frames: &[Vec<u8>]) -> Vec<Segment> {
    let parse = |bytes: &Vec<u8>| {
        let frame = Frame::parse(bytes).ok()?;
        let ip = IpPacket::parse(frame.ethernet.ethertype.get(), frame.body).ok()?;
        let segment = TcpSegment::parse(&ip, true).ok()?;
        (ip.protocol == PROTOCOL_TCP).then(|| (segment.flags, segment.seq.0, segment.ack.0, segment.payload.to_vec()))
    };
    frames.iter().filter_map(parse).collect()
}

/// A port of the loopback that refuses connections and datagrams. It is held for the whole run, bound and not
/// listening: a port merely found free may become another test's listener, which then accepts the wrong connection.
fn closed_port() -> u16 {
    static HELD: OnceLock<(OwnedFd, UdpSocket, u16)> = OnceLock::new();
    let hold = || loop {
        let tcp = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&tcp, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let port = SocketAddr::try_from(rustix::net::getsockname(&tcp).unwrap()).unwrap().port();
        // Connected to itself, so that it hears nobody else.
        let Ok(udp) = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)) else { continue };
        udp.connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        return (tcp, udp, port);
    };
    HELD.get_or_init(hold).2
}

/// A listener whose calls fail instead of waiting for what never comes.
fn listener() -> TcpListener {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

/// The connection that is already there.
fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Any transport bytes in a right IPv4 packet to the gateway.
fn ipv4_frame(protocol: u8, flags_offset: u16, partial: bool, transport: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; usize::from(VNET_LEN) + ETHERNET_LEN + IPV4_LEN];
    bytes[0] = u8::from(partial);
    bytes[12..18].copy_from_slice(&MACS.guest);
    bytes[12 + 12..12 + 14].copy_from_slice(&EthernetHeader::IPV4.to_be_bytes());
    let ip = &mut bytes[26..];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&u16::try_from(IPV4_LEN + transport.len()).unwrap().to_be_bytes());
    ip[6..8].copy_from_slice(&flags_offset.to_be_bytes());
    ip[9] = protocol;
    ip[12..16].copy_from_slice(&GUEST.octets());
    ip[16..20].copy_from_slice(&GATEWAY.octets());
    let sum = Sum::default().bytes(&ip[..IPV4_LEN]).finish();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes.extend_from_slice(transport);
    bytes
}

/// The same over IPv6.
fn ipv6_frame(next_header: u8, partial: bool, transport: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 26 + 40];
    bytes[0] = u8::from(partial);
    bytes[12..18].copy_from_slice(&MACS.guest);
    bytes[24..26].copy_from_slice(&EthernetHeader::IPV6.to_be_bytes());
    let ip = &mut bytes[26..];
    ip[0] = 0x60;
    ip[4..6].copy_from_slice(&u16::try_from(transport.len()).unwrap().to_be_bytes());
    (ip[6], ip[7]) = (next_header, 255);
    (ip[8], ip[23], ip[24], ip[39]) = (0xfd, 0x64, 0xfd, 2);
    bytes.extend_from_slice(transport);
    bytes
}

/// Transport bytes whose ports are one that nobody listens on and one of a few.
fn transport() -> impl Strategy<Value = Vec<u8>> {
    (vec(any::<u8>(), 4..80), 0u16..4).prop_map(|(mut bytes, source)| {
        bytes[..2].copy_from_slice(&source.to_be_bytes());
        bytes[2..4].copy_from_slice(&closed_port().to_be_bytes());
        // A plausible TCP header length more often than not.
        if let Some(offset) = bytes.get_mut(12).filter(|offset| **offset < 200) {
            *offset = 0x50 | (*offset & 0x1f);
        }
        bytes
    })
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..40),
        (prop_oneof![Just(1u8), Just(6), Just(17), any::<u8>()], any::<bool>(), transport())
            .prop_map(|(protocol, partial, bytes)| ipv4_frame(protocol, 0, partial, &bytes)),
        (prop_oneof![Just(1u8), Just(17)], any::<u16>(), transport()).prop_map(|(protocol, offset, bytes)| ipv4_frame(
            protocol,
            offset & 0x203f,
            true,
            &bytes
        )),
        (prop_oneof![Just(58u8), Just(6), Just(17), Just(0), Just(44), any::<u8>()], any::<bool>(), transport())
            .prop_map(|(protocol, partial, bytes)| ipv6_frame(protocol, partial, &bytes)),
    ]
}

mod fuzz;
mod gateway;
mod neighbours;
mod ping;
mod ports;
mod tcp;
mod udp;

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_frame_stops_it(frames in vec(any_frame(), 1..40), waits in vec(0u64..40_000, 1..4)) {
        let mut lab = Lab::new();
        lab.feed(&frames);
        for wait in waits {
            lab.turn(wait);
            lab.feed(&frames);
        }
        prop_assert!(lab.is_alive());
    }

    /// Segments with any numbers on a connection that is open, both ways, and any cut of them.
    #[test]
    fn no_segment_stops_an_open_connection(
        steps in vec((any::<u8>(), -3000i32..70_000, -3000i32..3000, 0usize..3000, any::<bool>()), 1..40),
    ) {
        let listener = listener();
        let port = listener.local_addr().unwrap().port();
        let mut lab = Lab::new();
        let syn = lab.tcp((4000, port), 1000, 0, TcpFlags::SYN, &[]);
        lab.feed(&[syn]);
        lab.turn(1);
        let answers = segments(&lab.received());
        let (flags, iss, _, _) = answers[0].clone();
        prop_assert!(flags.has(TcpFlags::SYN) && flags.has(TcpFlags::ACK));
        let ack = lab.tcp((4000, port), 1001, iss.wrapping_add(1), TcpFlags::ACK, &[]);
        lab.feed(&[ack]);
        for (flags, seq, ack, len, wait) in steps {
            let (seq, ack) = (1001u32.wrapping_add_signed(seq), iss.wrapping_add_signed(ack));
            let frame = lab.tcp((4000, port), seq, ack, TcpFlags(flags | 0x10), &vec![7; len]);
            lab.feed(&[frame]);
            if wait {
                lab.turn(500);
            }
        }
        prop_assert!(lab.is_alive());
    }
}
