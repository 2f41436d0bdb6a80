//! Clients inside of a program that listens on the host: straight from the loopback, by the shadow's relay from elsewhere.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{GENERATIONS, HOST, SERVER};
use crate::lab::command::DEADLINE;
use crate::lab::processes::Tree;
use crate::lab::workspace::Workspace;
use crate::lab::{effort, poll};

crate::cases! {
    BYPASS: straight_from_inside, strangers;
    BYPASS_AS_USER: from_inside, straight_and_gone, straight_and_restarted, from_containers;
}

/// Whoever connects inside gets to the program, by whatever address, and it knows who is local.
fn from_inside(ws: Workspace) -> Result<()> {
    ws.flag("-p=8080:80")
        .python(&format!(
            "{SERVER}
l = serve(listen('0.0.0.0', 80)); print(side(l), inside(80))
for addr in '127.0.0.1', '127.0.0.2', '0.0.0.0', '10.0.2.100': print(ask(addr, 80))
print(len([ask('127.0.0.1', 80) for _ in range(100)]))
print(attempt('::1', 80), attempt('127.0.0.1', 8080))"
        ))?
        .printed(
            "host True\n127.0.0.1 host\n127.0.0.1 host\n127.0.0.1 host\n127.0.0.1 host\n100\nECONNREFUSED ECONNREFUSED",
        )
}

/// A client on the loopback inside whose port has the same number on the host has a socket of the host, straight to the
/// program, and neither end can tell: names, refusals, and how long it waits are what they are on one host.
fn straight_from_inside(ws: Workspace) -> Result<()> {
    ws.flag("-p=5000-5002:5000-5002")
        .python(&format!(
            "{SERVER}
def straight(l, addr, prepare=lambda s: None):
    '''Whose sockets the client and the server have, and whether each is known by the other's own name.'''
    c = tcp(addr); c.settimeout(20); prepare(c)
    c.connect((addr, l.getsockname()[1])); s, peer = l.accept(); s.settimeout(20)
    mine, theirs = c.getsockname(), c.getpeername()
    assert (peer, s.getsockname(), theirs[:2]) == (mine, theirs, (addr, l.getsockname()[1])), (peer, mine, theirs)
    c.sendall(b'ping'); assert s.recv(9) == b'ping'; sides = side(c), side(s); s.close(); assert c.recv(9) == b''
    return sides
v4, both, v6 = listen('0.0.0.0', 5000), listen('::', 5001, v6only=0), listen('::', 5002, v6only=1)
for l, addr in [(v4, '127.0.0.1'), (v4, '127.9.9.9'), (both, '::1'), (both, '::ffff:127.0.0.1'), (v6, '::1')]:
    assert straight(l, addr) == ('host', 'host'), addr
assert straight(both, '::ffff:127.0.0.1') == ('host', 'host')
c = dial('127.0.0.1', 5001); s, peer = both.accept()
print(side(c), c.getpeername(), peer == ('::ffff:127.0.0.1', c.getsockname()[1], 0, 0), s.getsockname()[:2])
for addr in '0.0.0.0', '::': c = dial(addr, 5001); both.accept(); print(side(c), c.getpeername()[0])
print(attempt('::1', 5000), attempt('127.0.0.1', 5002), attempt('127.0.0.1', 5003))

# What is set before is there, and blocking and epolls are as they were.
def keeps(s): s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
assert straight(v4, '127.0.0.1', keeps) == ('host', 'host')
c = tcp('127.0.0.1'); c.setblocking(False); ep = select.epoll(); ep.register(c, select.EPOLLOUT)
print(c.connect_ex(('127.0.0.1', 5000)) == errno.EINPROGRESS, side(c), os.get_blocking(c.fileno()))
while ep.poll(20) != [(c.fileno(), select.EPOLLOUT)]: pass
print(c.connect_ex(('127.0.0.1', 5000)) == 0, c.connect_ex(('127.0.0.1', 5000)) == errno.EISCONN, v4.accept()[1] == c.getsockname())

# By its own address the workspace has no other name to be known by on the host.
c = dial('10.0.2.100', 5000); s, peer = v4.accept(); print(side(c), c.getpeername(), peer[0])
# A socket that is bound stays where it is.
c = tcp('127.0.0.1'); c.bind(('127.0.0.5', 0)); c.connect(('127.0.0.1', 5000)); v4.accept(); print(side(c), c.getsockname()[0])"
        ))?
        .printed(
            "host ('127.0.0.1', 5001) True ('::ffff:127.0.0.1', 5001)
host 127.0.0.1
host ::1
ECONNREFUSED ECONNREFUSED ECONNREFUSED
True host False
True True True
workspace ('10.0.2.100', 5000) 127.0.0.1
workspace 127.0.0.5",
        )
}

/// Where the program has gone, its port is refused at once, and where its queue is full nobody is lost; what the host has
/// at that port is not reached.
fn straight_and_gone(ws: Workspace) -> Result<()> {
    ws.flag("-p=5000-5001:5000-5001")
        .python(&format!(
            "{SERVER}
for port, addr in [(5000, '0.0.0.0'), (5001, '::')] * 5:
    l = listen(addr, port); assert side(l) == 'host'
    to = '127.0.0.1' if port == 5000 else '::1'
    c = dial(to, port); assert side(c) == 'host'
    l.close(); print(attempt(to, port), outcome(lambda: c.recv(1)))
l = listener('0.0.0.0', 5000); l.listen(1)
clients = [tcp('127.0.0.1') for _ in range(6)]
for c in clients: c.setblocking(False); c.connect_ex(('127.0.0.1', 5000))
print(side(clients[0]), side(clients[-1]))
serve(l); clients[0].settimeout(20); print(clients[0].makefile().readline())"
        ))?
        .printed(&format!("{}host workspace\n127.0.0.1 host", "ECONNREFUSED ECONNRESET\n".repeat(10)))
}

/// Another program of the host, of the same user, may share the port (SO_REUSEPORT) and have the host's loopback there. It
/// is not reached from inside, straight or by the relay.
fn strangers(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=5000:5000");
    let mut running = ws.start_python(&format!(
        "{SERVER}
serve(listen('0.0.0.0', 5000)); say(side(dial('127.0.0.1', 5000)))
for line in sys.stdin:
    print(*(ask(addr, 5000) for addr in ['127.0.0.1', '10.0.2.100', '127.9.9.9']))
    say(side(dial('127.0.0.1', 5000)), side(dial('127.9.9.9', 5000)))"
    ))?;
    running.line_with("host").with_context(|| running.stderr())?;
    let mut stranger = ws
        .outside(["/usr/bin/python3", "-c"])
        .arg(
            "import socket, sys
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); s.bind(('127.0.0.1', 5000)); s.listen()
s.setblocking(False); print('listens', flush=True)
for line in sys.stdin:
    reached = 0
    while True:
        try: s.accept(); reached += 1
        except BlockingIOError: break
    print('reached', reached, flush=True)",
        )
        .start(&ws.lab.host)?;
    stranger.line_with("listens").with_context(|| stranger.stderr())?;
    running.write("ask\n")?;
    for want in ["127.0.0.1 host 127.0.0.1 host 127.0.0.1 host", "workspace host"] {
        let said = running.line().with_context(|| running.stderr())?;
        ensure!(said == want, "{said}");
    }
    stranger.write("how often\n")?;
    stranger.line_with("reached 0")?;
    drop(ws.lab.host.within(|| TcpStream::connect(("127.0.0.1", 5000)))?);
    stranger.write("how often\n")?;
    stranger.line_with("reached 1").map(drop)
}

/// Clients inside by the thousand, while server processes take over and supervisors die: nobody is lost.
fn straight_and_restarted(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=5000:5000").deadline(effort::lasting(Duration::from_secs(120), Duration::from_secs(600)));
    let mut running = ws.start_python(&format!(
        "{SERVER}
l = listen('0.0.0.0', 5000)
{GENERATIONS}
clients = os.fork()
if clients == 0:
    # Once it relays, the forwarder has the shadow for the next supervisor.
    ask('10.0.2.100', 5000); say('ready')
    for _ in range({}): assert ask('127.0.0.1', 5000) == '127.0.0.1 host'
    say('all'); os._exit(0)
exchange()
while os.waitpid(clients, os.WNOHANG) == (0, 0): exchange()
say('over')",
        effort::tries(1_000, 20_000)
    ))?;
    running.line_with("ready").with_context(|| running.stderr())?;
    for _ in 0..2 {
        let tree = Tree::of(running.pid())?;
        let victim = tree.worker("supervisor")?;
        victim.kill(Signal::SIGKILL)?;
        poll("another worker is there", DEADLINE, || {
            let another = Tree::of(running.pid())?.worker("supervisor").ok().cloned();
            Ok(another.filter(|another| another != victim).map(drop))
        })?;
    }
    running.line_with("all").with_context(|| running.stderr())?;
    running.line_with("over").map(drop)
}

/// A container's client reaches it by the workspace's address, and is known by the host's.
fn from_containers(ws: Workspace) -> Result<()> {
    ws.flag("-p=8080:80")
        .python(&format!(
            "{SERVER}
serve(listen('0.0.0.0', 80))
pid = os.fork()
if pid == 0:
    libc = ctypes.CDLL(None); assert libc.unshare(0x40000000) == 0
    say('made')
    while 'eth0' not in [name for _, name in socket.if_nameindex()]: time.sleep(0.01)
    os.system('ip link set eth0 up && ip addr add 10.7.0.2/24 dev eth0')
    say(ask('10.7.0.1', 80)); os._exit(0)
while os.readlink(f'/proc/{{pid}}/ns/net') == os.readlink('/proc/self/ns/net'): time.sleep(0.01)
# Once it sees its end, ours is ready.
os.system(f'ip link add v0 type veth peer name v1 && ip addr add 10.7.0.1/24 dev v0 && ip link set v0 up && '
    f'ip link set v1 netns {{pid}} name eth0')
os.waitpid(pid, 0)"
        ))?
        .printed(&format!("made\n{} host", HOST[0]))
}
