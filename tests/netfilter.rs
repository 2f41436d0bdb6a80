//! The workspace's netfilter decides as its routes do: what one of its rules could touch is not taken out, what none
//! could is.

use anyhow::{Result, ensure};

use crate::lab::REMOTE;
use crate::lab::servers::TcpServer;
use crate::lab::workspace::Workspace;

crate::cases! {
    EVERY_WAY: dnat, reject;
    BYPASS: published, straight_inside, drop_in_output, policy_drop, owner, iptables, iptables_owner, legacy_iptables, replies_dropped,
        cluster_address, set_of_addresses, dockerd_by_iptables, dockerd_by_nftables, firewall, masquerade,
        while_running;
}

/// `nft(lines)`, and `where(addr, port)`: whose socket a connection there ends on, or how it failed.
pub const TOOLS: &str = r#"
import subprocess
def sh(line): assert os.system(line) == 0, line
def nft(lines): subprocess.run(['nft', '-f', '-'], input=lines.replace(' }', '\n}'), text=True, check=True)
def where(addr, port, timeout=20):
    try: s = dial(addr, port, timeout)
    except OSError as e: return 'timed out' if e.errno is None else errno.errorcode[e.errno]
    return side(s)
"#;

/// Two servers at each address of the remote: the code has `addr`, `port` and `other`, a port no rule is about, and
/// `ip`, the family's name in nft.
pub fn with_servers(ws: &Workspace, code: &str, want: &str) -> Result<()> {
    for addr in REMOTE {
        let (server, other) = (TcpServer::echo(&ws.lab.remote, addr)?, TcpServer::echo(&ws.lab.remote, addr)?);
        let (port, other, ip) = (server.addr.port(), other.addr.port(), if addr.is_ipv4() { "ip" } else { "ip6" });
        ws.python(&format!("addr, port, other, ip = '{addr}', {port}, {other}, '{ip}'\n{TOOLS}{code}"))?
            .printed(want)?;
    }
    Ok(())
}

/// A connection that the workspace redirects to a server of its own stays inside.
fn dnat(ws: Workspace) -> Result<()> {
    let whoami = TcpServer::whoami(&ws.lab.remote, REMOTE[0])?;
    let other = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let done = ws.python(&format!(
        "{TOOLS}
server = tcp('127.0.0.1'); server.bind(('127.0.0.1', 0)); server.listen()
nft(f'''table ip t {{{{ chain out {{{{ type nat hook output priority -100;
    ip daddr {addr} tcp dport {port} dnat to 127.0.0.1:{{server.getsockname()[1]}} }}}} }}}}''')
s = dial('{addr}', {port}); server.settimeout(20)
print('inside' if server.accept()[0] else '', where('{addr}', {other}))",
        addr = REMOTE[0],
        port = whoami.addr.port(),
        other = other.addr.port()
    ))?;
    ensure!(whoami.accepted() == 0, "the remote was reached past the workspace's DNAT: {done}");
    done.printed(if ws.bypasses() { "inside host" } else { "inside workspace" })
}

fn reject(ws: Workspace) -> Result<()> {
    with_servers(
        &ws,
        "
first = attempt(addr, port)
nft(f'table inet t {{ chain out {{ type filter hook output priority 0; tcp dport {port} reject with tcp reset; }} }}')
print(first, attempt(addr, port))",
        "connected ECONNREFUSED",
    )
}

fn drop_in_output(ws: Workspace) -> Result<()> {
    with_servers(
        &ws,
        "
nft(f'table inet t {{ chain out {{ type filter hook output priority 0; {ip} daddr {addr} tcp dport {port} drop; }} }}')
print(where(addr, port, 1), where(addr, other))",
        "timed out host",
    )
}

fn policy_drop(ws: Workspace) -> Result<()> {
    with_servers(
        &ws,
        "
nft(f'''table inet t {{ chain out {{ type filter hook output priority 0; policy drop;
    meta l4proto ipv6-icmp accept; tcp dport {other} accept; }} }}''')
print(where(addr, port, 1), where(addr, other))",
        "timed out host",
    )
}

/// Whose socket it is nobody asks beforehand: such a rule keeps everything it could match in place.
fn owner(ws: Workspace) -> Result<()> {
    with_servers(
        &ws,
        "
nft(f'table inet t {{ chain out {{ type filter hook output priority 0; meta skuid 12345 tcp dport {port} drop; }} }}')
print(where(addr, port), where(addr, other))
nft(f'flush ruleset')
nft(f'table inet t {{ chain out {{ type filter hook output priority 0; meta skuid {os.getuid()} tcp dport {port} drop; }} }}')
print(where(addr, port, 1), where(addr, other))",
        "workspace host\ntimed out host",
    )
}

fn iptables(ws: Workspace) -> Result<()> {
    with_servers(
        &ws,
        "
iptables = 'iptables' if ip == 'ip' else 'ip6tables'
sh(f'{iptables}-nft -A OUTPUT -d {addr} -p tcp -m tcp --dport {port} -j REJECT --reject-with tcp-reset')
print(where(addr, port), where(addr, other))
sh(f'{iptables}-nft -F OUTPUT')
print(where(addr, port))
sh(f'{iptables}-nft -P OUTPUT DROP'); sh(f'{iptables}-nft -A OUTPUT -p tcp --dport {other} -j ACCEPT')
print(where(addr, port, 1) if ip == 'ip' else 'timed out', where(addr, other))",
        "ECONNREFUSED host\nhost\ntimed out host",
    )
}

fn iptables_owner(ws: Workspace) -> Result<()> {
    with_servers(
        &ws,
        "
iptables = 'iptables' if ip == 'ip' else 'ip6tables'
sh(f'{iptables}-nft -A OUTPUT -p tcp --dport {port} -m owner --uid-owner {os.getuid()} -j REJECT --reject-with tcp-reset')
print(where(addr, port), where(addr, other))",
        "ECONNREFUSED host",
    )
}

/// Legacy tables have no notifications: a namespace that has one keeps everything in place.
fn legacy_iptables(ws: Workspace) -> Result<()> {
    with_servers(
        &ws,
        "
iptables = 'iptables' if ip == 'ip' else 'ip6tables'
print(where(addr, port))
os.environ['XTABLES_LOCKFILE'] = f'/tmp/xtables-{os.getpid()}-{time.time_ns()}'
sh(f'{iptables}-legacy -A OUTPUT -d {addr} -p tcp --dport {port} -j REJECT --reject-with tcp-reset')
print(where(addr, port), where(addr, other))",
        "host\nECONNREFUSED workspace",
    )
}

/// A connection whose answers the workspace drops does not come about.
fn replies_dropped(ws: Workspace) -> Result<()> {
    with_servers(
        &ws,
        "
nft(f'table inet t {{ chain in {{ type filter hook input priority 0; {ip} saddr {addr} tcp sport {port} drop; }} }}')
print(where(addr, port, 1), where(addr, other))",
        "timed out host",
    )
}

/// A program listens on the host where no rule could touch its clients, whatever else is ruled; elsewhere they come in by
/// the TAP, and meet the rules.
fn published(ws: Workspace) -> Result<()> {
    let dockerd = include_str!("fixtures/dockerd.iptables");
    let (dockerd_nft, firewall) = (include_str!("fixtures/dockerd.nft"), include_str!("fixtures/firewall.nft"));
    let ws = ws.flag("-p=5000-5001:5000-5001").flag("-p=8080:8080");
    ws.python(&format!(
        "{TOOLS}
def listens(port=5000, addr='0.0.0.0'):
    s = tcp(addr); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind((addr, port)); s.listen()
    return side(s)
def chain(hook, rules, kind='filter', priority=0):
    nft('flush ruleset')
    nft(f'table inet t {{{{ chain c {{{{ type {{kind}} hook {{hook}} priority {{priority}}; {{rules}} }}}} }}}}')
    return listens(), listens(5001)
both = '::'
subprocess.run(['iptables-nft-restore'], input={dockerd:?}, text=True, check=True)
print('dockerd', listens(), listens(8080), listens(5000, both))
nft('flush ruleset'); nft({dockerd_nft:?})
print('dockerd', listens(), listens(8080), listens(5000, both))
nft('flush ruleset'); nft({firewall:?})
print('firewall', listens())
print('dropped', *chain('input', 'iifname lo accept; tcp dport 5000 drop;'))
print('let in', *chain('input', 'policy drop; iifname lo accept; ct state established accept; tcp dport 5000 accept;'))
print('of some', *chain('input', 'iifname lo accept; ip saddr 192.0.2.0/24 tcp dport 5000 drop;'))
print('led elsewhere', *chain('prerouting', 'tcp dport 5000 redirect to :81;', 'nat', -100))
print('answers', *chain('output', 'tcp sport 5000 drop;'))
print('counted', *chain('input', 'counter; tcp dport 5000 counter accept;'))
print('of another', *chain('input', 'iifname wg0 drop;'))
nft('flush ruleset'); os.environ['XTABLES_LOCKFILE'] = f'/tmp/xtables-{{os.getpid()}}-{{time.time_ns()}}'
sh('iptables-legacy -A OUTPUT -p tcp --dport 1 -j DROP')
print('legacy', listens())"
    ))?
    .printed(
        "dockerd host workspace host
dockerd host workspace host
firewall workspace
dropped workspace host
let in host workspace
of some workspace host
led elsewhere workspace host
answers workspace workspace
counted host host
of another host host
legacy workspace",
    )
}

/// A connection on the loopback goes past it only where no rule is about it.
fn straight_inside(ws: Workspace) -> Result<()> {
    ws.flag("-p=5000-5001:5000-5001")
        .python(&format!(
            "{TOOLS}
def listen(port):
    s = tcp('127.0.0.1'); s.bind(('0.0.0.0', port)); s.listen(); return s
servers = listen(5000), listen(5001)
def both(): return where('127.0.0.1', 5000, 1), where('127.0.0.1', 5001, 1)
print(*map(side, servers), *both())
def out(rules, kind='filter'):
    nft('flush ruleset')
    nft(f'table inet t {{{{ chain c {{{{ type {{kind}} hook output priority -100; {{rules}} }}}} }}}}')
    return both()
print(*out('tcp dport 5000 reject with tcp reset;'))
print(*out('oifname tap0 drop;'))
print(*out('tcp dport 5001 redirect to :9;', 'nat'))
print(*out('ip protocol tcp accept;'))"
        ))?
        .printed(
            "host host host host
ECONNREFUSED workspace
host host
host ECONNREFUSED
host host",
        )
}

/// Rules about other destinations, as k3s has them by the hundred.
fn cluster_address(ws: Workspace) -> Result<()> {
    with_servers(
        &ws,
        "
services = '\\n'.join(f'ip daddr 10.43.{n // 100}.{n % 100} tcp dport 443 jump service' for n in range(300))
inside = tcp('127.0.0.1'); inside.bind(('127.0.0.1', 0)); inside.listen()
nft(f'''table inet t {{
    chain service {{ meta mark set mark or 0x4000; tcp dport 443 dnat ip to 127.0.0.1:{inside.getsockname()[1]}; }}
    chain services {{ {services}
    }}
    chain out {{ type nat hook output priority -100; jump services; }}
    chain post {{ type nat hook postrouting priority 100; meta mark and 0x4000 == 0x4000 masquerade; }}
}}''')
print(where(addr, port), where('10.43.0.7', 443))",
        "host workspace",
    )
}

fn set_of_addresses(ws: Workspace) -> Result<()> {
    with_servers(
        &ws,
        "
nft(f'''table inet t {{
    set ports {{ type inet_service; flags interval; elements = {{ {port} }}; }}
    set addrs {{ type {'ipv4' if ip == 'ip' else 'ipv6'}_addr; elements = {{ {addr} }}; }}
    chain out {{ type filter hook output priority 0; {ip} daddr @addrs tcp dport @ports reject with tcp reset; }} }}''')
print(where(addr, port), where(addr, other))
nft(f'add element inet t ports {{ {other} }}')
print(where(addr, other))
nft(f'delete element inet t addrs {{ {addr} }}')
print(where(addr, port), where(addr, other))",
        "ECONNREFUSED host\nECONNREFUSED\nhost host",
    )
}

fn dockerd_by_iptables(ws: Workspace) -> Result<()> {
    let rules = include_str!("fixtures/dockerd.iptables");
    with_servers(
        &ws,
        &format!(
            "
subprocess.run(['iptables-nft-restore'], input={rules:?}, text=True, check=True)
subprocess.run(['ip6tables-nft-restore'], input={v6:?}, text=True, check=True)
print(where(addr, port), where(addr, 8080) != 'host')",
            v6 = rules
                .replace("172.17.0.0/16", "fd01::/64")
                .replace("172.18.0.0/16", "fd02::/64")
                .replace("172.18.0.2/32", "fd02::2")
                .replace("172.18.0.2:80", "[fd02::2]:80")
                .replace("127.0.0.0/8", "::1")
        ),
        "host True",
    )
}

fn dockerd_by_nftables(ws: Workspace) -> Result<()> {
    let rules = include_str!("fixtures/dockerd.nft");
    with_servers(&ws, &format!("nft({rules:?})\nprint(where(addr, port))"), "host")
}

fn firewall(ws: Workspace) -> Result<()> {
    let rules = include_str!("fixtures/firewall.nft");
    with_servers(&ws, &format!("nft({rules:?})\nprint(where(addr, port))"), "host")
}

/// The address behind it is the TAP's in any case.
fn masquerade(ws: Workspace) -> Result<()> {
    with_servers(
        &ws,
        "
nft('table inet t { chain post { type nat hook postrouting priority 100; oifname tap0 masquerade; } }')
print(where(addr, port))",
        "host",
    )
}

/// A change holds for the next connect, whoever makes it.
fn while_running(ws: Workspace) -> Result<()> {
    with_servers(
        &ws,
        "
nft(f'table inet t {{ chain out {{ type filter hook output priority 0; }} }}')
for _ in range(50):
    before = where(addr, port)
    nft(f'add rule inet t out tcp dport {port} reject with tcp reset')
    between = where(addr, port), where(addr, other)
    nft(f'flush chain inet t out')
    assert (before, *between) == ('host', 'ECONNREFUSED', 'host'), (before, between)
print('as the rules say')",
        "as the rules say",
    )
}
