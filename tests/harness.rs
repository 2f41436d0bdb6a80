//! The harness itself: that it finds out when something is left behind.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use crate::lab::command::DEADLINE;
use crate::lab::processes::Tree;
use crate::lab::workspace::Workspace;

crate::cases! {
    HOST: leaves_nothing;
}

fn leaves_nothing(ws: Workspace) -> Result<()> {
    let mut running = ws.start(["unshare", "-r", "--pid", "--fork", "sh", "-c", "sleep 60 & echo ready; wait"])?;
    running.line_with("ready")?;
    let tree = Tree::of(running.pid())?;
    ensure!(tree.processes.len() >= 3, "{tree:?}");
    ensure!(tree.is_gone(Duration::ZERO).is_err(), "a running tree counts as gone");
    // The first of them takes the pid namespace along, so another may be gone before its turn.
    for process in tree.processes.iter().filter(|process| process.is_alive()) {
        let _gone_meanwhile = process.kill(Signal::SIGKILL);
    }
    tree.is_gone(DEADLINE)
}
