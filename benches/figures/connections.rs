//! New connections a second: the whole cycle connect → wait for the server's close → close, nothing sent.
//!
//! The client is this program, run on the path under test. The server is a thread of this program with a socket in the
//! remote namespace; it closes first, so that TIME_WAIT is its own and the client's ports stay free.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::Arguments;
use crate::bypass4netns;
use crate::figure::{Baseline, Comparison, Figure, Target, contenders_of, paired};
use crate::lab::REMOTE;
use crate::lab::netns::Netns;
use crate::peers;
use crate::report::Report;
use crate::station::{Contender, Station, closer};
use crate::times::{Recorder, Times};

pub const PORT: u16 = 7000;
/// A tenth of a second of the host's, half a second of the TAP's.
pub const COUNT: u32 = 4000;
/// What [`close`] prints once it is ready, as iperf3 does.
pub const LISTENING: &str = "Server listening";

/// What one run of the client found.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Cycles {
    pub per_second: f64,
    /// From connect(2) to the server's close, each.
    times: Times,
}

/// To the remote, beside everyone who does the same.
pub fn measure(arguments: &Arguments, report: &Report) -> Result<()> {
    let mut contenders = vec![Contender::Host, Contender::HostAgain, Contender::TAP, Contender::Bypass];
    contenders.extend(peers::installed(report));
    contenders.extend(bypass4netns::installed(report));
    let stations = arguments.stations(&contenders)?;
    for (threads, tap_to_host) in [(1, 0.25), (8, 0.4)] {
        let mut targets = vec![
            Target::of(Contender::TAP, Baseline::Host, tap_to_host),
            Target::of(Contender::TAP, Baseline::BetterPeer, 1.1),
            Target::of(Contender::Bypass, Baseline::Host, 0.33),
        ];
        if threads == 1 {
            targets.push(Target::of(Contender::Bypass, Baseline::Path(Contender::Bypass4netns), 4.0));
        }
        let figure = figure(format!("connections, {}", said(threads)), targets);
        let one = |station: &Station| cycles(station, COUNT, threads);
        add(arguments, report, &figure, &stations, one)?;
    }
    Ok(())
}

/// To 127.0.0.1 within the workspace, where the supervisor connects the process's own socket.
pub fn in_place(arguments: &Arguments, report: &Report) -> Result<()> {
    let stations = arguments.stations(&[Contender::Host, Contender::HostAgain, Contender::TAP, Contender::Bypass])?;
    for threads in [1, 8] {
        let targets = vec![Target::of(Contender::Bypass, Baseline::Host, 0.4)];
        let figure = figure(format!("connections to 127.0.0.1, {}", said(threads)), targets);
        let (count, words) = (COUNT.to_string(), threads.to_string());
        let one = |station: &Station| station.answer(&["connect-in-place", &count, &words]);
        add(arguments, report, &figure, &stations, one)?;
    }
    Ok(())
}

pub fn figure(name: String, targets: Vec<Target>) -> Figure {
    Figure { name, unit: "/s", comparison: Comparison::Rate, targets }
}

pub fn said(threads: u32) -> String {
    if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") }
}

/// Measures, and adds the rates and the times behind them.
pub fn add(
    arguments: &Arguments,
    report: &Report,
    figure: &Figure,
    stations: &[Station],
    measure: impl Fn(&Station) -> Result<Cycles>,
) -> Result<()> {
    let rows = |cycles: &[Vec<Cycles>]| {
        let rates = cycles.iter().map(|rounds| rounds.iter().map(|round| round.per_second).collect());
        figure.rows(&contenders_of(stations), rates.collect())
    };
    let cycles = paired(report, &figure.name, stations, arguments.rounds, measure, rows)?;
    report.add(rows(&cycles));
    let times: Vec<Vec<Times>> =
        cycles.iter().map(|rounds| rounds.iter().map(|round| round.times.clone()).collect()).collect();
    report.add_times(&figure.name, stations, &times)
}

/// Connections on this station's path, over IPv4.
pub fn cycles(station: &Station, count: u32, threads: u32) -> Result<Cycles> {
    station.answer(&["connect", &closer(REMOTE[0]).to_string(), &count.to_string(), &threads.to_string()])
}

/// The client: `count` connections in all.
pub fn connect(addr: SocketAddr, count: u32, threads: u32) -> Result<Cycles> {
    ensure!(threads > 0 && count >= threads, "{count} connections by {threads} threads");
    let each = count / threads;
    let mut all = Recorder::new()?;
    let begun = Instant::now();
    let recorders = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| timed_cycles(addr, each))).collect();
        let join = |worker: thread::ScopedJoinHandle<Result<Recorder>>| {
            worker.join().unwrap_or_else(|_| unreachable!("a cycle panicked"))
        };
        workers.into_iter().map(join).collect::<Result<Vec<Recorder>>>()
    })
    .with_context(|| format!("a connection to {addr}"))?;
    let per_second = f64::from(each * threads) / begun.elapsed().as_secs_f64();
    recorders.iter().try_for_each(|recorder| all.merge(recorder))?;
    Ok(Cycles { per_second, times: all.times() })
}

fn timed_cycles(addr: SocketAddr, count: u32) -> Result<Recorder> {
    let mut recorder = Recorder::new()?;
    for _ in 0..count {
        let begun = Instant::now();
        cycle(addr)?;
        recorder.record(begun.elapsed())?;
    }
    Ok(recorder)
}

pub fn cycle(addr: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(addr)?;
    stream.read(&mut [0]).map(drop)
}

/// The same with client and server in one network namespace, over the loopback device.
pub fn connect_in_place(count: u32, threads: u32) -> Result<Cycles> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let addr = listener.local_addr()?;
    close_all(listener);
    connect(addr, count, threads)
}

/// Accepts and closes until the process ends.
pub fn serve(netns: &Netns, addr: IpAddr) -> Result<()> {
    close_all(netns.within(|| TcpListener::bind((addr, PORT))).with_context(|| format!("listen at {addr}"))?);
    Ok(())
}

/// The same as a program by itself, for so many.
pub fn close(port: u16, count: u32) -> Result<()> {
    let listener =
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("listen at port {port}"))?;
    println!("{LISTENING}");
    for _ in 0..count {
        drop(listener.accept());
    }
    Ok(())
}

fn close_all(listener: TcpListener) {
    thread::spawn(move || {
        loop {
            // A client that is gone before it was accepted is none of the server's business.
            drop(listener.accept());
        }
    });
}
