//! The workspace's own kernel state decides: links, routes, rules and nested namespaces keep their meaning.

use anyhow::{Result, ensure};

use crate::lab::REMOTE;
use crate::lab::servers::TcpServer;
use crate::lab::workspace::Workspace;

crate::cases! {
    EVERY_WAY: link_down, second_device, nested_namespace, keep_id_may_configure;
    BOTH_PATHS: rule;
}

/// Connects to the remote, runs `change`, and tries again.
fn before_and_after(ws: &Workspace, change: &str, want: &str) -> Result<()> {
    for addr in REMOTE {
        let echo = TcpServer::echo(&ws.lab.remote, addr)?;
        let port = echo.addr.port();
        let change = change.replace("ADDR", &addr.to_string()).replace("PORT", &port.to_string());
        let change = change.replace("FAMILY", if addr.is_ipv4() { "-4" } else { "-6" });
        ws.python(&format!(
            "first = attempt('{addr}', {port})
if os.system({change:?}) == 0: print(first, attempt('{addr}', {port}, 5))"
        ))?
        .printed(&format!("connected {want}"))?;
    }
    Ok(())
}

fn link_down(ws: Workspace) -> Result<()> {
    before_and_after(&ws, "ip link set tap0 down", "ENETUNREACH")
}

fn rule(ws: Workspace) -> Result<()> {
    before_and_after(&ws, "ip FAMILY rule add to ADDR prohibit priority 10", "EACCES")
}

/// What makes a namespace beside the caller's, joined to it by veth; `far` and `near` are the two ends' addresses.
const NEIGHBOUR: &str = r"
CLONE_NEWNET = 0x40000000
def ip(line): assert os.system('ip ' + line) == 0, line
def neighbour(near, far, program):
    '''Runs program(said) in a network namespace at the far end; returns what it says, once the link is up.'''
    go, heard = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            assert ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0
            os.write(heard[1], b'made\n'); os.read(go[0], 1)
            ip('link set lo up'); ip(f'addr add {far} dev far'); ip('link set far up')
            program(lambda text: os.write(heard[1], (text + '\n').encode()))
        except BaseException as e: os.write(heard[1], (repr(e) + '\n').encode())
        os._exit(0)
    lines = os.fdopen(heard[0])
    assert lines.readline() == 'made\n'
    ip(f'link add near type veth peer name far netns {child}')
    ip(f'addr add {near} dev near'); ip('link set near up')
    os.write(go[1], b'g')
    return lambda: lines.readline().strip()
";

/// The remote's own address, routed to a second device: connects go there and nowhere else.
fn second_device(ws: Workspace) -> Result<()> {
    let whoami = TcpServer::whoami(&ws.lab.remote, REMOTE[0])?;
    let (addr, port) = (REMOTE[0], whoami.addr.port());
    let done = ws.python(&format!(
        "{NEIGHBOUR}
def serve(say):
    ip('route add 10.7.0.1 dev far')
    server = tcp('{addr}'); server.bind(('{addr}', {port})); server.listen(); say('ready')
    server.settimeout(10); server.accept()[0].sendall(b'neighbour')
heard = neighbour('10.7.0.1/24', '{addr}/32', serve)
ip('route add {addr} dev near')
print(heard(), dial('{addr}', {port}).recv(99).decode())"
    ))?;
    ensure!(whoami.accepted() == 0, "the remote was reached past a route: {done}");
    ensure!(done.stdout.trim().ends_with("ready neighbour"), "{done}");
    Ok(())
}

/// A namespace made inside reaches the remote through the workspace, by forwarding and masquerading (Docker's shape);
/// its sockets are never swapped.
fn nested_namespace(ws: Workspace) -> Result<()> {
    let whoami = TcpServer::whoami(&ws.lab.remote, REMOTE[0])?;
    let (addr, port) = (REMOTE[0], whoami.addr.port());
    ws.python(&format!(
        "{NEIGHBOUR}
def client(say):
    ip('route add default via 10.7.0.1')
    s = dial('{addr}', {port}); say(side(s) + ' ' + s.recv(99).decode().strip())
open('/proc/sys/net/ipv4/ip_forward', 'w').write('1')
assert os.system('''nft 'add table ip t; add chain ip t post {{ type nat hook postrouting priority 100; }};
    add rule ip t post oifname \"tap0\" masquerade' ''') == 0
print(neighbour('10.7.0.1/24', '10.7.0.2/24', client)())"
    ))?
    .printed("workspace 192.0.2.1")
}

/// With `--keep-id` the user inside is not root and may configure its network all the same.
fn keep_id_may_configure(ws: Workspace) -> Result<()> {
    let ws = ws.flag("--keep-id");
    let me = ws.shell("id -u").run(&ws.lab.host)?.output()?;
    ws.sh("id -u; ip link set tap0 down && ip -o link show tap0 | grep -o 'state DOWN'")?
        .printed(&format!("{me}\nstate DOWN"))
}
