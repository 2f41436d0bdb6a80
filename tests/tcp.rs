//! TCP as programs see it: bulk, errors, options, closing. Most of it holds on the host too, and is tried there first.

use std::io::{ErrorKind, Read as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use crate::lab::command::DEADLINE;
use crate::lab::servers::{self, FullListener, TcpServer};
use crate::lab::workspace::{Path, Workspace};
use crate::lab::{BLACK_HOLE, HOST_V4, HOST_V6, REMOTE, UNREACHABLE, poll};

crate::cases! {
    EVERYWHERE: iperf3, errors_blocking, errors_nonblocking, timeouts, data_arrives_whole, half_close, resets, left_behind,
        whoami;
    EVERY_WAY: takes_its_path, many_pending_dials, descriptor_flags, options_survive, threads;
    BYPASS: interrupted;
}

fn iperf3(ws: Workspace) -> Result<()> {
    let _server = servers::iperf3(&ws.lab.remote, 5201)?;
    for (addr, host) in REMOTE.into_iter().zip([HOST_V4.to_string(), HOST_V6.to_string()]) {
        for direction in ["", "-R"] {
            let done = ws.sh(&format!("exec iperf3 -J -c {addr} -n 50M {direction}"))?.succeeded()?;
            let report: serde_json::Value = serde_json::from_str(&done.stdout)?;
            let local = report["start"]["connected"][0]["local_host"].as_str().unwrap_or_default();
            ensure!((local == host) == (ws.way.path != Path::Tap), "sent from {local}: {done}");
            let received = report["end"]["sum_received"]["bytes"].as_u64().unwrap_or_default();
            // Not all: it stops when the last are on their way.
            ensure!(received > 10_000_000, "{received} bytes of 50 MB: {done}");
        }
    }
    Ok(())
}

fn takes_its_path(ws: Workspace) -> Result<()> {
    for addr in REMOTE {
        ws.takes_its_path(TcpServer::echo(&ws.lab.remote, addr)?.addr)?;
    }
    Ok(())
}

fn errors_blocking(ws: Workspace) -> Result<()> {
    for addr in REMOTE {
        let port = servers::closed_port(&ws.lab.remote, addr)?.port();
        ws.python(&format!("print(attempt('{addr}', {port}, None))"))?.printed("ECONNREFUSED")?;
    }
    for (addr, errno) in UNREACHABLE {
        ws.python(&format!("print(attempt('{addr}', 80, None))"))?.printed(errno)?;
    }
    Ok(())
}

fn errors_nonblocking(ws: Workspace) -> Result<()> {
    let begin_and_wait = |addr: &str, port: u16| {
        ws.python(&format!(
            "s = tcp('{addr}'); s.setblocking(False)
begun = s.connect_ex(('{addr}', {port}))
select.select([], [s], [], 20)
print(errno.errorcode[begun], errno.errorcode.get(s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 'connected'))"
        ))
    };
    for addr in REMOTE {
        let echo = TcpServer::echo(&ws.lab.remote, addr)?;
        begin_and_wait(&addr.to_string(), echo.addr.port())?.printed("EINPROGRESS connected")?;
        let closed = servers::closed_port(&ws.lab.remote, addr)?;
        begin_and_wait(&addr.to_string(), closed.port())?.printed("EINPROGRESS ECONNREFUSED")?;
    }
    for (addr, errno) in UNREACHABLE {
        begin_and_wait(&addr.to_string(), 80)?.printed(&format!("EINPROGRESS {errno}"))?;
    }
    Ok(())
}

/// Black holes, by each of the clocks that can run out.
fn timeouts(ws: Workspace) -> Result<()> {
    for addr in BLACK_HOLE {
        ws.python(&format!("print(attempt('{addr}', 80, 0.5))"))?.printed("timed out")?;
    }
    let addr = BLACK_HOLE[0];
    ws.python(&format!(
        "s = tcp('{addr}'); s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack('ll', 0, 500000))
print(outcome(lambda: s.connect(('{addr}', 80))))"
    ))?
    .printed("EINPROGRESS")?;
    ws.python(&format!(
        "s = tcp('{addr}'); s.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1200)
print(outcome(lambda: s.connect(('{addr}', 80))))"
    ))?
    .printed("ETIMEDOUT")?;
    let full = FullListener::start(&ws.lab.remote, REMOTE[0])?;
    let port = full.addr.port();
    ws.python(&format!("print(attempt('{}', {port}, 0.5))", REMOTE[0]))?.printed("timed out")
}

fn data_arrives_whole(ws: Workspace) -> Result<()> {
    for addr in REMOTE {
        let echo = TcpServer::echo(&ws.lab.remote, addr)?;
        ws.python(&format!(
            "s = dial('{addr}', {port})
sent = os.urandom(5_000_011)
writer = threading.Thread(target=s.sendall, args=[sent]); writer.start()
got = bytearray()
while len(got) < len(sent):
    chunk = s.recv(77_777)
    if not chunk: break
    got += chunk
print('same' if got == sent else f'{{len(got)}} bytes of {{len(sent)}} or others')",
            port = echo.addr.port()
        ))?
        .printed("same")?;
    }
    Ok(())
}

/// The end of one direction leaves the other open, both ways round.
fn half_close(ws: Workspace) -> Result<()> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    ws.python(&format!(
        "s = dial('{}', {}); s.sendall(b'ping'); s.shutdown(socket.SHUT_WR)
print(b''.join(iter(lambda: s.recv(99), b'')))",
        REMOTE[0],
        echo.addr.port()
    ))?
    .printed("b'ping'")?;
    // A server that ends its direction first and still reads ours.
    let server = TcpServer::start(&ws.lab.remote, (REMOTE[0], 0), |mut stream| {
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut rest = String::new();
        stream.read_to_string(&mut rest)?;
        assert_eq!(rest.len(), 1_000_000);
        Ok(())
    })?;
    ws.python(&format!(
        "s = dial('{}', {}); print(s.recv(99)); s.sendall(b'x' * 1_000_000); s.close()",
        REMOTE[0],
        server.addr.port()
    ))?
    .printed("b''")
}

/// What a program has sent arrives, and its end of stream behind it, though the workspace ends with the program.
fn left_behind(ws: Workspace) -> Result<()> {
    const CONNECTIONS: usize = 20;
    let ends = Arc::new(Mutex::new(Vec::new()));
    let push = ends.clone();
    let server = TcpServer::start(&ws.lab.remote, (REMOTE[0], 0), move |mut stream| {
        let end = std::io::copy(&mut stream, &mut std::io::sink()).map_err(|error| error.kind());
        push.lock().map(|mut ends| ends.push(end)).map_err(|_| ErrorKind::Other.into())
    })?;
    let sent: u64 = ws
        .python(&format!(
            "sockets, sent = [dial('{}', {}) for _ in range({CONNECTIONS})], 0
for s in sockets:
    s.setblocking(False)
    try:
        while True: sent += s.send(b'x' * 1_000_000)
    except BlockingIOError: pass
print(sent, flush=True); os._exit(0)",
            REMOTE[0],
            server.addr.port()
        ))?
        .output()?
        .parse()?;
    let ends = poll("all connections have ended", DEADLINE, || {
        let ends = ends.lock().map_err(|_| anyhow::anyhow!("a server died"))?;
        Ok((ends.len() == CONNECTIONS).then(|| ends.clone()))
    })?;
    let arrived: u64 = ends.iter().flatten().sum();
    ensure!(arrived == sent && ends.iter().all(Result::is_ok), "{arrived} of {sent} bytes arrived: {ends:?}");
    Ok(())
}

fn resets(ws: Workspace) -> Result<()> {
    let seen = Arc::new(AtomicBool::new(false));
    let sees = seen.clone();
    let server = TcpServer::start(&ws.lab.remote, (REMOTE[0], 0), move |mut stream| {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        if byte == *b"r" {
            setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        } else {
            stream.write_all(b"y")?;
            let end = stream.read(&mut byte);
            sees.store(end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset), Ordering::SeqCst);
        }
        Ok(())
    })?;
    let (addr, port) = (REMOTE[0], server.addr.port());
    ws.python(&format!("s = dial('{addr}', {port}); s.sendall(b'r'); print(outcome(lambda: s.recv(1)))"))?
        .printed("ECONNRESET")?;
    ws.python(&format!(
        "s = dial('{addr}', {port}); s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
s.sendall(b'x'); print(s.recv(1)); s.close()"
    ))?
    .printed("b'y'")?;
    poll("the remote sees the reset", DEADLINE, || Ok(seen.load(Ordering::SeqCst).then_some(())))
}

/// The remote sees the host, whatever the path.
fn whoami(ws: Workspace) -> Result<()> {
    for (addr, host) in REMOTE.into_iter().zip([HOST_V4.to_string(), HOST_V6.to_string()]) {
        let server = TcpServer::whoami(&ws.lab.remote, addr)?;
        ws.python(&format!("print(dial('{addr}', {}).recv(99).decode())", server.addr.port()))?.printed(&host)?;
    }
    Ok(())
}

/// A hundred unanswered dials are in nobody's way.
fn many_pending_dials(ws: Workspace) -> Result<()> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let done = ws.python(&format!(
        "pending = []
for i in range(100):
    s = tcp('{hole}'); s.setblocking(False); s.connect_ex(('{hole}', 1000 + i)); pending.append(s)
# Whoever waits for them waits for minutes; a machine with much else to do may let one or two wait, too.
def is_soon():
    begun = time.monotonic()
    assert attempt('{addr}', {port}) == 'connected'
    return time.monotonic() - begun < 2
print(sum(is_soon() for _ in range(5)) >= 3)",
        hole = BLACK_HOLE[0],
        addr = REMOTE[0],
        port = echo.addr.port()
    ))?;
    done.printed("True")
}

fn descriptor_flags(ws: Workspace) -> Result<()> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    ws.python(&format!(
        "def flags(s): return fcntl.fcntl(s, fcntl.F_GETFD), fcntl.fcntl(s, fcntl.F_GETFL)
for inheritable in True, False:
    for timeout in None, 5:
        s = tcp('{addr}'); s.set_inheritable(inheritable); s.settimeout(timeout)
        before = flags(s), s.fileno()
        s.connect(('{addr}', {port}))
        if (flags(s), s.fileno()) != before: print(before, 'became', flags(s), s.fileno())",
        addr = REMOTE[0],
        port = echo.addr.port()
    ))?
    .printed("")
}

fn options_survive(ws: Workspace) -> Result<()> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let done = ws.python(&format!(
        "S, T = socket.SOL_SOCKET, socket.IPPROTO_TCP
options = [(S, socket.SO_KEEPALIVE, 1), (T, socket.TCP_NODELAY, 1), (T, socket.TCP_KEEPIDLE, 77),
    (T, socket.TCP_KEEPCNT, 3), (T, socket.TCP_USER_TIMEOUT, 12345), (S, socket.SO_RCVBUF, 30000),
    (socket.IPPROTO_IP, socket.IP_TOS, 0x10), (S, socket.SO_PRIORITY, 3)]
s = tcp('{addr}')
for level, name, value in options: s.setsockopt(level, name, value)
before = [s.getsockopt(level, name) for level, name, _ in options]
s.settimeout(20); s.connect(('{addr}', {port}))
after = [s.getsockopt(level, name) for level, name, _ in options]
print('kept' if before == after else (before, after), side(s))",
        addr = REMOTE[0],
        port = echo.addr.port()
    ))?;
    done.printed(if ws.bypasses() { "kept host" } else { "kept workspace" })
}

fn threads(ws: Workspace) -> Result<()> {
    let server = TcpServer::whoami(&ws.lab.remote, REMOTE[0])?;
    ws.python(&format!(
        "failed = []
def work():
    for _ in range(50):
        try:
            s = dial('{addr}', {port})
            if not s.recv(99): failed.append('no data')
            s.close()
        except OSError as e: failed.append(str(e))
workers = [threading.Thread(target=work) for _ in range(8)]
for w in workers: w.start()
for w in workers: w.join()
print(failed)",
        addr = REMOTE[0],
        port = server.addr.port()
    ))?
    .printed("[]")?;
    server.has_accepted(400)
}

/// A signal gets a program out of a blocking connect, and what it had begun ends with its descriptor. (On the TAP a
/// dial that is given up is silence: Linux sends nothing for it, and the host's socket goes on until its own end.)
fn interrupted(ws: Workspace) -> Result<()> {
    let addr = BLACK_HOLE[0];
    let mut running = ws.start_python(&format!(
        "{calls}
class Alarm(Exception): pass
def ring(*_): raise Alarm
signal.signal(signal.SIGALRM, ring)
s = tcp('{addr}')
def once_it_connects(): until_connecting(s); signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)
threading.Thread(target=once_it_connects).start()
try: s.connect(('{addr}', 80))
except Alarm: s.close(); say('interrupted')
sys.stdin.read()",
        calls = include_str!("connect/calls.py")
    ))?;
    running.line_with("interrupted")?;
    poll("nothing is left dialling", DEADLINE, || {
        let dialling = ws.lab.host.run("ss -Htn state syn-sent")?;
        Ok(dialling.stdout.trim().is_empty().then_some(()))
    })
    .context("a connect that was given up")?;
    running.write("")?;
    running.finish()?.succeeded()?;
    Ok(())
}
