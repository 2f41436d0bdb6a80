//! Who is at the other end of a control socket.
//!
//! A workspace may see the state directory through its mounts, and its root is the caller's own uid outside: file modes
//! and uids do not tell the two apart. Its namespaces do. The kernel gives an accepted socket the network namespace in
//! which the other end was made, which no process can change afterwards; a process in a user namespace can never get
//! into one above it. Whatever cannot be found out is a stranger's.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::sys::socket::{UnixCredentials, getsockopt, sockopt};
use nix::unistd::Uid;
use thiserror::Error;

use crate::supervisor::facts;
use crate::sys::pidfd;

#[derive(Debug, Error)]
pub enum Stranger {
    #[error("user {0} is neither the caller of `sidestep run` nor root")]
    User(u32),
    #[error("it is not in the namespaces of `sidestep run`")]
    Namespace,
    #[error("it cannot be told who it is: {0}")]
    Unknown(#[from] io::Error),
}

/// The process that connected to our listener, as it was then.
pub fn check_client(accepted: BorrowedFd<'_>) -> Result<(), Stranger> {
    if facts::netns_of(accepted)? != facts::own_netns()? {
        return Err(Stranger::Namespace);
    }
    let (peer, own) = (credentials(accepted)?, Uid::effective());
    // Root of our user namespace is in no workspace of an ordinary user, whose ids it does not have; and its namespaces
    // are not such a user's to look at.
    match peer.uid() {
        uid if uid == own.as_raw() => is_in_our_user_namespace(accepted, peer.pid()),
        0 => Ok(()),
        uid => Err(Stranger::User(uid)),
    }
}

/// The process that listens, seen from a client.
pub fn check_server(connected: BorrowedFd<'_>) -> Result<(), Stranger> {
    let (peer, own) = (credentials(connected)?, Uid::effective());
    // Root looks at anybody's workspace.
    if peer.uid() == own.as_raw() || own.is_root() {
        is_in_our_user_namespace(connected, peer.pid())
    } else {
        Err(Stranger::User(peer.uid()))
    }
}

fn credentials(socket: BorrowedFd<'_>) -> io::Result<UnixCredentials> {
    Ok(getsockopt(&socket, sockopt::PeerCredentials)?)
}

/// The very process that the pidfd holds.
fn is_in_our_user_namespace(socket: BorrowedFd<'_>, pid: i32) -> Result<(), Stranger> {
    let process = pidfd_of_peer(socket, pid)?;
    let theirs = user_namespace(&pid.to_string())?;
    // Only while it lives is its number its own, and what was read its user namespace.
    if pidfd::has_ended(process.as_fd()) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH).into());
    }
    if theirs == user_namespace("self")? { Ok(()) } else { Err(Stranger::Namespace) }
}

/// Before Linux 6.5 by number, which may have come to mean another process: there the network namespace decides.
fn pidfd_of_peer(socket: BorrowedFd<'_>, pid: i32) -> io::Result<OwnedFd> {
    match getsockopt(&socket, sockopt::PeerPidfd) {
        Err(nix::errno::Errno::ENOPROTOOPT) => {
            pidfd::open_process(u32::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?)
        }
        process => Ok(process?),
    }
}

fn user_namespace(pid: &str) -> io::Result<(u64, u64)> {
    let namespace = fs::metadata(format!("/proc/{pid}/ns/user"))?;
    Ok((namespace.dev(), namespace.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::Command;

    use super::*;

    #[test]
    fn both_ends_here_know_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let client = UnixStream::connect(dir.path().join("s")).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        check_client(accepted.as_fd()).unwrap();
        check_server(client.as_fd()).unwrap();
    }

    /// unshare(1) makes a process in other namespaces with the same uid, as a workspace's root has it.
    #[test]
    fn other_namespaces_and_the_dead_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        for namespaces in [&["--user", "--net"][..], &["--user"]] {
            let connect = "import socket,sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)";
            let python = ["python3", "-c", connect];
            let mut client = Command::new("unshare")
                .args(namespaces)
                .args(["--map-root-user", "--"])
                .args(python)
                .arg(&path)
                .spawn()
                .unwrap();
            let (accepted, _) = listener.accept().unwrap();
            let checked = check_client(accepted.as_fd());
            assert!(matches!(checked, Err(Stranger::Namespace)), "{namespaces:?}: {checked:?}");
            drop(accepted);
            client.wait().unwrap();
        }
        let mut client = Command::new("python3")
            .args(["-c", "import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"])
            .arg(&path)
            .spawn()
            .unwrap();
        client.wait().unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert!(matches!(check_client(accepted.as_fd()), Err(Stranger::Unknown(_))));
    }
}
