//! redis-benchmark on the remote's server: small requests, each waiting for its answer, so it is the latency that shows.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::Arguments;
use crate::figure::{Baseline, Comparison, Figure, Target, contenders_of, paired};
use crate::lab::REMOTE_V4;
use crate::lab::command::{Program, Running};
use crate::lab::poll;
use crate::lab::workspace::Workspace;
use crate::lab::world::scratch;
use crate::machine::find;
use crate::peers;
use crate::report::Report;
use crate::station::{Contender, Station};

pub const PROGRAMS: [&str; 3] = ["redis-server", "redis-cli", "redis-benchmark"];
const PORT: u16 = 6379;

#[derive(Clone, Copy, Default)]
pub struct Measured {
    pub per_second: f64,
    p99_milliseconds: f64,
}

/// Through the TAP, beside the peers, with half a second to a second of requests.
pub fn measure(arguments: &Arguments, report: &Report) -> Result<()> {
    if let Some(missing) = PROGRAMS.into_iter().find(|program| find(program).is_none()) {
        report.left_out("SET through the TAP", &format!("no {missing}"));
        return Ok(());
    }
    let ours = [Contender::Host, Contender::HostAgain, Contender::TAP];
    let stations = arguments.stations(&[&ours[..], &peers::installed(report)].concat())?;
    let _servers = stations.iter().map(|station| serve(&station.workspace)).collect::<Result<Vec<Running>>>()?;
    for (clients, requests) in [(1, 5_000), (50, 20_000)] {
        let name = format!("SET, {clients} client{}", if clients == 1 { "" } else { "s" });
        let targets = vec![Target::of(Contender::TAP, Baseline::BetterPeer, 1.0)];
        let rate = Figure { name: name.clone(), unit: "/s", comparison: Comparison::Rate, targets: targets.clone() };
        let p99 = Figure { name: format!("{name}, p99"), unit: "ms", comparison: Comparison::Latency, targets };
        let rows = |values: &[Vec<Measured>]| {
            let column = |of: fn(&Measured) -> f64| values.iter().map(|path| path.iter().map(of).collect()).collect();
            let contenders = contenders_of(&stations);
            let mut rows = rate.rows(&contenders, column(|measured| measured.per_second));
            rows.extend(p99.rows(&contenders, column(|measured| measured.p99_milliseconds)));
            rows
        };
        let one = |station: &Station| benchmark(station, clients, requests);
        report.add(rows(&paired(report, &name, &stations, arguments.rounds, one, rows)?));
    }
    Ok(())
}

/// A server on the remote, ready, that writes no file.
pub fn serve(workspace: &Workspace) -> Result<Running> {
    let line = format!("redis-server --bind {REMOTE_V4} --port {PORT} --protected-mode no --save");
    let server = Program::new(line.split(' ')).arg("").arg("--dir").arg(scratch()).start(&workspace.lab.remote)?;
    let ping = format!("redis-cli -h {REMOTE_V4} -p {PORT} ping");
    poll("redis answers", Duration::from_secs(10), || {
        Ok((workspace.lab.host.run(&ping).is_ok_and(|done| done.stdout.trim() == "PONG")).then_some(()))
    })?;
    Ok(server)
}

pub fn benchmark(station: &Station, clients: u32, requests: u32) -> Result<Measured> {
    let text =
        station.line(&format!("redis-benchmark -h {REMOTE_V4} -p {PORT} -t set -c {clients} -n {requests} --csv"))?;
    // "test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms",...
    let line = text.lines().find_map(|line| line.strip_prefix("\"SET\",")).with_context(|| text.clone())?;
    let number = |column: usize| line.split(',').nth(column)?.trim_matches('"').parse().ok();
    let measured = number(0).zip(number(5));
    let (per_second, p99_milliseconds) = measured.with_context(|| format!("no rate and p99 in {text}"))?;
    Ok(Measured { per_second, p99_milliseconds })
}
