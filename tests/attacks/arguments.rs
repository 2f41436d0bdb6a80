//! Arguments that make no sense: every stopped call returns what plain Linux returns, and the supervisor lives.

use anyhow::{Result, ensure};

use super::Survival;
use crate::lab::REMOTE;
use crate::lab::workspace::{Path, Workspace};

crate::cases! {
    BYPASS: nonsense, nonsense_without_privilege;
}

fn nonsense(ws: Workspace) -> Result<()> {
    // Outside of what the lab's hosts give to clients: nobody is connected to itself.
    same_as_linux(ws, "PORT = 9999")
}

/// As root of a nested user namespace, who has no capability over the network around it.
fn nonsense_without_privilege(ws: Workspace) -> Result<()> {
    same_as_linux(ws, "PORT = 81; assert ctypes.CDLL(None).unshare(0x10000000) == 0")
}

fn same_as_linux(mut ws: Workspace, before: &str) -> Result<()> {
    let code = format!("OUTWARD = '{}', '{}'\n{before}\n{}", REMOTE[0], REMOTE[1], include_str!("arguments.py"));
    let inside = Survival::start(&ws, &code)?.end()?;
    ws.way.path = Path::Host;
    let plain = ws.python(&code)?.succeeded()?;
    let plain: Vec<&str> = plain.stdout.lines().collect();
    ensure!(plain.len() > 2000 && plain.len() == inside.len(), "{} calls and {}", plain.len(), inside.len());
    let differing: Vec<_> = plain.iter().zip(&inside).filter(|(plain, inside)| plain != inside).collect();
    ensure!(differing.is_empty(), "{} differ (Linux, inside): {differing:#?}", differing.len());
    Ok(())
}
