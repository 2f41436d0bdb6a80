//! clone(2) without a new stack: a fork that also makes namespaces, so that the first process of the pid namespace is
//! a direct child of the caller (unshare(2) would put a process between the two).

use std::io;

use nix::sched::CloneFlags;
use nix::unistd::Pid;

/// Returns the child's pid in the caller, None in the child. The caller must have one thread: the child goes on with a
/// copy of its memory, locks included.
pub fn clone(namespaces: CloneFlags) -> io::Result<Option<Pid>> {
    let flags = libc::c_long::from(namespaces.bits() | libc::SIGCHLD);
    // SAFETY: without CLONE_VM the child has its own copy of the memory, and a null stack keeps the current one, as
    // fork does; the caller has one thread, so that no lock is held by a thread that does not exist in the child.
    let ret = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match ret {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(Pid::from_raw(libc::pid_t::try_from(pid).map_err(io::Error::other)?))),
    }
}
