//! How many system calls the workers make for what they do: a guard against becoming slower that no other load on the
//! machine can disturb. Each bound is what was counted when it was set and a little more, and says what is in it.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::lab::REMOTE;
use crate::lab::poll;
use crate::lab::processes::Tree;
use crate::lab::servers::TcpServer;
use crate::lab::workspace::Workspace;

crate::cases! {
    BYPASS_AS_ROOT: a_connect, calls_that_do_not_stop;
    TAP_AS_ROOT: a_megabyte, idle_connections;
}

const SOON: Duration = Duration::from_secs(20);
/// Connects counted: enough that what happens by the way does not show.
const CONNECTS: u32 = 200;
/// Megabytes counted, each way.
const MEGABYTES: u32 = 32;

/// A worker's calls, by name, while the workspace does what it does between a line written to it and one of its own.
/// It lives on until they are counted: its end would close its connections, and cost calls of its own.
fn calls_of(ws: &Workspace, worker: &str, program: &str) -> Result<BTreeMap<String, u32>> {
    let server = TcpServer::start(&ws.lab.remote, (REMOTE[0], 0), |mut stream| {
        // Whoever says "send" is sent so much; what others send is thrown away.
        let mut first = [0; 4];
        stream.read_exact(&mut first)?;
        if &first == b"send" {
            let megabyte = vec![7; 1 << 20];
            return (0..MEGABYTES).try_for_each(|_| stream.write_all(&megabyte));
        }
        std::io::copy(&mut stream, &mut std::io::sink())?;
        stream.write_all(b"done")
    })?;
    let code = format!(
        "ADDRESS = {:?}, {}\n{program}\nsay('done'); input()",
        server.addr.ip().to_string(),
        server.addr.port()
    );
    let mut running = ws.start_python(&code)?;
    running.line_with("ready")?;
    let pid = Tree::of(running.pid())?.worker(worker)?.pid.to_string();
    let counter = ws.outside(["strace", "-f", "-c", "-p"]).arg(&pid).start(&ws.lab.host)?;
    poll("strace has attached", SOON, || Ok(counter.stderr().contains("attached").then_some(())))?;
    running.write("go\n")?;
    running.line_with("done")?;
    counter.kill(Signal::SIGINT)?;
    let table = counter.finish()?.stderr;
    running.write("end\n")?;
    running.finish()?.succeeded()?;
    counts(&table).with_context(|| table)
}

/// strace's summary: share, seconds, each, calls, errors if any, name.
fn counts(table: &str) -> Result<BTreeMap<String, u32>> {
    let mut counts = BTreeMap::new();
    for line in table.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (Some(name), Some(calls)) = (words.last(), words.get(3).and_then(|calls| calls.parse().ok())) else {
            continue;
        };
        if *name != "total" && words[0].parse::<f64>().is_ok() {
            counts.insert((*name).to_owned(), calls);
        }
    }
    Ok(counts)
}

fn at_most(bound: f64, each_of: u32, calls: &BTreeMap<String, u32>) -> Result<()> {
    let each = f64::from(calls.values().sum::<u32>()) / f64::from(each_of);
    ensure!(each <= bound, "{each:.1} calls each, where {bound} are enough: {calls:?}");
    ensure!(each > 0.0, "nothing was counted");
    Ok(())
}

/// A bypassed connect: three of the listener, the copies (pidfd_getfd, process_vm_readv, fdinfo), what is asked of the
/// socket and its pristine twin, socket, connect, and the descriptors closed again.
fn a_connect(ws: Workspace) -> Result<()> {
    let program = format!(
        "def connect():\n    s = dial(*ADDRESS); s.sendall(b'take'); s.close()\n\
         connect(); say('ready'); input()\n\
         for _ in range({CONNECTS}): connect()"
    );
    at_most(110.0, CONNECTS, &calls_of(&ws, "supervisor", &program)?)
}

/// What a program does with a socket that it has: none of it is the supervisor's business.
fn calls_that_do_not_stop(ws: Workspace) -> Result<()> {
    let program = "import fcntl, os\n\
         s = dial(*ADDRESS); s.sendall(b'take'); say('ready'); input()\n\
         for _ in range(10_000):\n    \
             s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1); s.getpeername(); s.getsockname(); s.send(b'x')\n    \
             fcntl.fcntl(s, fcntl.F_GETFL); os.close(os.dup(s.fileno()))";
    let calls = calls_of(&ws, "supervisor", program)?;
    let all = calls.values().sum::<u32>();
    // The watch looks around four times a second, however long this takes under strace.
    ensure!(all < 5_000, "{all} calls of the supervisor for 70,000 of a program: {calls:?}");
    Ok(())
}

/// Sixteen super-frames of 64 KB are a megabyte: towards the host each is read, four go out with one call, and one
/// acknowledgement a batch comes back; from the host each is peeked and written, and dropped when acknowledged.
fn a_megabyte(ws: Workspace) -> Result<()> {
    for (bound, way) in [
        (60.0, "s.sendall(b'take')\nfor _ in range(COUNT): s.sendall(bytes(1 << 20))\ns.shutdown(1); s.recv(4)"),
        (90.0, "s.sendall(b'send')\nwhile s.recv(1 << 20): pass"),
    ] {
        let program = format!("COUNT = {MEGABYTES}\ns = dial(*ADDRESS); say('ready'); input()\n{way}");
        at_most(bound, MEGABYTES, &calls_of(&ws, "forwarder", &program)?)?;
    }
    Ok(())
}

/// Nobody wakes for connections that say nothing.
fn idle_connections(ws: Workspace) -> Result<()> {
    let program = "import time\n\
         open = [dial(*ADDRESS) for _ in range(200)]; say('ready'); input(); time.sleep(3)";
    let calls = calls_of(&ws, "forwarder", program)?;
    let all = calls.values().sum::<u32>();
    ensure!(all <= 60, "{all} calls for 200 connections that say nothing: {calls:?}");
    Ok(())
}
