//! New connections a second: the whole cycle connect → wait for the server's close → close, nothing sent.
//!
//! The client is this program, run on the path under test. The server is a thread of this program with a socket in the
//! remote namespace; it closes first, so that TIME_WAIT is its own and the client's ports stay free.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::Arguments;
use crate::figure::{Comparison, Figure};
use crate::lab::REMOTE;
use crate::lab::netns::Netns;
use crate::peers;
use crate::report::Report;
use crate::station::{Contender, Station, closer};

pub const PORT: u16 = 7000;
/// A tenth of a second of the host's, half a second of the TAP's.
const COUNT: u32 = 4000;

pub fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let mut contenders = vec![Contender::Host, Contender::HostAgain, Contender::Tap { mtu: 1500 }, Contender::Bypass];
    if arguments.peers {
        contenders.extend(peers::installed(&[1500]));
    }
    let stations = Station::all(&contenders)?;
    for threads in [1, 8] {
        let figure = Figure {
            name: format!("connections, {threads} thread{}", if threads == 1 { "" } else { "s" }),
            unit: "/s",
            comparison: Comparison::Ratio,
            target: if threads == 1 { target } else { |_| None },
        };
        report.add(figure.measure(&stations, arguments.rounds, |station| per_second(station, COUNT, threads))?);
    }
    Ok(())
}

fn target(contender: Contender) -> Option<f64> {
    match contender {
        Contender::Bypass => Some(0.25),
        Contender::Tap { .. } => Some(0.2),
        _ => None,
    }
}

/// Connections a second on this station's path, over IPv4.
pub fn per_second(station: &Station, count: u32, threads: u32) -> Result<f64> {
    station.figure(&["connect", &closer(REMOTE[0]).to_string(), &count.to_string(), &threads.to_string()])
}

/// The client: `count` connections in all.
pub fn connect(addr: SocketAddr, count: u32, threads: u32) -> Result<f64> {
    ensure!(threads > 0 && count >= threads, "{count} connections by {threads} threads");
    let each = count / threads;
    let begun = Instant::now();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| (0..each).try_for_each(|_| cycle(addr)))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| unreachable!("a cycle panicked")))
    })
    .with_context(|| format!("a connection to {addr}"))?;
    Ok(f64::from(each * threads) / begun.elapsed().as_secs_f64())
}

fn cycle(addr: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(addr)?;
    stream.read(&mut [0]).map(drop)
}

/// Accepts and closes until the process ends.
pub fn serve(netns: &Netns, addr: IpAddr) -> Result<()> {
    let listener = netns.within(|| TcpListener::bind((addr, PORT))).with_context(|| format!("listen at {addr}"))?;
    thread::spawn(move || {
        loop {
            // A client that is gone before it was accepted is none of the server's business.
            drop(listener.accept());
        }
    });
    Ok(())
}
