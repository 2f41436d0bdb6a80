//! `sidestep stats`: what a running workspace's supervisor and forwarder have counted.

use std::fmt::{self, Display};
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::say;
use crate::logging::{self, LogSettings};
use crate::monitor::state_dir::{self, CONTROL_SOCKET};
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
        let dir = match self.state_dir {
            Some(dir) => dir,
            None => choose(&state_dir::usual_parent(), self.pid)?,
        };
        let socket = dir.join(CONTROL_SOCKET);
        if self.json {
            say(client::get(&socket, "/v1/counters")? + "\n")?;
        } else if self.prometheus {
            say(client::get(&socket, "/metrics")?)?;
        } else {
            let state = parse(&client::get(&socket, "/v1/state")?)?;
            let all = parse(&client::get(&socket, "/v1/counters")?)?;
            // A forwarder that does not answer is said to, and the rest shown.
            let flows = client::get(&socket, "/v1/flows").and_then(|text| parse(&text)).ok();
            say(Table { state, all, flows })?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn parse<T: DeserializeOwned>(text: &str) -> anyhow::Result<T> {
    serde_json::from_str(text).context("the workspace was started by another version of sidestep")
}

/// The state directory of the workspace meant, among those in `parent`.
pub(super) fn choose(parent: &Path, pid: Option<u32>) -> anyhow::Result<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let mut running: Vec<_> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| UnixStream::connect(parent.join(name).join(CONTROL_SOCKET)).is_ok())
        .collect();
    running.sort();
    if let Some(pid) = pid {
        let number = pid.to_string();
        let found = running.iter().find(|name| name.split('-').next() == Some(&number));
        let found = found.with_context(|| {
            format!("process {pid} runs no workspace of {}: --state-dir names one elsewhere", parent.display())
        })?;
        return Ok(parent.join(found));
    }
    match &running[..] {
        [one] => Ok(parent.join(one)),
        [] => bail!(
            "no workspace is running in {}: `sidestep run` starts one, --state-dir names one elsewhere",
            parent.display()
        ),
        [first, ..] => bail!(
            "{} workspaces are running ({}): name one, as in `sidestep stats {}`",
            running.len(),
            running.join(", "),
            first.split('-').next().unwrap_or(first)
        ),
    }
}

/// All of it for people: what is not zero.
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
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn which_workspace_is_meant() {
        let parent = tempfile::tempdir().unwrap();
        let chosen = |pid| choose(parent.path(), pid).map_err(|error| error.to_string());
        let run = |name: &str| {
            fs::create_dir(parent.path().join(name)).unwrap();
            UnixListener::bind(parent.path().join(name).join(CONTROL_SOCKET)).unwrap()
        };
        assert!(chosen(None).unwrap_err().starts_with("no workspace is running in"));
        drop(run("1"));
        assert!(chosen(None).unwrap_err().starts_with("no workspace is running in"));
        let _first = run("20");
        assert_eq!(chosen(None).unwrap(), parent.path().join("20"));
        let _second = run("3-4026531836");
        assert_eq!(
            chosen(None).unwrap_err(),
            "2 workspaces are running (20, 3-4026531836): name one, as in `sidestep stats 20`"
        );
        assert_eq!(chosen(Some(3)).unwrap(), parent.path().join("3-4026531836"));
        assert!(chosen(Some(2)).unwrap_err().starts_with("process 2 runs no workspace"));
    }

    #[test]
    fn bytes_for_people() {
        let cases = [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_550_000, "1.5 MB"), (u64::MAX, "18446.7 PB")];
        for (bytes, want) in cases {
            assert_eq!(Bytes(bytes).to_string(), want);
        }
    }
}
