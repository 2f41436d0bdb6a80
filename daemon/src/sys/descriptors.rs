//! The descriptor table: close_range(2).

use std::fs::OpenOptions;
use std::io;

use nix::unistd::{dup2_stdin, dup2_stdout};

/// Marks every descriptor from 3 up close-on-exec (Linux ≥ 5.11).
pub fn close_on_exec_from_3() -> io::Result<()> {
    // SAFETY: close_range takes three integers, and with CLOSE_RANGE_CLOEXEC closes nothing.
    check(unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) })
}

/// Gives up what was inherited, so that the workspace's command alone decides when a pipe ends: descriptors from 3 up are
/// closed, standard input and output become /dev/null. For init, once it has started the command: everything it opens
/// itself is opened later.
pub fn let_go() -> io::Result<()> {
    release_standard()?;
    // SAFETY: close_range takes three integers; init owns no descriptor at this point.
    check(unsafe { libc::close_range(3, libc::c_uint::MAX, 0) })
}

/// Standard input and output become /dev/null.
pub fn release_standard() -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
