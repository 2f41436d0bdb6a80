//! The workspace's own kernel state decides: links, routes, rules and nested namespaces keep their meaning.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Result, ensure};

use crate::lab::REMOTE;
use crate::lab::command::Program;
use crate::lab::servers::TcpServer;
use crate::lab::workspace::Workspace;

crate::cases! {
    EVERY_WAY: link_down, second_device, nested_namespace, keep_id_may_configure, tailscale;
    BOTH_PATHS: rule, several_tables, throw, marked, ports_in_rules, changed_while_running;
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
if os.system({change:?}) == 0: print(first, attempt('{addr}', {port}))"
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

/// Tables of the workspace's own, asked in the order of its rules.
fn several_tables(ws: Workspace) -> Result<()> {
    before_and_after(
        &ws,
        "ip FAMILY route add prohibit ADDR table 100 && ip FAMILY route add unreachable ADDR table 200 &&
         ip FAMILY rule add lookup 200 priority 20 && ip FAMILY rule add lookup 100 priority 10",
        "EACCES",
    )
}

/// A throw route sends the question on to the next table.
fn throw(ws: Workspace) -> Result<()> {
    before_and_after(
        &ws,
        "ip FAMILY route add throw ADDR table 100 && ip FAMILY route add prohibit default table 100 &&
         ip FAMILY rule add lookup 100 priority 10",
        "connected",
    )?;
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    ws.python(&format!(
        "os.system('ip route add throw {addr} table 100; ip route add prohibit default table 100; ip rule add lookup 100')
print(side(dial('{addr}', {port})), attempt('198.51.100.9', 80))",
        addr = REMOTE[0],
        port = echo.addr.port()
    ))?
    .printed(if ws.bypasses() { "host EACCES" } else { "workspace EACCES" })
}

/// A socket with a mark goes where the mark's rules say, others where they always went.
fn marked(ws: Workspace) -> Result<()> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    ws.python(&format!(
        "os.system('ip rule add fwmark 0x5/0xff prohibit priority 10')
def marked(mark):
    s = tcp('{addr}'); s.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark); s.settimeout(20)
    return outcome(lambda: s.connect(('{addr}', {port}))) + ' ' + side(s)
print(marked(0), marked(5), marked(6))",
        addr = REMOTE[0],
        port = echo.addr.port()
    ))?
    .printed(&format!(
        "connected {} EACCES workspace connected workspace",
        if ws.bypasses() { "host" } else { "workspace" }
    ))
}

/// Rules that look at protocol and destination port hold for just those; where a rule looks at what is not known before a
/// connection is made, there is none past it.
fn ports_in_rules(ws: Workspace) -> Result<()> {
    for addr in REMOTE {
        let (echo, other) = (TcpServer::echo(&ws.lab.remote, addr)?, TcpServer::echo(&ws.lab.remote, addr)?);
        let (port, family) = (echo.addr.port(), if addr.is_ipv4() { "-4" } else { "-6" });
        let past = if ws.bypasses() { "host" } else { "workspace" };
        ws.python(&format!(
            "def seen(port):
    s = tcp('{addr}'); s.settimeout(20)
    said = outcome(lambda: s.connect(('{addr}', port)))
    return said if said != 'connected' else side(s)
def both(rule):
    assert os.system(f'ip {family} rule add {{rule}} priority 10') == 0
    # The second is after what was kept of the first.
    print(rule, *(seen(port) for port in ({port}, {other}, {port})))
    assert os.system('ip {family} rule del priority 10') == 0
    assert seen({port}) == '{past}'
both('dport {port} prohibit')
both('ipproto tcp dport 1-65534 prohibit')
both('ipproto udp dport {port} prohibit')
both('ipproto tcp prohibit'); both('ipproto udp prohibit')
both('sport 1 prohibit'); both('tos 0x10 prohibit'); both('to 198.51.100.1 prohibit' if '{family}' == '-4' else 'to fd99::1 prohibit')",
            other = other.addr.port(),
        ))?
        .printed(&format!(
            "dport {port} prohibit EACCES {past} EACCES
ipproto tcp dport 1-65534 prohibit EACCES EACCES EACCES
ipproto udp dport {port} prohibit {past} {past} {past}
ipproto tcp prohibit EACCES EACCES EACCES
ipproto udp prohibit {past} {past} {past}
sport 1 prohibit workspace workspace workspace
tos 0x10 prohibit workspace workspace workspace
to {nobody} prohibit {past} {past} {past}",
            nobody = if addr.is_ipv4() { "198.51.100.1" } else { "fd99::1" },
        ))?;
    }
    Ok(())
}

/// Each connect asks anew.
fn changed_while_running(ws: Workspace) -> Result<()> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    ws.python(&format!(
        "def seen():
    s = tcp('{addr}'); s.settimeout(20)
    return outcome(lambda: s.connect(('{addr}', {port}))) + ' ' + side(s)
for _ in range(20):
    first = seen()
    os.system('ip route add prohibit {addr}')
    second = seen()
    os.system('ip route del prohibit {addr}')
    if (first, second) != ('connected {side}', 'EACCES workspace'): print(first, second)",
        addr = REMOTE[0],
        port = echo.addr.port(),
        side = if ws.bypasses() { "host" } else { "workspace" }
    ))?
    .printed("")
}

/// Tailscale's rules with a userspace tunnel that really carries: what is behind it, what is not, an exit node, that one
/// turned off again, and a subnet excepted from it.
fn tailscale(ws: Workspace) -> Result<()> {
    let behind = IpAddr::V4(Ipv4Addr::new(100, 64, 0, 2));
    let subnet = IpAddr::V4(Ipv4Addr::new(172, 20, 0, 1));
    ws.lab.remote.run(&format!("ip addr add {subnet}/32 dev lo"))?;
    let tunnel = ["unshare", "--mount", "sh", "-c", include_str!("fixtures/tunnel-end.sh")];
    let mut tunnel = Program::new(tunnel).start(&ws.lab.remote)?;
    tunnel.line_with("tunnel is up")?;
    let port = |addr| Ok::<_, anyhow::Error>(TcpServer::whoami(&ws.lab.remote, addr)?.addr.port());
    let done = ws.python(&format!(
        "def seen(addr, port, mark=0):
    s = tcp(addr); s.settimeout(20)
    if mark: s.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    s.connect((addr, port)); return side(s) + ' ' + s.recv(99).decode().strip()
def ordinary(): return seen('{ordinary}', {ordinary_port})
def subnet(mark=0): return seen('{subnet}', {subnet_port}, mark)
assert os.system('''set -- {ordinary}:51820
{script}''') == 0
say(seen('{behind}', {behind_port})); say(ordinary())
assert os.system('ip route add {subnet} dev tailscale0 table 52') == 0
say(subnet()); say(subnet(mark=0x80000))
assert os.system('ip route add default dev tailscale0 table 52') == 0
say(ordinary())
assert os.system('ip route add throw {ordinary} table 52') == 0
say(ordinary())
assert os.system('ip route del throw {ordinary} table 52; ip route del default table 52') == 0
say(ordinary())",
        ordinary = REMOTE[0],
        ordinary_port = port(REMOTE[0])?,
        subnet_port = port(subnet)?,
        behind_port = port(behind)?,
        script = include_str!("fixtures/tailscale.sh"),
    ))?;
    let (tunnelled, past) = ("workspace 100.64.0.1", "workspace 192.0.2.1");
    let outward = if ws.bypasses() { "host 192.0.2.1" } else { past };
    done.printed(&[tunnelled, outward, tunnelled, past, tunnelled, outward, outward].join("\n"))
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
    server.settimeout(20); server.accept()[0].sendall(b'neighbour')
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
