//! The way into the workspace's own network namespace: what the factory makes there.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::factory::Factory;

/// The namespace, and who can make sockets in it.
pub struct Inside {
    factory: Arc<Factory>,
    userns: OwnedFd,
    netns: OwnedFd,
}

impl Inside {
    pub fn new(factory: Arc<Factory>, userns: &OwnedFd, netns: &OwnedFd) -> io::Result<Self> {
        Ok(Self { factory, userns: userns.try_clone()?, netns: netns.try_clone()? })
    }

    /// Where to ask which sockets there are.
    pub fn sock_diag(&self) -> io::Result<OwnedFd> {
        let kind = (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_SOCK_DIAG);
        self.factory.socket(self.userns.as_fd(), self.netns.as_fd(), kind)
    }

    /// Nonblocking TCP sockets, as many as one message carries.
    pub fn tcp_sockets(&self, ipv6: bool) -> io::Result<Vec<OwnedFd>> {
        let domain = if ipv6 { libc::AF_INET6 } else { libc::AF_INET };
        let kind = (domain, libc::SOCK_STREAM, 0);
        self.factory.sockets(self.userns.as_fd(), self.netns.as_fd(), kind, crate::channel::DESCRIPTORS_MAX)
    }
}
