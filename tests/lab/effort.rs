//! How hard the lab tries: a few times in `make test`, as often as it takes in `make soak` (`LAB_SOAK` set).
//!
//! Where `LAB_SOAK` is a file's path, each test that asks here leaves a line in it: name, effort, seconds, result,
//! separated by tabs. `.ci/soak` makes a report of them.

use std::cell::Cell;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// What a test asked for last; tries say more than a duration.
#[derive(Clone, Copy)]
enum Asked {
    Nothing,
    Lasting(Duration),
    Tries(u32),
}

thread_local! {
    static ASKED: Cell<Asked> = const { Cell::new(Asked::Nothing) };
}

/// Whether this is the soak: what takes packages or minutes that CI does not have is a test only there.
pub fn soaks() -> bool {
    std::env::var_os("LAB_SOAK").is_some()
}

/// How often something that may go wrong is tried.
pub fn tries(in_test: u32, in_soak: u32) -> u32 {
    let tries = if soaks() { in_soak } else { in_test };
    ASKED.set(Asked::Tries(tries));
    tries
}

/// How long something goes on.
pub fn lasting(in_test: Duration, in_soak: Duration) -> Duration {
    let lasting = if soaks() { in_soak } else { in_test };
    if let Asked::Nothing = ASKED.get() {
        ASKED.set(Asked::Lasting(lasting));
    }
    lasting
}

/// Runs one test, and reports it if its effort depends on the soak.
pub fn reported(name: &str, test: impl FnOnce() -> Result<()>) -> Result<()> {
    ASKED.set(Asked::Nothing);
    let start = Instant::now();
    let result = test();
    let effort = match ASKED.get() {
        Asked::Nothing => return result,
        Asked::Lasting(lasting) => format!("{} s", lasting.as_secs()),
        Asked::Tries(tries) => tries.to_string(),
    };
    if let Some(path) = std::env::var_os("LAB_SOAK").filter(|path| Path::new(path).is_absolute()) {
        let said = if result.is_ok() { "ok" } else { "FAILED" };
        let line = format!("{name}\t{effort}\t{:.0}\t{said}\n", start.elapsed().as_secs_f64());
        let file = OpenOptions::new().append(true).create(true).open(&path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).with_context(|| format!("cannot write {path:?}"))?;
    }
    result
}
