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

/// The same for a filter without a listener, which does not slow a process down by the mitigation for code that may not be
/// trusted (SPEC_ALLOW; before Linux 5.16 every filter brought it): one that runs no code but ours, or would have no filter
/// otherwise.
pub fn load_unmitigated(program: &Program) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter;
    use crate::rare_options::{OptionName, RARE, UNKNOWN};
    use nix::errno::Errno;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    use std::os::fd::AsRawFd;

    #[test]
    fn rare_options_stop_and_common_ones_do_not() {
        const HIGH: i64 = 7 << 32;
        let program = filter::build().unwrap();
        let under_filter = std::thread::spawn(move || {
            nix::sys::prctl::set_no_new_privs().unwrap();
            // A stopped call that nobody can answer any more gets ENOSYS.
            drop(load(&program).unwrap());
            let stream = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
            let errno = |level: i64, name: i64| {
                let value = 1_i32;
                // SAFETY: the kernel reads an int, alive here.
                let result = unsafe {
                    libc::syscall(libc::SYS_setsockopt, stream.as_raw_fd(), level, name, &raw const value, 4)
                };
                if result < 0 { Errno::last_raw() } else { 0 }
            };
            let stopped = RARE.into_iter().chain(UNKNOWN).all(|OptionName { level, name }| {
                let (level, name) = (i64::from(level), i64::from(name));
                [(level, name), (level | HIGH, name), (level, name | HIGH), (level, name + 1000), (level, -1)]
                    .into_iter()
                    .all(|(level, name)| errno(level, name) == libc::ENOSYS)
            });
            let common = [
                (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
                (libc::SOL_SOCKET, libc::SO_REUSEADDR),
                (libc::IPPROTO_TCP, libc::TCP_NODELAY),
                (libc::IPPROTO_IP, libc::IP_TOS),
            ];
            (stopped, common.map(|(level, name)| errno(level.into(), name.into())))
        });
        assert_eq!(under_filter.join().unwrap(), (true, [0; 4]));
    }
}
