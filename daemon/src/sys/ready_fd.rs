//! A descriptor that the caller gave by number: `--ready-fd`, slirp4netns's `--exit-fd`.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, RawFd};

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
    // SAFETY: it is open, was opened before we were executed, and this is called once for a number, before anything else of ours
    // has taken a descriptor from outside.
    Ok(unsafe { File::from_raw_fd(number) })
}
