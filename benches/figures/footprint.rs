//! What a workspace costs before it does anything: memory, and time until its command runs.

use std::fs;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::time::{ClockId, clock_gettime};

use crate::Arguments;
use crate::figure::{Baseline, Comparison, Figure, Target};
use crate::idle;
use crate::lab::command::Running;
use crate::lab::processes::{Process, Tree};
use crate::report::Report;
use crate::station::{Contender, Station, inside};

/// Memory hardly scatters.
const MEMORY_ROUNDS: u32 = 3;
/// Open connections that nobody uses, and the megabytes that were promised with them.
const OPEN: [(u32, &str, Option<f64>); 3] =
    [(0, "idle", Some(30.0)), (1000, "1,000 connections", None), (10_000, "10,000 connections", Some(64.0))];
/// As the target is worded.
const START_ROUNDS: u32 = 20;
/// By then a workspace has done all that it does by itself.
const SETTLED: Duration = Duration::from_millis(500);

/// PSS (proc_pid_smaps_rollup) of all processes of `sidestep run` but the command, which is asleep, without a connection
/// and with some that nobody uses.
pub fn memory(arguments: &Arguments, report: &Report) -> Result<()> {
    let stations = arguments.stations(&Contender::OURS[1..])?;
    for (open, what, limit) in OPEN {
        let name = format!("memory, {what} (PSS)");
        if !idle::descriptors_suffice(open, &name, report) {
            continue;
        }
        let target = |limit| [Contender::TAP, Contender::Bypass].map(|path| Target::of(path, Baseline::Host, limit));
        let targets = limit.into_iter().flat_map(target).collect();
        let figure = Figure { name, unit: "MB", comparison: Comparison::Value, targets };
        let one =
            |station: &Station| if open == 0 { idle_megabytes(station) } else { holding_megabytes(station, open) };
        report.add(figure.measure(report, &stations, MEMORY_ROUNDS.min(arguments.rounds), one)?);
    }
    Ok(())
}

/// From just before the exec of `sidestep run` until the command's `main`; the host's row is the same without sidestep.
pub fn start(arguments: &Arguments, report: &Report) -> Result<()> {
    let stations = arguments.stations(&Contender::OURS)?;
    let figure = Figure {
        name: "start of the command".to_owned(),
        unit: "ms",
        comparison: Comparison::Value,
        targets: [Contender::TAP, Contender::Bypass].map(|path| Target::of(path, Baseline::Host, 100.0)).to_vec(),
    };
    report.add(figure.measure(report, &stations, START_ROUNDS.max(arguments.rounds), start_milliseconds)?);
    Ok(())
}

fn idle_megabytes(station: &Station) -> Result<f64> {
    let argv = ["sh", "-c", "echo ready; exec sleep 60"].map(str::to_owned);
    let mut running = station.program(&argv).start(&station.workspace.lab.host)?;
    running.line_with("ready")?;
    settled_megabytes(running, "sleep ")
}

fn holding_megabytes(station: &Station, open: u32) -> Result<f64> {
    let holder = idle::hold(station, open)?;
    settled_megabytes(holder.running, &holder.command)
}

/// Of a workspace, which is then ended.
fn settled_megabytes(running: Running, command: &str) -> Result<f64> {
    thread::sleep(SETTLED);
    let tree = Tree::of(running.pid())?;
    let megabytes = megabytes(&tree.but(command)?)?;
    drop(running);
    tree.is_gone(idle::GONE)?;
    Ok(megabytes)
}

/// The PSS of these. Some of them are not dumpable, and then root alone may read it: the lab's root is enough.
#[allow(clippy::cast_precision_loss, reason = "kilobytes of memory")]
fn megabytes(processes: &[&Process]) -> Result<f64> {
    let kilobytes = processes.iter().map(|process| pss_kilobytes(process.pid)).sum::<Result<u64>>()?;
    Ok(kilobytes as f64 * 1024.0 / 1e6)
}

fn pss_kilobytes(pid: i32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let pss = text.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse().ok());
    pss.with_context(|| format!("no Pss in {path}"))
}

#[allow(clippy::cast_precision_loss, reason = "nanoseconds of a moment")]
fn start_milliseconds(station: &Station) -> Result<f64> {
    let mut command = station.program(&inside(&["clock"])).command();
    command.stdin(Stdio::null());
    let (begun, output) = station.workspace.lab.host.within(|| (monotonic_nanoseconds(), command.output()));
    let output = output?;
    let text = String::from_utf8_lossy(&output.stdout);
    let running: u64 = text.trim().parse().with_context(|| format!("no clock from a workspace: {output:?}"))?;
    Ok(running.saturating_sub(begun) as f64 / 1e6)
}

/// A clock that processes have in common.
pub fn monotonic_nanoseconds() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}
