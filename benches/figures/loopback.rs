//! Bulk TCP from the host's loopback to a published port: what does not pass the TAP.
//!
//! `send` is from the host into the workspace, `receive` the other way (iperf3 -R). The host's own figure is the same
//! without a workspace. slirp4netns is not in it: its published ports lead through its TAP.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::Arguments;
use crate::bulk::{self, DIRECTIONS, Transfer};
use crate::figure::{Baseline, Target};
use crate::lab::CUBIC;
use crate::lab::command::{Program, Running};
use crate::peers::{self, Peer};
use crate::report::Report;
use crate::station::{Contender, PUBLISHED, Station};

/// Runs its arguments with cubic on the namespace's own addresses, too, as everywhere in the lab.
const WITH_CUBIC: &str = "ip -4 route show table local type local | while read -r route; do
    ip route change table local $route CUBIC || exit
done
exec \"$@\"";

pub fn measure(arguments: &Arguments, report: &Report) -> Result<()> {
    if bulk::without_iperf3("loopback", report) {
        return Ok(());
    }
    let ours = [Contender::Host, Contender::HostAgain, Contender::Published];
    let pasta = peers::installed(report).into_iter().filter(|&peer| peer == Contender::Peer(Peer::Pasta));
    let stations = Station::all(&ours.into_iter().chain(pasta).collect::<Vec<_>>())?;
    for station in &stations {
        Program::new(with_cubic(&["true"])).run(&station.workspace.lab.host)?.succeeded()?;
    }
    for (direction, flag) in DIRECTIONS {
        let targets = vec![
            Target::of(Contender::Published, Baseline::Host, 0.7),
            Target::of(Contender::Published, Baseline::BetterPeer, 1.0),
        ];
        let figure = bulk::figure(format!("{direction}, by the host's loopback"), targets);
        let one = |station: &Station| gbits(station, flag, arguments.duration);
        report.add(figure.measure(report, &stations, arguments.rounds, one)?);
    }
    Ok(())
}

fn gbits(station: &Station, flag: Option<&str>, seconds: u32) -> Result<f64> {
    let server = serve(station, seconds)?;
    let argv = bulk::iperf3(Ipv4Addr::LOCALHOST.into(), PUBLISHED, "", flag, seconds);
    let client = station.workspace.outside(argv).deadline(deadline(seconds));
    let text = client.run(&station.workspace.lab.host)?.output();
    let transfer = Transfer::parse(&text.with_context(|| format!("measuring {}", station.contender))?)?;
    // To the end: of a killed pasta the port stays with the command it started.
    server.finish()?;
    Ok(transfer.gbits)
}

fn deadline(seconds: u32) -> Duration {
    Duration::from_secs(u64::from(seconds) + 30)
}

/// An iperf3 server behind the published port, or at it, for one client.
fn serve(station: &Station, seconds: u32) -> Result<Running> {
    let port = PUBLISHED.to_string();
    let server = ["iperf3", "--server", "--one-off", "--forceflush", "--port", &port];
    let program = match station.contender {
        Contender::Peer(_) => peers::pasta_with(&station.workspace, &["--tcp-ports", &port], &with_cubic(&server)),
        Contender::Published => station.program(&with_cubic(&server)),
        _ => station.program(&server.map(str::to_owned)),
    };
    let mut running = program.deadline(deadline(seconds)).start(&station.workspace.lab.host)?;
    running.line_with("Server listening").with_context(|| running.stderr())?;
    Ok(running)
}

fn with_cubic(argv: &[&str]) -> Vec<String> {
    let script = WITH_CUBIC.replace("CUBIC", CUBIC);
    ["sh", "-c", &script, "sh"].iter().chain(argv).map(|&word| word.to_owned()).collect()
}
