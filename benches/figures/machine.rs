//! The machine that the figures hold for.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
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
    /// Of what is measured with and compared with.
    programs: Vec<String>,
    sidestep: String,
    /// Nothing where it is the machine's own.
    congestion_control: Option<&'static str>,
}

impl Machine {
    pub fn look(lab: bool) -> Self {
        let profile = if cfg!(debug_assertions) { "not optimised, figures mean nothing" } else { "release" };
        Self {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            cores: available_parallelism().map_or(0, usize::from),
            cpu: cpu(),
            mitigations: mitigations(),
            programs: PROGRAMS.into_iter().map(version).collect(),
            sidestep: format!("{} ({profile})", env!("CARGO_PKG_VERSION")),
            congestion_control: lab.then_some("cubic"),
        }
    }
}

impl Machine {
    /// What there is to say, by name.
    pub fn facts(&self) -> [(&'static str, String); 5] {
        let control =
            self.congestion_control.map_or("as the machine has it".to_owned(), |name| format!("{name} everywhere"));
        [
            ("kernel", format!("Linux {}", self.kernel)),
            ("processor", format!("{} cores of {}; mitigations: {}", self.cores, self.cpu, self.mitigations)),
            ("congestion control", control),
            ("sidestep", format!("{}, called by an ordinary user", self.sidestep)),
            ("programs", self.programs.join(", ")),
        ]
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.facts().iter().try_for_each(|(name, fact)| writeln!(f, "- {name}: {fact}"))
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
            let first = text.trim().split([';', ',']).next()?.trim_start_matches("Mitigation: ").to_owned();
            (first != "Not affected").then(|| format!("{} {first}", entry.file_name().display()))
        })
        .collect();
    known.sort();
    if known.is_empty() { "none needed".to_owned() } else { known.join(", ") }
}

/// With what makes each tell its version, and Debian's package, whose version counts where it does not.
const PROGRAMS: [(&str, &str, &str); 9] = [
    ("iperf3", "--version", "iperf3"),
    ("slirp4netns", "--version", "slirp4netns"),
    ("pasta", "--version", "passt"),
    ("bypass4netns", "--version", "bypass4netns"),
    ("runc", "--version", "runc"),
    ("redis-server", "--version", "redis-server"),
    ("pgbench", "--version", "postgresql-15"),
    ("nginx", "-v", "nginx-light"),
    ("wrk", "-v", "wrk"),
];

fn version((name, flag, package): (&str, &str, &str)) -> String {
    let Some(program) = find(name) else { return format!("no {name}") };
    // bypass4netns wants a directory for its socket even so.
    let told = first_line(Command::new(program).arg(flag).env("XDG_RUNTIME_DIR", world::runtime_dir()));
    // `slirp4netns version 1.2.0`, `nginx version: nginx/1.22.1`, `Redis server v=7.0.15 sha=00000000:0`
    let numbers = told.split_whitespace().skip(1).map(|word| word.rsplit(['/', '=']).next().unwrap_or(word));
    let number = numbers.into_iter().find(|word| word.starts_with(|first: char| first.is_ascii_digit()));
    let query = || first_line(Command::new("dpkg-query").args(["--show", "--showformat", "${Version}", package]));
    format!("{name} {}", number.map_or_else(query, str::to_owned))
}

fn first_line(command: &mut Command) -> String {
    let Ok(output) = command.output() else { return String::new() };
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
}

/// Where a program is: on the PATH, or where Debian keeps the newest PostgreSQL's.
pub fn find(program: &str) -> Option<PathBuf> {
    let postgresql = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = postgresql.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).max();
    let newest = newest.map(|version| format!("/usr/lib/postgresql/{version}/bin"));
    let path = world::path();
    let dirs = newest.as_deref().into_iter().chain(path.split(':'));
    let executable = |meta: fs::Metadata| meta.is_file() && meta.permissions().mode() & 0o111 != 0;
    dirs.map(|dir| Path::new(dir).join(program)).find(|path| path.metadata().is_ok_and(executable))
}
