//! New connections a second: the whole cycle connect → wait for the server's close → close, nothing sent.
//!
//! The client is this program, run on the path under test. The server is a thread of this program with a socket in the
//! remote namespace; it closes first, so that TIME_WAIT is its own and the client's ports stay free.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

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
/// Whoever is slower has made fewer by then: a peer under whom single connections stand still is measured as well.
const LIMIT: Duration = Duration::from_secs(5);
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

/// The client: `count` connections in all, or those of [`LIMIT`]. Threads that are in the middle of one then end with the
/// process.
pub fn connect(addr: SocketAddr, count: u32, threads: u32) -> Result<Cycles> {
    ensure!(threads > 0 && count >= threads, "{count} connections by {threads} threads");
    let each = count / threads;
    let recorders: Vec<_> = (0..threads).map(|_| Ok(Arc::new(Mutex::new(Recorder::new()?)))).collect::<Result<_>>()?;
    let (ended, ends) = channel();
    let begun = Instant::now();
    for recorder in &recorders {
        let (recorder, ended) = (Arc::clone(recorder), ended.clone());
        thread::spawn(move || ended.send(timed_cycles(addr, each, &recorder)));
    }
    for _ in 0..threads {
        match ends.recv_timeout(LIMIT.saturating_sub(begun.elapsed())) {
            Ok(cycled) => cycled.with_context(|| format!("a connection to {addr}"))?,
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) => unreachable!("this function has a sender, too"),
        }
    }
    let took = begun.elapsed();
    let mut all = Recorder::new()?;
    for recorder in &recorders {
        all.merge(&recorder.lock().unwrap_or_else(PoisonError::into_inner))?;
    }
    ensure!(all.count() > 0, "not one connection to {addr} within {LIMIT:?}");
    Ok(Cycles { per_second: f64::from(u32::try_from(all.count())?) / took.as_secs_f64(), times: all.times() })
}

fn timed_cycles(addr: SocketAddr, count: u32, recorder: &Mutex<Recorder>) -> Result<()> {
    for _ in 0..count {
        let begun = Instant::now();
        cycle(addr)?;
        // Nobody else wants it before the end.
        recorder.lock().unwrap_or_else(PoisonError::into_inner).record(begun.elapsed())?;
    }
    Ok(())
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

/// The same as a program by itself, until the end of its standard input.
pub fn close(port: u16) -> Result<()> {
    close_all(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("listen at port {port}"))?);
    println!("{LISTENING}");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
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
