//! What the rules of a namespace are asked for with.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use crate::supervisor::factory::Factory;

/// What an [`Oracle`](super::Oracle) asks with, all of it made in the namespace to be asked.
pub struct Sources {
    /// NETLINK_NETFILTER sockets, one for notifications and one for dumps; None: this kernel has no nfnetlink.
    pub netlink: Option<(OwnedFd, OwnedFd)>,
    /// /proc/net/ip_tables_names and ip6_tables_names; None: this kernel has no legacy tables, or does not show them.
    pub legacy: [Option<OwnedFd>; 2],
}

/// Legacy tables that are there and not shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unseen {
    /// Taken for none: a limit of the workspace.
    Passed,
    /// Their namespace is not asked.
    Refused,
}

impl Sources {
    /// Made in `netns`, which `userns` owns.
    pub fn made_in(
        factory: &Factory,
        userns: BorrowedFd<'_>,
        netns: BorrowedFd<'_>,
        unseen: Unseen,
    ) -> io::Result<Self> {
        let socket = || factory.socket(userns, netns, (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER));
        let netlink = match socket() {
            Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => None,
            notices => Some((notices?, socket()?)),
        };
        let names = |ipv6| match factory.legacy_tables(userns, netns, ipv6) {
            Ok(names) => Ok(Some(names)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // Where nobody in the workspace is root, the kernel shows them to nobody.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && unseen == Unseen::Passed => {
                tracing::debug!("rules of iptables-legacy in the workspace are not seen");
                Ok(None)
            }
            Err(error) => Err(error),
        };
        Ok(Self { netlink, legacy: [names(false)?, names(true)?] })
    }
}
