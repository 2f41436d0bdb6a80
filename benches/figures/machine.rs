//! The machine that the figures hold for.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::available_parallelism;

use serde::Serialize;

use crate::lab::world;

#[derive(Serialize)]
pub struct Machine {
    kernel: String,
    cores: usize,
    cpu: String,
    /// What is not "Not affected", shortened.
    mitigations: String,
    iperf3: String,
    slirp4netns: String,
    pasta: String,
    sidestep: String,
    caller: &'static str,
    congestion_control: &'static str,
}

impl Machine {
    pub fn look(sidestep: &Path) -> Self {
        let profile = if cfg!(debug_assertions) { "not optimised, figures mean nothing" } else { "release" };
        Self {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            cores: available_parallelism().map_or(0, usize::from),
            cpu: cpu(),
            mitigations: mitigations(),
            iperf3: version("iperf3"),
            slirp4netns: version("slirp4netns"),
            pasta: version("pasta"),
            sidestep: format!("{} ({profile})", sidestep.display()),
            caller: if world::is_single_id() { "ordinary user, one id" } else { "ordinary user with subordinate ids" },
            congestion_control: "cubic on every path",
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Linux {}, {} cores of {}, {}", self.kernel, self.cores, self.cpu, self.congestion_control)?;
        writeln!(f, "mitigations: {}", self.mitigations)?;
        writeln!(f, "{}; {}; {}", self.iperf3, self.slirp4netns, self.pasta)?;
        writeln!(f, "{}, called by an {}\n", self.sidestep, self.caller)
    }
}

fn cpu() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or("unknown model", |(_, model)| model).to_owned()
}

fn mitigations() -> String {
    let entries = fs::read_dir("/sys/devices/system/cpu/vulnerabilities").into_iter().flatten().flatten();
    let mut known: Vec<String> = entries
        .filter_map(|entry| {
            let text = fs::read_to_string(entry.path()).ok()?;
            let first = text.trim().split([';', ',']).next()?.to_owned();
            (first != "Not affected").then(|| format!("{} {first}", entry.file_name().display()))
        })
        .collect();
    known.sort();
    if known.is_empty() { "none needed".to_owned() } else { known.join(", ") }
}

fn version(program: &str) -> String {
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let first = text.lines().next().map(|line| line.split(" (").next().unwrap_or(line).to_owned());
    first.unwrap_or_else(|| format!("no {program}"))
}
