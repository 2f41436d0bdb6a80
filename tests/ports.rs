//! Published ports: clients of the host and of other hosts reach what listens in the workspace, and nothing else.

pub mod datagrams;
pub mod lifetime;
pub mod loopback;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};

use anyhow::{Context as _, Result, ensure};

use crate::configuration::LEASED;
use crate::lab::command::{DEADLINE, Running};
use crate::lab::netns::Netns;
use crate::lab::workspace::{Caller, Workspace, contains};
use crate::lab::{HOST_V4, HOST_V6, REMOTE, poll};
use datagrams::udp_client;
use loopback::spliced;

crate::cases! {
    EVERY_WAY: remote_clients, refused;
    BOTH_PATHS: only_what_was_asked_for, nobody_there, many_clients;
    TAP: follows_the_workspace;
    USER: listed;
}

const HOST: [IpAddr; 2] = [IpAddr::V4(HOST_V4), IpAddr::V6(HOST_V6)];
const LOOPBACK: [&str; 2] = ["127.0.0.1", "::1"];

/// Starts a workspace that serves the addresses and ports given: each client is told its own address as the server sees
/// it, in a line, and then gets back what it sends.
fn serve(ws: &Workspace, at: &[(&str, u16)]) -> Result<Running> {
    serve_after("", ws, at)
}

/// The same once a shell script has run inside.
fn serve_after(script: &str, ws: &Workspace, at: &[(&str, u16)]) -> Result<Running> {
    let mut running = ws.start_python(&format!(
        "os.system({script:?})
def serve(c, peer):
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

/// A port without an address leads to the workspace wherever it is: at an address of DHCP's, or one set by hand.
fn follows_the_workspace(ws: Workspace) -> Result<()> {
    let leased = format!("exec > /dev/null 2>&1\n{LEASED}\nip addr flush dev tap0; $udhcpc -s $script");
    let by_hand = "ip addr flush dev tap0; ip addr add 10.0.2.50/24 dev tap0; ip route add default via 10.0.2.2
ping -c1 -W10 10.0.2.2 > /dev/null";
    for (script, own) in [(&*leased, "10.0.2.15"), (by_hand, "10.0.2.50")] {
        let ws = Workspace::new(ws.way)?.flag("-p=8080:80");
        let _running = serve_after(script, &ws, &ANYWHERE)?;
        let name = known_as(&ws.lab.remote, (HOST[0], 8080))?;
        ensure!(name == REMOTE[0].to_string(), "{} is known as {name} at {own}", REMOTE[0]);
        // Until there are sockets inside, by the gateway's.
        poll("a spliced connection", DEADLINE, || {
            let name = known_as(&ws.lab.host, (IpAddr::from([127, 0, 0, 1]), 8080))?;
            ensure!(name == own || name == "10.0.2.2", "known as {name} at {own}");
            Ok((name == own).then_some(()))
        })?;
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
