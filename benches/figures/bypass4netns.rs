//! bypass4netns, the other bypass: a rootless container of runc whose filter's listener it holds.
//!
//! The container has an empty network namespace: what bypass4netns does not take out fails, so nothing is measured that
//! it did not carry.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::lab::workspace::Workspace;
use crate::lab::world::{self, USER, runtime_dir};
use crate::machine::find;
use crate::report::Report;
use crate::station::Contender;

/// What its own documentation has Docker and Podman stop.
const STOPPED: [&str; 13] = [
    "bind",
    "close",
    "connect",
    "sendmsg",
    "sendto",
    "setsockopt",
    "getpeername",
    "accept",
    "accept4",
    "getsockname",
    "fcntl",
    "_exit",
    "exit_group",
];

/// If it can be run here; the report says what is missing.
pub fn installed(report: &Report) -> Option<Contender> {
    let missing = ["bypass4netns", "runc"].into_iter().find(|program| find(program).is_none());
    if let Some(program) = missing {
        report.left_out("bypass4netns", &format!("no {program}"));
    }
    missing.is_none().then_some(Contender::Bypass4netns)
}

/// Standard output of a command run in such a container, started by the caller in the lab's host.
pub fn run(workspace: &Workspace, argv: &[String], deadline: Duration) -> Result<String> {
    let dir = tempfile::Builder::new().prefix("bypass4netns-").tempdir_in(runtime_dir())?;
    let (bundle, socket) = (dir.path(), dir.path().join("listener"));
    furnish(bundle, argv, &socket)?;
    let container = workspace.outside(["sh", "-c", BOTH, "sh"]).arg(bundle).arg(&socket);
    container.deadline(deadline).run(&workspace.lab.host)?.output().context("a container with bypass4netns")
}

/// Both have one parent, as in `peers`: from a user namespace beside the container's, bypass4netns could not reach the
/// container's memory and descriptors. It never ends by itself.
const BOTH: &str = r#"bundle=$1 socket=$2
bypass4netns --log-file /dev/null --socket "$socket" --pid-file "$bundle/pid" >&2 & supervisor=$!
until test -S "$socket"; do kill -0 $supervisor || exit; sleep 0.01; done
status=0
runc --root "$bundle/state" run --bundle "$bundle" figures || status=$?
kill $supervisor
exit $status"#;

/// The container's configuration, and a root with the host's /usr in it.
fn furnish(bundle: &Path, argv: &[String], socket: &Path) -> Result<()> {
    let root = bundle.join("rootfs");
    for dir in ["usr", "proc", "dev"] {
        fs::create_dir_all(root.join(dir))?;
    }
    for link in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{link}"), root.join(link))?;
    }
    let program = world::program();
    let inside = root.join(program.strip_prefix("/")?);
    fs::create_dir_all(inside.parent().context("the program is a directory")?)?;
    fs::write(inside, "")?;
    let id = json!([{ "containerID": 0, "hostID": USER, "size": 1 }]);
    let namespaces = ["user", "mount", "pid", "network", "ipc", "uts"].map(|kind| json!({ "type": kind }));
    let bound =
        |source: &Path| json!({ "destination": source, "type": "none", "source": source, "options": ["rbind"] });
    let configuration = json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs" },
        "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": argv, "env": ["PATH=/usr/bin:/bin"], "noNewPrivileges": true },
        "mounts": [bound(Path::new("/usr")), bound(&program), { "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": {
            "uidMappings": id,
            "gidMappings": id,
            "namespaces": namespaces,
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "listenerPath": socket,
                "syscalls": [{ "names": STOPPED, "action": "SCMP_ACT_NOTIFY" }],
            },
        },
    });
    fs::write(bundle.join("config.json"), configuration.to_string())?;
    Ok(())
}
