//! What goes through it: TCP and UDP both ways, names, and what must not.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::api::Api;
use super::target::Target;
use crate::lab::command::{DEADLINE, Running};
use crate::lab::servers::{self, TcpServer};
use crate::lab::workspace::Workspace;
use crate::lab::{HOST_V4, REMOTE, REMOTE_V4, dns, poll};

crate::cases! {
    TAP: outgoing, incoming, datagrams_in, resolver, disable_dns, host_loopback, disable_host_loopback, outbound_addr;
    TAP_AS_ROOT: changed_resolver;
}

/// A few megabytes there and back, in both families.
fn outgoing(ws: Workspace) -> Result<()> {
    let target = Target::new(ws)?;
    let _running = target.start("-c -6 --mtu=65520 --enable-sandbox --enable-seccomp", &target.pid())?;
    for remote in REMOTE {
        let tcp = TcpServer::echo(&target.ws.lab.remote, remote)?.addr.port();
        let udp = servers::udp_echo(&target.ws.lab.remote, remote)?.port();
        target
            .python(&format!(
                "s = dial('{remote}', {tcp})
data = os.urandom(3_000_017)
def send(): s.sendall(data); s.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
got = b''
while True:
    part = s.recv(1 << 16)
    if not part: break
    got += part
u = udp('{remote}'); u.sendto(b'datagram', ('{remote}', {udp}))
print(got == data, u.recv(99))"
            ))?
            .printed("True b'datagram'")?;
        target.sh(&format!("ping -c1 -W10 {remote} >/dev/null && echo answered"))?.printed("answered")?;
    }
    Ok(())
}

/// A TCP echo server inside that first tells its client how it knows it.
fn echo_inside(target: &Target) -> Result<Running> {
    let code = "def serve(c, peer):
    c.sendall((peer[0] + '\\n').encode())
    while True:
        part = c.recv(1 << 16)
        if not part: break
        c.sendall(part)
    c.close()
s = tcp('0.0.0.0'); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(('0.0.0.0', 80)); s.listen(64)
u = udp('0.0.0.0'); u.settimeout(None); u.bind(('0.0.0.0', 53))
def answer():
    while True:
        data, peer = u.recvfrom(2000); u.sendto(peer[0].encode() + b' ' + data, peer)
threading.Thread(target=answer, daemon=True).start()
say('ready')
while True: threading.Thread(target=serve, args=s.accept(), daemon=True).start()";
    let mut server = target.python_program(code).deadline(Duration::from_secs(300)).start(&target.ws.lab.host)?;
    server.line_with("ready")?;
    Ok(server)
}

fn incoming(ws: Workspace) -> Result<()> {
    let (target, api) = (Target::new(ws)?, Api::new()?);
    let _running = target.start(&format!("-c {} --enable-sandbox --enable-seccomp", api.flag()), &target.pid())?;
    let _server = echo_inside(&target)?;
    api.add(&json!({"proto": "tcp", "host_port": 8080, "guest_port": 80}))?;
    let (host, remote) = (&target.ws.lab.host, &target.ws.lab.remote);
    let clients = [
        (remote, HOST_V4, &["192.0.2.2"][..]),
        // Past the TAP, or as slirp4netns has it in the moment before there are sockets inside.
        (host, Ipv4Addr::LOCALHOST, &["10.0.2.100", "10.0.2.2"]),
    ];
    for (from, to, known_as) in clients {
        let mut stream =
            from.within(|| TcpStream::connect_timeout(&SocketAddr::from((to, 8080)), DEADLINE)).context("connect")?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let data: Vec<u8> = (0..3_000_017u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        let (mut writer, sent) = (stream.try_clone()?, data.clone());
        let writing =
            std::thread::spawn(move || writer.write_all(&sent).and_then(|()| writer.shutdown(Shutdown::Write)));
        let mut got = Vec::new();
        stream.read_to_end(&mut got)?;
        writing.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        let line = got.iter().position(|&byte| byte == b'\n').context("no line")?;
        let name = String::from_utf8_lossy(&got[..line]);
        ensure!(known_as.contains(&&*name), "{to}: known as {name}");
        ensure!(got[line + 1..] == data, "{to}: {} bytes came back, or others", got.len() - line - 1);
    }
    // A removed port is closed.
    api.ask(&json!({"execute": "remove_hostfwd", "arguments": {"id": 1}}))?;
    let refused = remote.within(|| TcpStream::connect_timeout(&SocketAddr::from((HOST_V4, 8080)), DEADLINE));
    ensure!(refused.is_err(), "a removed port accepts");
    Ok(())
}

fn datagrams_in(ws: Workspace) -> Result<()> {
    let (target, api) = (Target::new(ws)?, Api::new()?);
    let _running = target.start(&format!("-c {}", api.flag()), &target.pid())?;
    let _server = echo_inside(&target)?;
    api.add(&json!({"proto": "udp", "host_port": 5353, "guest_port": 53}))?;
    let clients =
        [(&target.ws.lab.remote, HOST_V4, "192.0.2.2"), (&target.ws.lab.host, Ipv4Addr::LOCALHOST, "10.0.2.2")];
    for (from, to, known_as) in clients {
        let socket = from.within(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.connect((to, 5353))?;
        socket.send(b"hello")?;
        let mut buffer = [0; 100];
        let len = socket.recv(&mut buffer)?;
        let got = String::from_utf8_lossy(&buffer[..len]);
        ensure!(got == format!("{known_as} hello"), "{to}: {got}");
    }
    Ok(())
}

fn resolver(ws: Workspace) -> Result<()> {
    let target = Target::new(ws)?;
    let _running = target.start("-c", &target.pid())?;
    dns::serve(&target.ws.lab.remote, REMOTE[0])?;
    for transport in ["+notcp", "+tcp"] {
        target.sh(&format!("dig +short {transport} @10.0.2.3 remote.lab"))?.printed(&REMOTE_V4.to_string())?;
    }
    Ok(())
}

fn disable_dns(ws: Workspace) -> Result<()> {
    let target = Target::new(ws)?;
    let _running = target.start("-c --disable-dns", &target.pid())?;
    dns::serve(&target.ws.lab.remote, REMOTE[0])?;
    target
        .python("print(attempt('10.0.2.3', 53, 2))\nu = udp('10.0.2.3'); u.settimeout(2); u.connect(('10.0.2.3', 53))\nu.send(b'x' * 20); print(outcome(lambda: u.recv(9)))")?
        .printed("timed out\ntimed out")
}

fn host_loopback(ws: Workspace) -> Result<()> {
    let target = Target::new(ws)?;
    let _running = target.start("-c", &target.pid())?;
    let server = TcpServer::whoami(&target.ws.lab.host, IpAddr::V4(Ipv4Addr::LOCALHOST))?;
    target.python(&format!("print(dial('10.0.2.2', {}).recv(99).decode())", server.addr.port()))?.printed("127.0.0.1")
}

/// The gateway is there, but leads nowhere.
fn disable_host_loopback(ws: Workspace) -> Result<()> {
    let target = Target::new(ws)?;
    let _running = target.start("-c --disable-host-loopback", &target.pid())?;
    let server = TcpServer::whoami(&target.ws.lab.host, IpAddr::V4(Ipv4Addr::LOCALHOST))?;
    target.sh("ping -c1 -W10 10.0.2.2 >/dev/null && echo answered")?.printed("answered")?;
    target.python(&format!("print(attempt('10.0.2.2', {}))", server.addr.port()))?.printed("ENETUNREACH")?;
    ensure!(server.accepted() == 0, "it was reached");
    Ok(())
}

fn outbound_addr(ws: Workspace) -> Result<()> {
    let target = Target::new(ws)?;
    target.ws.lab.host.run("ip addr add 192.0.2.77/32 dev veth0")?;
    let remote = TcpServer::whoami(&target.ws.lab.remote, REMOTE[0])?.addr;
    let own = TcpServer::whoami(&target.ws.lab.host, IpAddr::V4(Ipv4Addr::LOCALHOST))?.addr;
    let cases = [
        ("--outbound-addr=192.0.2.77", REMOTE_V4.to_string(), remote, "192.0.2.77"),
        ("--outbound-addr=veth0", REMOTE_V4.to_string(), remote, "192.0.2.1"),
        ("--outbound-addr=127.0.0.1", "10.0.2.2".to_owned(), own, "127.0.0.1"),
    ];
    for (flag, to, server, want) in cases {
        let running = target.start(&format!("-c {flag}"), &target.pid())?;
        target
            .python(&format!("print(dial('{to}', {}).recv(99).decode())", server.port()))?
            .printed(want)
            .with_context(|| flag.to_owned())?;
        running.finish()?.succeeded()?;
    }
    Ok(())
}

/// The host's resolver changes, in the forwarder's mount namespace.
fn changed_resolver(ws: Workspace) -> Result<()> {
    let target = Target::new(ws)?;
    dns::serve(&target.ws.lab.remote, REMOTE[0])?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("resolv.conf");
    fs::write(&file, format!("nameserver {}\n", REMOTE[1]))?;
    let bind = format!(
        "mount --bind {} $(readlink -f /etc/resolv.conf) && exec \"$0\" -c -r 3 {} tap0 3>&1",
        file.display(),
        target.pid()
    );
    let words = ["unshare", "--mount", "sh", "-c", &bind, crate::lab::world::SLIRP4NETNS];
    let started = target.outside(words).deadline(Duration::from_secs(300)).start(&target.ws.lab.host)?;
    let _running = target.until_ready(started)?;
    let asks = "dig +short +time=1 +tries=1 @10.0.2.3 remote.lab";
    ensure!(target.sh(asks)?.stdout.trim() != REMOTE_V4.to_string(), "nobody serves at the first resolver");
    fs::write(&file, format!("nameserver {}\n", REMOTE[0]))?;
    poll("the new resolver", DEADLINE, || Ok((target.sh(asks)?.stdout.trim() == REMOTE_V4.to_string()).then_some(())))
}
