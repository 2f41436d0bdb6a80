//! How long single things took: recorded where they happen, merged over the rounds, told as a distribution.

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// A tenth of a percent: finer than any two runs agree.
const DIGITS: u8 = 3;
/// In percent; up to here the middle is told percent by percent, from here on what is rare.
const RARE: [f64; 4] = [99.5, 99.9, 99.95, 99.99];

/// Nanoseconds and how often they were seen: what a measured process hands to the one that measures.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Times(Vec<(u64, u64)>);

/// How one path's times are distributed.
#[derive(Clone, Default, Serialize)]
pub struct Distribution {
    pub figure: String,
    pub path: String,
    pub unit: &'static str,
    pub count: u64,
    pub max: f64,
    /// Percent of the times, and what they are at most, in the unit; ascending.
    pub points: Vec<(f64, f64)>,
}

/// Records times of one process.
pub struct Recorder(Histogram<u64>);

impl Recorder {
    pub fn new() -> Result<Self> {
        Ok(Self(Histogram::new(DIGITS)?))
    }

    pub fn record(&mut self, took: std::time::Duration) -> Result<()> {
        Ok(self.0.record(u64::try_from(took.as_nanos())?)?)
    }

    pub fn merge(&mut self, other: &Self) -> Result<()> {
        Ok(self.0.add(&other.0)?)
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    pub fn times(&self) -> Times {
        Times(self.0.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect())
    }
}

impl Times {
    /// The median, in microseconds.
    pub fn median(&self) -> Result<f64> {
        Ok(microseconds(merged(std::slice::from_ref(self))?.value_at_quantile(0.5)))
    }
}

impl Distribution {
    /// Of all rounds of a path; None where none has a time.
    pub fn of(figure: &str, path: String, rounds: &[Times]) -> Result<Option<Self>> {
        let all = merged(rounds)?;
        if all.is_empty() {
            return Ok(None);
        }
        let percents = (1..=99).map(f64::from).chain(RARE);
        Ok(Some(Self {
            figure: figure.to_owned(),
            path,
            unit: "µs",
            count: all.len(),
            max: microseconds(all.max()),
            points: percents.map(|percent| (percent, microseconds(all.value_at_percentile(percent)))).collect(),
        }))
    }

    pub fn at(&self, percent: f64) -> f64 {
        self.points.iter().find(|point| point.0 >= percent).map_or(self.max, |point| point.1)
    }
}

fn merged(rounds: &[Times]) -> Result<Histogram<u64>> {
    let mut all = Histogram::new(DIGITS)?;
    for &(nanoseconds, count) in rounds.iter().flat_map(|times| &times.0) {
        all.record_n(nanoseconds, count)?;
    }
    Ok(all)
}

#[allow(clippy::cast_precision_loss, reason = "a time, of three digits")]
fn microseconds(nanoseconds: u64) -> f64 {
    // The histogram's own error is larger than what is cut off here.
    (nanoseconds as f64 / 10.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rounds_are_merged_and_percentiles_ascend() -> Result<()> {
        let round = |from: u64| -> Result<Times> {
            let mut recorder = Recorder::new()?;
            (from..from + 500).try_for_each(|micros| recorder.record(Duration::from_micros(micros)))?;
            Ok(recorder.times())
        };
        let rounds = [round(1)?, round(501)?];
        let found = Distribution::of("x", "host".to_owned(), &rounds)?.expect("has times");
        assert_eq!(found.count, 1000);
        assert!((found.at(50.0) / 500.0 - 1.0).abs() < 0.01, "{}", found.at(50.0));
        assert!((found.at(99.0) / 990.0 - 1.0).abs() < 0.01, "{}", found.at(99.0));
        assert!(found.points.is_sorted_by(|one, next| one.0 < next.0 && one.1 <= next.1));
        assert!((rounds[0].median()? / 250.0 - 1.0).abs() < 0.01);
        assert!(Distribution::of("x", "pasta".to_owned(), &[Times::default()])?.is_none());
        Ok(())
    }
}
