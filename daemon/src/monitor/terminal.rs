//! The terminal's foreground group. A shell in the workspace makes itself the foreground group and, in a pid namespace,
//! cannot give that back: its parent's group has no number there.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, killpg};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};

/// The caller's terminal, where we were in its foreground at the start.
pub struct Terminal(Option<OwnedFd>);

impl Terminal {
    pub fn of_caller() -> Self {
        let (input, output, error) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let standard = [input.as_fd(), output.as_fd(), error.as_fd()];
        let foreground = standard.into_iter().find(|fd| tcgetpgrp(fd).is_ok_and(|group| group == getpgrp()));
        Self(foreground.and_then(|fd| fd.try_clone_to_owned().ok()))
    }

    /// Makes our group the foreground group again, where the one that is has no process any more.
    pub fn take_back(&self) {
        let Some(terminal) = &self.0 else { return };
        let Ok(group) = tcgetpgrp(terminal) else { return };
        if group == getpgrp() || !is_gone(group) {
            return;
        }
        // From the background this would stop us (SIGTTOU).
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTTOU);
        if let Ok(before) = mask.thread_swap_mask(SigmaskHow::SIG_BLOCK) {
            // A terminal that is gone cannot be given back.
            let _ = tcsetpgrp(terminal, getpgrp());
            let _ = before.thread_set_mask();
        }
    }
}

fn is_gone(group: Pid) -> bool {
    group.as_raw() <= 0 || killpg(group, None) == Err(Errno::ESRCH)
}
