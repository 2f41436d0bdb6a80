//! The lab itself, without sidestep: what a host program sees here is what a workspace is compared with.

use anyhow::Result;

use crate::lab::servers::{self, FullListener, TcpServer};
use crate::lab::workspace::Workspace;
use crate::lab::*;

crate::cases! {
    HOST: refusals, iperf3, names, pings, leaves_nothing;
}

fn refusals(ws: Workspace) -> Result<()> {
    for addr in REMOTE {
        let closed = servers::closed_port(&ws.lab.remote, addr)?;
        ws.python(&format!("print(attempt('{}', {}))", closed.ip(), closed.port()))?.printed("ECONNREFUSED")?;
        let full = FullListener::start(&ws.lab.remote, addr)?;
        ws.python(&format!("print(attempt('{addr}', {}, 0.5))", full.addr.port()))?.printed("timed out")?;
        let whoami = TcpServer::whoami(&ws.lab.remote, addr)?;
        ws.python(&format!("print(dial('{addr}', {}).recv(99).decode())", whoami.addr.port()))?.succeeded()?;
    }
    for (addr, errno) in UNREACHABLE {
        ws.python(&format!("print(attempt('{addr}', 80))"))?.printed(errno)?;
    }
    for addr in BLACK_HOLE {
        ws.python(&format!("print(attempt('{addr}', 80, 0.5))"))?.printed("timed out")?;
    }
    Ok(())
}

fn iperf3(ws: Workspace) -> Result<()> {
    let _server = servers::iperf3(&ws.lab.remote, 5201)?;
    for addr in REMOTE {
        let addr = addr.to_string();
        ws.run(["iperf3", "-c", &addr, "-n", "200M"])?.succeeded()?;
        ws.run(["iperf3", "-c", &addr, "-n", "200M", "-R"])?.succeeded()?;
    }
    Ok(())
}

fn names(ws: Workspace) -> Result<()> {
    dns::serve(&ws.lab.remote, REMOTE[0])?;
    ws.sh("getent ahostsv4 remote.lab | head -n1 | cut -d' ' -f1")?.printed(&REMOTE[0].to_string())?;
    ws.sh("getent ahostsv6 remote.lab | head -n1 | cut -d' ' -f1")?.printed(&REMOTE[1].to_string())?;
    ws.sh("dig +short TXT big.lab | wc -c")?.printed("3036")?;
    ws.run(["getent", "hosts", "nowhere.lab"])?.exited(2)?;
    Ok(())
}

fn pings(ws: Workspace) -> Result<()> {
    for addr in REMOTE {
        ws.run(["ping", "-c1", "-W5", &addr.to_string()])?.succeeded()?;
    }
    Ok(())
}

fn leaves_nothing(ws: Workspace) -> Result<()> {
    let mut running = ws.start(["unshare", "-r", "--pid", "--fork", "sh", "-c", "sleep 60 & echo ready; wait"])?;
    running.line_with("ready")?;
    let tree = processes::Tree::of(running.pid())?;
    anyhow::ensure!(tree.processes.len() >= 3, "{tree:?}");
    for process in &tree.processes {
        process.kill(nix::sys::signal::Signal::SIGKILL)?;
    }
    tree.is_gone(std::time::Duration::from_secs(5), &[])
}
