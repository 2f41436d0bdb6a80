//! `make demo`: one short table for a look rather than for a promise: two rounds, after one that does not count.

use anyhow::Result;

use crate::bulk::{DIRECTIONS, gbits};
use crate::connections::per_second;
use crate::figure::paired;
use crate::lab::REMOTE;
use crate::report::{number, progress};
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
        progress(&format!("iperf3, {direction}"));
        let measure = |station: &Station| gbits(station, REMOTE[0], flag, SECONDS, 1);
        lines.push(line(&format!("{direction}, Gbit/s"), &paired(&stations, ROUNDS, measure)?));
    }
    progress("short connections");
    let measure = |station: &Station| per_second(station, CONNECTIONS, 1);
    lines.push(line("new connections a second", &paired(&stations, ROUNDS, measure)?));
    progress("");

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
