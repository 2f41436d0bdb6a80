//! How our own processes talk: a SOCK_SEQPACKET pair, JSON in one message with descriptors beside it.
//!
//! launcher → monitor: what it made, with the descriptors; monitor → launcher: go on.
//! monitor → worker: its start, with its descriptors; worker → monitor: ready. The end of the channel at a worker means
//! that the monitor is gone. supervisor → factory: a job; the answer comes on a channel of the job's own.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SocketFlags, SocketType, recvmsg,
    socketpair,
};
use sendfd::SendWithFd;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of a message at most; the start of a worker is well under a kilobyte.
const MESSAGE_MAX: usize = 16 * 1024;
/// Descriptors beside one message at most.
pub const DESCRIPTORS_MAX: usize = 8;

/// One end. The standard library has no sequenced-packet socket; its datagram type makes the same system calls.
pub struct Channel(UnixDatagram);

/// What came.
pub enum Received<T> {
    Message(T, Vec<OwnedFd>),
    /// Nothing within the time given.
    Timeout,
    /// The other end is closed.
    Closed,
}

impl Channel {
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((a.into(), b.into()))
    }

    pub fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> anyhow::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        self.0.send_with_fd(&bytes, &fds).context("cannot send on a private channel")?;
        Ok(())
    }

    /// Waits for one message; without a timeout as long as it takes.
    pub fn receive<T: DeserializeOwned>(&self, timeout: Option<Duration>) -> anyhow::Result<Received<T>> {
        if let Some(timeout) = timeout
            && !self.readable(timeout)?
        {
            return Ok(Received::Timeout);
        }
        let mut bytes = vec![0; MESSAGE_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC);
        let received = match received {
            Err(rustix::io::Errno::CONNRESET) => return Ok(Received::Closed),
            other => other.context("cannot receive on a private channel")?,
        };
        let fds: Vec<OwnedFd> = ancillary
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        if received.bytes == 0 {
            return Ok(Received::Closed);
        }
        anyhow::ensure!(!received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC), "message cut short");
        let message = serde_json::from_slice(&bytes[..received.bytes]).context("malformed private message")?;
        Ok(Received::Message(message, fds))
    }

    /// True once the other end is closed and everything it sent has been read.
    pub fn is_closed(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO)?;
        Ok(fds[0].revents().is_some_and(|r| r.contains(PollFlags::POLLHUP)))
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    fn readable(&self, timeout: Duration) -> anyhow::Result<bool> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut fds, PollTimeout::try_from(timeout)?) {
                Err(nix::errno::Errno::EINTR) => {}
                other => return Ok(other? > 0),
            }
        }
    }
}

impl From<OwnedFd> for Channel {
    fn from(fd: OwnedFd) -> Self {
        Self(fd.into())
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.0.into()
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_its_descriptors_and_the_end() {
        let (a, b) = Channel::pair().unwrap();
        let (inner, passed) = Channel::pair().unwrap();
        a.send(&"start", &[passed.as_fd()]).unwrap();
        drop(passed);
        let Received::Message(text, mut fds) = b.receive::<String>(None).unwrap() else { panic!("no message") };
        assert_eq!((text.as_str(), fds.len()), ("start", 1));
        Channel::from(fds.remove(0)).send(&7, &[]).unwrap();
        assert!(matches!(inner.receive(None).unwrap(), Received::Message(7, _)));
        assert!(matches!(inner.receive::<u8>(None).unwrap(), Received::Closed));
        assert!(!b.is_closed().unwrap());
        assert!(matches!(b.receive::<u8>(Some(Duration::from_millis(1))).unwrap(), Received::Timeout));
        drop(a);
        assert!(b.is_closed().unwrap());
    }
}
