//! The table for people, in Markdown, and the same data for machines.

use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Error, Result};
use rustix::io::FdFlags;
use serde::Serialize;

use crate::figure::{Compared, Row, Verdict};
use crate::machine::Machine;

#[derive(Serialize)]
pub struct Report {
    machine: Machine,
    figures: Vec<Row>,
    left_out: Vec<LeftOut>,
    #[serde(skip)]
    has_head: bool,
}

/// What this machine could not measure.
#[derive(Serialize)]
struct LeftOut {
    what: String,
    why: String,
}

impl Report {
    pub fn new(machine: Machine) -> Self {
        Self { machine, figures: Vec::new(), left_out: Vec::new(), has_head: false }
    }

    /// Adds the rows and prints them, so that a run that is broken off has told what it knew.
    pub fn add(&mut self, rows: Vec<Row>) {
        self.head();
        for row in &rows {
            print!("{}", lines(row));
        }
        self.figures.extend(rows);
    }

    /// Says what is missing from the table, a figure or a path, and why; once, however often it would have come.
    pub fn left_out(&mut self, what: &str, why: &str) {
        if self.left_out.iter().any(|known| known.what == what) {
            return;
        }
        self.head();
        println!("| {what} | – | – | – | – |  | left out: {why} |");
        self.left_out.push(LeftOut { what: what.to_owned(), why: why.to_owned() });
    }

    fn head(&mut self) {
        progress("");
        if !std::mem::replace(&mut self.has_head, true) {
            println!("| figure | path | median | min–max | to the host, same round [95 %] | target | |");
            println!("|---|---|---:|---:|---:|---|---|");
        }
    }

    /// Writes the JSON file, where one was opened.
    pub fn finish(&self, descriptor: Option<i32>) -> Result<()> {
        let Some(descriptor) = descriptor else { return Ok(()) };
        let path = format!("/proc/self/fd/{descriptor}");
        let file = File::options().write(true).truncate(true).open(&path).context("write the JSON file")?;
        serde_json::to_writer_pretty(file, self).context("write the JSON file")
    }
}

/// The measured values with the first comparison; the others below, each with its baseline's name.
fn lines(row: &Row) -> String {
    let mut text = format!(
        "| {} | {} | {} {} | {}–{} | {} |\n",
        row.figure,
        row.path,
        number(row.summary.median),
        row.unit,
        number(row.summary.min),
        number(row.summary.max),
        row.compared.first().map_or("– |  | ".to_owned(), |compared| cells(compared, row.unit)),
    );
    for compared in row.compared.iter().skip(1) {
        let with = compared.with.as_deref().unwrap_or_default();
        text += &format!("| {} | {} ÷ {with} |  |  | {} |\n", row.figure, row.path, cells(compared, row.unit));
    }
    text
}

fn cells(compared: &Compared, unit: &str) -> String {
    let found = match (compared.found, compared.by) {
        (Some(found), "difference") => format!("{:+.0} {unit} [{:+.0}, {:+.0}]", found.median, found.low, found.high),
        (Some(found), "ratio") => format!("{:.2} [{:.2}, {:.2}]", found.median, found.low, found.high),
        _ => "–".to_owned(),
    };
    let verdict = match compared.verdict {
        Some(Verdict::Met) => "met",
        Some(Verdict::LikelyMet) => "likely met",
        Some(Verdict::LikelyNotMet) => "likely not met",
        Some(Verdict::NotMet) => "**not met**",
        Some(Verdict::NotCompared) => "not compared",
        None => "",
    };
    format!("{found} | {} | {verdict}", compared.target.as_deref().unwrap_or(""))
}

/// Tells a person at a terminal what is being measured, in a line that makes room for the next one and for the table.
pub fn progress(what: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{what}{}", if what.is_empty() { "" } else { " ..." });
    }
}

/// Three or so digits that mean something.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{:.0}", (value / 10.0).round() * 10.0),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Opens the JSON file while the machine's own files are in sight and starts this program again with its descriptor:
/// the lab has another /tmp. Returns only to say what went wrong.
pub fn open_and_restart(file: &Path) -> Error {
    let restarted = || -> Result<Error> {
        let path = from_the_top(file);
        let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        rustix::io::fcntl_setfd(&file, FdFlags::empty())?;
        let mut again = Command::new("/proc/self/exe");
        again.args(std::env::args_os().skip(1)).arg(format!("--json-fd={}", file.as_raw_fd()));
        Ok(again.exec().into())
    };
    restarted().unwrap_or_else(|error| error)
}

/// Cargo runs benches in the package's directory; people mean the repository's.
fn from_the_top(file: &Path) -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    match package.as_deref().and_then(Path::parent) {
        Some(top) => top.join(file),
        None => file.to_owned(),
    }
}
