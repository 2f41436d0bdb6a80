//! How long ports are there: from when to when, and whoever of ours dies meanwhile.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{ANYWHERE, HOST, connect, known_as, line, serve};
use crate::lab::command::{DEADLINE, Running};
use crate::lab::processes::Tree;
use crate::lab::workspace::{UNREAD, Workspace, contains};
use crate::lab::world::SIDESTEP;
use crate::lab::{REMOTE, poll};

crate::cases! {
    EVERY_WAY: at_run_time;
    BOTH_PATHS: published_by_itself, after_the_workspace, given_to_run;
    USER: forwarder_killed;
}

/// The sockets outlive the forwarder: who comes meanwhile waits.
fn forwarder_killed(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=8080:80");
    let running = serve(&ws, &ANYWHERE)?;
    let mut before = connect(&ws.lab.remote, (HOST[0], 8080))?;
    line(&mut before)?;
    let tree = Tree::of(running.pid())?;
    let victim = tree.worker("forwarder")?;
    victim.kill(Signal::SIGKILL)?;
    poll("the forwarder is gone", Duration::from_secs(10), || Ok((!victim.is_alive()).then_some(())))?;
    let name = known_as(&ws.lab.remote, (HOST[0], 8080)).with_context(|| running.stderr())?;
    ensure!(name == REMOTE[0].to_string(), "known as {name}");
    let lost = before.read(&mut [0]).map_err(|error| error.kind());
    ensure!(lost == Err(std::io::ErrorKind::ConnectionReset), "{lost:?}");
    Ok(())
}

/// The port is free again at once, though connections of the last workspace are in TIME-WAIT.
fn after_the_workspace(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=8080:80");
    for _ in 0..2 {
        let running = serve(&ws, &ANYWHERE)?;
        ensure!(known_as(&ws.lab.remote, (HOST[0], 8080))? == REMOTE[0].to_string());
        running.finish()?.succeeded()?;
    }
    Ok(())
}

/// `sidestep ports`, from the caller's side.
fn at_run_time(ws: Workspace) -> Result<()> {
    let dir = format!("/tmp/ports-{}", ws.way);
    let ws = ws.flag("-p=8080:80").flag(format!("--state-dir={dir}"));
    // At an address: a server that is on the host already does not know its clients at a port added later.
    let running = serve(&ws, &[("10.0.2.100", 80)])?;
    let ports = |arguments: &[&str]| {
        let words = [SIDESTEP, "ports", "--state-dir", &dir];
        ws.beside(&running, words.into_iter().chain(arguments.iter().copied())).run(&ws.lab.host)
    };
    let known = |port: u16| Ok::<_, anyhow::Error>(known_as(&ws.lab.remote, (HOST[0], port))? == REMOTE[0].to_string());
    ports(&["list"])?.printed("1  tcp  *:8080 -> :80  start")?;
    let unread = format!("{UNREAD}; {SIDESTEP} ports --state-dir {dir} list >&4; echo $?");
    let unread = ws.beside(&running, ["bash", "-c", &unread]).run(&ws.lab.host)?;
    ensure!(unread.stdout == "141\n" && unread.stderr.is_empty(), "nobody reads the list: {unread}");
    ports(&["add", "192.0.2.1:8081-8082:80-81"])?
        .printed("2  tcp  192.0.2.1:8081 -> :80  added\n3  tcp  192.0.2.1:8082 -> :81  added")?;
    let served = |port: u16| poll("the port is served", DEADLINE, || Ok(known(port).unwrap_or(false).then_some(())));
    served(8081)?;
    for (arguments, says) in [
        (&["add", "8081:80"][..], "port 8081 is "),
        (&["add", "9000-9001:80"], "both ranges need the same length"),
        (&["remove", "9"], "no published port has the number 9"),
    ] {
        contains(&ports(arguments)?.exited(125)?.stderr, says)?;
    }
    for worker in ["supervisor", "forwarder"] {
        let tree = Tree::of(running.pid())?;
        let victim = tree.worker(worker)?;
        victim.kill(Signal::SIGKILL)?;
        poll("the worker is gone", DEADLINE, || Ok((!victim.is_alive()).then_some(())))?;
        served(8081).with_context(|| format!("{worker} killed: {}", running.stderr()))?;
        // One that lists them has them from the forwarder, which may then die as well.
        let listed = poll("the supervisor answers", DEADLINE, || {
            let done = ports(&["list", "--json"])?;
            Ok(done.status.success().then_some(done.stdout))
        })?;
        let listed: serde_json::Value = serde_json::from_str(&listed)?;
        ensure!(listed.as_array().is_some_and(|all| all.len() == 3) && listed[1]["host_port"] == 8081, "{listed}");
    }
    ports(&["remove", "2", "3"])?.printed("")?;
    let to = SocketAddr::new(HOST[0], 8081);
    poll("the port is closed", DEADLINE, || {
        Ok(ws.lab.remote.within(|| TcpStream::connect_timeout(&to, DEADLINE)).is_err().then_some(()))
    })?;
    ensure!(known(8080)?);
    running.finish()?.succeeded()?;
    Ok(())
}

/// One that was given to `run` is removed like any other: whoever of ours dies before or after, nobody gets to it any more,
/// and those who had stay connected.
fn given_to_run(ws: Workspace) -> Result<()> {
    let dir = format!("/tmp/given-{}", ws.way);
    let ws = ws.flag("-p=8080:80").flag("-p=8053:53/udp").flag("-p=8081:80").flag(format!("--state-dir={dir}"));
    // At an address: on the host it would have the port itself.
    let running = serve(&ws, &[("10.0.2.100", 80)])?;
    let ports = |arguments: &[&str]| {
        let words = [SIDESTEP, "ports", "--state-dir", &dir];
        ws.beside(&running, words.into_iter().chain(arguments.iter().copied())).run(&ws.lab.host)
    };
    let killed = |worker: &str| {
        let tree = Tree::of(running.pid())?;
        let victim = tree.worker(worker)?;
        victim.kill(Signal::SIGKILL)?;
        poll("the worker is gone", DEADLINE, || Ok((!victim.is_alive()).then_some(())))?;
        poll("the supervisor answers", DEADLINE, || Ok(ports(&["list"])?.status.success().then_some(())))
    };
    // Whoever is told that a port stays does not lose it: a forwarder is killed below.
    let tree = Tree::of(running.pid())?;
    let monitor = tree.processes.iter().find(|process| process.pid == running.pid().as_raw()).context("no monitor")?;
    monitor.kill(Signal::SIGSTOP)?;
    let refused = ports(&["remove", "3"])?.exited(125)?;
    monitor.kill(Signal::SIGCONT)?;
    contains(&refused.stderr, "`sidestep run` does not answer")?;
    killed("supervisor")?;
    let mut before = connect(&ws.lab.remote, (HOST[0], 8080))?;
    line(&mut before)?;
    ports(&["remove", "1", "2"])?.printed("")?;
    let is_removed = || {
        let to = SocketAddr::new(HOST[0], 8080);
        let connected =
            ws.lab.remote.within(|| TcpStream::connect_timeout(&to, DEADLINE)).map_err(|error| error.kind());
        ensure!(matches!(connected, Err(std::io::ErrorKind::ConnectionRefused)), "{connected:?}");
        // Another program may have them.
        ws.lab.host.within(|| std::net::TcpListener::bind("0.0.0.0:8080")).context("TCP")?;
        ws.lab.host.within(|| std::net::UdpSocket::bind("0.0.0.0:8053")).context("UDP")?;
        ports(&["list"])?.printed("3  tcp  *:8081 -> :80  start")
    };
    is_removed()?;
    before.write_all(b"still")?;
    before.read_exact(&mut [0; 5])?;
    for worker in ["forwarder", "supervisor"] {
        killed(worker)?;
        is_removed().with_context(|| format!("{worker} killed: {}", running.stderr()))?;
    }
    contains(&ports(&["remove", "1"])?.exited(125)?.stderr, "no published port has the number 1")?;
    ports(&["add", "8080:80"])?.printed("4  tcp  *:8080 -> :80  added")?;
    for port in [8080, 8081] {
        poll("the port is served", DEADLINE, || {
            let name = known_as(&ws.lab.remote, (HOST[0], port)).unwrap_or_default();
            Ok((name == REMOTE[0].to_string()).then_some(()))
        })?;
    }
    running.finish()?.succeeded()?;
    Ok(())
}

/// What begins to listen inside is published until it stops, whoever of ours dies meanwhile.
fn published_by_itself(ws: Workspace) -> Result<()> {
    let _taken = ws.lab.host.within(|| std::net::TcpListener::bind("192.0.2.1:5002"))?;
    let ws = ws.flag("--publish-auto").flag("-p=5003:80");
    let mut running = ws.start_python(
        "listening = {}
def accept(s):
    try:
        while True:
            c, peer = s.accept(); c.sendall((peer[0] + '\\n').encode()); c.close()
    except OSError: pass
for line in sys.stdin:
    what, addr, port = line.split()
    if what == 'listen':
        s = listening[port] = tcp(addr); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind((addr, int(port))); s.listen()
        threading.Thread(target=accept, args=[s], daemon=True).start()
    else:
        # Closing alone leaves it to the thread that waits in accept.
        s = listening.pop(port); s.shutdown(socket.SHUT_RDWR); s.close()
    say('done')",
    )?;
    let inside = |running: &mut Running, order: &str| -> Result<()> {
        running.write(&format!("{order}\n"))?;
        running.line_with("done").map(drop)
    };
    let remote = &ws.lab.remote;
    let served = |port: u16| {
        poll(&format!("port {port} is served"), DEADLINE, || {
            let name = known_as(remote, (HOST[0], port)).unwrap_or_default();
            // What listens at :: sees IPv4 addresses in IPv6 ones.
            Ok((name.trim_start_matches("::ffff:") == REMOTE[0].to_string()).then_some(()))
        })
    };
    let is_closed = |port: u16| {
        let to = SocketAddr::new(HOST[0], port);
        remote.within(|| TcpStream::connect_timeout(&to, DEADLINE)).is_err()
    };
    for order in ["127.0.0.1 5001", "0.0.0.0 5002", "0.0.0.0 5003", "0.0.0.0 1000", "0.0.0.0 5000", ":: 5004"] {
        inside(&mut running, &format!("listen {order}"))?;
    }
    served(5000).with_context(|| running.stderr())?;
    served(5004)?;
    ensure!(is_closed(5001) && is_closed(1000), "what was not to be published is");
    let warning = "warning: --publish-auto: port 5002 is taken by";
    let said = poll("the warning about port 5002", DEADLINE, || {
        Ok(Some(running.stderr()).filter(|said| said.contains(warning)))
    })?;
    ensure!(said.matches(warning).count() == 1, "{said}");
    ensure!(!said.contains("5003 is"), "{said}");
    for worker in ["supervisor", "forwarder"] {
        let tree = Tree::of(running.pid())?;
        let victim = tree.worker(worker)?;
        victim.kill(Signal::SIGKILL)?;
        poll("the worker is gone", DEADLINE, || Ok((!victim.is_alive()).then_some(())))?;
        served(5000).with_context(|| format!("{worker} killed: {}", running.stderr()))?;
        served(5004)?;
        inside(&mut running, "listen 0.0.0.0 5005")?;
        served(5005)?;
        inside(&mut running, "close 0.0.0.0 5005")?;
        poll("port 5005 is closed", DEADLINE, || Ok(is_closed(5005).then_some(())))?;
    }
    inside(&mut running, "close 0.0.0.0 5000")?;
    poll("port 5000 is closed", DEADLINE, || Ok(is_closed(5000).then_some(())))?;
    served(5004)
}
