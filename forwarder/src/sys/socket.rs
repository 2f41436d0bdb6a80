//! Socket options and control messages that rustix lacks.

use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sockopt};
use rustix::io::Errno;

mod request {
    nix::ioctl_read_bad!(at_mark, 0x8905, libc::c_int);
}

/// Sets SO_PEEK_OFF (socket(7)): where the next MSG_PEEK starts, counted from the first unread byte. Afterwards every
/// peek moves it forward and every read moves it back. TCP has it from Linux 6.9 (IPv4) and 6.11 (IPv6); before that
/// the call fails with EOPNOTSUPP.
pub fn set_peek_offset(socket: BorrowedFd<'_>, offset: i32) -> rustix::io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, offset)
}

/// Has the receive queue of a TCP socket hold a window of `size` bytes, within the kernel's limits. SO_RCVBUF would be
/// for good, and within smaller ones (net.core.rmem_max); SO_RCVLOWAT leaves what it needs behind, and nothing waits for
/// that much.
pub fn reserve_queue(socket: BorrowedFd<'_>, size: u32) {
    for least in [i32::try_from(size).unwrap_or(i32::MAX), 1] {
        // Failing leaves the queue as it was: slower over a long way.
        let _ = set_option(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, least);
    }
}

/// Has a datagram socket of IPv6 refuse (EMSGSIZE) what its device does not take in one packet, whatever is known of the
/// way beyond (IPV6_PMTUDISC_PROBE).
pub fn never_fragment(socket: BorrowedFd<'_>) -> rustix::io::Result<()> {
    set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
    set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1)
}

fn set_option(socket: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int, value: i32) -> rustix::io::Result<()> {
    const LEN: libc::socklen_t = 4;
    let pointer = std::ptr::from_ref(&value).cast();
    // SAFETY: the descriptor is open for the borrow's length, and the kernel reads LEN = 4 bytes of `value`, an i32.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, pointer, LEN) };
    if result == 0 { Ok(()) } else { Err(errno(nix::errno::Errno::last())) }
}

/// What the way to a TCP socket's other end and back takes, as far as its kernel has found out (tcp(7), TCP_INFO).
pub fn round_trip_ms(socket: BorrowedFd<'_>) -> u64 {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).unwrap_or(0);
    let (level, pointer) = (libc::IPPROTO_TCP, info.as_mut_ptr().cast());
    // SAFETY: the descriptor is open for the borrow's length; the kernel writes at most `len` bytes, the size of `info`.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, libc::TCP_INFO, pointer, &raw mut len) };
    // SAFETY: a tcp_info is numbers, for which all bits, and zeroes where the kernel wrote less, are valid.
    let info = unsafe { info.assume_init() };
    if result == 0 { u64::from(info.tcpi_rtt) / 1000 } else { 0 }
}

/// Whether the first unread byte is the urgent one (SIOCATMARK, tcp(7)).
pub fn is_at_mark(socket: BorrowedFd<'_>) -> bool {
    let mut answer = 0;
    // SAFETY: SIOCATMARK writes one int, which lives through the call.
    let asked = unsafe { request::at_mark(socket.as_raw_fd(), &raw mut answer) };
    asked.is_ok() && answer != 0
}

/// Asks for ICMP errors on the socket's error queue (IP_RECVERR, ip(7)), which an unconnected socket never sees else.
pub fn receive_errors(socket: &OwnedFd, is_ipv4: bool) -> rustix::io::Result<()> {
    let result = if is_ipv4 {
        nix::sys::socket::setsockopt(socket, sockopt::Ipv4RecvErr, &true)
    } else {
        nix::sys::socket::setsockopt(socket, sockopt::Ipv6RecvErr, &true)
    };
    result.map_err(errno)
}

/// Who made a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This host, when it was asked to send.
    Local,
    /// An ICMP or ICMPv6 message.
    Network {
        kind: u8,
        code: u8,
    },
    Other,
}

/// One report of a socket's error queue (`struct sock_extended_err`, ip(7)).
#[derive(Clone, Copy, Debug)]
pub struct ErrorReport {
    pub errno: Errno,
    pub origin: Origin,
    pub is_ipv4: bool,
    /// The MTU, where the report is about that.
    pub info: u32,
    /// Who sent the message.
    pub offender: Option<IpAddr>,
    /// Where the datagram in question went.
    pub destination: Option<SocketAddr>,
    /// How the datagram began.
    payload: [u8; QUOTED],
    payload_len: usize,
}

/// Bytes of a datagram's payload that are kept for the error about it.
const QUOTED: usize = 64;

impl ErrorReport {
    pub fn payload(&self) -> &[u8] {
        self.payload.get(..self.payload_len).unwrap_or_default()
    }
}

/// Takes the next report off the error queue (MSG_ERRQUEUE, recvmsg(2)).
pub fn next_error(socket: &OwnedFd) -> Option<ErrorReport> {
    let mut payload = [0; QUOTED];
    let mut parts = [IoSliceMut::new(&mut payload)];
    // The report and, where they were asked for, the TOS and the like.
    let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6, [libc::c_int; 8]);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(socket.as_fd().as_raw_fd(), &mut parts, Some(&mut control), flags).ok()?;
    let destination = message.address.as_ref().and_then(socket_addr);
    let payload_len = message.bytes;
    let (error, offender, is_ipv4) = message.cmsgs().ok()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4RecvErr(error, offender) => {
            Some((error, offender.map(|a| IpAddr::V4(u32::from_be(a.sin_addr.s_addr).into())), true))
        }
        ControlMessageOwned::Ipv6RecvErr(error, offender) => {
            Some((error, offender.map(|a| IpAddr::V6(a.sin6_addr.s6_addr.into())), false))
        }
        _ => None,
    })?;
    let origin = match error.ee_origin {
        libc::SO_EE_ORIGIN_LOCAL => Origin::Local,
        libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6 => {
            Origin::Network { kind: error.ee_type, code: error.ee_code }
        }
        _ => Origin::Other,
    };
    let errno = Errno::from_raw_os_error(error.ee_errno.cast_signed());
    let offender = offender.filter(|address| !address.is_unspecified());
    Some(ErrorReport { errno, origin, is_ipv4, info: error.ee_info, offender, destination, payload, payload_len })
}

pub(super) fn socket_addr(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|a| SocketAddr::from((a.ip(), a.port())));
    v4.or_else(|| address.as_sockaddr_in6().map(|&a| SocketAddr::V6(a.into())))
}

pub(super) fn errno(error: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(error as i32)
}
