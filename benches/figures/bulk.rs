//! Bulk TCP: what the receiver of an iperf3 run got, in Gbit/s.
//!
//! `send` is from the workspace to the remote, `receive` the other way (iperf3 -R).

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::Arguments;
use crate::figure::{Baseline, Comparison, Figure, Target};
use crate::lab::REMOTE;
use crate::peers;
use crate::report::Report;
use crate::station::{Contender, IPERF3_PORT, Station};

/// The two directions and iperf3's flag for each.
pub const DIRECTIONS: [(&str, Option<&str>); 2] = [("send", None), ("receive", Some("--reverse"))];

const TAP_65520: Contender = Contender::Tap { mtu: 65520 };

/// One stream, by both families and beside the peers.
pub fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let ours = [Contender::Host, Contender::HostAgain, Contender::TAP, TAP_65520, Contender::Bypass];
    let stations = Station::all(&[&ours[..], &peers::installed(report)].concat())?;
    for (family, addr) in ["IPv4", "IPv6"].into_iter().zip(REMOTE) {
        for (direction, flag) in DIRECTIONS {
            let to_host = if flag.is_none() { 0.5 } else { 0.45 };
            let figure = figure(
                format!("{direction}, {family}"),
                vec![
                    Target::of(Contender::Bypass, Baseline::Host, 0.95),
                    Target::of(Contender::TAP, Baseline::Host, to_host),
                    Target::of(Contender::TAP, Baseline::BetterPeer, 1.0),
                    Target::of(Contender::TAP, Baseline::Path(TAP_65520), 0.8),
                    Target::of(TAP_65520, Baseline::Host, to_host),
                    Target::of(TAP_65520, Baseline::BetterPeer, 1.0),
                ],
            );
            let one = |station: &Station| gbits(station, addr, flag, arguments.seconds, 1);
            report.add(figure.measure(&stations, arguments.rounds, one)?);
        }
    }
    Ok(())
}

/// Several streams, compared with as many of the host's.
pub fn parallel(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let stations = Station::all(&[Contender::Host, Contender::HostAgain, Contender::TAP, Contender::Bypass])?;
    for streams in [4, 16] {
        for (direction, flag) in DIRECTIONS {
            let targets = vec![Target::of(Contender::TAP, Baseline::Host, 0.4)];
            let figure = figure(format!("{direction}, {streams} streams"), targets);
            let all = |station: &Station| gbits(station, REMOTE[0], flag, arguments.seconds, streams);
            report.add(figure.measure(&stations, arguments.rounds, all)?);
        }
    }
    Ok(())
}

/// From a container of the workspace's own.
pub fn nested(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let stations = Station::all(&[Contender::Host, Contender::HostAgain, Contender::Nested])?;
    for (direction, flag) in DIRECTIONS {
        let targets = vec![Target::of(Contender::Nested, Baseline::Host, 0.3)];
        let figure = figure(format!("{direction}, from a container inside"), targets);
        let one = |station: &Station| gbits(station, REMOTE[0], flag, arguments.seconds, 1);
        report.add(figure.measure(&stations, arguments.rounds, one)?);
    }
    Ok(())
}

pub fn figure(name: String, targets: Vec<Target>) -> Figure {
    Figure { name, unit: "Gbit/s", comparison: Comparison::Rate, targets }
}

/// One iperf3 run.
pub fn gbits(station: &Station, addr: IpAddr, direction: Option<&str>, seconds: u32, streams: u32) -> Result<f64> {
    received(station, addr, &format!("--parallel {streams}"), direction, seconds)
}

/// What the receiver of an iperf3 run got.
pub fn received(station: &Station, addr: IpAddr, flags: &str, direction: Option<&str>, seconds: u32) -> Result<f64> {
    let line = format!("iperf3 --json --client {addr} --port {IPERF3_PORT} --time {seconds} {flags}");
    let argv: Vec<String> = line.split(' ').chain(direction).map(str::to_owned).collect();
    // A peer that stalls, and pasta does, must not cost half a minute each round.
    let grace = if station.contender.is_another_system() { 5 } else { 30 };
    rate(&station.run(&argv, Duration::from_secs(u64::from(seconds) + grace))?)
}

/// The same from what `iperf3 --json` has printed.
pub fn rate(text: &str) -> Result<f64> {
    let report: serde_json::Value = serde_json::from_str(text).context("iperf3 --json")?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(bits.with_context(|| format!("no rate in {text}"))? / 1e9)
}
