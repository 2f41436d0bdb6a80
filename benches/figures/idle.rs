//! Ten thousand open TCP connections through the TAP that nobody uses: work, and the next one's time, which the host's
//! own connections have as well. What memory they take is [`crate::footprint`]'s.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::Arguments;
use crate::connections::cycle;
use crate::figure::{Baseline, Comparison, Figure, Target, contenders_of, paired};
use crate::lab::REMOTE;
use crate::lab::command::Running;
use crate::lab::processes::{Process, Tree};
use crate::report::Report;
use crate::station::{Contender, Station, closer, inside};
use crate::statistics::median;

/// As the target is worded.
const OPEN: u32 = 10_000;
/// A round takes half a minute.
const ROUNDS: u32 = 7;
/// How long is looked how much nothing costs.
const LOOK: Duration = Duration::from_secs(5);
/// Connections made before those that are timed, on either side: after seconds of rest the first few hundred of any path
/// are up to a third slower, with one open connection as with 10,000.
const WARMING: usize = 600;
/// Connections timed before and after.
const TIMED: usize = 1000;
const DEADLINE: Duration = Duration::from_secs(120);
/// Until then all of a workspace has ended.
pub const GONE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Default)]
struct Measured {
    core_percent: f64,
    slowdown: f64,
}

/// A command that keeps its connections open, and how `ps` shows its command line to begin.
pub struct Holder {
    pub running: Running,
    pub command: String,
    /// Microseconds of a connection before there were so many.
    first: f64,
}

pub fn measure(arguments: &Arguments, report: &Report) -> Result<()> {
    let name = |what: &str| format!("10,000 idle connections, {what}");
    if !descriptors_suffice(OPEN, &name("all"), report) {
        return Ok(());
    }
    let stations = arguments.stations(&[Contender::TAP, Contender::Host, Contender::HostAgain])?;
    let contenders = contenders_of(&stations);
    let figure = |what: &str, unit, limit, comparison| {
        let targets = vec![Target::of(Contender::TAP, Baseline::Host, limit)];
        Figure { name: name(what), unit, comparison, targets }
    };
    let work = figure("work", "% of a core", 1.0, Comparison::Value);
    // "As fast", give or take what two medians of the same differ by here.
    let next = figure("the next one ÷ the first", "×", 1.2, Comparison::Latency);
    let rows = |values: &[Vec<Measured>]| {
        let column = |of: fn(&Measured) -> f64| values.iter().map(|path| path.iter().map(of).collect()).collect();
        // What a workspace costs the host does not have.
        let mut rows = work.rows(&contenders[..1], column(|measured| measured.core_percent));
        rows.extend(next.rows(&contenders, column(|measured| measured.slowdown)));
        rows
    };
    report.add(rows(&paired(report, &name("all"), &stations, ROUNDS.min(arguments.rounds), look, rows)?));
    Ok(())
}

fn look(station: &Station) -> Result<Measured> {
    let mut holder = hold(station, OPEN)?;
    let tree = if station.contender == Contender::TAP { Some(Tree::of(holder.running.pid())?) } else { None };
    let core_percent = tree.as_ref().map(|tree| work(tree, &holder.command)).transpose()?.unwrap_or_default();
    holder.running.write("again\n")?;
    let after: f64 = holder.running.line()?.parse()?;
    holder.running.finish()?.succeeded()?;
    if let Some(tree) = tree {
        tree.is_gone(GONE)?;
    }
    Ok(Measured { core_percent, slowdown: after / holder.first })
}

/// Percent of a core that the workspace takes while nobody uses its connections.
fn work(tree: &Tree, command: &str) -> Result<f64> {
    let ours = tree.but(command)?;
    let (begun, worked) = (Instant::now(), nanoseconds(&ours)?);
    thread::sleep(LOOK);
    let worked = nanoseconds(&ours)? - worked;
    Ok(100.0 * worked / begun.elapsed().as_secs_f64() / 1e9)
}

/// A command on this station's path with so many connections open.
pub fn hold(station: &Station, open: u32) -> Result<Holder> {
    let server = keep(station, open)?;
    let argv = inside(&["hold", &server.to_string(), &closer(REMOTE[0]).to_string(), &open.to_string()]);
    let mut running = station.program(&argv).deadline(DEADLINE).start(&station.workspace.lab.host)?;
    let first: f64 = running.line()?.parse()?;
    running.line_with("open")?;
    Ok(Holder { running, command: argv[..2].join(" "), first })
}

/// The client: microseconds of a connection's cycle, then as many open ones, then the same again at a line of input.
pub fn open(held: SocketAddr, closed: SocketAddr, count: u32) -> Result<()> {
    raise_descriptor_limit();
    let timed = || -> Result<f64> {
        let one = || -> Result<f64> {
            let begun = Instant::now();
            cycle(closed)?;
            Ok(begun.elapsed().as_secs_f64() * 1e6)
        };
        for _ in 0..WARMING {
            one()?;
        }
        Ok(median(&(0..TIMED).map(|_| one()).collect::<Result<Vec<f64>>>()?))
    };
    let say = |text: String| {
        println!("{text}");
        std::io::stdout().flush()
    };
    say(timed()?.to_string())?;
    let streams = (0..count).map(|_| TcpStream::connect(held)).collect::<std::io::Result<Vec<TcpStream>>>()?;
    say("open".to_owned())?;
    std::io::stdin().read_line(&mut String::new())?;
    say(timed()?.to_string())?;
    drop(streams);
    Ok(())
}

/// A server of the remote that keeps what it accepts until the client ends.
fn keep(station: &Station, open: u32) -> Result<SocketAddr> {
    let listener = station.workspace.lab.remote.within(|| TcpListener::bind((REMOTE[0], 0)))?;
    let addr = listener.local_addr()?;
    thread::spawn(move || {
        let mut held: Vec<TcpStream> = listener.incoming().take(open as usize).flatten().collect();
        // The end of the client is the end of its streams.
        if let Some(stream) = held.first_mut() {
            drop(stream.read(&mut [0]));
        }
    });
    Ok(addr)
}

/// What the threads of these processes have run for, out of /proc/PID/task/TID/schedstat.
fn nanoseconds(processes: &[&Process]) -> Result<f64> {
    let mut sum = 0.0;
    for process in processes {
        for task in fs::read_dir(format!("/proc/{}/task", process.pid))? {
            let path = task?.path().join("schedstat");
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let first = text.split(' ').next().and_then(|word| word.parse::<f64>().ok());
            sum += first.with_context(|| format!("no time in {}", path.display()))?;
        }
    }
    ensure!(sum > 0.0, "this kernel does not account the time of tasks");
    Ok(sum)
}

/// Whether so many can be open, which the report is told if not: each of client, forwarder and server has a descriptor a
/// connection, and a few besides.
pub fn descriptors_suffice(open: u32, what: &str, report: &Report) -> bool {
    let needed = u64::from(open) + 500;
    let suffice = raise_descriptor_limit() >= needed;
    if !suffice {
        report.left_out(what, &format!("the hard limit of open files is below {needed}"));
    }
    suffice
}

/// To the hard limit, which is returned.
fn raise_descriptor_limit() -> u64 {
    let maximum = getrlimit(Resource::Nofile).maximum;
    // Failing to raise it shows when the descriptors run out.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    maximum.unwrap_or(u64::MAX)
}
