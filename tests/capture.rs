//! `--pcap`: what tcpdump reads in it, while the workspace runs and after a forwarder's death.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::lab::REMOTE;
use crate::lab::processes::Tree;
use crate::lab::servers::TcpServer;
use crate::lab::workspace::{Workspace, contains};
use crate::lab::{poll, world::SCRATCH};

crate::cases! {
    BOTH_PATHS: frames_both_ways;
    USER: what_is_no_file;
}

const SOON: std::time::Duration = std::time::Duration::from_secs(60);

fn frames_both_ways(ws: Workspace) -> Result<()> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let path = format!("{SCRATCH}/capture-{}-{}", std::process::id(), ws.way);
    let ws = ws.flag(format!("--pcap={path}"));
    // Bound before: not for the bypass. An answer has come through the forwarder that is there.
    let mut running = ws.start_python(&format!(
        "def attempt():
    s = tcp('{remote}'); s.settimeout(20); s.bind(('', 0)); s.connect(('{remote}', {port}))
    s.sendall(b'x' * 2000); return s.recv(1) == b'x'
say(attempt())
for line in sys.stdin:
    try: say(attempt())
    except OSError as e: say(e)",
        remote = REMOTE[0],
        port = echo.addr.port()
    ))?;
    ensure!(running.line()? == "True");
    let tcpdump = |filter: &str| -> Result<Vec<String>> {
        let done = ws.shell(&format!("tcpdump -nntv -r {path} '{filter}'")).run(&ws.lab.host)?.succeeded()?;
        contains(&done.stderr, "link-type EN10MB (Ethernet)")?;
        // The IP header is a line of its own.
        Ok(done.stdout.replace("\n    ", " ").lines().map(str::to_owned).collect())
    };
    let port = echo.addr.port();
    // Frames that were sent again count once. The workspace's have another identification in their IP header then.
    let opened = |flags: &str| -> Result<usize> {
        let frames = tcpdump(&format!("tcp port {port} and tcp[tcpflags] == {flags}"))?;
        let distinct = frames.iter().collect::<BTreeSet<_>>().len();
        ensure!(flags != "tcp-syn" || distinct == frames.len(), "one is there twice: {frames:#?}");
        let ends = |line: &str| Some(line.split_once(": Flags")?.0.rsplit_once(") ")?.1.to_owned());
        let ends: BTreeSet<_> =
            frames.iter().map(|line| ends(line).with_context(|| line.clone())).collect::<Result<_>>()?;
        Ok(ends.len())
    };
    // A frame to the workspace is there before it is in the file.
    for way in ["dst", "src"] {
        poll("data in the file", SOON, || {
            Ok((!tcpdump(&format!("tcp {way} port {port} and greater 500"))?.is_empty()).then_some(()))
        })
        .context(way)?;
    }
    for flags in ["tcp-syn", "tcp-syn|tcp-ack"] {
        ensure!(opened(flags)? == 1, "{flags}");
    }

    let victim = Tree::of(running.pid())?.worker("forwarder")?.clone();
    victim.kill(Signal::SIGKILL)?;
    poll("its successor forwards", SOON, || {
        running.write("again\n")?;
        Ok((running.line()? == "True").then_some(()))
    })?;
    ensure!(opened("tcp-syn|tcp-ack")? == 2, "{:?}", tcpdump("tcp")?);
    running.finish()?.succeeded()?;
    std::fs::remove_file(path)?;
    Ok(())
}

fn what_is_no_file(ws: Workspace) -> Result<()> {
    for (path, why) in [
        ("/dev/null", "/dev/null is no regular file: --pcap keeps the newest frames in a ring"),
        ("/nonexistent/file", "cannot write frames to /nonexistent/file: No such file"),
    ] {
        let done = Workspace::new(ws.way)?.flag(format!("--pcap={path}")).run(["true"])?.exited(125)?;
        ensure!(done.stderr.lines().count() == 1, "{done}");
        contains(&done.stderr, why)?;
    }
    Ok(())
}
