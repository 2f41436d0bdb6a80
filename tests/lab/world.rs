//! The private world a test binary runs in, made before it has a second thread.
//!
//! Three processes, one program:
//! 1. the caller's process unshares everything below and waits;
//! 2. pid 1 of the new pid namespace mounts the world's files, reaps orphans and hands the exit code on;
//! 3. the tests, at last, as its child.
//!
//! The world's own: user namespace (for an ordinary user only: one id, mapped to root), mount, pid, network, IPC and
//! UTS namespaces; /run, /tmp, /proc, /dev/pts, /dev/net/tun (0666, as distributions ship it), and a copy of /etc with
//! the lab's users, subuids and resolver. When any of the three dies, everything in the world dies with it.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{getegid, geteuid};

/// The binary under test, at a path that every uid of the world can reach.
pub const SIDESTEP: &str = "/run/lab/sidestep";
/// The same under the name by which it is slirp4netns.
pub const SLIRP4NETNS: &str = "/run/lab/slirp4netns";
/// This program, at such a path.
pub const SELF: &str = "/run/lab/self";
/// The link with faults.
pub const SHIM: &str = "/run/lab/shim.py";
/// Directory for what tests write; every uid may.
pub const SCRATCH: &str = "/tmp";
/// The unprivileged uid and gid that sidestep runs as in half of the tests.
pub const USER: u32 = 1000;

/// Says which of the three processes this one is.
const STAGE: &str = "SIDESTEP_LAB_STAGE";
/// Set in the world of an ordinary user, where only one id exists.
const SINGLE_ID: &str = "SIDESTEP_LAB_SINGLE_ID";
/// This program's path: inside, /proc/self/exe tells one of the outer mount namespace.
const PROGRAM: &str = "SIDESTEP_LAB_PROGRAM";

/// Whether this is an ordinary user's world: uid 0 is the only id in it.
pub fn is_single_id() -> bool {
    std::env::var_os(SINGLE_ID).is_some()
}

/// Returns inside the world with None, or outside with the world's exit code once it has ended.
///
/// `sidestep` is the binary under test.
pub fn enter(sidestep: &Path) -> Result<Option<ExitCode>> {
    match std::env::var(STAGE).ok().as_deref() {
        None => make(sidestep).map(Some),
        Some("init") => init(sidestep).map(Some),
        Some(_) => {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            Ok(None)
        }
    }
}

/// First process: the namespaces.
fn make(sidestep: &Path) -> Result<ExitCode> {
    ensure!(sidestep.is_file(), "no sidestep binary at {}: build it, or name one in SIDESTEP_BIN", sidestep.display());
    let (uid, gid) = (geteuid(), getegid());
    let mut flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    let mut init = Command::new("/proc/self/exe");
    init.args(std::env::args_os().skip(1)).env(STAGE, "init").env(PROGRAM, std::env::current_exe()?);
    if !uid.is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
        init.env(SINGLE_ID, "1");
    }
    unshare(flags).context(
        "cannot make the lab's namespaces; an ordinary user needs unprivileged user namespaces (sysctl \
         user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)",
    )?;
    if !uid.is_root() {
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    }
    let status = init.status().context("cannot start the lab's first process")?;
    Ok(exit_code(status))
}

/// Second process: the files, then reaping until the tests end.
fn init(sidestep: &Path) -> Result<ExitCode> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    let program = std::env::var_os(PROGRAM).context("the lab's first process did not say which program this is")?;
    mount_files(sidestep, Path::new(&program)).context("cannot furnish the lab")?;
    let tests = Command::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .env(STAGE, "tests")
        .env("TMPDIR", SCRATCH)
        .spawn()
        .context("cannot start the tests")?;
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw().cast_unsigned() == tests.id() => {
                return Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw().cast_unsigned() == tests.id() => {
                bail!("the tests were killed by {signal}")
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("wait"),
        }
    }
}

fn mount_files(sidestep: &Path, program: &Path) -> Result<()> {
    let none: Option<&Path> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make mounts private")?;
    let resolver = fs::canonicalize("/etc/resolv.conf").unwrap_or_else(|_| PathBuf::from("/etc/resolv.conf"));
    tmpfs("/run", "mode=0755")?;
    for dir in ["/run/lab", "/run/user", "/run/user/0", "/run/user/1000"] {
        fs::create_dir(dir)?;
    }
    for (program, path) in [(sidestep, SIDESTEP), (program, SELF)] {
        fs::write(path, "")?;
        bind(program, Path::new(path))?;
    }
    symlink(SIDESTEP, SLIRP4NETNS)?;
    fs::write("/run/lab/inside.py", include_str!("inside.py"))?;
    fs::write(SHIM, include_str!("shim.py"))?;
    tmpfs("/tmp", "mode=1777")?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).context(
        "cannot mount /proc; where it is masked (inside Docker), run the container with --security-opt \
         systempaths=unconfined",
    )?;
    terminals()?;
    tun_device()?;
    userfaultfd_device()?;
    etc(&resolver)?;
    if !is_single_id() {
        chown("/run/user/1000", Some(USER), Some(USER))?;
    }
    for dir in ["/run/user/0", "/run/user/1000"] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

fn tmpfs(target: &str, options: &str) -> Result<()> {
    mount(Some("lab"), target, Some("tmpfs"), MsFlags::MS_NOSUID, Some(options))
        .with_context(|| format!("mount a tmpfs on {target}"))
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    let none: Option<&Path> = None;
    mount(Some(source), target, none, MsFlags::MS_BIND, none)
        .with_context(|| format!("bind {} over {}", source.display(), target.display()))
}

/// A devpts of the world's own, so that terminals can be made by every uid.
fn terminals() -> Result<()> {
    mount(Some("lab"), "/dev/pts", Some("devpts"), MsFlags::MS_NOSUID, Some("newinstance,ptmxmode=0666,mode=0620"))
        .context("mount /dev/pts")?;
    bind(Path::new("/dev/pts/ptmx"), Path::new("/dev/ptmx"))
}

/// /dev/net/tun as distributions ship it, where the machine's own is closed to ordinary users.
fn tun_device() -> Result<()> {
    const TUN: &str = "/dev/net/tun";
    let node = Path::new("/run/lab/tun");
    match mknod(node, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(10, 200)) {
        Ok(()) => {
            fs::set_permissions(node, fs::Permissions::from_mode(0o666))?;
            ensure!(Path::new(TUN).exists(), "the machine has no {TUN}: load the tun module");
            bind(node, Path::new(TUN))
        }
        // Only root of the first user namespace makes device nodes; others need a machine that has an open one.
        Err(Errno::EPERM) => {
            fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(TUN)
                .with_context(|| format!("{TUN} must be readable and writable for this user (mode 0666)"))?;
            Ok(())
        }
        Err(errno) => Err(errno).context("make a tun device node"),
    }
}

/// /dev/userfaultfd, for the attacker that holds a lock for ever.
fn userfaultfd_device() -> Result<()> {
    const DEVICE: &str = "/dev/userfaultfd";
    let number = fs::metadata(DEVICE).with_context(|| format!("this kernel has no {DEVICE} (Linux 6.1)"))?.rdev();
    let node = Path::new("/run/lab/userfaultfd");
    match mknod(node, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), number) {
        Ok(()) => {
            fs::set_permissions(node, fs::Permissions::from_mode(0o666))?;
            bind(node, Path::new(DEVICE))
        }
        Err(Errno::EPERM) => {
            let opened = fs::OpenOptions::new().read(true).write(true).open(DEVICE);
            opened.map(drop).with_context(|| format!("{DEVICE} must be open to this user (mode 0666)"))
        }
        Err(errno) => Err(errno).context("make a userfaultfd device node"),
    }
}

/// A copy of /etc with the lab's own users, subordinate ids and resolver.
fn etc(resolver: &Path) -> Result<()> {
    let copy = Path::new("/run/lab/etc");
    // What this user may not read it also does not need: cp's complaints are dropped, its work is checked below.
    Command::new("cp").args(["-a", "/etc"]).arg(copy).stderr(std::process::Stdio::null()).status()?;
    bind(copy, Path::new("/etc"))?;
    fs::set_permissions("/etc", fs::Permissions::from_mode(0o755))?;
    replace("/etc/passwd", "root:x:0:0:root:/root:/bin/bash\nworkspace:x:1000:1000::/tmp:/bin/bash\n")?;
    replace("/etc/group", "root:x:0:\nworkspace:x:1000:\n")?;
    let subordinate = if is_single_id() { "" } else { "workspace:100000:65536\n" };
    replace("/etc/subuid", subordinate)?;
    replace("/etc/subgid", subordinate)?;
    replace("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")?;
    replace("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")?;
    if let Some(dir) = resolver.parent() {
        fs::create_dir_all(dir)?;
    }
    let text = format!("nameserver {}\n", super::REMOTE_V4);
    if resolver.starts_with("/etc") { replace("/etc/resolv.conf", &text) } else { Ok(fs::write(resolver, text)?) }
}

/// Writes a new file in the place of whatever has this name, symlinks included.
fn replace(path: &str, text: &str) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("replace {path}")),
    }
    fs::File::create(path)?.write_all(text.as_bytes())?;
    Ok(())
}

fn exit_code(status: ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
