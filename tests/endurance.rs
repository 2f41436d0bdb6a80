//! Workers that die under load, thousands of processes, black holes: nothing is lost, held up or left behind.
//!
//! A workspace stands five restarts in ten seconds, so a worker is killed that often, at random moments, in one
//! workspace after the other. `make soak` does ten times as much and more.

use std::fmt::Write as _;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::lab::command::Running;
use crate::lab::processes::{Footprint, Process, Tree};
use crate::lab::servers::{self, TcpServer};
use crate::lab::workspace::{Path, Workspace};
use crate::lab::{BLACK_HOLE, REMOTE, effort, poll};

crate::cases! {
    BYPASS: supervisor_under_load, callers_that_leave;
    TAP: forwarder_under_load;
    BOTH_PATHS: forwarder_beside_the_bypass, beside_black_holes;
    BOTH_PATHS_AS_ROOT: thousands_of_processes;
}

const SOON: Duration = Duration::from_secs(30);
/// Deaths a workspace stands in ten seconds.
const LIVES: u32 = 5;
/// How long a command may take in all.
const LONG: Duration = Duration::from_secs(60);

/// Some time, of which nobody knows how long it is: what may happen at any moment must be harmless at each.
fn random_moment(at_most: Duration) {
    let random = u32::try_from(RandomState::new().hash_one(()) & 0xffff).unwrap_or(0);
    std::thread::sleep(at_most * random / 0xffff);
}

/// Kills the worker there is; the next kill is another one's.
fn kill_worker(running: &Running, name: &str, killed: &mut Vec<Process>) -> Result<()> {
    let victim = poll("a worker is there", SOON, || {
        let tree = Tree::of(running.pid())?;
        Ok(tree.worker(name).ok().filter(|worker| !killed.contains(worker)).cloned())
    })?;
    victim.kill(Signal::SIGKILL)?;
    killed.push(victim);
    Ok(())
}

/// One line for the start and one for each death.
fn said_of_deaths(stderr: &str, worker: &str, deaths: u32) -> Result<()> {
    let line = format!("the {worker} ended with SIGKILL and is started again");
    let of_deaths = stderr.lines().filter(|said| said.contains(&line)).count();
    let others = stderr.lines().filter(|said| !said.contains("DEBUG") && !said.contains(&line)).count();
    ensure!(of_deaths == deaths as usize && others == 1, "not one line for each of {deaths} deaths:\n{stderr}");
    Ok(())
}

/// Deaths of a worker in one workspace after the other: `live` sees it die so often, of `in_test` or `in_soak` times.
fn deaths(in_test: u32, in_soak: u32, mut live: impl FnMut(u32) -> Result<()>) -> Result<()> {
    let mut left = effort::tries(in_test, in_soak);
    while left > 0 {
        let now = left.min(LIVES);
        live(now).with_context(|| format!("{left} deaths before the end"))?;
        left -= now;
    }
    Ok(())
}

/// Both callers together make 20 deaths, 200 in the soak.
fn supervisor_under_load(ws: Workspace) -> Result<()> {
    let ws = ws.deadline(LONG);
    let server = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let closed = servers::closed_port(&ws.lab.remote, REMOTE[0])?;
    deaths(10, 100, |deaths| {
        let mut running = ws
            .python_program(include_str!("endurance/load.py"))
            .arg(REMOTE[0].to_string())
            .arg(server.addr.port().to_string())
            .arg(closed.port().to_string())
            .arg(BLACK_HOLE[0].to_string())
            .start(&ws.lab.host)?;
        running.line_with("ready")?;
        let mut killed = Vec::new();
        for _ in 0..deaths {
            let before = server.accepted();
            poll("connects go on", SOON, || Ok((server.accepted() > before + 20).then_some(())))
                .with_context(|| running.stderr())?;
            random_moment(Duration::from_millis(50));
            kill_worker(&running, "supervisor", &mut killed)?;
        }
        let before = server.accepted();
        poll("connects go on", SOON, || Ok((server.accepted() > before + 20).then_some(())))
            .with_context(|| running.stderr())?;
        running.write("end\n")?;
        let done = running.finish()?.succeeded()?;
        judge_load(&done.stdout).with_context(|| done.to_string())?;
        said_of_deaths(&done.stderr, "supervisor", deaths)
    })
}

/// What the load reported: `kind|how it ended|how often|the worst time beyond what it should take`.
fn judge_load(report: &str) -> Result<()> {
    let want = |kind: &str| match kind {
        "refused" | "refused later" => "ECONNREFUSED",
        "hole" | "long hole" | "hole inside" | "long hole inside" => "EINPROGRESS",
        "stall" => "stall",
        _ => "connected",
    };
    let mut worst = std::collections::BTreeMap::new();
    for line in report.lines().filter(|line| line.contains('|')) {
        let [kind, how, _count, over] = line.split('|').collect::<Vec<_>>()[..] else { bail!("{line}") };
        ensure!(how == want(kind), "{kind}: {how}");
        let over: f64 = over.parse()?;
        let entry = worst.entry(kind).or_insert(over);
        *entry = over.max(*entry);
    }
    ensure!(worst.len() == 12, "not every kind of connect: {worst:?}");
    // A second more than what the same run says about the machine: how long it let a thread that slept wait, and how
    // long a whole connect took that had to wait for the next supervisor.
    let of = |kind: &str| worst.get(kind).copied().unwrap_or(0.0);
    for kind in ["hole", "long hole", "hole inside", "long hole inside"] {
        let bound = 1.0 + of("stall") + of("blocking").max(of("inside"));
        ensure!(of(kind) < bound, "{kind}: {} s too long, with {bound} s: {worst:?}", of(kind));
    }
    for kind in ["blocking", "inside", "watched", "refused", "refused later"] {
        let bound = 2.0 + 3.0 * of("stall") + 3.0 * of("hole");
        ensure!(of(kind) < bound, "{kind}: {} s, with {bound} s: {worst:?}", of(kind));
    }
    Ok(())
}

/// Callers that die in a connect that waits, taken out or in place, take nothing of the supervisor's with them.
fn callers_that_leave(ws: Workspace) -> Result<()> {
    let mut running = ws.start_python(&format!(
        "full = tcp('127.0.0.1'); full.bind(('127.0.0.1', 0)); full.listen(0)
queued = []
while True:
    queued.append(tcp('127.0.0.1')); queued[-1].settimeout(.2)
    if outcome(lambda: queued[-1].connect(full.getsockname())) != 'connected': break
say('ready'); sys.stdin.readline()
child = os.fork()
if child == 0:
    for where in (full.getsockname(), ('{hole}', 80)):
        for _ in range(40): threading.Thread(target=lambda: tcp(where[0]).connect(where)).start()
    signal.pause()
say('waiting'); sys.stdin.readline()
os.kill(child, signal.SIGKILL); os.wait()
say('left'); sys.stdin.readline()",
        hole = BLACK_HOLE[0]
    ))?;
    running.line_with("ready")?;
    let supervisor = Tree::of(running.pid())?.worker("supervisor")?.clone();
    let before = supervisor.footprint()?;
    running.write("connect\n")?;
    running.line_with("waiting")?;
    poll("80 connects wait", SOON, || {
        let now = supervisor.footprint()?;
        Ok((now.threads >= before.threads + 38 && now.descriptors >= before.descriptors + 80).then_some(()))
    })?;
    running.write("leave\n")?;
    running.line_with("left")?;
    let mut now = before;
    poll("the supervisor is as small as before", SOON, || {
        now = supervisor.footprint()?;
        Ok(is_near(now, before).then_some(()))
    })
    .with_context(|| format!("{before:?} before, {now:?} afterwards"))?;
    running.finish()?.succeeded()?;
    Ok(())
}

/// The servers of `endurance/flows.py`.
struct Ends {
    ports: Vec<u16>,
    /// Uploads that ended like a whole one.
    whole: Arc<AtomicUsize>,
}

impl Ends {
    fn start(ws: &Workspace) -> Result<Self> {
        let remote = &ws.lab.remote;
        let whole = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&whole);
        let sink = TcpServer::start(remote, (REMOTE[0], 0), move |mut stream| {
            let read = std::io::copy(&mut stream, &mut std::io::sink());
            count.fetch_add(usize::from(read.is_ok()), Ordering::SeqCst);
            Ok(())
        })?;
        let source = TcpServer::start(remote, (REMOTE[0], 0), |mut stream| {
            loop {
                stream.write_all(&[7; 50_000])?;
            }
        })?;
        // Reads to the end of stream, and then says nothing for as long as the connection lives.
        let silent = TcpServer::start(remote, (REMOTE[0], 0), |mut stream| {
            std::io::copy(&mut stream, &mut std::io::sink())?;
            let gone = || {
                let mut hung_up =
                    [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&stream), nix::poll::PollFlags::empty())];
                nix::poll::poll(&mut hung_up, nix::poll::PollTimeout::NONE)
            };
            gone()?;
            stream.read(&mut [0]).map(drop)
        })?;
        let echo = TcpServer::echo(remote, REMOTE[0])?;
        let udp = servers::udp_echo(remote, REMOTE[0])?;
        let ports = [echo.addr, sink.addr, source.addr, udp, silent.addr].map(|addr| addr.port()).into();
        Ok(Self { ports, whole })
    }
}

/// Through the TAP: the device survives, old connections are reset at both ends, new ones work at once.
fn forwarder_under_load(ws: Workspace) -> Result<()> {
    let ws = ws.deadline(LONG);
    // Both callers together make 20 deaths, 200 in the soak.
    deaths(10, 100, |deaths| {
        // Each workspace has its own: the uploads of one that ends do so in good order.
        let ends = Ends::start(&ws)?;
        let mut program = ws.python_program(include_str!("endurance/flows.py")).arg(REMOTE[0].to_string());
        for port in &ends.ports {
            program = program.arg(port.to_string());
        }
        let mut running = program.start(&ws.lab.host)?;
        running.line_with("ready")?;
        let mut killed = Vec::new();
        for _ in 0..deaths {
            random_moment(Duration::from_millis(50));
            kill_worker(&running, "forwarder", &mut killed)?;
            running.write("killed\n")?;
            let said = running.line().with_context(|| running.stderr())?;
            ensure!(said.starts_with("reset reset reset reset same "), "{said}; {}", running.stderr());
        }
        ensure!(ends.whole.load(Ordering::SeqCst) == 0, "the server took a connection cut short for a whole one");
        let done = running.finish()?.succeeded()?;
        said_of_deaths(&done.stderr, "forwarder", deaths)
    })
}

/// What the forwarder does not carry does not notice, what it carries goes on with the next.
fn forwarder_beside_the_bypass(ws: Workspace) -> Result<()> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let mut running = ws.start_python(&format!(
        "s = dial('{addr}', {port})
say('ready')
for line in sys.stdin:
    how = outcome(lambda: s.sendall(b'x')), outcome(lambda: s.recv(9))
    s = dial('{addr}', {port})
    say(*how)",
        addr = REMOTE[0],
        port = echo.addr.port()
    ))?;
    running.line_with("ready")?;
    let mut killed = Vec::new();
    for _ in 0..LIVES {
        kill_worker(&running, "forwarder", &mut killed)?;
        poll("it is dead", SOON, || Ok(killed.iter().all(|worker| !worker.is_alive()).then_some(())))?;
        running.write("killed\n")?;
        let said = running.line()?;
        let want: &[&str] = match ws.way.path {
            Path::Tap => &["connected ECONNRESET", "ECONNRESET connected"],
            _ => &["connected connected"],
        };
        ensure!(want.contains(&said.as_str()), "{said}");
    }
    let done = running.finish()?.succeeded()?;
    said_of_deaths(&done.stderr, "forwarder", LIVES)
}

/// A good server is not further away with 64 threads in connects that are never answered.
fn beside_black_holes(ws: Workspace) -> Result<()> {
    let ws = ws.deadline(LONG);
    let server = TcpServer::whoami(&ws.lab.remote, REMOTE[0])?;
    let mut running = ws
        .python_program(include_str!("endurance/beside.py"))
        .arg(REMOTE[0].to_string())
        .arg(server.addr.port().to_string())
        .arg(BLACK_HOLE[0].to_string())
        .arg(effort::tries(20, 200).to_string())
        .start(&ws.lab.host)?;
    let alone = figures(&running.line()?)?;
    running.line_with("waiting")?;
    poll("64 connects wait", SOON, || {
        let sockets = ws.lab.host.within(|| std::fs::read_to_string("/proc/thread-self/net/tcp"))?;
        // proc_net_tcp: the fourth column is the state, 02 is SYN_SENT.
        let waiting = sockets.lines().filter(|line| line.split_whitespace().nth(3) == Some("02")).count();
        Ok((waiting >= 64).then_some(()))
    })?;
    running.write("go\n")?;
    let beside = figures(&running.line()?)?;
    let ended = running.line()?;
    ensure!(ended == "ended 0", "connects into black holes {ended}");
    // Behind one black hole a connect would wait for two minutes, and the watch looks four times a second: whoever
    // waited for either took hundreds of times as long. Other tests at the same time have made it twelve times.
    for (what, alone, beside) in [("median", alone.0, beside.0), ("all", alone.1, beside.1)] {
        ensure!(beside < 100.0 * alone, "{what}: {alone} s alone, {beside} s beside black holes");
    }
    running.finish()?.succeeded()?;
    Ok(())
}

/// The median and the time of all, in seconds.
fn figures(line: &str) -> Result<(f64, f64)> {
    let (median, all) = line.split_once(' ').with_context(|| line.to_owned())?;
    Ok((median.parse()?, all.parse()?))
}

/// Processes and threads come and go and use each other's numbers; the workers are as small afterwards as before.
fn thousands_of_processes(ws: Workspace) -> Result<()> {
    /// Connects of each process: these two multiplied.
    const THREADS: u32 = 4;
    const EACH: u32 = 25;
    let processes = effort::tries(5_000, 500_000) / (THREADS * EACH);
    let ws = ws.deadline(effort::lasting(LONG, Duration::from_secs(1800)));
    // Several, so that no pair of ends comes back while it is in TIME_WAIT.
    let servers: Vec<_> = (0..8).map(|_| TcpServer::whoami(&ws.lab.remote, REMOTE[0])).collect::<Result<_>>()?;
    let ports = servers.iter().fold(String::new(), |mut ports, server| {
        let comma = if ports.is_empty() { "" } else { "," };
        let _never = write!(ports, "{comma}{}", server.addr.port());
        ports
    });
    // In a pid namespace around sidestep the numbers begin anew all the time.
    let reuse = "while last=$(cat /proc/sys/kernel/ns_last_pid); do
        if [ $last -gt 150 ]; then echo 100 > /proc/sys/kernel/ns_last_pid; echo 'numbers begin anew' >&2; fi; sleep 0.01
        done & exec \"$@\"";
    let mut running = ws
        .python_program(include_str!("endurance/many.py"))
        .arg(REMOTE[0].to_string())
        .arg(ports)
        .arg(THREADS.to_string())
        .arg(EACH.to_string())
        .behind(["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", reuse, "sh"])
        .start(&ws.lab.host)?;
    running.line_with("ready")?;
    let tree = Tree::of(running.pid())?;
    let worker = |name| tree.processes.iter().find(|p| p.command.split(' ').nth(1) == Some(name)).context(name);
    let workers = [worker("supervisor")?, worker("forwarder")?];
    // Once for what everybody allocates the first time.
    let mut connects = |processes: u32| {
        running.write(&format!("{processes}\n"))?;
        let said = running.line()?;
        ensure!(said == "failed 0", "processes that {said}: {}", running.stderr());
        Ok(())
    };
    connects(processes / 10)?;
    let before = workers.map(Process::footprint);
    connects(processes)?;
    for (worker, before) in workers.into_iter().zip(before) {
        let before = before?;
        let mut now = before;
        poll("a worker is as small as before", SOON, || {
            now = worker.footprint()?;
            Ok(is_near(now, before).then_some(()))
        })
        .with_context(|| format!("{}: {before:?} before, {now:?} afterwards", worker.command))?;
    }
    let accepted: usize = servers.iter().map(TcpServer::accepted).sum();
    let asked = (processes + processes / 10) * THREADS * EACH;
    ensure!(accepted >= asked as usize, "{accepted} of {asked} connects arrived");
    let stderr = running.stderr();
    ensure!(stderr.contains("numbers begin anew"), "no number was used again: {stderr}");
    Ok(())
}

/// Some threads and descriptors come and go; what the allocator keeps for them does not depend on how much was done.
pub fn is_near(now: Footprint, before: Footprint) -> bool {
    now.threads <= before.threads + 8
        && now.descriptors <= before.descriptors + 64
        && now.memory <= before.memory + (12 << 20)
}
