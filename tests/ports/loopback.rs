//! Clients of the host's own loopback, which do not pass the TAP.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{ANYWHERE, HOST, LOOPBACK, comes_back_whole, connect, known_as, line, serve};
use crate::lab::command::DEADLINE;
use crate::lab::processes::Tree;
use crate::lab::workspace::Workspace;
use crate::lab::{HOST_V4, poll};

crate::cases! {
    TAP: loopback_clients;
    BOTH_PATHS: loopback_inside;
    USER: loopback_resets;
}

fn loopback_clients(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=8080:80");
    let _running = serve(&ws, &ANYWHERE)?;
    for addr in LOOPBACK {
        comes_back_whole(spliced(&ws, addr, 8080)?).with_context(|| addr.to_owned())?;
    }
    // The host's other addresses are kept, as everybody's.
    let name = known_as(&ws.lab.host, (HOST[0], 8080))?;
    ensure!(name == HOST_V4.to_string(), "the host is known as {name}");
    Ok(())
}

/// A connection from the host's loopback that does not pass the TAP, which it may for as long as the forwarder has no
/// sockets inside: the client is known by the workspace's own address, not by the gateway's.
pub fn spliced(ws: &Workspace, addr: &str, port: u16) -> Result<TcpStream> {
    let to: IpAddr = addr.parse()?;
    let (own, gateway) = if to.is_ipv4() { ("10.0.2.100", "10.0.2.2") } else { ("fd00::64", "fd00::2") };
    poll("a spliced connection", DEADLINE, || {
        let mut stream = connect(&ws.lab.host, (to, port))?;
        let name = line(&mut stream)?;
        ensure!(name == own || name == gateway, "{addr} is known as {name}");
        Ok((name == own).then_some(stream))
    })
}

/// Who is reset at one end is at the other, be it by the client, the server, or the forwarder's death.
fn loopback_resets(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=8080:80");
    let mut running = ws.start_python(
        "import struct
l = tcp('0.0.0.0'); l.bind(('0.0.0.0', 80)); l.listen(9); say('ready')
while True:
    c, peer = l.accept(); c.sendall((peer[0] + '\\n').encode())
    what = c.recv(9)
    if what == b'reset': c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); c.close()
    if what == b'wait': say('waits'); say(outcome(lambda: c.recv(9)))",
    )?;
    running.line_with("ready")?;
    let mut stream = spliced(&ws, LOOPBACK[0], 8080)?;
    stream.write_all(b"reset")?;
    let end = stream.read(&mut [0]).map_err(|error| error.kind());
    ensure!(end == Err(std::io::ErrorKind::ConnectionReset), "{end:?}");

    let mut stream = spliced(&ws, LOOPBACK[0], 8080)?;
    stream.write_all(b"wait")?;
    running.line_with("waits")?;
    nix::sys::socket::setsockopt(
        &stream,
        nix::sys::socket::sockopt::Linger,
        &libc::linger { l_onoff: 1, l_linger: 0 },
    )?;
    drop(stream);
    let said = running.line()?;
    ensure!(said == "ECONNRESET", "{said}");

    let mut stream = spliced(&ws, LOOPBACK[0], 8080)?;
    stream.write_all(b"wait")?;
    running.line_with("waits")?;
    let tree = Tree::of(running.pid())?;
    tree.worker("forwarder")?.kill(Signal::SIGKILL)?;
    let said = running.line()?;
    ensure!(said == "ECONNRESET", "{said}");
    let end = stream.read(&mut [0]).map_err(|error| error.kind());
    ensure!(end == Err(std::io::ErrorKind::ConnectionReset), "{end:?}");
    // The next one has sockets again.
    drop(spliced(&ws, LOOPBACK[0], 8080)?);
    Ok(())
}

/// What listens on the loopback inside is reached where that is asked for, from anywhere.
fn loopback_inside(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=8080:127.0.0.1:84");
    let _running = serve(&ws, &[("127.0.0.1", 84)])?;
    for (from, to) in [(&ws.lab.host, LOOPBACK[0].parse()?), (&ws.lab.remote, HOST[0])] {
        // Until the forwarder has sockets inside there is no way, and a reset.
        let stream = poll("a connection to the loopback inside", DEADLINE, || {
            let mut stream = connect(from, (to, 8080))?;
            Ok(line(&mut stream).is_ok_and(|name| name == "127.0.0.1").then_some(stream))
        })?;
        comes_back_whole(stream)?;
    }
    Ok(())
}
