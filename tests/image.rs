//! An image that holds nothing but sidestep and the workspace's command: what sidestep needs besides is said here.
//!
//! With a static binary (SIDESTEP_BIN) the root holds that, busybox, and what a container's runtime mounts; with
//! another one its libraries, too.

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::lab::command::{Finished, Program};
use crate::lab::servers::TcpServer;
use crate::lab::workspace::{Caller, Workspace, contains};
use crate::lab::{REMOTE, world};

crate::cases! {
    EVERY_WAY: entrypoint;
    TAP: examined;
}

/// Makes a root of this and goes on there, with the program given as arguments.
const IMAGE: &str = r#"
set -e
root=$(mktemp -d)
mount -t tmpfs image $root
cd $root
mkdir -p proc dev/net dev/shm old
cp /run/lab/sidestep $(command -v busybox) .
for library in $(ldd sidestep 2> /dev/null | grep -o '/[^ )]*'); do cp --parents $library .; done
touch dev/null dev/net/tun
for device in dev/null dev/net/tun; do mount --bind /$device $device; done
mount --rbind /proc proc
mount -t tmpfs shm dev/shm
pivot_root . old
exec /busybox env -i PATH=/ /busybox sh -ec 'busybox umount -l /old; busybox rmdir /old; exec "$@"' sh "$@"
"#;

fn within(ws: &Workspace, argv: &[&str]) -> Result<Finished> {
    let private: &[&str] = match ws.way.caller {
        Caller::User => &["unshare", "--user", "--map-root-user", "--mount"],
        Caller::Root => &["unshare", "--mount"],
    };
    let words = private.iter().chain(&["bash", "-c", IMAGE, "bash"]).chain(argv);
    let program = Program::new(words);
    let as_user = ws.way.caller == Caller::User && !world::is_single_id();
    if as_user { program.uid(world::USER) } else { program }.run(&ws.lab.host)
}

fn entrypoint(ws: Workspace) -> Result<()> {
    let server = TcpServer::http(&ws.lab.remote, REMOTE[0])?;
    let (mode, active) = if ws.bypasses() { ("--bypass=require", "bypass") } else { ("--bypass=off", "tap") };
    let script = format!(
        "busybox wget -qO- http://{}/; echo $SIDESTEP_ACTIVE $SIDESTEP_STATE_DIR; busybox ls -d /old /tmp /etc",
        server.addr
    );
    let done = within(&ws, &["/sidestep", "run", mode, "--", "/busybox", "sh", "-c", &script])?.exited(1)?;
    contains(&done.stdout, &format!("hello\n{active} /dev/shm/sidestep-0/"))?;
    contains(&done.stderr, "no DNS inside: /etc/resolv.conf leads to no file")?;
    ensure!(done.stderr.matches("No such file").count() == 3, "there is more than the image: {done}");
    let left = within(&ws, &["/sidestep", "run", mode, "--", "/busybox", "sh", "-c", "exit 7"])?;
    left.exited(7)?;
    Ok(())
}

fn examined(ws: Workspace) -> Result<()> {
    let done = within(&ws, &["/sidestep", "doctor", "--json"])?.exited(1)?;
    let json: Value = serde_json::from_str(&done.stdout)?;
    for mode in ["tap", "bypass", "strict"] {
        ensure!(json["works"][mode] == true, "{mode}: {json:#}");
    }
    Ok(())
}
