//! Published ports by the bypass: a program that listens at one has the host's socket itself.

pub mod auto;
pub mod inside;
pub mod lifetime;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};

use anyhow::{Context as _, Result, ensure};

use crate::lab::command::{DEADLINE, Running};
use crate::lab::netns::Netns;
use crate::lab::workspace::Workspace;
use crate::lab::{HOST_V4, HOST_V6, REMOTE, effort};

crate::cases! {
    BYPASS: taken_out, stays_in_place, attacks;
    BYPASS_AS_USER: blocking_and_epoll, options;
}

const HOST: [IpAddr; 2] = [IpAddr::V4(HOST_V4), IpAddr::V6(HOST_V6)];

/// `listen(addr, port)` in Python; `serve` accepts on it for ever: each client is told, in a line, its own address as the
/// server sees it and whose socket it was accepted on, and then gets back what it sends.
const SERVER: &str = "
def listener(addr, port, v6only=None, proto=0, reuse=True):
    s = socket.socket(family(addr), socket.SOCK_STREAM, proto)
    if reuse: s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if v6only is not None: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
    s.bind((addr, port))
    return s
def listen(*args, **kwargs):
    s = listener(*args, **kwargs); s.listen(512)
    return s
def answer(c, peer):
    try:
        c.sendall(f'{peer[0]} {side(c)}\\n'.encode())
        while got := c.recv(65536): c.sendall(got)
        c.close()
    except OSError: pass
def accept(s):
    try:
        while True: threading.Thread(target=answer, args=s.accept(), daemon=True).start()
    except OSError: pass
def serve(s):
    threading.Thread(target=accept, args=[s], daemon=True).start()
    return s
def ask(addr, port):
    c = dial(addr, port); f = c.makefile('rw'); said = f.readline().strip()
    f.write('ping\\n'); f.flush(); assert f.readline() == 'ping\\n'
    # Nothing of it holds the port when this is over.
    c.shutdown(socket.SHUT_WR); assert f.read() == ''
    return said
def inside(port):
    '''Whether it is seen to listen, as ss and port detection see it.'''
    rows = [l.split() for name in ('tcp', 'tcp6') for l in list(open('/proc/net/' + name))[1:]]
    return any(int(row[1].rsplit(':')[1], 16) == port and row[3] == '0A' for row in rows)
";

/// `exchange()`: another process accepts on `l` from now on, and the one before it ends when its clients have.
const GENERATIONS: &str = "
l.setblocking(False)
current = None
def generation():
    r, w = os.pipe(); pid = os.fork()
    if pid == 0:
        os.close(w); answering = []
        if current: os.close(current[1])
        while True:
            ready, _, _ = select.select([l, r], [], [])
            if r in ready: break
            try: c, peer = l.accept()
            except BlockingIOError: continue
            answering.append(threading.Thread(target=answer, args=[c, peer])); answering[-1].start()
        for thread in answering: thread.join()
        os._exit(0)
    os.close(r)
    return pid, w
def exchange():
    global current
    following = generation()
    if current: os.close(current[1]); os.waitpid(current[0], 0)
    current = following
";

fn start(ws: &Workspace, code: &str) -> Result<Running> {
    let mut running = ws.start_python(&format!("{SERVER}{code}\nsay('ready'); sys.stdin.read()"))?;
    running.line_with("ready").with_context(|| running.stderr())?;
    Ok(running)
}

/// What the server says of a new client, after some bytes went there and back.
fn ask(from: &Netns, to: (IpAddr, u16)) -> Result<String> {
    let to = SocketAddr::from(to);
    let mut stream =
        from.within(|| TcpStream::connect_timeout(&to, DEADLINE)).with_context(|| format!("connect to {to}"))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut said = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        said.push(byte[0]);
    }
    stream.write_all(b"there and back")?;
    let mut got = [0; 14];
    stream.read_exact(&mut got).with_context(|| format!("from {to}"))?;
    Ok(String::from_utf8(said)?)
}

fn is_known_as(from: &Netns, to: (IpAddr, u16), want: &str) -> Result<()> {
    let said = ask(from, to)?;
    ensure!(said == want, "at {}:{} the server says {said:?}, not {want:?}", to.0, to.1);
    Ok(())
}

fn remote(ip: usize, side: &str) -> String {
    format!("{} {side}", REMOTE[ip])
}

/// Each family, both at once, one address of the host, MPTCP, and a port added at run time.
fn taken_out(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=8080-8083:80-83").flag("-p=192.0.2.1:9084-9085:84-85").flag("-p=[2001:db8:1::1]:9086:86");
    let _running = start(
        &ws,
        "serve(listen('0.0.0.0', 80)); serve(listen('::', 80, v6only=1))
serve(listen('::', 81, v6only=0)); serve(listen('::', 82, v6only=1))
serve(listen('0.0.0.0', 83, proto=262))
serve(listen('0.0.0.0', 84)); serve(listen('::', 85, v6only=0)); serve(listen('::', 86, v6only=0))
assert all(inside(port) for port in range(80, 87))",
    )?;
    let from = &ws.lab.remote;
    let mapped = format!("::ffff:{} host", REMOTE[0]);
    for (to, port, want) in [
        (0, 8080, remote(0, "host")),
        (1, 8080, remote(1, "host")),
        (0, 8081, mapped.clone()),
        (1, 8081, remote(1, "host")),
        (1, 8082, remote(1, "host")),
        (0, 8083, remote(0, "host")),
        (0, 9084, remote(0, "host")),
        (0, 9085, mapped),
        (1, 9086, remote(1, "host")),
    ] {
        is_known_as(from, (HOST[to], port), &want)?;
    }
    is_known_as(&ws.lab.host, ("127.0.0.1".parse()?, 8080), "127.0.0.1 host")?;
    // The other family is led inside by the forwarder, and is nobody local.
    is_known_as(from, (HOST[0], 8082), &format!("{} host", HOST[1]))?;
    is_known_as(from, (HOST[1], 8083), &format!("{} host", HOST[0]))
}

/// What is not for the bypass is served as ever.
fn stays_in_place(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=8080-8083:80-83").flag("-p=8084:127.0.0.1:84");
    let _running = start(
        &ws,
        "serve(listen('10.0.2.100', 80))
s = listener('0.0.0.0', 81); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); s.listen(); serve(s)
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); s.bind(('0.0.0.0', 82)); s.listen(); serve(s)
s = listener('0.0.0.0', 83); fcntl.fcntl(s, fcntl.F_SETOWN, os.getpid()); s.listen(); serve(s)
serve(listen('0.0.0.0', 84)); serve(listen('0.0.0.0', 85))
assert side(listen('127.0.0.1', 86)) == 'workspace'",
    )?;
    for port in 8080..=8083 {
        is_known_as(&ws.lab.remote, (HOST[0], port), &remote(0, "workspace"))?;
    }
    Ok(())
}

/// accept(2) waits or does not, and an epoll that watched before goes on; close-on-exec and backlog are kept.
fn blocking_and_epoll(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=8080-8081:80-81");
    let mut running = ws.start_python(&format!(
        "{SERVER}
l = listener('0.0.0.0', 80); l.setblocking(False)
ep = select.epoll(); ep.register(l, select.EPOLLIN | select.EPOLLET)
ep.poll(0)
os.set_inheritable(l.fileno(), True)
l.listen(3)
say(side(l), os.get_blocking(l.fileno()), os.get_inheritable(l.fileno()), outcome(l.accept))
while not ep.poll(20): pass
answer(*l.accept())
l = listener('0.0.0.0', 81); l.listen()
say(side(l), os.get_blocking(l.fileno()), os.get_inheritable(l.fileno()), l.getsockname())
answer(*l.accept())
say('done')"
    ))?;
    let said = running.line()?;
    ensure!(said == "host False True EAGAIN", "{said}");
    is_known_as(&ws.lab.remote, (HOST[0], 8080), &remote(0, "host"))?;
    let said = running.line()?;
    ensure!(said == "host True False ('0.0.0.0', 8081)", "{said}");
    is_known_as(&ws.lab.remote, (HOST[0], 8081), &remote(0, "host"))?;
    running.line_with("done").map(drop)
}

/// What is set before is there on the listening socket, and on those it accepts.
fn options(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=8080:80");
    let mut running = ws.start_python(&format!(
        "{SERVER}
values = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77), (socket.IPPROTO_IP, socket.IP_TOS, 16)]
l = listener('0.0.0.0', 80)
for value in values: l.setsockopt(*value)
l.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50000)
l.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 3)
l.listen()
say(side(l), l.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) > 0)
c, peer = l.accept()
say([c.getsockopt(*value[:2]) for value in values] == [value[2] for value in values],
    c.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
sys.stdin.read()"
    ))?;
    running.line_with("host True")?;
    let to = SocketAddr::from((HOST[0], 8080));
    let mut stream = ws.lab.remote.within(|| TcpStream::connect_timeout(&to, DEADLINE))?;
    stream.write_all(b"deferred until now")?;
    let said = running.line()?;
    ensure!(said == "True 100000", "{said}");
    Ok(())
}

/// A listening host socket gets nowhere else, nor do those that it accepts; what a program does to its share harms itself.
fn attacks(ws: Workspace) -> Result<()> {
    let forbidden = crate::lab::servers::TcpServer::echo(&ws.lab.host, "127.0.0.1".parse()?)?;
    let ws = ws.flag("-p=8080-8081:80-81");
    let mut running = ws.start_python(&format!(
        "{SERVER}
forbidden, libc = {}, ctypes.CDLL(None, use_errno=True)
def moved(s):
    '''Every way to another address or port.'''
    # With a timeout Python would first wait until it can send.
    s.settimeout(None)
    said = [outcome(lambda: s.connect(('127.0.0.1', forbidden))), outcome(lambda: s.bind(('0.0.0.0', 0))),
        outcome(lambda: s.sendto(b'x', socket.MSG_FASTOPEN, ('127.0.0.1', forbidden)))]
    s.settimeout(20)
    return said
l = listen('0.0.0.0', 80); l.settimeout(20)
say('listening', side(l), *moved(l))
program = ctypes.create_string_buffer(struct.pack('=HBBI', 6, 0, 0, 7))
chosen = outcome(lambda: l.setsockopt(socket.SOL_SOCKET, 51, struct.pack('=H6xQ', 1, ctypes.addressof(program))))
l.setsockopt(socket.SOL_SOCKET, 51, struct.pack('=H6xQ', 1, ctypes.addressof(
    one := ctypes.create_string_buffer(struct.pack('=HBBI', 6, 0, 0, 1)))))
say(chosen); input()
c, _ = l.accept(); c.settimeout(20)
say('accepted', side(c), *moved(c), outcome(c.listen))
libc.connect(c.fileno(), bytes(16), 16)
say('dissolved', side(c), outcome(c.listen), side(c), outcome(lambda: c.connect(('127.0.0.1', forbidden))))
c, _ = l.accept(); c.settimeout(20); c.shutdown(socket.SHUT_RDWR)
# TCP_CLOSE in tcpi_state. It was connected once, which connect(2) holds against it, as on any Linux.
while c.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != 7: time.sleep(0.01)
say('shut', outcome(lambda: c.connect(('127.0.0.1', forbidden))), side(c))
# Exchanged or dissolved while it is called: a thread shuts it down, this one listens and binds again.
s = listen('0.0.0.0', 81)
def shut():
    while s.fileno() >= 0:
        try: s.shutdown(socket.SHUT_RDWR)
        except OSError: pass
threading.Thread(target=shut, daemon=True).start()
for _ in range({}):
    outcome(s.listen)
    if side(s) == 'host': assert s.getsockname()[1] == 8081, s.getsockname()
    outcome(lambda: s.connect(('127.0.0.1', forbidden)))
say('raced'); sys.stdin.read()",
        forbidden.addr.port(),
        effort::tries(300, 20_000)
    ))?;
    let said = |running: &mut Running, want: &str| -> Result<()> {
        let said = running.line().with_context(|| running.stderr())?;
        ensure!(said == want, "{said:?}, not {want:?}");
        Ok(())
    };
    said(&mut running, "listening host EISCONN EINVAL ENOTSUP")?;
    said(&mut running, "connected")?;
    let to = SocketAddr::from((HOST[0], 8080));
    let connect = || ws.lab.remote.within(|| TcpStream::connect_timeout(&to, DEADLINE));
    let first = connect().context("the first")?;
    // Taking its connection apart resets it.
    running.write("go\n")?;
    said(&mut running, "accepted host EISCONN EINVAL ENOTSUP EINVAL")?;
    said(&mut running, "dissolved workspace connected workspace EISCONN")?;
    drop(first);
    drop(connect().context("the second")?);
    said(&mut running, "shut EISCONN host")?;
    running.line_with("raced").with_context(|| running.stderr())?;
    ensure!(forbidden.accepted() == 0, "the host's loopback was reached");
    Ok(())
}
