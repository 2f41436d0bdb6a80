//! Datagrams of one batch that go the same way, gathered for one call (UDP_SEGMENT).

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::flow::FlowId;
use crate::marks::Marks;
use crate::sys::datagram::{self, Local};
use crate::wire::{IpPacket, UdpDatagram};

/// Datagrams in one call: what every kernel takes with UDP_SEGMENT.
pub const MAX_SEGMENTS: usize = 64;
/// Bytes in one call: an IP packet's 65,535 less both headers.
const MAX_BYTES: usize = 65_487;

/// Whose socket datagrams leave by.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// A mapping's, by its place.
    Mapping(u32),
    /// A published port's, to this client.
    Client(FlowId),
}

/// Datagrams of one size on their way from one address and port to another.
#[derive(Debug)]
pub struct Gather<'b> {
    /// None when there is nothing.
    way: Option<Way>,
    source: (IpAddr, u16),
    destination: SocketAddr,
    marks: Marks,
    size: usize,
    len: usize,
    count: usize,
    payloads: [IoSlice<'b>; MAX_SEGMENTS],
    /// The packets they came in, for errors to quote.
    packets: [&'b [u8]; MAX_SEGMENTS],
}

impl<'b> Gather<'b> {
    pub fn new() -> Self {
        let nobody = IpAddr::from([0; 4]);
        Self {
            way: None,
            source: (nobody, 0),
            destination: SocketAddr::new(nobody, 0),
            marks: Marks::NONE,
            size: 0,
            len: 0,
            count: 0,
            payloads: [IoSlice::new(&[]); MAX_SEGMENTS],
            packets: [&[]; MAX_SEGMENTS],
        }
    }

    /// Begins with a datagram, of which this is the way; what was there has left.
    pub fn begin(&mut self, way: Way, ip: &IpPacket<'b>, datagram: &UdpDatagram<'b>) {
        self.way = Some(way);
        self.source = (ip.src, datagram.src_port);
        self.destination = SocketAddr::new(ip.dst, datagram.dst_port);
        self.marks = Marks::of(ip);
        self.size = datagram.payload.len();
        (self.len, self.count) = (0, 0);
        self.push(datagram.payload, ip.bytes);
    }

    /// Takes in a datagram that may follow those that are there. False: they have to leave first.
    pub fn follow(&mut self, ip: &IpPacket<'b>, datagram: &UdpDatagram<'b>) -> bool {
        let admits = self.admits(ip, datagram);
        if admits {
            self.push(datagram.payload, ip.bytes);
        }
        admits
    }

    fn admits(&self, ip: &IpPacket<'_>, datagram: &UdpDatagram<'_>) -> bool {
        let len = datagram.payload.len();
        // A shorter one is the last.
        let is_open = self.len == self.size * self.count;
        self.way.is_some()
            && is_open
            && self.count < MAX_SEGMENTS
            && (1..=self.size).contains(&len)
            && self.len + len <= MAX_BYTES
            && self.source == (ip.src, datagram.src_port)
            && self.destination.port() == datagram.dst_port
            && self.destination.ip() == ip.dst
            && self.marks == Marks::of(ip)
    }

    fn push(&mut self, payload: &'b [u8], packet: &'b [u8]) {
        if let (Some(slice), Some(quoted)) = (self.payloads.get_mut(self.count), self.packets.get_mut(self.count)) {
            *slice = IoSlice::new(payload);
            *quoted = packet;
            self.len += payload.len();
            self.count += 1;
        }
    }

    /// The way of what is there, which leaves now.
    pub fn take_way(&mut self) -> Option<Way> {
        self.way.take()
    }

    /// What there is: all of one size, but the last may be shorter.
    pub fn payloads(&self) -> &[IoSlice<'b>] {
        self.payloads.get(..self.count).unwrap_or_default()
    }

    /// The same with the packets they came in.
    pub fn packets(&self) -> impl Iterator<Item = (&[u8], &'b [u8])> {
        self.payloads().iter().map(|payload| &**payload).zip(self.packets)
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// Bytes of those that followed the first.
    pub fn followed(&self) -> u64 {
        (self.len - self.size) as u64
    }
}

/// All or, with an error, none of them are sent. EAGAIN: there is no room for them. Another error: the host's path
/// refuses to cut them, or one of that size.
pub fn send_segments(
    socket: &OwnedFd,
    parts: &[IoSlice<'_>],
    size: usize,
    from: Option<Local>,
    to: SocketAddr,
) -> Result<(), Errno> {
    let size = u16::try_from(size).map_err(|_| Errno::INVAL)?;
    match retry(|| datagram::send(socket, parts, Some(size), from, to)) {
        Ok(_) => Ok(()),
        Err(Errno::NOBUFS) => Err(Errno::AGAIN),
        Err(errno) => Err(errno),
    }
}

/// A failure may be an earlier datagram's, to anyone: the kernel reports what is pending before it sends, once.
pub fn retry<T>(send: impl Fn() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    match send() {
        Err(errno) if errno != Errno::AGAIN => send(),
        sent => sent,
    }
}
