//! `sidestep bench` as an ordinary user calls it: in a lab of its own inside this one, of which nothing stays.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::command::Program;
use crate::lab::processes::Tree;
use crate::lab::servers::{self, TcpServer};
use crate::lab::workspace::{Workspace, contains};
use crate::lab::world::{SCRATCH, SIDESTEP};
use crate::lab::{REMOTE, UNREACHABLE, poll};

crate::cases! {
    HOST: tells_the_same_everywhere, memory, interrupted, somebodys_server, no_server, unknown_names;
    BYPASS_AS_USER: without_bypass;
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

/// `sidestep bench` with these words, split at blanks, and its scratch where it can be looked at.
fn bench(ws: &Workspace, dir: &Path, words: &str) -> Program {
    let program = words.split(' ').fold(ws.outside([SIDESTEP, "bench"]), |program, word| program.arg(word));
    program.env("TMPDIR", dir.join("tmp")).deadline(DEADLINE)
}

fn tells_the_same_everywhere(ws: Workspace) -> Result<()> {
    let dir = directory(&ws, "whole")?;
    let program = bench(&ws, &dir, "--only latency,calls --rounds 1 --report").arg(dir.join("report"));
    let done = program.run(&ws.lab.host)?.succeeded()?;
    let report = report(&dir.join("report"))?;
    ensure!(report["complete"] == true, "{report}");
    ensure!(report["settings"]["rounds"] == 1 && report["machine"]["kernel"].is_string(), "{report}");
    let rows = report["figures"].as_array().context("no figures")?;
    for (figure, path) in
        [("request and response", "host"), ("request and response", "bypass"), ("close()", "TAP, MTU 1500")]
    {
        ensure!(median(&report, figure, path)? > 0.0, "{report}");
        let row = rows.iter().find(|row| row["figure"] == figure && row["path"] == path).context("found just now")?;
        ensure!(row["values"].as_array().is_some_and(|values| values.len() == 1), "{row}");
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

/// With as many connections as were promised.
fn memory(ws: Workspace) -> Result<()> {
    let dir = directory(&ws, "memory")?;
    let done = bench(&ws, &dir, "--only memory --rounds 1 --json -").run(&ws.lab.host)?.succeeded()?;
    let report: Value = serde_json::from_str(&done.stdout)?;
    for figure in ["memory, idle (PSS)", "memory, 1,000 connections (PSS)", "memory, 10,000 connections (PSS)"] {
        for path in ["TAP, MTU 1500", "bypass"] {
            ensure!(median(&report, figure, path)? > 0.0, "{report}");
            contains(&done.stderr, &format!("| {figure} | {path} |"))?;
        }
    }
    nothing_left(&dir)
}

/// ^C while the second figure is measured: the first is in the report, the second with its finished rounds, and nobody
/// runs any more.
fn interrupted(ws: Workspace) -> Result<()> {
    let dir = directory(&ws, "interrupted")?;
    let program = bench(&ws, &dir, "--only calls --rounds 30 --report").arg(dir.join("report"));
    let mut running = program.start(&ws.lab.host)?;
    running.line_with("| bypass |")?;
    poll("a finished round", DEADLINE, || Ok(running.stderr().contains("read(): round 3 of 30").then_some(())))?;
    let tree = Tree::of(running.pid())?;
    ensure!(tree.processes.len() > 1, "{tree:?}");
    running.kill(Signal::SIGINT)?;
    let done = running.finish()?.exited(130)?;
    contains(&done.stderr, "interrupted")?;
    tree.is_gone(DEADLINE)?;
    let report = report(&dir.join("report"))?;
    ensure!(report["complete"] == false, "{report}");
    let rows = report["figures"].as_array().context("no figures")?;
    let rounds = |row: &Value| (row["values"].as_array().map_or(0, Vec::len), row["of_rounds"].as_u64());
    let whole = |row: &Value| row["figure"] == "close()" && row["path"] == "bypass" && rounds(row) == (30, None);
    ensure!(rows.iter().any(whole), "{report}");
    let last = rows.last().context("no figures")?;
    let (finished, of) = rounds(last);
    ensure!((1..=30).contains(&finished) && of == Some(30) && last["figure"] != "close()", "{report}");
    for (file, told) in
        [("html", "Interrupted"), ("md", "Interrupted"), ("html", "of 30 rounds"), ("md", "of 30 rounds")]
    {
        contains(&fs::read_to_string(dir.join(format!("report/report.{file}")))?, told)?;
    }
    contains(&done.stdout, &format!("(interrupted, {finished} of 30 rounds) | bypass |"))?;
    nothing_left(&dir)
}

/// An iperf3 server that is none of sidestep's: what it can do is measured, and what it cannot do is named.
fn somebodys_server(ws: Workspace) -> Result<()> {
    let dir = directory(&ws, "server")?;
    let _server = servers::iperf3(&ws.lab.remote, 5301)?;
    let words = "--server 192.0.2.2:5301 --only bulk,connections --duration 1 --rounds 1 --report";
    let done = bench(&ws, &dir, words).arg(dir.join("report")).run(&ws.lab.host)?.succeeded()?;
    let report = report(&dir.join("report"))?;
    ensure!(report["complete"] == true && report["settings"]["server"] == "192.0.2.2:5301", "{report}");
    for figure in ["send, IPv4", "receive, IPv4"] {
        for path in ["host", "TAP, MTU 1500", "bypass"] {
            ensure!(median(&report, figure, path)? > 0.0, "{report}");
        }
    }
    contains(&done.stdout, "| connections | – | – | – | – |  | left out: needs the lab: not with --server |")?;
    nothing_left(&dir)
}

/// Each in one sentence with its cause, before anything is measured.
fn no_server(ws: Workspace) -> Result<()> {
    let closed = servers::closed_port(&ws.lab.remote, REMOTE[0])?;
    let other = TcpServer::start(&ws.lab.remote, (REMOTE[0], 0), |mut stream| stream.write_all(b"SSH-2.0-none\r\n"))?;
    let _server = servers::iperf3(&ws.lab.remote, 5302)?;
    let mut busy = ws
        .outside(["iperf3", "--forceflush", "--client", "192.0.2.2", "--port", "5302", "--time", "100"])
        .deadline(DEADLINE)
        .start(&ws.lab.host)?;
    busy.line_with("connected to")?;
    for (server, told) in [
        (closed.to_string(), "nobody listens at"),
        (other.addr.to_string(), "does not answer as an iperf3 server does"),
        ("192.0.2.2:5302".to_owned(), "is busy with another test"),
        (UNREACHABLE[0].0.to_string(), "is out of reach"),
    ] {
        let run = ws.outside([SIDESTEP, "bench", "--only", "bulk", "--server"]).arg(server).run(&ws.lab.host)?;
        let done = run.exited(125)?;
        contains(&done.stderr, told)?;
        ensure!(done.stderr.lines().count() == 1 && done.stdout.is_empty(), "{done}");
    }
    Ok(())
}

/// In a workspace with the bypass there is none for another one: that is said, and the rest is measured.
fn without_bypass(ws: Workspace) -> Result<()> {
    let done = ws.run([SIDESTEP, "bench", "--only", "calls", "--rounds", "1"])?.succeeded()?;
    contains(&done.stdout, "| bypass | – | – | – | – |  | left out: --bypass=require: another seccomp filter")?;
    contains(&done.stdout, "| setsockopt() | TAP, MTU 1500 |")?;
    ensure!(!done.stdout.contains("() | bypass |"), "{done}");
    Ok(())
}

fn unknown_names(ws: Workspace) -> Result<()> {
    let done = ws.outside([SIDESTEP, "bench", "--only", "bulk,speed"]).run(&ws.lab.host)?.exited(125)?;
    contains(&done.stderr, "'speed'")?;
    contains(&done.stderr, "connections")
}

fn median(report: &Value, figure: &str, path: &str) -> Result<f64> {
    let rows = report["figures"].as_array().context("no figures")?;
    let row = rows.iter().find(|row| row["figure"] == figure && row["path"] == path);
    row.and_then(|row| row["summary"]["median"].as_f64()).with_context(|| format!("no {figure} of {path}: {report}"))
}

fn report(dir: &Path) -> Result<Value> {
    Ok(serde_json::from_str(&fs::read_to_string(dir.join("report.json"))?)?)
}

/// Of the scratch directory.
fn nothing_left(dir: &Path) -> Result<()> {
    let left: Vec<_> = fs::read_dir(dir.join("tmp"))?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}
