//! The pieces that every frame passes, one at a time, for `benches/hot`: the engine is nobody else's business outside of
//! this crate, so what is measured of it comes out as closures. The engine's own tests begin with the same set-up.
#![allow(clippy::missing_panics_doc, reason = "made of constants; a bench that cannot be set up may stop")]

use std::hint::black_box;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use rustix::event::{Timespec, epoll};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};

use crate::edge::{Config, Edge};
use crate::engine::Engine;
use crate::flow::{FlowId, FlowKey, Kind, Table};
use crate::network::{Ipv4Subnet, Ipv6Subnet, VirtualNetwork};
use crate::outbound::Outbound;
use crate::policy::Policy;
use crate::tap::Tap;
use crate::timer::{Time, Wheel};
use crate::wire::build::Macs;
use crate::wire::checksum::Sum;
use crate::wire::transport::TcpHeader;
use crate::wire::{Frame, FrameBuffer, IpPacket, MAX_FRAME, TcpFlags, TcpSegment};

/// One piece of work, done again at each call.
pub type Piece = Box<dyn FnMut()>;

pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// From the workspace: the builder's "gateway" is whoever sends.
pub(crate) const MACS: Macs = Macs { gateway: [2; 6], guest: [0x52, 0x55, 10, 0, 2, 2] };
/// The workspace's first sequence number.
const FIRST: u32 = 1000;
/// Flows and timers beside the one in question.
const MANY: u32 = 10_000;

/// A frame with a TCP segment as far as its payload.
#[must_use]
pub fn parse(payload: usize) -> Piece {
    let frame = segment((1, 2), FIRST, 0, TcpFlags::ACK, payload);
    Box::new(move || {
        let frame = Frame::parse(black_box(&frame)).expect("a frame");
        let ip = IpPacket::parse(frame.ethernet.ethertype.get(), frame.body).expect("a packet");
        black_box(TcpSegment::parse(&ip, true).expect("a segment"));
    })
}

/// The headers in front of a payload that is in place.
#[must_use]
pub fn build(payload: usize) -> Piece {
    let mut buffer = FrameBuffer::default();
    let ends = (IpAddr::V4(GATEWAY), IpAddr::V4(GUEST));
    Box::new(move || {
        black_box(buffer.tcp(MACS, ends, header((80, 4000), FIRST, 0, TcpFlags::ACK), &[], payload, 1460));
    })
}

/// The Internet checksum of so many bytes.
#[must_use]
pub fn checksum(bytes: usize) -> Piece {
    let data = vec![0xa5; bytes];
    Box::new(move || {
        black_box(Sum::default().bytes(black_box(&data)).finish());
    })
}

/// One flow among 10,000.
#[must_use]
pub fn lookup() -> Piece {
    let key = |number: u32| FlowKey {
        guest: GUEST.into(),
        guest_port: u16::try_from(number).expect("a port"),
        remote: Ipv4Addr::from(number.wrapping_mul(2_654_435_761)).into(),
        remote_port: 443,
    };
    let mut flows = Table::new(Kind::Tcp, MANY as usize);
    for number in 0..MANY {
        flows.insert(key(number), Some);
    }
    let mut number = 0;
    Box::new(move || {
        number = (number + 7919) % MANY;
        black_box(flows.find(black_box(&key(number))));
    })
}

/// One timer among 10,000 put off by 200 ms.
#[must_use]
pub fn timer() -> Piece {
    let mut wheel = Wheel::new(Time(0));
    let timers: Vec<_> =
        (0..MANY).map(|index| wheel.insert(FlowId { kind: Kind::Tcp, index, generation: 0 })).collect();
    timers.iter().zip(0..).for_each(|(&timer, millis)| wheel.set(timer, Time(0).after(millis)));
    let mut next = 0;
    Box::new(move || {
        next = (next + 7919) % timers.len();
        wheel.set(timers[next], black_box(Time(0).after(200)));
    })
}

/// A segment from the workspace through the whole engine to a socket of the host's loopback, read there, and its
/// acknowledgement: what one read of the TAP brings about, without the TAP's two system calls.
#[must_use]
pub fn to_host(payload: usize) -> Piece {
    let mut open = Open::new();
    let mut seq = FIRST + 1;
    let mut received = vec![0; payload];
    Box::new(move || {
        open.frame(seq, payload);
        seq = seq.wrapping_add(u32::try_from(payload).expect("at most 64 KB"));
        open.host.read_exact(&mut received).expect("what was sent");
        open.take_frames();
    })
}

/// An engine with a socket pair in place of the TAP, whose other end is the workspace's. The gateway is the host's loopback.
pub(crate) fn set_up() -> (Edge, Engine, OwnedFd) {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (tap, guest) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a socket pair");
    let config = Config {
        network: VirtualNetwork::new(Ipv4Subnet::DEFAULT, Some(Ipv6Subnet::DEFAULT), 1500),
        policy: Policy { host_loopback: true, rules: Vec::new() },
        outbound: Outbound::default(),
        resolvers: Vec::new(),
        search: vec!["lab".to_owned()],
    };
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
    (Edge::new(config, Tap::ready(tap), epoll, Time(0)), Engine::new(&[]), guest)
}

/// Hands the engine what its host sockets have for it within so long.
pub(crate) fn host_events(edge: &mut Edge, engine: &mut Engine, wait: Timespec) {
    let mut events = Vec::with_capacity(64);
    epoll::wait(edge.epoll(), rustix::buffer::spare_capacity(&mut events), Some(&wait)).expect("an epoll's events");
    for event in events {
        engine.host_event(edge, FlowId::from_bits(event.data.u64()).expect("a flow"), event.flags);
    }
}

/// An open connection between a workspace and the host's loopback.
struct Open {
    edge: Edge,
    engine: Engine,
    /// The workspace's end of the link.
    guest: OwnedFd,
    host: TcpStream,
    /// The workspace's port and the server's.
    ports: (u16, u16),
    /// What the workspace has acknowledged.
    ack: u32,
    buffer: Vec<u8>,
}

impl Open {
    fn new() -> Self {
        let (mut edge, mut engine, guest) = set_up();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
        let ports = (4000, listener.local_addr().expect("its address").port());

        engine.batch_from_tap(&mut edge, [segment(ports, FIRST, 0, TcpFlags::SYN, 0)].iter().map(Vec::as_slice));
        let (host, _) = listener.accept().expect("the workspace's connection");
        host_events(&mut edge, &mut engine, Timespec { tv_sec: 1, tv_nsec: 0 });
        let mut buffer = vec![0; MAX_FRAME];
        let (length, _) = recv(&guest, &mut buffer[..], RecvFlags::DONTWAIT).expect("SYN and ACK");
        let frame = Frame::parse(&buffer[..length]).expect("a frame");
        let ip = IpPacket::parse(frame.ethernet.ethertype.get(), frame.body).expect("a packet");
        let ack = TcpSegment::parse(&ip, true).expect("a segment").seq.0.wrapping_add(1);
        let mut open = Self { edge, engine, guest, host, ports, ack, buffer };
        open.frame(FIRST + 1, 0);
        open
    }

    /// One frame of the workspace, in a batch of its own.
    fn frame(&mut self, seq: u32, payload: usize) {
        let frame = segment(self.ports, seq, self.ack, TcpFlags::ACK, payload);
        self.engine.batch_from_tap(&mut self.edge, std::iter::once(frame.as_slice()));
    }

    fn take_frames(&mut self) {
        while recv(&self.guest, &mut self.buffer[..], RecvFlags::DONTWAIT).is_ok() {}
    }
}

fn segment(ports: (u16, u16), seq: u32, ack: u32, flags: TcpFlags, payload: usize) -> Vec<u8> {
    let ends = (IpAddr::V4(GUEST), IpAddr::V4(GATEWAY));
    FrameBuffer::default().tcp(MACS, ends, header(ports, seq, ack, flags), &[], payload, 1460).to_vec()
}

/// A header as the builder takes it: checksum and data offset are its to fill in.
pub(crate) fn header(ports: (u16, u16), seq: u32, ack: u32, flags: TcpFlags) -> TcpHeader {
    TcpHeader {
        src_port: ports.0.into(),
        dst_port: ports.1.into(),
        seq: seq.into(),
        ack: ack.into(),
        data_offset: 0,
        flags: flags.0,
        window: 64_000.into(),
        checksum: 0.into(),
        urgent: 0.into(),
    }
}
