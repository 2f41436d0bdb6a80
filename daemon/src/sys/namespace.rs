//! Namespaces as descriptors: of a socket, their owners and parents (ioctl_ns(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// linux/sockios.h; libc has it for other systems only.
const SIOCGSKNS: libc::Ioctl = 0x894C;

/// The network namespace a socket belongs to. Needs CAP_NET_ADMIN in its owner.
pub fn of_socket(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    descriptor(socket, SIOCGSKNS)
}

/// The user namespace that owns a namespace.
pub fn owner(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    descriptor(namespace, libc::NS_GET_USERNS)
}

/// The user namespace around a user namespace. EPERM where that lies outside the caller's own.
pub fn parent(userns: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    descriptor(userns, libc::NS_GET_PARENT)
}

/// The user id, as seen here, that made a user namespace.
pub fn owner_uid(userns: BorrowedFd<'_>) -> io::Result<u32> {
    let mut uid: libc::uid_t = 0;
    // SAFETY: NS_GET_OWNER_UID writes one uid_t.
    let result = unsafe { libc::ioctl(userns.as_raw_fd(), libc::NS_GET_OWNER_UID, &raw mut uid) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(uid) }
}

/// What tells one namespace from another: the inode in nsfs.
pub fn identity(namespace: impl AsFd) -> io::Result<u64> {
    Ok(rustix::fs::fstat(namespace)?.st_ino)
}

fn descriptor(of: BorrowedFd<'_>, request: libc::Ioctl) -> io::Result<OwnedFd> {
    // SAFETY: these requests take no argument and return a new descriptor.
    let result = unsafe { libc::ioctl(of.as_raw_fd(), request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a non-negative result is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}
