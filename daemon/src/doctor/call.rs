//! Two connects of the trial's process, stopped by its filter: at the first the supervisor's means are tried, the second
//! is left to the kernel.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{bail, ensure};

use super::{Check, Finding};
use crate::launcher::needs;
use crate::supervisor::facts;
use crate::supervisor::notification::Notification;
use crate::supervisor::tracee::{self, TraceeError, TraceeFd, Tracees};
use crate::sys::listener::{Listener, NOTIFICATION_WORDS, Received, Reply};
use crate::sys::socket;

/// Answers both; what was found at the first is added.
pub fn answered(listener: &Listener, patience: Duration, findings: &mut Vec<Finding>) -> anyhow::Result<()> {
    findings.push(match listener.set_sync_wake_up() {
        Ok(()) => Finding::ok(Check::SyncWakeUp, "callers are woken on the processor that answers"),
        Err(_) => Finding::warn(Check::SyncWakeUp, needs::no_sync_wake_up()),
    });
    let first = notification(listener, patience)?;
    examine(listener, &first, findings);
    let _ = listener.send(first.id, Reply::Return(0))?;
    let second = notification(listener, patience)?;
    let _ = listener.send(second.id, Reply::Continue)?;
    Ok(())
}

fn notification(listener: &Listener, patience: Duration) -> anyhow::Result<Notification> {
    ensure!(listener.is_notified(patience)?, "the trial's process does not connect");
    let words = [const { AtomicU64::new(0) }; NOTIFICATION_WORDS];
    match listener.receive(&words)? {
        Received::Notification => Ok(Notification::from_words(&words)),
        Received::Nothing | Received::FilterUnused => bail!("the trial's process has not waited for its answer"),
    }
}

fn examine(listener: &Listener, connect: &Notification, findings: &mut Vec<Finding>) {
    let number = TraceeFd(connect.int_argument(0));
    let looked = needs::supervisor_hindered()
        .map_or_else(|| looked_into(connect, number).map_err(|error| needs::tracee_refused(&error)), Err);
    let copy = match looked {
        Ok(copy) => copy,
        Err(missing) => return findings.push(Finding::fail(Check::PidfdGetfd, missing)),
    };
    let scope = needs::sysctl("kernel/yama/ptrace_scope");
    let scope = scope.map(|scope| format!(" (kernel.yama.ptrace_scope={scope})")).unwrap_or_default();
    findings.push(Finding::ok(Check::PidfdGetfd, format!("a caller's socket and memory can be looked into{scope}")));
    findings.push(match facts::netns_of(copy.as_fd()) {
        Ok(_) => Finding::ok(Check::NetnsCookie, "sockets say which network namespace they are of"),
        Err(error) => Finding::fail(Check::NetnsCookie, needs::no_netns_cookie(&error)),
    });
    let swapped = socket::new(libc::AF_INET, libc::SOCK_STREAM, 0)
        .and_then(|host| listener.replace(connect.id, host.as_fd(), number.0, true));
    findings.push(match swapped {
        Ok(_) => Finding::ok(Check::Addfd, "a socket of the host takes the place of a caller's"),
        Err(error) => Finding::fail(Check::Addfd, needs::no_addfd(&error)),
    });
}

/// A copy of the caller's socket, after its address has been read, too.
fn looked_into(connect: &Notification, number: TraceeFd) -> io::Result<OwnedFd> {
    let errno = |error: TraceeError| {
        io::Error::from_raw_os_error(match error {
            TraceeError::Gone => libc::ESRCH,
            TraceeError::NotPermitted => libc::EPERM,
            TraceeError::Errno(errno) => errno,
        })
    };
    let (_, copy) = Tracees::default().copy_descriptor(connect.tid, number).map_err(errno)?;
    let [_, address, _] = connect.arguments;
    tracee::read_address(connect.tid, address, connect.int_argument(2)).map_err(errno)?;
    Ok(copy)
}
