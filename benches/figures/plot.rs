//! Lines in SVG, with their scales and key as HTML around them: so text keeps its size whatever the picture's.

use std::fmt::Write as _;

use crate::html::{colour, escaped};
use crate::report::number;

/// The drawing's own units; the page stretches it.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 500.0;

/// One line: whose, and its points.
pub struct Line<'a> {
    pub path: &'a str,
    pub points: Vec<(f64, f64)>,
}

/// An axis from one value to another.
#[derive(Clone, Copy)]
pub struct Axis {
    pub from: f64,
    pub to: f64,
    pub scale: Scale,
    pub unit: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    Linear,
    /// From something above 0.
    Logarithmic,
}

/// The lines on their axes, labelled at this many places each.
pub fn lines(lines: &[Line], x: Axis, y: Axis, what: &str) -> String {
    const LABELS: [u32; 5] = [0, 1, 2, 3, 4];
    let share = |place: u32| f64::from(place) / 4.0;
    let mut page = String::new();
    let label = |axis: Axis, place| format!("<span>{}</span>", axis.told(share(place)));
    let labels = |axis: Axis| LABELS.map(|place| label(axis, place));
    let mut descending = labels(y);
    descending.reverse();
    let mut drawing = String::new();
    for place in &LABELS[1..4] {
        let (across, down) = (share(*place) * WIDTH, share(*place) * HEIGHT);
        // Writing to a String cannot fail, here and below.
        let _ =
            write!(drawing, "<path class=grid d=\"M{across} 0V{HEIGHT}\"/><path class=grid d=\"M0 {down}H{WIDTH}\"/>");
    }
    for line in lines {
        let place = |&(a, b): &(f64, f64)| format!("{:.1},{:.1}", x.place(a) * WIDTH, (1.0 - y.place(b)) * HEIGHT);
        let points: Vec<String> = line.points.iter().map(place).collect();
        let _ = write!(drawing, "<polyline class={} points=\"{}\"/>", colour(line.path), points.join(" "));
    }
    let key: Vec<String> =
        lines.iter().map(|line| format!("<li class={}>{}</li>", colour(line.path), escaped(line.path))).collect();
    let _ = write!(
        page,
        "<div class=plot><div class=y>{}</div><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=none role=img \
         aria-label=\"{}\">{drawing}</svg><div class=x>{}</div></div><ul class=key>{}</ul>",
        descending.join(""),
        escaped(what),
        labels(x).join(""),
        key.join("")
    );
    page
}

impl Axis {
    /// From 0 to the largest of these.
    pub fn up_to(values: impl Iterator<Item = f64>, unit: &'static str) -> Self {
        Self { from: 0.0, to: values.fold(f64::MIN_POSITIVE, f64::max), scale: Scale::Linear, unit }
    }

    /// Around these, each above 0.
    pub fn logarithmic(values: impl Iterator<Item = f64> + Clone, unit: &'static str) -> Self {
        let from = values.clone().fold(f64::MAX, f64::min).max(f64::MIN_POSITIVE);
        Self { from, to: values.fold(from * 1.01, f64::max), scale: Scale::Logarithmic, unit }
    }

    /// Where a value lies between the two, from 0 to 1.
    fn place(self, value: f64) -> f64 {
        let (value, from, to) = match self.scale {
            Scale::Linear => (value, self.from, self.to),
            Scale::Logarithmic => (value.ln(), self.from.ln(), self.to.ln()),
        };
        ((value - from) / (to - from)).clamp(0.0, 1.0)
    }

    /// The value at a share of the way, short: microseconds by the hundred thousand would not fit beside each other.
    fn told(self, share: f64) -> String {
        let (value, unit) = match (self.at(share), self.unit) {
            (micros, "µs") if micros >= 1e6 => (micros / 1e6, "s"),
            (micros, "µs") if micros >= 1e3 => (micros / 1e3, "ms"),
            as_is => as_is,
        };
        format!("{} {unit}", number(value))
    }

    /// The value at a share of the way.
    fn at(self, share: f64) -> f64 {
        match self.scale {
            Scale::Linear => self.from + (self.to - self.from) * share,
            Scale::Logarithmic => self.from * (self.to / self.from).powf(share),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_place_what_they_label() {
        let linear = Axis::up_to([1.0, 8.0].into_iter(), "s");
        let logarithmic = Axis::logarithmic([10.0, 1000.0].into_iter(), "µs");
        assert_eq!(logarithmic.at(0.5).round(), 100.0);
        for axis in [linear, logarithmic] {
            for share in [0.0, 0.25, 0.5, 1.0] {
                assert!((axis.place(axis.at(share)) - share).abs() < 1e-9, "{share}");
            }
        }
        assert_eq!(linear.place(9.0), 1.0);
        let times = Axis::logarithmic([100.0, 1e6].into_iter(), "µs");
        assert_eq!([0.0, 0.5, 1.0].map(|share| times.told(share)), ["100 µs", "10.0 ms", "1.00 s"]);
    }
}
