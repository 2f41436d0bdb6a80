//! Whether a process may bind a port below the first unprivileged one.
//!
//! The supervisor binds for the tracee and could bind anything in a namespace that it owns, so it asks the kernel's
//! question itself (inet_bind: ns_capable(net->user_ns, CAP_NET_BIND_SERVICE)): the capability counts in the user
//! namespace that owns the *socket's* network namespace, or in one around it. A root of a nested user namespace has
//! every capability and none of that worth.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::sys::{namespace, socket};

use super::factory::Factory;
use super::sockaddr::RawAddress;
use super::tracee;

const CAP_NET_BIND_SERVICE: u32 = 10;

/// The kernel's default. Ports from here on are taken for unprivileged in any namespace: a job of the factory is a lot for
/// each bind(2), and a namespace that asks for a privilege there protects its own processes from one another only.
const DEFAULT_START: u16 = 1024;

/// The rule for one bind. The error is what the kernel would answer.
pub fn check(factory: &Factory, socket: &OwnedFd, tid: u32, address: &RawAddress) -> io::Result<()> {
    let port = address.port();
    if port == 0 || port >= DEFAULT_START {
        return Ok(());
    }
    let netns = namespace::of_socket(socket.as_fd())?;
    let owner = namespace::owner(netns.as_fd())?;
    if port >= factory.unprivileged_port(owner.as_fd(), netns.as_fd())? || is_capable(owner.try_clone()?, tid)? {
        return Ok(());
    }
    // What else is wrong with the address and comes before its port (inet_bind, inet6_bind): a stand-in is told of that.
    let option = |name| socket::int_option(socket.as_fd(), libc::SOL_SOCKET, name);
    let kind = (option(libc::SO_DOMAIN)?, option(libc::SO_TYPE)?, option(libc::SO_PROTOCOL)?);
    let stand_in = factory.socket(owner.as_fd(), netns.as_fd(), kind)?;
    socket::bind(stand_in.as_fd(), address.before_port().bytes())?;
    Err(io::Error::from_raw_os_error(libc::EACCES))
}

/// cap_capable (security/commoncap.c) for one capability.
fn is_capable(owner: OwnedFd, tid: u32) -> io::Result<bool> {
    let credentials = tracee::credentials(tid)?;
    let own = namespace::identity(std::fs::File::open(format!("/proc/{tid}/ns/user"))?)?;
    let mut userns = owner;
    loop {
        if namespace::identity(&userns)? == own {
            return Ok(credentials.effective_capabilities >> CAP_NET_BIND_SERVICE & 1 != 0);
        }
        // Past the outermost namespace visible here, the tracee's own cannot lie.
        let Ok(parent) = namespace::parent(userns.as_fd()) else { return Ok(false) };
        // The owner of a user namespace has every capability in it, if it stands in the parent.
        if namespace::identity(&parent)? == own && namespace::owner_uid(userns.as_fd())? == credentials.euid {
            return Ok(true);
        }
        userns = parent;
    }
}
