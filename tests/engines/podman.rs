//! Rootless Podman with `network_cmd_path`: containers of an image made here, out of busybox.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::{HOST, LOOPBACK, answers, curl, image, is_closed};
use crate::lab::command::Finished;
use crate::lab::login::Login;
use crate::lab::servers::{BIG, TcpServer};
use crate::lab::workspace::{Workspace, contains};
use crate::lab::world::SLIRP4NETNS;
use crate::lab::{REMOTE, REMOTE_V4, dns};

crate::cases! {
    HOST_AS_USER: outgoing, own_network, published, published_by_api, host_loopback, two_at_once;
}

/// crun, because runc takes no container without cgroups; file locks, because others are in /dev/shm, which is everybody's;
/// NET_RAW, because busybox's ping knows raw sockets only.
const CONTAINERS_CONF: &str = "[engine]
network_cmd_path = 'SLIRP4NETNS'
cgroup_manager = 'cgroupfs'
events_logger = 'file'
lock_type = 'file'
runtime = 'crun'
[containers]
cgroups = 'disabled'
default_capabilities = ['NET_BIND_SERVICE', 'NET_RAW']
log_driver = 'k8s-file'
";
/// A user with one id cannot give files to another.
const STORAGE_CONF: &str = "[storage]
driver = 'vfs'
[storage.options]
ignore_chown_errors = 'true'
";

/// A user with the image `box`, which is an HTTP server unless it is told to be something else.
struct Podman {
    login: Login,
}

impl Podman {
    fn new(ws: Workspace) -> Result<Self> {
        dns::serve(&ws.lab.remote, REMOTE[0])?;
        let login = Login::new(ws.lab)?;
        let configuration = login.home().join(".config/containers");
        // By the user, who has more to put there.
        login.run([Path::new("mkdir"), Path::new("-p"), &configuration])?.succeeded()?;
        let containers = CONTAINERS_CONF.replace("SLIRP4NETNS", SLIRP4NETNS);
        fs::write(configuration.join("containers.conf"), containers)?;
        fs::write(configuration.join("storage.conf"), STORAGE_CONF)?;
        let tree = login.home().join("box");
        image(&tree).context("make the image's tree")?;
        let import = "tar -C $1 -c . | podman import --change STOPSIGNAL=SIGKILL \
                      --change 'CMD [\"httpd\",\"-f\",\"-p\",\"0.0.0.0:80\",\"-h\",\"/www\"]' - box";
        login.run(["sh", "-c", import, "sh"].into_iter().chain([&*tree.to_string_lossy()]))?.succeeded()?;
        Ok(Self { login })
    }

    /// A podman(1) command, split at blanks.
    fn podman(&self, line: &str) -> Result<Finished> {
        self.login.run(["podman"].into_iter().chain(line.split_whitespace()))
    }

    /// A shell script in a container that ends with it.
    fn sh(&self, network: &str, script: &str) -> Result<Finished> {
        self.login.run(["podman", "run", "--rm", "--network", network, "box", "sh", "-c", script])
    }

    /// What the user does last; nothing runs afterwards.
    fn leaves_nothing(&self) -> Result<()> {
        self.podman("rm --all --force")?.succeeded()?;
        // The process that keeps the user's namespaces.
        self.podman("system migrate")?.succeeded()?;
        self.login.leaves_nothing()
    }
}

/// Names, ping and HTTP over both families.
fn outgoing(ws: Workspace) -> Result<()> {
    let servers = [TcpServer::http(&ws.lab.remote, REMOTE[0])?, TcpServer::http(&ws.lab.remote, REMOTE[1])?];
    let podman = Podman::new(ws)?;
    let script = format!(
        "nslookup remote.lab | grep {v4} && nslookup remote.lab | grep {v6} && ping -c 1 -W 10 {v4} >/dev/null || exit
until ip -6 route | grep -q default; do sleep 0.1; done
wget -q -O- http://remote.lab:{port}/ && wget -q -O- http://{}/ && wget -q -O- http://{}/big | wc -c",
        servers[1].addr,
        servers[0].addr,
        v4 = REMOTE[0],
        v6 = REMOTE[1],
        port = servers[0].addr.port(),
    );
    let [v4, v6] = REMOTE;
    podman.sh("slirp4netns", &script)?.printed(&format!("Address: {v4}\nAddress: {v6}\nhello\nhello\n{BIG}"))?;
    podman.leaves_nothing()
}

/// The network's options are obeyed.
fn own_network(ws: Workspace) -> Result<()> {
    let another = "192.0.2.7";
    ws.lab.host.run(&format!("ip addr add {another}/24 dev veth0"))?;
    let whoami = TcpServer::whoami(&ws.lab.remote, REMOTE[0])?;
    let podman = Podman::new(ws)?;
    let network = format!("slirp4netns:cidr=10.9.8.0/24,mtu=1400,enable_ipv6=false,outbound_addr={another}");
    let script = format!(
        "ip addr show tap0; cat /etc/resolv.conf; nslookup remote.lab; nc {REMOTE_V4} {} </dev/null",
        whoami.addr.port()
    );
    let done = podman.sh(&network, &script)?.succeeded()?;
    for needle in ["mtu 1400", "inet 10.9.8.100/24", "nameserver 10.9.8.3", &REMOTE_V4.to_string(), another] {
        contains(&done.stdout, needle)?;
    }
    ensure!(!done.stdout.contains("fd00:"), "{done}");
    podman.leaves_nothing()
}

/// The port is there after a restart and gone after a stop, whoever serves it.
fn comes_and_goes(podman: &Podman, network: &str) -> Result<()> {
    let lab = &podman.login.lab;
    let run = format!("run --detach --name web --network {network} --publish 8080:80 box");
    for start in [&*run, "restart web", "start web"] {
        podman.podman(start)?.succeeded()?;
        for (from, addr) in [(&lab.remote, HOST), (&lab.host, HOST), (&lab.host, LOOPBACK)] {
            ensure!(answers(from, addr, 8080, "")? == "hello from inside");
        }
        if start == "restart web" {
            podman.podman("stop web")?.succeeded()?;
            is_closed(&lab.remote, HOST, 8080)?;
        }
    }
    Ok(())
}

/// By rootlessport, which connects from inside the container's namespace.
fn published(ws: Workspace) -> Result<()> {
    let podman = Podman::new(ws)?;
    comes_and_goes(&podman, "slirp4netns")?;
    podman.leaves_nothing()
}

/// By ourselves: clients keep their addresses.
fn published_by_api(ws: Workspace) -> Result<()> {
    let podman = Podman::new(ws)?;
    comes_and_goes(&podman, "slirp4netns:port_handler=slirp4netns")?;
    let lab = &podman.login.lab;
    ensure!(answers(&lab.remote, HOST, 8080, "cgi-bin/peer")? == REMOTE_V4.to_string());
    podman.leaves_nothing()
}

/// The host's loopback is at the gateway's address, for who asks for it.
fn host_loopback(ws: Workspace) -> Result<()> {
    let server = TcpServer::http(&ws.lab.host, LOOPBACK)?;
    let podman = Podman::new(ws)?;
    let get = format!("wget -q -O- http://10.0.2.2:{}/", server.addr.port());
    podman.sh("slirp4netns:allow_host_loopback=true", &get)?.printed("hello")?;
    let refused = podman.sh("slirp4netns", &get)?.exited(1)?;
    contains(&refused.stderr, "Network is unreachable")?;
    ensure!(server.accepted() == 1, "{} connections to the host's loopback", server.accepted());
    podman.leaves_nothing()
}

/// Two networks with the same addresses, and one goes on when the other ends.
fn two_at_once(ws: Workspace) -> Result<()> {
    let podman = Podman::new(ws)?;
    let login = &podman.login;
    let mut starting = Vec::new();
    for (name, port) in [("one", "8081:80"), ("two", "8082:80")] {
        let words = ["podman", "run", "--detach", "--name", name, "--publish", port];
        let network = ["--network", "slirp4netns:port_handler=slirp4netns", "box"];
        starting.push(login.program(words.into_iter().chain(network)).start(&login.lab.host)?);
    }
    for running in starting {
        running.finish()?.succeeded()?;
    }
    for port in [8081, 8082] {
        answers(&login.lab.remote, HOST, port, "")?;
    }
    podman.podman("rm --force one")?.succeeded()?;
    is_closed(&login.lab.remote, HOST, 8081)?;
    curl(&login.lab.remote, HOST, 8082, "")?.printed("hello from inside")?;
    podman.podman("exec two ping -c 1 -W 10 192.0.2.2")?.succeeded()?;
    podman.leaves_nothing()
}
