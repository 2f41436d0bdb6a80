//! How it begins and ends: descriptors, signals, deaths.

use std::fs;
use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;

use super::api::Api;
use super::target::Target;
use crate::lab::command::DEADLINE;
use crate::lab::processes::{Process, Tree};
use crate::lab::workspace::Workspace;
use crate::lab::{HOST_V4, poll};

crate::cases! {
    TAP: exit_fd, first_descriptors, signals, target_gone, attendant_killed, ports_end_with_it;
}

const SOON: Duration = Duration::from_secs(30);

/// Its namespaces are those of others, too.
fn is_gone(tree: &Tree) -> Result<()> {
    poll("all of it is gone", SOON, || Ok((!tree.processes.iter().any(Process::is_alive)).then_some(())))
}

fn exit_fd(ws: Workspace) -> Result<()> {
    let target = Target::new(ws)?;
    let mut running = target.start("-c", &target.pid())?;
    let tree = poll("attendant and factory", SOON, || {
        Ok(Some(Tree::of(running.pid())?).filter(|tree| tree.processes.len() >= 3))
    })?;
    // What is written there means nothing.
    running.write("still here\n")?;
    target.sh("ping -c1 -W10 10.0.2.2 >/dev/null && echo answered")?.printed("answered")?;
    ensure!(!running.has_ended()?, "a byte ended it");
    running.finish()?.succeeded()?;
    is_gone(&tree)?;
    target.sh("ip -o link | grep -c tap0; true")?.printed("0")
}

/// Any descriptor will do: standard input to end it, standard output to say that it is ready.
fn first_descriptors(ws: Workspace) -> Result<()> {
    let target = Target::new(ws)?;
    let program = target.slirp4netns(["-c", "-e", "0", "-r", "1", &target.pid(), "tap0"]);
    let mut running = target.until_ready(program.start(&target.ws.lab.host)?)?;
    target.sh("ping -c1 -W10 10.0.2.2 >/dev/null && echo answered")?.printed("answered")?;
    ensure!(!running.has_ended()?, "it has ended: {}", running.stderr());
    running.finish()?.succeeded().map(drop)
}

fn signals(ws: Workspace) -> Result<()> {
    let target = Target::new(ws)?;
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130), (Signal::SIGKILL, 137)] {
        let mut running = target.start("-c", &target.pid())?;
        let tree = Tree::of(running.pid())?;
        running.kill(signal)?;
        poll("its end", SOON, || Ok(running.has_ended()?.then_some(())))?;
        running.finish()?.exited(code)?;
        is_gone(&tree).with_context(|| signal.to_string())?;
    }
    Ok(())
}

/// The namespace lives on with the TAP, as it does with slirp4netns: whoever started it ends it.
fn target_gone(ws: Workspace) -> Result<()> {
    let target = Target::new(ws)?;
    let mut running = target.start("-c", &target.pid())?;
    let pid = target.pid();
    drop(target);
    poll("the target's end", SOON, || Ok((!fs::exists(format!("/proc/{pid}"))?).then_some(())))?;
    ensure!(!running.has_ended()?, "it went with its target");
    running.finish()?.succeeded()?;
    Ok(())
}

fn attendant_killed(ws: Workspace) -> Result<()> {
    let target = Target::new(ws)?;
    let running = target.start("-c", &target.pid())?;
    let before = Tree::of(running.pid())?;
    for process in before.processes.iter().filter(|process| process.pid != running.pid().as_raw()) {
        // Its factory ends with it.
        let _gone_meanwhile = process.kill(Signal::SIGKILL);
    }
    target.sh("ping -c1 -W10 10.0.2.2 >/dev/null && echo answered")?.printed("answered")?;
    // It waits for events, not in a loop.
    let cpu = || -> Result<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", running.pid()))?;
        let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        Ok(fields.get(11).context("utime")?.parse::<u64>()? + fields.get(12).context("stime")?.parse::<u64>()?)
    };
    let start = cpu()?;
    std::thread::sleep(Duration::from_millis(500));
    let used = cpu()? - start;
    ensure!(used < 20, "{used} ticks of 10 ms in half a second");
    Ok(())
}

/// Whoever asks for a port as soon as the process is gone gets it, however late the attendant hears of that.
fn ports_end_with_it(ws: Workspace) -> Result<()> {
    let (target, api) = (Target::new(ws)?, Api::new()?);
    let mut running = target.start(&format!("-c {}", api.flag()), &target.pid())?;
    let added = api.add(&json!({"proto": "tcp", "host_port": 8080, "guest_port": 80}))?;
    ensure!(added["return"]["id"] == 1, "{added}");
    let to = SocketAddr::from((HOST_V4, 8080));
    let connect = || target.ws.lab.remote.within(|| TcpStream::connect_timeout(&to, DEADLINE));
    // Nobody listens inside, which only the forwarder can find out; connect may see that already.
    let end = connect().and_then(|mut client| {
        client.set_read_timeout(Some(DEADLINE))?;
        client.read(&mut [0])
    });
    ensure!(matches!(&end, Ok(0)) || end.as_ref().is_err_and(is_reset), "{end:?}");
    // The attendant has done what it does when a port is added.
    api.ask(&json!({"execute": "list_hostfwd"}))?;

    // A child that makes a socket inside may be gone by the time it is to stop.
    let forwarder = running.pid();
    let others = |tree: &Tree| -> Vec<_> {
        tree.processes.iter().filter(|process| process.pid != forwarder.as_raw()).cloned().collect()
    };
    let tree = poll("nothing but the forwarder runs", SOON, || {
        let tree = Tree::of(forwarder)?;
        let stand_still =
            others(&tree).iter().all(|process| process.kill(Signal::SIGSTOP).is_ok() && process.is_stopped());
        // Nor has one of them had a child before it stopped.
        Ok((stand_still && Tree::of(forwarder)?.processes == tree.processes).then_some(tree))
    })?;
    running.kill(Signal::SIGKILL)?;
    poll("its end", SOON, || Ok(running.has_ended()?.then_some(())))?;
    let refused = connect().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    for process in others(&tree) {
        process.kill(Signal::SIGCONT)?;
    }
    ensure!(refused, "the port is there without its forwarder");
    is_gone(&tree)
}

fn is_reset(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionReset
}
