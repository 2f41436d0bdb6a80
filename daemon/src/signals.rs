//! Signals as monitor and init have to do with them: which are handed on, who sent them, what a process that is ended by
//! one leaves behind, and masks.

use anyhow::Context;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::WaitStatus;

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

/// What a shell would give: the code, or 128+n for signal n. None when it has not ended.
pub fn exit_code(status: WaitStatus) -> Option<u8> {
    match status {
        WaitStatus::Exited(_, code) => u8::try_from(code & 0xff).ok(),
        WaitStatus::Signaled(_, signal, _) => u8::try_from(128 + signal as i32).ok(),
        _ => None,
    }
}

/// A signal mask from the bits of /proc/PID/status: bit n-1 for signal n. Realtime signals are left out.
pub fn mask_from_bits(bits: u64) -> SigSet {
    Signal::iterator().filter(|&signal| bits & bit(signal) != 0).collect()
}

/// The bits of a signal mask; the opposite of [`mask_from_bits`].
pub fn mask_to_bits(mask: &SigSet) -> u64 {
    mask.iter().map(bit).fold(0, |bits, bit| bits | bit)
}

fn bit(signal: Signal) -> u64 {
    1 << (signal as u32 - 1)
}

#[cfg(test)]
mod tests {
    use nix::unistd::Pid;

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

    #[test]
    fn exit_codes_are_the_shells() {
        let pid = Pid::from_raw(2);
        let cases = [
            (WaitStatus::Exited(pid, 0), Some(0)),
            (WaitStatus::Exited(pid, 7), Some(7)),
            (WaitStatus::Signaled(pid, Signal::SIGTERM, false), Some(143)),
            (WaitStatus::Signaled(pid, Signal::SIGKILL, true), Some(137)),
            (WaitStatus::Stopped(pid, Signal::SIGTSTP), None),
        ];
        for (status, want) in cases {
            assert_eq!(exit_code(status), want, "{status:?}");
        }
    }

    #[test]
    fn masks_survive_the_command_line() {
        for bits in [0, 1, 0b1000_0000_0010, 1 << 16] {
            assert_eq!(mask_to_bits(&mask_from_bits(bits)), bits);
        }
        assert_eq!(mask_to_bits(&[Signal::SIGHUP, Signal::SIGINT].into_iter().collect()), 0b11);
    }
}
