//! Signals that monitor and init hand on: which, and who sent them.

use anyhow::Context;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;

/// Who sent a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// kill(2) and its kin.
    Process,
    /// The kernel: the terminal, which sends to the whole foreground group, so that the command has it already.
    Kernel,
}

/// What a wrapper is expected to hand on. Stop signals are not among them: ^Z stops the whole group, the monitor too.
const HANDED_ON: [Signal; 10] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGTERM,
    Signal::SIGCONT,
    Signal::SIGWINCH,
    Signal::SIGPWR,
];

/// Signals that are read from a signalfd rather than delivered.
pub fn handled() -> SigSet {
    HANDED_ON.into_iter().chain([Signal::SIGCHLD]).collect()
}

/// Waits for the next one.
pub fn next(signals: &SignalFd) -> anyhow::Result<(Signal, Origin)> {
    loop {
        match signals.read_signal() {
            Ok(Some(received)) => {
                if let Some(known) = decode(&received) {
                    return Ok(known);
                }
            }
            Ok(None) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot read signals"),
        }
    }
}

fn decode(received: &libc::signalfd_siginfo) -> Option<(Signal, Origin)> {
    let signal = Signal::try_from(received.ssi_signo.cast_signed()).ok()?;
    Some((signal, origin(received.ssi_code)))
}

/// si_code is positive for what the kernel sends and 0 or negative for what a process sends (sigaction(2)).
fn origin(code: libc::c_int) -> Origin {
    if code > 0 { Origin::Kernel } else { Origin::Process }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sender_is_told_by_its_code() {
        let cases = [
            (libc::SI_USER, Origin::Process),
            (libc::SI_QUEUE, Origin::Process),
            (libc::SI_TKILL, Origin::Process),
            (libc::SI_KERNEL, Origin::Kernel),
            (libc::CLD_EXITED, Origin::Kernel),
        ];
        for (code, origin) in cases {
            assert_eq!(super::origin(code), origin, "{code}");
        }
    }
}
