//! Docker: its daemon in a workspace, and rootless, over sidestep under the name slirp4netns. In the soak only, for
//! Debian's packages of it are large.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use super::{HOST, LOOPBACK, answers, image};
use crate::lab::command::{DEADLINE, Running};
use crate::lab::effort::tries;
use crate::lab::login::Login;
use crate::lab::servers::{BIG, TcpServer};
use crate::lab::workspace::{Workspace, contains};
use crate::lab::world::SLIRP4NETNS;
use crate::lab::{Lab, REMOTE, REMOTE_V4, dns};

crate::cases! {
    EVERY_WAY: in_a_workspace;
    HOST_AS_USER: rootless;
}

/// How docs/docker.md starts it in a workspace.
const IN_A_WORKSPACE: &str = include_str!("../../docs/dockerd.sh");
/// Debian has that script among its examples.
const ROOTLESS: &str = "PATH=$PATH:/usr/share/docker.io/contrib exec dockerd-rootless.sh --data-root $DOCKER_DATA";

/// Has the daemon started by the script $1/dockerd, and containers of the image in $1/box say what they get of the HTTP
/// server at $2. One serves at port 8080 until a line is read.
const CONTAINERS: &str = r#"
export DOCKER_BUILDKIT=0 DOCKER_DATA=$(mktemp -d)
log=$DOCKER_DATA.log
sh "$1/dockerd" >"$log" 2>&1 &
daemon=$!
trap 'kill $daemon; wait $daemon; cat "$log" >&2' EXIT
until docker version >/dev/null 2>&1; do kill -0 $daemon; sleep 0.1; done
tar -C "$1/box" -c . | docker import - box >/dev/null
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
trap - EXIT
kill $daemon
wait $daemon
rm -rf "$log" "$DOCKER_DATA"
"#;

/// The script's directory, readable for every user of the lab.
fn files(dockerd: &str) -> Result<TempDir> {
    let files = tempfile::tempdir()?;
    fs::set_permissions(files.path(), fs::Permissions::from_mode(0o755))?;
    fs::write(files.path().join("dockerd"), dockerd)?;
    image(&files.path().join("box")).context("make the image's tree")?;
    Ok(files)
}

/// The script, for bash(1) to run.
fn containers(files: &TempDir, server: &TcpServer) -> Vec<String> {
    let arguments = [files.path().display().to_string(), server.addr.to_string()];
    let shell = ["bash", "-euo", "pipefail", "-c", CONTAINERS, "bash"];
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
        let carried = serve(&ws.lab, ws.start(containers(&files, &server))?)?;
        let as_wanted = if bypasses { carried < BIG / 2 } else { carried >= BIG };
        ensure!(as_wanted, "the TAP carried {carried} of {BIG} bytes");
    }
    Ok(())
}

fn rootless(ws: Workspace) -> Result<()> {
    dns::serve(&ws.lab.remote, REMOTE[0])?;
    let server = TcpServer::http(&ws.lab.remote, REMOTE[0])?;
    let files = files(ROOTLESS)?;
    let login = Login::new(ws.lab)?;
    symlink(SLIRP4NETNS, login.home().join("bin/slirp4netns"))?;
    let socket = format!("unix://{}/run/docker.sock", login.home().display());
    let program = login.program(containers(&files, &server)).deadline(DEADLINE * 10);
    // Clients keep their addresses.
    let program = program.env("DOCKER_HOST", socket).env("DOCKERD_ROOTLESS_ROOTLESSKIT_PORT_DRIVER", "slirp4netns");
    for _ in 0..tries(1, 3) {
        serve(&login.lab, program.start(&login.lab.host)?)?;
        login.leaves_nothing()?;
    }
    Ok(())
}
