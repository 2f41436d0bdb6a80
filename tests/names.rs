//! DNS: the virtual resolver at .3 relays to the host's resolvers, over UDP and TCP.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::os::unix::fs::symlink;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use crate::lab::processes::Tree;
use crate::lab::workspace::Workspace;
use crate::lab::{BLACK_HOLE, REMOTE, dns, poll};

crate::cases! {
    EVERYWHERE: resolves, unknown_name, long_answer;
    EVERY_WAY: resolver_by_address;
    BOTH_PATHS: without_resolver;
    BOTH_PATHS_AS_ROOT: stub_on_host_loopback, dead_first_resolver, resolvers_over_ipv6,
        changed_resolvers;
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
        ws.sh_with_resolv_conf("nameserver 127.0.0.53", &script)?.printed(&REMOTE[0].to_string())?;
    }
    let direct =
        ws.sh_with_resolv_conf("nameserver 127.0.0.53", "dig +short +time=1 +tries=1 @127.0.0.53 remote.lab")?;
    ensure!(direct.code() != 0, "the host's loopback was reached: {direct}");
    Ok(())
}

fn dead_first_resolver(ws: Workspace) -> Result<()> {
    dns::serve(&ws.lab.remote, REMOTE[0])?;
    let resolvers = format!("nameserver {}\\nnameserver {}", BLACK_HOLE[0], REMOTE[0]);
    ws.sh_with_resolv_conf(&resolvers, "dig +short +time=10 +tries=2 remote.lab")?.printed(&REMOTE[0].to_string())
}

/// One with a global address, and one that is known on its link only.
fn resolvers_over_ipv6(ws: Workspace) -> Result<()> {
    let link_local: Ipv6Addr = "fe80::53".parse()?;
    ws.lab.remote.run("ip addr add fe80::53/64 dev veth0 nodad")?;
    dns::serve(&ws.lab.remote, REMOTE[1])?;
    let index = ws.lab.remote.within(|| nix::net::if_::if_nametoindex("veth0"))?;
    dns::serve_at(&ws.lab.remote, SocketAddrV6::new(link_local, 53, 0, index).into())?;
    for resolver in [REMOTE[1].to_string(), format!("{link_local}%veth0")] {
        for transport in ["+notcp", "+tcp"] {
            let script = format!("dig +short {transport} remote.lab");
            ws.sh_with_resolv_conf(&format!("nameserver {resolver}"), &script)?.printed(&REMOTE[0].to_string())?;
        }
    }
    Ok(())
}

/// Nothing answers at the resolver's address, and nothing says so; the host's resolver is asked instead.
fn without_resolver(ws: Workspace) -> Result<()> {
    dns::serve(&ws.lab.remote, REMOTE[0])?;
    let ws = ws.flag("--disable-dns");
    ws.sh("grep nameserver /etc/resolv.conf; dig +short remote.lab")?
        .printed(&format!("nameserver {0}\n{0}", REMOTE[0]))?;
    ws.python(
        "print(attempt('10.0.2.3', 53, 2))
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2); s.connect(('10.0.2.3', 53)); s.send(b'x' * 20)
print(outcome(lambda: s.recv(9)))",
    )?
    .printed("timed out\ntimed out")
}

/// The host's resolv.conf changes while the workspace runs, in the ways in which programs change it: the name is a link,
/// as systemd-resolved has it.
fn changed_resolvers(ws: Workspace) -> Result<()> {
    dns::serve(&ws.lab.remote, REMOTE[0])?;
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let (refuses, answers) = (format!("nameserver {}\n", REMOTE[1]), format!("nameserver {}\n", REMOTE[0]));
    for name in ["etc", "one", "two"] {
        fs::create_dir(at(name))?;
    }
    fs::write(at("one/stub.conf"), &refuses)?;
    symlink(at("one/stub.conf"), at("etc/resolv.conf"))?;
    // A host of its own: nothing in /etc but what is needed.
    let host = format!(
        "cp -aL /etc/passwd /etc/group /etc/subuid /etc/subgid /etc/hosts /etc/nsswitch.conf /etc/ld.so.* {0} && \
         mount --bind {0} /etc && exec \"$@\"",
        at("etc").display()
    );
    let look = "while read line; do getent ahostsv4 remote.lab | head -n1 | cut -d' ' -f1 | grep . || echo none; done";
    let program = ws.program(["sh", "-c", look]).behind(["unshare", "--mount", "sh", "-c", &host, "sh"]);
    let mut inside = program.deadline(Duration::from_secs(120)).start(&ws.lab.host)?;
    let monitor = inside.pid();
    let mut becomes = |resolves: bool, what: &str| {
        let want = if resolves { REMOTE[0].to_string() } else { "none".to_owned() };
        poll(what, Duration::from_secs(60), || {
            inside.write("\n")?;
            Ok((inside.line()? == want).then_some(()))
        })
    };
    becomes(false, "as it was")?;
    fs::write(at("one/new"), &answers)?;
    fs::rename(at("one/new"), at("one/stub.conf"))?;
    becomes(true, "replaced")?;
    fs::write(at("one/stub.conf"), &refuses)?;
    becomes(false, "written over")?;
    fs::write(at("two/resolv.conf"), &answers)?;
    symlink(at("two/resolv.conf"), at("etc/new"))?;
    fs::rename(at("etc/new"), at("etc/resolv.conf"))?;
    becomes(true, "led elsewhere")?;
    // A forwarder that begins again is told of it, and a supervisor goes on looking.
    for (worker, text, resolves) in [("forwarder", &answers, true), ("supervisor", &refuses, false)] {
        Tree::of(monitor)?.worker(worker)?.kill(Signal::SIGKILL)?;
        fs::write(at("two/resolv.conf"), text)?;
        becomes(resolves, worker)?;
    }
    Ok(())
}
