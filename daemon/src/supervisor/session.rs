//! The pipeline of one call: receive → copy → decode → facts → decide → act → reply.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use sidestep_seccomp_profile::syscalls::Stopped as SystemCall;

use crate::sys::listener::{Caller, Listener, Reply};
use crate::sys::{namespace, socket};

use super::active::{Active, Busy, Entry};
use super::counters::Counters;
use super::decide::{Ground, Verdict};
use super::decode::{Call, socket_number};
use super::factory::Factory;
use super::facts::{Bound, Kind, SocketFacts, TcpState};
use super::host_listener::HostListeners;
use super::in_place;
use super::ledger::{Ledger, MAX_ATTEMPTS, Phase, Slot};
use super::nested::{self, Nested};
use super::netfilter;
use super::notification::Notification;
use super::route::Oracle;
use super::sockaddr::Meaning;
use super::stopped::{End, Outcome, Stopped, Wait, errno};
use super::swap::Swap;
use super::tracee::{TraceeError, Tracees};
use super::turns::Turn;
use super::waits::Waits;

/// What every thread that answers shares.
pub struct Session {
    pub listener: Listener,
    pub ledger: Ledger,
    /// What a predecessor had received and not answered: taken up before anything new.
    pub inherited: Mutex<Vec<Slot>>,
    pub active: Active,
    pub tracees: Tracees,
    pub factory: Arc<Factory>,
    pub inside: Oracle,
    pub netfilter: netfilter::Oracle,
    /// None: without `--bypass-nested`.
    pub nested: Option<Nested>,
    pub host: Oracle,
    pub ground: Ground,
    pub swap: Swap,
    pub host_listeners: Arc<HostListeners>,
    pub waits: Waits,
    pub counters: Arc<Counters>,
    /// Landlock denies the workspace TCP bind and connect, so a call that cannot be looked at may go on.
    pub strict: bool,
}

impl Session {
    /// One received call, from notification to reply or to the event loop. `done` is told when nothing but the reply is
    /// left to do, if it comes to that.
    pub fn answer(self: &Arc<Self>, slot: Slot, done: impl FnOnce()) {
        let notification = slot.notification();
        self.counters.call(notification.call);
        let entered = self.active.enter(notification.id, notification.tid, &slot, Instant::now());
        let outcome = match &entered {
            Err(Busy) => self.busy(),
            Ok(_) if slot.begin_attempt() >= MAX_ATTEMPTS => {
                self.counters.given_up.count();
                Outcome::errno(libc::EIO)
            }
            Ok(work) => self.handle(&slot, &notification, work).unwrap_or_else(|e| self.unseen(&notification, e)),
        };
        if !matches!(outcome, Outcome::Wait(_)) {
            done();
        }
        self.conclude(slot, outcome, entered.ok());
    }

    /// A connect that waited in the event loop has come to an end. On a thread that may be lost.
    pub fn resume(self: &Arc<Self>, slot: Slot, wait: Wait, end: End) {
        let notification = slot.notification();
        slot.begin_attempt();
        let entered = self.active.enter(notification.id, notification.tid, &slot, Instant::now());
        let outcome = match entered {
            Err(Busy) => self.busy(),
            // The result can be taken once: it is not for a call that nobody waits in.
            Ok(_) if !self.listener.is_waiting(notification.id) => Outcome::CallerLeft,
            Ok(_) => self.swap.end_of_wait(wait, end),
        };
        self.conclude(slot, outcome, entered.ok());
    }

    fn handle(&self, slot: &Slot, notification: &Notification, work: &Entry<'_>) -> Result<Outcome, TraceeError> {
        let &Notification { id, tid, .. } = notification;
        if notification.creates_epoll() {
            self.swap.epolls.created_by(tid);
            return Ok(Outcome::Reply(Reply::Continue));
        }
        if let Some(option) = notification.sets_option() {
            self.ledger.touched.note(option);
            return Ok(Outcome::Reply(Reply::Continue));
        }
        let (mut stopped, call) = match (self.look(slot, notification), Call::decode(notification)) {
            // connect(2) looks at the address before it asks for a socket, bind(2) afterwards (net/socket.c).
            (Err(TraceeError::Errno(libc::ENOTSOCK)), Err(error)) if notification.call == Some(SystemCall::Connect) => {
                return Err(error);
            }
            (stopped, call) => (stopped?, call?),
        };
        if !self.listener.is_waiting(id) {
            return Ok(Outcome::CallerLeft);
        }
        let mut verdict = self.decide(&call, &mut stopped);
        let turn = match verdict {
            Verdict::Bypass(_) => {
                Some(self.swap.turns.take(stopped.facts.cookie).ok_or(TraceeError::Errno(libc::EIO))?)
            }
            _ => None,
        };
        if turn.as_ref().is_some_and(|turn| turn.second) {
            stopped = self.look(slot, notification)?;
            if !self.listener.is_waiting(id) {
                return Ok(Outcome::CallerLeft);
            }
            verdict = self.decide(&call, &mut stopped);
        }
        tracing::debug!(tid, fd = stopped.number.0, ?call, ?verdict, "stopped call");
        Ok(self.act(stopped, &call, verdict, turn, work))
    }

    /// The socket that the call names now: to be believed only while the caller waits.
    fn look<'a>(&self, slot: &'a Slot, notification: &Notification) -> Result<Stopped<'a>, TraceeError> {
        let &Notification { id, tid, .. } = notification;
        let number = socket_number(notification);
        let (tracee, copy) = self.tracees.copy_descriptor(tid, number)?;
        let facts = SocketFacts::of(copy.as_fd()).map_err(|e| TraceeError::Errno(errno(&e)))?;
        let netns = if self.nested.is_some() && facts.netns == self.ground.host && facts.kind != Kind::NotIp {
            self.nested_caller(tid).map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => TraceeError::Gone,
                _ => TraceeError::Errno(libc::EPERM),
            })?
        } else {
            None
        };
        Ok(Stopped { slot, id, tid, tracee, number, copy, facts, netns, nested: None })
    }

    /// The network namespace of a thread; None: the workspace.
    fn nested_caller(&self, tid: u32) -> io::Result<Option<OwnedFd>> {
        let netns = nested::of_thread(tid)?;
        let is_workspace = namespace::identity(&netns)? == namespace::identity(&self.swap.netns)?;
        Ok((!is_workspace).then_some(netns))
    }

    /// What another thread of ours, or a predecessor, did for a call on this socket: ended first, then told, if the caller
    /// has not heard of it.
    fn left_by_an_earlier_try(&self, stopped: &Stopped<'_>, call: &Call, work: &Entry<'_>) -> Option<Outcome> {
        self.swap.complete(stopped);
        let cookie = stopped.facts.cookie;
        if let Err(Busy) = work.settle(stopped.tid, cookie) {
            return Some(self.busy());
        }
        self.swap.memory.goes_on(stopped.tid, cookie);
        let answer = self.swap.memory.take_answer(cookie, &stopped.slot.notification());
        let left = answer.map(|reply| Outcome::Done { cookie, reply }).or_else(|| self.untold_failure(stopped, call));
        left.inspect(|_| self.counters.repeated.count())
    }

    fn act(
        &self,
        stopped: Stopped<'_>,
        call: &Call,
        verdict: Verdict,
        turn: Option<Turn<'_>>,
        work: &Entry<'_>,
    ) -> Outcome {
        if let Some(outcome) = self.left_by_an_earlier_try(&stopped, call, work) {
            return outcome;
        }
        let in_place = |stopped, reason| {
            self.counters.in_place.count(reason);
            self.in_place(stopped, call, work)
        };
        match verdict {
            Verdict::Bypass(exit) => {
                let is_wrong = |host: BorrowedFd<'_>| self.host_listeners.has_missed(host, exit.program?, exit.to);
                let bypassed = self.swap.bypass(&self.listener, &stopped, exit, &self.ledger.touched, is_wrong);
                drop(turn);
                match bypassed {
                    Ok(outcome) => {
                        self.counters.bypassed(stopped.facts.kind);
                        work.close_afterwards(stopped.copy);
                        outcome
                    }
                    Err(reason) => in_place(stopped, reason),
                }
            }
            Verdict::Listen { port } => {
                let &Call::Listen { backlog } = call else { return Outcome::errno(libc::EIO) };
                match self.listen_on_host(&stopped, port, backlog) {
                    Ok(outcome) => {
                        if matches!(outcome, Outcome::Reply(Reply::Return(_))) {
                            self.counters.listening.count();
                        }
                        outcome
                    }
                    Err(reason) => in_place(stopped, reason),
                }
            }
            Verdict::InPlace(reason) => in_place(stopped, reason),
            Verdict::OnHostSocket => {
                self.counters.on_host_socket.count();
                match call {
                    &Call::Listen { backlog } => self.listen_again(&stopped, backlog),
                    _ => self.swap.on_host_socket(stopped),
                }
            }
            Verdict::Deny(errno, reason) => {
                self.counters.denied.count(reason);
                Outcome::errno(errno)
            }
            Verdict::Continue(reason) => {
                self.counters.continued.count(reason);
                Outcome::Reply(Reply::Continue)
            }
        }
    }

    fn busy(&self) -> Outcome {
        self.counters.busy.count();
        Outcome::errno(libc::EAGAIN)
    }

    /// The act in the socket's namespace; a host socket first becomes one of the workspace's, or its nested caller's, again.
    /// One that is to be dissolved is dissolved, for others may have it or wait for it.
    fn in_place(&self, mut stopped: Stopped<'_>, call: &Call, work: &Entry<'_>) -> Outcome {
        // A call in place may last, and what it was asked with would keep its namespace for as long.
        stopped.nested = None;
        let stopped = if stopped.facts.netns == self.ground.host && stopped.facts.kind.exchangeable().is_some() {
            if let Call::Connect(address) = call
                && address.meaning() == Meaning::Unspecified
                && let Err(error) = socket::connect(stopped.copy.as_fd(), address.bytes())
            {
                return Outcome::of(Err(error));
            }
            // One that has a port and is not connected has listened.
            let has_listened = stopped.facts.bound != Bound::No
                && matches!(stopped.facts.state, TcpState::Closed | TcpState::Listening);
            let listener = has_listened.then(|| self.host_listeners.shadow_of(&stopped)).flatten();
            let stopped = match self.swap.back(&self.listener, &self.factory, stopped) {
                Ok(stopped) => stopped,
                Err(outcome) => return outcome,
            };
            if let Some(listener) = listener {
                self.bind_again(stopped.copy.as_fd(), &stopped.facts, listener);
            }
            stopped
        } else {
            stopped
        };
        self.make_room(call, &stopped);
        match call {
            Call::Connect(address) => in_place::connect(&self.listener, &stopped, &self.swap.memory, work, address),
            Call::Bind(address) => in_place::bind(&stopped, &self.listener, &self.factory, address),
            &Call::Listen { backlog } if stopped.facts.kind == Kind::NotIp => {
                in_place::listen_as(&stopped, &self.factory, self.swap.userns.as_fd(), backlog)
            }
            &Call::Listen { backlog } => {
                let outcome = in_place::listen(&stopped, backlog);
                self.host_listeners.listened();
                outcome
            }
        }
    }

    /// A port is not held by the shadow of a program that has gone.
    fn make_room(&self, call: &Call, stopped: &Stopped<'_>) {
        let port = match (call, stopped.facts.bound) {
            _ if stopped.facts.netns != self.ground.workspace => return,
            (Call::Bind(address), _) => address.port(),
            (Call::Listen { .. }, Bound::Anywhere(port)) => port,
            _ => return,
        };
        self.host_listeners.make_room(port);
    }

    /// A connect on a host socket that failed is told of that once before it may try again, as by the kernel.
    fn untold_failure(&self, stopped: &Stopped<'_>, call: &Call) -> Option<Outcome> {
        let host_socket = stopped.facts.netns == self.ground.host && stopped.facts.kind == Kind::Tcp;
        (host_socket && call.is_connect_to_address()).then(|| self.swap.untold_failure(stopped)).flatten()
    }

    /// The answer to a call that could not be looked at.
    fn unseen(&self, notification: &Notification, error: TraceeError) -> Outcome {
        let counter = match error {
            TraceeError::Errno(_) => &self.counters.invalid,
            TraceeError::Gone => &self.counters.caller_left,
            TraceeError::NotPermitted => &self.counters.not_permitted,
        };
        counter.count();
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

    /// `entry` goes when what a later call of the same thread has to find is there.
    fn conclude(self: &Arc<Self>, slot: Slot, outcome: Outcome, entry: Option<Entry<'_>>) {
        let memory = &self.swap.memory;
        match (&entry, &outcome) {
            (Some(entry), Outcome::Reply(_)) => entry.answers(None),
            (Some(entry), &Outcome::Done { cookie, .. }) => entry.answers(Some(cookie)),
            _ => {}
        }
        match outcome {
            Outcome::Wait(wait) => {
                if wait.deadline.is_some() {
                    memory.begins_to_wait(slot.notification().tid, wait.cookie);
                }
                let deadline = slot.note_deadline(wait.deadline);
                slot.end_attempt();
                drop(entry);
                return self.waits.start(self, slot, Wait { deadline, ..wait });
            }
            Outcome::Reply(reply) => {
                let _ = self.reply(&slot, reply);
            }
            Outcome::Done { cookie, reply } => match self.reply(&slot, reply) {
                Caller::Left => memory.keep_answer(cookie, slot.notification(), reply),
                Caller::Waiting => memory.has_its_answer(slot.notification().tid, cookie),
            },
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
            self.answer(slot, || ());
        }
    }
}
