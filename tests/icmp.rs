//! Pings, and what routers say about pings and datagrams: unreachable, too big, hop limit exceeded. The errors come from
//! who made them, and path MTU discovery and traceroute work as on the host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};

use crate::lab::netns::Netns;
use crate::lab::workspace::{Workspace, contains};
use crate::lab::{REMOTE, UNREACHABLE, servers};

crate::cases! {
    EVERYWHERE: ping, unreachable;
    EVERY_WAY: ping_virtual_addresses;
    TAP: hops, mtu_of_a_path, mtu_of_the_host, jumbo, ping_forbidden;
}

const VIRTUAL: [&str; 4] = ["10.0.2.2", "10.0.2.3", "fd00::2", "fd00::3"];
/// Behind the remote, by way of a router that has the packets come back, over a link of a smaller MTU.
const BEYOND: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 18, 0, 9)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 9))];
const BEYOND_MTU: u16 = 1400;

fn with_beyond(ws: &Workspace) -> Result<()> {
    // Else the host is told that these are its neighbours.
    for sysctl in
        ["ipv4/conf/all/accept_redirects", "ipv4/conf/veth0/accept_redirects", "ipv6/conf/veth0/accept_redirects"]
    {
        ws.lab.host.sysctl(sysctl, "0")?;
    }
    ws.lab.remote.run(&format!("ip route add 198.18.0.0/24 via 192.0.2.1 mtu {BEYOND_MTU}"))?;
    ws.lab.remote.run(&format!("ip route add 2001:db8:99::/48 via 2001:db8:1::1 mtu {BEYOND_MTU}"))?;
    Ok(())
}

fn ping(ws: Workspace) -> Result<()> {
    for addr in REMOTE {
        ws.run(["ping", "-c3", "-i0.1", "-W20", &addr.to_string()])?.succeeded()?;
        for size in ["-s1400", "-s3000", "-s20000"] {
            ws.run(["ping", "-c1", size, "-W20", &addr.to_string()])?.succeeded()?;
        }
    }
    Ok(())
}

fn ping_virtual_addresses(ws: Workspace) -> Result<()> {
    for addr in VIRTUAL {
        ws.run(["ping", "-c1", "-W20", addr])?.succeeded()?;
        ws.run(["ping", "-c1", "-t1", "-s4000", "-W20", addr])?.succeeded()?;
    }
    Ok(())
}

/// A router answers for what it cannot reach.
fn unreachable(ws: Workspace) -> Result<()> {
    for ((addr, errno), remote) in UNREACHABLE.into_iter().zip(REMOTE) {
        let code = if addr.is_ipv4() { "3 1" } else { "1 0" };
        ws.python(&format!(
            "s = udp('{addr}', hears_errors('{addr}')); s.sendto(b'x', ('{addr}', 9)); print(*reported(s))"
        ))?
        .printed(&format!("{errno} {code} 0 {remote}"))?;
        let done = ws.run(["ping", "-c1", "-W20", &addr.to_string()])?.exited(1)?;
        contains(&done.stdout, &format!("From {remote} icmp_seq=1 Destination"))?;
    }
    Ok(())
}

/// Traceroute, with UDP and with pings.
fn hops(ws: Workspace) -> Result<()> {
    with_beyond(&ws)?;
    for ((addr, gateway), remote) in BEYOND.into_iter().zip(["10.0.2.2", "fd00::2"]).zip(REMOTE) {
        let (option, code) =
            if addr.is_ipv4() { ("socket.IPPROTO_IP, 2", "11 0") } else { ("socket.IPPROTO_IPV6, 16", "3 0") };
        ws.python(&format!(
            "s = udp('{addr}', hears_errors('{addr}'))
for hops in 1, 2, 1: s.setsockopt({option}, hops); s.sendto(b'x', ('{addr}', 33434)); print(*reported(s))"
        ))?
        .printed(
            &[gateway, &remote.to_string(), gateway].map(|who| format!("EHOSTUNREACH {code} 0 {who}")).join("\n"),
        )?;
        for (hops, who) in [("-t1", gateway.to_owned()), ("-t2", remote.to_string())] {
            let done = ws.run(["ping", "-c1", "-W20", hops, &addr.to_string()])?.exited(1)?;
            contains(&done.stdout, &format!("From {who} icmp_seq=1 Time "))?;
        }
    }
    Ok(())
}

/// Too big for a link somewhere on the way: the router there says so.
fn mtu_of_a_path(ws: Workspace) -> Result<()> {
    with_beyond(&ws)?;
    for (addr, remote) in BEYOND.into_iter().zip(REMOTE) {
        let code = if addr.is_ipv4() { "3 4" } else { "2 0" };
        ws.python(&format!(
            "s = udp('{addr}', hears_errors('{addr}'), never_cut('{addr}')); s.connect(('{addr}', 9))
s.send(bytes(1440)); print(*reported(s)); print(mtu(s), outcome(lambda: s.send(bytes(1440))))"
        ))?
        .printed(&format!("EMSGSIZE {code} {BEYOND_MTU} {remote}\n{BEYOND_MTU} EMSGSIZE"))?;
    }
    let done = ws.run(["ping", "-c1", "-W20", "-Mdo", "-s1440", &BEYOND[0].to_string()])?.exited(1)?;
    contains(&done.stdout, &format!("mtu = {BEYOND_MTU}"))
}

/// Too big for the host's own link: the gateway says so, and what may be cut goes in pieces.
fn mtu_of_the_host(ws: Workspace) -> Result<()> {
    ws.lab.host.run("ip link set veth0 mtu 1300")?;
    ws.lab.remote.run("ip link set veth0 mtu 1300")?;
    // Else the workspace's link is made the same.
    let ws = ws.flag("--mtu=1500");
    for (addr, gateway) in REMOTE.into_iter().zip(["10.0.2.2", "fd00::2"]) {
        let port = servers::udp_echo(&ws.lab.remote, addr)?.port();
        let code = if addr.is_ipv4() { "3 4" } else { "2 0" };
        ws.python(&format!(
            "s = udp('{addr}', hears_errors('{addr}'), never_cut('{addr}')); s.connect(('{addr}', {port}))
s.send(bytes(1400)); print(*reported(s)); print(mtu(s))
s = udp('{addr}'); s.connect(('{addr}', {port}))
for size in 1200, 1400, 30000: s.send(bytes(size)); print(len(s.recv(65536)))
s.sendmsg([bytes(14000)], [(socket.IPPROTO_UDP, 103, struct.pack('H', 1200))]); print(sum(len(s.recv(9999)) for _ in range(12)))"
        ))?
        .printed(&format!("EMSGSIZE {code} 1300 {gateway}\n1300\n1200\n1400\n30000\n14000"))?;
        ws.run(["ping", "-c1", "-W20", "-s3000", &addr.to_string()])?.succeeded()?;
    }
    Ok(())
}

/// A workspace's link that carries more than the host's.
fn jumbo(ws: Workspace) -> Result<()> {
    let ws = ws.flag("--mtu=65520");
    for addr in REMOTE {
        let port = servers::udp_echo(&ws.lab.remote, addr)?.port();
        // The first one finds the path's MTU, unless something else has.
        ws.python(&format!(
            "s = udp('{addr}', hears_errors('{addr}')); s.connect(('{addr}', {port})); sent = os.urandom(60000)
s.send(sent); print(*reported(s)[:1]); s.send(sent); print(mtu(s), s.recv(65536) == sent)"
        ))?
        .printed("EMSGSIZE\n1500 True")?;
    }
    Ok(())
}

/// Where the host has no ping sockets for the caller: said at once, and the virtual addresses answer all the same.
fn ping_forbidden(ws: Workspace) -> Result<()> {
    // What a kernel begins with: ping sockets for nobody.
    let (host, ws) = (Netns::new()?, ws.flag("--ipv6=on"));
    let ping = |addr: &str| ws.program(["ping", "-c1", "-W20", addr]).run(&host);
    for addr in REMOTE {
        let done = ping(&addr.to_string())?.exited(1)?;
        ensure!(done.stdout.to_lowercase().contains("prohibited"), "{done}");
    }
    for addr in VIRTUAL {
        ping(addr)?.succeeded()?;
    }
    Ok(())
}
