//! A kernel's notifications (netlink(7)), looked at and not read: that one has come says that something has changed.
//!
//! The kernel queues them before the change's own system call returns, so who looks first and asks then never takes an
//! old state for a new one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::sys::socket;

use super::netlink;

/// Taken at a time; what is left of a flood only makes the next look find a change again.
const A_LOOK: u32 = 1024;

pub struct Notices(OwnedFd);

impl Notices {
    /// `netlink`: a socket made in the namespace to hear of, for the protocol whose `groups` these are.
    pub fn join(netlink: OwnedFd, groups: &[u32]) -> io::Result<Self> {
        // A socket without a port gets no notifications.
        socket::bind(netlink.as_fd(), &netlink::any_port())?;
        for group in groups {
            let membership = libc::NETLINK_ADD_MEMBERSHIP;
            socket::set_option(netlink.as_fd(), libc::SOL_NETLINK, membership, &group.to_ne_bytes())?;
        }
        Ok(Self(netlink))
    }

    /// Whether any came since the last look; takes them.
    pub fn any(&self) -> io::Result<bool> {
        for taken in 0..A_LOOK {
            match recv(&self.0, &mut [0; 1], RecvFlags::DONTWAIT) {
                // ENOBUFS: there were more than the socket holds.
                Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(taken > 0),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
