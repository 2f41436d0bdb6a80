//! What a connection does with its host socket: it looks at what has come without taking it, takes what the workspace has
//! acknowledged, gives it what the workspace sent, and says how it is to end.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, sockopt};

use super::Flow;
use crate::sys;
use crate::timer::Time;

/// Where the host socket's next MSG_PEEK starts (SO_PEEK_OFF).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeekOffset {
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

impl Flow {
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
    fn end_orderly(&self) {
        // Failing leaves the reset, and whoever is at the other end knows that something is missing.
        let _ = sockopt::set_socket_linger(&self.socket, None);
    }
}

/// A forwarder that is killed closes its sockets: the host's ends must not take that for the end of the stream, which
/// only the workspace's FIN is.
pub fn reset_at_death(socket: &OwnedFd) {
    // Failing leaves the end of stream.
    let _ = sockopt::set_socket_linger(socket, Some(std::time::Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;
    use crate::flow::{FlowId, FlowKey, Kind};
    use crate::tcp::Seq;
    use crate::tcp::flow::SynOptions;
    use crate::tcp::receive::Receive;
    use crate::tcp::send::{Ack, Send};
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
