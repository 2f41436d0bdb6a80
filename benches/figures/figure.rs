//! One figure: measured in paired rounds on every station, compared with the host, held against its target.

use anyhow::Result;
use serde::Serialize;

use crate::report::progress;
use crate::station::{Contender, Station};
use crate::statistics::{Estimate, Summary, estimate, summary};

/// What is compared with the host of the same round, and which way the target lies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// More is better: value ÷ host, at least the target.
    Ratio,
    /// Less is better: value − host, at most the target.
    Difference,
    /// Less is better: the value itself, at most the target.
    Value,
}

pub struct Figure {
    pub name: String,
    pub unit: &'static str,
    pub comparison: Comparison,
    pub target: fn(Contender) -> Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Met,
    LikelyMet,
    LikelyNotMet,
    NotMet,
}

/// A line of the table.
#[derive(Serialize)]
pub struct Row {
    pub figure: String,
    pub path: String,
    pub unit: &'static str,
    pub summary: Summary,
    /// Ratio to the host, difference from it, or nothing, by [`Row::compared_by`].
    pub compared: Option<Estimate>,
    pub compared_by: Option<&'static str>,
    /// As the table shows it: `≥ 0.95`.
    pub target: Option<String>,
    pub verdict: Option<Verdict>,
    /// One a round, in the order of the rounds.
    pub values: Vec<f64>,
}

/// Measures every station once a round, beginning with another one each time; the first round is not kept.
///
/// Returns the values of each station. A peer that fails gets 0: it is there for comparison, not under test.
pub fn paired(stations: &[Station], rounds: u32, measure: impl Fn(&Station) -> Result<f64>) -> Result<Vec<Vec<f64>>> {
    let measure = |station: &Station| match (measure(station), station.contender) {
        (Err(error), Contender::Peer(_)) => {
            progress("");
            eprintln!("{}", format!("{error:#}").lines().next().unwrap_or_default());
            Ok(0.0)
        }
        (result, _) => result,
    };
    for station in stations {
        measure(station)?;
    }
    let mut values = vec![Vec::new(); stations.len()];
    for round in 0..rounds as usize {
        for turn in 0..stations.len() {
            let this = (round + turn) % stations.len();
            values[this].push(measure(&stations[this])?);
        }
    }
    Ok(values)
}

impl Figure {
    pub fn measure(
        &self,
        stations: &[Station],
        rounds: u32,
        measure: impl Fn(&Station) -> Result<f64>,
    ) -> Result<Vec<Row>> {
        progress(&self.name);
        let values = paired(stations, rounds, measure)?;
        let host =
            stations.iter().position(|station| station.contender == Contender::Host).map(|at| values[at].clone());
        let rows = stations.iter().zip(values);
        Ok(rows.map(|(station, values)| self.row(station.contender, values, host.as_deref())).collect())
    }

    fn row(&self, contender: Contender, values: Vec<f64>, host: Option<&[f64]>) -> Row {
        let pairs = |form: fn(f64, f64) -> f64| {
            let host = host.filter(|_| contender != Contender::Host)?;
            let formed: Vec<f64> = values.iter().zip(host).map(|(&value, &host)| form(value, host)).collect();
            Some(estimate(&formed))
        };
        let (compared, compared_by) = match self.comparison {
            Comparison::Ratio => (pairs(|value, host| value / host), Some("ratio")),
            Comparison::Difference => (pairs(|value, host| value - host), Some("difference")),
            Comparison::Value => (None, None),
        };
        let judged = if self.comparison == Comparison::Value { Some(estimate(&values)) } else { compared };
        let target = (self.target)(contender);
        Row {
            figure: self.name.clone(),
            path: contender.to_string(),
            unit: self.unit,
            summary: summary(&values),
            compared,
            compared_by: compared.and(compared_by),
            target: target.map(|target| self.comparison.target(target, self.unit)),
            verdict: target.zip(judged).map(|(target, judged)| self.comparison.judge(judged, target)),
            values,
        }
    }
}

impl Comparison {
    fn target(self, target: f64, unit: &str) -> String {
        match self {
            Self::Ratio => format!("≥ {target}"),
            Self::Difference => format!("≤ +{target} {unit}"),
            Self::Value => format!("≤ {target} {unit}"),
        }
    }

    fn judge(self, found: Estimate, target: f64) -> Verdict {
        // Everything as "at least": what is to be at most is turned round.
        let (low, median, high, target) = match self {
            Self::Ratio => (found.low, found.median, found.high, target),
            Self::Difference | Self::Value => (-found.high, -found.median, -found.low, -target),
        };
        if low >= target {
            Verdict::Met
        } else if high < target {
            Verdict::NotMet
        } else if median >= target {
            Verdict::LikelyMet
        } else {
            Verdict::LikelyNotMet
        }
    }
}
