//! The exchange of a process's socket for one of the host, and back.
//!
//! ```text
//! namespace socket ── connect taken out ──▶ host socket, connecting ──▶ connected
//!        ▲                                        │ refused, shutdown, AF_UNSPEC
//!        └──────── bind, listen, connect in place ┘
//! ```
//!
//! A caller may leave at any moment (a signal) and come back with the same call. Three memories make that harmless:
//! `parked` holds a host socket that could not be put in place, by the cookie of the socket it was to replace;
//! `answers` holds an answer nobody took, by the cookie of the socket it is about; `waiting` knows which threads were
//! in a connect that SO_SNDTIMEO bounds: these Linux does not begin again (signal(7)), but a stopped call it does, so
//! the EINTR is ours to give.
//!
//! Limits: a signal whose handler is installed without SA_RESTART gives EINTR to calls of which Linux knows none (bind, a
//! nonblocking connect, setsockopt of a rare option). One that comes before the swap leaves the program's socket
//! unconnected: the call made again goes on, poll(2) does not. After one, a connect with SO_SNDTIMEO that the program
//! itself makes again gets one EINTR more, for it looks like one that the kernel began again. A copy of the old socket
//! (dup, fork) stays the old, unconnected socket, also in an epoll that watches it under the copy's number.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use rustix::net::sockopt::{Timeout, set_socket_linger, socket_linger, socket_timeout};
use sidestep_forwarder::outbound::Outbound;

use crate::sys::listener::{Caller, Listener, Reply};
use crate::sys::{namespace, socket};

use super::decide::Exit;
use super::epoll::{self, Epolls};
use super::factory::Factory;
use super::facts::{self, Kind, NetnsCookie, SocketCookie, SocketFacts, TcpState};
use super::host_socket::{self, Progress, Untouched};
use super::notification::Notification;
use super::reason::Reason;
use super::stopped::{End, Outcome, Stopped, Wait};
use super::touched::{OptionSet, Touched};
use super::turns::Turns;

/// How long something is kept for a caller that left. A restarted call comes back at once.
const KEEP: Duration = Duration::from_secs(10);
/// Entries of each memory; past it callers that leave are not remembered, and get an EISCONN or a second connect instead.
const MAX_KEPT: usize = 1024;

pub struct Swap {
    /// What untouched sockets read in the workspace's namespace and in the host's.
    pub workspace: Untouched,
    pub host: Untouched,
    pub host_netns: NetnsCookie,
    pub outbound: Outbound,
    /// The workspace's namespaces, for sockets on the way back.
    pub userns: OwnedFd,
    pub netns: OwnedFd,
    pub memory: Memory,
    pub turns: Turns,
    pub epolls: Epolls,
}

/// What is kept for callers that left.
#[derive(Default)]
pub struct Memory {
    parked: DashMap<SocketCookie, Parked>,
    answers: DashMap<SocketCookie, Answer>,
    /// By thread number.
    waiting: DashMap<u32, SocketCookie>,
}

struct Answer {
    to: Notification,
    reply: Reply,
    since: Instant,
}

struct Parked {
    host: OwnedFd,
    to: SocketAddr,
    /// Its SO_LINGER, which it does not have meanwhile: where nobody comes back for it, its close(2) waits for no peer.
    linger: Option<Duration>,
    since: Instant,
}

impl Swap {
    /// Connects a host socket and puts it in the process's descriptor, unless `is_wrong` is said of it by then. Err: why
    /// the socket must stay where it is.
    pub fn bypass(
        &self,
        listener: &Listener,
        stopped: &Stopped<'_>,
        exit: Exit,
        touched: &Touched,
        is_wrong: impl Fn(BorrowedFd<'_>) -> Option<Reason>,
    ) -> Result<Outcome, Reason> {
        if let Some(host) = self.memory.unpark(stopped.facts.cookie, exit.to) {
            // It was about to be given away with the caller's mode.
            if let Err(error) = rustix::io::ioctl_fionbio(&host, true) {
                return Ok(Outcome::of(Err(error.into())));
            }
            return Ok(match self.place(listener, stopped, host, exit.to) {
                Outcome::Wait(wait) if wait.deadline.is_some() => Outcome::errno(libc::EINTR),
                outcome => outcome,
            });
        }
        let (pristine, touched) = match &stopped.nested {
            // It may have come from outside, where nothing stops.
            _ if stopped.facts.netns == self.host_netns => (&self.host, OptionSet::ALL),
            Some(nested) => (&nested.untouched, touched.to_be_read()),
            None => (&self.workspace, touched.to_be_read()),
        };
        let pristine = pristine.of(&stopped.facts).ok_or(Reason::NoFamily)?;
        let difference = pristine.difference(stopped.copy.as_fd(), touched)?;
        let host = match host_socket::like(&stopped.facts) {
            Ok(host) => host.ok_or(Reason::NoFamily)?,
            Err(error) => return Ok(Outcome::of(Err(error))),
        };
        // Before the program's own options: one of them is for this moment.
        if let Err(errno) = self.outbound.bind(&host, exit.to.ip()) {
            return Ok(Outcome::errno(errno.raw_os_error()));
        }
        if !difference.apply(host.as_fd()) {
            return Err(Reason::NotTaken);
        }
        if let Some(device) = exit.device
            && let Err(error) = socket::bind_to_device(host.as_fd(), device)
        {
            tracing::debug!(%error, "a host socket cannot be bound to its interface");
            return Err(Reason::Interface);
        }
        stopped.begin_act();
        match host_socket::start_connect(host.as_fd(), exit.to, &stopped.facts) {
            Progress::Failed(errno) => Ok(Outcome::errno(errno)),
            Progress::Connected | Progress::Underway => match is_wrong(host.as_fd()) {
                Some(reason) => Err(reason),
                None => Ok(self.place(listener, stopped, host, exit.to)),
            },
        }
    }

    /// A blocking connect that is over at once is answered in one step. Any other goes into place first, so that a
    /// caller who is interrupted finds its connect under way when it comes back.
    fn place(&self, listener: &Listener, stopped: &Stopped<'_>, host: OwnedFd, to: SocketAddr) -> Outcome {
        let progress = if stopped.facts.kind == Kind::Udp {
            Progress::Connected
        } else if stopped.facts.nonblocking {
            Progress::Underway
        } else {
            host_socket::progress(host.as_fd())
        };
        if let Progress::Failed(errno) = progress {
            return Outcome::errno(errno);
        }
        match self.put(listener, stopped, host.as_fd()) {
            Err(error) => Outcome::of(Err(error)),
            Ok(Caller::Left) => {
                self.memory.park(stopped.facts.cookie, host, to);
                Outcome::CallerLeft
            }
            Ok(Caller::Waiting) if progress == Progress::Connected => answered(&host, Reply::Return(0)),
            Ok(Caller::Waiting) if stopped.facts.nonblocking => answered(&host, Reply::Errno(libc::EINPROGRESS)),
            Ok(Caller::Waiting) => wait(host, libc::EINPROGRESS),
        }
    }

    /// A call on a host socket that connects or is connected: the kernel's answer, and nothing moves.
    pub fn on_host_socket(&self, stopped: Stopped<'_>) -> Outcome {
        let again = stopped.begin_act();
        match (stopped.facts.state, stopped.facts.nonblocking) {
            (TcpState::Connecting, false) if self.memory.waited(stopped.tid) == Some(stopped.facts.cookie) => {
                Outcome::errno(libc::EINTR)
            }
            (TcpState::Connecting, false) => wait(stopped.copy, if again { libc::EINPROGRESS } else { libc::EALREADY }),
            // A predecessor put it there for this very call.
            (_, true) if again => answered(&stopped.copy, Reply::Errno(libc::EINPROGRESS)),
            (TcpState::InUse, false) if again => answered(&stopped.copy, Reply::Return(0)),
            _ => Outcome::done(stopped.facts.cookie, host_socket::probe(stopped.copy.as_fd())),
        }
    }

    /// The failure of an earlier connect on a closed host socket, if the program does not know of it yet.
    pub fn untold_failure(&self, stopped: &Stopped<'_>) -> Option<Outcome> {
        if stopped.facts.state != TcpState::Closed {
            return None;
        }
        match host_socket::probe(stopped.copy.as_fd()) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => None,
            result => Some(Outcome::done(stopped.facts.cookie, result)),
        }
    }

    /// What a connect that waited has come to.
    pub fn end_of_wait(&self, wait: Wait, end: End) -> Outcome {
        let answered = |reply| Outcome::Done { cookie: wait.cookie, reply };
        match end {
            End::CallerLeft => Outcome::CallerLeft,
            // The connect itself goes on.
            End::TimedOut => answered(Reply::Errno(wait.late)),
            End::Ready => match host_socket::progress(wait.host.as_fd()) {
                Progress::Connected => answered(Reply::Return(0)),
                Progress::Underway => Outcome::Wait(wait),
                // Shut down or dissolved under the waiting call, or another one took the failure.
                Progress::Failed(libc::EINVAL) => answered(Reply::Errno(
                    match socket::int_option(wait.host.as_fd(), libc::SOL_SOCKET, libc::SO_ERROR) {
                        Ok(0) | Err(_) => libc::EPIPE,
                        Ok(errno) => errno,
                    },
                )),
                Progress::Failed(errno) => answered(Reply::Errno(errno)),
            },
        }
    }

    /// Puts a new socket of the workspace's namespace in the place of a host socket. Under `--bypass-nested` it may have
    /// come from a nested one: there it is the caller's own namespace, and a caller gets no more than it could make.
    pub fn back<'a>(
        &self,
        listener: &Listener,
        factory: &Factory,
        stopped: Stopped<'a>,
    ) -> Result<Stopped<'a>, Outcome> {
        let failed = |error: io::Error| {
            tracing::debug!(tid = stopped.tid, %error, "a host socket cannot become the workspace's again");
            Outcome::of(Err(error))
        };
        let Some((socket_type, protocol)) = stopped.facts.kind.exchangeable() else { return Ok(stopped) };
        let kind = (host_socket::domain(&stopped.facts), socket_type, protocol);
        let fresh = match &stopped.netns {
            None => factory.socket(self.userns.as_fd(), self.netns.as_fd(), kind),
            Some(netns) => {
                namespace::owner(netns.as_fd()).and_then(|userns| factory.socket(userns.as_fd(), netns.as_fd(), kind))
            }
        };
        let fresh = fresh.map_err(failed)?;
        if facts::netns_of(fresh.as_fd()).map_err(failed)? == self.host_netns {
            return Err(Outcome::errno(libc::EPERM));
        }
        let pristine = self.host.of(&stopped.facts);
        if let Some(difference) = pristine.and_then(|p| p.difference(stopped.copy.as_fd(), OptionSet::ALL).ok()) {
            let _ = difference.apply(fresh.as_fd());
        }
        match self.put(listener, &stopped, fresh.as_fd()).map_err(failed)? {
            Caller::Left => Err(Outcome::CallerLeft),
            Caller::Waiting => {
                let facts = SocketFacts::of(fresh.as_fd()).map_err(failed)?;
                Ok(Stopped { copy: fresh, facts, netns: None, ..stopped })
            }
        }
    }

    /// Puts `new` in the caller's descriptor, with the flags of what was there, and in the epolls that watched it.
    pub fn put(&self, listener: &Listener, stopped: &Stopped<'_>, new: BorrowedFd<'_>) -> io::Result<Caller> {
        let close_on_exec = match stopped.tracee.is_close_on_exec(stopped.number) {
            Ok(close_on_exec) => close_on_exec,
            Err(_) if !listener.is_waiting(stopped.id) => return Ok(Caller::Left),
            Err(_) => return Err(io::Error::from_raw_os_error(libc::EBADF)),
        };
        host_socket::set_blocking_like(new, &stopped.facts)?;
        let registrations = self.epolls.registrations(&stopped.tracee, stopped.number, stopped.copy.as_fd());
        stopped.slot.note_registrations(registrations.iter().map(epoll::Registration::note));
        let caller = listener.replace(stopped.id, new, stopped.number.0, close_on_exec)?;
        if caller == Caller::Waiting {
            epoll::transfer(&registrations, stopped.number, stopped.copy.as_fd(), new);
        }
        // From here on they are the program's to change.
        stopped.slot.note_registrations(std::iter::empty());
        Ok(caller)
    }

    /// Ends what a predecessor may have died in: the epolls that watched the old socket are to watch the one in place.
    pub fn complete(&self, stopped: &Stopped<'_>) {
        let noted = stopped.slot.registrations();
        if !noted.is_empty() {
            epoll::restore(&noted, &stopped.tracee, stopped.number, stopped.copy.as_fd());
        }
    }
}

impl Memory {
    fn unpark(&self, cookie: SocketCookie, to: SocketAddr) -> Option<OwnedFd> {
        let (_, Parked { host, linger, .. }) = self.parked.remove(&cookie).filter(|(_, parked)| parked.to == to)?;
        if linger.is_some() {
            set_socket_linger(&host, linger).ok()?;
        }
        Some(host)
    }

    fn park(&self, cookie: SocketCookie, host: OwnedFd, to: SocketAddr) {
        let linger = socket_linger(&host).unwrap_or_default();
        if linger.is_some() && set_socket_linger(&host, None).is_err() {
            return;
        }
        if self.parked.len() < MAX_KEPT {
            self.parked.insert(cookie, Parked { host, to, linger, since: Instant::now() });
        }
    }

    /// The answer that an earlier try of the same call did not stay for.
    pub fn take_answer(&self, cookie: SocketCookie, call: &Notification) -> Option<Reply> {
        self.answers.remove_if(&cookie, |_, answer| call.repeats(&answer.to)).map(|(_, answer)| answer.reply)
    }

    pub fn keep_answer(&self, cookie: SocketCookie, to: Notification, reply: Reply) {
        if self.answers.len() < MAX_KEPT {
            self.answers.insert(cookie, Answer { to, reply, since: Instant::now() });
        }
    }

    /// A connect of this thread begins to wait on a socket that has SO_SNDTIMEO.
    pub fn begins_to_wait(&self, tid: u32, cookie: SocketCookie) {
        if self.waiting.len() >= MAX_KEPT {
            self.waiting.clear();
        }
        self.waiting.insert(tid, cookie);
    }

    pub fn has_its_answer(&self, tid: u32, cookie: SocketCookie) {
        self.waiting.remove_if(&tid, |_, waited| *waited == cookie);
    }

    /// This thread calls about a socket: it does not wait for another any more.
    pub fn goes_on(&self, tid: u32, cookie: SocketCookie) {
        self.waiting.remove_if(&tid, |_, waited| *waited != cookie);
    }

    /// The socket that this thread waited for and got no answer about.
    pub fn waited(&self, tid: u32) -> Option<SocketCookie> {
        self.waiting.remove(&tid).map(|(_, cookie)| cookie)
    }

    /// Drops what nobody came back for.
    pub fn expire(&self, now: Instant) {
        let fresh = |since: Instant| now.saturating_duration_since(since) < KEEP;
        self.parked.retain(|_, parked| fresh(parked.since));
        self.answers.retain(|_, answer| fresh(answer.since));
    }
}

fn answered(host: &OwnedFd, reply: Reply) -> Outcome {
    match socket::u64_option(host.as_fd(), libc::SOL_SOCKET, libc::SO_COOKIE) {
        Ok(cookie) => Outcome::Done { cookie: SocketCookie(cookie), reply },
        Err(_) => Outcome::Reply(reply),
    }
}

/// `late`: what the call is answered when SO_SNDTIMEO runs out.
fn wait(host: OwnedFd, late: i32) -> Outcome {
    let cookie = match socket::u64_option(host.as_fd(), libc::SOL_SOCKET, libc::SO_COOKIE) {
        Ok(cookie) => SocketCookie(cookie),
        Err(error) => return Outcome::of(Err(error)),
    };
    let deadline = connect_deadline(host.as_fd());
    Outcome::Wait(Wait { host, cookie, deadline, late })
}

/// When a connect that begins now gives up by SO_SNDTIMEO, which bounds connect(2) too; None: not by itself.
pub fn connect_deadline(socket: BorrowedFd<'_>) -> Option<Instant> {
    let timeout = socket_timeout(socket, Timeout::Send).ok().flatten()?;
    Instant::now().checked_add(timeout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::{Errno, write};
    use std::net::{TcpListener, TcpStream};

    /// close(2) with SO_LINGER waits for a peer to take what is under way, and the event loop closes what is parked.
    #[test]
    fn a_parked_socket_makes_nobody_linger() {
        const LONG: Duration = Duration::from_secs(1000);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let parked = || {
            let host = OwnedFd::from(TcpStream::connect(to).unwrap());
            rustix::io::ioctl_fionbio(&host, true).unwrap();
            while write(&host, &[0; 65_536]) != Err(Errno::AGAIN) {}
            set_socket_linger(&host, Some(LONG)).unwrap();
            host
        };
        let memory = Memory::default();
        let [abandoned, fetched] = [SocketCookie(1), SocketCookie(2)];
        memory.park(abandoned, parked(), to);
        memory.park(fetched, parked(), to);
        let host = memory.unpark(fetched, to).unwrap();
        assert_eq!(socket_linger(&host).unwrap(), Some(LONG));
        set_socket_linger(&host, None).unwrap();
        memory.expire(Instant::now() + KEEP);
        assert!(memory.unpark(abandoned, to).is_none());
    }
}
