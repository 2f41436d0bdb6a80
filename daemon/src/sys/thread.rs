//! Threads of this process, seen by another one: whether one can run, and interrupting one that sleeps in a system call.

use std::io;

use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

const WAKE: Signal = Signal::SIGUSR1;

extern "C" fn nothing(_: i32) {}

/// Makes [`ThreadHandle::interrupt`] end a sleeping call with EINTR: in this thread and those it starts, whatever signals
/// the process was started without. Once a process.
pub fn install_wake_up() -> io::Result<()> {
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, which is async-signal-safe.
    unsafe { sigaction(WAKE, &action) }?;
    SigSet::from(WAKE).thread_unblock()?;
    Ok(())
}

/// The calling thread, to be interrupted by another. Valid only while that thread lives: it must withdraw the handle.
#[derive(Clone, Copy)]
pub struct ThreadHandle(Pthread);

impl ThreadHandle {
    pub fn current() -> Self {
        Self(pthread_self())
    }

    /// Ends the call the thread sleeps in with EINTR; does nothing to one that is not in a call.
    pub fn interrupt(self) {
        let _ = pthread_kill(self.0, WAKE);
    }
}

/// A thread's number, good for a look at it in /proc.
#[derive(Clone, Copy, Debug)]
pub struct ThreadId(i32);

impl ThreadId {
    pub fn current() -> Self {
        thread_local!(static OWN: ThreadId = ThreadId(nix::unistd::gettid().as_raw()));
        OWN.with(|own| *own)
    }

    /// It runs, or would if it had a processor: on a machine with too much to do, that may take seconds.
    pub fn is_runnable(self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{}/stat", self.0));
        // proc_pid_stat(5): the state follows the name, which may hold anything.
        stat.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('R')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_runs_is_told_from_one_that_sleeps() {
        assert!(ThreadId::current().is_runnable());
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let sleeper = std::thread::spawn(move || {
            tell.send(ThreadId::current()).unwrap();
            ended.recv().unwrap_err()
        });
        let id = told.recv().unwrap();
        while id.is_runnable() {
            std::thread::yield_now();
        }
        drop(end);
        sleeper.join().unwrap();
        assert!(!id.is_runnable(), "gone");
    }
}
