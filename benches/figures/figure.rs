//! One figure: measured in paired rounds on every station, compared with others of the same round, held against targets.

use anyhow::Result;
use serde::Serialize;

use crate::lab::world;
use crate::progress::Steps;
use crate::report::Report;
use crate::station::{Contender, Station};
use crate::statistics::{Estimate, Summary, estimate, summary};

/// How a value is compared, and which way the target lies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// More is better: value ÷ baseline, at least the target.
    Rate,
    /// Less is better: value ÷ baseline, at most the target.
    Latency,
    /// Less is better: value − host, at most the target.
    Difference,
    /// Less is better: the value itself, at most the target.
    Value,
}

/// Whose value of the same round is the measure. Of no use to [`Comparison::Value`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Baseline {
    Host,
    /// Of slirp4netns and pasta the one that did better in that round.
    BetterPeer,
    Path(Contender),
}

#[derive(Clone, Copy)]
pub struct Target {
    path: Contender,
    baseline: Baseline,
    limit: f64,
}

pub struct Figure {
    pub name: String,
    pub unit: &'static str,
    pub comparison: Comparison,
    pub targets: Vec<Target>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Met,
    LikelyMet,
    LikelyNotMet,
    NotMet,
    /// The baseline is missing: not installed, or it never finished.
    NotCompared,
}

/// What one path measured.
#[derive(Serialize)]
pub struct Row {
    pub figure: String,
    pub path: String,
    pub unit: &'static str,
    pub more_is_better: bool,
    pub summary: Summary,
    /// With the host, then with every other baseline that has a target.
    pub compared: Vec<Compared>,
    /// One a round, in the order of the rounds; 0 for one that a peer did not finish.
    pub values: Vec<f64>,
    /// How many rounds it should have been, where the measuring was interrupted before.
    pub of_rounds: Option<u32>,
}

#[derive(Serialize)]
pub struct Compared {
    /// The other path, or nothing for the value itself.
    pub with: Option<String>,
    pub by: &'static str,
    pub found: Option<Estimate>,
    /// As the table shows it: `≥ 0.95`.
    pub target: Option<String>,
    pub verdict: Option<Verdict>,
}

/// The values of one path, one a round.
type Values<T> = Vec<T>;

/// Peers that never finished, and why.
type Failures = Vec<(Contender, String)>;

/// Measures every station once a round, beginning with another one each time; the first round is not kept.
///
/// Returns the values of each station. A peer that fails gets 0: it is there for comparison, not under test. Why one
/// never finishes is told in the report. What `rows` makes of the finished rounds is there in case it is interrupted.
pub fn paired<T: Default>(
    report: &Report,
    name: &str,
    stations: &[Station],
    rounds: u32,
    measure: impl Fn(&Station) -> Result<T>,
    rows: impl Fn(&[Values<T>]) -> Vec<Row>,
) -> Result<Vec<Values<T>>> {
    let finished = |values: &[Values<T>]| {
        let rows = rows(values).into_iter().map(|row| Row { of_rounds: Some(rounds), ..row });
        report.under_way(rows.collect());
    };
    let (values, failures) = unreported(name, stations, rounds, measure, finished)?;
    for (path, why) in failures {
        report.left_out(&format!("{name}, {path}"), &why);
    }
    Ok(values)
}

/// The same for those who have no report; `finished` hears of each round.
pub fn unreported<T: Default>(
    name: &str,
    stations: &[Station],
    rounds: u32,
    measure: impl Fn(&Station) -> Result<T>,
    finished: impl Fn(&[Values<T>]),
) -> Result<(Vec<Values<T>>, Failures)> {
    let steps = Steps::begin(name, stations.len(), rounds);
    let measure = |station: &Station| -> Result<Result<T, String>> {
        let measured = steps.step(&station.contender, || measure(station));
        world::reap();
        match measured {
            Err(error) if station.contender.is_another_system() => {
                let why = in_a_line(&error);
                steps.say(&format!("{}: {why}", station.contender));
                Ok(Err(why))
            }
            result => result.map(Ok),
        }
    };
    for station in stations {
        // Not kept.
        let _warm = measure(station)?;
    }
    let mut values: Vec<Values<T>> = stations.iter().map(|_| Vec::new()).collect();
    // Why each one's rounds failed, all of them until now.
    let mut failed: Vec<Option<String>> = stations.iter().map(|_| Some(String::new())).collect();
    for round in 0..rounds as usize {
        for turn in 0..stations.len() {
            let this = (round + turn) % stations.len();
            let measured = measure(&stations[this])?;
            failed[this] = failed[this].take().and(measured.as_ref().err().cloned());
            values[this].push(measured.unwrap_or_default());
        }
        finished(&values);
    }
    let failures = stations.iter().zip(failed).filter_map(|(station, why)| Some((station.contender, why?)));
    Ok((values, failures.collect()))
}

/// What failed, without the command line, and the last that it said.
fn in_a_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let mut lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with("--- "));
    let what = lines.next().unwrap_or_default().split('`').next().unwrap_or_default().trim_end_matches(": ");
    lines.next_back().map_or(what.to_owned(), |said| format!("{what}: {}", said.trim()))
}

pub fn contenders_of(stations: &[Station]) -> Vec<Contender> {
    stations.iter().map(|station| station.contender).collect()
}

impl Target {
    pub const fn of(path: Contender, baseline: Baseline, limit: f64) -> Self {
        Self { path, baseline, limit }
    }
}

impl Figure {
    pub fn measure(
        &self,
        report: &Report,
        stations: &[Station],
        rounds: u32,
        measure: impl Fn(&Station) -> Result<f64>,
    ) -> Result<Vec<Row>> {
        let rows = |values: &[Values<f64>]| self.rows(&contenders_of(stations), values.to_vec());
        Ok(rows(&paired(report, &self.name, stations, rounds, measure, rows)?))
    }

    /// Of what [`paired`] returned, or a part of it; without peers that never finished.
    pub fn rows(&self, contenders: &[Contender], values: Vec<Values<f64>>) -> Vec<Row> {
        let measured: Vec<_> = contenders.iter().copied().zip(values).collect();
        let row = |(contender, values): &(Contender, Values<f64>)| Row {
            figure: self.name.clone(),
            path: contender.to_string(),
            unit: self.unit,
            more_is_better: self.comparison == Comparison::Rate,
            summary: summary(values),
            compared: self.compare(*contender, values, &measured),
            values: values.clone(),
            of_rounds: None,
        };
        let finished = |(contender, values): &&(Contender, Values<f64>)| {
            !contender.is_another_system() || values.iter().any(|&value| value > 0.0)
        };
        measured.iter().filter(finished).map(row).collect()
    }

    fn compare(&self, path: Contender, values: &[f64], measured: &[(Contender, Values<f64>)]) -> Vec<Compared> {
        let targets: Vec<&Target> = self.targets.iter().filter(|target| target.path == path).collect();
        if self.comparison == Comparison::Value {
            let limits = targets.iter().map(|target| target.limit);
            return limits.map(|limit| self.judged(None, Some(estimate(values)), Some(limit))).collect();
        }
        let to_host = targets.iter().find(|target| target.baseline == Baseline::Host).map(|target| target.limit);
        let with = |baseline: Baseline, limit| {
            let found = self.baseline(baseline, measured).and_then(|other| self.pairs(values, &other));
            self.judged(Some(baseline.to_string()), found, limit)
        };
        let mut compared = Vec::new();
        if path != Contender::Host {
            compared.push(with(Baseline::Host, to_host));
        }
        let others = targets.iter().filter(|target| target.baseline != Baseline::Host);
        compared.extend(others.map(|target| with(target.baseline, Some(target.limit))));
        compared
    }

    fn judged(&self, with: Option<String>, found: Option<Estimate>, limit: Option<f64>) -> Compared {
        let verdict = |limit| found.map_or(Verdict::NotCompared, |found| self.comparison.judge(found, limit));
        let other = with.as_deref().filter(|&name| name != Baseline::Host.to_string());
        Compared {
            by: self.comparison.by(),
            found,
            target: limit.map(|limit| self.comparison.target(limit, self.unit, other)),
            verdict: limit.map(verdict),
            with,
        }
    }

    /// One value a round; 0 where nobody finished, None where nobody was there.
    fn baseline(&self, baseline: Baseline, measured: &[(Contender, Values<f64>)]) -> Option<Values<f64>> {
        let of =
            |wanted: Contender| measured.iter().find(|(path, _)| *path == wanted).map(|(_, values)| values.clone());
        match baseline {
            Baseline::Host => of(Contender::Host),
            Baseline::Path(path) => of(path),
            Baseline::BetterPeer => {
                let peers = measured.iter().filter(|(path, _)| matches!(path, Contender::Peer(_)));
                peers.map(|(_, values)| values.clone()).reduce(|one, other| {
                    one.iter().zip(&other).map(|(&one, &other)| self.comparison.better(one, other)).collect()
                })
            }
        }
    }

    /// Rounds in which the other one has no value do not count.
    fn pairs(&self, values: &[f64], others: &[f64]) -> Option<Estimate> {
        let pairs = values.iter().zip(others).filter(|&(_, &other)| other > 0.0);
        let formed: Vec<f64> = pairs
            .map(
                |(&value, &other)| {
                    if self.comparison == Comparison::Difference { value - other } else { value / other }
                },
            )
            .collect();
        (!formed.is_empty()).then(|| estimate(&formed))
    }
}

impl Comparison {
    fn by(self) -> &'static str {
        match self {
            Self::Rate | Self::Latency => "ratio",
            Self::Difference => "difference",
            Self::Value => "value",
        }
    }

    /// Of two values, the second one perhaps 0 for failure.
    fn better(self, one: f64, other: f64) -> f64 {
        match self {
            Self::Rate => one.max(other),
            _ if one == 0.0 => other,
            _ if other == 0.0 => one,
            _ => one.min(other),
        }
    }

    fn target(self, limit: f64, unit: &str, other: Option<&str>) -> String {
        let other = other.map(|name| format!(" × {name}")).unwrap_or_default();
        match self {
            Self::Rate => format!("≥ {limit}{other}"),
            Self::Latency => format!("≤ {limit}{other}"),
            Self::Difference => format!("≤ +{limit} {unit}"),
            Self::Value => format!("≤ {limit} {unit}"),
        }
    }

    fn judge(self, found: Estimate, limit: f64) -> Verdict {
        // Everything as "at least": what is to be at most is turned round.
        let (low, median, high, limit) = match self {
            Self::Rate => (found.low, found.median, found.high, limit),
            Self::Latency | Self::Difference | Self::Value => (-found.high, -found.median, -found.low, -limit),
        };
        if low >= limit {
            Verdict::Met
        } else if high < limit {
            Verdict::NotMet
        } else if median >= limit {
            Verdict::LikelyMet
        } else {
            Verdict::LikelyNotMet
        }
    }
}

impl std::fmt::Display for Baseline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Host => f.pad("host"),
            Self::BetterPeer => f.pad("better peer"),
            Self::Path(path) => path.fmt(f),
        }
    }
}
