//! The API socket: what it answers, and whom it leaves alone.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::target::Target;
use crate::lab::command::DEADLINE;
use crate::lab::workspace::{Workspace, contains};
use crate::lab::{HOST_V4, poll};

crate::cases! {
    TAP: ports, errors, refused_ports, ports_soon_free, idle_clients, large_requests, vanishing_clients, replaces_its_socket;
}

/// A slirp4netns's API socket.
pub struct Api {
    path: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl Api {
    pub fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        // The caller may be another user than the lab's.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
        Ok(Self { path: dir.path().join("api.sock"), _dir: dir })
    }

    pub fn flag(&self) -> String {
        format!("--api-socket {}", self.path.display())
    }

    fn connect(&self) -> Result<UnixStream> {
        let stream = UnixStream::connect(&self.path)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        Ok(stream)
    }

    /// One request as Podman and RootlessKit make it.
    fn say(&self, request: &str) -> Result<String> {
        let mut stream = self.connect()?;
        stream.write_all(request.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        Ok(reply)
    }

    pub fn ask(&self, request: &Value) -> Result<Value> {
        let reply = self.say(&request.to_string())?;
        serde_json::from_str(&reply).with_context(|| format!("{request}: {reply}"))
    }

    pub fn add(&self, arguments: &Value) -> Result<Value> {
        self.ask(&json!({"execute": "add_hostfwd", "arguments": arguments}))
    }
}

fn is(got: &Value, want: &Value) -> Result<()> {
    ensure!(got == want, "{got} instead of {want}");
    Ok(())
}

/// As slirp4netns's manual says, and as slirp4netns does.
fn listed(entries: &Value) -> Value {
    json!({"return": {"entries": entries}, "entries": entries})
}

fn failed(why: &str) -> Value {
    json!({"error": {"desc": format!("bad request: {why}")}})
}

fn ports(ws: Workspace) -> Result<()> {
    let (target, api) = (Target::new(ws)?, Api::new()?);
    let _running = target.start(&format!("-c {}", api.flag()), &target.pid())?;
    let list = json!({"execute": "list_hostfwd"});
    let empty = listed(&json!([]));
    is(&api.ask(&list)?, &empty)?;
    is(&api.add(&json!({"proto": "tcp", "host_port": 8080, "guest_port": 80}))?, &json!({"return": {"id": 1}}))?;
    let udp = json!({"proto": "udp", "host_addr": "127.0.0.1", "host_port": 5353, "guest_addr": "10.0.2.15",
                     "guest_port": 53});
    is(&api.add(&udp)?, &json!({"return": {"id": 2}}))?;
    let first = json!({"id": 1, "proto": "tcp", "host_addr": "0.0.0.0", "host_port": 8080, "guest_addr": "10.0.2.100",
                       "guest_port": 80});
    let mut second = udp.clone();
    second["id"] = json!(2);
    is(&api.ask(&list)?, &listed(&json!([first, second])))?;
    let remove = |id: u64| api.ask(&json!({"execute": "remove_hostfwd", "arguments": {"id": id}}));
    is(&remove(1)?, &json!({"return": {}}))?;
    is(&remove(1)?, &failed("remove_hostfwd: bad arguments.id"))?;
    is(&remove(2)?, &json!({"return": {}}))?;
    is(&api.ask(&list)?, &empty)?;
    // What was removed is free at once.
    for id in 3..23 {
        is(&api.add(&udp)?, &json!({"return": {"id": id}}))?;
        is(&remove(id)?, &json!({"return": {}}))?;
    }
    // A client that keeps its end open is answered as soon as its request is whole.
    let mut stream = api.connect()?;
    stream.write_all(b"{\"execute\":")?;
    stream.write_all(b"\"list_hostfwd\"}\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    is(&serde_json::from_str(&reply)?, &empty)
}

fn errors(ws: Workspace) -> Result<()> {
    let (target, api) = (Target::new(ws)?, Api::new()?);
    let _running = target.start(&format!("-c {}", api.flag()), &target.pid())?;
    let add = |arguments: &str| format!("{{\"execute\":\"add_hostfwd\",\"arguments\":{arguments}}}");
    let cases = [
        ("badjson\n".to_owned(), "cannot parse JSON"),
        (String::new(), "cannot parse JSON"),
        ("{\"execute\":".to_owned(), "cannot parse JSON"),
        ("[1]".to_owned(), "json_object() failed"),
        ("{\"unexpectedjson\": 42}".to_owned(), "no execute found"),
        ("{\"execute\": \"bad\"}".to_owned(), "unknown execute"),
        ("{\"execute\": \"remove_hostfwd\", \"arguments\":{\"id\": 7}}".to_owned(), "remove_hostfwd: bad arguments.id"),
        ("{\"execute\": \"remove_hostfwd\"}".to_owned(), "remove_hostfwd: bad arguments.id"),
        (add("{\"proto\": \"bad\"}"), "add_hostfwd: bad arguments.proto"),
        (add("{}"), "add_hostfwd: bad arguments.proto"),
        (add("{\"proto\":\"tcp\",\"host_addr\":\"x\"}"), "add_hostfwd: bad arguments.host_addr"),
        (add("{\"proto\":\"tcp\"}"), "add_hostfwd: bad arguments.host_port"),
        (add("{\"proto\":\"tcp\",\"host_port\":1,\"guest_addr\":\"x\"}"), "add_hostfwd: bad arguments.guest_addr"),
        (add("{\"proto\":\"tcp\",\"host_port\":1}"), "add_hostfwd: bad arguments.guest_port"),
    ];
    for (request, why) in cases {
        let reply = api.say(&request)?;
        is(&serde_json::from_str(&reply).with_context(|| reply.clone())?, &failed(why)).context(request)?;
    }
    Ok(())
}

fn refused_ports(ws: Workspace) -> Result<()> {
    let (target, api) = (Target::new(ws)?, Api::new()?);
    let running = target.start(&format!("-c {}", api.flag()), &target.pid())?;
    let _taken = target.ws.lab.host.within(|| std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)))?;
    let add = |port: u16| api.add(&json!({"proto": "tcp", "host_port": port, "guest_port": 80}));
    is(&add(8080)?, &failed("add_hostfwd: slirp_add_hostfwd failed"))?;
    let elsewhere = json!({"proto": "tcp", "host_addr": "198.51.100.7", "host_port": 81, "guest_port": 80});
    is(&api.add(&elsewhere)?, &failed("add_hostfwd: slirp_add_hostfwd failed"))?;
    is(&add(8081)?, &json!({"return": {"id": 1}}))?;
    poll("the reason", DEADLINE, || Ok(running.stderr().contains("port 8080").then_some(())))?;
    contains(&running.stderr(), "is taken by")
}

/// A port of one that is about to end is waited for, as by Podman's restart.
fn ports_soon_free(ws: Workspace) -> Result<()> {
    let (target, api) = (Target::new(ws)?, Api::new()?);
    let _running = target.start(&format!("-c {}", api.flag()), &target.pid())?;
    let request = json!({"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_port": 8080, "guest_port": 80}});
    poll("a port that was freed in time", DEADLINE, || {
        let taken = target.ws.lab.host.within(|| std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)))?;
        let mut stream = api.connect()?;
        let begun = Instant::now();
        stream.write_all(request.to_string().as_bytes())?;
        stream.set_read_timeout(Some(Duration::from_millis(100)))?;
        let early = stream.read(&mut [0]);
        drop(taken);
        // It waits for a second, and so long it may have taken us to say so.
        let in_time = begun.elapsed() < Duration::from_millis(500);
        if in_time {
            ensure!(early.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "{early:?}");
        }
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        let added = serde_json::from_str::<Value>(&reply).is_ok_and(|reply| reply == json!({"return": {"id": 1}}));
        ensure!(added || !in_time, "{reply}");
        Ok(added.then_some(()))
    })
}

/// The API answers, and the network carries.
fn works(target: &Target, api: &Api, port: u16) -> Result<()> {
    let added = api.add(&json!({"proto": "tcp", "host_port": port, "guest_port": 80}))?;
    ensure!(added["return"]["id"].is_u64(), "{added}");
    let to = SocketAddr::from((HOST_V4, port));
    let mut stream = target.ws.lab.remote.within(|| TcpStream::connect_timeout(&to, DEADLINE))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    ensure!(said == "192.0.2.2", "{said}");
    Ok(())
}

/// Starts one whose namespace has a server at port 80 that tells each client its address.
fn with_server(ws: Workspace) -> Result<(Target, Api, [crate::lab::command::Running; 2])> {
    let (target, api) = (Target::new(ws)?, Api::new()?);
    let running = target.start(&format!("-c {}", api.flag()), &target.pid())?;
    let mut server = target
        .python_program(
            "s = tcp('0.0.0.0'); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('0.0.0.0', 80)); s.listen(64); say('ready')
while True:
    c, peer = s.accept(); c.sendall(peer[0].encode()); c.close()",
        )
        .deadline(Duration::from_secs(300))
        .start(&target.ws.lab.host)?;
    server.line_with("ready")?;
    Ok((target, api, [running, server]))
}

/// More of them than there is room for.
fn idle_clients(ws: Workspace) -> Result<()> {
    let (target, api, _running) = with_server(ws)?;
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(api.connect()?);
    }
    works(&target, &api, 8080)?;
    // Each is let go in the end.
    for mut stream in idle {
        ensure!(matches!(stream.read(&mut [0]), Ok(0)), "an idle client was answered");
    }
    works(&target, &api, 8081)
}

fn large_requests(ws: Workspace) -> Result<()> {
    let (target, api, _running) = with_server(ws)?;
    for byte in [b'\0', b' ', b'x'] {
        let mut stream = api.connect()?;
        let mut writer = stream.try_clone()?;
        let writing = std::thread::spawn(move || writer.write_all(&vec![byte; 1 << 20]));
        let mut reply = Vec::new();
        // The end may be a reset, as not all of it was read.
        let _end = stream.read_to_end(&mut reply);
        is(&serde_json::from_slice(&reply)?, &failed("too large message")).with_context(|| format!("{byte}"))?;
        drop(stream);
        ensure!(writing.join().is_ok(), "the writer panicked");
        works(&target, &api, 8080 + u16::from(byte))?;
    }
    Ok(())
}

fn vanishing_clients(ws: Workspace) -> Result<()> {
    let (target, api, _running) = with_server(ws)?;
    for round in 0..100 {
        let mut stream = api.connect()?;
        let request = b"{\"execute\":\"list_hostfwd\"}";
        // In the middle of the request, or before the answer.
        stream.write_all(&request[..request.len() - usize::from(round % 2 == 0)])?;
    }
    works(&target, &api, 8080)
}

/// Podman starts another at the same path.
fn replaces_its_socket(ws: Workspace) -> Result<()> {
    let (target, api) = (Target::new(ws)?, Api::new()?);
    for _ in 0..2 {
        let running = target.start(&format!("-c {}", api.flag()), &target.pid())?;
        is(&api.ask(&json!({"execute": "list_hostfwd"}))?, &listed(&json!([])))?;
        running.finish()?.succeeded()?;
    }
    Ok(())
}
