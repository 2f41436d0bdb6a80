//! What stops and what is refused, with the reason for each; everything else runs at full speed.

use libc::c_long;

use crate::rare_options::IPV6_2292PKTOPTIONS;

/// A system call that stops and waits for the supervisor's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stopped {
    /// connect(2): where a socket is replaced by a host socket.
    Connect,
    /// bind(2): Landlock denies TCP bind in the workspace; the supervisor does it in place.
    Bind,
    /// listen(2): binds an unbound socket on the way, which Landlock does not see.
    Listen,
    /// epoll_create(2): goes on at once; the supervisor learns who may have registered a socket before its connect.
    #[cfg(target_arch = "x86_64")]
    EpollCreate,
    /// epoll_create1(2): the same.
    EpollCreate1,
    /// setsockopt(2) of one of the [`rare_options`](crate::rare_options): goes on at once; the supervisor learns of which
    /// options it has to look.
    Setsockopt,
}

impl Stopped {
    pub const ALL: &[Self] = &[
        Self::Connect,
        Self::Bind,
        Self::Listen,
        #[cfg(target_arch = "x86_64")]
        Self::EpollCreate,
        Self::EpollCreate1,
        Self::Setsockopt,
    ];

    pub const fn number(self) -> c_long {
        match self {
            Self::Connect => libc::SYS_connect,
            Self::Bind => libc::SYS_bind,
            Self::Listen => libc::SYS_listen,
            #[cfg(target_arch = "x86_64")]
            Self::EpollCreate => libc::SYS_epoll_create,
            Self::EpollCreate1 => libc::SYS_epoll_create1,
            Self::Setsockopt => libc::SYS_setsockopt,
        }
    }

    /// The call behind the number in a notification; None for one that this filter does not stop.
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.iter().copied().find(|call| call.number() == c_long::from(number))
    }
}

/// A system call that is answered by the kernel with an errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    pub number: c_long,
    pub errno: i32,
    /// Refused only when all of these hold.
    pub when: &'static [Argument],
}

/// A condition on an argument: of its bits in `mask`, exactly those in `value` are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argument {
    pub index: u32,
    pub mask: u64,
    pub value: u64,
}

impl Argument {
    pub const fn has_bits(index: u32, bits: i32) -> Self {
        Self { index, mask: bits as u64, value: bits as u64 }
    }

    pub const fn has_none_of(index: u32, bits: i32) -> Self {
        Self { index, mask: bits as u64, value: 0 }
    }

    /// The kernel takes the argument as an int: whatever is in its high half must not hide it from the filter.
    pub const fn is_int(index: u32, value: i32) -> Self {
        Self { index, mask: u32::MAX as u64, value: value as u64 }
    }
}

const fn refused(number: c_long, errno: i32) -> Refused {
    Refused { number, errno, when: &[] }
}

/// connect and send in one call: it would carry an address past the supervisor. Programs fall back to connect(2) on
/// EOPNOTSUPP, which is also what a kernel with TCP Fast Open switched off answers.
const fn fast_open(number: c_long, when: &'static [Argument]) -> Refused {
    Refused { number, errno: libc::EOPNOTSUPP, when }
}

const fn routing_header(when: &'static [Argument]) -> Refused {
    Refused { number: libc::SYS_setsockopt, errno: libc::EPERM, when }
}

pub const REFUSED: [Refused; 9] = [
    fast_open(libc::SYS_sendto, &[Argument::has_bits(3, libc::MSG_FASTOPEN)]),
    fast_open(libc::SYS_sendmsg, &[Argument::has_bits(2, libc::MSG_FASTOPEN)]),
    fast_open(libc::SYS_sendmmsg, &[Argument::has_bits(3, libc::MSG_FASTOPEN)]),
    // From Linux 5.18 to 6.19 the upper layer protocol "smc" turns a TCP socket that is not connected into one of family
    // AF_SMC, whose connect and listen carry IP addresses without being seen by Landlock. ENOENT is what a kernel without
    // the protocol asked for answers; programs fall back to TLS of their own.
    Refused {
        number: libc::SYS_setsockopt,
        errno: libc::ENOENT,
        when: &[Argument::is_int(1, libc::IPPROTO_TCP), Argument::is_int(2, libc::TCP_ULP)],
    },
    // A routing header sends what a connection says to another address first, which nobody has asked the policy about:
    // set on a socket of the host's it takes no privilege. EPERM is what the other extension headers get without one.
    routing_header(&[Argument::is_int(1, libc::IPPROTO_IPV6), Argument::is_int(2, libc::IPV6_RTHDR)]),
    routing_header(&[Argument::is_int(1, libc::IPPROTO_IPV6), Argument::is_int(2, IPV6_2292PKTOPTIONS)]),
    // A ring connects, binds and listens without a system call that a filter sees. EPERM is what container runtimes
    // answer, and what programs fall back on.
    refused(libc::SYS_io_uring_setup, libc::EPERM),
    refused(libc::SYS_io_uring_enter, libc::EPERM),
    refused(libc::SYS_io_uring_register, libc::EPERM),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_calls_agree() {
        for &call in Stopped::ALL {
            assert_eq!(i32::try_from(call.number()).ok().and_then(Stopped::from_number), Some(call));
        }
        assert_eq!(Stopped::from_number(-1), None);
        assert_eq!(Stopped::from_number(i32::try_from(libc::SYS_close).unwrap()), None);
    }
}
