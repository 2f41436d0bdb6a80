//! The page in a browser (headless Chromium): on a phone and on a screen, light and dark, no text is cut or covered, and
//! bars are as long as their numbers.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::figure::{Baseline, Comparison, Figure, Row, Target};
use crate::html::{self, escaped};
use crate::machine::Machine;
use crate::peers::Peer;
use crate::report::{Course, Findings, LeftOut, Settings};
use crate::station::Contender;
use crate::times::{Distribution, Recorder};

/// Widths in CSS pixels: a phone, and a window.
const WIDTHS: [u32; 2] = [390, 1200];

/// Every path in every kind of figure, with numbers of every length.
fn findings() -> Result<Findings> {
    let contenders = [
        Contender::Host,
        Contender::HostAgain,
        Contender::TAP,
        Contender::Tap { mtu: 65520 },
        Contender::Bypass,
        Contender::Peer(Peer::Slirp4netns),
        Contender::Peer(Peer::Pasta),
        Contender::Bypass4netns,
    ];
    let kinds = [
        ("send, IPv4", "Gbit/s", Comparison::Rate, 40.0),
        ("connections to 127.0.0.1, 8 threads", "/s", Comparison::Rate, 123_456.0),
        ("request and response", "µs", Comparison::Latency, 31.4),
        ("setsockopt()", "ns", Comparison::Difference, 214.0),
        ("10,000 idle connections, the next one ÷ the first", "% of a core", Comparison::Value, 0.04),
    ];
    let rows = |(name, unit, comparison, size): (&str, &'static str, Comparison, f64)| -> Vec<Row> {
        let targets = vec![
            Target::of(Contender::TAP, Baseline::Host, 0.5),
            Target::of(Contender::TAP, Baseline::BetterPeer, 1.0),
        ];
        let figure = Figure { name: name.to_owned(), unit, comparison, targets };
        let values = |place: u32| (1..4).map(move |round| size / f64::from(place + 1) * (0.8 + 0.1 * f64::from(round)));
        let rows = figure.rows(&contenders, (0..8).map(|place| values(place).collect()).collect());
        let partly = |row| Row { of_rounds: (comparison == Comparison::Difference).then_some(15), ..row };
        rows.into_iter().map(partly).collect()
    };
    let mut recorder = Recorder::new()?;
    (1..2000).chain([364_900]).try_for_each(|micros| recorder.record(std::time::Duration::from_micros(micros)))?;
    let times = contenders.iter().map(|path| {
        Distribution::of("request and response", path.to_string(), &[recorder.times()]).map(Option::unwrap_or_default)
    });
    let course = |path: &Contender| Course {
        figure: "send, IPv4".to_owned(),
        path: path.to_string(),
        unit: "Gbit/s",
        points: (1..=10).map(|tenth| (f64::from(tenth) / 10.0, 30.0 + f64::from(tenth % 3))).collect(),
    };
    Ok(Findings {
        complete: false,
        settings: Settings { rounds: 15, duration: 1, server: Some("iperf.example.net:5201".to_owned()) },
        machine: Machine::look(true),
        figures: kinds.into_iter().flat_map(rows).collect(),
        distributions: times.collect::<Result<_>>()?,
        courses: contenders.iter().map(course).collect(),
        left_out: vec![LeftOut { what: "wrk against <nginx>".to_owned(), why: "no wrk".to_owned() }],
        under_way: Vec::new(),
    })
}

#[test]
fn no_text_is_cut_and_bars_are_true() -> Result<()> {
    let page = html::page(&findings()?);
    let dir = tempfile::tempdir()?;
    let frames = WIDTHS.iter().flat_map(|width| ["light", "dark"].map(|scheme| (width, scheme)));
    let frames: String = frames
        .map(|(width, scheme)| {
            format!(
                "<iframe style=\"width:{width}px;height:900px;border:0;color-scheme:{scheme}\" srcdoc=\"{}\"></iframe>",
                escaped(&page)
            )
        })
        .collect();
    let file = dir.path().join("frames.html");
    fs::write(
        &file,
        format!("<!doctype html><meta charset=utf-8>{frames}<pre id=found></pre><script>{LOOK}</script>"),
    )?;
    let chromium = Command::new("chromium")
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--virtual-time-budget=10000",
        ])
        .arg(format!("--user-data-dir={}", dir.path().join("profile").display()))
        .args(["--window-size=1600,1200", "--dump-dom"])
        .arg(format!("file://{}", file.display()))
        .output()
        .context("chromium, of Debian's package of that name")?;
    let text = String::from_utf8_lossy(&chromium.stdout);
    let found = text.split_once("<pre id=\"found\">").and_then(|(_, rest)| rest.split_once("</pre>"));
    let (found, _) = found.with_context(|| String::from_utf8_lossy(&chromium.stderr).into_owned())?;
    // Eight paths in five figures, in four frames; and each frame has its own colours.
    ensure!(found == "160 bars, 2 colours, 2 widths: ", "{found}");
    Ok(())
}

#[test]
fn nothing_is_loaded_from_elsewhere() -> Result<()> {
    let page = html::page(&findings()?);
    for word in ["src=", "href=", "url(", "@import", "<script", "http"] {
        ensure!(!page.contains(word), "{word} in the page");
    }
    ensure!(page.contains("wrk against &lt;nginx&gt;"), "not escaped");
    Ok(())
}

/// Says what is wrong in the frames: text outside of the page, or of its own box, or over other text; bars that lie.
const LOOK: &str = "
addEventListener('load', () => {
    const wrong = [], colours = new Set(), widths = new Set();
    let bars = 0;
    for (const frame of document.querySelectorAll('iframe')) {
        const page = frame.contentDocument, width = page.documentElement.clientWidth;
        colours.add(frame.contentWindow.getComputedStyle(page.body).backgroundColor);
        widths.add(width);
        if (page.documentElement.scrollWidth > width) wrong.push(`the page is wider than ${width}`);
        const walker = page.createTreeWalker(page.querySelector('main'), NodeFilter.SHOW_TEXT), boxes = [];
        while (walker.nextNode()) {
            const node = walker.currentNode, range = page.createRange();
            range.selectNodeContents(node);
            for (const box of range.getClientRects()) {
                if (!node.data.trim() || box.width === 0) continue;
                if (box.left < -0.5 || box.right > width + 0.5) wrong.push(`cut at ${width}: ${node.data}`);
                const covered = boxes.find(([other]) => Math.min(box.right, other.right) - Math.max(box.left, other.left) > 1
                    && Math.min(box.bottom, other.bottom) - Math.max(box.top, other.top) > 4);
                if (covered) wrong.push(`at ${width} ${node.data} covers ${covered[1]}`);
                boxes.push([box, node.data]);
            }
        }
        for (const section of page.querySelectorAll('[data-figure]')) {
            const rows = [...section.querySelectorAll('[data-median]')];
            const full = Math.max(...rows.map(row => Number(row.dataset.max)));
            for (const row of rows) {
                bars++;
                const [whole, bar] = ['svg', 'rect'].map(what => row.querySelector(what).getBoundingClientRect().width);
                const off = bar / whole - Number(row.dataset.median) / full;
                if (!(Math.abs(off) < 0.002) || whole < 100) wrong.push(`at ${width} a bar of ${bar} in ${whole}`);
            }
        }
    }
    document.getElementById('found').textContent =
        `${bars} bars, ${colours.size} colours, ${widths.size} widths: ` + wrong.join('; ');
});";
