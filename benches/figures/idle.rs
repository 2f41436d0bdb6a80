//! Ten thousand open TCP connections through the TAP that nobody uses: memory, work, and the next one's time, which the
//! host's own connections have as well.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::connections::cycle;
use crate::figure::{Baseline, Comparison, Figure, Target, contenders_of, paired};
use crate::footprint::{megabytes, ours};
use crate::lab::REMOTE;
use crate::lab::processes::{Process, Tree};
use crate::report::Report;
use crate::station::{Contender, Station, closer, inside};
use crate::statistics::median;

/// As the target is worded.
const OPEN: u32 = 10_000;
/// Each of client, forwarder and server has a descriptor a connection, and a few besides.
const DESCRIPTORS: u64 = OPEN as u64 + 500;
const ROUNDS: u32 = 3;
/// How long is looked how much nothing costs.
const LOOK: Duration = Duration::from_secs(5);
/// Connections timed before and after.
const TIMED: usize = 300;
const DEADLINE: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Default)]
struct Measured {
    megabytes: f64,
    core_percent: f64,
    slowdown: f64,
}

pub fn measure(report: &Report) -> Result<()> {
    let name = |what: &str| format!("10,000 idle connections, {what}");
    if raise_descriptor_limit() < DESCRIPTORS {
        report.left_out(&name("all"), &format!("the hard limit of open files is below {DESCRIPTORS}"));
        return Ok(());
    }
    let stations = Station::all(&[Contender::TAP, Contender::Host, Contender::HostAgain])?;
    let values = paired(report, &name("all"), &stations, ROUNDS, look)?;
    let add = |what: &str, unit, limit, comparison, of: fn(&Measured) -> f64| {
        let targets = vec![Target::of(Contender::TAP, Baseline::Host, limit)];
        let figure = Figure { name: name(what), unit, comparison, targets };
        // What a workspace costs the host does not have.
        let paths = if comparison == Comparison::Value { &stations[..1] } else { &stations[..] };
        let values = values.iter().map(|path| path.iter().map(of).collect()).collect();
        report.add(figure.rows(&contenders_of(paths), values));
    };
    add("PSS", "MB", 64.0, Comparison::Value, |measured| measured.megabytes);
    add("work", "% of a core", 1.0, Comparison::Value, |measured| measured.core_percent);
    // "As fast", give or take what two medians of the same differ by here.
    add("the next one ÷ the first", "×", 1.2, Comparison::Latency, |measured| measured.slowdown);
    Ok(())
}

fn look(station: &Station) -> Result<Measured> {
    let holder = hold(station)?;
    let argv = inside(&["hold", &holder.to_string(), &closer(REMOTE[0]).to_string()]);
    let mut client = station.program(&argv).deadline(DEADLINE).start(&station.workspace.lab.host)?;
    let before: f64 = client.line()?.parse()?;
    client.line_with("open")?;
    let tree = if station.contender == Contender::TAP { Some(Tree::of(client.pid())?) } else { None };
    let mut measured = tree.as_ref().map(|tree| cost(tree, &argv[..2].join(" "))).transpose()?.unwrap_or_default();
    client.write("again\n")?;
    let after: f64 = client.line()?.parse()?;
    client.finish()?.succeeded()?;
    if let Some(tree) = tree {
        tree.is_gone(Duration::from_secs(10))?;
    }
    measured.slowdown = after / before;
    Ok(measured)
}

/// What the workspace costs while nobody uses its connections.
fn cost(tree: &Tree, command: &str) -> Result<Measured> {
    let ours = ours(tree, command)?;
    let (begun, worked) = (Instant::now(), nanoseconds(&ours)?);
    thread::sleep(LOOK);
    let worked = nanoseconds(&ours)? - worked;
    let core_percent = 100.0 * worked / begun.elapsed().as_secs_f64() / 1e9;
    Ok(Measured { megabytes: megabytes(&ours)?, core_percent, slowdown: 0.0 })
}

/// The client: microseconds of a connection's cycle, then as many open ones, then the same again at a line of input.
pub fn open(held: SocketAddr, closed: SocketAddr) -> Result<()> {
    raise_descriptor_limit();
    let timed = || -> Result<f64> {
        let one = || -> Result<f64> {
            let begun = Instant::now();
            cycle(closed)?;
            Ok(begun.elapsed().as_secs_f64() * 1e6)
        };
        Ok(median(&(0..TIMED).map(|_| one()).collect::<Result<Vec<f64>>>()?))
    };
    let say = |text: String| {
        println!("{text}");
        std::io::stdout().flush()
    };
    timed()?;
    say(timed()?.to_string())?;
    let streams = (0..OPEN).map(|_| TcpStream::connect(held)).collect::<std::io::Result<Vec<TcpStream>>>()?;
    say("open".to_owned())?;
    std::io::stdin().read_line(&mut String::new())?;
    say(timed()?.to_string())?;
    drop(streams);
    Ok(())
}

/// A server of the remote that keeps what it accepts until the client ends.
fn hold(station: &Station) -> Result<SocketAddr> {
    let listener = station.workspace.lab.remote.within(|| TcpListener::bind((REMOTE[0], 0)))?;
    let addr = listener.local_addr()?;
    thread::spawn(move || {
        let mut held: Vec<TcpStream> = listener.incoming().take(OPEN as usize).flatten().collect();
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

/// To the hard limit, which is returned.
fn raise_descriptor_limit() -> u64 {
    let maximum = getrlimit(Resource::Nofile).maximum;
    // Failing to raise it shows when the descriptors run out.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    maximum.unwrap_or(u64::MAX)
}
