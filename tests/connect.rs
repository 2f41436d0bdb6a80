//! connect(2) in every way a program may call it, signals included. What holds here holds on the host too.

use anyhow::{Result, ensure};

use crate::lab::command::Finished;
use crate::lab::effort;
use crate::lab::servers::{self, TcpServer};
use crate::lab::workspace::{Path, Workspace};
use crate::lab::{BLACK_HOLE, REMOTE};

crate::cases! {
    EVERYWHERE: signal_storm, signal_storm_in_a_black_hole, stopped_and_continued, two_threads, taken_away, scoped,
        autotuning;
    EVERY_WAY: every_option;
}

/// A Python program with the functions of connect/calls.py, and `echo`, `refused` and `hole`, addresses for them.
/// Whatever is tried is tried with fresh sockets, and with bound ones, which never leave the workspace's namespace.
fn with_calls(ws: &Workspace, code: &str) -> Result<Finished> {
    let addr = REMOTE[0];
    let echo = TcpServer::echo(&ws.lab.remote, addr)?;
    let closed = servers::closed_port(&ws.lab.remote, addr)?;
    ws.python(&format!(
        "{calls}
echo, refused, hole = address('{addr}', {echo}), address('{addr}', {closed}), address('{hole}', 80)
def sockets(milliseconds):
    for prepare in (lambda s: None), any_port:
        s = tcp('{addr}'); prepare(s)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        yield s
{code}",
        calls = include_str!("connect/calls.py"),
        echo = echo.addr.port(),
        closed = closed.port(),
        hole = BLACK_HOLE[0],
    ))
}

/// A signal every millisecond, and connects that are over sooner: each gives what it gives without.
fn signal_storm(ws: Workspace) -> Result<()> {
    let ws = ws.deadline(effort::lasting(std::time::Duration::from_secs(60), std::time::Duration::from_secs(600)));
    let tries = effort::tries(500, 20_000);
    with_calls(
        &ws,
        &format!(
            "seen = set()
for restarts in True, False:
    storm(restarts)
    for _ in range({tries}):
        for s in sockets(20_000):
            seen.add(insist(lambda: connect(s, echo)) + ' ' + insist(lambda: connect(s, echo))); s.close()
        for s in sockets(20_000):
            seen.add(insist(lambda: connect(s, refused))); s.close()
    calm()
print(sorted(seen))"
        ),
    )?
    .printed("['ECONNREFUSED', 'connected EISCONN']")
}

/// The same, and connects that take their time: SO_SNDTIMEO makes them give up at the first signal (signal(7)),
/// otherwise they begin again and end by their own clock.
fn signal_storm_in_a_black_hole(ws: Workspace) -> Result<()> {
    with_calls(
        &ws,
        "for restarts in True, False:
    for s in sockets(20_000):
        send_timeout(s, 20_000)
        storm(restarts)
        # Interrupted before it has begun, a connect inside has done nothing.
        while (first := connect(s, hole)) == 'EINTR' and not is_connecting(s): pass
        calm()
        send_timeout(s, 50); print(first, insist(lambda: connect(s, hole)), connect(s, echo))
    for s in sockets(700):
        storm(restarts); print(insist(lambda: connect(s, hole))); calm()",
    )?
    .printed(
        ["EINTR EALREADY EALREADY", "EINTR EALREADY EALREADY", "ETIMEDOUT", "ETIMEDOUT"].repeat(2).join("\n").as_str(),
    )
}

/// ^Z and fg: the connect goes on, or ends with EINTR where SO_SNDTIMEO is set.
fn stopped_and_continued(ws: Workspace) -> Result<()> {
    with_calls(
        &ws,
        "for s in sockets(2_000):
    print(stopped_and_continued(s, lambda: connect(s, hole)))
for s in sockets(20_000):
    send_timeout(s, 20_000)
    print(stopped_and_continued(s, lambda: connect(s, hole)))",
    )?
    .printed("ETIMEDOUT\nETIMEDOUT\nEINTR\nEINTR")
}

/// Two threads with one socket make one connection, and only one of them hears why it failed.
fn two_threads(ws: Workspace) -> Result<()> {
    let server = TcpServer::start(&ws.lab.remote, (REMOTE[0], 0), |_| Ok(()))?;
    let tries = effort::tries(200, 20_000);
    let code = format!(
        "once = address('{}', {})
seen = set()
for _ in range({tries}):
    for s in sockets(20_000):
        seen.add(' '.join(at_once(lambda: connect(s, once), lambda: connect(s, once)))); s.close()
print(seen <= {{'EISCONN connected', 'connected connected'}} or seen)
for s in sockets(2_000):
    print(sorted(beside(s, lambda: connect(s, hole), lambda: connect(s, hole))))
for s in sockets(2_000):
    print(beside(s, lambda: connect(s, hole), lambda: [s.setblocking(False), connect(s, echo)][1]))",
        REMOTE[0],
        server.addr.port()
    );
    with_calls(&ws, &code)?.printed(
        "True\n['EPIPE', 'ETIMEDOUT']\n['EPIPE', 'ETIMEDOUT']\n['ETIMEDOUT', 'EALREADY']\n['ETIMEDOUT', 'EALREADY']",
    )?;
    server.has_accepted(2 * tries as usize)
}

/// The socket is shut down or dissolved under a waiting connect: that ends at once, and the socket can connect again.
fn taken_away(ws: Workspace) -> Result<()> {
    with_calls(
        &ws,
        "for take in (lambda s: outcome(lambda: s.shutdown(socket.SHUT_RDWR))), (lambda s: connect(s, bytes(16))):
    for s in sockets(20_000):
        first, second = beside(s, lambda: connect(s, hole), lambda: take(s))
        print(first in ('ECONNRESET', 'EPIPE') or first, second, insist(lambda: connect(s, echo)))",
    )?
    .printed(["True connected connected"; 4].join("\n").as_str())
}

/// A link-local address means nothing without its device, and nothing to any other host.
fn scoped(ws: Workspace) -> Result<()> {
    let device = if ws.way.path == Path::Host { "veth0" } else { "tap0" };
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[1])?;
    ws.python(&format!(
        "import subprocess
line = subprocess.run(['ip', '-6', '-o', 'addr', 'show', 'dev', '{device}', 'scope', 'link'], capture_output=True, text=True).stdout
own, device = line.split()[3].split('/')[0], socket.if_nametoindex('{device}')
server = tcp('::')
# The kernel takes a second to find out that nobody else has the address.
while outcome(lambda: server.bind((own, 0, 0, device))) == 'EADDRNOTAVAIL': os.sched_yield()
server.listen()
port = server.getsockname()[1]
def reach(host, port, *rest):
    s = tcp('::'); s.settimeout(20)
    return outcome(lambda: s.connect((host, port, *rest)))
print(reach(own, port, 0, device), reach(own, port), reach(own, port, 0, 1))
print(reach('{addr}', {port}, 0, device), reach('{addr}', {port}, 0, 1), reach('{addr}', {port}, 0x12345, 0))",
        addr = REMOTE[1],
        port = echo.addr.port()
    ))?
    .printed("connected EINVAL ENETUNREACH\nconnected connected connected")
}

/// Buffers that nobody set still grow with what arrives.
fn autotuning(ws: Workspace) -> Result<()> {
    use std::io::Write as _;
    let bulk = TcpServer::start(&ws.lab.remote, (REMOTE[0], 0), |mut stream| stream.write_all(&vec![7; 1 << 26]))?;
    ws.python(&format!(
        "SO_BUF_LOCK = 72
s = dial('{}', {}); s.settimeout(None)
before = s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
while s.recv(1 << 20): pass
print(s.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK), s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > before)",
        REMOTE[0],
        bulk.addr.port()
    ))?
    .printed("0 True")
}

/// Every option that a program can set to one of three numbers, whatever it is, reads the same after the connect as in
/// a workspace without the bypass.
fn every_option(mut ws: Workspace) -> Result<()> {
    let echo = [TcpServer::echo(&ws.lab.remote, REMOTE[0])?, TcpServer::echo(&ws.lab.remote, REMOTE[1])?];
    let code = format!(
        "{}\nevery_option([('{}', {}), ('{}', {})])",
        include_str!("connect/options.py"),
        REMOTE[0],
        echo[0].addr.port(),
        REMOTE[1],
        echo[1].addr.port()
    );
    let got = ws.python(&code)?.output()?;
    ws.way.path = Path::Tap;
    let want = ws.python(&code)?.output()?;
    let differing: Vec<_> = want.lines().zip(got.lines()).filter(|(want, got)| want != got).collect();
    ensure!(differing.is_empty(), "without the bypass and with it:\n{differing:#?}");
    ensure!(want.lines().count() == got.lines().count() && want.lines().count() > 100, "{want}");
    Ok(())
}
