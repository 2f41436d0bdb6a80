//! How our own processes talk: a SOCK_SEQPACKET pair, JSON in one message with descriptors beside it.
//!
//! launcher → monitor: what it made, with the descriptors; monitor → launcher: go on.
//! monitor → worker: its start, with its descriptors; worker → monitor: ready, and what port is removed. The end of the
//! channel at a worker means that the monitor is gone. supervisor → factory: a job; the answer comes on a channel of the
//! job's own. supervisor ⇄ forwarder: see [`crate::link`].

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use sendfd::SendWithFd;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of a message at most; a page of flows is the longest, the start of a worker is well under a kilobyte.
const MESSAGE_MAX: usize = 16 * 1024;
/// Descriptors beside one message at most.
pub const DESCRIPTORS_MAX: usize = 8;

/// One end. The standard library has no sequenced-packet socket; its datagram type makes the same system calls.
#[derive(Debug)]
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

    /// Sends one message, and waits while the other end has no room for it.
    pub fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> anyhow::Result<()> {
        let bytes = encoded(message, fds)?;
        let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        self.0.send_with_fd(&bytes, &fds).context("cannot send on a private channel")?;
        Ok(())
    }

    /// Sends one message, or gives false where that would have to wait.
    pub fn try_send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> anyhow::Result<bool> {
        let bytes = encoded(message, fds)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        // sendfd knows no flags.
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match retry_on_intr(|| sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut ancillary, flags)) {
            Err(Errno::AGAIN) => Ok(false),
            sent => sent.context("cannot send on a private channel").map(|_| true),
        }
    }

    /// Waits for one message; without a timeout as long as it takes, with one of zero not at all.
    pub fn receive<T: DeserializeOwned>(&self, timeout: Option<Duration>) -> anyhow::Result<Received<T>> {
        if let Some(timeout) = timeout.filter(|timeout| !timeout.is_zero())
            && !self.readable(timeout)?
        {
            return Ok(Received::Timeout);
        }
        let mut bytes = vec![0; MESSAGE_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        // Another reader of the same end may have been faster, which must not make a wait longer.
        let wait = if timeout.is_some() { RecvFlags::DONTWAIT } else { RecvFlags::empty() };
        let flags = RecvFlags::CMSG_CLOEXEC | wait;
        let received = match recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags) {
            Err(Errno::CONNRESET) => return Ok(Received::Closed),
            Err(Errno::AGAIN) => return Ok(Received::Timeout),
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

/// A message that a receiver has room for.
fn encoded<T: Serialize>(message: &T, fds: &[BorrowedFd<'_>]) -> anyhow::Result<Vec<u8>> {
    let bytes = serde_json::to_vec(message)?;
    anyhow::ensure!(bytes.len() <= MESSAGE_MAX, "a message of {} bytes", bytes.len());
    anyhow::ensure!(fds.len() <= DESCRIPTORS_MAX, "a message with {} descriptors", fds.len());
    Ok(bytes)
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

    #[test]
    fn a_full_channel_and_messages_that_are_too_large() {
        let (a, b) = Channel::pair().unwrap();
        let text = "x".repeat(MESSAGE_MAX - 2);
        let sent = (0..1000).take_while(|_| a.try_send(&text, &[]).unwrap()).count();
        assert!((1..1000).contains(&sent), "{sent}");
        for _ in 0..sent {
            assert!(matches!(b.receive::<String>(Some(Duration::ZERO)).unwrap(), Received::Message(..)));
        }
        assert!(matches!(b.receive::<String>(Some(Duration::ZERO)).unwrap(), Received::Timeout));
        assert!(a.try_send(&text, &[]).unwrap());
        assert!(a.try_send(&format!("{text}x"), &[]).is_err());
        assert!(a.try_send(&1, &[b.as_fd(); DESCRIPTORS_MAX + 1]).is_err());
    }
}
