//! UDP and ping, which stay on the TAP in both modes but for `--bypass-udp`.

use anyhow::{Result, ensure};

use crate::lab::workspace::{Workspace, contains};
use crate::lab::{REMOTE, servers};

crate::cases! {
    EVERYWHERE: ping, udp_echo, udp_connected;
    EVERY_WAY: ping_virtual_addresses, one_socket_many_peers;
    BYPASS: taken_out, stays_where_it_is, connected_again, bound_to_its_interface, iperf3, what_is_refused;
}

fn ping(ws: Workspace) -> Result<()> {
    for addr in REMOTE {
        ws.run(["ping", "-c3", "-i0.1", "-W5", &addr.to_string()])?.succeeded()?;
        ws.run(["ping", "-c1", "-s1400", "-W5", &addr.to_string()])?.succeeded()?;
    }
    Ok(())
}

fn ping_virtual_addresses(ws: Workspace) -> Result<()> {
    for addr in ["10.0.2.2", "10.0.2.3", "fd00::2", "fd00::3"] {
        ws.run(["ping", "-c1", "-W5", addr])?.succeeded()?;
    }
    Ok(())
}

/// Datagrams of many sizes come back whole, those above the MTU in fragments.
fn udp_echo(ws: Workspace) -> Result<()> {
    for addr in REMOTE {
        let echo = servers::udp_echo(&ws.lab.remote, addr)?;
        ws.python(&format!(
            "s = socket.socket(family('{addr}'), socket.SOCK_DGRAM); s.settimeout(10)
for size in 0, 1, 512, 1400, 1472, 4000, 9000:
    sent = os.urandom(size); s.sendto(sent, ('{addr}', {port}))
    got, peer = s.recvfrom(65536)
    if got != sent or peer[:2] != ('{addr}', {port}): print(size, 'came back as', len(got), 'from', peer)",
            port = echo.port()
        ))?
        .printed("")?;
    }
    Ok(())
}

fn udp_connected(ws: Workspace) -> Result<()> {
    for addr in REMOTE {
        let echo = servers::udp_echo(&ws.lab.remote, addr)?;
        ws.python(&format!(
            "s = socket.socket(family('{addr}'), socket.SOCK_DGRAM); s.settimeout(10); s.connect(('{addr}', {port}))
for i in range(500):
    s.send(str(i).encode())
    assert s.recv(99) == str(i).encode()
print('all')",
            port = echo.port()
        ))?
        .printed("all")?;
    }
    Ok(())
}

/// One unconnected socket talks to several servers and hears from each.
fn one_socket_many_peers(ws: Workspace) -> Result<()> {
    let mut ports = Vec::new();
    for _ in 0..5 {
        ports.push(servers::udp_echo(&ws.lab.remote, REMOTE[0])?.port());
    }
    ws.python(&format!(
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(10)
for port in {ports:?}: s.sendto(str(port).encode(), ('{addr}', port))
heard = dict((peer[1], int(data)) for data, peer in (s.recvfrom(99) for _ in range(5)))
print(sorted(heard) == sorted({ports:?}) and all(k == v for k, v in heard.items()))",
        addr = REMOTE[0]
    ))?
    .printed("True")
}

const NEW_UDP: &str = "
def udp(addr): s = socket.socket(family(addr), socket.SOCK_DGRAM); s.settimeout(10); return s
def ask(s, *to):
    s.sendto(b'x', *to) if to else s.send(b'x')
    return s.recv(9).decode()
unspec = struct.pack('HHI8x', socket.AF_UNSPEC, 0, 0)
libc = ctypes.CDLL(None, use_errno=True)
";

fn with_udp(ws: Workspace) -> Workspace {
    ws.flag("--bypass=require").flag("--bypass-udp")
}

/// A connected socket, blocking or not, in an epoll before or not, with options set before.
fn taken_out(ws: Workspace) -> Result<()> {
    let ws = with_udp(ws);
    for addr in REMOTE {
        let port = servers::udp_echo(&ws.lab.remote, addr)?.port();
        ws.python(&format!(
            "{NEW_UDP}
s = udp('{addr}'); s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100000); s.setsockopt(socket.IPPROTO_UDP, 104, 1)
before = s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
s.connect(('{addr}', {port})); print(side(s), ask(s), s.getpeername()[:2] == ('{addr}', {port}))
print(s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == before, s.getsockopt(socket.IPPROTO_UDP, 104))
n = udp('{addr}'); n.setblocking(False); e = select.epoll(); e.register(n, select.EPOLLIN)
n.connect(('{addr}', {port})); n.send(b'y'); print(side(n), e.poll(10) == [(n.fileno(), select.EPOLLIN)], n.recv(9))"
        ))?
        .printed("host x True\nTrue 1\nhost True b'y'")?;
    }
    Ok(())
}

/// What is not connected, what has sent before, what goes to virtual addresses, and what the flag is not given for.
fn stays_where_it_is(ws: Workspace) -> Result<()> {
    let port = servers::udp_echo(&ws.lab.remote, REMOTE[0])?.port();
    let connected = format!("{NEW_UDP}\ns = udp('.'); s.connect(('{}', {port})); print(side(s))", REMOTE[0]);
    ws.python(&connected)?.printed("workspace")?;
    with_udp(ws)
        .python(&format!(
            "{NEW_UDP}
there = ('{}', {port})
s = udp('.'); print(ask(s, there), side(s))
s.connect(there); print(ask(s), side(s))
s = udp('.'); s.bind(('', 0)); s.connect(there); print(ask(s), side(s))
for virtual in '10.0.2.3', '10.0.2.2', '127.0.0.1', '192.0.2.1':
    s = udp('.'); s.connect((virtual, 53)); print(side(s))",
            REMOTE[0]
        ))?
        .printed("x workspace\nx workspace\nx workspace\nworkspace\nworkspace\nworkspace\nworkspace")
}

/// Resolvers and happy eyeballs connect one socket several times.
fn connected_again(ws: Workspace) -> Result<()> {
    let ws = with_udp(ws);
    let ports = [0; 2].map(|_| servers::udp_echo(&ws.lab.remote, REMOTE[0]).map(|addr| addr.port()));
    let [a, b] = ports;
    ws.python(&format!(
        "{NEW_UDP}
s = udp('.')
for port in {}, {}: s.connect(('{addr}', port)); print(ask(s), side(s), s.getpeername()[1] == port)
libc.connect(s.fileno(), unspec, 16); print(side(s), outcome(lambda: s.getpeername()), outcome(lambda: s.send(b'x')))
s.connect(('127.0.0.1', 9)); print(side(s))
t = udp('.'); t.connect(('{addr}', {})); t.connect(('10.0.2.3', 53)); print(side(t))
u = udp('.'); u.connect(('{addr}', {})); print(outcome(lambda: u.bind(('', 0))), outcome(lambda: u.listen()))",
        a?,
        b?,
        servers::udp_echo(&ws.lab.remote, REMOTE[0])?.port(),
        servers::udp_echo(&ws.lab.remote, REMOTE[0])?.port(),
        addr = REMOTE[0]
    ))?
    .printed("x host True\nx host True\nworkspace ENOTCONN EDESTADDRREQ\nworkspace\nworkspace\nEINVAL ENOTSUP")
}

/// A workspace cannot loosen the interface, and without naming another one it does not get to the host's loopback.
fn bound_to_its_interface(ws: Workspace) -> Result<()> {
    let ws = with_udp(ws);
    let there = servers::udp_echo(&ws.lab.remote, REMOTE[0])?;
    let loopback = servers::udp_echo(&ws.lab.host, "127.0.0.1".parse()?)?;
    ws.python(&format!(
        "{NEW_UDP}
s = udp('.'); s.connect(('{}', {})); assert side(s) == 'host'
print(outcome(lambda: s.setsockopt(socket.SOL_SOCKET, 25, b'lo')), outcome(lambda: s.setsockopt(socket.SOL_SOCKET, 25, b'')))
s.settimeout(0.5)
print(outcome(lambda: ask(s, ('127.0.0.1', {}))))",
        there.ip(),
        there.port(),
        loopback.port()
    ))?
    .printed("EPERM EPERM\ntimed out")
}

fn iperf3(ws: Workspace) -> Result<()> {
    let ws = with_udp(ws);
    let _server = servers::iperf3(&ws.lab.remote, 5201)?;
    let done = ws.run(["iperf3", "-u", "-c", "192.0.2.2", "-b", "50M", "-t", "1", "--json"])?.succeeded()?;
    contains(&done.stdout, "\"lost_percent\"")
}

fn what_is_refused(ws: Workspace) -> Result<()> {
    for (flags, says) in [
        (&["--bypass=off", "--bypass-udp"][..], "needs --bypass as well"),
        (&["--bypass", "--bypass-udp", "--deny=metadata"], "cannot keep to a --deny"),
    ] {
        let ws = flags.iter().fold(Workspace::new(ws.way)?, |ws, flag| ws.flag(*flag));
        contains(&ws.run(["true"])?.exited(125)?.stderr, says)?;
    }
    let fine = ["--bypass=require", "--bypass-udp", "--deny=metadata/tcp"];
    let done = fine.iter().fold(ws, |ws, flag| ws.flag(*flag)).run(["true"])?;
    ensure!(done.status.success(), "{done}");
    Ok(())
}
