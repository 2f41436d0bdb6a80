//! One TCP connection: its two halves, its host socket, and which of its deadlines runs.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, sockopt};
use zerocopy::IntoBytes;

use super::ledger::Record;
use super::queue::Queue;
use super::receive::Receive;
use super::send::Send;
use super::{Seq, limits};
use crate::flow::{FlowId, FlowKey, list};
use crate::sys;
use crate::timer::{Time, TimerId};
use crate::wire::ip::header_for_quote;
use crate::wire::transport::TcpHeader;
use crate::wire::{PROTOCOL_TCP, TCP_LEN, TcpFlags};

/// Where the connection stands. Closing is told by the halves: each has its own end of stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The workspace's SYN is here, the host's connect is under way.
    Dialing,
    /// The host is connected; our SYN-ACK waits for its acknowledgement.
    SynReceived,
    /// The host's client is connected; our SYN waits for the workspace's answer.
    Opening,
    /// Both are connected; data flows.
    Established,
}

/// The one deadline that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// The host's connect has taken too long.
    Dial,
    /// The SYN, the SYN-ACK, or data, was not acknowledged in time.
    Retransmit,
    /// The workspace's window is closed and nothing will open it but a probe.
    Persist,
    /// Nothing has happened for long: is the workspace's end still there?
    Keepalive,
}

/// Where the host socket's next MSG_PEEK starts (SO_PEEK_OFF).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PeekOffset {
    /// Never set: every peek starts at the first unread byte.
    Unset,
    At(u32),
    /// The kernel has no SO_PEEK_OFF for this socket: earlier bytes are peeked again, into a buffer nobody reads.
    Missing,
}

/// What a peek found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peeked {
    Data(usize),
    /// Nothing more for now.
    Empty,
    /// Without SO_PEEK_OFF, too much is in flight to look beyond it: an acknowledgement will help.
    OutOfReach,
    EndOfStream,
}

/// One connection.
#[derive(Debug)]
pub struct Flow {
    pub id: FlowId,
    pub key: FlowKey,
    pub state: State,
    pub receive: Receive,
    pub send: Send,
    pub socket: OwnedFd,
    /// The workspace's SYN's sequence number.
    pub irs: Seq,
    pub options: SynOptions,
    pub timer: TimerId,
    /// Its place in the ledger.
    pub record: Option<Record>,
    pub deadline: (Deadline, Time),
    /// Deadlines of this kind that have passed in a row.
    pub tries: u8,
    pub since: Time,
    pub last_heard: Time,
    /// The how-manieth resolver was dialled, for TCP to the virtual one.
    pub resolver: Option<usize>,
    /// It came from the host, to a published port.
    pub inbound: Option<Inbound>,
    /// Something new was acknowledged: the retransmission timer starts anew (RFC 6298 5.3).
    pub restarts_timer: bool,
    /// An acknowledgement is owed.
    pub ack_due: bool,
    /// In the list of flows to settle at the end of the batch.
    pub is_dirty: bool,
    /// The host socket may have more to read.
    pub readable: bool,
    /// The host has sent its FIN; it may still be behind data.
    pub host_closing: bool,
    /// The host has sent urgent data that was not taken: the kernel ends reads before it.
    pub has_urgent: bool,
    /// The host's socket takes data.
    pub writable: bool,
    pub host_shut: bool,
    no_delay: bool,
    has_sent: bool,
    peek: PeekOffset,
    queue: Queue,
}

/// What is only of interest for a connection from the host.
#[derive(Clone, Copy, Debug)]
pub struct Inbound {
    /// Where else to try it when the workspace refuses.
    pub other: Option<FlowKey>,
}

/// What our SYN or SYN-ACK says.
#[derive(Clone, Copy, Debug)]
pub struct SynOptions {
    pub mss: u16,
    pub window_scale: bool,
    pub sack: bool,
}

impl Flow {
    #[expect(clippy::too_many_arguments, reason = "each argument is a different part of the connection")]
    pub fn new(
        id: FlowId,
        key: FlowKey,
        socket: OwnedFd,
        receive: Receive,
        send: Send,
        irs: Seq,
        options: SynOptions,
        timer: TimerId,
        now: Time,
    ) -> Self {
        Self {
            id,
            key,
            state: State::Dialing,
            receive,
            send,
            socket,
            irs,
            options,
            timer,
            record: None,
            deadline: (Deadline::Dial, now.after(limits::DIAL_MS)),
            tries: 0,
            since: now,
            last_heard: now,
            resolver: None,
            inbound: None,
            restarts_timer: false,
            ack_due: false,
            is_dirty: false,
            readable: false,
            host_closing: false,
            has_urgent: false,
            writable: true,
            host_shut: false,
            no_delay: false,
            has_sent: false,
            peek: PeekOffset::Unset,
            queue: Queue::new(now),
        }
    }

    /// Where it stands, as a person would ask.
    pub fn listed_state(&self) -> list::State {
        match self.state {
            State::Dialing | State::SynReceived | State::Opening => list::State::Opening,
            State::Established if self.receive.is_finished() || self.send.has_fin() => list::State::Closing,
            State::Established => list::State::Open,
        }
    }

    /// Sender and receiver of a segment to the workspace.
    pub fn ends(&self) -> (IpAddr, IpAddr) {
        (self.key.remote, self.key.guest)
    }

    pub fn header(&mut self, seq: Seq, flags: TcpFlags) -> TcpHeader {
        let window = self.receive.advertise(flags.has(TcpFlags::SYN));
        header(&self.key, seq, self.receive.ack(), flags, window)
    }

    /// Both streams have ended and everyone knows.
    pub fn is_finished(&self) -> bool {
        self.send.is_finished() && self.receive.is_drained()
    }

    /// Looks at the host's stream from `offset` of the unread bytes on, without taking any.
    pub fn peek(&mut self, offset: u32, buffer: &mut [u8], discard: &mut [u8]) -> rustix::io::Result<Peeked> {
        let start = match self.peek {
            PeekOffset::Unset if offset == 0 => 0,
            PeekOffset::At(at) if at == offset => at,
            PeekOffset::Missing => return self.peek_again(offset, buffer, discard),
            _ => match sys::socket::set_peek_offset(self.socket.as_fd(), i32::try_from(offset).unwrap_or(i32::MAX)) {
                Ok(()) => {
                    self.peek = PeekOffset::At(offset);
                    offset
                }
                Err(_) => {
                    self.peek = PeekOffset::Missing;
                    return self.peek_again(offset, buffer, discard);
                }
            },
        };
        match rustix::net::recv(&self.socket, buffer, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((0, _)) => Ok(Peeked::EndOfStream),
            Ok((count, _)) => {
                if self.peek != PeekOffset::Unset {
                    self.peek = PeekOffset::At(start + u32::try_from(count).unwrap_or(0));
                }
                Ok(Peeked::Data(count))
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(Peeked::Empty),
            Err(error) => Err(error),
        }
    }

    /// Linux before 6.9: peeks from the start, over what was seen before.
    fn peek_again(&self, offset: u32, buffer: &mut [u8], discard: &mut [u8]) -> rustix::io::Result<Peeked> {
        let Some(seen) = discard.get_mut(..offset as usize) else { return Ok(Peeked::OutOfReach) };
        let seen_len = seen.len();
        let mut parts = [std::io::IoSliceMut::new(seen), std::io::IoSliceMut::new(buffer)];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let mut control = rustix::net::RecvAncillaryBuffer::default();
        match rustix::net::recvmsg(&self.socket, &mut parts, &mut control, flags) {
            Ok(message) if message.bytes > seen_len => Ok(Peeked::Data(message.bytes - seen_len)),
            Ok(_) if self.host_closing => Ok(Peeked::EndOfStream),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(Peeked::Empty),
            Err(error) => Err(error),
        }
    }

    /// Whether the unread byte at `offset`, which is there, is the host's urgent one: a read that begins before it ends
    /// before it, too.
    pub fn is_urgent(&mut self, offset: u32, discard: &mut [u8]) -> bool {
        if !self.has_urgent {
            return false;
        }
        match offset.checked_sub(1) {
            None => sys::socket::is_at_mark(self.socket.as_fd()),
            Some(before) => self.peek(before, &mut [0; 2], discard) == Ok(Peeked::Data(1)),
        }
    }

    /// Drops what the workspace has acknowledged from the host socket's queue. `scratch` bounds one call, not the sum.
    pub fn discard_acknowledged(&mut self, scratch: &mut [u8]) {
        while self.send.unread() > 0 {
            let len = (self.send.unread() as usize).min(scratch.len());
            let flags = RecvFlags::TRUNC | RecvFlags::DONTWAIT;
            let Ok((_, count @ 1..)) = rustix::net::recv(&self.socket, &mut scratch[..len], flags) else { return };
            self.send.discarded(count);
            if let PeekOffset::At(at) = self.peek {
                self.peek = PeekOffset::At(at.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX)));
            }
        }
    }

    /// Makes room in the host socket's queue for as much as the ways on both sides hold.
    pub fn widen_queue(&mut self, now: Time) {
        let outside = || sys::socket::round_trip_ms(self.socket.as_fd());
        if let Some(size) = self.queue.outgrown(self.send.total(), now, self.send.round_trip_ms(), outside) {
            sys::socket::reserve_queue(self.socket.as_fd(), size);
        }
    }

    /// Gives bytes to the host's socket; how many it took.
    pub fn write_host(&mut self, slices: &[std::io::IoSlice<'_>]) -> rustix::io::Result<usize> {
        if !self.writable {
            return Ok(0);
        }
        // The workspace's kernel has decided what to hold back; only a second write could be held back here.
        if self.has_sent && !self.no_delay {
            self.no_delay = sockopt::set_tcp_nodelay(&self.socket, true).is_ok();
        }
        self.has_sent = true;
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match rustix::net::sendmsg(&self.socket, slices, &mut SendAncillaryBuffer::default(), flags) {
            Ok(count) => {
                self.writable = count == slices.iter().map(|slice| slice.len()).sum::<usize>();
                Ok(count)
            }
            Err(Errno::AGAIN) => {
                self.writable = false;
                Ok(0)
            }
            Err(Errno::INTR) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Writes what is pending to the host's socket, and its end of stream after the last byte.
    pub fn write_pending(&mut self) -> rustix::io::Result<()> {
        while self.receive.pending() > 0 && self.writable {
            let (count, is_urgent) = self.receive.writable();
            let (first, second) = self.receive.pending_slices(count);
            let slices = [std::io::IoSlice::new(first), std::io::IoSlice::new(second)];
            let urgent = if is_urgent { SendFlags::OOB } else { SendFlags::empty() };
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT | urgent;
            match rustix::net::sendmsg(&self.socket, &slices, &mut SendAncillaryBuffer::default(), flags) {
                Ok(count) => self.receive.took(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.writable = false,
                Err(error) => return Err(error),
            }
        }
        if self.receive.is_drained() && !self.host_shut {
            self.host_shut = true;
            self.end_orderly();
            if !self.send.is_finished() {
                match rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write) {
                    Ok(()) | Err(Errno::NOTCONN) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// From here on a close sends what is queued and an end of stream, not a reset (see [`reset_at_death`]).
    pub fn end_orderly(&self) {
        // Failing leaves the reset, and whoever is at the other end knows that something is missing.
        let _ = sockopt::set_socket_linger(&self.socket, None);
    }

    /// The start of the workspace's SYN, rebuilt for an ICMP error to quote.
    pub fn quoted_syn(&self) -> Vec<u8> {
        let mut tcp = header(&self.key, self.irs, Seq(0), TcpFlags::SYN, 0);
        (tcp.src_port, tcp.dst_port) = (self.key.guest_port.into(), self.key.remote_port.into());
        let mut bytes = header_for_quote(self.key.guest, self.key.remote, PROTOCOL_TCP, TCP_LEN);
        bytes.extend_from_slice(tcp.as_bytes());
        bytes
    }
}

/// A forwarder that is killed closes its sockets: the host's ends must not take that for the end of the stream, which
/// only the workspace's FIN is.
pub fn reset_at_death(socket: &OwnedFd) {
    // Failing leaves the end of stream.
    let _ = sockopt::set_socket_linger(socket, Some(std::time::Duration::ZERO));
}

/// The header of a segment to the workspace.
pub fn header(key: &FlowKey, seq: Seq, ack: Seq, flags: TcpFlags, window: u16) -> TcpHeader {
    TcpHeader {
        src_port: key.remote_port.into(),
        dst_port: key.guest_port.into(),
        seq: seq.0.into(),
        ack: ack.0.into(),
        data_offset: 0,
        flags: flags.0,
        window: window.into(),
        checksum: 0.into(),
        urgent: 0.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;
    use crate::flow::Kind;
    use crate::tcp::send::Ack;
    use crate::timer::Wheel;

    fn flow(socket: TcpStream) -> Flow {
        socket.set_nonblocking(true).unwrap();
        let id = FlowId { kind: Kind::Tcp, index: 0, generation: 0 };
        let key =
            FlowKey { guest: [10, 0, 2, 100].into(), guest_port: 1, remote: [192, 0, 2, 1].into(), remote_port: 2 };
        let mut send = Send::new(Seq(0), 60_000, 0, 1460);
        send.established(Time(0));
        let options = SynOptions { mss: 1460, window_scale: true, sack: true };
        let timer = Wheel::new(Time(0)).insert(id);
        let receive = Receive::new(Seq(0), true);
        Flow::new(id, key, socket.into(), receive, send, Seq(0), options, timer, Time(0))
    }

    /// With SO_PEEK_OFF and without, the same bytes are seen at the same offsets, before and after some are taken.
    #[test]
    fn peeks_see_the_same_with_and_without_offsets_of_the_kernel() {
        for peek in [PeekOffset::Unset, PeekOffset::Missing] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let mut host = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let mut flow = flow(listener.accept().unwrap().0);
            flow.peek = peek;
            let (mut buffer, mut scratch) = ([0; 4], vec![0; 16]);
            assert_eq!(flow.peek(0, &mut buffer, &mut scratch), Ok(Peeked::Empty));
            host.write_all(b"0123456789").unwrap();
            for (offset, want) in [(0, "0123"), (4, "4567"), (8, "89"), (2, "2345"), (6, "6789")] {
                let want_len = want.len();
                assert_eq!(flow.peek(offset, &mut buffer, &mut scratch), Ok(Peeked::Data(want_len)), "{peek:?}");
                assert_eq!(&buffer[..want_len], want.as_bytes());
            }
            assert_eq!(flow.peek(10, &mut buffer, &mut scratch), Ok(Peeked::Empty));
            flow.send.sent(6, Time(0));
            let ack = Ack { seq: Seq(1), number: Seq(7), window: 60_000, bare: true };
            flow.send.acknowledge(ack, [].into_iter(), Time(0));
            flow.discard_acknowledged(&mut scratch[..4]);
            assert_eq!(flow.send.unread(), 0);
            assert_eq!(flow.peek(0, &mut buffer, &mut scratch), Ok(Peeked::Data(4)));
            assert_eq!(&buffer, b"6789");
            drop(host);
            flow.host_closing = true;
            assert_eq!(flow.peek(4, &mut buffer, &mut scratch), Ok(Peeked::EndOfStream), "{peek:?}");
        }
    }
}
