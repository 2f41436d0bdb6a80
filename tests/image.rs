//! An image that holds nothing but sidestep and the workspace's command: what sidestep needs besides is said here.
//!
//! With a static binary (SIDESTEP_BIN) the root holds that, busybox, and what a container's runtime mounts; with
//! another one its libraries, too.

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::lab::command::{Finished, Program};
use crate::lab::servers::TcpServer;
use crate::lab::workspace::{Caller, Workspace, contains};
use crate::lab::{REMOTE, dns, world};

crate::cases! {
    EVERY_WAY: entrypoint, names;
    TAP: alone, examined;
    TAP_AS_ROOT: not_root;
}

/// What container runtimes mount besides, for a shell in the image's root.
const RESOLV_CONF: &str = "mkdir etc && touch etc/resolv.conf && mount --bind /etc/resolv.conf etc/resolv.conf";

/// Makes a root of this, has it furnished by the first argument, and goes on there with the program in the others.
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
eval "$1"
shift
pivot_root . old
exec /busybox env -i PATH=/ /busybox sh -ec 'busybox umount -l /old; busybox rmdir /old; exec "$@"' sh "$@"
"#;

fn within(ws: &Workspace, furnish: &str, argv: &[&str]) -> Result<Finished> {
    let private: &[&str] = match ws.way.caller {
        Caller::User => &["unshare", "--user", "--map-root-user", "--mount"],
        Caller::Root => &["unshare", "--mount"],
    };
    let shell = ["bash", "-c", IMAGE, "bash", furnish];
    let program = Program::new(private.iter().chain(&shell).chain(argv));
    let as_user = ws.way.caller == Caller::User && !world::is_single_id();
    if as_user { program.uid(world::USER) } else { program }.run(&ws.lab.host)
}

fn mode(ws: &Workspace) -> &'static str {
    if ws.bypasses() { "--bypass=require" } else { "--bypass=off" }
}

fn entrypoint(ws: Workspace) -> Result<()> {
    let server = TcpServer::http(&ws.lab.remote, REMOTE[0])?;
    let (mode, active) = (mode(&ws), if ws.bypasses() { "bypass" } else { "tap" });
    let script = format!(
        "busybox wget -qO- http://{}/; echo $SIDESTEP_ACTIVE $SIDESTEP_STATE_DIR; busybox ls -d /old /tmp /etc",
        server.addr
    );
    let done = within(&ws, "", &["/sidestep", "run", mode, "--", "/busybox", "sh", "-c", &script])?.exited(1)?;
    contains(&done.stdout, &format!("hello\n{active} /dev/shm/sidestep-0/"))?;
    contains(&done.stderr, "no DNS inside: /etc/resolv.conf leads to no file")?;
    ensure!(done.stderr.matches("No such file").count() == 3, "there is more than the image: {done}");
    let left = within(&ws, "", &["/sidestep", "run", mode, "--", "/busybox", "sh", "-c", "exit 7"])?;
    left.exited(7)?;
    Ok(())
}

fn names(ws: Workspace) -> Result<()> {
    dns::serve(&ws.lab.remote, REMOTE[0])?;
    let script = "busybox cat /etc/resolv.conf && busybox nslookup remote.lab";
    let argv = ["/sidestep", "run", mode(&ws), "--", "/busybox", "sh", "-c", script];
    let done = within(&ws, RESOLV_CONF, &argv)?.succeeded()?;
    contains(&done.stdout, "nameserver 10.0.2.3\n")?;
    contains(&done.stdout, &format!("Address: {}", REMOTE[0]))
}

/// Not even a shell: the command is sidestep itself.
fn alone(ws: Workspace) -> Result<()> {
    let script = "busybox rm /busybox && exec /sidestep run -- /sidestep --version";
    let done = within(&ws, "", &["/busybox", "sh", "-c", script])?.succeeded()?;
    contains(&done.stdout, "sidestep ")
}

/// The image's USER is an ordinary one of a container that root started.
fn not_root(ws: Workspace) -> Result<()> {
    if world::is_single_id() {
        return Ok(());
    }
    let furnish = format!("mkdir etc && echo user:x:{0}:{0}::/: > etc/passwd", world::USER);
    let as_user = ["/busybox", "start-stop-daemon", "-S", "-c", "user", "-x", "/sidestep", "--"];
    let argv = ["run", "--", "/busybox", "sh", "-c", "echo $SIDESTEP_STATE_DIR"];
    let done = within(&ws, &furnish, &[&as_user[..], &argv[..]].concat())?.succeeded()?;
    contains(&done.stdout, &format!("/dev/shm/sidestep-{}/", world::USER))
}

fn examined(ws: Workspace) -> Result<()> {
    let done = within(&ws, "", &["/sidestep", "doctor", "--json"])?.exited(1)?;
    let json: Value = serde_json::from_str(&done.stdout)?;
    for mode in ["tap", "bypass", "strict"] {
        ensure!(json["works"][mode] == true, "{mode}: {json:#}");
    }
    Ok(())
}
