//! DNS: the virtual resolver at .3 relays to the host's resolvers, over UDP and TCP.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Result, ensure};

use crate::lab::command::Finished;
use crate::lab::workspace::Workspace;
use crate::lab::{BLACK_HOLE, REMOTE, dns};

crate::cases! {
    EVERYWHERE: resolves, unknown_name, long_answer;
    EVERY_WAY: resolver_by_address;
    BOTH_PATHS_AS_ROOT: stub_on_host_loopback, dead_first_resolver;
}

fn resolves(ws: Workspace) -> Result<()> {
    dns::serve(&ws.lab.remote, REMOTE[0])?;
    ws.sh("getent ahostsv4 remote.lab | head -n1 | cut -d' ' -f1")?.printed(&REMOTE[0].to_string())?;
    ws.sh("getent ahostsv6 remote.lab | head -n1 | cut -d' ' -f1")?.printed(&REMOTE[1].to_string())
}

fn unknown_name(ws: Workspace) -> Result<()> {
    dns::serve(&ws.lab.remote, REMOTE[0])?;
    ws.run(["getent", "hosts", "nowhere.lab"])?.exited(2)?;
    Ok(())
}

/// Truncated over UDP, so asked again over TCP.
fn long_answer(ws: Workspace) -> Result<()> {
    dns::serve(&ws.lab.remote, REMOTE[0])?;
    ws.sh("dig +short +noedns TXT big.lab | tr -cd x | wc -c")?.printed("3000")
}

fn resolver_by_address(ws: Workspace) -> Result<()> {
    dns::serve(&ws.lab.remote, REMOTE[0])?;
    for transport in ["+notcp", "+tcp"] {
        ws.sh(&format!("dig +short {transport} @10.0.2.3 remote.lab"))?.printed(&REMOTE[0].to_string())?;
    }
    // Only DNS answers there.
    ws.python("print(attempt('10.0.2.3', 80, 5) != 'connected')")?.printed("True")
}

/// The shape of systemd-resolved: the host's resolver listens on its loopback, which the workspace cannot reach itself.
fn stub_on_host_loopback(ws: Workspace) -> Result<()> {
    dns::serve(&ws.lab.host, IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)))?;
    for transport in ["+notcp", "+tcp"] {
        let script = format!("dig +short {transport} remote.lab");
        with_resolvers(&ws, "nameserver 127.0.0.53", &script)?.printed(&REMOTE[0].to_string())?;
    }
    let direct = with_resolvers(&ws, "nameserver 127.0.0.53", "dig +short +time=1 +tries=1 @127.0.0.53 remote.lab")?;
    ensure!(direct.code() != 0, "the host's loopback was reached: {direct}");
    Ok(())
}

fn dead_first_resolver(ws: Workspace) -> Result<()> {
    dns::serve(&ws.lab.remote, REMOTE[0])?;
    let resolvers = format!("nameserver {}\\nnameserver {}", BLACK_HOLE[0], REMOTE[0]);
    with_resolvers(&ws, &resolvers, "dig +short +time=10 +tries=2 remote.lab")?.printed(&REMOTE[0].to_string())
}

/// Runs `script` in a workspace of a host that has this resolv.conf.
fn with_resolvers(ws: &Workspace, resolv_conf: &str, script: &str) -> Result<Finished> {
    let bind = format!(
        "f=$(mktemp) && printf '{resolv_conf}\\n' > $f && mount --bind $f $(readlink -f /etc/resolv.conf) && exec \"$@\""
    );
    ws.program(["sh", "-c", script]).behind(["unshare", "--mount", "sh", "-c", &bind, "sh"]).run(&ws.lab.host)
}
