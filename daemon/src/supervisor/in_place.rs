//! The act in place: the call as the process made it, on its own socket in its own namespace, by the supervisor.
//!
//! Landlock denies the workspace TCP bind and connect of its own, and a call left to the kernel would read its address
//! again. The copy of the descriptor is the same open file, so everything the call changes, the process has changed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use crate::sys::listener::Listener;
use crate::sys::socket;

use super::active::Entry;
use super::factory::Factory;
use super::facts::{Kind, TcpState};
use super::privileged_port;
use super::sockaddr::{Meaning, RawAddress};
use super::stopped::{Outcome, Stopped};
use super::swap::{Memory, connect_deadline};

/// connect(2). One that waits does so on this thread, which the watch interrupts when the caller has left or its time is
/// over, and a later call of the caller's thread at once.
pub fn connect(
    listener: &Listener,
    stopped: &Stopped<'_>,
    memory: &Memory,
    work: &Entry<'_>,
    address: &RawAddress,
) -> Outcome {
    let cookie = stopped.facts.cookie;
    let connect = || socket::connect(stopped.copy.as_fd(), address.bytes());
    if address.meaning() == Meaning::Unspecified {
        stopped.begin_act();
        return Outcome::of(connect());
    }
    if !may_wait(stopped) {
        let again = stopped.begin_act();
        return Outcome::done(cookie, unless_begun(again, connect()));
    }
    let deadline = connect_deadline(stopped.copy.as_fd());
    if deadline.is_some() {
        if memory.waited(stopped.tid) == Some(cookie) && stopped.facts.state == TcpState::Connecting {
            return Outcome::errno(libc::EINTR);
        }
        memory.begins_to_wait(stopped.tid, cookie);
    }
    let until = stopped.slot.note_deadline(deadline);
    let again = stopped.begin_act();
    let is_over = || until.is_some_and(|until| until <= Instant::now());
    let asleep = || {
        stopped.slot.end_attempt();
        let mut result = connect();
        // Any process of this user may send a signal: only where nobody waits any longer does it end the sleep.
        while is_interrupted(&result) && !is_over() && listener.is_waiting(stopped.id) {
            result = connect();
        }
        stopped.slot.begin_attempt();
        result
    };
    match work.asleep(until, asleep) {
        // What the kernel says where it keeps the time itself.
        Ok(result) if is_interrupted(&result) && is_over() => Outcome::errno(libc::EINPROGRESS),
        // Nobody is left to answer.
        Ok(result) if is_interrupted(&result) => Outcome::CallerLeft,
        Ok(result) => Outcome::done(cookie, unless_begun(again, result)),
        Err(_) => Outcome::errno(libc::EAGAIN),
    }
}

/// A predecessor may have begun this very connect and died: its success is this call's.
fn unless_begun(again: bool, result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if again && e.raw_os_error() == Some(libc::EISCONN) => Ok(()),
        Err(e) if again && e.raw_os_error() == Some(libc::EALREADY) => {
            Err(io::Error::from_raw_os_error(libc::EINPROGRESS))
        }
        result => result,
    }
}

fn is_interrupted(result: &io::Result<()>) -> bool {
    matches!(result, Err(e) if e.raw_os_error() == Some(libc::EINTR))
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
        result => Outcome::done(stopped.facts.cookie, result),
    }
}

/// listen(2) where there are no credentials to be shown, as a listening Unix socket has them.
pub fn listen(stopped: &Stopped<'_>, backlog: i32) -> Outcome {
    stopped.begin_act();
    Outcome::of(socket::listen(stopped.copy.as_fd(), backlog))
}

/// listen(2) on a socket of another family; on a Unix socket as the process: SO_PEERCRED shows clients who listened.
///
/// In the workspace's user namespace, where every id inside has a name; a nested one may have none for its own.
///
/// Never left to the kernel: the descriptor could be exchanged for a closed host socket, which listen(2) would bind.
pub fn listen_as(stopped: &Stopped<'_>, factory: &Factory, userns: BorrowedFd<'_>, backlog: i32) -> Outcome {
    // Of the others one may have a lock that is held for ever (AF_VSOCK), which must cost no process of the factory's.
    if socket::int_option(stopped.copy.as_fd(), libc::SOL_SOCKET, libc::SO_DOMAIN).ok() != Some(libc::AF_UNIX) {
        return listen(stopped, backlog);
    }
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
