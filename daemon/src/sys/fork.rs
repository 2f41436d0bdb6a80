//! fork(2) in a process that has one thread.

use std::io;

use nix::unistd::{ForkResult, Pid};

/// Runs `child` in a new process, which exits with its result; returns the new process's id here.
///
/// Refuses in a process with more than one thread: another thread's lock (the allocator's, say) would stay held for
/// ever in the child.
pub fn fork(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("fork with more than one thread"));
    }
    // SAFETY: this is the only thread, so the child's memory is whole and every lock is its own.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(1);
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(code) }
        }
    }
}
