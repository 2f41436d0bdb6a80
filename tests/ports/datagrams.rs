//! Published UDP ports.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{HOST, LOOPBACK};
use crate::lab::REMOTE;
use crate::lab::command::DEADLINE;
use crate::lab::netns::Netns;
use crate::lab::workspace::Workspace;

crate::cases! {
    EVERY_WAY: datagrams;
}

/// Clients keep their address, answers come from the address that was written to, and from nowhere else.
fn datagrams(ws: Workspace) -> Result<()> {
    let second: IpAddr = "192.0.2.7".parse()?;
    ws.lab.host.run("ip addr add 192.0.2.7/24 dev veth0 noprefixroute")?;
    let ws = ws.flag("-p=5300:53/udp").flag("-p=192.0.2.7:5301:53/udp").flag("-p=5302:54/udp");
    let mut running = ws.start_python(
        "def serve(s):
    while True:
        got, peer = s.recvfrom(65536)
        s.sendto(peer[0].encode() + b' ' + got, peer)
for addr, port in ('0.0.0.0', 53), ('::', 53), ('127.0.0.1', 54):
    s = socket.socket(family(addr), socket.SOCK_DGRAM)
    if addr == '::': s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((addr, port)); threading.Thread(target=serve, args=[s], daemon=True).start()
say('ready'); sys.stdin.read()",
    )?;
    running.line_with("ready")?;
    let [remote_v4, remote_v6] = REMOTE;
    let loopback: [IpAddr; 2] = [LOOPBACK[0].parse()?, LOOPBACK[1].parse()?];
    let cases = [
        (&ws.lab.remote, HOST[0], 5300, remote_v4.to_string()),
        (&ws.lab.remote, HOST[1], 5300, remote_v6.to_string()),
        (&ws.lab.remote, second, 5300, remote_v4.to_string()),
        (&ws.lab.remote, second, 5301, remote_v4.to_string()),
        (&ws.lab.host, loopback[0], 5300, "10.0.2.2".to_owned()),
        (&ws.lab.host, loopback[1], 5300, "fd00::2".to_owned()),
    ];
    for (from, to, port, name) in cases {
        let socket = udp_client(from, to, port)?;
        for size in [0, 1, 1400, 4000] {
            let sent = vec![b'x'; size];
            socket.send(&sent)?;
            let mut got = vec![0; 65536];
            let count = socket.recv(&mut got).with_context(|| format!("{size} bytes to {to}:{port}"))?;
            let want = [name.as_bytes(), b" ", &sent].concat();
            ensure!(got[..count] == want, "{} from {to}:{port}", String::from_utf8_lossy(&got[..count.min(99)]));
        }
    }
    // Neither what was not asked for nor what listens on the loopback inside.
    for (to, port) in [(HOST[0], 5301), (HOST[0], 5302)] {
        let socket = udp_client(&ws.lab.remote, to, port)?;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        socket.send(b"x")?;
        ensure!(socket.recv(&mut [0; 99]).is_err(), "{to}:{port} answers");
    }
    Ok(())
}

pub fn udp_client(from: &Netns, to: IpAddr, port: u16) -> Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { "0.0.0.0".parse()? } else { "::".parse()? };
    let socket = from.within(|| -> std::io::Result<_> {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((to, port))?;
        Ok(socket)
    })?;
    socket.set_read_timeout(Some(DEADLINE))?;
    Ok(socket)
}
