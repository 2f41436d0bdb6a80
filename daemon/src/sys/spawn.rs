//! What happens between fork and exec of the processes we start. No allocation there, only system calls.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, getppid, setsid};

use super::{descriptors, disposition};
use crate::FAILURE;

/// A worker runs in a session of its own (^C and ^Z go to the terminal's group) and takes no descriptor along but its
/// standard ones. With `die_with_parent` it does not outlive the monitor.
pub fn worker(command: &mut Command, die_with_parent: bool) -> &mut Command {
    let parent = Pid::this();
    let prepare = move || -> io::Result<()> {
        setsid()?;
        if die_with_parent {
            set_pdeathsig(Signal::SIGKILL)?;
            if getppid() != parent {
                // SAFETY: _exit ends the process without running anything of it. There is no parent to report to.
                unsafe { libc::_exit(FAILURE.into()) };
            }
        }
        descriptors::close_on_exec_from_3()
    };
    // SAFETY: the closure makes system calls and nothing else; it captures one pid.
    unsafe { command.pre_exec(prepare) }
}

/// The workspace's command gets the signal mask and SIGPIPE disposition that the caller of sidestep had. With
/// `die_with_parent` (no pid namespace to do it) it does not outlive init.
pub fn workspace_command(command: &mut Command, mask: SigSet, die_with_parent: bool) -> &mut Command {
    let prepare = move || -> io::Result<()> {
        if die_with_parent {
            set_pdeathsig(Signal::SIGKILL)?;
        }
        disposition::restore_sigpipe()?;
        mask.thread_set_mask()?;
        Ok(())
    };
    // SAFETY: the closure makes system calls and nothing else; it captures a signal set and a flag.
    unsafe { command.pre_exec(prepare) }
}
