//! `--bypass-nested`: containers inside the workspace, each a network namespace with a veth, as Docker makes them.

use anyhow::{Result, ensure};

use crate::lab::REMOTE;
use crate::lab::servers::{self, TcpServer};
use crate::lab::workspace::{Workspace, contains};
use crate::netfilter::{self, TOOLS};

crate::cases! {
    BYPASS: taken_out, not_without_the_flag, ways_inside, rules_of_the_workspace, rules_of_the_container, routes,
        dockerd_by_iptables, dockerd_by_nftables, other_devices, back_to_its_own, policy, udp, gone, many;
    TAP: what_is_refused;
}

/// `Container(addrs)`: a process in a network namespace of its own, with a veth to the workspace or to a bridge in it.
/// Calling it runs an expression there; `side` says 'workspace' there for the container's own sockets.
pub const CONTAINERS: &str = r#"
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
def forwarding(on):
    for name in 'ipv4/ip_forward', 'ipv6/conf/all/forwarding': open('/proc/sys/net/' + name, 'w').write(str(on))
def bridge(name, *addrs):
    sh(f'ip link add {name} type bridge && ip link set {name} up')
    for addr in addrs: sh(f'ip addr add {addr} dev {name}' + (' nodad' if ':' in addr else ''))
class Container:
    count = 0
    def __init__(self, *addrs, bridge=None, gateways=(), near=()):
        Container.count += 1
        self.name = f'v{Container.count}'
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            assert libc.unshare(CLONE_NEWNET) == 0
            theirs.send(b'made')
            while True:
                try: said = str(eval(theirs.recv(9999), globals()))
                except BaseException as e: said = repr(e)
                theirs.send(said.encode())
        assert self.channel.recv(9) == b'made'
        sh(f'ip link add {self.name} type veth peer name eth0 netns {self.pid}')
        if bridge: sh(f'ip link set {self.name} master {bridge}')
        for addr in near: sh(f'ip addr add {addr} dev {self.name}' + (' nodad' if ':' in addr else ''))
        sh(f'ip link set {self.name} up')
        self("sh('ip link set lo up && ip link set eth0 up')")
        for addr in addrs: self(f"sh('ip addr add {addr} dev eth0" + (" nodad')" if ':' in addr else "')"))
        for gateway in gateways: self(f"sh('ip route add default via {gateway}')")
    def __call__(self, code):
        self.channel.send(code.encode())
        return self.channel.recv(9999).decode()
    def end(self):
        os.kill(self.pid, signal.SIGKILL); os.waitpid(self.pid, 0)
GATEWAYS = '10.7.0.1', 'fd07::1'
def bridged(n=2):
    return Container(f'10.7.0.{n}/24', f'fd07::{n}/64', bridge='br0', gateways=GATEWAYS)
def docker_like():
    '''One bridge, one container, masqueraded.'''
    forwarding(1)
    bridge('br0', '10.7.0.1/24', 'fd07::1/64')
    nft('table inet t { chain post { type nat hook postrouting priority 100; oifname "tap0" masquerade; } }')
    return bridged()
"#;

fn with_nested(ws: Workspace) -> Workspace {
    ws.flag("--bypass=require").flag("--bypass-nested")
}

/// As for the netfilter tests: `addr`, `port`, `other`, `ip`.
fn with_servers(ws: &Workspace, code: &str, want: &str) -> Result<()> {
    netfilter::with_servers(ws, &format!("{CONTAINERS}{code}"), want)
}

/// By a bridge and without one, masqueraded and not (the forwarder takes any source): blocking, nonblocking, in an epoll.
fn taken_out(ws: Workspace) -> Result<()> {
    with_servers(
        &with_nested(ws),
        "
forwarding(1)
bridge('br0', '10.7.0.1/24', 'fd07::1/64')
host = '192.0.2.1', '2001:db8:1::1'
def echoed():
    s = dial(addr, port); s.sendall(b'x\\n')
    n = tcp(addr); n.setblocking(False); e = select.epoll(); e.register(n, select.EPOLLOUT)
    first = errno.errorcode[n.connect_ex((addr, port))]
    return s.recv(9), side(s), s.getsockname()[0] in host, first, e.poll(10) == [(n.fileno(), select.EPOLLOUT)], side(n)
containers = bridged(), Container('10.8.0.2/24', 'fd08::2/64', near=('10.8.0.1/24', 'fd08::1/64'), gateways=('10.8.0.1', 'fd08::1'))
for c in containers: print(c('echoed()'))
nft('table inet t { chain post { type nat hook postrouting priority 100; oifname \"tap0\" masquerade; } }')
for c in containers: print(c('where(addr, port)'))",
        "(b'x\\n', 'host', True, 'EINPROGRESS', True, 'host')\n(b'x\\n', 'host', True, 'EINPROGRESS', True, 'host')\nhost\nhost",
    )
}

fn not_without_the_flag(ws: Workspace) -> Result<()> {
    with_servers(&ws, "c = docker_like(); print(c('where(addr, port)'), where(addr, port))", "workspace host")
}

/// Other containers, the workspace, and nowhere: as without the bypass.
fn ways_inside(ws: Workspace) -> Result<()> {
    with_servers(
        &with_nested(ws),
        "
here, there, far = ('10.7.0.1', '10.7.0.3', '10.9.0.2') if ip == 'ip' else ('fd07::1', 'fd07::3', 'fd09::2')
c, d = docker_like(), bridged(3)
bridge('br1', '10.9.0.1/24', 'fd09::1/64')
internal = Container('10.9.0.2/24', 'fd09::2/64', bridge='br1')
server = tcp(here); server.bind((here, 8000)); server.listen()
d('globals().update(server=tcp(there)) or server.bind((there, 8000)) or server.listen()')
internal('globals().update(server=tcp(far)) or server.bind((far, 8000)) or server.listen()')
print(internal('where(addr, port)'), c('where(here, 8000)'), c('where(there, 8000)'), internal('where(far, 8000)'))
internal(\"sh('ip -4 route add default via 10.9.0.1 && ip -6 route add default via fd09::1')\")
print(internal('where(addr, port)'), c('where(far, 8000)'))",
        "ENETUNREACH workspace workspace workspace\nhost workspace",
    )
}

fn rules_of_the_workspace(ws: Workspace) -> Result<()> {
    with_servers(
        &with_nested(ws),
        "
c = docker_like()
def rules(text):
    nft(f'table inet f; delete table inet f; table inet f {{ {text} }}')
def both(timeout=20): return c(f'where(addr, port, {timeout})'), c('where(addr, other)')
print(*both())
rules(f'chain f {{ type filter hook forward priority 0; iifname br0 tcp dport {port} drop; }}'); print(*both(0.5))
# Of a reply to the other server that is the container's own port, which nobody knows beforehand.
rules(f'chain f {{ type filter hook forward priority 0; tcp dport {port} drop; }}'); print(*both(0.5))
rules(f'chain f {{ type filter hook forward priority 0; {ip} saddr {addr} tcp sport {port} oifname br0 drop; }}'); print(*both(0.5))
rules(f'chain f {{ type filter hook forward priority 0; iifname br0 oifname tap0 tcp dport {port} reject with tcp reset; }}')
print(*both())
rules(f'chain f {{ type filter hook forward priority 0; policy drop; ct state established accept; tcp dport {other} accept; meta l4proto ipv6-icmp accept; }}')
print(*both(0.5))
rules(f'chain f {{ type filter hook output priority 0; tcp dport {port} drop; }}'); print(*both())
rules(f'chain f {{ type filter hook prerouting priority -300; iifname br0 tcp dport {port} drop; }}'); print(*both(0.5))
nft(f'table inet f; delete table inet f; table bridge b {{ chain b {{ type filter hook input priority 0; tcp dport {port} drop; }} }}')
print(*both(0.5)[:1])",
        "host host\ntimed out host\ntimed out workspace\ntimed out host\nECONNREFUSED host\ntimed out host\nhost host\ntimed out host\ntimed out",
    )
}

fn rules_of_the_container(ws: Workspace) -> Result<()> {
    with_servers(
        &with_nested(ws),
        "
c = docker_like()
rule = f'table inet t {{ chain out {{ type filter hook output priority 0; tcp dport {port} reject with tcp reset; }} }}'
print(c('where(addr, port)'), c(f'nft({rule!r})'), c('where(addr, port)'), c('where(addr, other)'))
print(c(\"nft('flush ruleset')\"), c('where(addr, port)'))",
        "host None ECONNREFUSED host\nNone host",
    )
}

/// Those of either namespace, forwarding, links, and a gateway that is none.
fn routes(ws: Workspace) -> Result<()> {
    with_servers(
        &with_nested(ws),
        "
c = docker_like()
f = '-4' if ip == 'ip' else '-6'
def while_(change, back):
    sh(change); said = c('where(addr, port, 1)'); sh(back); print(said in ('timed out', 'EHOSTUNREACH', 'ENETUNREACH', 'EACCES') or said, c('where(addr, port)'))
while_(f'ip {f} route add unreachable {addr}', f'ip {f} route del unreachable {addr}')
while_(f'ip {f} rule add iif br0 to {addr} unreachable priority 10', f'ip {f} rule del priority 10')
while_(f'ip {f} rule add iif br0 ipproto tcp dport {port} unreachable priority 10', f'ip {f} rule del priority 10')
while_(f'ip {f} rule add iif br0 ipproto tcp unreachable priority 10', f'ip {f} rule del priority 10')
forwarding(0); print(c('where(addr, port, 1)') != 'host'); forwarding(1)
while_('ip link set v1 nomaster', 'ip link set v1 master br0')
def inside(change): return c(f'sh({change!r})')
inside(f'ip {f} route add prohibit {addr}'); print(c('where(addr, port)'))
inside(f'ip {f} route del prohibit {addr}'); print(c('where(addr, port)'))
inside(f'ip {f} rule add dport {port} prohibit priority 10'); print(c('where(addr, port)'), c('where(addr, other)'))
inside(f'ip {f} rule del priority 10')
inside(f'ip {f} route add {addr} dev eth0'); print(c('where(addr, port, 1)') != 'host')
inside(f'ip {f} route del {addr} dev eth0')
inside(f'ip {f} route add {addr} via ' + ('10.7.0.9' if ip == 'ip' else 'fd07::9')); print(c('where(addr, port, 1)') != 'host')",
        "True host\nTrue host\nTrue host\nTrue host\nTrue\nTrue host\nEACCES\nhost\nEACCES host\nTrue\nTrue",
    )
}

fn dockerd_by_iptables(ws: Workspace) -> Result<()> {
    under_dockerd(
        ws,
        &format!(
            "bridge('br-0a1b2c3d4e5f', '172.18.0.1/16')
subprocess.run(['iptables-nft-restore'], input={:?}, text=True, check=True)
published = Container('172.18.0.2/16', bridge='br-0a1b2c3d4e5f', gateways=['172.18.0.1'])
print(c('where(addr, port)'), published('where(addr, port)'))
sh(f'iptables-nft -I DOCKER-USER -p tcp --dport {{port}} -j REJECT --reject-with tcp-reset')
print(c('where(addr, port)'), published('where(addr, port)'))",
            include_str!("fixtures/dockerd.iptables")
        ),
        "host host\nECONNREFUSED ECONNREFUSED",
    )
}

fn dockerd_by_nftables(ws: Workspace) -> Result<()> {
    let rules = include_str!("fixtures/dockerd.nft");
    under_dockerd(ws, &format!("nft({rules:?})\nprint(c('where(addr, port)'))"), "host")
}

/// With a container, `c`, at dockerd's bridge, and a server at `addr` and `port`.
fn under_dockerd(ws: Workspace, code: &str, want: &str) -> Result<()> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let (addr, port) = (echo.addr.ip(), echo.addr.port());
    with_nested(ws)
        .python(&format!(
            "{TOOLS}{CONTAINERS}
addr, port = '{addr}', {port}
forwarding(1)
bridge('docker0', '172.17.0.1/16')
c = Container('172.17.0.2/16', bridge='docker0', gateways=['172.17.0.1'])
{code}"
        ))?
        .printed(want)
}

/// A namespace behind a container, and devices that are no veth.
fn other_devices(ws: Workspace) -> Result<()> {
    with_servers(
        &with_nested(ws),
        "
c = docker_like()
print(c('forwarding(1)'), c(\"nft('table inet t { chain post { type nat hook postrouting priority 100; oifname eth0 masquerade; } }')\"))
print(c(\"globals().update(inner=Container('10.10.0.2/24', 'fd10::2/64', near=('10.10.0.1/24', 'fd10::1/64'), gateways=('10.10.0.1', 'fd10::1')))\"))
print(c(\"inner('where(addr, port)')\"))
n = bridged(4)
sh(f'ip link add link br0 name mv0 type macvlan mode bridge && ip link set mv0 netns {n.pid}')
n(\"sh('ip link set eth0 down && ip link set mv0 up && ip addr add 10.7.0.5/24 dev mv0 && ip route add default via 10.7.0.1')\")
print(n('where(addr, port, 1)') != 'host')",
        "None None\nNone\nworkspace\nTrue",
    )
}

/// A host socket of a container that is dissolved becomes the container's again, and connects by its ways.
fn back_to_its_own(ws: Workspace) -> Result<()> {
    with_servers(
        &with_nested(ws),
        "
here = '10.7.0.1' if ip == 'ip' else 'fd07::1'
def refused():
    s = tcp(addr); s.setblocking(False); s.connect_ex((addr, 1)); select.select([], [s], [], 20)
    assert side(s) == 'host'; s.settimeout(20)
    assert outcome(lambda: s.connect((addr, port))) == 'ECONNREFUSED'
    return s
def shut():
    s = dial(addr, port); s.shutdown(socket.SHUT_RDWR); s.recv(1); return s
def dissolved():
    s = dial(addr, port); assert libc.connect(s.fileno(), bytes(16), 16) == 0; return s
def tries(make):
    s = make(); yield outcome(lambda: s.connect((here, 8000))), side(s), s.getsockname()[0] != addr
    # (Its side is left out: congestion control set by the host's route looks like an option, which a user may not set.)
    s = make(); yield outcome(lambda: s.connect((addr, port))), s.getpeername()[1] == port
    s = make(); yield outcome(s.listen), side(s), s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    s = make(); yield outcome(lambda: s.bind(('' , 0))), side(s)
c = docker_like()
server = tcp(here); server.bind((here, 8000)); server.listen()
for make in 'refused', 'dissolved': say(c(f'list(tries({make}))'))
# Handed to the workspace, it becomes the workspace's.
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
pid = os.fork()
if pid == 0:
    libc.setns(os.open(f'/proc/{c.pid}/ns/net', os.O_RDONLY), 0); s = refused(); socket.send_fds(theirs, [b'x'], [s.fileno()]); os._exit(0)
s = socket.socket(fileno=socket.recv_fds(ours, 1, 1)[1][0]); s.settimeout(20)
say(side(s), outcome(lambda: s.connect((here, 8000))), side(s))
# Handed to a container without a way out, it gives it none.
internal = Container('10.9.0.2/24', 'fd09::2/64')
pid = os.fork()
if pid == 0:
    for there in internal, c:
        libc.setns(os.open(f'/proc/{c.pid}/ns/net', os.O_RDONLY), 0); s = refused()
        libc.setns(os.open(f'/proc/{there.pid}/ns/net', os.O_RDONLY), 0); say(outcome(lambda: s.connect((addr, port))))
    os._exit(0)
os.waitpid(pid, 0)",
        "[('connected', 'workspace', True), ('connected', True), ('connected', 'workspace', 1), ('connected', 'workspace')]\n\
         [('connected', 'workspace', True), ('connected', True), ('connected', 'workspace', 1), ('connected', 'workspace')]\n\
         host connected workspace\nENETUNREACH\nconnected",
    )
}

/// The egress policy is the workspace's, and the host's loopback as far away.
fn policy(ws: Workspace) -> Result<()> {
    let loopback = TcpServer::whoami(&ws.lab.host, "127.0.0.1".parse()?)?;
    let (denied, open) = (TcpServer::whoami(&ws.lab.remote, REMOTE[0])?, TcpServer::echo(&ws.lab.remote, REMOTE[0])?);
    let ws = with_nested(ws).flag(format!("--deny={}", denied.addr));
    ws.python(&format!(
        "{TOOLS}{CONTAINERS}
c = docker_like()
c('''sh(\"sysctl -qw net.ipv4.conf.all.route_localnet=1 && ip route add 127.0.0.1 via 10.7.0.1 table 7 && ip rule add to 127.0.0.1 lookup 7 priority 0; ip rule del lookup local; ip rule add lookup local priority 9\")''')
print(c(\"where('{addr}', {open})\"), c(\"where('{addr}', {denied})\"))
print(*[c(f\"where('{{there}}', {loopback}, 2)\") in ('ECONNREFUSED', 'timed out', 'ENETUNREACH', 'EHOSTUNREACH', 'EINVAL')
    for there in ('127.0.0.1', '0.0.0.0', '10.0.2.2', '10.0.2.100', '10.7.0.1')])",
        addr = REMOTE[0],
        open = open.addr.port(),
        denied = denied.addr.port(),
        loopback = loopback.addr.port(),
    ))?
    .printed("host EHOSTUNREACH\nTrue True True True True")?;
    ensure!(denied.accepted() == 0 && loopback.accepted() == 0, "a container reached what the policy denies");
    Ok(())
}

fn udp(ws: Workspace) -> Result<()> {
    let ws = with_nested(ws).flag("--bypass-udp");
    let port = servers::udp_echo(&ws.lab.remote, REMOTE[0])?.port();
    ws.python(&format!(
        "{TOOLS}{CONTAINERS}
def ask(timeout=20):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(timeout); s.connect(('{addr}', {port})); s.send(b'x')
    try: return side(s), s.recv(9)
    except TimeoutError: return side(s), 'timed out'
c = docker_like()
print(c('ask()'))
nft('table inet f {{ chain f {{ type filter hook forward priority 0; udp dport {port} drop; }} }}')
print(c('ask(1)'), where('{addr}', {port}))
nft('delete table inet f; table inet f {{ chain f {{ type filter hook forward priority 0; tcp dport {port} drop; }} }}')
print(c('ask()'))",
        addr = REMOTE[0],
    ))?
    .printed("('host', b'x')\n('workspace', 'timed out') ECONNREFUSED\n('host', b'x')")
}

/// Nothing of ours keeps a container's namespace: its veth goes with it, though a connection taken out lives on.
fn gone(ws: Workspace) -> Result<()> {
    with_servers(
        &with_nested(ws),
        "
c = docker_like()
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
pid = os.fork()
if pid == 0:
    libc.setns(os.open(f'/proc/{c.pid}/ns/net', os.O_RDONLY), 0); s = dial(addr, port); socket.send_fds(theirs, [b'x'], [s.fileno()]); os._exit(0)
s = socket.socket(fileno=socket.recv_fds(ours, 1, 1)[1][0])
os.waitpid(pid, 0); c.end()
until = time.monotonic() + 20
while 'v1:' in open('/proc/net/dev').read():
    assert time.monotonic() < until, 'the namespace lives on'
    time.sleep(0.05)
s.setblocking(True); s.sendall(b'still here\\n'); print(s.recv(99))",
        "b'still here\\n'",
    )
}

/// More namespaces than are kept, all alive at once: none is refused, others go on, and no descriptor stays.
fn many(ws: Workspace) -> Result<()> {
    with_servers(
        &with_nested(ws),
        "
c = docker_like()
pid = os.fork()
if pid == 0:
    kept = []
    for n in range(100):
        assert libc.unshare(CLONE_NEWNET) == 0
        kept.append(tcp(addr))
    say(*{outcome(lambda: s.connect((addr, port))) in ('ENETUNREACH', 'EADDRNOTAVAIL') for s in kept + kept}); os._exit(0)
os.waitpid(pid, 0)
print(c('where(addr, port)'), where(addr, port))",
        "True\nhost host",
    )
}

fn what_is_refused(ws: Workspace) -> Result<()> {
    let ws = ws.flag("--bypass-nested").flag("--bypass=off");
    contains(&ws.run(["true"])?.exited(125)?.stderr, "needs --bypass as well")
}
