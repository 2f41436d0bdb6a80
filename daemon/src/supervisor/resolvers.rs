//! Follows the host's resolv.conf and tells the forwarder of its resolvers, for that one has no file system.
//!
//! The name leads through symbolic links (systemd-resolved's, NetworkManager's), and is replaced by rename as often as
//! the file is written over. So every directory on its way is watched, and the file itself, which may be mounted over
//! the name (Docker's): any change there, and all of it is looked up, watched and read anew. What does not exist is
//! waited for in the nearest directory that does. Other symbolic links on the way (of a directory's own path) are taken
//! to stay as they are.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::link::Link;
use crate::launcher::resolv_conf::{self, ResolvConf};
use crate::sys::readiness;

/// What is written in several steps is read after the last of them.
const SETTLE: Duration = Duration::from_millis(100);
/// As many symbolic links as the kernel follows (MAXSYMLINKS).
const LINKS_MAX: usize = 40;

/// Runs as long as the supervisor. Its first look is for what has changed before.
pub async fn follow(link: Arc<Link>) {
    let path = Path::new(resolv_conf::PATH);
    let mut told = None;
    loop {
        // Watched before it is read: nothing is missed in between.
        let changes = match watch(path) {
            Ok(changes) => changes,
            Err(error) => {
                tracing::warn!("changes of the host's {} are not followed: {error}", path.display());
                return;
            }
        };
        // A file that is away for the moment changes nothing.
        if let Ok(text) = fs::read_to_string(path) {
            let says = ResolvConf::parse(&text);
            if told.as_ref() != Some(&says) {
                tracing::debug!(resolvers = ?says.resolvers, search = ?says.search, "the host's resolv.conf");
                link.set_resolvers(says.resolvers.clone(), says.search.clone());
                told = Some(says);
            }
        }
        if changes.readable().await.is_err() {
            return;
        }
        tokio::time::sleep(SETTLE).await;
    }
}

/// Readable once something happens on the way to `path`.
fn watch(path: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let entries = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM | WatchFlags::DELETE;
    let gone = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
    for directory in directories(path) {
        let found = directory.ancestors().find_map(|directory| {
            match inotify::add_watch(&inotify, directory, entries | gone | WatchFlags::ONLYDIR) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => None,
                watched => Some(watched),
            }
        });
        found.transpose()?;
    }
    match inotify::add_watch(&inotify, path, WatchFlags::MODIFY | WatchFlags::CLOSE_WRITE | gone) {
        Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => {}
        Err(error) => return Err(error.into()),
    }
    readiness::register(inotify, Interest::READABLE)
}

/// Directories of the links from `path` to the file, in order.
fn directories(path: &Path) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    let mut path = path.to_owned();
    while let (Some(directory), true) = (path.parent(), directories.len() <= LINKS_MAX) {
        let directory = directory.to_owned();
        let target = fs::read_link(&path);
        directories.push(directory.clone());
        let Ok(target) = target else { break };
        // An absolute one takes the place of all.
        path = directory.join(target);
    }
    directories
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_way_to_change_it_is_seen() {
        let scratch = tempfile::tempdir().unwrap();
        let [etc, run, other] = ["etc", "run/resolve", "other"].map(|name| scratch.path().join(name));
        for directory in [&etc, &run, &other] {
            fs::create_dir_all(directory).unwrap();
        }
        let (name, stub) = (etc.join("resolv.conf"), run.join("stub.conf"));
        let write = |path: &Path| fs::write(path, "nameserver 192.0.2.1\n").unwrap();
        let replace = |path: &Path| {
            write(&etc.join("new"));
            fs::rename(etc.join("new"), path).unwrap();
        };
        let steps: [(&str, &dyn Fn()); 8] = [
            ("a link appears", &|| symlink("../run/resolve/stub.conf", &name).unwrap()),
            ("its target appears", &|| write(&stub)),
            ("it is written over", &|| write(&stub)),
            ("it is replaced", &|| replace(&stub)),
            ("its directory goes", &|| fs::remove_dir_all(&run).unwrap()),
            ("its directory comes back", &|| fs::create_dir_all(&run).unwrap()),
            ("the link goes elsewhere", &|| {
                write(&other.join("there"));
                fs::remove_file(&name).unwrap();
                symlink(other.join("there"), &name).unwrap();
            }),
            ("a file takes its place", &|| replace(&name)),
        ];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for (step, happens) in steps {
                let changes = watch(&name).unwrap();
                let seen = |within| tokio::time::timeout(within, changes.readable());
                assert!(seen(Duration::ZERO).await.is_err(), "before {step}");
                happens();
                assert!(seen(Duration::from_secs(20)).await.is_ok(), "{step}");
            }
        });
        assert_eq!(directories(&name), std::slice::from_ref(&etc));
        symlink("again", etc.join("again")).unwrap();
        assert!(directories(&etc.join("again")).len() <= LINKS_MAX + 1);
    }
}
