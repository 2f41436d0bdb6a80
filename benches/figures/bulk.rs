//! Bulk TCP: what the receiver of an iperf3 run got, in Gbit/s.
//!
//! `send` is from the workspace to the remote, `receive` the other way (iperf3 -R).

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::Arguments;
use crate::figure::{Comparison, Figure};
use crate::lab::REMOTE;
use crate::peers;
use crate::report::Report;
use crate::station::{Contender, IPERF3_PORT, Station};

/// The two directions and iperf3's flag for each.
pub const DIRECTIONS: [(&str, Option<&str>); 2] = [("send", None), ("receive", Some("--reverse"))];

pub fn measure(arguments: &Arguments, streams: u32, report: &mut Report) -> Result<()> {
    let mut contenders = vec![
        Contender::Host,
        Contender::HostAgain,
        Contender::Tap { mtu: 1500 },
        Contender::Tap { mtu: 65520 },
        Contender::Bypass,
    ];
    if arguments.peers {
        contenders.extend(peers::installed(&[1500, 65520]));
    }
    let stations = Station::all(&contenders)?;
    let without_peers = stations.iter().position(|station| matches!(station.contender, Contender::Peer(_)));
    for addr in REMOTE {
        let ipv4 = addr.is_ipv4();
        let stations = if ipv4 { &stations[..] } else { &stations[..without_peers.unwrap_or(stations.len())] };
        for (direction, flag) in DIRECTIONS {
            let streams_said = if streams == 1 { String::new() } else { format!(", {streams} streams") };
            let figure = Figure {
                name: format!("{direction}, {}{streams_said}", if ipv4 { "IPv4" } else { "IPv6" }),
                unit: "Gbit/s",
                comparison: Comparison::Ratio,
                target: if streams == 1 { target } else { |_| None },
            };
            report.add(figure.measure(stations, arguments.rounds, |station| {
                gbits(station, addr, flag, arguments.seconds, streams)
            })?);
        }
    }
    Ok(())
}

/// Promised at MTU 1500, the default; 65520 is there to see.
fn target(contender: Contender) -> Option<f64> {
    match contender {
        Contender::Bypass => Some(0.95),
        Contender::Tap { mtu: 1500 } => Some(0.4),
        _ => None,
    }
}

/// One iperf3 run.
pub fn gbits(station: &Station, addr: IpAddr, direction: Option<&str>, seconds: u32, streams: u32) -> Result<f64> {
    let line = format!("iperf3 --json --client {addr} --port {IPERF3_PORT} --time {seconds} --parallel {streams}");
    let argv: Vec<String> = line.split(' ').chain(direction).map(str::to_owned).collect();
    let text = station.run(&argv, Duration::from_secs(u64::from(seconds) + 30))?;
    let report: serde_json::Value = serde_json::from_str(&text).context("iperf3 --json")?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(bits.with_context(|| format!("no rate in {text}"))? / 1e9)
}
