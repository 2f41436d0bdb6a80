//! `make demo`: one short table for a look rather than for a promise: two rounds, after one that does not count.

use anyhow::Result;

use crate::bulk::{DIRECTIONS, gbits};
use crate::connections::cycles;
use crate::figure::unreported;
use crate::lab::REMOTE;
use crate::report::number;
use crate::station::{Contender, Station};
use crate::statistics::median;

const ROUNDS: u32 = 2;
/// Of each iperf3 run: two in all.
const SECONDS: u32 = 1;
/// Of each run: 2,000 in all.
const CONNECTIONS: u32 = 1000;

pub fn run() -> Result<()> {
    let stations = Station::all(&Contender::OURS)?;
    let mut lines = Vec::new();
    for (direction, flag) in DIRECTIONS {
        let measure = |station: &Station| gbits(station, REMOTE[0], flag, SECONDS);
        let (values, _) = unreported(&format!("iperf3, {direction}"), &stations, ROUNDS, measure, |_| ())?;
        lines.push(line(&format!("{direction}, Gbit/s"), &values));
    }
    let measure = |station: &Station| Ok(cycles(station, CONNECTIONS, 1)?.per_second);
    let (values, _) = unreported("short connections", &stations, ROUNDS, measure, |_| ())?;
    lines.push(line("new connections a second", &values));

    let columns: Vec<String> = stations.iter().map(|station| station.contender.to_string()).collect();
    println!("| TCP over IPv4, one stream | {} |", columns.join(" | "));
    println!("|---|{}", "---:|".repeat(columns.len()));
    println!("{}", lines.join("\n"));
    println!("\n(in brackets: the ratio to the host; `make bench` tells how sure such numbers are)");
    Ok(())
}

/// The values of each station, the host's first.
fn line(name: &str, values: &[Vec<f64>]) -> String {
    let cell = |path: &Vec<f64>| {
        let ratios: Vec<f64> = path.iter().zip(&values[0]).map(|(value, host)| value / host).collect();
        format!("{} ({:.2})", number(median(path)), median(&ratios))
    };
    let others = values[1..].iter().map(cell);
    let cells: Vec<String> = std::iter::once(number(median(&values[0]))).chain(others).collect();
    format!("| {name} | {} |", cells.join(" | "))
}
