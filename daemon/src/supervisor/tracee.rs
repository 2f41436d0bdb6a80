//! The thread whose call was stopped: its descriptors, its memory, its identity.
//!
//! Everything is read once. What was read by thread number (memory, /proc) counts only after the listener has said that
//! the caller still waits; the session asks once, after the last such read.

use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, OnceLock};

use dashmap::DashMap;
use rustix::fs::{Mode, OFlags};

use crate::sys::pidfd;

use super::epoll::KnownEpolls;
use super::sockaddr::{MAX_LENGTH, RawAddress};

/// Threads kept; each is two descriptors of ours. Past it all are dropped and found anew.
const MAX_KEPT: usize = 1024;

/// A descriptor number in the tracee: never an open descriptor of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceeFd(pub RawFd);

/// Why the tracee could not be asked.
#[derive(Debug)]
pub enum TraceeError {
    /// It ended, or its thread number means another one now.
    Gone,
    /// This supervisor may not look into it (an unreadable setuid program, a foreign user namespace).
    NotPermitted,
    /// What the kernel would have told the tracee itself.
    Errno(i32),
}

/// One thread, for as long as its pidfd answers.
pub struct Tracee {
    pub tid: u32,
    pidfd: OwnedFd,
    process: OnceLock<Option<u32>>,
    pub epolls: KnownEpolls,
    /// Of the number that was asked about last: most threads that connect again and again get the same one.
    fdinfo: Mutex<Option<FdInfo>>,
}

impl Tracee {
    fn open(tid: u32) -> Result<Self, TraceeError> {
        let pidfd = match pidfd::open_thread(tid) {
            // Linux before 6.9 has them of processes only. The descriptors are the same, unless the thread unshared them.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => process_of(tid).map_or(Err(e), pidfd::open_process),
            other => other,
        };
        let pidfd = pidfd.map_err(|e| TraceeError::from_open(&e))?;
        Ok(Self { tid, pidfd, process: OnceLock::new(), epolls: KnownEpolls::default(), fdinfo: Mutex::default() })
    }

    /// A copy of a descriptor, whatever kind of file it is.
    pub fn copy_descriptor(&self, number: RawFd) -> io::Result<OwnedFd> {
        pidfd::copy_descriptor(self.pidfd.as_fd(), number)
    }

    /// Whether a descriptor is close-on-exec: a property of the number, which a copy does not show.
    ///
    /// On the way of every bypassed connect, where opening the file in /proc takes most of the time.
    pub fn is_close_on_exec(&self, number: TraceeFd) -> io::Result<bool> {
        let Ok(mut kept) = self.fdinfo.lock() else { return FdInfo::open(self.tid, number)?.is_close_on_exec() };
        if let Some(fdinfo) = kept.as_ref().filter(|fdinfo| fdinfo.number == number) {
            return fdinfo.is_close_on_exec();
        }
        kept.insert(FdInfo::open(self.tid, number)?).is_close_on_exec()
    }

    /// The process it belongs to.
    pub fn process(&self) -> Option<u32> {
        *self.process.get_or_init(|| process_of(self.tid))
    }
}

/// Tracees by thread number. A kept pidfd of a dead thread answers ESRCH, so keeping them is safe.
#[derive(Default)]
pub struct Tracees {
    kept: DashMap<u32, Arc<Tracee>>,
}

impl Tracees {
    /// The thread, and a copy of the descriptor it named.
    pub fn copy_descriptor(&self, tid: u32, number: TraceeFd) -> Result<(Arc<Tracee>, OwnedFd), TraceeError> {
        let kept = self.kept.get(&tid).map(|entry| Arc::clone(&entry));
        if let Some(tracee) = kept {
            match tracee.copy_descriptor(number.0) {
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                other => return Ok((tracee, other.map_err(|e| TraceeError::from_copy(&e))?)),
            }
        }
        let tracee = Arc::new(Tracee::open(tid)?);
        if self.kept.len() >= MAX_KEPT {
            self.kept.clear();
        }
        self.kept.insert(tid, Arc::clone(&tracee));
        let copy = tracee.copy_descriptor(number.0).map_err(|e| TraceeError::from_copy(&e))?;
        Ok((tracee, copy))
    }

    /// Closes the pidfds of threads that have ended: each is a descriptor, and keeps the kernel's record of a process.
    pub fn forget_ended(&self) {
        self.kept.retain(|_, tracee| !pidfd::has_ended(tracee.pidfd.as_fd()));
    }
}

impl TraceeError {
    fn from_open(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ESRCH | libc::EINVAL) | None => Self::Gone,
            Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => Self::Errno(libc::ENOBUFS),
            Some(_) => Self::NotPermitted,
        }
    }

    fn from_copy(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EBADF) => Self::Errno(libc::EBADF),
            Some(libc::ESRCH) | None => Self::Gone,
            Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => Self::Errno(libc::ENOBUFS),
            Some(_) => Self::NotPermitted,
        }
    }
}

/// Copies a socket address out of the tracee, with the errnos of move_addr_to_kernel (net/socket.c).
pub fn read_address(tid: u32, pointer: u64, length: i32) -> Result<RawAddress, TraceeError> {
    let length = usize::try_from(length).map_err(|_| TraceeError::Errno(libc::EINVAL))?;
    if length > MAX_LENGTH {
        return Err(TraceeError::Errno(libc::EINVAL));
    }
    if length == 0 {
        return Ok(RawAddress::new(&[]));
    }
    let mut bytes = [0; MAX_LENGTH];
    let Some(wanted) = bytes.get_mut(..length) else { return Err(TraceeError::Errno(libc::EINVAL)) };
    match pidfd::read_memory(tid, pointer, wanted) {
        Ok(read) if read == length => Ok(RawAddress::new(wanted)),
        Ok(_) => Err(TraceeError::Errno(libc::EFAULT)),
        Err(e) => Err(match e.raw_os_error() {
            Some(libc::ESRCH) => TraceeError::Gone,
            Some(libc::EPERM) => TraceeError::NotPermitted,
            _ => TraceeError::Errno(libc::EFAULT),
        }),
    }
}

/// What /proc says about one descriptor number (proc_pid_fdinfo(5)). Read anew from its beginning, it tells of whatever has
/// that number then; where the thread has ended, it says ESRCH, and ENOENT where the number is free.
struct FdInfo {
    number: TraceeFd,
    file: OwnedFd,
}

impl FdInfo {
    fn open(tid: u32, number: TraceeFd) -> io::Result<Self> {
        let path = format!("/proc/{tid}/fdinfo/{}", number.0);
        Ok(Self { number, file: rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())? })
    }

    /// One read, of which the second line is all that matters.
    fn is_close_on_exec(&self) -> io::Result<bool> {
        let mut start = [0; 64];
        let length = rustix::io::pread(&self.file, &mut start, 0)?;
        let text = start.get(..length).and_then(|bytes| std::str::from_utf8(bytes).ok());
        let flags = text
            .into_iter()
            .flat_map(str::lines)
            .find_map(|line| line.strip_prefix("flags:"))
            .and_then(|octal| i32::from_str_radix(octal.trim(), 8).ok())
            .ok_or_else(|| io::Error::other("fdinfo without flags"))?;
        Ok(flags & libc::O_CLOEXEC != 0)
    }
}

/// Who the tracee is to the kernel's permission checks, in numbers of the user namespace that this process is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub euid: u32,
    pub egid: u32,
    pub effective_capabilities: u64,
}

pub fn credentials(tid: u32) -> io::Result<Credentials> {
    parse_credentials(&std::fs::read_to_string(format!("/proc/{tid}/status"))?)
        .ok_or_else(|| io::Error::other("status without credentials"))
}

/// The process a thread belongs to.
pub fn process_of(tid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

fn parse_credentials(status: &str) -> Option<Credentials> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    Some(Credentials {
        euid: field("Uid:")?.split_whitespace().nth(1)?.parse().ok()?,
        egid: field("Gid:")?.split_whitespace().nth(1)?.parse().ok()?,
        effective_capabilities: u64::from_str_radix(field("CapEff:")?.trim(), 16).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::FdFlags;

    #[test]
    fn credentials_are_the_effective_ones() {
        let status = "Name:\tsh\nUid:\t1000\t1001\t1002\t1003\nGid:\t100\t101\t102\t103\nCapInh:\t0\nCapEff:\t0000000000000400\n";
        let want = Credentials { euid: 1001, egid: 101, effective_capabilities: 1 << 10 };
        assert_eq!(parse_credentials(status), Some(want));
        assert_eq!(parse_credentials("Name:\tsh\n"), None);
    }

    #[test]
    fn close_on_exec_is_read_from_the_number() {
        use std::os::fd::AsRawFd;
        let file = std::fs::File::open("/proc/self/status").unwrap();
        let tracee = Tracee::open(std::process::id()).unwrap();
        let number = TraceeFd(file.as_raw_fd());
        assert!(tracee.is_close_on_exec(number).unwrap());
        assert!(!tracee.is_close_on_exec(TraceeFd(0)).unwrap());
        for close_on_exec in [true, false, true] {
            let flags = if close_on_exec { FdFlags::CLOEXEC } else { FdFlags::empty() };
            rustix::io::fcntl_setfd(&file, flags).unwrap();
            assert_eq!(tracee.is_close_on_exec(number).unwrap(), close_on_exec, "also of a number asked about before");
        }
    }

    #[test]
    fn nothing_is_said_of_a_number_that_is_free_or_a_thread_that_has_ended() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let tracee = Tracee::open(child.id()).unwrap();
        assert!(!tracee.is_close_on_exec(TraceeFd(0)).unwrap());
        assert!(tracee.is_close_on_exec(TraceeFd(1000)).is_err());
        assert!(!tracee.is_close_on_exec(TraceeFd(0)).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(tracee.is_close_on_exec(TraceeFd(0)).is_err());
    }

    #[test]
    fn addresses_outside_the_memory_are_efault() {
        let tid = std::process::id();
        let here = [2u8; 16];
        let errno = |pointer, length| match read_address(tid, pointer, length) {
            Ok(address) => Ok(address.bytes().len()),
            Err(TraceeError::Errno(errno)) => Err(errno),
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!(errno(here.as_ptr().addr() as u64, 16), Ok(16));
        assert_eq!(errno(0, 0), Ok(0));
        assert_eq!(errno(0, 16), Err(libc::EFAULT));
        assert_eq!(errno(u64::MAX, 16), Err(libc::EFAULT));
        assert_eq!(errno(here.as_ptr().addr() as u64, -1), Err(libc::EINVAL));
        assert_eq!(errno(here.as_ptr().addr() as u64, 129), Err(libc::EINVAL));
    }
}
