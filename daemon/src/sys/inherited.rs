//! A descriptor that the caller gave by number: `--ready-fd`, slirp4netns's `--exit-fd`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use anyhow::Context;
use rustix::io::{FdFlags, fcntl_setfd};

/// Takes descriptor `number` over from the caller, so that nothing we start inherits it.
pub fn take(option: &str, number: RawFd) -> anyhow::Result<File> {
    let context = || format!("{option} {number}: not an open descriptor from 3 up");
    if number < 3 {
        return Err(io::Error::from(io::ErrorKind::InvalidInput)).with_context(context);
    }
    // SAFETY: borrowed for one system call that answers EBADF where there is no such descriptor.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_setfd(borrowed, FdFlags::CLOEXEC).with_context(context)?;
    // SAFETY: it is open, was opened before we were executed, and this is called once for a number, before anything else
    // of ours has taken a descriptor from outside.
    Ok(unsafe { File::from_raw_fd(number) })
}

/// The same of any descriptor: standard input, output and error stay what they are, and a copy is taken.
pub fn take_any(option: &str, number: RawFd) -> anyhow::Result<OwnedFd> {
    let copied = match number {
        0 => io::stdin().as_fd().try_clone_to_owned(),
        1 => io::stdout().as_fd().try_clone_to_owned(),
        2 => io::stderr().as_fd().try_clone_to_owned(),
        _ => return take(option, number).map(OwnedFd::from),
    };
    copied.with_context(|| format!("{option} {number}"))
}
