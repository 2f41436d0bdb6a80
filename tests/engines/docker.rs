//! Docker: its daemon in a workspace, and rootless, over sidestep under the name slirp4netns. In the soak only, for
//! Debian's packages of it are large.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use super::{HOST, LOOPBACK, answers, image};
use crate::lab::command::{DEADLINE, Program, Running};
use crate::lab::effort::tries;
use crate::lab::login::Login;
use crate::lab::servers::{BIG, TcpServer};
use crate::lab::workspace::{Workspace, contains};
use crate::lab::world::SLIRP4NETNS;
use crate::lab::{Lab, REMOTE, REMOTE_V4, dns};

crate::cases! {
    EVERY_WAY: in_a_workspace;
    HOST_AS_USER: rootless, entrypoint;
}

/// How docs/docker.md starts it in a workspace.
const IN_A_WORKSPACE: &str = include_str!("../../docs/dockerd.sh");
/// Debian has that script among its examples.
const ROOTLESS: &str = "PATH=$PATH:/usr/share/docker.io/contrib exec dockerd-rootless.sh --data-root $DOCKER_DATA";

/// Starts the daemon by the script $1/dockerd and makes an image of $1/box and sidestep. Each part below is between this
/// and the [`END`].
const BEGIN: &str = r#"
export DOCKER_BUILDKIT=0 DOCKER_DATA=$(mktemp -d)
log=$DOCKER_DATA.log
sh "$1/dockerd" >"$log" 2>&1 &
daemon=$!
trap 'kill $daemon; wait $daemon; cat "$log" >&2' EXIT
until docker version >/dev/null 2>&1; do kill -0 $daemon; sleep 0.1; done
tree=$DOCKER_DATA.tree
cp -r "$1/box" "$tree"
cp /run/lab/sidestep "$tree"
for library in $(ldd "$tree/sidestep" 2>/dev/null | grep -o '/[^ )]*'); do cp --parents "$library" "$tree"; done
tar -C "$tree" --owner 0 --group 0 -c . | docker import - box >/dev/null
"#;

const END: &str = r#"
trap - EXIT
kill $daemon
wait $daemon
rm -rf "$log" "$tree" "$DOCKER_DATA"
"#;

/// Containers that say what they get of the HTTP server at $2. One serves at port 8080 until a line is read.
const CONTAINERS: &str = r#"
tap0() { awk '/tap0:/ { bytes = $2 + $10 } END { print bytes + 0 }' /proc/net/dev; }
docker run --rm box sh -c "wget -q -O- http://$2/; nslookup remote.lab; ping -c 1 -W 10 remote.lab" |
    grep -E 'hello|Address: 192|received'
before=$(tap0)
docker run --rm box sh -c "wget -q -O- http://$2/big | wc -c"
echo tap0 carried $(($(tap0) - before))
printf 'FROM box\nRUN wget -q -O /built http://%s/\nCMD cat /built\n' "$2" | docker build -q -t built - >/dev/null
docker run --rm built

docker network create inner >/dev/null
docker run --detach --name web --network inner --publish 8080:80 box httpd -f -p 0.0.0.0:80 -h /www >/dev/null
docker run --rm --network inner box sh -c 'until wget -q -O- http://web/; do sleep 0.1; done'
docker exec web cat /www/index.html
curl -sS http://127.0.0.1:8080/
echo serving
read -r _
docker rm --force web >/dev/null
"#;

/// sidestep ahead of a container's command, with what the README has for that, and with less.
const ENTRYPOINT: &str = r#"
least="--rm --device /dev/net/tun --security-opt seccomp=unconfined"
whole="$least --security-opt systempaths=unconfined"
for flags in "$whole" "$whole --user 1000" "$least" "$least --read-only" "$least --init" "$whole --network host"; do
    for mode in off require; do docker run $flags box /sidestep run --bypass=$mode -- wget -q -O- "http://$2/"; done
done
# 1: no ping there, for the ids that it takes are not the user's.
docker run $whole box /sidestep doctor || test $? = 1
"#;

/// The script's directory, readable for every user of the lab.
fn files(dockerd: &str) -> Result<TempDir> {
    let files = tempfile::tempdir()?;
    fs::set_permissions(files.path(), fs::Permissions::from_mode(0o755))?;
    fs::write(files.path().join("dockerd"), dockerd)?;
    image(&files.path().join("box")).context("make the image's tree")?;
    Ok(files)
}

/// A part with its beginning and end, for bash(1) to run.
fn script(part: &str, files: &TempDir, server: &TcpServer) -> Vec<String> {
    let script = [BEGIN, part, END].concat();
    let arguments = [files.path().display().to_string(), server.addr.to_string()];
    let shell = ["bash", "-euo", "pipefail", "-c", &script, "bash"];
    shell.into_iter().map(str::to_owned).chain(arguments).collect()
}

/// Containers get what they ask for, and their server is reached from everywhere. Gives what the TAP carried of [`BIG`].
fn serve(lab: &Lab, mut running: Running) -> Result<usize> {
    let mut said = Vec::new();
    loop {
        match running.line().with_context(|| running.stderr())? {
            line if line == "serving" => break,
            line => said.push(line),
        }
    }
    let tap = said.iter().position(|line| line.starts_with("tap0 carried ")).context("nothing about the TAP")?;
    let carried = said.remove(tap).trim_start_matches("tap0 carried ").parse()?;
    let big = BIG.to_string();
    let page = "hello from inside";
    let address = format!("Address: {REMOTE_V4}");
    let received = "1 packets transmitted, 1 packets received, 0% packet loss";
    ensure!(said == ["hello", &address, received, &big, "hello", page, page, page], "{said:?}\n{}", running.stderr());

    for (from, addr) in [(&lab.remote, HOST), (&lab.host, HOST), (&lab.host, LOOPBACK)] {
        ensure!(answers(from, addr, 8080, "")? == page);
    }
    contains(&answers(&lab.remote, HOST, 8080, "cgi-bin/peer")?, &REMOTE_V4.to_string())?;
    running.write("\n")?;
    running.finish()?.succeeded()?;
    Ok(carried)
}

/// The daemon's bridges, rules and containers are the workspace's, and the bypass takes containers' connections out.
fn in_a_workspace(ws: Workspace) -> Result<()> {
    dns::serve(&ws.lab.remote, REMOTE[0])?;
    let server = TcpServer::http(&ws.lab.remote, REMOTE[0])?;
    let files = files(IN_A_WORKSPACE)?;
    let bypasses = ws.bypasses();
    let ws = ws.flag("--publish").flag("8080:8080").deadline(DEADLINE * 10);
    let ws = if bypasses { ws.flag("--bypass=require").flag("--bypass-nested") } else { ws };
    for _ in 0..tries(1, 3) {
        let carried = serve(&ws.lab, ws.start(script(CONTAINERS, &files, &server))?)?;
        let as_wanted = if bypasses { carried < BIG / 2 } else { carried >= BIG };
        ensure!(as_wanted, "the TAP carried {carried} of {BIG} bytes");
    }
    Ok(())
}

/// A user's login with its own Docker.
struct Rootless {
    login: Login,
    server: TcpServer,
    files: TempDir,
}

impl Rootless {
    fn new(ws: Workspace) -> Result<Self> {
        dns::serve(&ws.lab.remote, REMOTE[0])?;
        let server = TcpServer::http(&ws.lab.remote, REMOTE[0])?;
        let login = Login::new(ws.lab)?;
        symlink(SLIRP4NETNS, login.home().join("bin/slirp4netns"))?;
        Ok(Self { login, server, files: files(ROOTLESS)? })
    }

    fn program(&self, part: &str) -> Program {
        let socket = format!("unix://{}/run/docker.sock", self.login.home().display());
        let program = self.login.program(script(part, &self.files, &self.server)).deadline(DEADLINE * 10);
        // Clients keep their addresses.
        program.env("DOCKER_HOST", socket).env("DOCKERD_ROOTLESS_ROOTLESSKIT_PORT_DRIVER", "slirp4netns")
    }
}

fn rootless(ws: Workspace) -> Result<()> {
    let docker = Rootless::new(ws)?;
    let lab = &docker.login.lab;
    for _ in 0..tries(1, 3) {
        serve(lab, docker.program(CONTAINERS).start(&lab.host)?)?;
        docker.login.leaves_nothing()?;
    }
    Ok(())
}

/// sidestep in a container of that Docker.
fn entrypoint(ws: Workspace) -> Result<()> {
    let docker = Rootless::new(ws)?;
    let done = docker.program(ENTRYPOINT).run(&docker.login.lab.host)?.succeeded()?;
    ensure!(done.stdout.starts_with(&"hello\n".repeat(12)), "{done}");
    for works in ["sidestep run: works", "--bypass=unconfined): works", "--bypass=require): works"] {
        contains(&done.stdout, works)?;
    }
    docker.login.leaves_nothing()
}
