//! What was found: on the terminal as it comes, at the end (or when interrupted) as files: HTML, Markdown, JSON.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::bulk::Transfer;
use crate::figure::{Compared, Row, Verdict};
use crate::html;
use crate::machine::Machine;
use crate::progress;
use crate::station::Station;
use crate::statistics::median;
use crate::times::{Distribution, Times};

/// Shared with the thread that writes it when the measuring is interrupted.
#[derive(Clone)]
pub struct Report {
    findings: Arc<Mutex<Findings>>,
    files: Arc<Files>,
}

/// Where the report goes, besides the terminal.
pub struct Files {
    json: Option<Json>,
    dir: Option<PathBuf>,
}

enum Json {
    Stdout,
    File(PathBuf),
}

/// In the directory of the report.
const NAMES: [&str; 3] = ["report.json", "report.md", "report.html"];

/// All of it, as the JSON has it.
#[derive(Serialize)]
pub struct Findings {
    /// False where the measuring was interrupted.
    pub complete: bool,
    pub settings: Settings,
    pub machine: Machine,
    pub figures: Vec<Row>,
    pub distributions: Vec<Distribution>,
    pub courses: Vec<Course>,
    pub left_out: Vec<LeftOut>,
    /// What there is of the figure that is being measured: for the report if it comes to no more.
    #[serde(skip)]
    pub under_way: Vec<Row>,
}

#[derive(Serialize)]
pub struct Settings {
    pub rounds: u32,
    /// Seconds of each iperf3 run.
    pub duration: u32,
    /// Nothing for the lab's own.
    pub server: Option<String>,
}

/// How one path's rate went: the medians over the rounds.
#[derive(Serialize)]
pub struct Course {
    pub figure: String,
    pub path: String,
    pub unit: &'static str,
    /// Seconds since the start, and the rate until then.
    pub points: Vec<(f64, f64)>,
}

/// What this machine could not measure.
#[derive(Serialize)]
pub struct LeftOut {
    pub what: String,
    pub why: String,
}

impl Files {
    /// Finds out early what cannot be written.
    pub fn prepare(json: Option<PathBuf>, dir: Option<PathBuf>) -> Result<Self> {
        let json = json.map(|file| if file == Path::new("-") { Json::Stdout } else { Json::File(file) });
        if let Some(Json::File(file)) = &json {
            can_be_written(file)?;
        }
        if let Some(dir) = &dir {
            fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
            NAMES.iter().try_for_each(|name| can_be_written(&dir.join(name)))?;
        }
        Ok(Self { json, dir })
    }

    /// A part of the table: on standard output, if that is not the JSON's.
    fn print(&self, text: &str) {
        if matches!(self.json, Some(Json::Stdout)) { eprint!("{text}") } else { print!("{text}") }
    }

    fn write(&self, findings: &Findings) -> Result<()> {
        let json = serde_json::to_string_pretty(findings)? + "\n";
        match &self.json {
            Some(Json::File(file)) => write(file, &json)?,
            Some(Json::Stdout) => print!("{json}"),
            None => {}
        }
        if let Some(dir) = &self.dir {
            let texts = [json, markdown(findings), html::page(findings)];
            NAMES.iter().zip(texts).try_for_each(|(name, text)| write(&dir.join(name), &text))?;
            eprintln!("the report is in {}", dir.join("report.html").display());
        }
        Ok(())
    }
}

impl Report {
    pub fn new(machine: Machine, settings: Settings, files: Files) -> Self {
        files.print(&format!("{machine}\n{HEAD}\n"));
        let findings = Findings {
            complete: true,
            settings,
            machine,
            figures: Vec::new(),
            distributions: Vec::new(),
            courses: Vec::new(),
            left_out: Vec::new(),
            under_way: Vec::new(),
        };
        Self { findings: Arc::new(Mutex::new(findings)), files: Arc::new(files) }
    }

    /// Adds the rows and prints them, so that a run that is broken off has told what it knew.
    pub fn add(&self, rows: Vec<Row>) {
        let mut findings = self.findings();
        findings.under_way.clear();
        self.tell(&mut findings, rows);
    }

    fn tell(&self, findings: &mut Findings, rows: Vec<Row>) {
        progress::clear();
        for row in &rows {
            self.files.print(&lines(row));
        }
        findings.figures.extend(rows);
    }

    /// What the finished rounds of a figure make, should it not come to [`Self::add`].
    pub fn under_way(&self, rows: Vec<Row>) {
        self.findings().under_way = rows;
    }

    /// Of the same figure: the times behind the values, each path's of all rounds.
    pub fn add_times(&self, figure: &str, stations: &[Station], times: &[Vec<Times>]) -> Result<()> {
        for (station, rounds) in stations.iter().zip(times) {
            let distribution = Distribution::of(figure, station.contender.to_string(), rounds)?;
            self.findings().distributions.extend(distribution);
        }
        Ok(())
    }

    /// Of the same figure: how the transfers went.
    pub fn add_courses(&self, figure: &str, stations: &[Station], transfers: &[Vec<Transfer>]) {
        for (station, rounds) in stations.iter().zip(transfers) {
            let (path, points) = (station.contender.to_string(), course(rounds));
            if points.is_empty() {
                continue;
            }
            self.findings().courses.push(Course { figure: figure.to_owned(), path, unit: "Gbit/s", points });
        }
    }

    /// Says what is missing from the table, a figure or a path, and why; once, however often it would have come.
    pub fn left_out(&self, what: &str, why: &str) {
        let mut findings = self.findings();
        if findings.left_out.iter().any(|known| known.what == what) {
            return;
        }
        progress::clear();
        let left_out = LeftOut { what: what.to_owned(), why: why.to_owned() };
        self.files.print(&left_out.line());
        findings.left_out.push(left_out);
    }

    /// Writes what there is.
    pub fn finish(&self, complete: bool) -> Result<()> {
        let mut findings = self.findings();
        findings.complete = complete;
        let rows = std::mem::take(&mut findings.under_way);
        if !complete {
            self.tell(&mut findings, rows);
        }
        self.files.write(&findings)
    }

    fn findings(&self) -> MutexGuard<'_, Findings> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LeftOut {
    fn line(&self) -> String {
        format!("| {} | – | – | – | – |  | left out: {} |\n", self.what, self.why)
    }
}

const HEAD: &str = "\
| figure | path | median | min–max | to the host, same round [95 %] | target | |
|---|---|---:|---:|---:|---|---|";

/// The medians of what the rounds had at each moment. Their clocks are as good as the same.
fn course(rounds: &[Transfer]) -> Vec<(f64, f64)> {
    let longest = rounds.iter().map(|round| round.course.len()).max().unwrap_or(0);
    let moment = |place| {
        let points: Vec<(f64, f64)> = rounds.iter().filter_map(|round| round.course.get(place).copied()).collect();
        let (times, rates): (Vec<f64>, Vec<f64>) = points.into_iter().unzip();
        (median(&times), median(&rates))
    };
    (0..longest).map(moment).collect()
}

fn can_be_written(file: &Path) -> Result<()> {
    let opened = File::options().create(true).append(true).open(file);
    opened.map(drop).with_context(|| format!("cannot write {}", file.display()))
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn markdown(findings: &Findings) -> String {
    let mut text = String::from("# sidestep bench\n\n");
    if !findings.complete {
        text += "Interrupted: this is what was measured until then.\n\n";
    }
    text += &format!("{}- measured: {}\n\n{HEAD}\n", findings.machine, findings.settings.told());
    text.extend(findings.figures.iter().map(lines));
    text.extend(findings.left_out.iter().map(LeftOut::line));
    if !findings.distributions.is_empty() {
        text += "\n| times | path | p50 | p90 | p99 | p99.9 | longest |\n|---|---|---:|---:|---:|---:|---:|\n";
    }
    for times in &findings.distributions {
        let shares = [50.0, 90.0, 99.0, 99.9].map(|share| number(times.at(share)));
        let (shares, longest, unit) = (shares.join(" | "), number(times.max), times.unit);
        text += &format!("| {}, {unit} | {} | {shares} | {longest} |\n", times.figure, times.path);
    }
    text
}

impl Settings {
    pub fn told(&self) -> String {
        let (rounds, seconds) = (self.rounds, self.duration);
        let rounds = if rounds == 1 { "one round".to_owned() } else { format!("{rounds} rounds") };
        let place = self.server.as_ref().map_or("in a lab of two hosts".to_owned(), |name| format!("with {name}"));
        format!("{rounds} after one that does not count, iperf3 for {seconds} s each, {place}")
    }
}

impl Row {
    /// Of an interrupted figure: how far it came.
    pub fn rounds_told(&self) -> Option<String> {
        self.of_rounds.map(|all| format!("interrupted, {} of {all} rounds", self.values.len()))
    }
}

/// The measured values with the first comparison; the others below, each with its baseline's name.
fn lines(row: &Row) -> String {
    let figure = row.rounds_told().map_or_else(|| row.figure.clone(), |rounds| format!("{} ({rounds})", row.figure));
    let mut text = format!(
        "| {figure} | {} | {} {} | {}–{} | {} |\n",
        row.path,
        number(row.summary.median),
        row.unit,
        number(row.summary.min),
        number(row.summary.max),
        row.compared.first().map_or("– |  | ".to_owned(), |compared| cells(compared, row.unit)),
    );
    for compared in row.compared.iter().skip(1) {
        let with = compared.with.as_deref().unwrap_or_default();
        text += &format!("| {figure} | {} ÷ {with} |  |  | {} |\n", row.path, cells(compared, row.unit));
    }
    text
}

fn cells(compared: &Compared, unit: &str) -> String {
    let verdict = match compared.verdict {
        Some(Verdict::NotMet) => "**not met**",
        Some(verdict) => verdict.told(),
        None => "",
    };
    format!("{} | {} | {verdict}", compared.told(unit), compared.target.as_deref().unwrap_or(""))
}

impl Compared {
    /// The estimate with its interval.
    pub fn told(&self, unit: &str) -> String {
        match (self.found, self.by) {
            (Some(found), "difference") => {
                format!("{:+.0} {unit} [{:+.0}, {:+.0}]", found.median, found.low, found.high)
            }
            (Some(found), "ratio") => format!("{:.2} [{:.2}, {:.2}]", found.median, found.low, found.high),
            _ => "–".to_owned(),
        }
    }
}

impl Verdict {
    pub fn told(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::LikelyMet => "likely met",
            Self::LikelyNotMet => "likely not met",
            Self::NotMet => "not met",
            Self::NotCompared => "not compared",
        }
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
