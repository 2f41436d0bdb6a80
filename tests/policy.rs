//! `--deny` and `--allow`: the same answers through the TAP and past it.

use std::net::{IpAddr, UdpSocket};

use anyhow::{Result, ensure};

use crate::lab::command::Program;
use crate::lab::servers::TcpServer;
use crate::lab::workspace::{Workspace, contains};
use crate::lab::{HOST_V4, HOST_V6, REMOTE, servers};

crate::cases! {
    EVERY_WAY: networks, ports, first_rule_decides, host, every_connect;
    BOTH_PATHS: host_without_address, metadata, datagrams, gateway, what_is_refused;
}

fn accept(ws: &Workspace, addr: IpAddr) -> Result<TcpServer> {
    TcpServer::echo(&ws.lab.remote, addr)
}

/// What connects to the addresses give, in order.
fn attempts(ws: &Workspace, destinations: &[(IpAddr, u16)]) -> Result<String> {
    let list: Vec<_> = destinations.iter().map(|(addr, port)| format!("('{addr}', {port})")).collect();
    ws.python(&format!("print(*[attempt(*destination) for destination in [{}]])", list.join(", ")))?.output()
}

fn networks(ws: Workspace) -> Result<()> {
    let ws = ws.flag("--deny=192.0.2.0/30").flag("--deny=2001:db8:1::2");
    for addr in REMOTE {
        let server = accept(&ws, addr)?;
        let got = attempts(&ws, &[(addr, server.addr.port())])?;
        ensure!(got == "EHOSTUNREACH" && server.accepted() == 0, "{addr}: {got}");
        ensure!(!ws.run(["ping", "-c1", "-W20", &addr.to_string()])?.status.success(), "a denied address was pinged");
    }
    let server = TcpServer::echo(&ws.lab.host, IpAddr::V6(HOST_V6))?;
    ensure!(attempts(&ws, &[(IpAddr::V6(HOST_V6), server.addr.port())])? == "connected");
    // The same address in another spelling.
    let server = accept(&ws, REMOTE[0])?;
    let done = ws.python(&format!("print(attempt('::ffff:{}', {}))", REMOTE[0], server.addr.port()))?;
    done.printed("EHOSTUNREACH")
}

fn ports(ws: Workspace) -> Result<()> {
    let open = [accept(&ws, REMOTE[0])?, accept(&ws, REMOTE[1])?].map(|server| server.addr);
    let closed = [accept(&ws, REMOTE[0])?, accept(&ws, REMOTE[1])?].map(|server| server.addr);
    let ws = closed.iter().fold(ws, |ws, addr| ws.flag(format!("--deny={addr}/tcp")));
    for (open, closed) in open.into_iter().zip(closed) {
        let got = attempts(&ws, &[(open.ip(), open.port()), (closed.ip(), closed.port())])?;
        ensure!(got == "connected EHOSTUNREACH", "{closed}: {got}");
    }
    Ok(())
}

fn first_rule_decides(ws: Workspace) -> Result<()> {
    let (v4, v6) = (accept(&ws, REMOTE[0])?, accept(&ws, REMOTE[1])?);
    let ws = ws.flag(format!("--allow={}:{}", REMOTE[0], v4.addr.port())).flag("--deny=0.0.0.0/0").flag("--deny=::/0");
    let got = attempts(&ws, &[(REMOTE[0], v4.addr.port()), (REMOTE[0], 1), (REMOTE[1], v6.addr.port())])?;
    ensure!(got == "connected EHOSTUNREACH EHOSTUNREACH", "{got}");
    Ok(())
}

fn host(ws: Workspace) -> Result<()> {
    let ws = ws.flag("--deny=host");
    for (own, remote) in [IpAddr::V4(HOST_V4), IpAddr::V6(HOST_V6)].into_iter().zip(REMOTE) {
        let own = TcpServer::echo(&ws.lab.host, own)?;
        let remote = accept(&ws, remote)?;
        let got = attempts(&ws, &[(own.addr.ip(), own.addr.port()), (remote.addr.ip(), remote.addr.port())])?;
        ensure!(got == "EHOSTUNREACH connected" && own.accepted() == 0, "{}: {got}", own.addr);
    }
    // An address that the host gets later is its own from then on.
    let later: IpAddr = "203.0.113.9".parse()?;
    ws.lab.host.run("ip addr add 203.0.113.9/32 dev lo")?;
    let server = TcpServer::echo(&ws.lab.host, later)?;
    let got = attempts(&ws, &[(later, server.addr.port())])?;
    ensure!(got == "EHOSTUNREACH", "{later}: {got}");
    Ok(())
}

/// Over IPv6 a host takes in more than its addresses: what a route of type local covers and, where it forwards, the
/// anycast address of its prefixes' routers.
fn host_without_address(ws: Workspace) -> Result<()> {
    let (routed, anycast): (IpAddr, IpAddr) = ("2001:db8:77::5".parse()?, "2001:db8:1::".parse()?);
    let everywhere: IpAddr = "::".parse()?;
    ws.lab.host.run("ip -6 route add local 2001:db8:77::/64 dev lo")?;
    ws.lab.host.sysctl("ipv6/conf/all/forwarding", "1")?;
    let server = TcpServer::echo(&ws.lab.host, everywhere)?;
    let datagrams = ws.lab.host.within(|| UdpSocket::bind((everywhere, 0)))?;
    let (to_tcp, to_udp) = (server.addr.port(), datagrams.local_addr()?.port());
    // What answers a datagram has another address, so the sender's socket does not hear it.
    let attempted = |ws: &Workspace| {
        let code = format!(
            "print(attempt('{routed}', {to_tcp}, 5))
for addr in '{routed}', '{anycast}':
    s = udp(addr); s.settimeout(2); s.connect((addr, {to_udp})); s.send(b'x')
    print(outcome(lambda: s.recv(9)))"
        );
        ws.python(&code)?.output()
    };
    let open = attempted(&ws)?;
    ensure!(open == "connected\ntimed out\ntimed out" && server.accepted() == 1, "the lab's host is not there: {open}");
    datagrams.set_nonblocking(true)?;
    ensure!((0..2).all(|_| datagrams.recv(&mut [0; 9]).is_ok()), "the lab's host has not heard a datagram");

    // Whoever is near may say of any way that it is narrow.
    let forged = format!(
        "import socket, struct
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
address = lambda text: socket.inet_pton(socket.AF_INET6, text)
for to in '{routed}', '{anycast}':
    ping = struct.pack('!IHBB', 6 << 28, 8, 58, 64) + address('{HOST_V6}') + address(to) + bytes([128, 0, 0, 0, 0, 1, 0, 1])
    s.sendto(struct.pack('!BBHI', 2, 0, 0, 1400) + ping, ('{HOST_V6}', 0))"
    );
    Program::new(["/usr/bin/python3", "-c", &forged]).run(&ws.lab.remote)?.succeeded()?;
    let ws = ws.flag("--deny=host");
    let closed = attempted(&ws)?;
    ensure!(closed == "EHOSTUNREACH\nECONNREFUSED\nECONNREFUSED", "{closed}");
    ensure!(server.accepted() == 1 && datagrams.recv(&mut [0; 9]).is_err(), "the host was reached");
    ensure!(!ws.run(["ping", "-c1", "-W5", &anycast.to_string()])?.status.success(), "the host was pinged");
    let remote = accept(&ws, REMOTE[1])?;
    ensure!(attempts(&ws, &[(remote.addr.ip(), remote.addr.port())])? == "connected", "more is closed than the host");
    Ok(())
}

/// A socket that was connected where it may be is asked again for each new destination.
fn every_connect(ws: Workspace) -> Result<()> {
    // IPv6: over IPv4 a refusal stays in the socket's error queue, and poll() takes it for the next connect's.
    let (open, closed) = (accept(&ws, REMOTE[1])?, accept(&ws, REMOTE[1])?);
    let ws = ws.flag(format!("--deny={}", closed.addr));
    ws.python(&format!(
        "libc = ctypes.CDLL(None, use_errno=True)
def dissolve(s): libc.connect(s.fileno(), struct.pack('HHI8x', socket.AF_UNSPEC, 0, 0), 16)
s = tcp(':'); s.settimeout(20)
for _ in range(3):
    print(outcome(lambda: s.connect(('{addr}', {}))))
    dissolve(s)
    print(outcome(lambda: s.connect(('{addr}', {}))))
    dissolve(s)",
        open.addr.port(),
        closed.addr.port(),
        addr = REMOTE[1]
    ))?
    .printed(&["connected\nEHOSTUNREACH"; 3].join("\n"))?;
    ensure!(closed.accepted() == 0, "the denied server was reached");
    Ok(())
}

fn metadata(ws: Workspace) -> Result<()> {
    let addresses: [IpAddr; 2] = ["169.254.169.254".parse()?, "fd20:ce::254".parse()?];
    let mut servers = Vec::new();
    for addr in addresses {
        let length = if addr.is_ipv4() { "32" } else { "128 nodad" };
        ws.lab.remote.run(&format!("ip addr add {addr}/{length} dev lo"))?;
        servers.push(accept(&ws, addr)?);
    }
    let destinations: Vec<_> = servers.iter().map(|server| (server.addr.ip(), server.addr.port())).collect();
    ensure!(attempts(&ws, &destinations)? == "connected connected", "the lab has no metadata services");
    let ws = ws.flag("--deny=metadata");
    let got = attempts(&ws, &destinations)?;
    ensure!(got == "EHOSTUNREACH EHOSTUNREACH", "{got}");
    ensure!(servers.iter().all(|server| server.accepted() == 1), "a metadata service was reached");
    Ok(())
}

/// A denied datagram is answered with an error: on a connected socket the next call shows it.
fn datagrams(ws: Workspace) -> Result<()> {
    for (addr, errno) in REMOTE.into_iter().zip(["EHOSTUNREACH", "ECONNREFUSED"]) {
        let ws = Workspace::new(ws.way)?;
        let (open, closed) = (servers::udp_echo(&ws.lab.remote, addr)?, servers::udp_echo(&ws.lab.remote, addr)?);
        ws.flag(format!("--deny={closed}/udp"))
            .python(&format!(
                "for port in {}, {}:
    s = socket.socket(family('{addr}'), socket.SOCK_DGRAM); s.settimeout(10); s.connect(('{addr}', port))
    s.send(b'x'); print(outcome(lambda: s.recv(9)))",
                open.port(),
                closed.port()
            ))?
            .printed(&format!("connected\n{errno}"))?;
    }
    Ok(())
}

/// Rules are about where the gateway leads.
fn gateway(ws: Workspace) -> Result<()> {
    let (open, closed) = (accept_on_loopback(&ws)?, accept_on_loopback(&ws)?);
    let ws = ws.flag("--host-loopback").flag(format!("--deny=127.0.0.1:{}", closed.addr.port()));
    let gateway = "10.0.2.2".parse()?;
    let got = attempts(&ws, &[(gateway, open.addr.port()), (gateway, closed.addr.port())])?;
    ensure!(got == "connected EHOSTUNREACH", "{got}");
    Ok(())
}

fn accept_on_loopback(ws: &Workspace) -> Result<TcpServer> {
    TcpServer::echo(&ws.lab.host, "127.0.0.1".parse()?)
}

fn what_is_refused(ws: Workspace) -> Result<()> {
    for (flag, says) in [
        ("--deny=192.0.2.1/24", "write 192.0.2.0/24"),
        ("--deny=nowhere", "\"nowhere\" is no address, CIDR, metadata or host"),
        ("--allow=192.0.2.1:http", "\"http\" is no port or range of ports"),
        ("--deny=2001:db8::1:443/sctp", "in brackets"),
    ] {
        let done = Workspace::new(ws.way)?.flag(flag).run(["true"])?.exited(125)?;
        contains(&done.stderr, says)?;
    }
    Ok(())
}
