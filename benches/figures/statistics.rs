//! Medians and how sure they are.
//!
//! The interval is the percentile bootstrap's: the same number of values is drawn with replacement two thousand times,
//! and the median of the draws lies within it in 95 % of them. It needs no idea of how the values are distributed,
//! which here is with a long tail. The draws are the same every time for the same values.

use serde::Serialize;

const DRAWS: usize = 2000;

/// A median and the interval that holds it with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

/// Median and extremes of what was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

/// NaN of nothing.
pub fn median(values: &[f64]) -> f64 {
    quantile(&sorted(values), 0.5)
}

pub fn summary(values: &[f64]) -> Summary {
    let sorted = sorted(values);
    Summary { median: quantile(&sorted, 0.5), min: quantile(&sorted, 0.0), max: quantile(&sorted, 1.0) }
}

pub fn estimate(values: &[f64]) -> Estimate {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let draw = |_| {
        let drawn: Vec<f64> = values.iter().map(|_| values[random.below(values.len())]).collect();
        median(&drawn)
    };
    let medians = sorted(&(0..DRAWS).map(draw).collect::<Vec<f64>>());
    Estimate { median: median(values), low: quantile(&medians, 0.025), high: quantile(&medians, 0.975) }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Between the two values nearest to the place, in proportion.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a place within a short list"
)]
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = share * last as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (place - place.floor())
}

/// xorshift64* (Vigna 2014): enough to draw from a list.
struct Random(u64);

impl Random {
    #[allow(clippy::cast_possible_truncation, reason = "smaller than the limit, which is a usize")]
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let random = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        ((random * limit as u64) >> 32) as usize
    }
}

#[cfg(test)]
mod tests {
    #[allow(unused_imports, reason = "cargo bench, without the harness, leaves the tests out")]
    use super::*;

    #[test]
    fn medians_of_even_and_odd_numbers() {
        let cases = [(&[3.0][..], 3.0), (&[3.0, 1.0], 2.0), (&[9.0, 1.0, 2.0], 2.0), (&[4.0, 1.0, 2.0, 100.0], 3.0)];
        for (values, want) in cases {
            assert_eq!(median(values), want, "{values:?}");
        }
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn extremes() {
        assert_eq!(summary(&[2.0, 7.0, 3.0]), Summary { median: 3.0, min: 2.0, max: 7.0 });
    }

    #[test]
    fn equal_values_leave_no_doubt() {
        assert_eq!(estimate(&[0.5; 15]), Estimate { median: 0.5, low: 0.5, high: 0.5 });
    }

    #[test]
    fn the_interval_holds_the_median_and_not_the_outlier() {
        let values = [1.0, 1.1, 0.9, 1.05, 0.95, 1.0, 1.02, 0.98, 1.01, 0.99, 9.0];
        let found = estimate(&values);
        assert!(found.low <= found.median && found.median <= found.high, "{found:?}");
        assert!(found.low >= 0.9 && found.high < 1.2, "{found:?}");
    }

    #[test]
    fn draws_reach_every_value() {
        let mut random = Random(1);
        let mut seen = [false; 7];
        for _ in 0..1000 {
            seen[random.below(7)] = true;
        }
        assert_eq!(seen, [true; 7]);
    }
}
