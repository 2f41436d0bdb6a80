//! The descriptor table: close_range(2).

use std::io;

/// Marks every descriptor from 3 up close-on-exec (Linux ≥ 5.11).
pub fn close_on_exec_from_3() -> io::Result<()> {
    // SAFETY: close_range takes three integers, and with CLOSE_RANGE_CLOEXEC closes nothing.
    match unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
