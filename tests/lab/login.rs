//! An ordinary user's login on the lab's host, for programs that leave daemons behind.
//!
//! It has a pid, mount and cgroup namespace of its own: what runs in it ends with the test, and
//! [`Login::leaves_nothing`] finds it before. /sys/fs/cgroup is cgroup2 alone, whatever the machine has.
//!
//! In a world with one id newuidmap(1) cannot work. There the user has programs of that name that map this id alone, and
//! subordinate ids in /etc/subuid that never come to be mapped.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use super::command::{DEADLINE, Finished, PATH, Program, Running};
use super::processes::Tree;
use super::world::{self, USER};
use super::{Lab, poll};

/// Mounts what the user finds, then becomes the user's process 1: a shell that only reaps. $1 is the home directory.
const INIT: &str = "mount -t cgroup2 lab /sys/fs/cgroup
if [ -e $1/subid ]; then mount --bind $1/subid /etc/subuid; mount --bind $1/subid /etc/subgid; fi
shift; exec \"$@\" bash --norc -c 'echo ready; read -r'";
/// newuidmap and newgidmap of a user with one id: a process, and triples of which the first maps that id.
const NEWIDMAP: &str = "#!/bin/sh
case $0 in
*/newgidmap) echo deny >/proc/$1/setgroups; map=gid_map ;;
*) map=uid_map ;;
esac
echo $2 $3 1 >/proc/$1/$map
";

pub struct Login {
    pub lab: Lab,
    _init: Running,
    /// nsenter(1) and what else makes a command the user's.
    enter: Vec<String>,
    home: TempDir,
}

impl Login {
    pub fn new(lab: Lab) -> Result<Self> {
        let home = home().context("make a home directory")?;
        let namespaces = ["--pid", "--mount", "--cgroup"];
        let user = USER.to_string();
        let become_user = if world::is_single_id() {
            ["unshare", "--user", "--map-user", &user, "--map-group", &user, "--"]
        } else {
            ["setpriv", "--clear-groups", "--reuid", &user, "--regid", &user, "--"]
        };
        let path = home.path().to_string_lossy();
        let prepare = ["--mount-proc", "--fork", "--kill-child", "sh", "-euc", INIT, "sh", &path];
        let words = ["unshare"].into_iter().chain(namespaces).chain(prepare).chain(become_user);
        let mut init = Program::new(words).deadline(DEADLINE * 20).start(&lab.host)?;
        init.line_with("ready").with_context(|| init.stderr())?;

        let tree = Tree::of(init.pid())?;
        let first = tree.processes.iter().find(|process| process.pid != init.pid().as_raw());
        let first = first.context("the login has no process 1")?.pid.to_string();
        let enter = ["nsenter", "--target", &first].into_iter().chain(namespaces);
        let enter: Vec<&str> = if world::is_single_id() {
            // The same user namespace for all: what the user starts has to find what the user started.
            enter.chain(["--user", "--preserve-credentials", "--"]).collect()
        } else {
            enter.chain(["--"]).chain(become_user).collect()
        };
        Ok(Self { lab, _init: init, enter: enter.into_iter().map(str::to_owned).collect(), home })
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// A program of the user's. The pid of the one that runs is nsenter(1)'s.
    pub fn program<A: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = A>) -> Program {
        let argv = argv.into_iter().map(|word| word.as_ref().to_owned());
        Program::new(argv)
            .behind(&self.enter)
            .env("HOME", self.home())
            .env("XDG_RUNTIME_DIR", self.home().join("run"))
            .env("PATH", format!("{}/bin:{PATH}", self.home().display()))
            // A container's start is a dozen processes.
            .deadline(DEADLINE * 2)
    }

    pub fn run<A: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = A>) -> Result<Finished> {
        self.program(argv).run(&self.lab.host)
    }

    /// Waits until all programs of the user's have ended.
    pub fn leaves_nothing(&self) -> Result<()> {
        let mut left = String::new();
        let gone = poll("the user's programs have ended", DEADLINE, || {
            left = self.run(["ps", "-A", "-o", "pid=,args="])?.output()?;
            // Process 1, and ps(1) itself.
            Ok((left.lines().count() == 2).then_some(()))
        });
        gone.with_context(|| format!("left behind:\n{left}"))
    }
}

/// A directory of the user's, with programs that are found before the machine's.
fn home() -> Result<TempDir> {
    let home = tempfile::tempdir()?;
    let path = home.path();
    fs::create_dir(path.join("bin"))?;
    fs::create_dir(path.join("run"))?;
    fs::set_permissions(path.join("run"), fs::Permissions::from_mode(0o700))?;
    if world::is_single_id() {
        fs::write(path.join("subid"), "workspace:100000:65536\n")?;
        for name in ["bin/newuidmap", "bin/newgidmap"] {
            fs::write(path.join(name), NEWIDMAP)?;
            fs::set_permissions(path.join(name), fs::Permissions::from_mode(0o755))?;
        }
    } else {
        for dir in [path, &path.join("run")] {
            chown(dir, Some(USER), Some(USER))?;
        }
    }
    Ok(home)
}
