//! The act in place: the call as the process made it, on its own socket in its own namespace, by the supervisor.
//!
//! Landlock denies the workspace TCP bind and connect of its own, and a call left to the kernel would read its address
//! again. The copy of the descriptor is the same open file, so everything the call changes, the process has changed.

use std::os::fd::{AsFd, BorrowedFd};

use crate::sys::listener::Listener;
use crate::sys::socket;

use super::active::Entry;
use super::factory::Factory;
use super::facts::Kind;
use super::privileged_port;
use super::session::{Outcome, Stopped};
use super::sockaddr::RawAddress;

/// connect(2). One that waits does so on this thread, which the watch interrupts when the caller has left.
pub fn connect(stopped: &Stopped<'_>, work: &Entry<'_>, address: &RawAddress) -> Outcome {
    let again = stopped.begin_act();
    let connect = || socket::connect(stopped.copy.as_fd(), address.bytes());
    let result = if may_wait(stopped) {
        match work.asleep(connect) {
            Ok(result) => result,
            Err(_) => return Outcome::errno(libc::EAGAIN),
        }
    } else {
        connect()
    };
    match result {
        Ok(()) => Outcome::SUCCESS,
        Err(e) => match e.raw_os_error() {
            // A predecessor began this very connect and died: its success is this call's.
            Some(libc::EISCONN) if again => Outcome::SUCCESS,
            Some(libc::EALREADY) if again => Outcome::errno(libc::EINPROGRESS),
            // Only the watch interrupts: there is nobody left to answer.
            Some(libc::EINTR) => Outcome::CallerLeft,
            errno => Outcome::errno(errno.unwrap_or(libc::EIO)),
        },
    }
}

/// Whether connect(2) may take as long as the network wants: MPTCP, SCTP and their like wait as TCP does.
fn may_wait(stopped: &Stopped<'_>) -> bool {
    let kind = || socket::int_option(stopped.copy.as_fd(), libc::SOL_SOCKET, libc::SO_TYPE);
    let connectionless = || matches!(kind(), Ok(libc::SOCK_DGRAM | libc::SOCK_RAW));
    !stopped.facts.nonblocking && (stopped.facts.kind == Kind::Tcp || !connectionless())
}

/// bind(2), with the permission check that the kernel would make for the process.
pub fn bind(stopped: &Stopped<'_>, listener: &Listener, factory: &Factory, address: &RawAddress) -> Outcome {
    if !stopped.facts.raw {
        match privileged_port::check(factory, &stopped.copy, stopped.tid, address) {
            // The credentials were read by thread number: a caller that left could have executed a setuid program since.
            Ok(()) if !listener.is_waiting(stopped.id) => return Outcome::CallerLeft,
            Ok(()) => {}
            Err(error) => {
                tracing::debug!(tid = stopped.tid, %error, "the port may not be bound");
                return Outcome::errno(error.raw_os_error().unwrap_or(libc::EACCES));
            }
        }
    }
    let again = stopped.begin_act();
    match socket::bind(stopped.copy.as_fd(), address.bytes()) {
        Err(e) if again && e.raw_os_error() == Some(libc::EINVAL) && is_bound_to(stopped, address) => Outcome::SUCCESS,
        result => Outcome::of(result),
    }
}

/// listen(2) on an IP socket: the credentials that a listening Unix socket would show do not exist here.
pub fn listen(stopped: &Stopped<'_>, backlog: i32) -> Outcome {
    stopped.begin_act();
    Outcome::of(socket::listen(stopped.copy.as_fd(), backlog))
}

/// listen(2) on a socket of another family, as the process: SO_PEERCRED shows clients who listened.
///
/// In the workspace's user namespace, where every id inside has a name; a nested one may have none for its own.
///
/// Never left to the kernel: the descriptor could be exchanged for a closed host socket, which listen(2) would bind.
pub fn listen_as(stopped: &Stopped<'_>, factory: &Factory, userns: BorrowedFd<'_>, backlog: i32) -> Outcome {
    stopped.begin_act();
    Outcome::of(factory.listen_as(userns, stopped.tid, stopped.copy.as_fd(), backlog))
}

/// Whether a bind that a predecessor began had happened.
fn is_bound_to(stopped: &Stopped<'_>, address: &RawAddress) -> bool {
    let mut name = [0; 128];
    let Ok(length) = socket::name(stopped.copy.as_fd(), &mut name) else { return false };
    let name = RawAddress::new(name.get(..length).unwrap_or(&[]));
    name.port() != 0 && (address.port() == 0 || address.port() == name.port())
}
