//! Bulk TCP: what the receiver of an iperf3 run got, in Gbit/s.
//!
//! `send` is from the workspace to the remote, `receive` the other way (iperf3 -R).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::Arguments;
use crate::bypass4netns;
use crate::figure::{Baseline, Comparison, Figure, Target, contenders_of, paired};
use crate::lab::REMOTE;
use crate::machine::find;
use crate::peers;
use crate::report::Report;
use crate::station::{Contender, IPERF3_PORT, Station};

/// The two directions and iperf3's flag for each.
pub const DIRECTIONS: [(&str, Option<&str>); 2] = [("send", None), ("receive", Some("--reverse"))];

const TAP_65520: Contender = Contender::Tap { mtu: 65520 };
/// Seconds; iperf3 tells nothing finer.
const INTERVAL: &str = "--interval 0.1";

/// What an iperf3 run moved.
#[derive(Clone, Default)]
pub struct Transfer {
    pub gbits: f64,
    pub gigabytes: f64,
    /// Seconds since the start, and Gbit/s until then, as the client saw them.
    pub course: Vec<(f64, f64)>,
}

/// One stream, by both families and beside the peers.
pub fn measure(arguments: &Arguments, report: &Report) -> Result<()> {
    if without_iperf3("bulk", report) {
        return Ok(());
    }
    let mut contenders = vec![Contender::Host, Contender::HostAgain, Contender::TAP, TAP_65520, Contender::Bypass];
    contenders.extend(peers::installed(report));
    contenders.extend(bypass4netns::installed(report));
    let stations = arguments.stations(&contenders)?;
    for server in arguments.iperf3_servers() {
        let family = if server.is_ipv4() { "IPv4" } else { "IPv6" };
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
            let one = |station: &Station| transfer(station, server, INTERVAL, flag, arguments.duration);
            let rows = |transfers: &[Vec<Transfer>]| {
                let rates = transfers.iter().map(|rounds| rounds.iter().map(|round| round.gbits).collect());
                figure.rows(&contenders_of(&stations), rates.collect())
            };
            let transfers = paired(report, &figure.name, &stations, arguments.rounds, one, rows)?;
            report.add(rows(&transfers));
            report.add_courses(&figure.name, &stations, &transfers);
        }
    }
    Ok(())
}

/// Several streams, compared with as many of the host's.
pub fn parallel(arguments: &Arguments, report: &Report) -> Result<()> {
    if without_iperf3("parallel", report) {
        return Ok(());
    }
    let ours = [Contender::Host, Contender::HostAgain, Contender::TAP, Contender::Bypass];
    let stations = arguments.stations(&ours)?;
    let server = arguments.iperf3_servers()[0];
    for streams in [4, 16] {
        for (direction, flag) in DIRECTIONS {
            let targets = vec![Target::of(Contender::TAP, Baseline::Host, 0.4)];
            let figure = figure(format!("{direction}, {streams} streams"), targets);
            let flags = format!("--parallel {streams}");
            let all = |station: &Station| received(station, server, &flags, flag, arguments.duration);
            report.add(figure.measure(report, &stations, arguments.rounds, all)?);
        }
    }
    Ok(())
}

/// From a container of the workspace's own.
pub fn nested(arguments: &Arguments, report: &Report) -> Result<()> {
    if without_iperf3("nested", report) {
        return Ok(());
    }
    let stations = arguments.stations(&[Contender::Host, Contender::HostAgain, Contender::Nested])?;
    for (direction, flag) in DIRECTIONS {
        let targets = vec![Target::of(Contender::Nested, Baseline::Host, 0.3)];
        let figure = figure(format!("{direction}, from a container inside"), targets);
        let one = |station: &Station| gbits(station, REMOTE[0], flag, arguments.duration);
        report.add(figure.measure(report, &stations, arguments.rounds, one)?);
    }
    Ok(())
}

/// Whether iperf3 is missing, which the report then says.
pub fn without_iperf3(what: &str, report: &Report) -> bool {
    let missing = find("iperf3").is_none();
    if missing {
        report.left_out(what, "no iperf3");
    }
    missing
}

pub fn figure(name: String, targets: Vec<Target>) -> Figure {
    Figure { name, unit: "Gbit/s", comparison: Comparison::Rate, targets }
}

/// One stream to the lab's own server.
pub fn gbits(station: &Station, addr: IpAddr, direction: Option<&str>, seconds: u32) -> Result<f64> {
    received(station, SocketAddr::new(addr, IPERF3_PORT), "", direction, seconds)
}

/// What the receiver of an iperf3 run got.
pub fn received(
    station: &Station,
    server: SocketAddr,
    flags: &str,
    direction: Option<&str>,
    seconds: u32,
) -> Result<f64> {
    Ok(transfer(station, server, flags, direction, seconds)?.gbits)
}

fn transfer(
    station: &Station,
    server: SocketAddr,
    flags: &str,
    direction: Option<&str>,
    seconds: u32,
) -> Result<Transfer> {
    let argv = iperf3(server.ip(), server.port(), flags, direction, seconds);
    // A peer that stalls, and pasta does, must not cost half a minute each round.
    let grace = if station.contender.is_another_system() { 5 } else { 30 };
    let deadline = Duration::from_secs(u64::from(seconds) + grace);
    // Newer ones do not only say that it is an error, but also fail.
    let printed = station.run(&argv, deadline).or_else(|error| {
        let text = format!("{error:#}");
        said(&text).is_some().then_some(text).ok_or(error)
    })?;
    Transfer::parse(&printed).with_context(|| format!("measuring {}", station.contender))
}

/// The command line of a client.
pub fn iperf3(addr: IpAddr, port: u16, flags: &str, direction: Option<&str>, seconds: u32) -> Vec<String> {
    let line = format!("iperf3 --json --client {addr} --port {port} --time {seconds} {flags}");
    line.split_whitespace().chain(direction).map(str::to_owned).collect()
}

/// What `iperf3 --json` complains of, found in what it printed, perhaps among other output.
pub fn said(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("\"error\":")?;
    let complaint = rest.split('"').nth(1)?;
    Some(complaint.trim_start_matches("error - "))
}

impl Transfer {
    /// Of what `iperf3 --json` printed.
    pub fn parse(text: &str) -> Result<Self> {
        if let Some(said) = said(text) {
            bail!("iperf3: {said}");
        }
        let report: serde_json::Value = serde_json::from_str(text).context("iperf3 --json")?;
        let received = &report["end"]["sum_received"];
        let number = |value: &serde_json::Value| value.as_f64().with_context(|| format!("no rate in {text}"));
        let interval = |one: &serde_json::Value| {
            Some((one["sum"]["end"].as_f64()?, one["sum"]["bits_per_second"].as_f64()? / 1e9))
        };
        Ok(Self {
            gbits: number(&received["bits_per_second"])? / 1e9,
            gigabytes: number(&received["bytes"])? / 1e9,
            course: report["intervals"].as_array().into_iter().flatten().filter_map(interval).collect(),
        })
    }
}
