//! What sidestep needs and does not find: each sentence, with its cause and what mends it, once. `sidestep run` says it
//! as an error or a warning, `sidestep doctor` shows the two parts apart.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::sys;
use crate::sys::landlock::ABI_NETWORK;

/// Written out, one sentence: `cause; fix`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    pub cause: String,
    /// None where nothing is known to help.
    pub fix: Option<String>,
    /// What the kernel said, for whoever knows a reason behind it.
    errno: Option<i32>,
}

impl Missing {
    fn new(cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { cause: cause.into(), fix: Some(fix.into()), errno: None }
    }

    fn unexplained(cause: impl Into<String>) -> Self {
        Self { cause: cause.into(), fix: None, errno: None }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.fix {
            Some(fix) => write!(f, "{}; {fix}", self.cause),
            None => f.write_str(&self.cause),
        }
    }
}

impl std::error::Error for Missing {}

/// The switches that can forbid namespaces to an ordinary user; None where the kernel has no such file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsernsSysctls {
    unprivileged_userns_clone: Option<u64>,
    max_user_namespaces: Option<u64>,
    max_net_namespaces: Option<u64>,
    apparmor_restrict_unprivileged_userns: Option<u64>,
}

impl UsernsSysctls {
    pub fn read() -> Self {
        Self {
            unprivileged_userns_clone: sysctl("kernel/unprivileged_userns_clone"),
            max_user_namespaces: sysctl("user/max_user_namespaces"),
            max_net_namespaces: sysctl("user/max_net_namespaces"),
            apparmor_restrict_unprivileged_userns: sysctl("kernel/apparmor_restrict_unprivileged_userns"),
        }
    }

    /// Why clone(2) with new namespaces failed.
    pub fn clone_refused(self, error: &io::Error) -> Missing {
        let cannot = |why: &str| format!("cannot make user and network namespaces: {why}");
        let (cause, fix) = if self.unprivileged_userns_clone == Some(0) {
            ("the system forbids them to ordinary users", "as root, sysctl -w kernel.unprivileged_userns_clone=1")
        } else if self.max_user_namespaces == Some(0) {
            ("the system allows none", "as root, sysctl -w user.max_user_namespaces=15000")
        } else {
            match errno(error) {
                Errno::EPERM => (
                    "not permitted",
                    "in a container its seccomp profile must allow clone and unshare with new namespaces (docker run \
                     --security-opt seccomp=unconfined), in a chroot it is never permitted",
                ),
                Errno::ENOSPC => (
                    "a limit of user.max_*_namespaces, here or in an outer user namespace, is reached",
                    "as root, raise it with sysctl -w",
                ),
                Errno::EUSERS => ("32 user namespaces inside one another is the kernel's limit", "run it further out"),
                Errno::EINVAL => (
                    "the kernel was built without them",
                    "run a kernel with CONFIG_USER_NS, CONFIG_NET_NS and CONFIG_PID_NS",
                ),
                other => return Missing::unexplained(cannot(other.desc())),
            }
        };
        Missing::new(cannot(cause), fix)
    }

    /// A refusal inside that is really AppArmor's: there clone(2) succeeds, and every capability inside is without force.
    fn explain_inside(self, errno: Option<i32>) -> Option<(&'static str, &'static str)> {
        let refused = matches!(errno.map(Errno::from_raw), Some(Errno::EPERM | Errno::EACCES));
        (refused && self.apparmor_restrict_unprivileged_userns == Some(1)).then_some((
            "AppArmor takes the capabilities of user namespaces away",
            "give sidestep a profile with `userns,`, or as root sysctl -w \
             kernel.apparmor_restrict_unprivileged_userns=0",
        ))
    }

    /// Those there are, as sysctl(8) prints them.
    pub fn list(self) -> String {
        let all = [
            ("kernel.unprivileged_userns_clone", self.unprivileged_userns_clone),
            ("user.max_user_namespaces", self.max_user_namespaces),
            ("user.max_net_namespaces", self.max_net_namespaces),
            ("kernel.apparmor_restrict_unprivileged_userns", self.apparmor_restrict_unprivileged_userns),
        ];
        let there = all.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?)));
        there.collect::<Vec<_>>().join(", ")
    }
}

/// Why unshare(2) made no network namespace, inside a user namespace.
pub fn network_refused(refused: Errno) -> Missing {
    let missing = match refused {
        Errno::ENOSPC => Missing::new(
            "cannot make a network namespace: the limit user.max_net_namespaces, here or in an outer user namespace, \
             is reached",
            "as root, sysctl -w user.max_net_namespaces=15000",
        ),
        other => Missing::unexplained(format!("cannot make a network namespace: {}", other.desc())),
    };
    Missing { errno: Some(refused as i32), ..missing }
}

/// A step inside the new namespaces that failed, with AppArmor as the reason where it is one.
pub fn inside(error: &anyhow::Error) -> Missing {
    explained(error, UsernsSysctls::read())
}

fn explained(error: &anyhow::Error, sysctls: UsernsSysctls) -> Missing {
    let missing = error.downcast_ref::<Missing>().cloned();
    let errno = missing.as_ref().and_then(|missing| missing.errno).or_else(|| errno_of(error));
    let missing = missing.unwrap_or_else(|| Missing::unexplained(format!("{error:#}")));
    let refused = matches!(errno.map(Errno::from_raw), Some(Errno::EPERM | Errno::EACCES));
    match sysctls.explain_inside(errno) {
        Some((cause, fix)) => Missing::new(format!("{}: {cause}", missing.cause), fix),
        // Nothing else is in the way of who has every capability.
        None if refused && missing.fix.is_none() => Missing::new(
            missing.cause,
            "in a container its seccomp and AppArmor profiles must allow it (docker run --security-opt \
             seccomp=unconfined --security-opt apparmor=unconfined)",
        ),
        None => missing,
    }
}

fn errno_of(error: &anyhow::Error) -> Option<i32> {
    error.chain().find_map(|cause| {
        let io = cause.downcast_ref().and_then(io::Error::raw_os_error);
        let rustix = cause.downcast_ref::<rustix::io::Errno>().map(|errno| errno.raw_os_error());
        let nix = cause.downcast_ref::<Errno>().map(|&errno| errno as i32);
        io.or(rustix).or(nix)
    })
}

/// Why no TAP could be made.
pub fn tap_refused(error: &io::Error) -> Missing {
    let (cause, fix) = match errno(error) {
        Errno::ENOENT => (
            "cannot open /dev/net/tun: it does not exist",
            "load the module (modprobe tun as root) or, in a container, add the device (docker run --device \
             /dev/net/tun)",
        ),
        Errno::EACCES => ("cannot open /dev/net/tun: not permitted", "as root, chmod 0666 /dev/net/tun"),
        Errno::EPERM => (
            "cannot use /dev/net/tun: the device is not allowed here",
            "in a container add it (docker run --device /dev/net/tun)",
        ),
        Errno::ENODEV | Errno::ENXIO => {
            ("cannot open /dev/net/tun: the kernel has no tun driver loaded", "as root, modprobe tun")
        }
        Errno::EBUSY => ("cannot make the TAP: a device of that name exists already", "choose another --ifname"),
        other => return Missing::unexplained(format!("cannot make a TAP with /dev/net/tun: {}", other.desc())),
    };
    Missing { errno: error.raw_os_error(), ..Missing::new(cause, fix) }
}

/// What the forwarder says of a TAP that was opened all the same.
pub fn no_segmentation(said: &str) -> Missing {
    Missing::unexplained(said)
}

/// Why there is no pid namespace: mounting a new /proc is refused where parts of the one in place are masked.
pub fn masked_proc() -> Missing {
    Missing::new(
        "/proc cannot be mounted here (parts of it are masked, as in a container)",
        "docker run --security-opt systempaths=unconfined leaves it whole; --pidns=auto does without",
    )
}

/// newuidmap(1) or newgidmap(1) is not there.
pub fn no_id_helper(helper: &str, ranges: &str) -> Missing {
    Missing::new(
        format!("{helper} is not installed: the ranges of {ranges} are not used"),
        "as root, apt-get install uidmap (or what has it elsewhere)",
    )
}

pub fn id_helper_failed(helper: &str, ranges: &str, said: &str) -> Missing {
    Missing::new(
        format!("{helper} failed ({said}): the ranges of {ranges} are not used"),
        format!(
            "it must be allowed what {ranges} has, and be setuid root or (in a container without CAP_SYS_ADMIN, as docker \
             run makes it) have that capability of its own: setcap cap_setuid+ep newuidmap, cap_setgid+ep newgidmap"
        ),
    )
}

/// There are no subordinate ids to use.
pub fn no_subordinate_ids(ranges: &str, user: &str) -> Missing {
    Missing::new(
        format!("{ranges} has no range for {user}, so there is one user inside"),
        "as root, give it 65536 that nobody has, in /etc/subuid and /etc/subgid (subuid(5))",
    )
}

pub fn no_capability_for_ids(word: &str) -> Missing {
    Missing::new(
        format!("cannot give the workspace its {word}s: root needs CAP_SETFCAP for that"),
        "docker run --cap-add SETFCAP gives it",
    )
}

/// There is nothing over which the workspace's own resolv.conf could be put.
pub fn no_resolv_conf(path: &str, error: &io::Error) -> Missing {
    Missing::new(
        format!("no DNS inside: {path} leads to no file ({})", error.kind()),
        "make one on the host: it may be empty",
    )
}

pub fn no_state_dir(path: &Path, error: &io::Error) -> Missing {
    Missing::new(
        format!("cannot make the directory {}: {}", path.display(), errno(error).desc()),
        "name another with --state-dir",
    )
}

/// The host gives the caller no ping socket.
pub fn no_ping(error: &io::Error, group: u32) -> Missing {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ping_group_range").unwrap_or_default();
    let range = range.split_whitespace().collect::<Vec<_>>().join(" ");
    match errno(error) {
        Errno::EACCES => Missing::new(
            format!(
                "ping works inside only to the gateway: net.ipv4.ping_group_range ({range}) is without group {group}"
            ),
            "as root, sysctl -w net.ipv4.ping_group_range='0 2147483647'",
        ),
        other => Missing::unexplained(format!("ping works inside only to the gateway: {}", other.desc())),
    }
}

/// What the forwarder says of a sandbox that it cannot enter.
pub fn no_sandbox(said: &anyhow::Error) -> Missing {
    Missing::unexplained(format!("{said:#}"))
}

/// Why the filter with a listener does not load.
pub fn filter_refused(error: &io::Error) -> Missing {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EBUSY) => Missing::new(
            "another seccomp filter of this process already has a listener (an outer sidestep, sysbox, WSL2's mirrored \
             networking), and the kernel takes only one",
            "start it outside of that, or stay with the TAP (--bypass=off)",
        ),
        Some(errno) => Missing::unexplained(format!("the kernel refuses the seccomp filter: {}", errno.desc())),
        None => Missing::unexplained(format!("the kernel refuses the seccomp filter: {error}")),
    }
}

/// Stopped calls are answered by way of another processor.
pub fn no_sync_wake_up() -> Missing {
    Missing::new(
        "the kernel cannot wake a caller on the processor that answers it: a connect takes some 60 µs longer",
        "Linux 6.6 has it",
    )
}

/// What keeps every supervisor from its work, asked before there is one.
pub fn supervisor_hindered() -> Option<Missing> {
    if sysctl("kernel/yama/ptrace_scope") == Some(3) {
        return Some(tracee_refused(&io::Error::from_raw_os_error(libc::EPERM)));
    }
    sys::refused::call_of_the_supervisor().map(|call| call_refused(&format!("{call} is refused")))
}

/// The supervisor may not look into a process of the workspace.
pub fn tracee_refused(error: &io::Error) -> Missing {
    match (errno(error), sysctl("kernel/yama/ptrace_scope")) {
        (Errno::EPERM, Some(3)) => Missing::new(
            cannot_look_into("kernel.yama.ptrace_scope=3 forbids it to everyone, until the next boot"),
            "boot with kernel.yama.ptrace_scope=2 or less (/etc/sysctl.d), or stay with the TAP",
        ),
        (Errno::EPERM, _) => call_refused("not permitted"),
        (other, _) => Missing::unexplained(cannot_look_into(other.desc())),
    }
}

fn call_refused(why: &str) -> Missing {
    Missing::new(
        cannot_look_into(why),
        "in a container its seccomp profile must allow pidfd_getfd, process_vm_readv, kcmp and setns (docker run \
         --security-opt seccomp=unconfined), or stay with the TAP",
    )
}

fn cannot_look_into(why: &str) -> String {
    format!("the supervisor cannot look into the workspace's processes: {why}")
}

/// No way to tell the host's sockets from the workspace's.
pub fn no_netns_cookie(error: &io::Error) -> Missing {
    Missing::new(
        format!("the kernel does not say which network namespace a socket is of ({})", errno(error).desc()),
        "Linux 5.14 does (SO_NETNS_COOKIE)",
    )
}

/// No way to put a host socket in a process's descriptor.
pub fn no_addfd(error: &io::Error) -> Missing {
    Missing::new(
        format!("the kernel puts no descriptor of ours in the workspace's processes: {}", errno(error).desc()),
        "Linux 5.9 does (SECCOMP_IOCTL_NOTIF_ADDFD)",
    )
}

/// Why there is no strict mode.
pub fn no_landlock_network(abi: u32) -> Missing {
    let have = match abi {
        0 => "this kernel has no Landlock (or not among its lsm=)".to_owned(),
        abi => format!("this kernel's Landlock is version {abi}"),
    };
    Missing::new(
        format!("{have}, and strict mode needs version {ABI_NETWORK}, Linux 6.7"),
        "--bypass=unconfined does without",
    )
}

pub fn landlock_refused(error: &dyn fmt::Display) -> Missing {
    Missing::new(
        format!("cannot enter a Landlock domain (the kernel takes 16 inside one another): {error}"),
        "run with --bypass=off further out",
    )
}

/// The domain stands, and a connect got through it all the same.
pub fn landlock_without_force(got: &str) -> Missing {
    Missing::unexplained(format!("Landlock does not deny a TCP connect of the workspace's own ({got})"))
}

/// Of the caller's own namespaces, where they have one; None where there is no such file or no number in it.
pub fn sysctl(name: &str) -> Option<u64> {
    fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().parse().ok()
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
            let missing = sysctls.clone_refused(&io::Error::from_raw_os_error(number));
            assert!(missing.fix.as_ref().is_some_and(|fix| fix.contains(want)), "{missing}");
            assert!(!missing.to_string().contains("os error"), "{missing}");
        }
        for (number, want) in [(libc::ENOENT, "modprobe tun"), (libc::EACCES, "chmod 0666"), (libc::EPERM, "--device")]
        {
            assert!(tap_refused(&io::Error::from_raw_os_error(number)).to_string().contains(want));
        }
        assert!(network_refused(Errno::ENOSPC).to_string().ends_with("sysctl -w user.max_net_namespaces=15000"));
    }

    #[test]
    fn apparmor_is_named_only_where_it_restricts() {
        let restricted = UsernsSysctls { apparmor_restrict_unprivileged_userns: Some(1), ..UsernsSysctls::default() };
        let said = |error: anyhow::Error, sysctls| explained(&error, sysctls).to_string();
        let plain = |errno: Errno| anyhow::Error::new(errno).context("cannot mount /proc");
        let tap = || anyhow::Error::from(tap_refused(&io::Error::from_raw_os_error(libc::EPERM)));
        assert!(said(plain(Errno::EPERM), restricted).starts_with("cannot mount /proc: EPERM"));
        assert!(said(plain(Errno::EPERM), restricted).contains("AppArmor"));
        assert!(
            said(tap(), restricted).starts_with("cannot use /dev/net/tun: the device is not allowed here: AppArmor")
        );
        assert!(!said(tap(), UsernsSysctls::default()).contains("AppArmor"));
        assert!(!said(plain(Errno::EINVAL), restricted).contains("AppArmor"));
    }
}
