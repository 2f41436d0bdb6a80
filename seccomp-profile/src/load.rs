//! Installs a filter on the calling thread. The crate's only unsafe code.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::filter::Program;

/// Installs `program` on the calling thread, for it and all it forks, and returns the listener (close-on-exec).
///
/// Needs CAP_SYS_ADMIN in the caller's user namespace or no_new_privs (seccomp(2)); EACCES otherwise. EBUSY: an earlier
/// filter of this process already has a listener, and the kernel takes only one.
pub fn load(program: &Program) -> io::Result<OwnedFd> {
    let result = install(program, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
    let listener = RawFd::try_from(result).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: a result with NEW_LISTENER is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(listener) })
}

/// The same for a filter without a listener, on a process that runs no code but ours: it is not slowed down by the
/// mitigation for code that may not be trusted (SPEC_ALLOW; before Linux 5.16 every filter brought it).
pub fn load_for_ourselves(program: &Program) -> io::Result<()> {
    install(program, libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW).map(drop)
}

fn install(program: &Program, flags: libc::c_ulong) -> io::Result<libc::c_long> {
    let length = u16::try_from(program.instructions.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let fprog = libc::sock_fprog { len: length, filter: program.instructions.as_ptr().cast_mut() };
    // SAFETY: `fprog` points to `length` instructions that live until the call returns; the kernel copies and only
    // reads them.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const fprog) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
