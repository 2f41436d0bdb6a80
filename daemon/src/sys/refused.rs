//! Which system calls are refused here whatever they ask for, as a container's seccomp filter does.

use std::io;

/// Of the calls that the supervisor cannot do without, the first that is refused.
///
/// Each is made with a descriptor or a process that does not exist, about which a kernel that has the call says EBADF or
/// ESRCH.
pub fn call_of_the_supervisor() -> Option<&'static str> {
    const NOBODY: libc::c_long = -1;
    let calls = [
        ("pidfd_getfd", libc::SYS_pidfd_getfd),
        ("process_vm_readv", libc::SYS_process_vm_readv),
        ("kcmp", libc::SYS_kcmp),
        ("setns", libc::SYS_setns),
    ];
    let refused = |number: libc::c_long| {
        // SAFETY: numbers only; none of these calls gets as far as memory, for the first argument names nobody.
        let result = unsafe { libc::syscall(number, NOBODY, 0, 0, 0, 0, 0) };
        let errno = io::Error::last_os_error().raw_os_error();
        result == -1 && matches!(errno, Some(libc::EPERM | libc::EACCES | libc::ENOSYS))
    };
    calls.into_iter().find(|&(_, number)| refused(number)).map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    #[test]
    fn none_is_refused_here() {
        assert_eq!(super::call_of_the_supervisor(), None);
    }
}
