//! What a signal does when nobody waits for it. Rust's runtime ignores SIGPIPE before `main`, which would leak into the
//! workspace; so the disposition that the caller left us is read before the runtime starts.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SigHandler, Signal, signal};

static SIGPIPE_WAS_IGNORED: AtomicBool = AtomicBool::new(false);

/// Run by the loader before Rust's runtime, through `.init_array`.
extern "C" fn remember_sigpipe() {
    let mut current = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a null new action only reads; `current` has room for one.
    let read = unsafe { libc::sigaction(libc::SIGPIPE, std::ptr::null(), current.as_mut_ptr()) };
    if read == 0 {
        // SAFETY: sigaction succeeded and filled it in.
        let current = unsafe { current.assume_init() };
        SIGPIPE_WAS_IGNORED.store(current.sa_sigaction == libc::SIG_IGN, Ordering::Relaxed);
    }
}

#[used]
// SAFETY: `.init_array` holds pointers to functions that the loader calls with arguments this one ignores; it touches
// an atomic and nothing of Rust's runtime.
#[unsafe(link_section = ".init_array")]
static REMEMBER_SIGPIPE: extern "C" fn() = remember_sigpipe;

/// Gives SIGPIPE the disposition this process was started with; for the moment before an exec.
pub fn restore_sigpipe() -> io::Result<()> {
    let was_ignored = SIGPIPE_WAS_IGNORED.load(Ordering::Relaxed);
    set(Signal::SIGPIPE, if was_ignored { SigHandler::SigIgn } else { SigHandler::SigDfl })
}

/// Children can be waited for even where the caller ignored SIGCHLD.
pub fn default_sigchld() -> io::Result<()> {
    set(Signal::SIGCHLD, SigHandler::SigDfl)
}

/// Has the kernel reap this process's children: none of them becomes a zombie, none can be waited for.
pub fn ignore_sigchld() -> io::Result<()> {
    set(Signal::SIGCHLD, SigHandler::SigIgn)
}

fn set(which: Signal, handler: SigHandler) -> io::Result<()> {
    // SAFETY: only SIG_DFL and SIG_IGN are set: no code of ours runs in a signal handler.
    unsafe { signal(which, handler) }?;
    Ok(())
}
