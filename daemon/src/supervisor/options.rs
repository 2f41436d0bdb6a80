//! What a process has set on a socket, carried to the socket that replaces it.
//!
//! Options are compared with a pristine socket of the same namespace and only differences are set: most values read
//! back differently from what set them (SO_SNDBUF doubles, TCP_MAXSEG has a default that must not be set), and a socket
//! nobody touched costs no setsockopt at all. An option that cannot be carried keeps the socket in place.
//!
//! Rare options are read only once somebody in the workspace has set one of them ([`super::touched`]): reading all of them
//! was a quarter of what a connect costs.

mod known;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use sidestep_seccomp_profile::rare_options::SO_BINDTOIFINDEX;

use crate::sys::socket;

use super::facts::Kind;
use super::reason::Reason;
use super::touched::OptionSet;

use self::known::{
    CARRIED, CARRIED_LAST, CARRIED_LISTENING, FILTERS, IPV6_HEADERS, KEEPS_IN_PLACE, SocketOption, general, options_of,
};

/// asm-generic/socket.h; libc lacks it for this target. Its bits are linux/socket.h's.
const SO_BUF_LOCK: i32 = 72;
const SOCK_SNDBUF_LOCK: i32 = 1;
const SOCK_RCVBUF_LOCK: i32 = 2;

/// The largest option: struct timeval, 16 bytes; a congestion control's name has as many.
const VALUE: usize = 16;

/// An option's value as the kernel writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Value {
    bytes: [u8; VALUE],
    length: usize,
}

impl Value {
    /// None: this kernel or this socket does not have the option.
    fn read(from: BorrowedFd<'_>, option: SocketOption) -> Option<Self> {
        let mut bytes = [0; VALUE];
        let length = socket::option(from, option.level, option.name, &mut bytes).ok()?;
        Some(Self { bytes, length: length.min(VALUE) })
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&self.bytes)
    }
}

/// What an untouched socket of one namespace, kind and family reads.
pub struct Pristine {
    ipv6: bool,
    carried: Vec<PristineValue>,
    listening: Vec<PristineValue>,
    keeps_in_place: Vec<PristineValue>,
}

struct PristineValue {
    option: SocketOption,
    value: Value,
    changed_by: OptionSet,
}

impl PristineValue {
    fn is_on(&self, socket: BorrowedFd<'_>) -> bool {
        Value::read(socket, self.option) == Some(self.value)
    }

    fn differs(&self, socket: BorrowedFd<'_>) -> Option<(SocketOption, Value)> {
        Value::read(socket, self.option).filter(|value| *value != self.value).map(|value| (self.option, value))
    }
}

/// What a process changed on its socket.
#[derive(Debug, Default)]
pub struct Difference {
    values: Vec<(SocketOption, Value)>,
}

/// Options that a socket did not take (a congestion control the host lacks, a priority the host's kernel refuses us).
pub static NOT_CARRIED: AtomicU64 = AtomicU64::new(0);

impl Pristine {
    /// `untouched` is a socket of that kind just made.
    pub fn read(untouched: BorrowedFd<'_>, kind: Kind, ipv6: bool) -> Self {
        let read = |options: &[&[SocketOption]]| {
            let options = options.iter().copied().flatten().filter(|option| ipv6 || !option.ipv6_only);
            let read = |&option: &SocketOption| {
                let value = Value::read(untouched, option)?;
                Some(PristineValue { option, value, changed_by: option.changed_by() })
            };
            options.filter_map(read).collect()
        };
        let (carried, keeps_in_place) = options_of(kind);
        Self {
            ipv6,
            carried: read(&[&CARRIED, carried, &[CARRIED_LAST]]),
            listening: if kind == Kind::Udp { Vec::new() } else { read(&[&CARRIED_LISTENING]) },
            keeps_in_place: read(&[&KEEPS_IN_PLACE, keeps_in_place]),
        }
    }

    /// For host sockets that are bound to an interface when they are made.
    pub fn whatever_interface(mut self) -> Self {
        self.keeps_in_place.retain(|pristine| pristine.option != general(SO_BINDTOIFINDEX));
        self
    }

    /// What differs on `socket`, or why it must stay in its namespace. On it nothing else was set than what is `touched`.
    pub fn difference(&self, socket: BorrowedFd<'_>, touched: OptionSet) -> Result<Difference, Reason> {
        let is_read = |pristine: &&PristineValue| pristine.changed_by.meets(touched);
        // One that cannot be read is not known to be as it was.
        if self.keeps_in_place.iter().filter(is_read).any(|pristine| !pristine.is_on(socket)) {
            return Err(Reason::SocketOption);
        }
        let any = |options: &[SocketOption]| options.iter().any(|option| option.named().meets(touched));
        if any(&FILTERS) && has_filter(socket) {
            return Err(Reason::SocketFilter);
        }
        if self.ipv6 && any(&IPV6_HEADERS) && has_ipv6_headers(socket) {
            return Err(Reason::ExtensionHeaders);
        }
        let carried = self.carried.iter().filter(is_read);
        let mut values: Vec<_> = carried.filter_map(|pristine| pristine.differs(socket)).collect();
        if values.iter().any(|(option, value)| takes_privilege(*option, value)) {
            return Err(Reason::Priority);
        }
        values.extend(locked_buffers(socket));
        Ok(Difference { values })
    }

    /// The same for a socket that is to listen.
    pub fn difference_listening(&self, socket: BorrowedFd<'_>, touched: OptionSet) -> Result<Difference, Reason> {
        let mut difference = self.difference(socket, touched)?;
        if difference.values.iter().any(|(option, _)| *option == general(libc::SO_REUSEPORT)) {
            return Err(Reason::SharedPort);
        }
        difference.values.extend(self.listening.iter().filter_map(|pristine| pristine.differs(socket)));
        Ok(difference)
    }
}

impl Difference {
    /// Whether `to` took everything; what it can take it has in any case.
    pub fn apply(&self, to: BorrowedFd<'_>) -> bool {
        let mut whole = true;
        for (option, value) in &self.values {
            if let Err(error) = socket::set_option(to, option.level, option.name, value.bytes()) {
                NOT_CARRIED.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(?option, %error, "a socket option is not carried over");
                whole = false;
            }
        }
        whole
    }
}

/// A socket filter; asking with no room returns the number of instructions, or an error about an
/// eBPF program, which has none to show.
fn has_filter(socket: BorrowedFd<'_>) -> bool {
    socket::option(socket, libc::SOL_SOCKET, libc::SO_GET_FILTER, &mut []).map_or(true, |length| length != 0)
}

/// A priority that takes CAP_NET_ADMIN: the workspace's root has that over its own network, and the supervisor over none,
/// so no host socket need be made to find out.
fn takes_privilege(option: SocketOption, value: &Value) -> bool {
    const UNPRIVILEGED: std::ops::RangeInclusive<i32> = 0..=6;
    let number = value.bytes().first_chunk().map_or(-1, |bytes| i32::from_ne_bytes(*bytes));
    option == general(libc::SO_PRIORITY) && !UNPRIVILEGED.contains(&number)
}

/// Sticky extension headers (RFC 3542).
fn has_ipv6_headers(socket: BorrowedFd<'_>) -> bool {
    IPV6_HEADERS.into_iter().any(|option| {
        let mut value = [0; VALUE];
        // A header longer than the room is an error, and is there too.
        socket::option(socket, option.level, option.name, &mut value).map_or_else(is_too_small, |length| length != 0)
    })
}

fn is_too_small(error: io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
}

/// Buffer sizes the process fixed. They read doubled, and setting one that was not fixed would end autotuning.
fn locked_buffers(from: BorrowedFd<'_>) -> Vec<(SocketOption, Value)> {
    let locks = socket::int_option(from, libc::SOL_SOCKET, SO_BUF_LOCK).unwrap_or(0);
    let fixed = [(SOCK_SNDBUF_LOCK, libc::SO_SNDBUF), (SOCK_RCVBUF_LOCK, libc::SO_RCVBUF)];
    let fixed = fixed.into_iter().filter(|(bit, _)| locks & bit != 0);
    fixed
        .filter_map(|(_, name)| {
            let size = socket::int_option(from, libc::SOL_SOCKET, name).ok()? / 2;
            let mut bytes = [0; VALUE];
            bytes.first_chunk_mut().map(|start: &mut [u8; 4]| *start = size.to_ne_bytes())?;
            Some((general(name), Value { bytes, length: 4 }))
        })
        .collect()
}

#[cfg(test)]
mod tests;
