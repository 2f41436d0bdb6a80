//! The running workspace that a command is about, and what it says.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::de::DeserializeOwned;

use crate::state_dir::{CONTROL_SOCKET, usual_parent};

/// Its control socket: of the state directory given, of the process given, or of the only one there is. `naming` is how
/// the command takes a process.
pub fn control_socket(state_dir: Option<PathBuf>, pid: Option<u32>, naming: &str) -> anyhow::Result<PathBuf> {
    let dir = match state_dir {
        Some(dir) => dir,
        None => choose(&usual_parent(), pid, naming)?,
    };
    Ok(dir.join(CONTROL_SOCKET))
}

/// What its control socket answered.
pub fn parse<T: DeserializeOwned>(answer: &str) -> anyhow::Result<T> {
    serde_json::from_str(answer).context("the workspace was started by another version of sidestep")
}

/// The state directory of the workspace meant, among those in `parent`.
fn choose(parent: &Path, pid: Option<u32>, naming: &str) -> anyhow::Result<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let mut running: Vec<_> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_plain(name) && is_served(&parent.join(name).join(CONTROL_SOCKET)))
        .collect();
    running.sort();
    if let Some(pid) = pid {
        let number = pid.to_string();
        let found = running.iter().find(|name| name.split('-').next() == Some(&number));
        let found = found.with_context(|| {
            format!("process {pid} runs no workspace of {}: --state-dir names one elsewhere", parent.display())
        })?;
        return Ok(parent.join(found));
    }
    match &running[..] {
        [one] => Ok(parent.join(one)),
        [] => bail!(
            "no workspace is running in {}: `sidestep run` starts one, --state-dir names one elsewhere",
            parent.display()
        ),
        [first, ..] => bail!(
            "{} workspaces are running ({}): name one, as in `sidestep {naming} {}`",
            running.len(),
            running.join(", "),
            first.split('-').next().unwrap_or(first)
        ),
    }
}

/// A plain word, such as [`crate::state_dir`]'s numbers with dashes between them. A workspace could have made directories of
/// any name, and these are shown.
fn is_plain(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// Somebody listens there, however busy: a workspace could have put a socket there that nobody accepts from.
fn is_served(socket: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connected = SocketAddrUnix::new(socket)
        .and_then(|address| connect(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?, &address));
    matches!(connected, Ok(()) | Err(Errno::AGAIN))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rustix::net::{bind, listen};

    use super::*;

    #[test]
    fn which_workspace_is_meant() {
        let parent = tempfile::tempdir().unwrap();
        let chosen = |pid| choose(parent.path(), pid, "stats").map_err(|error| error.to_string());
        let run = |name: &str| {
            fs::create_dir(parent.path().join(name)).unwrap();
            UnixListener::bind(parent.path().join(name).join(CONTROL_SOCKET)).unwrap()
        };
        assert!(chosen(None).unwrap_err().starts_with("no workspace is running in"));
        drop(run("1"));
        assert!(chosen(None).unwrap_err().starts_with("no workspace is running in"));
        let _first = run("20");
        assert_eq!(chosen(None).unwrap(), parent.path().join("20"));
        let _stranger = run("\u{1b}[31m7");
        assert_eq!(chosen(None).unwrap(), parent.path().join("20"));
        let _second = run("3-4026531836");
        assert_eq!(
            chosen(None).unwrap_err(),
            "2 workspaces are running (20, 3-4026531836): name one, as in `sidestep stats 20`"
        );
        assert_eq!(chosen(Some(3)).unwrap(), parent.path().join("3-4026531836"));
        assert!(chosen(Some(2)).unwrap_err().starts_with("process 2 runs no workspace"));
    }

    #[test]
    fn a_socket_that_nobody_accepts_from_is_not_waited_for() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join(CONTROL_SOCKET);
        let address = SocketAddrUnix::new(&path).unwrap();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = || socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let listener = socket();
        bind(&listener, &address).unwrap();
        listen(&listener, 0).unwrap();
        let client = || {
            let client = socket();
            connect(&client, &address).map(|()| client)
        };
        // As many as wait in its queue.
        let _waiting: Vec<_> = std::iter::from_fn(|| client().ok()).collect();
        assert!(is_served(&path));
    }
}
