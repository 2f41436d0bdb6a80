//! A stopped call on its way through the [`session`](super::session), and what becomes of it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use crate::sys::listener::Reply;

use super::facts::{SocketCookie, SocketFacts};
use super::ledger::{Phase, Slot};
use super::nested::Namespace;
use super::tracee::{Tracee, TraceeFd};

/// A call whose caller waits, with what was learned about it.
pub struct Stopped<'a> {
    pub slot: &'a Slot,
    pub id: u64,
    pub tid: u32,
    pub tracee: Arc<Tracee>,
    pub number: TraceeFd,
    /// The caller's open file.
    pub copy: OwnedFd,
    pub facts: SocketFacts,
    /// Of a host socket under `--bypass-nested`: its caller's network namespace, where that is not the workspace.
    pub netns: Option<OwnedFd>,
    /// The nested namespace that was asked about a connection of this socket.
    pub nested: Option<Arc<Namespace>>,
}

/// What becomes of a call.
pub enum Outcome {
    Reply(Reply),
    /// The answer about something that was done to a socket. A caller that has left may come back for it with the
    /// same call, and doing it again would give another.
    Done {
        cookie: SocketCookie,
        reply: Reply,
    },
    Wait(Wait),
    /// Nobody waits for an answer any more.
    CallerLeft,
}

/// A connect under way on a host socket in place.
pub struct Wait {
    /// The supervisor's copy of it.
    pub host: OwnedFd,
    pub cookie: SocketCookie,
    /// When SO_SNDTIMEO runs out, and what connect(2) says then.
    pub deadline: Option<Instant>,
    pub late: i32,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Ready,
    TimedOut,
    CallerLeft,
}

impl Stopped<'_> {
    /// Written down before anything the workspace can see is done; true when a predecessor had come so far.
    pub fn begin_act(&self) -> bool {
        let again = self.slot.phase() == Phase::Acting;
        self.slot.set_phase(Phase::Acting);
        again
    }
}

impl Outcome {
    pub const SUCCESS: Self = Self::Reply(Reply::Return(0));

    pub const fn errno(errno: i32) -> Self {
        Self::Reply(Reply::Errno(errno))
    }

    pub fn of(result: io::Result<()>) -> Self {
        match result {
            Ok(()) => Self::SUCCESS,
            Err(e) => Self::errno(errno(&e)),
        }
    }

    pub fn done(cookie: SocketCookie, result: io::Result<()>) -> Self {
        let reply = result.map_or_else(|e| Reply::Errno(errno(&e)), |()| Reply::Return(0));
        Self::Done { cookie, reply }
    }
}

/// EIO for an error that is none of the kernel's.
pub fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
