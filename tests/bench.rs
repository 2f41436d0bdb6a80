//! `sidestep bench` as an ordinary user calls it: in a lab of its own inside this one, of which nothing stays.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::processes::Tree;
use crate::lab::workspace::{Workspace, contains};
use crate::lab::world::{SCRATCH, SIDESTEP};

crate::cases! {
    HOST: tells_the_same_everywhere, interrupted, unknown_names;
}

/// A run of it measures for some seconds, and in every lab of its own starts programs.
const DEADLINE: Duration = Duration::from_secs(120);

/// A directory for one caller's report and scratch.
fn directory(ws: &Workspace, name: &str) -> Result<PathBuf> {
    let dir = PathBuf::from(format!("{SCRATCH}/bench-{name}-{}", ws.way));
    let made = ws.outside(["mkdir", "-p", "-m", "0755"]).arg(dir.join("tmp")).run(&ws.lab.host)?;
    made.succeeded()?;
    Ok(dir)
}

fn tells_the_same_everywhere(ws: Workspace) -> Result<()> {
    let dir = directory(&ws, "whole")?;
    let done = ws
        .outside([SIDESTEP, "bench", "--only", "latency,calls", "--rounds", "1", "--report"])
        .arg(dir.join("report"))
        .env("TMPDIR", dir.join("tmp"))
        .deadline(DEADLINE)
        .run(&ws.lab.host)?
        .succeeded()?;
    let report = report(&dir.join("report"))?;
    ensure!(report["complete"] == true, "{report}");
    ensure!(report["settings"]["rounds"] == 1 && report["machine"]["kernel"].is_string(), "{report}");
    let rows = report["figures"].as_array().context("no figures")?;
    for (figure, path) in
        [("request and response", "host"), ("request and response", "bypass"), ("close()", "TAP, MTU 1500")]
    {
        let row = rows.iter().find(|row| row["figure"] == figure && row["path"] == path);
        let row = row.with_context(|| format!("no {figure} of {path}: {done}"))?;
        ensure!(row["values"].as_array().is_some_and(|values| values.len() == 1), "{row}");
        ensure!(row["summary"]["median"].as_f64().is_some_and(|median| median > 0.0), "{row}");
        contains(&done.stdout, &format!("| {figure} | {path} |"))?;
    }
    let times = report["distributions"].as_array().context("no distributions")?;
    ensure!(times.iter().any(|times| times["path"] == "bypass" && times["count"] == 10_000), "{times:?}");
    let markdown = fs::read_to_string(dir.join("report/report.md"))?;
    for line in done.stdout.lines().filter(|line| line.starts_with("| ")) {
        contains(&markdown, line)?;
    }
    let page = ws.outside(["/usr/bin/python3", "-c"]).arg(SAME_NUMBERS).arg(dir.join("report")).run(&ws.lab.host)?;
    page.printed(&format!("{} bars", rows.len()))?;
    nothing_left(&dir)
}

/// Reads the page as HTML: every bar's numbers, and its length, against the JSON.
const SAME_NUMBERS: &str = r#"
import html.parser, json, sys
report = json.load(open(sys.argv[1] + '/report.json'))
class Page(html.parser.HTMLParser):
    figure, bars, last = None, [], None
    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.figure = named.get('data-figure', self.figure)
        if 'data-median' in named:
            self.last = [self.figure, named['data-path'], *(float(named['data-' + key]) for key in ('median', 'min', 'max'))]
        if tag == 'rect':
            self.bars.append((*self.last, float(named['width'])))
page = Page()
page.feed(open(sys.argv[1] + '/report.html').read())
page.close()
assert len(page.bars) == len(report['figures']), (page.bars, report)
for row, bar in zip(report['figures'], page.bars):
    told = row['summary']
    assert (row['figure'], row['path'], told['median'], told['min'], told['max']) == bar[:5], (row, bar)
    full = max(other['summary']['max'] for other in report['figures'] if other['figure'] == row['figure'])
    assert abs(bar[5] / 1000 - told['median'] / full) < 1e-6, (row, bar)
print(len(page.bars), 'bars')
"#;

/// ^C while the second figure is measured: the first is in the report, and nobody runs any more.
fn interrupted(ws: Workspace) -> Result<()> {
    let dir = directory(&ws, "interrupted")?;
    let mut running = ws
        .outside([SIDESTEP, "bench", "--only", "calls", "--rounds", "10", "--report"])
        .arg(dir.join("report"))
        .env("TMPDIR", dir.join("tmp"))
        .deadline(DEADLINE)
        .start(&ws.lab.host)?;
    running.line_with("| bypass |")?;
    let tree = Tree::of(running.pid())?;
    ensure!(tree.processes.len() > 1, "{tree:?}");
    running.kill(Signal::SIGINT)?;
    let done = running.finish()?.exited(130)?;
    contains(&done.stderr, "interrupted")?;
    tree.is_gone(Duration::from_secs(10))?;
    let report = report(&dir.join("report"))?;
    ensure!(report["complete"] == false, "{report}");
    ensure!(
        report["figures"].as_array().is_some_and(|rows| rows.iter().any(|row| row["path"] == "bypass")),
        "{report}"
    );
    contains(&fs::read_to_string(dir.join("report/report.html"))?, "Interrupted")?;
    contains(&fs::read_to_string(dir.join("report/report.md"))?, "Interrupted")?;
    nothing_left(&dir)
}

fn unknown_names(ws: Workspace) -> Result<()> {
    let done = ws.outside([SIDESTEP, "bench", "--only", "bulk,speed"]).run(&ws.lab.host)?.exited(125)?;
    contains(&done.stderr, "'speed'")?;
    contains(&done.stderr, "connections")
}

fn report(dir: &std::path::Path) -> Result<Value> {
    Ok(serde_json::from_str(&fs::read_to_string(dir.join("report.json"))?)?)
}

/// Of the scratch directory.
fn nothing_left(dir: &std::path::Path) -> Result<()> {
    let left: Vec<_> = fs::read_dir(dir.join("tmp"))?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}
