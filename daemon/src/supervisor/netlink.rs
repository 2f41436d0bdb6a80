//! Netlink messages as bytes (netlink(7)): building requests, walking what comes back; one answer, or a dump to its end.
//! Nothing here knows a protocol.
//!
//! Everything is read through checked slices; what does not fit is an error, never a panic or a loop.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// struct nlmsghdr.
pub const HEADER: usize = 16;
/// The type without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const ATTRIBUTE_TYPE: u16 = 0x3fff;
/// What the kernel fills at a time in a dump, where there is room.
const DUMP_BUFFER: usize = 32 << 10;
/// Datagrams of a dump given up that are thrown away: 64 MB, as much as is ever read of one.
const DISCARDED: usize = 2048;
/// Answers to earlier requests, which nobody waits for any more, that are passed over for one that somebody does. It bounds
/// the wait, too: root of a workspace can send to such a socket as well.
const LATE_ANSWERS: usize = 64;

pub struct Request(Vec<u8>);

impl Request {
    /// `family_header` is what the protocol puts behind nlmsghdr: rtmsg, nfgenmsg. NLM_F_REQUEST is added to `flags`.
    pub fn new(kind: u16, flags: i32, sequence: u32, family_header: &[u8]) -> Self {
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST).unwrap_or(1);
        let mut bytes = Vec::with_capacity(128);
        bytes.extend([0; 4]);
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(family_header);
        Self(bytes)
    }

    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend(u16::try_from(4 + value.len()).unwrap_or(0).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub fn bytes(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(0);
        self.0.splice(..4, length.to_ne_bytes());
        self.0
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    /// The protocol's own header and the attributes.
    pub body: &'a [u8],
}

impl Message<'_> {
    /// Of NLMSG_ERROR, and of NLMSG_DONE, which may carry one too: a positive errno, or 0.
    fn errno(&self) -> io::Result<i32> {
        Ok(i32::from_ne_bytes(array(self.body, 0).ok_or_else(malformed)?).wrapping_neg())
    }
}

/// The messages of one datagram.
pub struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = io::Result<Message<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.0);
        let parsed = message(bytes);
        if let Ok(message) = &parsed {
            self.0 = bytes.get((HEADER + message.body.len()).next_multiple_of(4)..).unwrap_or(&[]);
        }
        Some(parsed)
    }
}

fn message(bytes: &[u8]) -> io::Result<Message<'_>> {
    let length = u32::from_ne_bytes(array(bytes, 0).ok_or_else(malformed)?);
    let length = usize::try_from(length).map_err(io::Error::other)?;
    Ok(Message {
        kind: u16::from_ne_bytes(array(bytes, 4).ok_or_else(malformed)?),
        flags: u16::from_ne_bytes(array(bytes, 6).ok_or_else(malformed)?),
        sequence: u32::from_ne_bytes(array(bytes, 8).ok_or_else(malformed)?),
        body: bytes.get(HEADER..length).ok_or_else(malformed)?,
    })
}

/// Type and value of each attribute.
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = io::Result<(u16, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = std::mem::take(&mut self.0);
        let length = usize::from(u16::from_ne_bytes(array(bytes, 0)?));
        let kind = u16::from_ne_bytes(array(bytes, 2)?) & ATTRIBUTE_TYPE;
        let Some(value) = bytes.get(4..length) else { return Some(Err(malformed())) };
        self.0 = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Ok((kind, value)))
    }
}

/// Attributes by type, those below `N`; the last of a type counts, as in the kernel.
pub fn table<const N: usize>(attributes: &[u8]) -> io::Result<[Option<&[u8]>; N]> {
    let mut table = [None; N];
    for attribute in Attributes(attributes) {
        let (kind, value) = attribute?;
        if let Some(place) = table.get_mut(usize::from(kind)) {
            *place = Some(value);
        }
    }
    Ok(table)
}

/// The answer to the request with this number; an error is what the kernel says instead of one.
pub fn answer<'b>(socket: &OwnedFd, sequence: u32, buffer: &'b mut [u8]) -> io::Result<Message<'b>> {
    for _ in 0..LATE_ANSWERS {
        let (length, _) = recv(socket, &mut *buffer, RecvFlags::empty())?;
        if first(buffer.get(..length).unwrap_or(&[]))?.sequence == sequence {
            let answer = first(buffer.get(..length).unwrap_or(&[]))?;
            return if i32::from(answer.kind) == libc::NLMSG_ERROR { Err(refusal(&answer)) } else { Ok(answer) };
        }
    }
    Err(malformed())
}

fn first(datagram: &[u8]) -> io::Result<Message<'_>> {
    Messages(datagram).next().ok_or_else(malformed)?
}

/// What an NLMSG_ERROR says. An acknowledgement is one as well, of errno 0, and nobody here asks for any.
fn refusal(error: &Message<'_>) -> io::Error {
    match error.errno() {
        Ok(errno) if errno > 0 => io::Error::from_raw_os_error(errno),
        Ok(_) => malformed(),
        Err(error) => error,
    }
}

/// Why a dump was not read.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    #[error("a netlink dump is larger than what is read of one")]
    TooLong,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Errno> for Unread {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

impl From<Unread> for io::Error {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Io(error) => error,
            Unread::TooLong => Self::other(unread),
        }
    }
}

/// Each message of the dump that was asked for with this number, of which `budget` says how many bytes are read. EINTR:
/// what is dumped has changed meanwhile, and the messages are of no one state.
pub fn dump(
    socket: &OwnedFd,
    sequence: u32,
    budget: &mut usize,
    take: impl FnMut(&Message<'_>) -> io::Result<()>,
) -> Result<(), Unread> {
    let dumped = to_the_end(socket, sequence, budget, take);
    if dumped.is_err() {
        // While there is more of it to come, no other dump begins (EBUSY).
        discard(socket)?;
    }
    dumped
}

fn to_the_end(
    socket: &OwnedFd,
    sequence: u32,
    budget: &mut usize,
    mut take: impl FnMut(&Message<'_>) -> io::Result<()>,
) -> Result<(), Unread> {
    let mut buffer = vec![0; DUMP_BUFFER];
    loop {
        let (_, length) = recv(socket, &mut buffer[..], RecvFlags::TRUNC)?;
        *budget = budget.checked_sub(length).ok_or(Unread::TooLong)?;
        for message in Messages(buffer.get(..length).ok_or_else(malformed)?) {
            let message = message?;
            if message.sequence != sequence {
                continue;
            }
            // Also of the last message, which comes after the last of the changes.
            if i32::from(message.flags) & libc::NLM_F_DUMP_INTR != 0 {
                return Err(Errno::INTR.into());
            }
            match i32::from(message.kind) {
                // With the error that ended it early (netlink_dump_done).
                libc::NLMSG_DONE if message.errno()? == 0 => return Ok(()),
                libc::NLMSG_DONE | libc::NLMSG_ERROR => return Err(refusal(&message).into()),
                _ => take(&message)?,
            }
        }
    }
}

/// Throws away what is there and what each look brings.
fn discard(socket: &OwnedFd) -> Result<(), Unread> {
    for _ in 0..DISCARDED {
        match recv(socket, &mut [0; 1], RecvFlags::DONTWAIT) {
            Ok(_) => {}
            Err(Errno::AGAIN) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(Unread::TooLong)
}

/// struct sockaddr_nl: a port that the kernel chooses, no groups.
pub fn any_port() -> [u8; 12] {
    let mut address = [0; 12];
    address[..2].copy_from_slice(&u16::try_from(libc::AF_NETLINK).unwrap_or(0).to_ne_bytes());
    address
}

pub fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

pub fn malformed() -> io::Error {
    io::Error::other("a malformed netlink message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_reads_back() {
        let first =
            Request::new(7, libc::NLM_F_DUMP, 9, &[1, 0, 0, 0]).attribute(1, b"abc").attribute(3, &[5; 8]).bytes();
        let both = [first.clone(), Request::new(8, 0, 10, &[]).bytes()].concat();
        let messages: Vec<_> = Messages(&both).collect::<io::Result<_>>().unwrap();
        let [one, two] = messages.as_slice() else { panic!("{messages:?}") };
        assert_eq!((one.kind, one.sequence, two.kind, two.body.len()), (7, 9, 8, 0));
        assert_eq!(i32::from(one.flags), libc::NLM_F_DUMP | libc::NLM_F_REQUEST);
        assert_eq!(table::<4>(&one.body[4..]).unwrap(), [None, Some(b"abc".as_slice()), None, Some(&[5; 8][..])]);
        assert_eq!(table::<2>(&one.body[4..]).unwrap(), [None, Some(b"abc".as_slice())], "types beyond are skipped");
    }

    #[test]
    fn truncated_messages_end() {
        let whole = Request::new(7, 0, 9, &[1, 0, 0, 0]).attribute(1, b"abc").bytes();
        for length in 1..whole.len() {
            assert!(Messages(&whole[..length]).all(|message| message.is_err()), "{length}");
        }
        assert!(Attributes(&[0, 0, 1, 0]).all(|attribute| attribute.is_err()), "a length of 0 does not loop");
        assert!(Attributes(&[9, 0, 1, 0, 7]).all(|attribute| attribute.is_err()));
    }

    /// A datagram of one message of this type, whose body is an int.
    fn message(kind: i32, flags: i32, sequence: u32, body: i32) -> Vec<u8> {
        let mut bytes = Request::new(u16::try_from(kind).unwrap(), 0, sequence, &body.to_ne_bytes()).bytes();
        bytes[6..8].copy_from_slice(&u16::try_from(flags).unwrap().to_ne_bytes());
        bytes
    }

    /// A socket that has these datagrams for its reader.
    fn saying(datagrams: &[Vec<u8>]) -> OwnedFd {
        let flags = rustix::net::SocketFlags::NONBLOCK;
        let (ours, kernels) =
            rustix::net::socketpair(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::DGRAM, flags, None)
                .unwrap();
        for datagram in datagrams {
            rustix::net::send(&kernels, datagram, rustix::net::SendFlags::empty()).unwrap();
        }
        // With the other end gone a datagram socket still gives EAGAIN where nothing is left.
        ours
    }

    const DONE: i32 = libc::NLMSG_DONE;
    const ERROR: i32 = libc::NLMSG_ERROR;
    const MULTI: i32 = libc::NLM_F_MULTI;

    #[test]
    fn a_dump_is_whole_or_it_is_none() {
        let (changed, one) = (MULTI | libc::NLM_F_DUMP_INTR, message(30, MULTI, 7, 1));
        let done = message(DONE, MULTI, 7, 0);
        let cases = [
            (vec![one.clone(), one.clone(), done.clone()], Ok(2)),
            (vec![[&one[..], &one, &done].concat()], Ok(2)),
            (vec![done.clone()], Ok(0)),
            // What is left of an earlier one.
            (vec![message(30, MULTI, 6, 1), message(DONE, MULTI, 6, 0), done.clone()], Ok(0)),
            // It ended early: a set that is gone, say.
            (vec![one.clone(), message(DONE, MULTI, 7, -libc::ENOENT)], Err(Some(libc::ENOENT))),
            (vec![message(ERROR, 0, 7, -libc::EOPNOTSUPP)], Err(Some(libc::EOPNOTSUPP))),
            // An acknowledgement says that something else was done.
            (vec![message(ERROR, 0, 7, 0)], Err(None)),
            (vec![message(30, changed, 7, 1), done.clone()], Err(Some(libc::EINTR))),
            (vec![one.clone(), message(DONE, changed, 7, 0)], Err(Some(libc::EINTR))),
            (vec![one.clone()], Err(Some(libc::EAGAIN))),
            (vec![one[..18].to_vec(), done], Err(None)),
        ];
        for (said, want) in cases {
            let socket = saying(&said);
            let mut taken = 0;
            let dumped = dump(&socket, 7, &mut 1000, |_| {
                taken += 1;
                Ok(())
            });
            let got = dumped.map(|()| taken).map_err(|unread| io::Error::from(unread).raw_os_error());
            assert_eq!(got, want, "{said:?}");
            assert_eq!(recv(&socket, &mut [0; 1], RecvFlags::empty()), Err(Errno::AGAIN), "left of {said:?}");
        }
    }

    #[test]
    fn what_is_too_long_or_not_wanted_is_thrown_away() {
        let said = [message(30, MULTI, 7, 1), message(30, MULTI, 7, 2), message(DONE, MULTI, 7, 0)];
        let socket = saying(&said);
        assert!(matches!(dump(&socket, 7, &mut 30, |_| Ok(())), Err(Unread::TooLong)));
        assert_eq!(recv(&socket, &mut [0; 1], RecvFlags::empty()), Err(Errno::AGAIN));
        let socket = saying(&said);
        assert!(matches!(dump(&socket, 7, &mut 1000, |_| Err(malformed())), Err(Unread::Io(_))));
        assert_eq!(recv(&socket, &mut [0; 1], RecvFlags::empty()), Err(Errno::AGAIN));
    }

    #[test]
    fn late_answers_are_passed_over() {
        let asked = |said: &[Vec<u8>]| {
            let mut buffer = [0; 100];
            let answer = answer(&saying(said), 7, &mut buffer).map(|message| message.kind);
            answer.map_err(|error| error.raw_os_error())
        };
        let late = message(24, 0, 6, 1);
        assert_eq!(asked(&[late.clone(), message(ERROR, 0, 5, -1), message(24, 0, 7, 1)]), Ok(24));
        assert_eq!(asked(&[message(ERROR, 0, 7, -libc::ENOENT)]), Err(Some(libc::ENOENT)));
        assert_eq!(asked(&[message(ERROR, 0, 7, 0)]), Err(None), "an acknowledgement");
        assert_eq!(asked(std::slice::from_ref(&late)), Err(Some(libc::EAGAIN)));
        for length in 0..late.len() {
            assert_eq!(asked(&[late[..length].to_vec()]), Err(None), "{length}");
        }
    }
}
