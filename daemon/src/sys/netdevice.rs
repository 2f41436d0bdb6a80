//! One fact about a network device of the current namespace that needs no netlink: its MTU (netdevice(7)).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// The MTU of the device called `name`.
pub fn mtu(name: &str) -> io::Result<u32> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut request = request(name)?;
    // SAFETY: SIOCGIFMTU takes an ifreq with a terminated name and fills in ifru_mtu.
    if unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the ioctl succeeded, so that this member of the union is the one filled in.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    u32::try_from(mtu).map_err(io::Error::other)
}

/// An ifreq naming a device: at most 15 bytes and a terminating zero.
fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is made of integers and arrays of them: all zero is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}
