//! `sidestep stats`: what a running workspace's supervisor and forwarder have counted.

use std::fmt::{self, Display};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::running::{self, parse};
use super::say;
use crate::logging::{self, LogSettings};
use crate::supervisor::Flows;
use crate::supervisor::control::client;
use crate::supervisor::counters::All;

/// Flows shown to people.
const FLOWS_SHOWN: usize = 10;

/// Show what a running workspace's network has done: calls, verdicts, frames, drops, flows.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  sidestep stats                     the only running workspace
  sidestep stats 4711                the one whose `sidestep run` is process 4711
  sidestep stats --json | jq .supervisor.verdicts.in_place
  curl --unix-socket \"$XDG_RUNTIME_DIR/sidestep/4711/control.sock\" http://sidestep/v1/flows

`in place` counts the calls that the bypass left to the workspace's own network, by reason:
route (it leads elsewhere inside), netfilter (a rule could touch it), socket_option (set to
what a host socket cannot have), ... Counters begin anew when a worker is restarted. The
workspace itself is refused: run this outside.")]
pub struct Stats {
    /// Process number of the workspace's `sidestep run`, where several are running
    #[arg(value_name = "PID", conflicts_with = "state_dir")]
    pid: Option<u32>,

    /// The directory given to `sidestep run --state-dir`
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// Everything in JSON, as GET /v1/counters answers
    #[arg(long, conflicts_with = "prometheus")]
    json: bool,

    /// The text format of Prometheus, as GET /metrics answers
    #[arg(long)]
    prometheus: bool,
}

impl Stats {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        logging::init(LogSettings::default());
        let socket = running::control_socket(self.state_dir, self.pid, "stats")?;
        if self.json {
            say(client::get(&socket, "/v1/counters")? + "\n")?;
        } else if self.prometheus {
            say(client::get(&socket, "/metrics")?)?;
        } else {
            let state = parse(&client::get(&socket, "/v1/state")?)?;
            let all = parse(&client::get(&socket, "/v1/counters")?)?;
            // Where the forwarder does not answer that is said, and the rest shown.
            let flows = client::get(&socket, "/v1/flows").and_then(|text| parse(&text)).ok();
            say(Table { state, all, flows })?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The most of it for people: what is not zero.
struct Table {
    state: Value,
    all: All,
    flows: Option<Flows>,
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { state, all, flows } = self;
        let text = |key: &str| state[key].as_str().unwrap_or("?").to_owned();
        writeln!(f, "workspace of process {}, bypass {}, {}", state["monitor"], text("bypass"), text("ifname"))?;
        let supervisor = &all.supervisor;
        row(f, "calls", &supervisor.calls)?;
        row(f, "bypass", &supervisor.verdicts.bypass)?;
        row(f, "in place", &supervisor.verdicts.in_place)?;
        row(f, "denied", &supervisor.verdicts.denied)?;
        row(f, "continued", &supervisor.verdicts.continued)?;
        row(f, "no verdict", &supervisor.without_verdict)?;
        row(f, "restarts", &all.restarts)?;
        let Some(forwarder) = &all.forwarder else { return writeln!(f, "the forwarder does not answer") };
        for (name, traffic) in [("from TAP", forwarder.from_tap), ("to TAP", forwarder.to_tap)] {
            writeln!(f, "{name:<12}{} frames, {}", traffic.frames, Bytes(traffic.bytes))?;
        }
        row(f, "dropped", &forwarder.drops)?;
        row(f, "refused", &forwarder.denied)?;
        row(f, "TCP", &forwarder.tcp.flows)?;
        row(f, "UDP", &forwarder.udp.flows)?;
        row(f, "ping", &forwarder.ping)?;
        row(f, "DNS", &forwarder.dns)?;
        row(f, "ports", &forwarder.ports)?;
        let Some(Flows { total, flows }) = flows else { return Ok(()) };
        writeln!(f, "{:<12}{total}", "flows")?;
        for flow in flows.iter().take(FLOWS_SHOWN) {
            let remote = flow.remote.map_or_else(|| "*".to_owned(), |remote| remote.to_string());
            let word = |value: Value| value.as_str().unwrap_or_default().to_owned();
            let protocol = word(serde_json::to_value(flow.protocol).unwrap_or_default());
            let state = word(serde_json::to_value(flow.state).unwrap_or_default());
            let (sent, received, seconds) = (Bytes(flow.from_tap), Bytes(flow.to_tap), flow.age_ms / 1000);
            let guest = flow.guest;
            writeln!(f, "  {protocol:<5}{guest} -> {remote}  {state}  {sent} sent, {received} received, {seconds} s")?;
        }
        Ok(())
    }
}

/// One line of the fields that are not zero; none without such.
fn row(f: &mut fmt::Formatter<'_>, name: &str, of: &impl Serialize) -> fmt::Result {
    let fields = serde_json::to_value(of).map_err(|_| fmt::Error)?;
    let fields = fields.as_object().into_iter().flatten().filter(|(_, value)| value.as_u64().is_some_and(|n| n > 0));
    let words: Vec<_> = fields.map(|(field, value)| format!("{field} {value}")).collect();
    if words.is_empty() { Ok(()) } else { writeln!(f, "{name:<12}{}", words.join("  ")) }
}

/// 1.5 MB
struct Bytes(u64);

impl Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
        let (mut whole, mut tenths, mut unit) = (self.0, 0, "B");
        for larger in UNITS {
            if whole < 1000 {
                break;
            }
            (whole, tenths, unit) = (whole / 1000, whole % 1000 / 100, larger);
        }
        if unit == "B" { write!(f, "{whole} B") } else { write!(f, "{whole}.{tenths} {unit}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_for_people() {
        let cases = [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_550_000, "1.5 MB"), (u64::MAX, "18446.7 PB")];
        for (bytes, want) in cases {
            assert_eq!(Bytes(bytes).to_string(), want);
        }
    }
}
