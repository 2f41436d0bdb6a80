//! Real programs, each with its own way of making connections.

use std::time::Duration;

use anyhow::Result;

use crate::lab::command::Program;
use crate::lab::servers::{self, BIG, TcpServer};
use crate::lab::workspace::{Workspace, contains, url_host};
use crate::lab::{REMOTE, poll};

crate::cases! {
    EVERY_WAY: curl, python_urllib, python_asyncio, node_fetch, go_hey, redis_cli, redis_inside, iperf3_inside;
    BOTH_PATHS: busybox_wget, ten_curls;
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
    print(await asyncio.gather(*map(one, range(20))) == list(range(20)))
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

fn redis_cli(ws: Workspace) -> Result<()> {
    let (addr, port) = (REMOTE[0].to_string(), "6379");
    let _server = redis(["--bind", &addr, "--protected-mode", "no", "--port", port]).start(&ws.lab.remote)?;
    let cli = |words: &str| format!("redis-cli -h {addr} -p {port} {words}");
    poll("redis answers", Duration::from_secs(10), || {
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
