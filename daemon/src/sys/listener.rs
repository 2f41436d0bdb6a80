//! The seccomp listener: where the kernel puts notifications and takes answers (seccomp_unotify(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

/// Words in a struct seccomp_notif.
pub const NOTIFICATION_WORDS: usize = size_of::<libc::seccomp_notif>() / size_of::<u64>();

/// Wakes the caller on the answering thread's processor (Linux 6.6); libc lacks it.
const SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP: u64 = 1;

/// What is sent back for a notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    Return(i64),
    Errno(i32),
    /// The kernel carries the call out as the caller asked for it.
    Continue,
}

/// What a receive came back with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    Notification,
    /// The caller was interrupted before its notification could be read, or this thread was.
    Nothing,
    /// No process runs under the filter any more.
    FilterUnused,
}

/// Whether the caller was still waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Caller {
    Waiting,
    /// Interrupted by a signal, or dead: nobody takes this answer.
    Left,
}

pub struct Listener(OwnedFd);

impl Listener {
    pub fn new(descriptor: OwnedFd) -> Self {
        let listener = Self(descriptor);
        // Optional, only latency.
        let _ = listener.set_sync_wake_up();
        listener
    }

    /// EINVAL before Linux 6.6.
    pub fn set_sync_wake_up(&self) -> io::Result<()> {
        // SAFETY: SET_FLAGS takes its flags by value.
        let result = unsafe {
            libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Whether a notification is there within this time.
    pub fn is_notified(&self, within: Duration) -> io::Result<bool> {
        let mut listener = [PollFd::new(&self.0, PollFlags::IN)];
        let within = rustix::time::Timespec::try_from(within).map_err(io::Error::other)?;
        poll(&mut listener, Some(&within))?;
        Ok(listener[0].revents().contains(PollFlags::IN))
    }

    /// Waits for a notification and has the kernel write it straight into `words`, which must be zero.
    pub fn receive(&self, words: &[AtomicU64; NOTIFICATION_WORDS]) -> io::Result<Received> {
        // SAFETY: `words` is as large as a struct seccomp_notif and is memory that other threads access only atomically.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, words.as_ptr()) };
        if result == 0 {
            return Ok(Received::Notification);
        }
        match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::EINTR) => Ok(Received::Nothing),
            e if e.raw_os_error() == Some(libc::ENOENT) => {
                Ok(if self.is_unused()? { Received::FilterUnused } else { Received::Nothing })
            }
            e => Err(e),
        }
    }

    /// Answers; ENOENT from the kernel is [`Caller::Left`].
    pub fn send(&self, id: u64, reply: Reply) -> io::Result<Caller> {
        let (val, error, flags) = match reply {
            Reply::Return(value) => (value, 0, 0),
            Reply::Errno(errno) => (0, -errno, 0),
            Reply::Continue => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE),
        };
        let flags = u32::try_from(flags).map_err(io::Error::other)?;
        let response = libc::seccomp_notif_resp { id, val, error, flags };
        // SAFETY: SEND reads one struct seccomp_notif_resp, alive here.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const response) };
        caller(i64::from(result))
    }

    /// Whether the caller still waits: everything read of it before this was read of the right process.
    pub fn is_waiting(&self, id: u64) -> bool {
        // SAFETY: ID_VALID reads one u64, alive here.
        unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) == 0 }
    }

    /// Puts `file` in the caller's descriptor `number`, in the place of whatever is there.
    pub fn replace(&self, id: u64, file: BorrowedFd<'_>, number: RawFd, close_on_exec: bool) -> io::Result<Caller> {
        let unsigned = |value: i64| u32::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EBADF));
        let request = libc::seccomp_notif_addfd {
            id,
            flags: u32::try_from(libc::SECCOMP_ADDFD_FLAG_SETFD).map_err(io::Error::other)?,
            srcfd: unsigned(file.as_raw_fd().into())?,
            newfd: unsigned(number.into())?,
            newfd_flags: if close_on_exec { unsigned(libc::O_CLOEXEC.into())? } else { 0 },
        };
        // SAFETY: ADDFD reads one struct seccomp_notif_addfd, alive here; `file` is borrowed and stays open.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw const request) };
        caller(i64::from(result))
    }

    /// ENOENT from a receive has two meanings; a hang-up on the listener tells them apart.
    fn is_unused(&self) -> io::Result<bool> {
        let mut listener = [PollFd::new(&self.0, PollFlags::IN)];
        poll(&mut listener, Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        Ok(listener[0].revents().contains(PollFlags::HUP))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn caller(result: i64) -> io::Result<Caller> {
    if result >= 0 {
        return Ok(Caller::Waiting);
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::ENOENT) => Ok(Caller::Left),
        e => Err(e),
    }
}

/// Empties the words a notification is received into.
pub fn clear(words: &[AtomicU64; NOTIFICATION_WORDS]) {
    for word in words {
        word.store(0, Ordering::Relaxed);
    }
}
