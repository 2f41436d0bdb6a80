//! What a workspace must not reach, and that both paths agree on it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};

use crate::lab::servers::{self, TcpServer};
use crate::lab::workspace::Workspace;
use crate::lab::{HOST_V4, HOST_V6, REMOTE};

crate::cases! {
    EVERY_WAY: own_loopback, host_loopback, host_loopback_by_used_socket, host_addresses, udp_to_the_gateway;
    BOTH_PATHS: other_ports_of_the_resolver, host_loopback_on_request, virtual_addresses;
}

const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// A server inside is reached inside, on the workspace's own loopback, and not from the host.
fn own_loopback(ws: Workspace) -> Result<()> {
    for addr in LOOPBACK {
        let mut running = ws.start_python(&format!(
            "server = tcp('{addr}'); server.bind(('{addr}', 0)); server.listen()
port = server.getsockname()[1]
s = dial('{addr}', port); peer, _ = server.accept(); s.sendall(b'x')
say(peer.recv(1), side(s), side(peer), side(server), port)
sys.stdin.read()"
        ))?;
        let line = running.line()?;
        let Some(port) = line.strip_prefix("b'x' workspace workspace workspace ") else {
            anyhow::bail!("{line}: {}", running.finish()?)
        };
        let from_host = ws.shell(&format!("exec 3<>/dev/tcp/{addr}/{port}")).run(&ws.lab.host)?;
        ensure!(from_host.code() != 0, "the host reached a workspace's loopback: {from_host}");
        running.finish()?.succeeded()?;
    }
    Ok(())
}

/// Servers on the host's loopback, tried by every name that could lead there.
fn host_loopback(ws: Workspace) -> Result<()> {
    let v4 = TcpServer::echo(&ws.lab.host, LOOPBACK[0])?;
    let v6 = TcpServer::start(&ws.lab.host, (LOOPBACK[1], v4.addr.port()), |_| Ok(()))?;
    let names = [
        ("127.0.0.1", "ECONNREFUSED"),
        ("127.1.2.3", "ECONNREFUSED"),
        ("0.0.0.0", "ECONNREFUSED"),
        ("::1", "ECONNREFUSED"),
        ("::", "ECONNREFUSED"),
        ("::ffff:127.0.0.1", "ECONNREFUSED"),
        ("::ffff:0.0.0.0", "ECONNREFUSED"),
        ("10.0.2.2", "ENETUNREACH"),
        ("::ffff:10.0.2.2", "ENETUNREACH"),
        ("fd00::2", "ENETUNREACH"),
    ];
    let list: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
    let want: Vec<&str> = names.iter().map(|(_, errno)| *errno).collect();
    let done = ws.python(&format!("for name in {list:?}: print(attempt(name, {}))", v4.addr.port()))?.succeeded()?;
    ensure!(v4.accepted() + v6.accepted() == 0, "the host's loopback was reached: {done}");
    let got: Vec<&str> = done.stdout.lines().collect();
    ensure!(got == want, "tried {list:?},\nexpected {want:?},\ngot {got:?}: {done}");
    Ok(())
}

/// The same from an IPv6 socket that was connected to the remote, and past the TAP, before.
fn host_loopback_by_used_socket(ws: Workspace) -> Result<()> {
    let server = TcpServer::echo(&ws.lab.host, LOOPBACK[0])?;
    for (remote, names) in [
        (format!("::ffff:{}", REMOTE[0]), ["::ffff:127.0.0.1", "::ffff:0.0.0.0"]),
        (REMOTE[1].to_string(), ["::1", "::"]),
    ] {
        let echo = TcpServer::echo(&ws.lab.remote, remote.parse()?)?;
        let done = ws.python(&format!(
            "unspec = struct.pack('HHI8x', socket.AF_UNSPEC, 0, 0)
libc = ctypes.CDLL(None, use_errno=True)
for name in {names:?}:
    s = dial('{remote}', {port})
    libc.connect(s.fileno(), unspec, 16)
    print(outcome(lambda: s.connect((name, {forbidden}))))",
            port = echo.addr.port(),
            forbidden = server.addr.port()
        ))?;
        ensure!(server.accepted() == 0, "the host's loopback was reached: {done}");
        done.printed("ECONNREFUSED\nECONNREFUSED")?;
    }
    Ok(())
}

/// The host's other addresses are like any other machine's.
fn host_addresses(ws: Workspace) -> Result<()> {
    for addr in [IpAddr::V4(HOST_V4), IpAddr::V6(HOST_V6)] {
        let server = TcpServer::echo(&ws.lab.host, addr)?;
        ws.python(&format!("print(attempt('{addr}', {}))", server.addr.port()))?.printed("connected")?;
    }
    Ok(())
}

fn udp_to_the_gateway(ws: Workspace) -> Result<()> {
    let echo = servers::udp_echo(&ws.lab.host, LOOPBACK[0])?;
    ws.python(&format!(
        "for name in '10.0.2.2', '127.0.0.1', '0.0.0.0':
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(0.5)
    s.sendto(b'x', (name, {}))
    try: print('answered by', s.recvfrom(9))
    except OSError: pass",
        echo.port()
    ))?
    .printed("")?;
    // A connected socket is told at once; the gateway itself is there.
    ws.python(&format!(
        "for name in '10.0.2.2', 'fd00::2':
    s = socket.socket(family(name), socket.SOCK_DGRAM); s.settimeout(10); s.connect((name, {}))
    s.send(b'x'); print(outcome(lambda: s.recv(9)))",
        echo.port()
    ))?
    .printed("ENETUNREACH\nEACCES")?;
    for name in ["10.0.2.2", "fd00::2", "10.0.2.3", "fd00::3"] {
        ws.run(["ping", "-c1", "-W10", name])?.succeeded()?;
    }
    Ok(())
}

/// At the resolver's address there is DNS and nothing else, whatever the host's loopback serves and whether it is open.
fn other_ports_of_the_resolver(ws: Workspace) -> Result<()> {
    let tcp = TcpServer::echo(&ws.lab.host, LOOPBACK[0])?;
    let udp = servers::udp_echo(&ws.lab.host, LOOPBACK[0])?;
    let mut ws = ws;
    // The last of them counts.
    for flag in ["--disable-host-loopback", "--host-loopback"] {
        ws = ws.flag(flag);
        ws.python(&format!(
            "for name in '10.0.2.3', 'fd00::3':
    s = socket.socket(family(name), socket.SOCK_DGRAM); s.settimeout(10); s.connect((name, {}))
    s.send(b'x'); print(attempt(name, {}), outcome(lambda: s.recv(9)))",
            udp.port(),
            tcp.addr.port()
        ))?
        .printed(&["ECONNREFUSED ECONNREFUSED"; 2].join("\n"))?;
    }
    ensure!(tcp.accepted() == 0, "the host's loopback was reached");
    Ok(())
}

fn host_loopback_on_request(ws: Workspace) -> Result<()> {
    let ws = ws.flag("--host-loopback");
    for (loopback, gateway) in LOOPBACK.into_iter().zip(["10.0.2.2", "fd00::2"]) {
        let server = TcpServer::echo(&ws.lab.host, loopback)?;
        let port = server.addr.port();
        ws.python(&format!("print(attempt('{gateway}', {port}), attempt('127.0.0.1', {port}))"))?
            .printed("connected ECONNREFUSED")?;
        let echo = servers::udp_echo(&ws.lab.host, loopback)?;
        ws.python(&format!(
            "s = socket.socket(family('{gateway}'), socket.SOCK_DGRAM); s.settimeout(10); s.connect(('{gateway}', {}))
s.send(b'x'); print(s.recv(9))",
            echo.port()
        ))?
        .printed("b'x'")?;
        ws.run(["ping", "-c1", "-W10", gateway])?.succeeded()?;
    }
    Ok(())
}

/// Addresses of the virtual subnet that nobody has lead nowhere, even where the host has a machine by that address.
fn virtual_addresses(ws: Workspace) -> Result<()> {
    ws.lab.remote.run("ip addr add 10.0.2.77/32 dev veth0")?;
    ws.lab.host.run("ip route add 10.0.2.0/24 via 192.0.2.2")?;
    let server = TcpServer::start(&ws.lab.remote, (IpAddr::V4(Ipv4Addr::new(10, 0, 2, 77)), 0), |_| Ok(()))?;
    let done = ws.python(&format!("print(attempt('10.0.2.77', {}, 5))", server.addr.port()))?.succeeded()?;
    ensure!(!done.stdout.contains("connected") && server.accepted() == 0, "{done}");
    Ok(())
}
