//! How interfaces inside are configured (by DHCP, by router advertisements), and flags about addresses.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::lab::command::Finished;
use crate::lab::netns::Netns;
use crate::lab::servers::{self, TcpServer};
use crate::lab::workspace::{Workspace, contains, url_host};
use crate::lab::{HOST_V4, HOST_V6, REMOTE, dns};

crate::cases! {
    BOTH_PATHS: dhcp, leases, router_advertisements, macaddress, lost_outbound_address, what_is_refused;
    EVERY_WAY: outbound_address;
    BOTH_PATHS_AS_ROOT: search_list;
}

/// What udhcpc(8) runs when it has a lease, as a file of the name in $script.
pub const LEASED: &str = r#"script=$(mktemp) && cat > $script <<'END' && chmod +x $script
#!/bin/sh
test $1 = bound || exit 0
ip addr add $ip/$mask broadcast $broadcast dev $interface
ip link set $interface mtu $mtu
ip route add default via $router
echo $ip/$mask $broadcast via $router dns $dns mtu $mtu lease $lease domain $domain search $search
END
udhcpc='busybox udhcpc -i tap0 -f -q -n -T 5 -O mtu -O search'
"#;

/// A client without an address gets one, and all that belongs to it; what it then does is carried as before.
fn dhcp(ws: Workspace) -> Result<()> {
    dns::serve(&ws.lab.remote, REMOTE[0])?;
    let server = TcpServer::http(&ws.lab.remote, REMOTE[0])?;
    let done = ws.flag("--mtu=1400").sh(&format!(
        "{LEASED}
ip addr flush dev tap0 && ip link set tap0 mtu 1280 && ! ip route get {remote} 2> /dev/null
$udhcpc -s $script 2> /dev/null
ip -o -4 addr show tap0 | tr -s ' ' | cut -d' ' -f4; cat /sys/class/net/tap0/mtu 2> /dev/null || true
curl -s http://remote.lab:{port}/; ping -c1 -W10 {remote} > /dev/null && dig +short @10.0.2.3 remote.lab",
        remote = REMOTE[0],
        port = server.addr.port()
    ))?;
    let got = done.output()?;
    contains(&got, "10.0.2.15/24 10.0.2.255 via 10.0.2.2 dns 10.0.2.3 mtu 1400 lease 86400 domain search")?;
    ensure!(got.ends_with(&format!("hello\n{}", REMOTE[0])), "{got}");
    Ok(())
}

/// Who asks again has the same address, another client the next, and one that was given back is free.
fn leases(ws: Workspace) -> Result<()> {
    let ws = ws.flag("--disable-dns").flag("--cidr=10.9.0.0/16");
    let done = ws.sh(&format!(
        "{LEASED}
sed -i -e '/^ip/d' -e 's/^echo.*/echo $ip $router dns $dns/' $script
for client in 01aa 01bb 01aa; do $udhcpc -s $script -C -x 0x3d:$client 2> /dev/null; done
$udhcpc -s $script -C -x 0x3d:01cc -r 10.9.0.22 2> /dev/null
$udhcpc -s $script -C -x 0x3d:01dd -r 10.9.0.22 2> /dev/null"
    ))?;
    done.printed(
        "10.9.0.15 10.9.0.2 dns\n10.9.0.16 10.9.0.2 dns\n10.9.0.15 10.9.0.2 dns\n10.9.0.22 10.9.0.2 dns\n\
         10.9.0.17 10.9.0.2 dns",
    )
}

/// The host's search list reaches who asks by DHCP.
fn search_list(ws: Workspace) -> Result<()> {
    let resolv_conf = format!("search lab example.org\\nnameserver {}", REMOTE[0]);
    let done = ws.sh_with_resolv_conf(
        &resolv_conf,
        &format!("{LEASED}\nip addr flush dev tap0; $udhcpc -s $script 2> /dev/null; grep search /etc/resolv.conf"),
    )?;
    let got = done.output()?;
    contains(&got, "domain lab search lab example.org\nsearch lab example.org")
}

/// An interface that was taken down and configures itself has an address of the prefix, a route, and the network.
fn router_advertisements(ws: Workspace) -> Result<()> {
    dns::serve(&ws.lab.remote, REMOTE[0])?;
    let server = TcpServer::http(&ws.lab.remote, REMOTE[1])?;
    let done = ws.flag("--ipv6=on").sh(&format!(
        "ip link set tap0 down
cd /proc/sys/net/ipv6/conf/tap0 && echo 2 > accept_ra && echo 3 > router_solicitations && cd /
ip link set tap0 up
until ip -6 -o addr show dev tap0 scope global | grep -q mngtmpaddr\\\\\\|dynamic; do sleep 0.05; done
until ip -6 route show default | grep -q 'via fe80::2 .*proto ra'; do sleep 0.05; done
ip -6 -o addr show dev tap0 scope global
curl -s http://{}:{}/; ping -c1 -W10 {remote} > /dev/null && dig +short @fd00::3 remote.lab",
        url_host(REMOTE[1]),
        server.addr.port(),
        remote = REMOTE[1],
    ))?;
    let got = done.output()?;
    contains(&got, "inet6 fd00::5055:aff:fe00:264/64")?;
    ensure!(got.ends_with(&format!("hello\n{}", REMOTE[0])), "{got}");
    Ok(())
}

fn macaddress(ws: Workspace) -> Result<()> {
    let server = TcpServer::http(&ws.lab.remote, REMOTE[0])?;
    let ws = ws.flag("--macaddress=02:11:22:33:44:5a");
    let done = ws.sh(&format!("ip -o link show tap0; curl -s http://{}/", server.addr))?;
    let got = done.output()?;
    contains(&got, "link/ether 02:11:22:33:44:5a")?;
    ensure!(got.ends_with("hello"), "{got}");
    Ok(())
}

/// Addresses of the host beside those that its routes choose, on an interface of their own.
const OTHER: [&str; 2] = ["192.0.2.7", "2001:db8:1::7"];

fn add_other_addresses(host: &Netns, remote: &Netns) -> Result<()> {
    host.run("ip link add out0 type veth peer name out1")?;
    for line in ["link set out0 up", "link set out1 up", "addr add 192.0.2.7/32 dev out0"] {
        host.run(&format!("ip {line}"))?;
    }
    host.run("ip addr add 2001:db8:1::7/128 dev out0 nodad")?;
    for (addr, via) in OTHER.into_iter().zip([IpAddr::V4(HOST_V4), IpAddr::V6(HOST_V6)]) {
        remote.run(&format!("ip route add {addr} via {via} dev veth0"))?;
    }
    Ok(())
}

/// Where TCP, a datagram and a ping come from, as the remote sees them.
fn sources(ws: &Workspace) -> Result<Vec<String>> {
    let mut seen = Vec::new();
    for (addr, other) in REMOTE.into_iter().zip(OTHER) {
        let tcp = TcpServer::whoami(&ws.lab.remote, addr)?.addr;
        let udp = ws.lab.remote.within(|| UdpSocket::bind((addr, 0)))?;
        udp.set_read_timeout(Some(Duration::from_secs(20)))?;
        let script = format!(
            "s = socket.socket(family('{addr}'), socket.SOCK_DGRAM); s.connect(('{addr}', {})); s.send(b'x')
print(dial('{addr}', {}).recv(99).decode())",
            udp.local_addr()?.port(),
            tcp.port()
        );
        seen.push(ws.python(&script)?.output()?);
        seen.push(udp.recv_from(&mut [0; 9])?.1.ip().to_string());
        // The remote hears pings from the other address only.
        let ip = if addr.is_ipv4() { "ip" } else { "ip6" };
        let protocol = if addr.is_ipv4() { "icmp" } else { "icmpv6" };
        for command in [
            format!("add table {ip} only"),
            format!("add chain {ip} only input {{ type filter hook input priority 0 ; }}"),
            format!("add rule {ip} only input {protocol} type echo-request {ip} saddr != {other} drop"),
        ] {
            ws.lab.remote.run(&format!("nft {command}"))?;
        }
        let ping = ws.run(["ping", "-c1", "-W20", &addr.to_string()])?;
        seen.push(if ping.status.success() { other.to_owned() } else { "another".to_owned() });
        ws.lab.remote.run(&format!("nft delete table {ip} only"))?;
    }
    Ok(seen)
}

/// By address and by interface, through the TAP and past it.
fn outbound_address(ws: Workspace) -> Result<()> {
    add_other_addresses(&ws.lab.host, &ws.lab.remote)?;
    let mut ws = ws.flag(format!("--outbound-addr={}", OTHER[0])).flag("--outbound-addr6=out0");
    let want = [[OTHER[0]; 3], [OTHER[1]; 3]].concat();
    let got = sources(&ws)?;
    ensure!(got == want, "{got:?}");
    // The host's loopback is reached from itself, and DNS goes on.
    ws = ws.flag("--host-loopback");
    let server = TcpServer::whoami(&ws.lab.host, "127.0.0.1".parse()?)?;
    ws.python(&format!("print(dial('10.0.2.2', {}).recv(99).decode())", server.addr.port()))?.printed("127.0.0.1")?;
    // A datagram socket has one source for all it sends, wherever the first went.
    let own = servers::udp_echo(&ws.lab.host, "127.0.0.1".parse()?)?;
    let remote = ws.lab.remote.within(|| UdpSocket::bind((REMOTE[0], 0)))?;
    remote.set_read_timeout(Some(Duration::from_secs(20)))?;
    ws.python(&format!(
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(10)
s.sendto(b'x', ('10.0.2.2', {})); print(s.recv(9)); s.sendto(b'y', ('{}', {}))",
        own.port(),
        REMOTE[0],
        remote.local_addr()?.port()
    ))?
    .printed("b'x'")?;
    ensure!(remote.recv_from(&mut [0; 9])?.1.ip().to_string() == OTHER[0]);
    dns::serve(&ws.lab.remote, REMOTE[0])?;
    ws.sh("dig +short remote.lab; dig +short +tcp remote.lab")?.printed(&format!("{0}\n{0}", REMOTE[0]))?;
    // An IPv6 socket on its way to an IPv4 address.
    let server = TcpServer::whoami(&ws.lab.remote, REMOTE[0])?;
    ws.python(&format!("print(dial('::ffff:{}', {}).recv(99).decode())", REMOTE[0], server.addr.port()))?
        .printed(OTHER[0])
}

/// An address that the host no longer has is no way out, on neither path.
fn lost_outbound_address(ws: Workspace) -> Result<()> {
    add_other_addresses(&ws.lab.host, &ws.lab.remote)?;
    let server = TcpServer::whoami(&ws.lab.remote, REMOTE[0])?;
    let ws = ws.flag("--outbound-addr=out0");
    let attempt = format!("say(attempt('{}', {}))", REMOTE[0], server.addr.port());
    let mut running = ws.start_python(&format!("{attempt}\nsys.stdin.readline()\n{attempt}"))?;
    ensure!(running.line()? == "connected");
    ws.lab.host.run("ip addr del 192.0.2.7/32 dev out0")?;
    running.write("\n")?;
    let line = running.line()?;
    ensure!(line == "ENETUNREACH", "{line}");
    running.finish()?.succeeded()?;
    Ok(())
}

fn what_is_refused(ws: Workspace) -> Result<()> {
    let refused = |flags: &[&str]| -> Result<Finished> {
        let ws = flags.iter().fold(Workspace::new(ws.way)?, |ws, &flag| ws.flag(flag));
        ws.run(["true"])?.exited(125)
    };
    for (flags, says) in [
        (&["--outbound-addr=198.51.100.1"][..], "198.51.100.1 is no address of this host"),
        (&["--outbound-addr=nothing0"], "nothing0 is neither an IPv4 address nor an interface"),
        (&["--outbound-addr6=192.0.2.1"], "give it to --outbound-addr"),
        (&["--outbound-addr6=lo"], "lo has no global IPv6 address"),
        (&["--macaddress=03:00:00:00:00:01"], "a group's address"),
        (&["--macaddress=52:55:0a:00:02:02"], "the gateway has this address"),
        (&["--cidr=10.0.2.100/24"], "CIDR needs to be a network address like 10.0.2.0/24"),
    ] {
        let done = refused(flags)?;
        contains(&done.stderr, says)?;
        ensure!(done.stdout.is_empty(), "{done}");
    }
    Ok(())
}
