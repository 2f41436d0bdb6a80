//! Sockets by their raw options and addresses: what std and nix have no type for.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use sidestep_seccomp_profile::rare_options::SO_BINDTOIFINDEX;

/// Reads a socket option into `value`, returns the bytes the kernel wrote.
pub fn option(socket: BorrowedFd<'_>, level: i32, name: i32, value: &mut [u8]) -> io::Result<usize> {
    let mut length = socklen(value.len())?;
    // SAFETY: the kernel writes at most `length` bytes to `value`, which has that many, and updates `length`.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut length) };
    check(result)?;
    usize::try_from(length).map_err(io::Error::other)
}

/// Reads an option that is an int.
pub fn int_option(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let mut value = [0; 4];
    option(socket, level, name, &mut value)?;
    Ok(i32::from_ne_bytes(value))
}

/// Reads an option that is a 64-bit number (SO_COOKIE, SO_NETNS_COOKIE).
pub fn u64_option(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<u64> {
    let mut value = [0; 8];
    option(socket, level, name, &mut value)?;
    Ok(u64::from_ne_bytes(value))
}

pub fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let length = socklen(value.len())?;
    // SAFETY: the kernel reads `length` bytes of `value`.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) })
}

/// One instruction of classic BPF: code, jumps when true and when false, operand.
pub type Instruction = (u16, u8, u8, u32);

/// Has a classic BPF program choose among the sockets of this one's SO_REUSEPORT group (socket(7)).
pub fn attach_reuseport_program(socket: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    let mut filter: Vec<_> = program.iter().map(|&(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k }).collect();
    let len = u16::try_from(filter.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    let length = socklen(size_of_val(&program))?;
    // SAFETY: the kernel reads `length` bytes of `program`, and `len` instructions of `filter`, which outlives the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            length,
        )
    })
}

/// connect(2) with the address as raw bytes. Blocks as the open file says.
pub fn connect(socket: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    let length = socklen(address.len())?;
    // SAFETY: the kernel copies `length` bytes of `address`, which needs no alignment.
    check(unsafe { libc::connect(socket.as_raw_fd(), address.as_ptr().cast(), length) })
}

/// bind(2) with the address as raw bytes.
pub fn bind(socket: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    let length = socklen(address.len())?;
    // SAFETY: as in `connect`.
    check(unsafe { libc::bind(socket.as_raw_fd(), address.as_ptr().cast(), length) })
}

/// listen(2) with the backlog unclamped, as the kernel does that itself.
pub fn listen(socket: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::listen(socket.as_raw_fd(), backlog) })
}

/// getsockname(2): the raw address, its length in bytes.
pub fn name(socket: BorrowedFd<'_>, address: &mut [u8; 128]) -> io::Result<usize> {
    let mut length = socklen(address.len())?;
    // SAFETY: the kernel writes at most `length` bytes to `address` and updates `length`.
    check(unsafe { libc::getsockname(socket.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut length) })?;
    usize::try_from(length).map_err(io::Error::other)
}

/// A new socket in this process's network namespace, close-on-exec and nonblocking.
pub fn new(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let descriptor = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, protocol) };
    check(descriptor.min(0))?;
    // SAFETY: a non-negative result is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Binds the socket to an interface. Without CAP_NET_RAW over the socket's namespace nobody takes that back.
pub fn bind_to_device(socket: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, SO_BINDTOIFINDEX, &index.to_ne_bytes())
}

/// Makes a netlink socket blocking, but not for long: answers are there when the request returns, and a lost one must
/// not hold anything up.
pub fn answers_soon(netlink: BorrowedFd<'_>) -> io::Result<()> {
    set_socket_timeout(netlink, Timeout::Recv, Some(Duration::from_millis(250)))?;
    Ok(rustix::io::ioctl_fionbio(netlink, false)?)
}

/// Whether somebody is to get signals about this open file (F_SETOWN); process groups read as negative numbers.
pub fn has_signal_owner(file: BorrowedFd<'_>) -> bool {
    // SAFETY: F_GETOWN takes no argument.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETOWN) != 0 }
}

fn socklen(length: usize) -> io::Result<libc::socklen_t> {
    libc::socklen_t::try_from(length).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
