//! Where `sidestep bench` measures: namespaces that it makes without any privilege, and that go with it.
//!
//! Two processes, one program:
//! 1. the caller's makes a user namespace with its one id as root and a pid namespace, starts the second, tells it of
//!    signals on its standard input and takes the scratch directory away at the end;
//! 2. pid 1 of the pid namespace measures. When it ends, however it does, the kernel ends all that runs in there.
//!
//! The world's own: mounts (/proc, a tmpfs on the scratch directory), System V IPC, host name, and for the lab the
//! network. The rest of the file system is the caller's, so that reports land where they are wanted.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{getegid, geteuid, mkdtemp};

use super::command::PATH;

/// The uid and gid that contenders are called with: the caller's one id, without what root may do to the lab.
pub const USER: u32 = 1000;

/// Set in the second process: this program's path. Inside, /proc/self/exe tells one of the outer mount namespace.
const PROGRAM: &str = "SIDESTEP_BENCH_PROGRAM";
const NONE: Option<&Path> = None;

/// In the second process: waits until the measuring is to end early, and says by which signal.
pub fn interrupt() -> i32 {
    let mut signal = [0; size_of::<i32>()];
    match std::io::stdin().read_exact(&mut signal) {
        Ok(()) => i32::from_ne_bytes(signal),
        // The first process is gone.
        Err(_) => Signal::SIGKILL as i32,
    }
}

/// Waits for what has ended after its parent, and fell to process 1: thousands of zombies are as many processes to a limit.
/// Not while a program that somebody waits for is measured.
pub fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG))
        && status != WaitStatus::StillAlive
    {}
}

/// This program, where every contender finds it.
pub fn program() -> PathBuf {
    scratch().join("sidestep")
}

/// Where programs are looked for: the caller's PATH, then where distributions have them.
pub fn path() -> String {
    let caller = std::env::var("PATH").unwrap_or_default();
    let absolute = caller.split(':').filter(|dir| dir.starts_with('/'));
    absolute.chain([PATH]).collect::<Vec<_>>().join(":")
}

/// For files of the contenders' and the servers'.
pub fn scratch() -> PathBuf {
    std::env::temp_dir()
}

/// XDG_RUNTIME_DIR of every contender.
pub fn runtime_dir() -> PathBuf {
    scratch().join("run")
}

/// Returns inside the world with None, or outside with the world's exit code once it has ended. There must be no other
/// thread yet. Without `lab` the network stays the machine's.
pub fn enter(lab: bool) -> Result<Option<ExitCode>> {
    match std::env::var_os(PROGRAM) {
        None => outside().map(Some),
        Some(program) => {
            furnish(Path::new(&program), lab).context("cannot furnish the lab")?;
            Ok(None)
        }
    }
}

/// First process.
fn outside() -> Result<ExitCode> {
    let program = std::env::current_exe().context("where is this program?")?;
    let scratch = mkdtemp(&scratch().join("sidestep-bench-XXXXXX"))
        .with_context(|| format!("cannot make a directory in {}; set TMPDIR to another one", scratch().display()))?;
    let ended = start(&program, &scratch).and_then(wait);
    // The mount on it was the second process's.
    fs::remove_dir(&scratch).with_context(|| format!("remove {}", scratch.display()))?;
    ended
}

fn start(program: &Path, scratch: &Path) -> Result<Child> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID).context(
        "cannot make the lab's namespaces; they need unprivileged user namespaces (sysctl user.max_user_namespaces, \
         kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)",
    )?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    watched().thread_block()?;
    let mut inside = Command::new("/proc/self/exe");
    inside.args(std::env::args_os().skip(1)).env(PROGRAM, program).env("TMPDIR", scratch);
    // A terminal's ^C is for the first process alone: what is being measured does not end before the report is written.
    inside.process_group(0).stdin(Stdio::piped()).spawn().context("cannot start the lab's first process")
}

/// The second process's end, and what ends the measuring early.
fn watched() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect()
}

fn wait(mut inside: Child) -> Result<ExitCode> {
    let mut told = inside.stdin.take().context("a pipe was asked for")?;
    loop {
        if let Some(status) = inside.try_wait()? {
            return Ok(status
                .code()
                .and_then(|code| u8::try_from(code).ok())
                .map_or(ExitCode::FAILURE, ExitCode::from));
        }
        match watched().wait()? {
            Signal::SIGCHLD => {}
            // If it ends at this moment it needs no telling.
            interrupt => drop(told.write_all(&(interrupt as i32).to_ne_bytes())),
        }
    }
}

/// Second process.
fn furnish(program: &Path, lab: bool) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    // What it starts inherits this, and slirp4netns would wait for a SIGTERM for ever.
    watched().thread_unblock()?;
    ensure!(std::process::id() == 1, "{PROGRAM} is for sidestep itself to set");
    let mut own = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    own.set(CloneFlags::CLONE_NEWNET, lab);
    unshare(own).context("cannot make its namespaces (sysctl user.max_net_namespaces, user.max_mnt_namespaces)")?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).context("make mounts private")?;
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("proc"), "/proc", Some("proc"), safe | MsFlags::MS_NOEXEC, NONE).context(
        "cannot mount /proc; where it is masked (inside Docker), run the container with --security-opt \
         systempaths=unconfined",
    )?;
    let scratch = scratch();
    mount(Some("sidestep-bench"), &scratch, Some("tmpfs"), safe, Some("mode=0755"))
        .with_context(|| format!("mount a tmpfs on {}", scratch.display()))?;
    fs::create_dir(runtime_dir())?;
    fs::write(self::program(), "")?;
    bind(program, &self::program())?;
    // Subordinate ids are of the machine's user namespace: newuidmap(1) has no use here.
    for file in ["/etc/subuid", "/etc/subgid"].map(Path::new).into_iter().filter(|file| file.exists()) {
        bind(Path::new("/dev/null"), file)?;
    }
    Ok(())
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    mount(Some(source), target, NONE, MsFlags::MS_BIND, NONE)
        .with_context(|| format!("bind {} over {}", source.display(), target.display()))
}
