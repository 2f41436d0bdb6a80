//! What the workers need of the host itself.

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access, getegid};

use super::{Check, Finding};
use crate::launcher::needs;
use crate::state_dir;
use crate::sys::socket;

/// The forwarder's ping sockets, icmp(7).
pub fn ping() -> Finding {
    let group = getegid().as_raw();
    match socket::new(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP) {
        Ok(_) => Finding::ok(Check::Ping, format!("net.ipv4.ping_group_range has group {group}")),
        Err(error) => Finding::warn(Check::Ping, needs::no_ping(&error, group)),
    }
}

/// Where the state directory would be made, if none is named. None is made.
pub fn state_dir() -> Finding {
    let parent = state_dir::usual_parent();
    let there = [Some(parent.as_path()), parent.parent()].into_iter().flatten().find(|path| path.exists());
    let usable = there.map_or(Err(Errno::ENOENT), |there| access(there, AccessFlags::W_OK | AccessFlags::X_OK));
    match usable {
        Ok(()) => Finding::ok(Check::StateDir, format!("in {}", parent.display())),
        Err(errno) => Finding::fail(Check::StateDir, needs::no_state_dir(&parent, &errno.into())),
    }
}
