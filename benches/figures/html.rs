//! The report as one page that loads nothing: bars with their spread, times, courses, and the table of all of it.
//!
//! Text is HTML and only what stretches is SVG, so that a phone shows the same words in the same size.

use std::fmt::Write as _;

use crate::figure::{Compared, Row};
use crate::plot::{self, Axis, Line};
use crate::report::{Findings, number};

const STYLE: &str = include_str!("page.css");
/// A bar's full length in its own units.
const FULL: f64 = 1000.0;

pub fn page(findings: &Findings) -> String {
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width, \
         initial-scale=1\"><title>sidestep bench</title><style>{STYLE}</style><main><h1>sidestep bench</h1>"
    );
    if !findings.complete {
        page += "<p class=partial>Interrupted: this is what was measured until then.</p>";
    }
    let measured = ("measured", findings.settings.told());
    let facts = findings.machine.facts().into_iter().chain([measured]);
    let facts: String = facts.map(|(name, fact)| format!("<dt>{name}</dt><dd>{}</dd>", escaped(&fact))).collect();
    let _ = write!(page, "<dl>{facts}</dl><p>{READING}</p>");
    for rows in findings.figures.chunk_by(|one, next| one.figure == next.figure) {
        page += &section(findings, rows);
    }
    page += &left_out(findings);
    page += &table(&findings.figures);
    page + "</main></html>\n"
}

const READING: &str = "A bar is the median, the line on it reaches from the least to the most that was measured. Ratios \
                       are to the host of the same round, with the interval that holds their median with 95 % \
                       confidence. Believe no difference that is smaller than that of <i>host again</i> from 1.";

fn section(findings: &Findings, rows: &[Row]) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let better = if first.more_is_better { "more is better" } else { "less is better" };
    let full = rows.iter().map(|row| row.summary.max).fold(f64::MIN_POSITIVE, f64::max);
    let bars: String = rows.iter().map(|row| bar(row, full)).collect();
    let partial = first.rounds_told().map(|told| format!("<p class=partial>{told}</p>")).unwrap_or_default();
    let times = times(findings, &first.figure);
    let course = course(findings, &first.figure);
    format!(
        "<section data-figure=\"{name}\"><h2>{name} <small>{}, {better}</small></h2>{partial}<div class=bars>{bars}</div>{times}{course}</section>",
        first.unit,
        name = escaped(&first.figure),
    )
}

fn bar(row: &Row, full: f64) -> String {
    let place = |value: f64| value / full * FULL;
    let (median, min, max) = (row.summary.median, row.summary.min, row.summary.max);
    let ratio = row.compared.first().filter(|compared| compared.with.is_some());
    let ratio = ratio.map(|compared| ratio_told(compared, row.unit)).unwrap_or_default();
    format!(
        "<div data-path=\"{path}\" data-median=\"{median}\" data-min=\"{min}\" data-max=\"{max}\">\
         <span class=name>{path}</span>\
         <svg class=\"bar {colour}\" viewBox=\"0 0 {FULL} 20\" preserveAspectRatio=none role=img aria-label=\"{path}: {told} {unit}\">\
         <rect width=\"{width}\" height=20 /><path d=\"M{from} 10H{to}M{from} 4V16M{to} 4V16\"/></svg>\
         <span class=value>{told} <small>{least}–{most}</small></span><span class=ratio>{ratio}</span></div>",
        path = escaped(&row.path),
        colour = colour(&row.path),
        unit = row.unit,
        width = place(median),
        from = place(min),
        to = place(max),
        told = number(median),
        least = number(min),
        most = number(max),
    )
}

fn ratio_told(compared: &Compared, unit: &str) -> String {
    let told = compared.told(unit);
    let (middle, interval) = told.split_once(" [").unwrap_or((&told, ""));
    let interval = if interval.is_empty() { String::new() } else { format!(" <small>[{interval}</small>") };
    if compared.by == "ratio" { format!("× {middle}{interval}") } else { format!("{middle}{interval}") }
}

fn times(findings: &Findings, figure: &str) -> String {
    let of_figure = findings.distributions.iter().filter(|times| times.figure == figure);
    let lines: Vec<Line> = of_figure
        .map(|times| Line {
            path: &times.path,
            points: times.points.iter().map(|&(share, time)| (time, share)).collect(),
        })
        .collect();
    if lines.is_empty() {
        return String::new();
    }
    let x = Axis::logarithmic(lines.iter().flat_map(|line| &line.points).map(|point| point.0), "µs");
    let y = Axis { from: 0.0, to: 100.0, scale: plot::Scale::Linear, unit: "%" };
    format!("<h3>how many are done within what time</h3>{}", plot::lines(&lines, x, y, figure))
}

fn course(findings: &Findings, figure: &str) -> String {
    let of_figure = findings.courses.iter().filter(|course| course.figure == figure);
    let lines: Vec<Line> = of_figure.map(|course| Line { path: &course.path, points: course.points.clone() }).collect();
    let points = || lines.iter().flat_map(|line| &line.points);
    if points().next().is_none() {
        return String::new();
    }
    let x = Axis::up_to(points().map(|point| point.0), "s");
    let y = Axis::up_to(points().map(|point| point.1), "Gbit/s");
    format!("<h3>over time, the median of the rounds</h3>{}", plot::lines(&lines, x, y, figure))
}

fn left_out(findings: &Findings) -> String {
    if findings.left_out.is_empty() {
        return String::new();
    }
    let items = findings.left_out.iter();
    let items: String = items.map(|item| format!("<li>{}: {}</li>", escaped(&item.what), escaped(&item.why))).collect();
    format!("<section><h2>Left out</h2><ul>{items}</ul></section>")
}

fn table(rows: &[Row]) -> String {
    let lines: String = rows.iter().map(table_lines).collect();
    format!(
        "<section><h2>All of it</h2><table><thead><tr><th>figure<th>path<th class=n>median<th class=n>min–max<th>compared\
         <th>target<th></tr></thead><tbody>{lines}</tbody></table></section>"
    )
}

fn table_lines(row: &Row) -> String {
    let measured = format!(
        "<td class=n data-of=median>{} {}</td><td class=n data-of=min–max>{}–{}</td>",
        number(row.summary.median),
        row.unit,
        number(row.summary.min),
        number(row.summary.max)
    );
    let line = |path: &str, measured: &str, compared: Option<&Compared>| {
        let told = compared.map(|compared| compared.told(row.unit)).unwrap_or_default();
        let target = compared.and_then(|compared| compared.target.as_deref()).unwrap_or_default();
        let verdict = compared.and_then(|compared| compared.verdict).map_or("", |verdict| verdict.told());
        format!(
            "<tr><td>{}</td><td>{}</td>{measured}<td data-of=compared>{told}</td><td data-of=target>{}</td><td>{verdict}</td></tr>",
            escaped(&row.figure),
            escaped(path),
            escaped(target),
        )
    };
    let path = row.rounds_told().map_or_else(|| row.path.clone(), |rounds| format!("{} ({rounds})", row.path));
    let mut text = line(&path, &measured, row.compared.first());
    for compared in row.compared.iter().skip(1) {
        let path = format!("{} ÷ {}", row.path, compared.with.as_deref().unwrap_or_default());
        text += &line(&path, "<td></td><td></td>", Some(compared));
    }
    text
}

/// Class of a path's colour: the same on the whole page.
pub fn colour(path: &str) -> String {
    const KNOWN: [&str; 9] = [
        "host",
        "host again",
        "TAP",
        "TAP, MTU 65520",
        "bypass",
        "slirp4netns",
        "pasta",
        "bypass4netns",
        "published port",
    ];
    let starts = |name: &&str| path.starts_with(*name);
    // The longest name that fits: `host again` is not `host`.
    let found = KNOWN.iter().enumerate().filter(|(_, name)| starts(name)).max_by_key(|(_, name)| name.len());
    format!("c{}", found.map_or(0, |(place, _)| place))
}

pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
