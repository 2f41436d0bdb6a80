//! From the remote to a published port: bulk TCP, one stream, and new connections a second, which are `connections`
//! turned round. The server is the measured command, the client the remote's.
//!
//! The host's own figures are those of the same server without a workspace. By the bypass the server has a socket of the
//! host, by the forwarder all of it passes the TAP.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::Arguments;
use crate::bulk::{self, Transfer};
use crate::connections::{self, COUNT, Cycles, LISTENING};
use crate::figure::{Baseline, Target};
use crate::lab::HOST_V4;
use crate::lab::command::{DEADLINE, Program, Running};
use crate::lab::netns::Netns;
use crate::lab::processes::Tree;
use crate::peers;
use crate::report::Report;
use crate::station::{Contender, PUBLISHED, Station, inside};

const BYPASS: Contender = Contender::Published { bypass: true };
/// iperf3's client is the one that is asked, so its `--reverse` is what the server sends.
const DIRECTIONS: [(&str, Option<&str>); 2] = [("to", None), ("from", Some("--reverse"))];

pub fn measure(arguments: &Arguments, report: &Report) -> Result<()> {
    let mut contenders = vec![Contender::Host, Contender::HostAgain, BYPASS, Contender::Published { bypass: false }];
    contenders.extend(peers::installed(report));
    let stations = arguments.stations(&contenders)?;
    let targets = || vec![Target::of(BYPASS, Baseline::Host, 0.95)];
    if !bulk::without_iperf3("bulk TCP to a published port", report) {
        for (direction, flag) in DIRECTIONS {
            let figure = bulk::figure(format!("{direction} a published port"), targets());
            let one = |station: &Station| {
                let (at, seconds) = (&station.workspace.lab.remote, arguments.duration);
                let server = serve(station, &iperf3_server(), seconds)?;
                gbits(station, server, at, HOST_V4.into(), flag, seconds)
            };
            report.add(figure.measure(report, &stations, arguments.rounds, one)?);
        }
    }
    for threads in [1, 8] {
        let figure =
            connections::figure(format!("connections to a published port, {}", connections::said(threads)), targets());
        connections::add(arguments, report, &figure, &stations, |station| cycles(station, threads))?;
    }
    Ok(())
}

fn cycles(station: &Station, threads: u32) -> Result<Cycles> {
    let server = serve(station, &inside(&["close", &PUBLISHED.to_string()]), 0)?;
    let to = SocketAddr::new(HOST_V4.into(), PUBLISHED).to_string();
    let client = station.workspace.outside(inside(&["connect", &to, &COUNT.to_string(), &threads.to_string()]));
    let text = ask(station, client.deadline(deadline(station, 0)), &station.workspace.lab.remote, server)?;
    serde_json::from_str(&text).with_context(|| format!("the client printed {text:?}"))
}

/// What iperf3 moves between a client in `at` and the server.
pub fn gbits(
    station: &Station,
    server: Running,
    at: &Netns,
    addr: IpAddr,
    direction: Option<&str>,
    seconds: u32,
) -> Result<f64> {
    let argv = bulk::iperf3(addr, PUBLISHED, "", direction, seconds);
    let client = station.workspace.outside(argv).deadline(deadline(station, seconds));
    Ok(Transfer::parse(&ask(station, client, at, server)?)?.gbits)
}

/// What a client in `at` prints. The server and whoever carries it are gone afterwards, and the port is free.
fn ask(station: &Station, client: Program, at: &Netns, server: Running) -> Result<String> {
    let asked = client.run(at).with_context(|| format!("measuring {}", station.contender));
    // pasta's command does not see the end of its standard input.
    if station.contender.is_another_system() {
        end(server)?
    } else {
        server.finish().map(drop)?
    }
    asked?.output()
}

/// Ends each process: pasta's command has pasta's listening socket, too, and slirp4netns outlives the shell that started
/// it. One that is left keeps the port for the rest of the rounds.
fn end(server: Running) -> Result<()> {
    let tree = Tree::of(server.pid())?;
    tree.kill();
    drop(server);
    tree.is_gone(DEADLINE)
}

/// A peer that stalls must not cost half a minute each round.
fn deadline(station: &Station, seconds: u32) -> Duration {
    let grace = if station.contender.is_another_system() { 10 } else { 30 };
    Duration::from_secs(u64::from(seconds) + grace)
}

/// For one client.
pub fn iperf3_server() -> Vec<String> {
    let port = PUBLISHED.to_string();
    ["iperf3", "--server", "--one-off", "--forceflush", "--port", &port].map(str::to_owned).to_vec()
}

/// A server behind the published port, or at it, ready; for a client of so many seconds.
pub fn serve(station: &Station, argv: &[String], seconds: u32) -> Result<Running> {
    let peer = if let Contender::Peer(peer) = station.contender { Some(peer) } else { None };
    let program = match peer {
        Some(peer) => peer.server(&station.workspace, PUBLISHED, argv),
        None => station.program(argv),
    };
    let mut running = program.deadline(deadline(station, seconds)).start(&station.workspace.lab.host)?;
    let listening = running.line_with(LISTENING).with_context(|| running.stderr());
    match listening.and_then(|_| peer.map_or(Ok(()), |peer| peer.publish(PUBLISHED))) {
        Ok(()) => Ok(running),
        Err(error) => end(running).and(Err(error)),
    }
}
