//! Published ports: clients of the host and of other hosts reach what listens in the workspace, and nothing else.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::lab::command::{DEADLINE, Running};
use crate::lab::netns::Netns;
use crate::lab::processes::Tree;
use crate::lab::workspace::{Caller, Workspace, contains};
use crate::lab::world::SIDESTEP;
use crate::lab::{HOST_V4, HOST_V6, REMOTE, poll};

crate::cases! {
    EVERY_WAY: remote_clients, datagrams, refused, at_run_time;
    BOTH_PATHS: published_by_itself, loopback_inside, only_what_was_asked_for, nobody_there, many_clients, after_the_workspace;
    TAP: loopback_clients;
    USER: loopback_resets, listed, forwarder_killed;
}

const HOST: [IpAddr; 2] = [IpAddr::V4(HOST_V4), IpAddr::V6(HOST_V6)];
const LOOPBACK: [&str; 2] = ["127.0.0.1", "::1"];

/// Starts a workspace that serves the addresses and ports given: each client is told its own address as the server sees
/// it, in a line, and then gets back what it sends.
fn serve(ws: &Workspace, at: &[(&str, u16)]) -> Result<Running> {
    let mut running = ws.start_python(&format!(
        "def serve(c, peer):
    try:
        c.sendall((peer[0] + '\\n').encode())
        while True:
            got = c.recv(65536)
            if not got: break
            c.sendall(got)
        c.close()
    except OSError: pass
def accept(s):
    while True: threading.Thread(target=serve, args=s.accept(), daemon=True).start()
for addr, port in {at:?}:
    s = tcp(addr)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if addr == '::': s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((addr, port)); s.listen(512)
    threading.Thread(target=accept, args=[s], daemon=True).start()
say('ready')
sys.stdin.read()"
    ))?;
    running.line_with("ready").with_context(|| running.stderr())?;
    Ok(running)
}

const ANYWHERE: [(&str, u16); 2] = [("0.0.0.0", 80), ("::", 80)];

fn connect(from: &Netns, to: impl Into<SocketAddr> + Send) -> Result<TcpStream> {
    let to = to.into();
    let stream =
        from.within(|| TcpStream::connect_timeout(&to, DEADLINE)).with_context(|| format!("connect to {to}"))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok(stream)
}

fn line(stream: &mut TcpStream) -> Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    Ok(String::from_utf8(line)?)
}

/// What the server calls the client of a new connection.
fn known_as(from: &Netns, to: impl Into<SocketAddr> + Send) -> Result<String> {
    line(&mut connect(from, to)?)
}

/// Some megabytes there and back at the same time, ended by the client's half-close.
fn comes_back_whole(mut stream: TcpStream) -> Result<()> {
    let sent: Vec<u8> = (0..5_000_011u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let mut writer = stream.try_clone()?;
    let data = sent.clone();
    let writing = std::thread::spawn(move || -> std::io::Result<()> {
        writer.write_all(&data)?;
        writer.shutdown(Shutdown::Write)
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).with_context(|| format!("after {} bytes", got.len()))?;
    writing.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    ensure!(got == sent, "{} bytes of {} came back, or others", got.len(), sent.len());
    Ok(())
}

fn remote_clients(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=8080:80");
    let _running = serve(&ws, &ANYWHERE)?;
    for (remote, host) in REMOTE.into_iter().zip(HOST) {
        let mut stream = connect(&ws.lab.remote, (host, 8080))?;
        let name = line(&mut stream)?;
        ensure!(name == remote.to_string(), "{remote} is known as {name}");
        comes_back_whole(stream).with_context(|| remote.to_string())?;
    }
    Ok(())
}

fn loopback_clients(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=8080:80");
    let _running = serve(&ws, &ANYWHERE)?;
    for addr in LOOPBACK {
        comes_back_whole(spliced(&ws, addr, 8080)?).with_context(|| addr.to_owned())?;
    }
    // The host's other addresses are kept, as everybody's.
    let name = known_as(&ws.lab.host, (HOST[0], 8080))?;
    ensure!(name == HOST_V4.to_string(), "the host is known as {name}");
    Ok(())
}

/// A connection from the host's loopback that does not pass the TAP, which it may for as long as the forwarder has no
/// sockets inside: the client is known by the workspace's own address, not by the gateway's.
fn spliced(ws: &Workspace, addr: &str, port: u16) -> Result<TcpStream> {
    let to: IpAddr = addr.parse()?;
    let (own, gateway) = if to.is_ipv4() { ("10.0.2.100", "10.0.2.2") } else { ("fd00::64", "fd00::2") };
    poll("a spliced connection", DEADLINE, || {
        let mut stream = connect(&ws.lab.host, (to, port))?;
        let name = line(&mut stream)?;
        ensure!(name == own || name == gateway, "{addr} is known as {name}");
        Ok((name == own).then_some(stream))
    })
}

/// Who is reset at one end is at the other, be it by the client, the server, or the forwarder's death.
fn loopback_resets(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=8080:80");
    let mut running = ws.start_python(
        "import struct
l = tcp('0.0.0.0'); l.bind(('0.0.0.0', 80)); l.listen(9); say('ready')
while True:
    c, peer = l.accept(); c.sendall((peer[0] + '\\n').encode())
    what = c.recv(9)
    if what == b'reset': c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); c.close()
    if what == b'wait': say('waits'); say(outcome(lambda: c.recv(9)))",
    )?;
    running.line_with("ready")?;
    let mut stream = spliced(&ws, LOOPBACK[0], 8080)?;
    stream.write_all(b"reset")?;
    let end = stream.read(&mut [0]).map_err(|error| error.kind());
    ensure!(end == Err(std::io::ErrorKind::ConnectionReset), "{end:?}");

    let mut stream = spliced(&ws, LOOPBACK[0], 8080)?;
    stream.write_all(b"wait")?;
    running.line_with("waits")?;
    nix::sys::socket::setsockopt(
        &stream,
        nix::sys::socket::sockopt::Linger,
        &libc::linger { l_onoff: 1, l_linger: 0 },
    )?;
    drop(stream);
    let said = running.line()?;
    ensure!(said == "ECONNRESET", "{said}");

    let mut stream = spliced(&ws, LOOPBACK[0], 8080)?;
    stream.write_all(b"wait")?;
    running.line_with("waits")?;
    let tree = Tree::of(running.pid())?;
    tree.worker("forwarder")?.kill(Signal::SIGKILL)?;
    let said = running.line()?;
    ensure!(said == "ECONNRESET", "{said}");
    let end = stream.read(&mut [0]).map_err(|error| error.kind());
    ensure!(end == Err(std::io::ErrorKind::ConnectionReset), "{end:?}");
    // The next one has sockets again.
    drop(spliced(&ws, LOOPBACK[0], 8080)?);
    Ok(())
}

/// What listens on the loopback inside is reached where that is asked for, from anywhere.
fn loopback_inside(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=8080:127.0.0.1:84");
    let _running = serve(&ws, &[("127.0.0.1", 84)])?;
    for (from, to) in [(&ws.lab.host, LOOPBACK[0].parse()?), (&ws.lab.remote, HOST[0])] {
        // Until the forwarder has sockets inside there is no way, and a reset.
        let stream = poll("a connection to the loopback inside", DEADLINE, || {
            let mut stream = connect(from, (to, 8080))?;
            Ok(line(&mut stream).is_ok_and(|name| name == "127.0.0.1").then_some(stream))
        })?;
        comes_back_whole(stream)?;
    }
    Ok(())
}

/// Clients keep their address, answers come from the address that was written to, and from nowhere else.
fn datagrams(ws: Workspace) -> Result<()> {
    let second: IpAddr = "192.0.2.7".parse()?;
    ws.lab.host.run("ip addr add 192.0.2.7/24 dev veth0 noprefixroute")?;
    let ws = ws.flag("-p=5300:53/udp").flag("-p=192.0.2.7:5301:53/udp").flag("-p=5302:54/udp");
    let mut running = ws.start_python(
        "def serve(s):
    while True:
        got, peer = s.recvfrom(65536)
        s.sendto(peer[0].encode() + b' ' + got, peer)
for addr, port in ('0.0.0.0', 53), ('::', 53), ('127.0.0.1', 54):
    s = socket.socket(family(addr), socket.SOCK_DGRAM)
    if addr == '::': s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((addr, port)); threading.Thread(target=serve, args=[s], daemon=True).start()
say('ready'); sys.stdin.read()",
    )?;
    running.line_with("ready")?;
    let [remote_v4, remote_v6] = REMOTE;
    let loopback: [IpAddr; 2] = [LOOPBACK[0].parse()?, LOOPBACK[1].parse()?];
    let cases = [
        (&ws.lab.remote, HOST[0], 5300, remote_v4.to_string()),
        (&ws.lab.remote, HOST[1], 5300, remote_v6.to_string()),
        (&ws.lab.remote, second, 5300, remote_v4.to_string()),
        (&ws.lab.remote, second, 5301, remote_v4.to_string()),
        (&ws.lab.host, loopback[0], 5300, "10.0.2.2".to_owned()),
        (&ws.lab.host, loopback[1], 5300, "fd00::2".to_owned()),
    ];
    for (from, to, port, name) in cases {
        let socket = udp_client(from, to, port)?;
        for size in [0, 1, 1400, 4000] {
            let sent = vec![b'x'; size];
            socket.send(&sent)?;
            let mut got = vec![0; 65536];
            let count = socket.recv(&mut got).with_context(|| format!("{size} bytes to {to}:{port}"))?;
            let want = [name.as_bytes(), b" ", &sent].concat();
            ensure!(got[..count] == want, "{} from {to}:{port}", String::from_utf8_lossy(&got[..count.min(99)]));
        }
    }
    // Neither what was not asked for nor what listens on the loopback inside.
    for (to, port) in [(HOST[0], 5301), (HOST[0], 5302)] {
        let socket = udp_client(&ws.lab.remote, to, port)?;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        socket.send(b"x")?;
        ensure!(socket.recv(&mut [0; 99]).is_err(), "{to}:{port} answers");
    }
    Ok(())
}

fn udp_client(from: &Netns, to: IpAddr, port: u16) -> Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { "0.0.0.0".parse()? } else { "::".parse()? };
    let socket = from.within(|| -> std::io::Result<_> {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((to, port))?;
        Ok(socket)
    })?;
    socket.set_read_timeout(Some(DEADLINE))?;
    Ok(socket)
}

/// Address and protocol as they were given, ranges one to one, and nothing that listens on the workspace's loopback
/// unless that was asked for.
fn only_what_was_asked_for(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=192.0.2.1:9000-9002:80-82").flag("-p=9004:84");
    let _running = serve(&ws, &[("0.0.0.0", 80), ("0.0.0.0", 82), ("127.0.0.1", 84)])?;
    for (port, served) in [(9000, true), (9001, false), (9002, true), (9004, false)] {
        let name = known_as(&ws.lab.remote, (HOST[0], port));
        ensure!(name.is_ok_and(|name| name == REMOTE[0].to_string()) == served, "port {port}");
    }
    for (addr, port) in [(LOOPBACK[0], 9000), (LOOPBACK[0], 80), (LOOPBACK[1], 9000)] {
        let to = SocketAddr::new(addr.parse()?, port);
        let refused = ws.lab.host.within(|| TcpStream::connect_timeout(&to, DEADLINE)).is_err();
        ensure!(refused, "{to} is open");
    }
    Ok(())
}

/// A client of a port where nobody listens inside gets a reset; one of the other family is served all the same.
fn nobody_there(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=8080:80").flag("-p=8081:81").flag("-p=8082:82");
    let _running = serve(&ws, &[("0.0.0.0", 80), ("::", 81)])?;
    for host in HOST {
        // As early as connect, where the reset is as fast.
        let to = SocketAddr::new(host, 8082);
        let connected = ws.lab.remote.within(|| TcpStream::connect_timeout(&to, DEADLINE));
        let end = connected.and_then(|mut stream| stream.read(&mut [0])).map_err(|error| error.kind());
        ensure!(end == Err(std::io::ErrorKind::ConnectionReset), "{end:?}");
    }
    // Under the bypass the forwarder leads them on to where the server listens on the host.
    let (v4, v6) = (HOST[0].to_string(), HOST[1].to_string());
    let names = if ws.bypasses() { [v4.as_str(), &v6] } else { ["10.0.2.2", "fd00::2"] };
    for (host, port, name) in [(HOST[1], 8080, names[0]), (HOST[0], 8081, names[1])] {
        let known = known_as(&ws.lab.remote, (host, port))?;
        ensure!(known == name, "{known}, not {name}");
    }
    Ok(())
}

/// More at once than a turn accepts, to one port through two, so that some clients' ports are the same.
fn many_clients(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=8080-8081:80-81").flag("-p=8082:80");
    let _running = serve(&ws, &ANYWHERE)?;
    let mut streams = Vec::new();
    for n in 0..300 {
        streams.push(connect(&ws.lab.remote, (HOST[0], if n % 2 == 0 { 8080 } else { 8082 }))?);
    }
    for (n, stream) in streams.iter_mut().enumerate() {
        ensure!(line(stream)? == REMOTE[0].to_string(), "client {n}");
        stream.write_all(&n.to_be_bytes())?;
    }
    for (n, mut stream) in streams.into_iter().enumerate() {
        let mut got = [0; 8];
        stream.read_exact(&mut got)?;
        ensure!(got == n.to_be_bytes(), "client {n} got {got:?}");
    }
    Ok(())
}

/// Clients are among the flows of the control socket, whichever way they come in.
fn listed(ws: Workspace) -> Result<()> {
    let dir = format!("/tmp/listed-{}", ws.way);
    let ws = ws.flag("-p=8080:80").flag("-p=5300:53/udp").flag(format!("--state-dir={dir}"));
    let running = serve(&ws, &ANYWHERE)?;
    let mut over_the_tap = connect(&ws.lab.remote, (HOST[0], 8080))?;
    line(&mut over_the_tap)?;
    let mut past_it = spliced(&ws, LOOPBACK[0], 8080)?;
    for stream in [&mut over_the_tap, &mut past_it] {
        stream.write_all(b"1234567")?;
        stream.read_exact(&mut [0; 7])?;
    }
    let datagrams = udp_client(&ws.lab.remote, HOST[0], 5300)?;
    datagrams.send(b"12345")?;
    // What the server has said: the client's name, and seven bytes.
    let wanted = [
        ("tcp", 80, over_the_tap.local_addr()?, "open", REMOTE[0].to_string().len() + 8, 7),
        ("tcp", 80, past_it.local_addr()?, "open", "10.0.2.100".len() + 8, 7),
        ("udp", 53, datagrams.local_addr()?, "opening", 0, 5),
    ];
    let socket = format!("{dir}/control.sock");
    let curl = ["curl", "-sS", "--max-time", "20", "--unix-socket", &socket, "http://sidestep/v1/flows"];
    poll("all are listed", DEADLINE, || {
        let listed: serde_json::Value = serde_json::from_str(&ws.beside(&running, curl).run(&ws.lab.host)?.output()?)?;
        let flows = listed["flows"].as_array().context("no flows")?;
        let is_listed = |&(protocol, port, client, state, said, heard): &(&str, u16, SocketAddr, &str, usize, u64)| {
            flows.iter().any(|flow| {
                flow["protocol"] == protocol
                    && flow["guest"] == format!("10.0.2.100:{port}")
                    && flow["remote"] == client.to_string()
                    && flow["state"] == state
                    && flow["from_tap"] == said
                    && flow["to_tap"] == heard
            })
        };
        Ok(wanted.iter().all(is_listed).then_some(()))
    })?;
    running.finish()?.succeeded()?;
    Ok(())
}

/// The sockets outlive the forwarder: who comes meanwhile waits.
fn forwarder_killed(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=8080:80");
    let running = serve(&ws, &ANYWHERE)?;
    let mut before = connect(&ws.lab.remote, (HOST[0], 8080))?;
    line(&mut before)?;
    let tree = Tree::of(running.pid())?;
    let victim = tree.worker("forwarder")?;
    victim.kill(Signal::SIGKILL)?;
    poll("the forwarder is gone", Duration::from_secs(10), || Ok((!victim.is_alive()).then_some(())))?;
    let name = known_as(&ws.lab.remote, (HOST[0], 8080)).with_context(|| running.stderr())?;
    ensure!(name == REMOTE[0].to_string(), "known as {name}");
    let lost = before.read(&mut [0]).map_err(|error| error.kind());
    ensure!(lost == Err(std::io::ErrorKind::ConnectionReset), "{lost:?}");
    Ok(())
}

/// The port is free again at once, though connections of the last workspace are in TIME-WAIT.
fn after_the_workspace(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=8080:80");
    for _ in 0..2 {
        let running = serve(&ws, &ANYWHERE)?;
        ensure!(known_as(&ws.lab.remote, (HOST[0], 8080))? == REMOTE[0].to_string());
        running.finish()?.succeeded()?;
    }
    Ok(())
}

/// `sidestep ports`, from the caller's side.
fn at_run_time(ws: Workspace) -> Result<()> {
    let dir = format!("/tmp/ports-{}", ws.way);
    let ws = ws.flag("-p=8080:80").flag(format!("--state-dir={dir}"));
    // At an address: a server that is on the host already does not know its clients at a port added later.
    let running = serve(&ws, &[("10.0.2.100", 80)])?;
    let ports = |arguments: &[&str]| {
        let words = [SIDESTEP, "ports", "--state-dir", &dir];
        ws.beside(&running, words.into_iter().chain(arguments.iter().copied())).run(&ws.lab.host)
    };
    let known = |port: u16| Ok::<_, anyhow::Error>(known_as(&ws.lab.remote, (HOST[0], port))? == REMOTE[0].to_string());
    ports(&["list"])?.printed("1  tcp  *:8080 -> :80  start")?;
    ports(&["add", "192.0.2.1:8081-8082:80-81"])?
        .printed("2  tcp  192.0.2.1:8081 -> :80  added\n3  tcp  192.0.2.1:8082 -> :81  added")?;
    let served = |port: u16| poll("the port is served", DEADLINE, || Ok(known(port).unwrap_or(false).then_some(())));
    served(8081)?;
    for (arguments, says) in [
        (&["add", "8081:80"][..], "port 8081 is "),
        (&["add", "9000-9001:80"], "both ranges need the same length"),
        (&["remove", "9"], "no published port has the number 9"),
        (&["remove", "1"], "port 8080 was given to `sidestep run`"),
    ] {
        contains(&ports(arguments)?.exited(125)?.stderr, says)?;
    }
    for worker in ["supervisor", "forwarder"] {
        let tree = Tree::of(running.pid())?;
        let victim = tree.worker(worker)?;
        victim.kill(Signal::SIGKILL)?;
        poll("the worker is gone", DEADLINE, || Ok((!victim.is_alive()).then_some(())))?;
        served(8081).with_context(|| format!("{worker} killed: {}", running.stderr()))?;
        // One that lists them has them from the forwarder, which may then die as well.
        let listed = poll("the supervisor answers", DEADLINE, || {
            let done = ports(&["list", "--json"])?;
            Ok(done.status.success().then_some(done.stdout))
        })?;
        let listed: serde_json::Value = serde_json::from_str(&listed)?;
        ensure!(listed.as_array().is_some_and(|all| all.len() == 3) && listed[1]["host_port"] == 8081, "{listed}");
    }
    ports(&["remove", "2", "3"])?.printed("")?;
    let to = SocketAddr::new(HOST[0], 8081);
    poll("the port is closed", DEADLINE, || {
        Ok(ws.lab.remote.within(|| TcpStream::connect_timeout(&to, DEADLINE)).is_err().then_some(()))
    })?;
    ensure!(known(8080)?);
    running.finish()?.succeeded()?;
    Ok(())
}

/// What begins to listen inside is published until it stops, whoever of ours dies meanwhile.
fn published_by_itself(ws: Workspace) -> Result<()> {
    let _taken = ws.lab.host.within(|| std::net::TcpListener::bind("192.0.2.1:5002"))?;
    let ws = ws.flag("--publish-auto").flag("-p=5003:80");
    let mut running = ws.start_python(
        "listening = {}
def accept(s):
    try:
        while True:
            c, peer = s.accept(); c.sendall((peer[0] + '\\n').encode()); c.close()
    except OSError: pass
for line in sys.stdin:
    what, addr, port = line.split()
    if what == 'listen':
        s = listening[port] = tcp(addr); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind((addr, int(port))); s.listen()
        threading.Thread(target=accept, args=[s], daemon=True).start()
    else:
        # Closing alone leaves it to the thread that waits in accept.
        s = listening.pop(port); s.shutdown(socket.SHUT_RDWR); s.close()
    say('done')",
    )?;
    let inside = |running: &mut Running, order: &str| -> Result<()> {
        running.write(&format!("{order}\n"))?;
        running.line_with("done").map(drop)
    };
    let remote = &ws.lab.remote;
    let served = |port: u16| {
        poll(&format!("port {port} is served"), DEADLINE, || {
            let name = known_as(remote, (HOST[0], port)).unwrap_or_default();
            // What listens at :: sees IPv4 addresses in IPv6 ones.
            Ok((name.trim_start_matches("::ffff:") == REMOTE[0].to_string()).then_some(()))
        })
    };
    let is_closed = |port: u16| {
        let to = SocketAddr::new(HOST[0], port);
        remote.within(|| TcpStream::connect_timeout(&to, DEADLINE)).is_err()
    };
    for order in ["127.0.0.1 5001", "0.0.0.0 5002", "0.0.0.0 5003", "0.0.0.0 1000", "0.0.0.0 5000", ":: 5004"] {
        inside(&mut running, &format!("listen {order}"))?;
    }
    served(5000).with_context(|| running.stderr())?;
    served(5004)?;
    ensure!(is_closed(5001) && is_closed(1000), "what was not to be published is");
    let said = running.stderr();
    ensure!(said.matches("warning: --publish-auto: port 5002 is taken by").count() == 1, "{said}");
    ensure!(!said.contains("5003 is"), "{said}");
    for worker in ["supervisor", "forwarder"] {
        let tree = Tree::of(running.pid())?;
        let victim = tree.worker(worker)?;
        victim.kill(Signal::SIGKILL)?;
        poll("the worker is gone", DEADLINE, || Ok((!victim.is_alive()).then_some(())))?;
        served(5000).with_context(|| format!("{worker} killed: {}", running.stderr()))?;
        served(5004)?;
        inside(&mut running, "listen 0.0.0.0 5005")?;
        served(5005)?;
        inside(&mut running, "close 0.0.0.0 5005")?;
        poll("port 5005 is closed", DEADLINE, || Ok(is_closed(5005).then_some(())))?;
    }
    inside(&mut running, "close 0.0.0.0 5000")?;
    poll("port 5000 is closed", DEADLINE, || Ok(is_closed(5000).then_some(())))?;
    served(5004)
}

/// Each in one sentence, before anything is made.
fn refused(ws: Workspace) -> Result<()> {
    let mut cases = vec![
        ("8080:80", "port 8080 is taken by exe (process "),
        ("127.0.0.1:8080:80", "port 8080 on 127.0.0.1 is taken by exe (process "),
        ("203.0.113.7:8080:80", "this host has no such address"),
        ("8000-9000:8000-9000", "1001 ports, and 512 are possible"),
    ];
    if ws.way.caller == Caller::User {
        cases[0].1 = "port 8080 is taken by";
        cases[1].1 = "port 8080 on 127.0.0.1 is taken by";
        cases.push(("80:80", "net.ipv4.ip_unprivileged_port_start=80"));
    }
    for (publish, says) in cases {
        let ws = Workspace::new(ws.way)?;
        let taken = ws.lab.host.within(|| std::net::TcpListener::bind("127.0.0.1:8080"))?;
        let done = ws.flag(format!("--publish={publish}")).run(["true"])?.exited(125)?;
        contains(&done.stderr, says)?;
        drop(taken);
    }
    let done = ws.flag("-p=8080").run(["true"])?.exited(125)?;
    contains(&done.stderr, "not [IP:]PORT[-PORT]:PORT[-PORT]")
}
