//! Container engines as Debian ships them: Podman and RootlessKit, which start sidestep under the name slirp4netns, and
//! Docker, which does and which runs in a workspace.

pub mod docker;
pub mod podman;
pub mod rootlesskit;

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::Result;

use crate::lab::HOST_V4;
use crate::lab::command::{DEADLINE, Finished, Program};
use crate::lab::netns::Netns;
use crate::lab::poll;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const HOST: IpAddr = IpAddr::V4(HOST_V4);
const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 11] = ["sh", "cat", "echo", "grep", "httpd", "ip", "nc", "nslookup", "ping", "sleep", "wget"];

/// An image's files: busybox, and what it serves under /www.
fn image(tree: &Path) -> Result<()> {
    let bin = tree.join("bin");
    fs::create_dir_all(&bin)?;
    fs::create_dir_all(tree.join("www/cgi-bin"))?;
    fs::copy(BUSYBOX, bin.join("busybox"))?;
    for applet in APPLETS {
        symlink("busybox", bin.join(applet))?;
    }
    fs::write(tree.join("www/index.html"), "hello from inside\n")?;
    let peer = tree.join("www/cgi-bin/peer");
    fs::write(&peer, "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n%s\\n' $REMOTE_ADDR\n")?;
    Ok(fs::set_permissions(peer, fs::Permissions::from_mode(0o755))?)
}

/// What a client in `from` gets from a port of the host, an empty text for nothing.
fn curl(from: &Netns, addr: IpAddr, port: u16, path: &str) -> Result<Finished> {
    Program::new(["curl", "-sS", "--max-time", "20", &format!("http://{addr}:{port}/{path}")]).run(from)
}

/// Asks until the server that has just been started answers.
fn answers(from: &Netns, addr: IpAddr, port: u16, path: &str) -> Result<String> {
    let mut last = None;
    let answer = poll("an answer of the published server", DEADLINE, || {
        let done = curl(from, addr, port, path)?;
        let answer = done.status.success().then(|| done.stdout.trim().to_owned());
        last = Some(done);
        Ok(answer)
    });
    answer.map_err(|error| match last {
        Some(done) => error.context(done.to_string()),
        None => error,
    })
}

/// Asks until nobody listens any more: engines do not wait for the end of who forwards their ports.
fn is_closed(from: &Netns, addr: IpAddr, port: u16) -> Result<()> {
    poll("the end of the published port", DEADLINE, || {
        Ok((curl(from, addr, port, "")?.status.code() == Some(REFUSED)).then_some(()))
    })
}

/// curl(1)'s exit code where nobody listens.
const REFUSED: i32 = 7;
