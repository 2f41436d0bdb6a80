//! What a gigabyte costs: seconds of processor time of iperf3's client and of every process of the contender.
//!
//! The measured command is run by this program as a subreaper, so that whatever it starts is waited for by somebody and
//! counts in getrusage(2); what it takes to start is in it. bypass4netns has a process elsewhere, so it is not compared;
//! nor does count what the kernel does for nobody in particular (softirqs on other processors).

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

use crate::Arguments;
use crate::bulk::{DIRECTIONS, Transfer, iperf3, without_iperf3};
use crate::figure::{Baseline, Comparison, Figure, Target};
use crate::lab::REMOTE;
use crate::peers;
use crate::report::Report;
use crate::station::{Contender, Station};

/// In front of the number, in what [`accounted`] prints last.
const SECONDS: &str = "processor seconds: ";

pub fn measure(arguments: &Arguments, report: &Report) -> Result<()> {
    if without_iperf3("processor time", report) {
        return Ok(());
    }
    let mut contenders = vec![Contender::Host, Contender::HostAgain, Contender::TAP, Contender::Bypass];
    contenders.extend(peers::installed(report));
    let stations: Vec<Station> = arguments.stations(&contenders)?.into_iter().map(Station::accounted).collect();
    for (direction, flag) in DIRECTIONS {
        let figure = Figure {
            name: format!("processor time, {direction}"),
            unit: "s/GB",
            comparison: Comparison::Latency,
            targets: vec![Target::of(Contender::TAP, Baseline::BetterPeer, 1.0)],
        };
        let argv = iperf3(REMOTE[0], crate::station::IPERF3_PORT, "", flag, arguments.duration);
        let deadline = Duration::from_secs(u64::from(arguments.duration) + 30);
        let one = |station: &Station| -> Result<f64> {
            let text = station.run(&argv, deadline)?;
            let (json, seconds) = text.rsplit_once(SECONDS).with_context(|| format!("no time in {text}"))?;
            let gigabytes = Transfer::parse(json)?.gigabytes;
            ensure!(gigabytes > 0.0, "nothing arrived");
            Ok(seconds.trim().parse::<f64>()? / gigabytes)
        };
        report.add(figure.measure(report, &stations, arguments.rounds, one)?);
    }
    Ok(())
}

/// Runs a command and all that it leaves to its end, and prints what they took of the processors.
pub fn accounted(argv: &[String]) -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true)?;
    let (program, rest) = argv.split_first().context("no command")?;
    let child = Command::new(program).args(rest).spawn().with_context(|| format!("start {program}"))?;
    let mut status = None;
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if is(pid, &child) => status = Some(ExitStatus::from_raw(code << 8)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if is(pid, &child) => {
                status = Some(ExitStatus::from_raw(signal as i32));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    let status = status.context("the command was not waited for")?;
    ensure!(status.success(), "{argv:?}: {status}");
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    println!("\n{SECONDS}{}", Duration::from_micros(micros.unsigned_abs()).as_secs_f64());
    Ok(())
}

fn is(pid: Pid, child: &std::process::Child) -> bool {
    pid.as_raw().cast_unsigned() == child.id()
}
