//! Real programs, each with its own way of making connections.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::lab::command::{DEADLINE, Program};
use crate::lab::effort;
use crate::lab::servers::{self, BIG, TcpServer};
use crate::lab::workspace::{Workspace, contains, url_host};
use crate::lab::{REMOTE, poll};

crate::cases! {
    EVERY_WAY: curl, python_urllib, python_asyncio, node_fetch, go_hey, redis_cli, redis_inside, iperf3_inside,
        nginx_proxy, libevent;
    BOTH_PATHS: busybox_wget, ten_curls, curl_multi, java_nio;
}

const ENOUGH: u64 = BIG as u64;

fn curl(ws: Workspace) -> Result<()> {
    for addr in REMOTE {
        let server = TcpServer::http(&ws.lab.remote, addr)?;
        let url = format!("http://{}:{}", url_host(addr), server.addr.port());
        ws.run(["curl", "-gsS", &url])?.printed("hello")?;
        let done = ws.carries(ENOUGH, &format!("curl -gsS {url}/big | wc -c"))?;
        contains(&done.stdout, "1000000")?;
    }
    Ok(())
}

fn ten_curls(ws: Workspace) -> Result<()> {
    let server = TcpServer::http(&ws.lab.remote, REMOTE[0])?;
    let url = format!("http://{}/big", server.addr);
    let done = ws.sh(&format!("seq 10 | xargs -P10 -I{{}} curl -sS {url} | wc -c"))?;
    done.printed(&(10 * BIG).to_string())
}

fn busybox_wget(ws: Workspace) -> Result<()> {
    let server = TcpServer::http(&ws.lab.remote, REMOTE[0])?;
    ws.sh(&format!("busybox wget -q -O- http://{}/", server.addr))?.printed("hello")
}

fn python_urllib(ws: Workspace) -> Result<()> {
    let server = TcpServer::http(&ws.lab.remote, REMOTE[0])?;
    let code = format!(
        "import urllib.request; print(len(urllib.request.urlopen('http://{}/big', timeout=20).read()))",
        server.addr
    );
    contains(&ws.carries(ENOUGH, &format!("/usr/bin/python3 -c \"{code}\""))?.stdout, "1000000")
}

fn python_asyncio(ws: Workspace) -> Result<()> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let closed = servers::closed_port(&ws.lab.remote, REMOTE[0])?;
    ws.python(&format!(
        "async def one(i):
    reader, writer = await asyncio.open_connection('{addr}', {port})
    writer.write(b'%d\\n' % i); line = await reader.readline(); writer.close(); await writer.wait_closed()
    return int(line)
async def main():
    print(await asyncio.gather(*map(one, range(300))) == list(range(300)))
    try: await asyncio.open_connection('{addr}', {closed})
    except ConnectionRefusedError: print('refused')
    try: await asyncio.wait_for(asyncio.open_connection('{hole}', 80), 0.5)
    except TimeoutError: print('timed out')
asyncio.run(main())",
        addr = REMOTE[0],
        port = echo.addr.port(),
        closed = closed.port(),
        hole = crate::lab::BLACK_HOLE[0]
    ))?
    .printed("True\nrefused\ntimed out")
}

fn node_fetch(ws: Workspace) -> Result<()> {
    let server = TcpServer::http(&ws.lab.remote, REMOTE[0])?;
    let closed = servers::closed_port(&ws.lab.remote, REMOTE[0])?;
    let code = format!(
        "(async () => {{ console.log((await (await fetch('http://{}/big')).text()).length); \
         await fetch('http://{closed}/').catch(e => console.log(e.cause.code)); }})()",
        server.addr
    );
    let done = ws.carries(ENOUGH, &format!("node -e \"{code}\""))?;
    contains(&done.stdout, "1000000\nECONNREFUSED\n")
}

/// Go makes system calls of its own and connects nonblocking under epoll.
fn go_hey(ws: Workspace) -> Result<()> {
    let server = TcpServer::http(&ws.lab.remote, REMOTE[0])?;
    let done = ws.carries(ENOUGH, &format!("hey -n 200 -c 8 http://{}/big", server.addr))?;
    contains(&done.stdout, "[200]\t200 responses")
}

/// One thread, one epoll, all connections at the same time.
fn curl_multi(ws: Workspace) -> Result<()> {
    let server = TcpServer::http(&ws.lab.remote, REMOTE[0])?;
    let done = ws.sh(&format!("curl -sS --parallel --parallel-max 100 'http://{}/[1-300]'", server.addr))?;
    done.printed(&["hello"; 300].join("\n"))
}

/// Channels in a selector before they connect. The JVM compiles the program itself.
fn java_nio(ws: Workspace) -> Result<()> {
    let ws = ws.deadline(Duration::from_secs(60));
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let closed = servers::closed_port(&ws.lab.remote, REMOTE[0])?;
    let source = format!("/tmp/{}/Nio.java", ws.way);
    std::fs::create_dir_all(format!("/tmp/{}", ws.way))?;
    std::fs::write(&source, include_str!("programs/Nio.java"))?;
    let (port, closed) = (echo.addr.port(), closed.port());
    let flags = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:-UsePerfData";
    ws.sh(&format!("java {flags} {source} {} {port} {closed} 100", REMOTE[0]))?.printed("100 echoed, 1 refused")
}

/// Events that are added before their sockets connect.
fn libevent(ws: Workspace) -> Result<()> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let closed = servers::closed_port(&ws.lab.remote, REMOTE[0])?;
    let program = format!("/tmp/events-{}", ws.way);
    Program::new(["cc", "-O1", "-x", "c", "-", "-levent_core", "-o", &program])
        .stdin(include_str!("programs/events.c"))
        .run(&ws.lab.host)?
        .succeeded()?;
    let (port, closed) = (echo.addr.port().to_string(), closed.port().to_string());
    ws.run([&program, &REMOTE[0].to_string(), &port, &closed, "100"])?.printed("epoll: 100 echoed, 1 refused")
}

/// A proxy that keeps no connection to its upstream: not one request fails.
fn nginx_proxy(ws: Workspace) -> Result<()> {
    let upstream = TcpServer::http(&ws.lab.remote, REMOTE[0])?;
    let requests = effort::tries(2000, 100_000);
    let ws = ws.deadline(effort::lasting(Duration::from_secs(60), Duration::from_secs(1800)));
    // Where nginx closes first, its port is not waited for.
    ws.lab.host.sysctl("ipv4/tcp_tw_reuse", "1")?;
    let configuration = include_str!("programs/proxy.nginx").replace("UPSTREAM", &upstream.addr.to_string());
    let done = ws.sh(&format!(
        "mount -t tmpfs none /tmp && echo 1 > /proc/sys/net/ipv4/tcp_tw_reuse
cat > /tmp/nginx.conf <<'END'
{configuration}
END
nginx -c /tmp/nginx.conf & while kill -0 $! && ! curl -sS http://127.0.0.1:8080/ 2>/dev/null; do :; done
hey -n {requests} -c 20 http://127.0.0.1:8080/; kill $!; wait"
    ))?;
    contains(&done.stdout, &format!("[200]\t{requests} responses"))?;
    ensure!(!done.stdout.contains("Error distribution") && !done.stderr.contains("connect()"), "{done}");
    ensure!(upstream.accepted() > requests as usize, "{} connections to the upstream", upstream.accepted());
    Ok(())
}

fn redis_cli(ws: Workspace) -> Result<()> {
    let (addr, port) = (REMOTE[0].to_string(), "6379");
    let _server = redis(["--bind", &addr, "--protected-mode", "no", "--port", port]).start(&ws.lab.remote)?;
    let cli = |words: &str| format!("redis-cli -h {addr} -p {port} {words}");
    poll("redis answers", DEADLINE, || {
        Ok((ws.lab.host.run(&cli("ping")).is_ok_and(|done| done.stdout.trim() == "PONG")).then_some(()))
    })?;
    ws.sh(&format!("{} && {} && {}", cli("ping"), cli("set key value"), cli("get key")))?.printed("PONG\nOK\nvalue")?;
    ws.carries(ENOUGH / 4, &format!("redis-benchmark -h {addr} -p {port} -t set,get -n 5000 -c 10 -q"))?;
    Ok(())
}

/// Server and client both inside: nothing leaves.
fn redis_inside(ws: Workspace) -> Result<()> {
    ws.sh("redis-server --port 7000 --save '' --daemonize no >/dev/null & \
           until redis-cli -p 7000 ping 2>/dev/null | grep -q PONG; do :; done; \
           redis-cli -p 7000 set key value; redis-cli -p 7000 get key; redis-cli -p 7000 shutdown nosave; wait")?
        .printed("OK\nvalue")
}

fn iperf3_inside(ws: Workspace) -> Result<()> {
    ws.sh(
        "iperf3 -s -1 -p 7001 --forceflush | { while read -r line; do case $line in *listening*) break;; esac; done; \
           iperf3 -c 127.0.0.1 -p 7001 -n 50M >&2; cat >/dev/null; }; echo done",
    )?
    .printed("done")
}

fn redis<'a>(flags: impl IntoIterator<Item = &'a str>) -> Program {
    Program::new(["redis-server", "--save", "", "--dir", "/tmp"].into_iter().chain(flags))
}
