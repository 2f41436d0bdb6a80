//! Socket options that neither rustix nor nix wraps.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sets SO_PEEK_OFF (socket(7)): where the next MSG_PEEK starts, counted from the first unread byte. Afterwards every
/// peek moves it forward and every read moves it back. TCP has it from Linux 6.9 (IPv4) and 6.11 (IPv6); before that
/// the call fails with EOPNOTSUPP.
pub fn set_peek_offset(socket: BorrowedFd<'_>, offset: i32) -> io::Result<()> {
    set_int(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, offset)
}

fn set_int(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    const LEN: libc::socklen_t = 4;
    // SAFETY: the descriptor is open for the borrow's length, and the kernel reads LEN = 4 bytes of `value`, an i32.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(&value).cast(), LEN) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
