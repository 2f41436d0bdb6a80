//! Interrupting a thread that sleeps in a system call.

use std::io;

use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

const WAKE: Signal = Signal::SIGUSR1;

extern "C" fn nothing(_: i32) {}

/// Makes [`ThreadHandle::interrupt`] end a sleeping call with EINTR. Once a process, before it has other threads.
pub fn install_wake_up() -> io::Result<()> {
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, which is async-signal-safe.
    unsafe { sigaction(WAKE, &action) }?;
    // Threads that are made later take this mask over; the monitor's has the signal blocked.
    let mut mask = SigSet::empty();
    mask.add(WAKE);
    mask.thread_unblock()?;
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
