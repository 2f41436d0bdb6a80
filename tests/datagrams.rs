//! UDP and ping, which stay on the TAP in both modes.

use anyhow::Result;

use crate::lab::workspace::Workspace;
use crate::lab::{REMOTE, servers};

crate::cases! {
    EVERYWHERE: ping, udp_echo, udp_connected;
    EVERY_WAY: ping_virtual_addresses, one_socket_many_peers;
}

fn ping(ws: Workspace) -> Result<()> {
    for addr in REMOTE {
        ws.run(["ping", "-c3", "-i0.1", "-W5", &addr.to_string()])?.succeeded()?;
        ws.run(["ping", "-c1", "-s1400", "-W5", &addr.to_string()])?.succeeded()?;
    }
    Ok(())
}

fn ping_virtual_addresses(ws: Workspace) -> Result<()> {
    for addr in ["10.0.2.2", "10.0.2.3", "fd00::2", "fd00::3"] {
        ws.run(["ping", "-c1", "-W5", addr])?.succeeded()?;
    }
    Ok(())
}

/// Datagrams of many sizes come back whole, those above the MTU in fragments.
fn udp_echo(ws: Workspace) -> Result<()> {
    for addr in REMOTE {
        let echo = servers::udp_echo(&ws.lab.remote, addr)?;
        ws.python(&format!(
            "s = socket.socket(family('{addr}'), socket.SOCK_DGRAM); s.settimeout(10)
for size in 0, 1, 512, 1400, 1472, 4000, 9000:
    sent = os.urandom(size); s.sendto(sent, ('{addr}', {port}))
    got, peer = s.recvfrom(65536)
    if got != sent or peer[:2] != ('{addr}', {port}): print(size, 'came back as', len(got), 'from', peer)",
            port = echo.port()
        ))?
        .printed("")?;
    }
    Ok(())
}

fn udp_connected(ws: Workspace) -> Result<()> {
    for addr in REMOTE {
        let echo = servers::udp_echo(&ws.lab.remote, addr)?;
        ws.python(&format!(
            "s = socket.socket(family('{addr}'), socket.SOCK_DGRAM); s.settimeout(10); s.connect(('{addr}', {port}))
for i in range(500):
    s.send(str(i).encode())
    assert s.recv(99) == str(i).encode()
print('all')",
            port = echo.port()
        ))?
        .printed("all")?;
    }
    Ok(())
}

/// One unconnected socket talks to several servers and hears from each.
fn one_socket_many_peers(ws: Workspace) -> Result<()> {
    let mut ports = Vec::new();
    for _ in 0..5 {
        ports.push(servers::udp_echo(&ws.lab.remote, REMOTE[0])?.port());
    }
    ws.python(&format!(
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(10)
for port in {ports:?}: s.sendto(str(port).encode(), ('{addr}', port))
heard = dict((peer[1], int(data)) for data, peer in (s.recvfrom(99) for _ in range(5)))
print(sorted(heard) == sorted({ports:?}) and all(k == v for k, v in heard.items()))",
        addr = REMOTE[0]
    ))?
    .printed("True")
}
