//! A tracee's thread, held so that its number cannot come to mean another one, and what can be reached through it.

use std::io::{self, IoSliceMut};
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open, pidfd_send_signal};

/// Linux 6.9: a pidfd of a thread that does not lead its group.
const PIDFD_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(libc::O_EXCL.cast_unsigned());

/// Opens a pidfd of the thread `tid`. EINVAL before Linux 6.9.
pub fn open_thread(tid: u32) -> io::Result<OwnedFd> {
    open(tid, PIDFD_THREAD)
}

/// Opens a pidfd of the process `tgid`.
pub fn open_process(tgid: u32) -> io::Result<OwnedFd> {
    open(tgid, PidfdFlags::empty())
}

fn open(pid: u32, flags: PidfdFlags) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::Error::from_raw_os_error(libc::ESRCH))?;
    Ok(pidfd_open(pid, flags)?)
}

/// Whether what the pidfd names has ended, zombies included.
pub fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// ESRCH: it has ended.
pub fn kill(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(pidfd_send_signal(pidfd, Signal::KILL)?)
}

/// A copy of the tracee's descriptor `number`: the same open file. Close-on-exec here whatever it is there.
pub fn copy_descriptor(pidfd: BorrowedFd<'_>, number: RawFd) -> io::Result<OwnedFd> {
    // No descriptor anywhere, and nothing that rustix would pass on: it panics where debug assertions are compiled in.
    if number < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    Ok(pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty())?)
}

/// Reads up to `into.len()` bytes of the memory of thread `tid` at `address`; short where its memory ends.
///
/// By number, not by pidfd: the caller asks the listener afterwards whether it was the right process.
pub fn read_memory(tid: u32, address: u64, into: &mut [u8]) -> io::Result<usize> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(tid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?);
    let base = usize::try_from(address).map_err(|_| io::Error::from_raw_os_error(libc::EFAULT))?;
    let remote = [RemoteIoVec { base, len: into.len() }];
    Ok(process_vm_readv(pid, &mut [IoSliceMut::new(into)], &remote)?)
}
