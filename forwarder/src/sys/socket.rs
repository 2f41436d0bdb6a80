//! Socket options and control messages that rustix lacks.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, sockopt};
use rustix::io::Errno;

mod request {
    nix::ioctl_read_bad!(at_mark, 0x8905, libc::c_int);
}

/// Sets SO_PEEK_OFF (socket(7)): where the next MSG_PEEK starts, counted from the first unread byte. Afterwards every
/// peek moves it forward and every read moves it back. TCP has it from Linux 6.9 (IPv4) and 6.11 (IPv6); before that
/// the call fails with EOPNOTSUPP.
pub fn set_peek_offset(socket: BorrowedFd<'_>, offset: i32) -> io::Result<()> {
    const LEN: libc::socklen_t = 4;
    let value = std::ptr::from_ref(&offset).cast();
    // SAFETY: the descriptor is open for the borrow's length, and the kernel reads LEN = 4 bytes of `offset`, an i32.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, value, LEN) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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

/// Sends `payload` as datagrams of `size` bytes (UDP_SEGMENT, udp(7)).
pub fn send_segments(socket: &OwnedFd, payload: &[u8], to: SocketAddr, size: u16) -> rustix::io::Result<usize> {
    let control = [ControlMessage::UdpGsoSegments(&size)];
    let to = SockaddrStorage::from(to);
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg(socket.as_fd().as_raw_fd(), &[IoSlice::new(payload)], &control, flags, Some(&to)).map_err(errno)
}

/// One report of a socket's error queue.
#[derive(Clone, Copy, Debug)]
pub struct ErrorReport {
    pub errno: Errno,
    /// Where the datagram in question went.
    pub destination: Option<SocketAddr>,
}

/// Takes the next report off the error queue (MSG_ERRQUEUE, recvmsg(2)).
pub fn next_error(socket: &OwnedFd) -> Option<ErrorReport> {
    let mut payload = [0; 64];
    let mut parts = [IoSliceMut::new(&mut payload)];
    let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(socket.as_fd().as_raw_fd(), &mut parts, Some(&mut control), flags).ok()?;
    let destination = message.address.and_then(|address| {
        let v4 = address.as_sockaddr_in().map(|a| SocketAddr::from((a.ip(), a.port())));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| SocketAddr::from((a.ip(), a.port()))))
    });
    let raw = message.cmsgs().ok()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => Some(error.ee_errno),
        _ => None,
    })?;
    Some(ErrorReport { errno: Errno::from_raw_os_error(raw.cast_signed()), destination })
}

fn errno(error: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(error as i32)
}
