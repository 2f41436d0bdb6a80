//! The pipeline of one call: receive → copy → decode → facts → decide → act → reply.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use sidestep_seccomp_profile::syscalls::Stopped as SystemCall;

use crate::sys::listener::{Caller, Listener, Reply};

use super::active::{Active, Busy, Entry};
use super::decide::{Candidate, Ground, Verdict, Ways, candidate, with_routes};
use super::decode::{Call, socket_number};
use super::factory::Factory;
use super::facts::{Kind, SocketCookie, SocketFacts};
use super::in_place;
use super::ledger::{Ledger, MAX_ATTEMPTS, Phase, Slot};
use super::netfilter::{self, Netfilter};
use super::notification::Notification;
use super::route::{HostRoute, InsideRoute, Oracle};
use super::swap::Swap;
use super::tracee::{Tracee, TraceeError, TraceeFd, Tracees};
use super::waits::{End, Waits};

/// What every thread that answers shares.
pub struct Session {
    pub listener: Listener,
    pub ledger: Ledger,
    pub active: Active,
    pub tracees: Tracees,
    pub factory: Factory,
    pub inside: Oracle,
    pub netfilter: netfilter::Oracle,
    pub host: Oracle,
    pub ground: Ground,
    pub swap: Swap,
    pub waits: Waits,
    /// Landlock denies the workspace TCP bind and connect, so a call that cannot be looked at may go on.
    pub strict: bool,
}

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
}

/// What becomes of a call.
pub enum Outcome {
    Reply(Reply),
    /// The answer about a host socket in place. A caller that has left may come back for it with the same call.
    OnHostSocket {
        cookie: SocketCookie,
        reply: Reply,
    },
    /// A connect under way on a host socket in place, of which `host` is the supervisor's copy.
    Wait {
        host: OwnedFd,
        deadline: Option<Instant>,
    },
    /// Nobody waits for an answer any more.
    CallerLeft,
}

impl Session {
    /// One received call, from notification to reply or to the event loop.
    pub fn answer(self: &Arc<Self>, slot: Slot) {
        let notification = slot.notification();
        let outcome = match self.active.enter(notification.id, notification.tid, &slot, Instant::now()) {
            Err(Busy) => Outcome::errno(libc::EAGAIN),
            Ok(_) if slot.count_attempt() >= MAX_ATTEMPTS => Outcome::errno(libc::EIO),
            Ok(work) => self.handle(&slot, &notification, &work).unwrap_or_else(|e| self.unseen(&notification, e)),
        };
        self.conclude(slot, outcome);
    }

    /// A connect that waited in the event loop has come to an end. On a thread that may be lost.
    pub fn resume(self: &Arc<Self>, slot: Slot, host: OwnedFd, end: End) {
        let notification = slot.notification();
        let outcome = match self.active.enter(notification.id, notification.tid, &slot, Instant::now()) {
            Err(Busy) => Outcome::errno(libc::EAGAIN),
            Ok(_work) => self.swap.end_of_wait(host, end),
        };
        self.conclude(slot, outcome);
    }

    fn handle(&self, slot: &Slot, notification: &Notification, work: &Entry<'_>) -> Result<Outcome, TraceeError> {
        let &Notification { id, tid, .. } = notification;
        if notification.creates_epoll() {
            self.swap.epolls.created_by(tid);
            return Ok(Outcome::Reply(Reply::Continue));
        }
        let number = socket_number(notification);
        let (tracee, copy) = self.tracees.copy_descriptor(tid, number)?;
        let facts = SocketFacts::of(copy.as_fd()).map_err(|e| errno(&e));
        let (facts, call) = match (facts, Call::decode(notification)) {
            // connect(2) looks at the address before it asks for a socket, bind(2) afterwards (net/socket.c).
            (Err(libc::ENOTSOCK), Err(error)) if notification.call == Some(SystemCall::Connect) => return Err(error),
            (facts, call) => (facts.map_err(TraceeError::Errno)?, call?),
        };
        if !self.listener.is_waiting(id) {
            return Ok(Outcome::CallerLeft);
        }
        let verdict = self.decide(&call, &facts);
        tracing::debug!(tid, fd = number.0, ?call, ?verdict, "stopped call");
        Ok(self.act(Stopped { slot, id, tid, tracee, number, copy, facts }, &call, verdict, work))
    }

    fn decide(&self, call: &Call, facts: &SocketFacts) -> Verdict {
        match candidate(&self.ground, call, facts) {
            Candidate::Settled(verdict) => verdict,
            Candidate::Outward(destination) => {
                with_routes(&self.ground, destination, self.ways(destination, facts.uid))
            }
        }
    }

    /// Cheap questions first; what an answer makes superfluous is not asked.
    fn ways(&self, destination: SocketAddr, uid: u32) -> Ways {
        let ip = destination.ip().to_canonical();
        let inside = self.inside.inside(ip, uid, self.ground.tap_ifindex);
        let InsideRoute::OurTap { source } = inside else {
            return Ways { inside, netfilter: Netfilter::CouldTouch, host: HostRoute::None };
        };
        let netfilter = self.netfilter.ask(source, destination);
        let host = if netfilter == Netfilter::Untouched { self.host.host(ip) } else { HostRoute::None };
        Ways { inside, netfilter, host }
    }

    fn act(&self, stopped: Stopped<'_>, call: &Call, verdict: Verdict, work: &Entry<'_>) -> Outcome {
        if let Some(failure) = self.untold_failure(&stopped, call) {
            return failure;
        }
        match verdict {
            Verdict::Bypass(to) => match self.swap.bypass(&self.listener, stopped, to) {
                Ok(outcome) => outcome,
                Err(stopped) => self.in_place(stopped, call, work),
            },
            Verdict::InPlace(_) => self.in_place(stopped, call, work),
            Verdict::OnHostSocket => self.swap.on_host_socket(stopped),
            Verdict::Deny(errno, _) => Outcome::errno(errno),
            Verdict::Continue(_) => Outcome::Reply(Reply::Continue),
        }
    }

    /// The act in the socket's namespace; a host socket first becomes one of the workspace's again.
    fn in_place(&self, stopped: Stopped<'_>, call: &Call, work: &Entry<'_>) -> Outcome {
        let stopped = if stopped.facts.netns == self.ground.host && stopped.facts.kind == Kind::Tcp {
            match self.swap.back(&self.listener, &self.factory, stopped) {
                Ok(stopped) => stopped,
                Err(outcome) => return outcome,
            }
        } else {
            stopped
        };
        match call {
            Call::Connect(address) => in_place::connect(&stopped, work, address),
            Call::Bind(address) => in_place::bind(&stopped, &self.listener, &self.factory, address),
            &Call::Listen { backlog } if stopped.facts.kind == Kind::NotIp => {
                in_place::listen_as(&stopped, &self.factory, self.swap.userns.as_fd(), backlog)
            }
            &Call::Listen { backlog } => in_place::listen(&stopped, backlog),
        }
    }

    /// A connect on a host socket that failed is told of that once before it may try again, as by the kernel.
    fn untold_failure(&self, stopped: &Stopped<'_>, call: &Call) -> Option<Outcome> {
        let host_socket = stopped.facts.netns == self.ground.host && stopped.facts.kind == Kind::Tcp;
        (host_socket && call.is_connect_to_address()).then(|| self.swap.untold_failure(stopped)).flatten()
    }

    /// The answer to a call that could not be looked at.
    fn unseen(&self, notification: &Notification, error: TraceeError) -> Outcome {
        match error {
            TraceeError::Errno(errno) => Outcome::errno(errno),
            TraceeError::Gone => Outcome::CallerLeft,
            // An unreadable setuid program, say: its Unix sockets must go on working, and Landlock sees to the rest.
            TraceeError::NotPermitted if self.strict && notification.is_seen_by_landlock() => {
                Outcome::Reply(Reply::Continue)
            }
            TraceeError::NotPermitted => Outcome::errno(libc::EPERM),
        }
    }

    fn conclude(self: &Arc<Self>, slot: Slot, outcome: Outcome) {
        match outcome {
            Outcome::Wait { host, deadline } => return self.waits.start(self, slot, host, deadline),
            Outcome::Reply(reply) => {
                let _ = self.reply(&slot, reply);
            }
            Outcome::OnHostSocket { cookie, reply } => {
                if self.reply(&slot, reply) == Caller::Left {
                    self.swap.keep_result(cookie, reply);
                }
            }
            Outcome::CallerLeft => {}
        }
        self.ledger.release(slot);
    }

    /// The one place where answers are sent.
    pub fn reply(&self, slot: &Slot, reply: Reply) -> Caller {
        // The watch has answered when this thread was taken for lost.
        if !slot.set_answer(reply) {
            return Caller::Waiting;
        }
        self.send(slot.notification().id, reply)
    }

    /// Sends an answer that the ledger holds.
    pub fn send(&self, id: u64, reply: Reply) -> Caller {
        self.listener.send(id, reply).unwrap_or_else(|error| {
            tracing::error!(%error, ?reply, "the kernel does not take an answer");
            Caller::Left
        })
    }

    /// What a predecessor left behind: answered calls are answered again, others begin anew where they stand.
    pub fn recover(self: &Arc<Self>, slot: Slot) {
        if !self.listener.is_waiting(slot.notification().id) {
            self.ledger.release(slot);
        } else if slot.phase() == Phase::Answered {
            let _ = self.send(slot.notification().id, slot.answer());
            self.ledger.release(slot);
        } else {
            self.answer(slot);
        }
    }
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
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
