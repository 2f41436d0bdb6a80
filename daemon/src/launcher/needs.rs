//! What sidestep needs and does not find, as one sentence with the cause and the fix.

use std::fs;
use std::io;

use nix::errno::Errno;

/// The switches that can forbid user namespaces to an ordinary user; None where the kernel has no such file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsernsSysctls {
    unprivileged_userns_clone: Option<u64>,
    max_user_namespaces: Option<u64>,
    apparmor_restrict_unprivileged_userns: Option<u64>,
}

impl UsernsSysctls {
    pub fn read() -> Self {
        let number = |name: &str| fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().parse().ok();
        Self {
            unprivileged_userns_clone: number("kernel/unprivileged_userns_clone"),
            max_user_namespaces: number("user/max_user_namespaces"),
            apparmor_restrict_unprivileged_userns: number("kernel/apparmor_restrict_unprivileged_userns"),
        }
    }

    /// Why clone(2) with new namespaces failed.
    pub fn clone_refused(self, error: &io::Error) -> String {
        let cause = if self.unprivileged_userns_clone == Some(0) {
            "the system forbids them to ordinary users: as root, sysctl -w kernel.unprivileged_userns_clone=1"
        } else if self.max_user_namespaces == Some(0) {
            "the system allows none: as root, sysctl -w user.max_user_namespaces=15000"
        } else {
            match errno(error) {
                Errno::EPERM => {
                    "not permitted; in a container its seccomp profile must allow clone and unshare with new \
                     namespaces (docker run --security-opt seccomp=unconfined), in a chroot it is never permitted"
                }
                Errno::ENOSPC => {
                    "a limit of user.max_*_namespaces, here or in an outer user namespace, is reached: raise it"
                }
                Errno::EUSERS => "32 user namespaces inside one another is the kernel's limit: run it further out",
                Errno::EINVAL => "the kernel was built without them (CONFIG_USER_NS, CONFIG_NET_NS, CONFIG_PID_NS)",
                other => return format!("cannot make user and network namespaces: {}", other.desc()),
            }
        };
        format!("cannot make user and network namespaces: {cause}")
    }

    /// A later refusal that is really AppArmor's: there clone(2) succeeds, and every capability inside is without force.
    pub fn explain_inside(self, errno: Option<Errno>) -> Option<&'static str> {
        let refused = matches!(errno, Some(Errno::EPERM | Errno::EACCES));
        (refused && self.apparmor_restrict_unprivileged_userns == Some(1)).then_some(
            "AppArmor takes the capabilities of user namespaces away: give sidestep a profile with `userns,`, or as \
             root sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        )
    }
}

/// Why no TAP could be made.
pub fn tap_refused(error: &io::Error) -> String {
    match errno(error) {
        Errno::ENOENT => {
            "cannot open /dev/net/tun: it does not exist; load the module (modprobe tun as root) or, in a \
                          container, add the device (docker run --device /dev/net/tun)"
                .into()
        }
        Errno::EACCES => "cannot open /dev/net/tun: not permitted; as root, chmod 0666 /dev/net/tun".into(),
        Errno::EPERM => "cannot use /dev/net/tun: the device is not allowed here; in a container add it (docker run \
                         --device /dev/net/tun)"
            .into(),
        Errno::ENODEV | Errno::ENXIO => {
            "cannot open /dev/net/tun: the kernel has no tun driver loaded; as root, modprobe tun".into()
        }
        Errno::EBUSY => "cannot make the TAP: a device of that name exists already; choose another --ifname".into(),
        other => format!("cannot make a TAP with /dev/net/tun: {}", other.desc()),
    }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_names_its_fix() {
        let closed = UsernsSysctls { unprivileged_userns_clone: Some(0), ..UsernsSysctls::default() };
        let none = UsernsSysctls { max_user_namespaces: Some(0), ..UsernsSysctls::default() };
        let open = UsernsSysctls { max_user_namespaces: Some(100), ..UsernsSysctls::default() };
        let cases = [
            (closed, libc::EPERM, "kernel.unprivileged_userns_clone=1"),
            (none, libc::ENOSPC, "user.max_user_namespaces=15000"),
            (open, libc::ENOSPC, "raise it"),
            (open, libc::EPERM, "seccomp=unconfined"),
            (open, libc::EINVAL, "CONFIG_USER_NS"),
        ];
        for (sysctls, number, want) in cases {
            let text = sysctls.clone_refused(&io::Error::from_raw_os_error(number));
            assert!(text.contains(want) && !text.contains("os error"), "{text}");
        }
        for (number, want) in [(libc::ENOENT, "modprobe tun"), (libc::EACCES, "chmod 0666"), (libc::EPERM, "--device")]
        {
            assert!(tap_refused(&io::Error::from_raw_os_error(number)).contains(want));
        }
    }

    #[test]
    fn apparmor_is_named_only_where_it_restricts() {
        let restricted = UsernsSysctls { apparmor_restrict_unprivileged_userns: Some(1), ..UsernsSysctls::default() };
        assert!(restricted.explain_inside(Some(Errno::EPERM)).is_some());
        assert!(restricted.explain_inside(Some(Errno::EINVAL)).is_none());
        assert!(UsernsSysctls::default().explain_inside(Some(Errno::EPERM)).is_none());
    }
}
