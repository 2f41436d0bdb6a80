//! From when to when a program has a published port: until it closes it, whoever wants it removed, and through the death of
//! a worker.

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{GENERATIONS, HOST, SERVER, ask, is_known_as, remote};
use crate::lab::command::{DEADLINE, Running};
use crate::lab::processes::Tree;
use crate::lab::workspace::{Workspace, contains};
use crate::lab::world::SIDESTEP;
use crate::lab::{REMOTE, effort, poll};

crate::cases! {
    BYPASS_AS_ROOT: killed_amid_listen;
    BYPASS_AS_USER: removed, closed_and_again, dissolved, restarted, supervisor_killed, forwarder_killed;
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
    let said = "the supervisor ended with SIGKILL";
    poll("what the monitor says of it", DEADLINE, || Ok(running.stderr().contains(said).then_some(())))
        .with_context(|| running.stderr())?;
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

/// A program that ends gives the port back at once, whoever of its processes is the last; the next one may have it.
fn closed_and_again(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=8080:80");
    let mut running = ws.start_python(&format!(
        "{SERVER}
def child(code):
    pid = os.fork()
    if pid == 0:
        exec(code, globals()); say('serves'); signal.pause()
    return pid
for line in sys.stdin:
    what = line.strip()
    if what == 'start': pid = child(\"l = serve(listen('0.0.0.0', 80, reuse=False)); assert side(l) == 'host'\")
    if what == 'kill': os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0); say('killed')
    if what == 'seen':
        while inside(80): time.sleep(0.01)
        say('gone', attempt('127.0.0.1', 80))"
    ))?;
    let is_reset = || {
        let to = SocketAddr::from((HOST[0], 8080));
        let connected = ws.lab.remote.within(|| TcpStream::connect_timeout(&to, DEADLINE));
        let end = connected.and_then(|mut stream| stream.read(&mut [0])).map_err(|error| error.kind());
        ensure!(end == Err(std::io::ErrorKind::ConnectionReset), "{end:?}");
        Ok(())
    };
    for _ in 0..effort::tries(10, 500) {
        running.write("start\n")?;
        running.line_with("serves").with_context(|| running.stderr())?;
        is_known_as(&ws.lab.remote, (HOST[0], 8080), &remote(0, "host"))?;
        running.write("kill\n")?;
        running.line_with("killed")?;
        // The forwarder has it, and finds nobody inside.
        is_reset()?;
    }
    running.write("seen\n")?;
    running.line_with("gone ECONNREFUSED").map(drop)
}

/// A listening socket that is shut down or dissolved is the workspace's again, with its port, and may listen there.
fn dissolved(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=8080:80");
    let mut running = ws.start_python(&format!(
        "{SERVER}
l = listen('0.0.0.0', 80); say(side(l), outcome(lambda: l.listen(9)), side(l))
say(outcome(lambda: l.bind(('0.0.0.0', 81))), outcome(lambda: l.connect(('127.0.0.1', 81))), side(l))
l.shutdown(socket.SHUT_RDWR); say(outcome(l.accept), outcome(l.listen), side(l), l.getsockname()); l.close()
l = listen('0.0.0.0', 80); libc = ctypes.CDLL(None)
say(side(l), libc.connect(l.fileno(), bytes(16), 16), side(l), l.getsockname(), outcome(l.listen), side(l))
serve(l); say('ready'); sys.stdin.read()"
    ))?;
    let mut said = String::new();
    for _ in 0..4 {
        said += &format!("{}\n", running.line().with_context(|| running.stderr())?);
    }
    let want = "host connected host
EINVAL EISCONN host
EINVAL connected workspace ('0.0.0.0', 80)
host 0 workspace ('0.0.0.0', 80) connected host
";
    ensure!(said == want, "{said}");
    running.line_with("ready")?;
    is_known_as(&ws.lab.remote, (HOST[0], 8080), &remote(0, "host"))
}

/// Clients by the thousand, while one server process takes over from another again and again, and workers of ours die:
/// as on any Linux, where the socket is handed on, nobody is lost.
fn restarted(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=8080:80").deadline(effort::lasting(Duration::from_secs(120), Duration::from_secs(600)));
    let mut running = ws.start_python(&format!(
        "{SERVER}
l = listen('::', 80, v6only=0)
{GENERATIONS}
exchange(); say('ready')
for line in sys.stdin: exchange(); say('exchanged')"
    ))?;
    running.line_with("ready").with_context(|| running.stderr())?;
    let tries = effort::tries(2_000, 20_000);
    let want = format!("::ffff:{} host", REMOTE[0]);
    std::thread::scope(|scope| -> Result<()> {
        let client = || -> Result<()> {
            for n in 0..tries / 4 {
                is_known_as(&ws.lab.remote, (HOST[0], 8080), &want).with_context(|| format!("connection {n}"))?;
            }
            Ok(())
        };
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(client)).collect();
        let mut exchanged = 0;
        while exchanged < 50 || !clients.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            if let Some(worker) = [(10, "supervisor"), (30, "forwarder")].iter().find(|(at, _)| *at == exchanged) {
                Tree::of(running.pid())?.worker(worker.1)?.kill(Signal::SIGKILL)?;
            }
            running.write("again\n")?;
            running.line_with("exchanged").with_context(|| running.stderr())?;
            exchanged += 1;
        }
        clients.into_iter().try_for_each(|client| client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
    })
}

/// The next supervisor has the shadow from the forwarder.
fn supervisor_killed(ws: Workspace) -> Result<()> {
    killed(ws, "supervisor")
}

/// The next forwarder has the shadow from the supervisor.
fn forwarder_killed(ws: Workspace) -> Result<()> {
    killed(ws, "forwarder")
}

fn killed(ws: Workspace, worker: &str) -> Result<()> {
    let ws = ws.flag("-p=8080:80");
    let mut running = ws.start_python(&format!(
        "{SERVER}
l = serve(listen('0.0.0.0', 80)); say(side(l), ask('127.0.0.1', 80))
for line in sys.stdin:
    if line == 'ask\\n': say(ask('127.0.0.1', 80))
    if line == 'close\\n':
        l.shutdown(socket.SHUT_RDWR); l.close()
        l = listen('0.0.0.0', 80, reuse=False); say(side(l), outcome(l.listen))"
    ))?;
    running.line_with("host 127.0.0.1 host")?;
    for _ in 0..2 {
        let tree = Tree::of(running.pid())?;
        let victim = tree.worker(worker)?;
        victim.kill(Signal::SIGKILL)?;
        poll("the worker is gone", DEADLINE, || Ok((!victim.is_alive()).then_some(())))?;
        is_known_as(&ws.lab.remote, (HOST[0], 8080), &remote(0, "host"))?;
        running.write("ask\n")?;
        running.line_with("127.0.0.1 host").with_context(|| running.stderr())?;
        poll("another worker is there", DEADLINE, || Ok(Tree::of(running.pid())?.worker(worker).ok().map(drop)))?;
    }
    // It is not in the way of another listener.
    running.write("close\n")?;
    running.line_with("host connected").with_context(|| running.stderr()).map(drop)
}
