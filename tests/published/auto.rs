//! Ports that `--publish-auto` publishes, by the bypass.

use std::net::{SocketAddr, TcpStream};

use anyhow::{Context as _, Result, ensure};

use super::{HOST, SERVER, ask, is_known_as, remote, start};
use crate::lab::command::DEADLINE;
use crate::lab::poll;
use crate::lab::workspace::Workspace;

crate::cases! {
    BYPASS_AS_USER: by_itself, held_ports, more_than_is_looked_at;
}

/// `--publish-auto` has the port at once.
fn by_itself(ws: Workspace) -> Result<()> {
    let ws = ws.flag("--publish-auto");
    let mut running = ws.start_python(&format!(
        "{SERVER}
for port, addr in (5000, '0.0.0.0'), (5001, '::'): say(side(serve(listen(addr, port))))
for line in sys.stdin:
    for port in 5002, 5003: l = listen('0.0.0.0', port); say(side(l)); l.close()"
    ))?;
    for port in [5000, 5001] {
        let said = running.line()?;
        ensure!(said == "host", "{said}");
        let said = ask(&ws.lab.remote, (HOST[0], port))?;
        ensure!(said.ends_with(&remote(0, "host")), "{said}");
    }
    running.write("more\n")?;
    for port in [5002, 5003] {
        let said = running.line()?;
        ensure!(said == "host", "{said}");
        let to = SocketAddr::from((HOST[0], port));
        poll("the port is closed", DEADLINE, || {
            Ok(ws.lab.remote.within(|| TcpStream::connect_timeout(&to, DEADLINE)).is_err().then_some(()))
        })?;
    }
    is_known_as(&ws.lab.remote, (HOST[0], 5000), &remote(0, "host"))
}

/// A port that a program keeps, listening or not, is one of those that `--publish-auto` gives away.
fn held_ports(ws: Workspace) -> Result<()> {
    let ws = ws.flag("--publish-auto");
    let mut running = ws.start_python(&format!(
        "{SERVER}
def shut(port):
    l = listen('0.0.0.0', port); taken_out = side(l); l.shutdown(socket.SHUT_RDWR)
    return l, taken_out
kept = [shut(port) for port in range(6000, 6128)]
say({{taken_out for _, taken_out in kept}}); sys.stdin.readline()
say(shut(6200)[1])
for l, _ in kept: l.close()
for port in range(6300, 7000):
    time.sleep(0.05)
    if shut(port)[1] == 'host': say('others'); break"
    ))?;
    running.line_with("{'host'}").with_context(|| running.stderr())?;
    for port in 6000..6128 {
        let to = SocketAddr::from((HOST[0], port));
        poll("the port is published no more", DEADLINE, || {
            Ok(ws.lab.remote.within(|| TcpStream::connect_timeout(&to, DEADLINE)).is_err().then_some(()))
        })?;
    }
    running.write("another\n")?;
    running.line_with("workspace").with_context(|| running.stderr())?;
    running.line_with("others").with_context(|| running.stderr()).map(drop)
}

/// So is one that is not seen among all that listens inside.
fn more_than_is_looked_at(ws: Workspace) -> Result<()> {
    start(
        &ws.flag("--publish-auto"),
        "for n in range(6):
    r, w = os.pipe()
    if os.fork() == 0:
        others = [listen(f'127.0.0.{n + 1}', port) for port in range(10000, 10900)]
        os.write(w, b'x'); signal.pause()
    os.read(r, 1)
programs = [listen('0.0.0.0', port) for port in range(6000, 6128)]
assert {side(l) for l in programs} == {'host'}
# More than a port stays without being seen.
end = time.monotonic() + 4
for port in range(7000, 8000):
    if time.monotonic() > end: break
    l = listen('0.0.0.0', port); assert side(l) == 'workspace', port
    l.close(); time.sleep(0.1)",
    )
    .map(drop)
}
