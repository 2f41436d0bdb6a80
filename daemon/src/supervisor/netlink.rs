//! Netlink messages as bytes (netlink(7)): building requests, walking what comes back, a dump to its end. Nothing here
//! knows a protocol.
//!
//! Everything is read through checked slices; what does not fit is an error, never a panic or a loop.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{RecvFlags, recv};

/// struct nlmsghdr.
pub const HEADER: usize = 16;
/// The type without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const ATTRIBUTE_TYPE: u16 = 0x3fff;
/// What the kernel fills at a time in a dump, where there is room.
const DUMP_BUFFER: usize = 32 << 10;

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
    pub fn errno(&self) -> io::Result<i32> {
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

/// Each message of the dump that was asked for with this number.
pub fn dump(socket: &OwnedFd, sequence: u32, mut take: impl FnMut(&Message<'_>) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0; DUMP_BUFFER];
    loop {
        let (_, length) = recv(socket, &mut buffer[..], RecvFlags::TRUNC)?;
        for message in Messages(buffer.get(..length).ok_or_else(malformed)?) {
            let message = message?;
            if message.sequence != sequence {
                // What is left of a dump that was given up.
                continue;
            }
            match i32::from(message.kind) {
                libc::NLMSG_DONE | libc::NLMSG_ERROR => {
                    return match message.errno()? {
                        errno if errno > 0 => Err(io::Error::from_raw_os_error(errno)),
                        _ => Ok(()),
                    };
                }
                _ => take(&message)?,
            }
        }
    }
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
}
