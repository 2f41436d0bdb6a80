//! UDP, which stays on the TAP in both modes but for `--bypass-udp`.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;

use anyhow::{Result, ensure};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};

use crate::lab::command::DEADLINE;
use crate::lab::workspace::{Workspace, contains};
use crate::lab::{HOST_V4, REMOTE, REMOTE_V4, servers};

crate::cases! {
    EVERYWHERE: udp_echo, udp_connected, bursts, refused;
    EVERY_WAY: one_socket_many_peers;
    TAP: kept_port, trains, nobody_is_meant;
    BYPASS: taken_out, stays_where_it_is, connected_again, bound_to_its_interface, iperf3, what_is_refused;
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

/// Datagrams sent at once, of equal and of all sizes, and such as the kernel cuts, come back as they were sent.
fn bursts(ws: Workspace) -> Result<()> {
    for addr in REMOTE {
        let port = servers::udp_echo(&ws.lab.remote, addr)?.port();
        ws.python(&format!(
            "s = udp('{addr}'); s.connect(('{addr}', {port}))
def compare(sent, what):
    got = [s.recv(65536) for _ in sent]
    if got != sent: print(what, [len(x) for x in sent], 'came back as', [len(x) for x in got])
for sizes in [700] * 30, [700] * 9 + [20], [0, 1, 0, 0, 2, 2, 1, 1], [100, 1400, 99, 99, 1473, 3000, 3000, 8], range(30):
    sent = [os.urandom(size) for size in sizes]
    for x in sent: s.send(x)
    compare(sent, 'one by one')
for size, length in (100, 3000), (100, 2990), (1400, 14001):
    sent = os.urandom(length)
    s.sendmsg([sent], [(socket.IPPROTO_UDP, 103, struct.pack('H', size))])
    compare([sent[i:i + size] for i in range(0, length, size)], 'together')"
        ))?
        .printed("")?;
    }
    Ok(())
}

/// A datagram to a port where nobody listens.
fn refused(ws: Workspace) -> Result<()> {
    for addr in REMOTE {
        let port = servers::closed_port(&ws.lab.remote, addr)?.port();
        ws.python(&format!(
            "s = udp('{addr}', hears_errors('{addr}')); s.connect(('{addr}', {port})); s.send(b'x'); print(*reported(s))
t = udp('{addr}'); t.connect(('{addr}', {port})); t.send(b'x'); print(outcome(lambda: t.recv(9)))"
        ))?
        .printed(&match addr.is_ipv4() {
            true => format!("ECONNREFUSED 3 3 0 {addr}\nECONNREFUSED"),
            false => format!("ECONNREFUSED 1 4 0 {addr}\nECONNREFUSED"),
        })?;
    }
    Ok(())
}

fn remote_socket(ws: &Workspace) -> Result<UdpSocket> {
    let socket = ws.lab.remote.within(|| UdpSocket::bind((REMOTE_V4, 0)))?;
    socket.set_read_timeout(Some(DEADLINE))?;
    Ok(socket)
}

/// The port is the workspace's where the host has it free, the same towards everyone, and whoever hears of it may
/// answer (endpoint-independent mapping, RFC 4787).
fn kept_port(ws: Workspace) -> Result<()> {
    let (first, second) = (remote_socket(&ws)?, remote_socket(&ws)?);
    let _taken = ws.lab.host.within(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 40_002)))?;
    for (port, is_kept) in [(40_001, true), (40_002, false), (68, false)] {
        let mut inside = ws.start_python(&format!(
            "s = udp('.'); s.bind(('', {port})); s.sendto(b'a', ('{REMOTE_V4}', {}))
say(s.recvfrom(9)[1][1]); s.sendto(b'b', ('{REMOTE_V4}', {}))",
            first.local_addr()?.port(),
            second.local_addr()?.port()
        ))?;
        let (_, mapping) = first.recv_from(&mut [0; 9])?;
        ensure!(mapping.ip() == HOST_V4, "came from {mapping}");
        ensure!((mapping.port() == port) == is_kept, "port {port} became {}", mapping.port());
        // The second one was never asked.
        second.send_to(b"x", mapping)?;
        let line = inside.line()?;
        ensure!(line == second.local_addr()?.port().to_string(), "heard from {line}");
        ensure!(second.recv_from(&mut [0; 9])?.1 == mapping, "not the same mapping towards another");
        inside.finish()?.succeeded()?;
    }
    Ok(())
}

/// What the host's kernel hands over together reaches a program that asks for it together.
fn trains(ws: Workspace) -> Result<()> {
    let remote = remote_socket(&ws)?;
    let inside = ws.start_python(&format!(
        "s = udp('.', (socket.IPPROTO_UDP, 104, 1)); s.sendto(b'a', ('{REMOTE_V4}', {}))
data, [(_, _, size)], _, _ = s.recvmsg(65536, 99); print(len(data), struct.unpack('i', size)[0], data == bytes(500) * 20)",
        remote.local_addr()?.port()
    ))?;
    let (_, mapping) = remote.recv_from(&mut [0; 9])?;
    let (payload, control) = ([0; 10_000], [ControlMessage::UdpGsoSegments(&500)]);
    let to = SockaddrStorage::from(mapping);
    sendmsg(remote.as_raw_fd(), &[IoSlice::new(&payload)], &control, MsgFlags::empty(), Some(&to))?;
    inside.finish()?.succeeded()?.printed("10000 500 True")
}

/// Broadcast and multicast go nowhere, and nothing else suffers.
fn nobody_is_meant(ws: Workspace) -> Result<()> {
    let echo = servers::udp_echo(&ws.lab.remote, REMOTE[0])?;
    let neighbours: [SocketAddr; 2] = [(Ipv4Addr::UNSPECIFIED, 5353).into(), (Ipv4Addr::UNSPECIFIED, 1900).into()];
    let heard = neighbours.map(|addr| ws.lab.host.within(|| UdpSocket::bind(addr)));
    ws.python(&format!(
        "s = udp('.', (socket.SOL_SOCKET, socket.SO_BROADCAST, 1)); six = udp(':')
for i in range(50):
    for to in ('255.255.255.255', 67), ('10.0.2.255', 1900), ('192.0.2.255', 5353), ('224.0.0.251', 5353), ('239.255.255.250', 1900):
        s.sendto(b'anybody?', to)
    six.sendto(b'anybody?', ('ff02::fb%tap0', 5353))
s.sendto(b'you', ('{}', {})); print(s.recv(9))",
        echo.ip(),
        echo.port()
    ))?
    .printed("b'you'")?;
    for socket in heard {
        let socket = socket?;
        socket.set_nonblocking(true)?;
        ensure!(socket.recv(&mut [0; 9]).is_err(), "the host heard {socket:?}");
    }
    Ok(())
}

const NEW_UDP: &str = "
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
