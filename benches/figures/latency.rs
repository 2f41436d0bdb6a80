//! Request and response: one byte there, one byte back, on one connection, again and again; microseconds of each.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::Arguments;
use crate::bypass4netns;
use crate::figure::{Baseline, Comparison, Figure, Target, contenders_of, paired};
use crate::lab::REMOTE;
use crate::lab::netns::Netns;
use crate::peers;
use crate::report::Report;
use crate::station::{Contender, Station};
use crate::times::{Recorder, Times};

const PORT: u16 = 7001;
/// Half a second of the host's at most.
const COUNT: u32 = 10_000;

pub fn measure(arguments: &Arguments, report: &Report) -> Result<()> {
    let mut contenders = vec![Contender::Host, Contender::HostAgain, Contender::TAP, Contender::Bypass];
    contenders.extend(peers::installed(report));
    contenders.extend(bypass4netns::installed(report));
    let stations = arguments.stations(&contenders)?;
    let figure = Figure {
        name: "request and response".to_owned(),
        unit: "µs",
        comparison: Comparison::Latency,
        targets: vec![Target::of(Contender::TAP, Baseline::BetterPeer, 1.0)],
    };
    let (addr, count) = (SocketAddr::new(REMOTE[0], PORT).to_string(), COUNT.to_string());
    let one = |station: &Station| -> Result<(f64, Times)> {
        let times: Times = station.answer(&["ping-pong", &addr, &count])?;
        Ok((times.median()?, times))
    };
    let rows = |values: &[Vec<(f64, Times)>]| {
        let medians = values.iter().map(|rounds| rounds.iter().map(|&(median, _)| median).collect());
        figure.rows(&contenders_of(&stations), medians.collect())
    };
    let values = paired(report, &figure.name, &stations, arguments.rounds, one, rows)?;
    report.add(rows(&values));
    let times: Vec<Vec<Times>> =
        values.into_iter().map(|rounds| rounds.into_iter().map(|(_, times)| times).collect()).collect();
    report.add_times(&figure.name, &stations, &times)
}

/// The client.
pub fn ping_pong(addr: SocketAddr, count: u32) -> Result<Times> {
    let mut stream = TcpStream::connect(addr).with_context(|| format!("a connection to {addr}"))?;
    stream.set_nodelay(true)?;
    let mut recorder = Recorder::new()?;
    for _ in 0..count {
        let begun = Instant::now();
        stream.write_all(&[1])?;
        stream.read_exact(&mut [0])?;
        recorder.record(begun.elapsed())?;
    }
    Ok(recorder.times())
}

/// Answers every byte until the process ends.
pub fn serve(netns: &Netns, addr: IpAddr) -> Result<()> {
    let listener = netns.within(|| TcpListener::bind((addr, PORT))).with_context(|| format!("listen at {addr}"))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that goes away ends its connection and nothing else.
            thread::spawn(move || drop(echo(stream)));
        }
    });
    Ok(())
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}
