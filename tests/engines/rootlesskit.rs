//! RootlessKit with `--net=slirp4netns`: it makes the TAP itself and gives it away, and has two ways to publish ports.
//!
//! Debian 12's has no `--detach-netns`.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{HOST, LOOPBACK, REFUSED, answers, curl};
use crate::lab::command::{DEADLINE, Finished, Program, Running};
use crate::lab::login::Login;
use crate::lab::netns::Netns;
use crate::lab::servers::TcpServer;
use crate::lab::workspace::{Workspace, contains};
use crate::lab::world::SLIRP4NETNS;
use crate::lab::{Lab, REMOTE, REMOTE_V4, dns, poll};

crate::cases! {
    HOST_AS_USER: as_docker_starts_it, own_network, ports_by_api, host_loopback, restarted;
}

/// What dockerd-rootless.sh gives it.
const DOCKER: &[&str] = &[
    "--mtu=65520",
    "--slirp4netns-sandbox=auto",
    "--slirp4netns-seccomp=auto",
    "--disable-host-loopback",
    "--port-driver=builtin",
    "--copy-up=/etc",
    "--copy-up=/run",
    "--propagation=rslave",
];
/// Port 80 inside: each client is told the address it is seen with, over HTTP and in answer to any datagram.
const SERVER: &str = "import http.server, socket, threading
class Peer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(self.client_address[0].encode())
server = http.server.ThreadingHTTPServer(('', 80), Peer)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(('', 80))
def answer():
    while True:
        peer = udp.recvfrom(100)[1]
        udp.sendto(peer[0].encode(), peer)
threading.Thread(target=answer, daemon=True).start()
print('serving', flush=True)
server.serve_forever()";

struct Kit {
    login: Login,
}

impl Kit {
    fn new(lab: Lab) -> Result<Self> {
        dns::serve(&lab.remote, REMOTE[0])?;
        Ok(Self { login: Login::new(lab)? })
    }

    /// rootlesskit(1) running `argv` with a pid namespace, so that all of it ends with the first process; its own pid, as
    /// the user sees it, is the first line printed.
    fn program(&self, flags: &[&str], argv: &[&str]) -> Program {
        let binary = format!("--slirp4netns-binary={SLIRP4NETNS}");
        let kit = ["sh", "-c", "echo $$; exec rootlesskit \"$@\"", "sh", "--net=slirp4netns", "--pidns", &binary];
        let state = format!("--state-dir={}/state", self.login.home().display());
        self.login.program(kit.into_iter().chain([&*state]).chain(flags.iter().copied()).chain(argv.iter().copied()))
    }

    /// A shell script inside; what it prints.
    fn sh(&self, flags: &[&str], script: &str) -> Result<Finished> {
        let mut done = self.program(flags, &["sh", "-c", script]).run(&self.login.lab.host)?;
        if let Some((_pid, printed)) = done.stdout.split_once('\n') {
            done.stdout = printed.to_owned();
        }
        Ok(done)
    }

    /// The server inside, and rootlesskit's pid.
    fn serve(&self, flags: &[&str]) -> Result<(Running, String)> {
        let mut running = self.program(flags, &["/usr/bin/python3", "-c", SERVER]).start(&self.login.lab.host)?;
        let pid = running.line()?;
        running.line_with("serving").with_context(|| running.stderr())?;
        Ok((running, pid))
    }

    /// rootlessctl(1), its words split at blanks.
    fn control(&self, line: &str) -> Result<Finished> {
        let socket = self.login.home().join("state/api.sock").display().to_string();
        self.login.run(["rootlessctl", "--socket", &socket].into_iter().chain(line.split_whitespace()))
    }

    /// Ends rootlesskit as systemd does. Nothing is left.
    fn terminate(&self, (running, pid): (Running, String)) -> Result<()> {
        self.login.run(["kill", &pid])?.succeeded()?;
        running.finish()?;
        self.login.leaves_nothing()
    }
}

/// What the server answers to a datagram, which may be lost while its port is new.
fn datagram(from: &Netns, addr: IpAddr, port: u16) -> Result<String> {
    let socket = from.within(|| UdpSocket::bind("0.0.0.0:0"))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    poll("an answer to a datagram", DEADLINE, || {
        socket.send_to(b"who am I?", (addr, port))?;
        let mut answer = [0; 100];
        let Ok((length, from)) = socket.recv_from(&mut answer) else { return Ok(None) };
        ensure!(from == SocketAddr::new(addr, port), "answered by {from}");
        Ok(Some(String::from_utf8_lossy(&answer[..length]).into_owned()))
    })
}

fn as_docker_starts_it(ws: Workspace) -> Result<()> {
    let http = TcpServer::http(&ws.lab.remote, REMOTE[0])?;
    let kit = Kit::new(ws.lab)?;
    let script = format!(
        "ping -n -c 1 -W 10 {REMOTE_V4} >/dev/null && cat /sys/class/net/tap0/mtu /etc/resolv.conf &&
curl -sS http://remote.lab:{}/",
        http.addr.port()
    );
    kit.sh(DOCKER, &script)?.printed("65520\nnameserver 10.0.2.3\nhello")?;

    let lab = &kit.login.lab;
    let published = ["--publish=0.0.0.0:8080:80/tcp", "--publish=0.0.0.0:8080:80/udp"];
    let serving = kit.serve(&[DOCKER, &published].concat())?;
    answers(&lab.remote, HOST, 8080, "")?;
    datagram(&lab.remote, HOST, 8080)?;
    kit.control("add-ports 127.0.0.1:8081:80/tcp")?.succeeded()?;
    answers(&lab.host, LOOPBACK, 8081, "")?;
    curl(&lab.remote, HOST, 8081, "")?.exited(REFUSED)?;
    kit.terminate(serving)
}

/// Address, MTU and IPv6 as asked for.
fn own_network(ws: Workspace) -> Result<()> {
    let http = TcpServer::http(&ws.lab.remote, REMOTE[1])?;
    let kit = Kit::new(ws.lab)?;
    let script = format!(
        "cat /sys/class/net/tap0/mtu; ip -4 -o addr show tap0; cat /etc/resolv.conf
until [ \"$(ip -6 addr show dev tap0 scope global -tentative)\" ]; do sleep 0.05; done; curl -sS http://{}/",
        http.addr
    );
    let flags = ["--mtu=1500", "--cidr=10.9.8.0/24", "--ipv6", "--copy-up=/etc", "--disable-host-loopback"];
    let done = kit.sh(&flags, &script)?.succeeded()?;
    for needle in ["1500\n", "inet 10.9.8.100/24", "nameserver 10.9.8.3", "hello"] {
        contains(&done.stdout, needle)?;
    }
    kit.login.leaves_nothing()
}

/// `--port-driver=slirp4netns`, which is the JSON API: clients keep their addresses.
fn ports_by_api(ws: Workspace) -> Result<()> {
    let kit = Kit::new(ws.lab)?;
    let lab = &kit.login.lab;
    let flags = ["--port-driver=slirp4netns", "--publish=0.0.0.0:8080:80/tcp", "--slirp4netns-sandbox=true"];
    let serving = kit.serve(&[&flags[..], &["--slirp4netns-seccomp=true", "--copy-up=/etc"]].concat())?;
    ensure!(answers(&lab.remote, HOST, 8080, "")? == REMOTE_V4.to_string());
    answers(&lab.host, LOOPBACK, 8080, "")?;

    kit.control("add-ports 0.0.0.0:8080:80/udp")?.printed("2")?;
    ensure!(datagram(&lab.remote, HOST, 8080)? == REMOTE_V4.to_string());
    datagram(&lab.host, LOOPBACK, 8080)?;

    let taken = lab.host.within(|| TcpListener::bind((LOOPBACK, 0)))?;
    let refused = kit.control(&format!("add-ports {}:80/tcp", taken.local_addr()?))?;
    contains(&refused.exited(1)?.stderr, "slirp_add_hostfwd failed")?;
    kit.control("add-ports 127.0.0.1:8081:80/tcp")?.printed("3")?;
    answers(&lab.host, LOOPBACK, 8081, "")?;
    curl(&lab.remote, HOST, 8081, "")?.exited(REFUSED)?;
    contains(&kit.control("list-ports")?.succeeded()?.stdout, "8081")?;
    kit.control("remove-ports 3")?.succeeded()?;
    curl(&lab.host, LOOPBACK, 8081, "")?.exited(REFUSED)?;
    answers(&lab.remote, HOST, 8080, "")?;
    kit.terminate(serving)
}

fn host_loopback(ws: Workspace) -> Result<()> {
    let server = TcpServer::http(&ws.lab.host, LOOPBACK)?;
    let kit = Kit::new(ws.lab)?;
    let get = format!("busybox wget -q -O- http://10.0.2.2:{}/", server.addr.port());
    kit.sh(&[], &get)?.printed("hello")?;
    let refused = kit.sh(&["--disable-host-loopback"], &get)?.exited(1)?;
    contains(&refused.stderr, "Network is unreachable")?;
    kit.login.leaves_nothing()
}

/// What a killed parent leaves does not stop the next one with the same state and ports.
fn restarted(ws: Workspace) -> Result<()> {
    let kit = Kit::new(ws.lab)?;
    let lab = &kit.login.lab;
    let flags = [DOCKER, &["--publish=0.0.0.0:8080:80/tcp"]].concat();
    let (running, pid) = kit.serve(&flags)?;
    answers(&lab.remote, HOST, 8080, "")?;
    kit.login.run(["kill", "-KILL", &pid])?.succeeded()?;
    running.finish()?;
    kit.login.leaves_nothing()?;
    let serving = kit.serve(&flags)?;
    answers(&lab.remote, HOST, 8080, "")?;
    kit.terminate(serving)
}
