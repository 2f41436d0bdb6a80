//! The same scripts of socket calls on plain Linux and under sidestep: nothing may return anything else.
//!
//! A player (differential/player.py) runs on the host and one inside; proptest makes the scripts, and shrinks one that
//! differs. Left out is what is known to differ (README): copies made before a connect, local addresses, segment sizes.

use std::time::Duration;

use anyhow::{Context as _, Result};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use serde_json::{Value, json};

use crate::lab::command::Running;
use crate::lab::servers::{self, TcpServer};
use crate::lab::workspace::{Path, Workspace};
use crate::lab::{BLACK_HOLE, REMOTE, effort};

crate::cases! {
    EVERY_WAY: scripts;
}

/// Scripts a run; fifty times as many in the soak.
const SCRIPTS: u32 = 150;
/// Longer scripts than this add no new state to three sockets.
const STEPS: usize = 14;
/// For all scripts of a run, shrinking included.
const PATIENCE: Duration = Duration::from_secs(120);

const DESTINATIONS: [&str; 13] = [
    "echo4",
    "echo6",
    "mapped",
    "closed4",
    "closed6",
    "loopback4",
    "loopback6",
    "unspecified",
    "short",
    "unreachable",
    "port0",
    "hole",
    "scoped6",
];
const OPTIONS: [&str; 18] = [
    "error",
    "nodelay",
    "keepalive",
    "keepidle",
    "reuseaddr",
    "rcvbuf",
    "sndbuf",
    "tos",
    "ttl",
    "priority",
    "listening",
    "usertimeout",
    "keepintvl",
    "oobinline",
    "rcvlowat",
    "recverr",
    "mtudiscover",
    "v6only",
];
const SETTINGS: [(&str, i32); 15] = [
    ("nodelay", 1),
    ("keepalive", 1),
    ("keepidle", 77),
    ("reuseaddr", 1),
    ("rcvbuf", 30_000),
    ("sndbuf", 40_000),
    ("tos", 16),
    ("priority", 3),
    ("usertimeout", 30_000),
    ("keepintvl", 9),
    ("oobinline", 1),
    ("rcvlowat", 5),
    ("recverr", 1),
    ("mtudiscover", 2),
    ("v6only", 1),
];

/// One call on one of three sockets.
fn step() -> impl Strategy<Value = Value> {
    let slot = 0..3u8;
    prop_oneof![
        3 => (slot.clone(), any::<bool>()).prop_map(|(s, v6)| json!(["socket", s, v6])),
        6 => (slot.clone(), prop::sample::select(&DESTINATIONS[..])).prop_map(|(s, to)| json!(["connect", s, to])),
        2 => (slot.clone(), any::<bool>()).prop_map(|(s, on)| json!(["blocking", s, on])),
        1 => (slot.clone(), any::<bool>()).prop_map(|(s, on)| json!(["cloexec", s, on])),
        2 => (slot.clone(), prop::sample::select(&OPTIONS[..])).prop_map(|(s, name)| json!(["get", s, name])),
        2 => (slot.clone(), prop::sample::select(&SETTINGS[..])).prop_map(|(s, (n, v))| json!(["set", s, n, v])),
        1 => (slot.clone(), 0..3u8).prop_map(|(s, how)| json!(["shutdown", s, how])),
        6 => (slot, prop::sample::select(&["flags", "peer", "send", "receive", "bind", "listen", "poll", "close"][..]))
            .prop_map(|(s, op)| json!([op, s])),
    ]
}

/// A script with a socket to begin with.
fn script() -> impl Strategy<Value = Vec<Value>> {
    (any::<bool>(), prop::collection::vec(step(), 2..STEPS)).prop_map(|(v6, mut steps)| {
        steps.insert(0, json!(["socket", 0, v6]));
        steps
    })
}

fn scripts(ws: Workspace) -> Result<()> {
    let echo = [TcpServer::echo(&ws.lab.remote, REMOTE[0])?, TcpServer::echo(&ws.lab.remote, REMOTE[1])?];
    let closed = [servers::closed_port(&ws.lab.remote, REMOTE[0])?, servers::closed_port(&ws.lab.remote, REMOTE[1])?];
    let destinations = json!({
        "echo4": [REMOTE[0], echo[0].addr.port()],
        "echo6": [REMOTE[1], echo[1].addr.port()],
        "mapped": [format!("::ffff:{}", REMOTE[0]), echo[0].addr.port()],
        "closed4": [REMOTE[0], closed[0].port()],
        "closed6": [REMOTE[1], closed[1].port()],
        "loopback4": ["127.0.0.1", 1],
        "loopback6": ["::1", 1],
        "port0": [REMOTE[0], 0],
        "hole": [BLACK_HOLE[0], 80],
        "scoped6": [REMOTE[1], echo[1].addr.port(), 0x12345, 1],
        "unreachable": ["198.51.100.1", 80],
        "unspecified": "00000000000000000000000000000000",
        "short": "02000050c000",
    });
    let ws = ws.deadline(effort::lasting(PATIENCE, 50 * PATIENCE));
    let mut inside = start_player(&ws, &destinations)?;
    let mut ws = ws;
    ws.way.path = Path::Host;
    let mut plain = start_player(&ws, &destinations)?;
    let config = Config {
        cases: effort::tries(SCRIPTS, 50 * SCRIPTS),
        failure_persistence: None,
        max_shrink_iters: 200,
        ..Config::default()
    };
    // The same scripts every time: a test that fails does so again.
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let (plain, inside) = (std::cell::RefCell::new(&mut plain), std::cell::RefCell::new(&mut inside));
    let played = runner.run(&script(), |steps| {
        let line = format!("{}\n", Value::from(steps.clone()));
        let results = [&plain, &inside].map(|player| played(&mut player.borrow_mut(), &line));
        match results {
            [Ok(want), Ok(got)] if want == got => Ok(()),
            [Ok(want), Ok(got)] => Err(TestCaseError::fail(difference(&steps, &want, &got))),
            [want, got] => Err(TestCaseError::fail(format!("a player ended: {want:?} {got:?}"))),
        }
    });
    played.map_err(|error| match error {
        TestError::Fail(reason, _) => anyhow::anyhow!("{reason}"),
        TestError::Abort(reason) => anyhow::anyhow!("{reason}"),
    })
}

fn played(player: &mut Running, line: &str) -> Result<Vec<Value>> {
    player.write(line)?;
    Ok(serde_json::from_str(&player.line()?)?)
}

/// The script with both results, as far as they agree and one step further.
fn difference(steps: &[Value], want: &[Value], got: &[Value]) -> String {
    let same = want.iter().zip(got).take_while(|(want, got)| want == got).count();
    let played = steps.iter().zip(want).zip(got).take(same + 1);
    played.map(|((step, want), got)| format!("{step} → {want} on the host, {got} inside\n")).collect()
}

fn start_player(ws: &Workspace, destinations: &Value) -> Result<Running> {
    let mut player = ws.start_python(include_str!("differential/player.py"))?;
    player.write(&format!("{destinations}\n")).context("start a player")?;
    Ok(player)
}
