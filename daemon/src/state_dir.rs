//! The directory that tells others about a running workspace: `state.json`, and the supervisor's control socket.
//!
//! The workspace may see it through its mounts, and write there as the caller does. So it is held open, and what is done
//! in it is done by that: whatever stands at its path later is not followed. What others are told on the control socket
//! does not come from the file.

use std::env;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use nix::unistd::{AccessFlags, Uid, access, getpid};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, fchmod, fstat, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;
use serde::Serialize;
use sidestep_forwarder::network::VirtualNetwork;
use sidestep_forwarder::policy::Policy;

use crate::launcher::{Active, needs};

const STATE_FILE: &str = "state.json";
/// What is about to become it.
const STATE_FILE_NEW: &str = "state.json.new";
/// The supervisor's, see [`crate::supervisor::control`].
pub const CONTROL_SOCKET: &str = "control.sock";
/// state.json is some 2 KB, with many rules more.
const STATE_MAX: u64 = 1 << 20;
/// Bytes of a Unix socket's path (sun_path in unix(7)), less the zero at its end.
const SOCKET_PATH_MAX: usize = 107;
const PRIVATE: Mode = Mode::RWXU;
/// Directories named after one pid; more than a few are litter.
const NAMES_MAX: usize = 1000;

/// What `state.json` says. Pids are those of the host's side.
#[derive(Debug, Serialize)]
pub struct State<'a> {
    pub version: &'static str,
    pub monitor: i32,
    pub init: i32,
    pub supervisor: i32,
    pub forwarder: i32,
    pub bypass: Active,
    pub landlock_abi: u32,
    pub pid_namespace: bool,
    pub ifname: &'a str,
    pub network: &'a VirtualNetwork,
    pub policy: &'a Policy,
}

/// Ours alone: mode 0700. Removed when dropped.
pub struct StateDir {
    path: PathBuf,
    directory: OwnedFd,
}

impl StateDir {
    /// `--state-dir`, or a directory named after our pid where such things go.
    pub fn create(asked: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = asked else {
            let parent = usual_parent();
            let name = own_name()?;
            has_room_for_socket(&parent.join(format!("{name}-{NAMES_MAX}")))?;
            return make_new(&parent, &name);
        };
        let path = std::path::absolute(path)?;
        has_room_for_socket(&path)?;
        let directory = make_private(&path)?;
        refuse_running(&path, directory.as_fd())?;
        Ok(Self { path, directory })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// Readers see the whole file or none. What the workspace may have put in its place is replaced, not followed.
    pub fn write(&self, state: &State<'_>) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(state)?;
        // One of ours is there only where we were killed before the rename.
        let _ = unlinkat(&self.directory, STATE_FILE_NEW, AtFlags::empty());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let written = (|| -> io::Result<()> {
            let mode = Mode::from_raw_mode(0o666);
            File::from(openat(&self.directory, STATE_FILE_NEW, flags, mode)?).write_all(text.as_bytes())?;
            Ok(renameat(&self.directory, STATE_FILE_NEW, &self.directory, STATE_FILE)?)
        })();
        written.with_context(|| format!("cannot write {}", self.path.join(STATE_FILE).display()))
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        remove(&self.path, self.directory.as_fd());
    }
}

/// What state.json says. The workspace may have put something else there: a pipe is not to be waited for, nor a link
/// followed.
fn read(directory: BorrowedFd<'_>) -> anyhow::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(directory, STATE_FILE, flags, Mode::empty())?);
    ensure!(file.metadata()?.is_file(), "no file");
    let mut text = String::new();
    file.take(STATE_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Removes what a workspace had in `directory`, which is at `path` unless somebody has moved it; one in which somebody
/// else has files stays.
pub fn remove(path: &Path, directory: BorrowedFd<'_>) {
    for name in [STATE_FILE, STATE_FILE_NEW, CONTROL_SOCKET] {
        report(unlinkat(directory, name, AtFlags::empty()).map_err(Into::into));
    }
    report(fs::remove_dir(path));
}

fn report(removed: io::Result<()>) {
    match removed {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
            tracing::debug!("state directory: {error}");
        }
        _ => {}
    }
}

/// Where the directories of workspaces are that were started without `--state-dir`.
pub fn usual_parent() -> PathBuf {
    parent(env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from), Uid::effective())
}

fn parent(runtime_dir: Option<PathBuf>, uid: Uid) -> PathBuf {
    // After su(1) it may be another user's, who can exchange what is in it.
    let is_own = |dir: &PathBuf| fs::metadata(dir).is_ok_and(|found| found.is_dir() && found.uid() == uid.as_raw());
    if let Some(dir) = runtime_dir.filter(|dir| dir.is_absolute() && is_own(dir)) {
        return dir.join("sidestep");
    }
    // An image of one binary has no /tmp, one that is mounted read-only none to write in; a container's runtime gives both
    // /dev/shm.
    let writable = |dir: &&str| access(*dir, AccessFlags::W_OK | AccessFlags::X_OK).is_ok();
    let temporary = ["/tmp", "/dev/shm"].into_iter().find(writable).unwrap_or("/tmp");
    Path::new(temporary).join(format!("sidestep-{uid}"))
}

/// Our pid, and outside the first pid namespace that namespace's number: containers that share the parent have the same
/// pids, and what one removes at its end must not be what the other has just made.
fn own_name() -> anyhow::Result<String> {
    /// PROC_PID_INIT_INO (linux/proc_ns.h)
    const FIRST: u64 = 0xEFFF_FFFC;
    let pid = getpid();
    let namespace = fs::metadata("/proc/self/ns/pid").context("cannot tell the pid namespace")?.ino();
    Ok(if namespace == FIRST { pid.to_string() } else { format!("{pid}-{namespace}") })
}

/// A longer path cannot be given to bind(2).
fn has_room_for_socket(path: &Path) -> anyhow::Result<()> {
    let length = path.join(CONTROL_SOCKET).as_os_str().len();
    ensure!(
        length <= SOCKET_PATH_MAX,
        "the state directory's path is {} bytes too long for a Unix socket in it: choose a shorter one with --state-dir",
        length - SOCKET_PATH_MAX
    );
    Ok(())
}

/// Makes a directory called `name`, or `name-2` and so on, where one was left behind.
fn make_new(parent: &Path, name: &str) -> anyhow::Result<StateDir> {
    let within = make_private(parent)?;
    for name in (1..=NAMES_MAX).map(|n| if n == 1 { name.to_owned() } else { format!("{name}-{n}") }) {
        let path = parent.join(&name);
        match mkdirat(&within, &name, PRIVATE) {
            Err(Errno::EXIST) => {}
            Err(error) => return Err(needs::no_state_dir(&path, &error.into()).into()),
            Ok(()) => {
                let directory = open_private(within.as_fd(), Path::new(&name), &path)?;
                return Ok(StateDir { path, directory });
            }
        }
    }
    bail!("too many state directories in {}: remove those of workspaces that are gone", parent.display())
}

/// Makes a directory that only we can enter, or makes sure that it is one: in /tmp somebody else may have been first.
fn make_private(path: &Path) -> anyhow::Result<OwnedFd> {
    match mkdirat(CWD, path, PRIVATE) {
        Ok(()) | Err(Errno::EXIST) => open_private(CWD, path, path),
        Err(error) => Err(needs::no_state_dir(path, &error.into()).into()),
    }
}

/// Opens a directory of ours, and no other that stands there instead; `path` is what it is called.
fn open_private(within: BorrowedFd<'_>, name: &Path, path: &Path) -> anyhow::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let not_ours =
        || anyhow!("{} is not a directory of ours: remove it or choose another with --state-dir", path.display());
    let directory = match openat(within, name, flags, Mode::empty()) {
        Err(Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => return Err(not_ours()),
        opened => opened?,
    };
    let found = fstat(&directory)?;
    if found.st_uid != Uid::effective().as_raw() {
        return Err(not_ours());
    }
    if found.st_mode & 0o077 != 0 {
        fchmod(&directory, PRIVATE)?;
    }
    Ok(directory)
}

/// Two workspaces cannot share one directory; the state of one that is gone is written over.
fn refuse_running(path: &Path, directory: BorrowedFd<'_>) -> anyhow::Result<()> {
    let Ok(text) = read(directory) else { return Ok(()) };
    let monitor = serde_json::from_str::<serde_json::Value>(&text).ok().and_then(|state| state["monitor"].as_i64());
    let Some(monitor) = monitor.filter(|&pid| pid != i64::from(getpid().as_raw())) else { return Ok(()) };
    let name = fs::read_to_string(format!("/proc/{monitor}/comm")).unwrap_or_default();
    if name.trim_end() == "sidestep" {
        bail!("{} belongs to the running workspace of process {monitor}", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_directory_comes_first() {
        let runtime_dir = tempfile::tempdir().unwrap();
        let (own, ours) = (runtime_dir.path().to_owned(), Uid::effective());
        assert_eq!(parent(Some(own.clone()), ours), own.join("sidestep"));
        let other = Uid::from_raw(ours.as_raw() + 1);
        for runtime_dir in [Some(own), Some("/nonexistent/run".into()), Some("relative".into()), None] {
            assert_eq!(parent(runtime_dir, other), PathBuf::from(format!("/tmp/sidestep-{other}")));
        }
    }

    #[test]
    fn private_and_gone_in_the_end() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("state");
        let dir = StateDir::create(Some(&path)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        fs::write(path.join(STATE_FILE), "{}").unwrap();
        drop(dir);
        assert!(!path.exists());
        std::os::unix::fs::symlink("/etc", &path).unwrap();
        assert!(StateDir::create(Some(&path)).is_err());
        let long = base.path().join("x".repeat(100));
        assert!(StateDir::create(Some(&long)).is_err_and(|error| error.to_string().contains("bytes too long")));
        assert!(!long.exists());
    }

    #[test]
    fn what_a_workspace_puts_there_is_neither_followed_nor_waited_for() {
        let base = tempfile::tempdir().unwrap();
        let dir = StateDir::create(Some(&base.path().join("state"))).unwrap();
        let elsewhere = base.path().join("elsewhere");
        fs::write(&elsewhere, "as it was").unwrap();
        for name in [STATE_FILE, STATE_FILE_NEW] {
            std::os::unix::fs::symlink(&elsewhere, dir.path().join(name)).unwrap();
        }
        let network = VirtualNetwork::new(sidestep_forwarder::network::Ipv4Subnet::DEFAULT, None, 1500);
        let state = State {
            version: "0",
            monitor: 1,
            init: 2,
            supervisor: 3,
            forwarder: 4,
            bypass: Active::Off,
            landlock_abi: 0,
            pid_namespace: true,
            ifname: "tap0",
            network: &network,
            policy: &Policy::default(),
        };
        assert!(read(dir.directory().as_fd()).is_err(), "a link");
        dir.write(&state).unwrap();
        assert!(read(dir.directory().as_fd()).unwrap().contains("\"tap0\""));
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "as it was");
        fs::remove_file(dir.path().join(STATE_FILE)).unwrap();
        nix::unistd::mkfifo(&dir.path().join(STATE_FILE), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read(dir.directory().as_fd()).is_err(), "a pipe");

        let (moved, victim) = (base.path().join("moved"), base.path().join("victim"));
        fs::rename(dir.path(), &moved).unwrap();
        fs::create_dir(&victim).unwrap();
        fs::write(victim.join(STATE_FILE), "as it was").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path()).unwrap();
        dir.write(&state).unwrap();
        drop(dir);
        assert_eq!(fs::read_to_string(victim.join(STATE_FILE)).unwrap(), "as it was");
        assert!(!moved.join(STATE_FILE).exists());
    }
}
