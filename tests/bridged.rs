//! Machines bridged to the TAP, beside the workspace: a namespace at a bridge that the TAP is in, with an address of the
//! TAP's network and a hardware address of its own.

use std::io::Read as _;
use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::lab::command::DEADLINE;
use crate::lab::processes::Tree;
use crate::lab::servers::TcpServer;
use crate::lab::workspace::Workspace;
use crate::lab::{HOST_V4, REMOTE, poll};
use crate::nested::CONTAINERS;
use crate::netfilter::TOOLS;
use crate::ports::datagrams::udp_client;

crate::cases! {
    TAP: each_its_own, silent, among_themselves;
}

/// Two hundred questions, each of which is answered with itself.
const TALK: &str = "
def talk(addr, port):
    s = dial(addr, port); s.settimeout(20)
    for n in range(200):
        s.sendall(b'x\\n')
        if s.recv(9) != b'x\\n': return n
    return 'all'
";

/// Both speak at the same time: each is sent what is its own.
fn each_its_own(ws: Workspace) -> Result<()> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let (addr, port) = (echo.addr.ip(), echo.addr.port());
    ws.python(&format!(
        "{TOOLS}{CONTAINERS}{TALK}
bridge('br0')
sh('ip link set tap0 master br0 && ip addr flush dev tap0')
c = Container('10.0.2.40/24', bridge='br0', gateways=['10.0.2.2'])
sh('ip addr add 10.0.2.100/24 dev br0 && ip route add default via 10.0.2.2')
said = []
beside = threading.Thread(target=lambda: said.append(c(\"talk('{addr}', {port})\"))); beside.start()
said.append(talk('{addr}', {port})); beside.join(); print(*said)"
    ))?
    .printed("all all")
}

/// Two machines talk to each other over a bridge that floods, as each does for a machine that it has not heard for five
/// minutes: their frames come to the TAP, too, and nobody there answers for them.
fn among_themselves(ws: Workspace) -> Result<()> {
    ws.python(&format!(
        "{TOOLS}{CONTAINERS}{TALK}
def serve():
    s = tcp(''); s.bind(('', 80)); s.listen()
    def echo():
        c, _ = s.accept()
        while got := c.recv(9): c.sendall(got)
    threading.Thread(target=echo, daemon=True).start()
bridge('br0')
sh('ip link set br0 type bridge ageing_time 0 && ip link set tap0 master br0')
a, b = [Container(f'10.0.2.{{n}}/24', bridge='br0', gateways=['10.0.2.2']) for n in (40, 41)]
a('serve()'); print(b(\"talk('10.0.2.40', 80)\"))"
    ))?
    .printed("all")
}

/// Neither the machine nor the workspace, which has another address than it was given, says anything by itself: clients of
/// published ports find both, and so they do again when the forwarder has died.
fn silent(ws: Workspace) -> Result<()> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let ws = ws.flag("-p=8040:10.0.2.40:80").flag("-p=5340:10.0.2.40:53/udp").flag("-p=8050:80").flag("-p=5350:53/udp");
    let mut running = ws.start_python(&format!(
        "{TOOLS}{CONTAINERS}
def greet(s, name):
    while True:
        client, _ = s.accept()
        client.sendall(name); client.close()
def answer(s, name):
    while True: s.sendto(name, s.recvfrom(99)[1])
def serve(name):
    server, datagrams = tcp(''), udp('')
    server.bind(('', 80)); server.listen(); datagrams.bind(('', 53)); datagrams.settimeout(None)
    for work, s in (greet, server), (answer, datagrams): threading.Thread(target=work, args=[s, name], daemon=True).start()
bridge('br0')
sh('ip link set br0 address 52:55:0a:00:02:64 && ip link set tap0 master br0 && ip addr flush dev tap0')
c = Container('10.0.2.40/24', bridge='br0', gateways=['10.0.2.2'])
sh('ip addr add 10.0.2.50/24 dev br0 && ip route add default via 10.0.2.2')
c('serve(b\\'machine\\')'); serve(b'workspace')
say(attempt('{addr}', {port})); sys.stdin.read()",
        addr = echo.addr.ip(),
        port = echo.addr.port()
    ))?;
    running.line_with("connected")?;
    both_are_found(&ws).with_context(|| running.stderr())?;
    let tree = Tree::of(running.pid())?;
    let forwarder = tree.worker("forwarder")?;
    forwarder.kill(Signal::SIGKILL)?;
    poll("the forwarder is gone", DEADLINE, || Ok((!forwarder.is_alive()).then_some(())))?;
    both_are_found(&ws).context("after a crash")?;
    running.finish()?.succeeded().map(drop)
}

fn both_are_found(ws: &Workspace) -> Result<()> {
    for (tcp, udp, name) in [(8040, 5340, "machine"), (8050, 5350, "workspace")] {
        // Nothing is sent twice: the first datagram arrives.
        let socket = udp_client(&ws.lab.remote, HOST_V4.into(), udp)?;
        socket.send(b"x")?;
        let mut got = [0; 99];
        let count = socket.recv(&mut got).with_context(|| format!("a datagram to the {name}"))?;
        ensure!(got[..count] == *name.as_bytes(), "{:?} is not the {name}", &got[..count]);
        let mut stream = ws.lab.remote.within(|| TcpStream::connect((HOST_V4, tcp)))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut said = String::new();
        stream.read_to_string(&mut said).with_context(|| format!("a connection to the {name}"))?;
        ensure!(said == name, "{said} is not the {name}");
    }
    Ok(())
}
