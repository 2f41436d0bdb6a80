//! A live supervisor against arbitrary system calls from inside: it must live, answer others, and reach nothing it must
//! not. The decision alone is fuzzed in daemon/src/supervisor/fuzz.rs.
//!
//! A run is a seed. Those of tests/corpus/system_calls are run every time: one that ever found something is added there.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Forbidden, attacker, calms_down};
use crate::lab::effort;
use crate::lab::processes::Tree;
use crate::lab::servers::TcpServer;
use crate::lab::workspace::Workspace;
use crate::lab::{BLACK_HOLE, REMOTE};

crate::cases! {
    BYPASS: system_calls;
}

const THREADS: u32 = 4;
/// Of each thread, in one run: some seconds' worth.
const CALLS: u32 = 4000;
/// Threads that one process may take from the supervisor for good are 128; what a few runs take by chance is far less.
const LOST: usize = 16;
const SOAK: Duration = Duration::from_secs(600);

fn system_calls(ws: Workspace) -> Result<()> {
    let until = Instant::now() + effort::lasting(Duration::ZERO, SOAK);
    let ws = ws.deadline(effort::lasting(Duration::from_secs(120), 2 * SOAK));
    let fuzz = attacker(&ws, include_str!("fuzz.c"), "fuzz")?;
    let allowed = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let forbidden = Forbidden::start(&ws)?;
    // "ready" comes when the supervisor is there.
    let mut running = ws.start_python(&format!(
        "import subprocess
say('ready')
for seed in sys.stdin:
    done = subprocess.run(['{fuzz}', seed.strip(), '{THREADS}', '{CALLS}', '{remote}', '{port}', '{forbidden}', '{silent}'])
    say('exit code', done.returncode, attempt('{remote}', {port}))",
        fuzz = fuzz.display(),
        remote = REMOTE[0],
        port = allowed.addr.port(),
        forbidden = forbidden.port(),
        silent = BLACK_HOLE[0],
    ))?;
    running.line_with("ready")?;
    let supervisor = Tree::of(running.pid())?.worker("supervisor")?.clone();
    let mut run = |seed: u64| -> Result<()> {
        running.write(&format!("{seed}\n"))?;
        let said = running.line_with("exit code")?;
        ensure!(said == "exit code 0 connected", "{said}");
        ensure!(supervisor.is_alive(), "the supervisor died: {}", running.stderr());
        calms_down(&supervisor, LOST)?;
        forbidden.is_untouched(&said)
    };
    let mut run = |seed| run(seed).with_context(|| format!("seed {seed}, to be added to tests/corpus/system_calls"));
    corpus()?.into_iter().try_for_each(&mut run)?;
    // In the soak as many more as there is time for, other ones each time.
    let mut fresh = u64::from(std::process::id()) << 32..;
    while Instant::now() < until {
        fresh.next().map_or(Ok(()), &mut run)?;
    }
    running.finish()?.succeeded()?;
    Ok(())
}

fn corpus() -> Result<Vec<u64>> {
    let lines = include_str!("../corpus/system_calls").lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| Ok(line.parse()?)).collect()
}
