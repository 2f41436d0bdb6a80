//! From when to when a program has a published port: until it closes it, whoever wants it removed, and through the death of
//! a supervisor.

use std::net::{SocketAddr, TcpStream};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{HOST, SERVER, ask, is_known_as, remote};
use crate::lab::command::{DEADLINE, Running};
use crate::lab::poll;
use crate::lab::processes::Tree;
use crate::lab::workspace::{Workspace, contains};
use crate::lab::world::SIDESTEP;

crate::cases! {
    BYPASS_AS_ROOT: killed_amid_listen;
    BYPASS_AS_USER: removed;
}

/// One that dies when it is about to tell the forwarder of a shadow has not answered the listen: the next one makes another,
/// and does not take what is left of the first for an option of the program's, though others have set it.
fn killed_amid_listen(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=8080:80");
    let mut running = ws.start_python(&format!(
        "{SERVER}
socket.socket().setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
l = listener('0.0.0.0', 80); say('bound'); input()
l.listen(); serve(l); say(side(l), ask('127.0.0.1', 80), inside(80)); input()"
    ))?;
    running.line_with("bound")?;
    let tree = Tree::of(running.pid())?;
    let supervisor = tree.worker("supervisor")?;
    // Each message of the event loop's thread, which has the link, stands still for a minute before it is sent.
    let words = ["strace", "-e", "trace=sendmsg", "-e", "inject=sendmsg:delay_enter=60000000", "-p"];
    let tracer = ws.outside(words).arg(supervisor.pid.to_string()).start(&ws.lab.host)?;
    poll("strace has attached", DEADLINE, || Ok(tracer.stderr().contains("attached").then_some(())))?;
    running.write("go\n")?;
    poll("it tells the forwarder", DEADLINE, || Ok(tracer.stderr().contains("sendmsg(").then_some(())))?;
    supervisor.kill(Signal::SIGKILL)?;
    // It would not let it go.
    tracer.kill(Signal::SIGKILL)?;
    running.line_with("host 127.0.0.1 host True").with_context(|| running.stderr())?;
    ensure!(running.stderr().contains("the supervisor ended with SIGKILL"), "{}", running.stderr());
    is_known_as(&ws.lab.remote, (HOST[0], 8080), &remote(0, "host"))
}

/// A port is not removed while a program has it, and then it is: the next program listens inside, where nobody from outside
/// gets to, until it is published again.
fn removed(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=8080:80").flag("--state-dir=/tmp/removed");
    let mut running = ws.start_python(&format!(
        "{SERVER}
for line in sys.stdin:
    l = serve(listen('0.0.0.0', 80)); say(side(l)); input()
    l.shutdown(socket.SHUT_RDWR); l.close(); say('closed')"
    ))?;
    let inside = |running: &mut Running, want: &str| -> Result<()> {
        running.write("go\n")?;
        running.line_with(want).with_context(|| running.stderr()).map(drop)
    };
    inside(&mut running, "host")?;
    let ports = |running: &Running, arguments: &[&str]| {
        let words = [SIDESTEP, "ports", "--state-dir=/tmp/removed"];
        ws.beside(running, words.into_iter().chain(arguments.iter().copied())).run(&ws.lab.host)
    };
    contains(
        &ports(&running, &["remove", "1"])?.exited(125)?.stderr,
        "a program in the workspace listens at port 8080",
    )?;
    is_known_as(&ws.lab.remote, (HOST[0], 8080), &remote(0, "host"))?;
    inside(&mut running, "closed")?;
    poll("the port is removed", DEADLINE, || Ok(ports(&running, &["remove", "1"])?.status.success().then_some(())))?;
    inside(&mut running, "workspace")?;
    let to = SocketAddr::from((HOST[0], 8080));
    let connected = ws.lab.remote.within(|| TcpStream::connect_timeout(&to, DEADLINE)).map_err(|error| error.kind());
    ensure!(matches!(connected, Err(std::io::ErrorKind::ConnectionRefused)), "{connected:?}");
    ports(&running, &["add", "8080:80"])?.succeeded()?;
    poll("the port is served", DEADLINE, || {
        let said = ask(&ws.lab.remote, (HOST[0], 8080)).unwrap_or_default();
        Ok((said == remote(0, "workspace")).then_some(()))
    })?;
    inside(&mut running, "closed")?;
    inside(&mut running, "host")
}
