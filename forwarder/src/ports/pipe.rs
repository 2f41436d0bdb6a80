//! One direction of a spliced connection: bytes go from socket to pipe to socket without being copied to us.
//!
//! A pipe is held only while bytes are in it, so idle connections have none; empty ones are kept for the next.
//!
//! splice(2) stops before an urgent byte for good, and gives the end of the stream there where that has come (Linux's
//! tcp_read_sock): the byte is carried over by hand, once everything before it is.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use crate::sys::socket::is_at_mark;

/// Bytes a pipe may hold; what the kernel refuses an ordinary user (pipe-max-size, pipe-user-pages-soft) stays at its
/// default.
const PIPE_SIZE: usize = 1 << 20;
/// Empty pipes kept.
const SPARE_PIPES: usize = 16;
/// Bytes moved in one direction before others have their turn.
const BYTES_A_TURN: usize = 4 << 20;

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

/// Empty pipes.
#[derive(Debug, Default)]
pub struct Pipes(Vec<Pipe>);

impl Pipes {
    fn take(&mut self) -> rustix::io::Result<Pipe> {
        if let Some(pipe) = self.0.pop() {
            return Ok(pipe);
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let _ = fcntl_setpipe_size(&write, PIPE_SIZE);
        Ok(Pipe { read, write })
    }

    fn give_back(&mut self, pipe: Pipe) {
        if self.0.len() < SPARE_PIPES {
            self.0.push(pipe);
        }
    }
}

/// What became of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing more moves before the next event.
    Done,
    /// More may move: another turn, later.
    More,
}

#[derive(Debug, Default)]
pub struct Direction {
    pipe: Option<Pipe>,
    /// Bytes in the pipe.
    level: usize,
    /// The sender may have more, the receiver may take more.
    pub readable: bool,
    pub writable: bool,
    /// The sender has said something urgent that was not taken.
    pub has_urgent: bool,
    has_ended: bool,
    /// The receiver has been told of the end.
    pub is_shut: bool,
    /// Bytes that the receiver has been given.
    pub total: u64,
}

impl Direction {
    /// Moves what moves. An error is either socket's, or there are no descriptors for a pipe.
    pub fn turn(&mut self, from: &OwnedFd, to: &OwnedFd, pipes: &mut Pipes) -> rustix::io::Result<Turn> {
        let mut moved = 0;
        while moved < BYTES_A_TURN {
            // Into an empty pipe only: what the receiver does not take now comes in larger pieces later.
            let takes = self.level == 0 && self.readable && !self.has_ended;
            let taken = if takes { self.take(from, to, pipes)? } else { 0 };
            let given = if self.level > 0 && self.writable { self.give(to)? } else { 0 };
            if self.level == 0 {
                if let Some(pipe) = self.pipe.take() {
                    pipes.give_back(pipe);
                }
                if self.has_ended {
                    self.end(to)?;
                    return Ok(Turn::Done);
                }
            }
            if taken == 0 && given == 0 {
                return Ok(Turn::Done);
            }
            moved += taken + given;
        }
        Ok(Turn::More)
    }

    /// Fills an empty pipe.
    fn take(&mut self, from: &OwnedFd, to: &OwnedFd, pipes: &mut Pipes) -> rustix::io::Result<usize> {
        let pipe = self.pipe.insert(pipes.take()?);
        match move_bytes(from, &pipe.write, PIPE_SIZE) {
            Ok(0) if !is_at_mark(from.as_fd()) => {
                self.has_ended = true;
                Ok(0)
            }
            Ok(count @ 1..) => {
                self.level = count;
                Ok(count)
            }
            Ok(0) => self.carry_urgent(from, to),
            Err(Errno::AGAIN) if self.has_urgent && is_at_mark(from.as_fd()) => self.carry_urgent(from, to),
            Err(Errno::AGAIN) => {
                self.readable = false;
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// Hands over the urgent byte, which is next and in the stream (SO_OOBINLINE). It may have been announced only: then it
    /// is still to come, or the stream ends without it.
    fn carry_urgent(&mut self, from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<usize> {
        if !self.writable {
            return Ok(0);
        }
        let mut byte = [0];
        match recv(from, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((_, 0)) => {
                self.has_ended = true;
                return Ok(0);
            }
            Ok(_) => {}
            Err(Errno::AGAIN) => {
                self.readable = false;
                return Ok(0);
            }
            Err(error) => return Err(error),
        }
        match send(to, &byte, SendFlags::OOB | SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(_) => {
                recv(from, &mut byte, RecvFlags::DONTWAIT)?;
                self.has_urgent = false;
                self.total += 1;
                Ok(1)
            }
            Err(Errno::AGAIN) => {
                self.writable = false;
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    fn give(&mut self, to: &OwnedFd) -> rustix::io::Result<usize> {
        let Some(pipe) = &self.pipe else { return Ok(0) };
        match move_bytes(&pipe.read, to, self.level) {
            Ok(count) => {
                self.level = self.level.saturating_sub(count);
                self.total += count as u64;
                Ok(count)
            }
            Err(Errno::AGAIN) => {
                self.writable = false;
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    fn end(&mut self, to: &OwnedFd) -> rustix::io::Result<()> {
        if std::mem::replace(&mut self.is_shut, true) {
            return Ok(());
        }
        // From here on a close is an orderly end.
        sockopt::set_socket_linger(to, None)?;
        match shutdown(to, Shutdown::Write) {
            Err(Errno::NOTCONN) => Ok(()),
            done => done,
        }
    }
}

fn move_bytes(from: impl AsFd, to: impl AsFd, len: usize) -> rustix::io::Result<usize> {
    loop {
        match splice(&from, None, &to, None, len, SpliceFlags::NONBLOCK | SpliceFlags::MOVE) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;

    fn pair() -> (TcpStream, OwnedFd) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let near = listener.accept().unwrap().0;
        near.set_nonblocking(true).unwrap();
        (far, near.into())
    }

    /// Urgent bytes arrive as such, and so does what is behind them; an end of stream right behind one does not hide it.
    #[test]
    fn urgent_bytes_are_carried_over() {
        let ((sender, from), (mut receiver, to)) = (pair(), pair());
        sockopt::set_socket_oobinline(&from, true).unwrap();
        sockopt::set_socket_oobinline(&receiver, true).unwrap();
        let (mut pipes, mut direction) = (Pipes::default(), Direction::default());
        let say = |bytes: &[u8], flags| assert_eq!(send(&sender, bytes, flags), Ok(bytes.len()));
        let mut turn = || {
            (direction.readable, direction.writable, direction.has_urgent) = (true, true, true);
            direction.turn(&from, &to, &mut pipes).unwrap();
            direction.is_shut
        };
        say(b"before", SendFlags::empty());
        say(b"!", SendFlags::OOB);
        say(b"behind", SendFlags::empty());
        assert!(!turn());
        let mut text = [0; 20];
        // Reads end before an urgent byte.
        for part in ["before", "!behind"] {
            let count = receiver.read(&mut text).unwrap();
            assert_eq!(std::str::from_utf8(&text[..count]).unwrap(), part);
        }
        say(b"!", SendFlags::OOB);
        shutdown(&sender, Shutdown::Write).unwrap();
        assert!(turn());
        let mut rest = String::new();
        receiver.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "!");
        assert_eq!(direction.total, 14);
    }

    /// A receiver that stalls, then reads on: nothing is lost, the end comes last, and no pipe is held after.
    #[test]
    fn a_stalled_receiver_gets_everything_and_the_end() {
        let ((mut sender, from), (mut receiver, to)) = (pair(), pair());
        let (mut pipes, mut direction) = (Pipes::default(), Direction::default());
        let data: Vec<u8> = (0..30_000_000u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        let sent = data.clone();
        let writing = std::thread::spawn(move || sender.write_all(&sent).unwrap());
        (direction.readable, direction.writable) = (true, true);
        let mut turn = |readable, writable| {
            direction.readable |= readable;
            direction.writable |= writable;
            direction.turn(&from, &to, &mut pipes).unwrap();
            (direction.is_shut, direction.pipe.is_some())
        };
        while !turn(true, false).1 {}
        let (mut got, mut buffer) = (Vec::new(), vec![0; 1 << 20]);
        receiver.set_nonblocking(true).unwrap();
        loop {
            turn(true, true);
            match receiver.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => got.extend_from_slice(&buffer[..count]),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
        writing.join().unwrap();
        assert!(got == data, "{} of {}", got.len(), data.len());
        assert_eq!(turn(false, false), (true, false));
        assert_eq!(pipes.0.len(), 1);
    }
}
