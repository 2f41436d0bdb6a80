//! Work that must be done inside a namespace of the workspace: making sockets, opening files, listening as somebody.
//!
//! A process of several threads cannot enter a user namespace, and sockets belong to the namespace of the process that
//! makes them. So the supervisor forks the factory before its first thread; the factory forks a short-lived process for
//! each job, which enters the namespaces, does the job, and passes the result back over a socket of the job's own.
//! About 0.2 ms a job: none is on the way of an ordinary connect.
//!
//! Limits: a job has [`TIME_LIMIT`]; a factory that died makes every job an error, which fails closed.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

use crate::channel::{Channel, DESCRIPTORS_MAX, Received};
use crate::sys::{disposition, fork, namespace, socket};

use super::tracee::{self, Credentials};

/// Long enough for a machine with much else to do: no workspace starts without a socket of its own. Whom a job keeps for
/// longer because of a lock of the workspace's is told so before, by the watch ([`super::active::STUCK_AFTER`]).
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// Beside a job: the channel for the answer, the user namespace, and one more.
const DESCRIPTORS: usize = 3;

#[derive(Serialize, Deserialize)]
enum Job {
    /// In the network namespace given: so many sockets.
    Sockets { domain: i32, kind: i32, protocol: i32, count: usize },
    /// Of the same network namespace and the same owner as the socket given: another one, of TCP.
    Beside { domain: i32 },
    /// In the network namespace given: the names of its legacy iptables, a file of /proc/net.
    LegacyTables { ipv6: bool },
    /// In the network namespace given: its first unprivileged port.
    UnprivilegedPort,
    /// In the user namespace given, with the effective ids of thread `tid`: listen on the socket given.
    Listen { tid: u32, backlog: i32 },
}

#[derive(Serialize, Deserialize)]
enum Answer {
    /// What was made comes beside it.
    Descriptors,
    Number(i64),
    Errno(i32),
}

/// The supervisor's end.
pub struct Factory {
    jobs: Channel,
}

impl Factory {
    /// Forks the factory. Only in a process with one thread.
    pub fn start() -> io::Result<Self> {
        let (ours, theirs) = Channel::pair()?;
        fork::fork(|| {
            // The supervisor's end must not stay open here: its closing is what ends the factory.
            let closed = nix::unistd::close(ours.as_fd().as_raw_fd());
            i32::from(closed.is_err() || serve(&theirs).is_err())
        })?;
        Ok(Self { jobs: ours })
    }

    /// A nonblocking socket that belongs to `netns`, which `userns` owns.
    pub fn socket(&self, userns: BorrowedFd<'_>, netns: BorrowedFd<'_>, kind: (i32, i32, i32)) -> io::Result<OwnedFd> {
        only(self.sockets(userns, netns, kind, 1)?)
    }

    /// Several of them, at most [`DESCRIPTORS_MAX`].
    pub fn sockets(
        &self,
        userns: BorrowedFd<'_>,
        netns: BorrowedFd<'_>,
        (domain, kind, protocol): (i32, i32, i32),
        count: usize,
    ) -> io::Result<Vec<OwnedFd>> {
        self.descriptors(&Job::Sockets { domain, kind, protocol, count }, userns, netns)
    }

    /// A nonblocking TCP socket that may share its port with `other` (SO_REUSEPORT): of its network namespace, which
    /// `userns` owns, and of its owner.
    pub fn beside(&self, userns: BorrowedFd<'_>, other: BorrowedFd<'_>, domain: i32) -> io::Result<OwnedFd> {
        only(self.descriptors(&Job::Beside { domain }, userns, other)?)
    }

    /// The names of the legacy iptables or ip6tables that `netns` has, one a line; they may be read again and again.
    pub fn legacy_tables(&self, userns: BorrowedFd<'_>, netns: BorrowedFd<'_>, ipv6: bool) -> io::Result<OwnedFd> {
        only(self.descriptors(&Job::LegacyTables { ipv6 }, userns, netns)?)
    }

    /// net.ipv4.ip_unprivileged_port_start of `netns`.
    pub fn unprivileged_port(&self, userns: BorrowedFd<'_>, netns: BorrowedFd<'_>) -> io::Result<u16> {
        let port = self.number(&Job::UnprivilegedPort, userns, netns)?;
        u16::try_from(port).or(Ok(u16::MAX))
    }

    /// listen(2) with the effective ids of thread `tid`, which `userns` must have: what SO_PEERCRED will show.
    pub fn listen_as(&self, userns: BorrowedFd<'_>, tid: u32, on: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
        self.number(&Job::Listen { tid, backlog }, userns, on).map(drop)
    }

    fn descriptors(&self, job: &Job, userns: BorrowedFd<'_>, beside: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
        match self.run(job, userns, beside)? {
            (Answer::Descriptors, made) => Ok(made),
            (Answer::Errno(errno), _) => Err(io::Error::from_raw_os_error(errno)),
            _ => Err(io::Error::other("the socket factory answered something else")),
        }
    }

    fn number(&self, job: &Job, userns: BorrowedFd<'_>, beside: BorrowedFd<'_>) -> io::Result<i64> {
        match self.run(job, userns, beside)? {
            (Answer::Number(number), _) => Ok(number),
            (Answer::Errno(errno), _) => Err(io::Error::from_raw_os_error(errno)),
            (Answer::Descriptors, _) => Err(io::Error::other("the socket factory answered something else")),
        }
    }

    fn run(&self, job: &Job, userns: BorrowedFd<'_>, beside: BorrowedFd<'_>) -> io::Result<(Answer, Vec<OwnedFd>)> {
        let (ours, theirs) = Channel::pair()?;
        self.jobs.send(job, &[theirs.as_fd(), userns, beside]).map_err(io::Error::other)?;
        drop(theirs);
        match ours.receive(Some(TIME_LIMIT)).map_err(io::Error::other)? {
            Received::Message(answer, descriptors) => Ok((answer, descriptors)),
            Received::Timeout => Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)),
            Received::Closed => Err(io::Error::other("the socket factory ended in the middle of a job")),
        }
    }
}

fn only(made: Vec<OwnedFd>) -> io::Result<OwnedFd> {
    made.into_iter().next().ok_or_else(|| io::Error::other("the socket factory answered something else"))
}

/// The factory's life: a child for each job, until the supervisor is gone.
fn serve(jobs: &Channel) -> anyhow::Result<()> {
    disposition::ignore_sigchld()?;
    while let Received::Message(job, descriptors) = jobs.receive::<Job>(None)? {
        let Ok([reply, userns, beside]) = <[OwnedFd; DESCRIPTORS]>::try_from(descriptors) else { continue };
        // Without a child the reply socket closes, which the supervisor takes for a failure.
        let _ = fork::fork(|| {
            let (answer, made) = match work(&job, &userns, &beside) {
                Ok((answer, made)) => (answer, made),
                Err(error) => (Answer::Errno(error.raw_os_error().unwrap_or(libc::EIO)), Vec::new()),
            };
            let descriptors: Vec<_> = made.iter().map(AsFd::as_fd).collect();
            i32::from(Channel::from(reply).send(&answer, &descriptors).is_err())
        });
    }
    Ok(())
}

fn work(job: &Job, userns: &OwnedFd, beside: &OwnedFd) -> io::Result<(Answer, Vec<OwnedFd>)> {
    enter(userns, CloneFlags::CLONE_NEWUSER)?;
    match *job {
        Job::Sockets { domain, kind, protocol, count } => {
            enter(beside, CloneFlags::CLONE_NEWNET)?;
            let made = (0..count.min(DESCRIPTORS_MAX)).map(|_| socket::new(domain, kind, protocol));
            Ok((Answer::Descriptors, made.collect::<io::Result<_>>()?))
        }
        Job::Beside { domain } => {
            enter(&namespace::of_socket(beside.as_fd())?, CloneFlags::CLONE_NEWNET)?;
            // What has no name here does not become the owner, and the sockets cannot share.
            nix::unistd::setfsuid(rustix::fs::fstat(beside)?.st_uid.into());
            Ok((Answer::Descriptors, vec![socket::new(domain, libc::SOCK_STREAM, libc::IPPROTO_TCP)?]))
        }
        Job::LegacyTables { ipv6 } => {
            enter(beside, CloneFlags::CLONE_NEWNET)?;
            let name = if ipv6 { "/proc/self/net/ip6_tables_names" } else { "/proc/self/net/ip_tables_names" };
            Ok((Answer::Descriptors, vec![fs::File::open(name)?.into()]))
        }
        Job::UnprivilegedPort => {
            enter(beside, CloneFlags::CLONE_NEWNET)?;
            let text = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")?;
            Ok((Answer::Number(text.trim().parse().map_err(io::Error::other)?), Vec::new()))
        }
        Job::Listen { tid, backlog } => {
            become_user_of(tid)?;
            socket::listen(beside.as_fd(), backlog)?;
            Ok((Answer::Number(0), Vec::new()))
        }
    }
}

/// Enters a namespace; being there already is what is wanted.
pub(crate) fn enter(namespace: &OwnedFd, kind: CloneFlags) -> io::Result<()> {
    let path = match kind {
        CloneFlags::CLONE_NEWUSER => "/proc/self/ns/user",
        _ => "/proc/self/ns/net",
    };
    if rustix::fs::fstat(namespace)?.st_ino == rustix::fs::stat(path)?.st_ino {
        return Ok(());
    }
    Ok(setns(namespace, kind)?)
}

/// Takes the effective ids of a thread, as they read in the user namespace this process is in by now.
fn become_user_of(tid: u32) -> io::Result<()> {
    let Credentials { euid, egid, .. } = tracee::credentials(tid)?;
    nix::unistd::setegid(egid.into())?;
    nix::unistd::seteuid(euid.into())?;
    Ok(())
}
