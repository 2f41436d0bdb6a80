//! Bulk TCP from the host's loopback to a published port: what does not pass the TAP.
//!
//! `send` is from the host into the workspace, `receive` the other way (iperf3 -R). The host's own figure is the same
//! without a workspace. slirp4netns is not in it: its published ports lead through its TAP.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::Arguments;
use crate::bulk::{self, DIRECTIONS};
use crate::figure::{Baseline, Target};
use crate::lab::CUBIC;
use crate::lab::command::Program;
use crate::peers::{self, Peer};
use crate::published;
use crate::report::Report;
use crate::station::{Contender, Station};

const FORWARDER: Contender = Contender::Published { bypass: false };

/// Runs its arguments with cubic on the namespace's own addresses, too, as everywhere in the lab.
const WITH_CUBIC: &str = "ip -4 route show table local type local | while read -r route; do
    ip route change table local $route CUBIC || exit
done
exec \"$@\"";

pub fn measure(arguments: &Arguments, report: &Report) -> Result<()> {
    if bulk::without_iperf3("loopback", report) {
        return Ok(());
    }
    let ours = [Contender::Host, Contender::HostAgain, FORWARDER];
    let pasta = peers::installed(report).into_iter().filter(|&peer| peer == Contender::Peer(Peer::Pasta));
    let stations = Station::all(&ours.into_iter().chain(pasta).collect::<Vec<_>>())?;
    for station in &stations {
        Program::new(with_cubic(&["true".to_owned()])).run(&station.workspace.lab.host)?.succeeded()?;
    }
    for (direction, flag) in DIRECTIONS {
        let targets =
            vec![Target::of(FORWARDER, Baseline::Host, 0.7), Target::of(FORWARDER, Baseline::BetterPeer, 1.0)];
        let figure = bulk::figure(format!("{direction}, by the host's loopback"), targets);
        let one = |station: &Station| gbits(station, flag, arguments.duration);
        report.add(figure.measure(report, &stations, arguments.rounds, one)?);
    }
    Ok(())
}

fn gbits(station: &Station, flag: Option<&str>, seconds: u32) -> Result<f64> {
    let server = published::iperf3_server();
    let server = match station.contender {
        // Its namespace has it already.
        Contender::Host | Contender::HostAgain => server,
        _ => with_cubic(&server),
    };
    let server = published::serve(station, &server, seconds)?;
    published::gbits(station, server, &station.workspace.lab.host, Ipv4Addr::LOCALHOST.into(), flag, seconds)
}

fn with_cubic(argv: &[String]) -> Vec<String> {
    let script = WITH_CUBIC.replace("CUBIC", CUBIC);
    ["sh", "-c", &script, "sh"].map(str::to_owned).iter().chain(argv).cloned().collect()
}
