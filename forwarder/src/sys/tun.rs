//! The ioctls of /dev/net/tun (Documentation/networking/tuntap.rst, linux/if_tun.h), one function each.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc::{c_int, c_uint, ifreq};

/// Checksums are left to the device: frames carry partial ones.
pub const TUN_F_CSUM: c_uint = 0x01;
pub const TUN_F_TSO4: c_uint = 0x02;
pub const TUN_F_TSO6: c_uint = 0x04;
/// TSO of segments with ECN bits.
pub const TUN_F_TSO_ECN: c_uint = 0x08;
/// UDP segmentation, Linux 6.2.
pub const TUN_F_USO4: c_uint = 0x20;
pub const TUN_F_USO6: c_uint = 0x40;

mod request {
    use nix::libc::{Ioctl, c_int, ifreq};

    nix::ioctl_write_ptr_bad!(set_iff, 0x4004_54ca, ifreq);
    nix::ioctl_write_int_bad!(set_offload, 0x4004_54d0);
    nix::ioctl_write_ptr_bad!(set_vnet_hdr_size, 0x4004_54d8, c_int);
    nix::ioctl_read_bad!(get_iff, 0x8004_54d2u32 as Ioctl, ifreq);
}

/// Attaches `tun`, a fresh /dev/net/tun descriptor, to the interface `name` in the caller's network namespace,
/// creating it when it is not there.
pub fn attach(tun: BorrowedFd<'_>, name: &str, flags: i16) -> io::Result<()> {
    let mut request = empty_ifreq();
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives through the call, with its name terminated.
    unsafe { request::set_iff(tun.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// The flags the interface was attached with (IFF_TAP, IFF_VNET_HDR and so on).
pub fn attached_flags(tun: BorrowedFd<'_>) -> io::Result<i16> {
    let mut request = empty_ifreq();
    // SAFETY: TUNGETIFF fills in one ifreq, which lives through the call.
    unsafe { request::get_iff(tun.as_raw_fd(), &raw mut request) }?;
    // SAFETY: TUNGETIFF sets the flags member of the union; every bit pattern is a valid i16.
    Ok(unsafe { request.ifr_ifru.ifru_flags })
}

/// Says how long the virtio-net header before every frame is.
pub fn set_vnet_header_size(tun: BorrowedFd<'_>, size: c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int, which lives through the call.
    unsafe { request::set_vnet_hdr_size(tun.as_raw_fd(), &raw const size) }?;
    Ok(())
}

/// Says which unfinished frames (TUN_F_*) the reader accepts; EINVAL when the kernel does not know one of them.
pub fn set_offload(tun: BorrowedFd<'_>, offloads: c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    unsafe { request::set_offload(tun.as_raw_fd(), offloads.cast_signed()) }?;
    Ok(())
}

fn empty_ifreq() -> ifreq {
    // SAFETY: ifreq is plain data; all zeroes is a valid value of each of its members.
    unsafe { std::mem::zeroed() }
}
