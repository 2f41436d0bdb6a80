//! `make demo`: one short table, one measurement each, for a look rather than for a promise.

use anyhow::Result;

use crate::bulk::{DIRECTIONS, gbits};
use crate::connections::per_second;
use crate::lab::REMOTE;
use crate::report::number;
use crate::station::{Contender, Station};

const SECONDS: u32 = 2;
const CONNECTIONS: u32 = 2000;

pub fn run() -> Result<()> {
    let stations = Station::all(&Contender::OURS)?;
    let columns: Vec<String> = stations.iter().map(|station| station.contender.to_string()).collect();
    println!("| TCP over IPv4, one stream | {} |", columns.join(" | "));
    println!("|---|{}", "---:|".repeat(columns.len()));
    for (direction, flag) in DIRECTIONS {
        eprintln!("iperf3, {direction}, {SECONDS} s each ...");
        let name = format!("{direction}, Gbit/s");
        line(&name, &stations, |station| gbits(station, REMOTE[0], flag, SECONDS, 1))?;
    }
    eprintln!("{CONNECTIONS} short connections each ...");
    line("new connections a second", &stations, |station| per_second(station, CONNECTIONS, 1))?;
    println!("\n(in brackets: the ratio to the host)");
    Ok(())
}

fn line(name: &str, stations: &[Station], measure: impl Fn(&Station) -> Result<f64>) -> Result<()> {
    let values: Vec<f64> = stations.iter().map(measure).collect::<Result<_>>()?;
    let cell = |(at, &value): (usize, &f64)| match at {
        0 => number(value),
        _ => format!("{} ({:.2})", number(value), value / values[0]),
    };
    let cells: Vec<String> = values.iter().enumerate().map(cell).collect();
    println!("| {name} | {} |", cells.join(" | "));
    Ok(())
}
