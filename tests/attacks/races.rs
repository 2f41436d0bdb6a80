//! A second thread changes what a call is about between the supervisor's look at it and the act.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Forbidden, attacker};
use crate::lab::effort;
use crate::lab::servers::TcpServer;
use crate::lab::workspace::Workspace;
use crate::lab::{BLACK_HOLE, REMOTE};

crate::cases! {
    BYPASS: address, family, after_disconnect, after_shutdown, descriptor, through_unix, bind_through_unix,
        listen_through_unix;
}

/// What shows that the other thread had its chance. A race nobody ran proves nothing: where the scheduler let one of the
/// two threads win nearly always, it is run again.
#[derive(Clone, Copy)]
enum Ran {
    /// Nothing could: the supervisor acts on what it looked at.
    Unseen,
    /// So many connects of a hundred got to the allowed server.
    Allowed(usize),
    /// A call went on that had become another meanwhile, and Landlock denied it.
    Denied,
    /// So many calls of a hundred succeeded, on the socket that may.
    Succeeded(usize),
}

/// `rounds` tries in one run of the attacker; 20,000 in the soak.
fn race(ws: Workspace, mode: &str, rounds: u32, ran: Ran) -> Result<()> {
    let rounds = effort::tries(rounds, 20_000);
    let ws = ws.deadline(effort::lasting(Duration::from_secs(90), Duration::from_secs(900)));
    let race = attacker(&ws, include_str!("race.c"), mode)?;
    let allowed = TcpServer::start(&ws.lab.remote, (REMOTE[0], 0), |stream| {
        let mut stream = stream;
        std::io::copy(&mut stream, &mut std::io::sink()).map(drop)
    })?;
    let forbidden = Forbidden::start(&ws)?;
    for _ in 0..20 {
        let done = ws
            .program([race.as_os_str()])
            .arg(mode)
            .arg(rounds.to_string())
            .arg(REMOTE[0].to_string())
            .arg(allowed.addr.port().to_string())
            .arg(IpAddr::V4(Ipv4Addr::LOCALHOST).to_string())
            .arg(forbidden.port().to_string())
            .arg(BLACK_HOLE[0].to_string())
            .run(&ws.lab.host)?
            .succeeded()?;
        forbidden.is_untouched(&done)?;
        let [succeeded, reached, denied] = counts(&done.stdout).with_context(|| done.to_string())?;
        ensure!(reached == 0, "{done}");
        let percent = |share: usize| rounds as usize * share / 100;
        let enough = match ran {
            Ran::Unseen => true,
            Ran::Allowed(share) => allowed.accepted() >= percent(share),
            Ran::Denied => denied > 0,
            Ran::Succeeded(share) => succeeded >= percent(share),
        };
        if enough {
            return Ok(());
        }
    }
    bail!("hardly run in 20 times {rounds} rounds")
}

/// Of a line such as `succeeded 12 reached 0 denied 3`.
fn counts(line: &str) -> Option<[usize; 3]> {
    let numbers: Vec<_> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().ok()
}

fn address(ws: Workspace) -> Result<()> {
    race(ws, "address", 2000, Ran::Allowed(5))
}

fn family(ws: Workspace) -> Result<()> {
    race(ws, "family", 2000, Ran::Allowed(5))
}

fn after_disconnect(ws: Workspace) -> Result<()> {
    race(ws, "disconnect", 1000, Ran::Allowed(5))
}

fn after_shutdown(ws: Workspace) -> Result<()> {
    race(ws, "shutdown", 500, Ran::Allowed(5))
}

fn descriptor(ws: Workspace) -> Result<()> {
    race(ws, "descriptor", 2000, Ran::Unseen)
}

/// A connect of a Unix socket goes on in the kernel, which reads descriptor and address again.
fn through_unix(ws: Workspace) -> Result<()> {
    race(ws, "unix", 2000, Ran::Denied)
}

fn bind_through_unix(ws: Workspace) -> Result<()> {
    race(ws, "bind", 2000, Ran::Denied)
}

/// listen binds what is not bound, and Landlock does not see it.
fn listen_through_unix(ws: Workspace) -> Result<()> {
    race(ws, "listen", 1000, Ran::Succeeded(5))
}
