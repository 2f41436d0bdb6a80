//! TCP through the TAP where it is hard: frames lost, late and reordered, far servers, short queues, containers'
//! networks inside, urgent data, ports used again, thousands of connections, everything at once.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::endurance::is_near;
use crate::lab::command::{Finished, Program};
use crate::lab::processes::{Footprint, Tree};
use crate::lab::servers::{self, TcpServer};
use crate::lab::workspace::Workspace;
use crate::lab::{REMOTE, REMOTE_V4, SLOW_REMOTE_V4, dns, effort, poll};

crate::cases! {
    TAP: lossy_link, short_queue, behind_a_bridge, small_link_inside;
    TAP_AS_ROOT: idle_connections, mixed_load;
    BOTH_PATHS: readers_that_pause;
    EVERYWHERE: urgent_data, ports_used_again;
    USER: far_away;
}

const LONG: Duration = Duration::from_secs(120);
const PATTERN: &str = include_str!("streams/pattern.py");

/// Bytes that repeat after a prime number of them, as in `streams/pattern.py`: what is in a wrong place is seen.
fn block() -> Vec<u8> {
    (0..65_521u64).map(|n| ((n * 2_654_435_761) >> 16).to_le_bytes()[0]).collect()
}

/// The server of `streams/pattern.py`, at all of the remote's IPv4 addresses.
fn patterned(ws: &Workspace) -> Result<TcpServer> {
    patterned_at(ws, std::net::Ipv4Addr::UNSPECIFIED.into())
}

fn patterned_at(ws: &Workspace, addr: std::net::IpAddr) -> Result<TcpServer> {
    let block = block();
    TcpServer::start(&ws.lab.remote, (addr, 0), move |mut stream| {
        let mut head = [0; 17];
        stream.read_exact(&mut head)?;
        let [kind, numbers @ ..] = head;
        let [size, pause] = [&numbers[..8], &numbers[8..]].map(|n| n.iter().fold(0, |sum, &b| sum << 8 | u64::from(b)));
        std::thread::sleep(Duration::from_millis(pause));
        if kind == b'u' { take(&mut stream, &block, size) } else { give(&mut stream, &block, size) }
    })
}

fn take(stream: &mut TcpStream, block: &[u8], size: u64) -> std::io::Result<()> {
    let (mut buffer, mut at, mut right) = (vec![0; 1 << 20], 0, true);
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            let want = &block[at % block.len()..];
            let (now, later) = rest.split_at(want.len().min(rest.len()));
            right &= now == &want[..now.len()];
            at += now.len();
            rest = later;
        }
    }
    let is_same = right && at as u64 == size;
    stream.write_all(if is_same { b"same" } else { b"not what was sent" })
}

fn give(stream: &mut TcpStream, block: &[u8], size: u64) -> std::io::Result<()> {
    let mut left = size;
    while left > 0 {
        let count = left.min(block.len() as u64);
        stream.write_all(&block[..usize::try_from(count).unwrap_or(0)])?;
        left -= count;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read(&mut [0]).map(drop)
}

/// Python with the names of `streams/pattern.py`, and the server's port as `port`.
fn run(ws: &Workspace, server: &TcpServer, code: &str) -> Result<Finished> {
    let port = server.addr.port();
    ws.python(&format!("{PATTERN}\naddr, port = '{}', {port}\n{code}", REMOTE[0]))
}

/// Short connections and long ones over a link that loses and delays one frame in a hundred: none hangs, every byte is
/// right. Both callers together make 400 connections, 20,000 in the soak.
fn lossy_link(ws: Workspace) -> Result<()> {
    let ws = ws.deadline(effort::lasting(LONG, Duration::from_secs(3600)));
    let connections = effort::tries(200, 10_000);
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let server = patterned(&ws)?;
    run(
        &ws,
        &server,
        &format!(
            "counts = behind(loss=.01, late=.01, seed=os.getpid())
def short(worker):
    for n in range({connections} // 16):
        with dial(addr, {echo}, HANG) as s:
            sent = os.urandom(random.choice((1, 900, 20_000, 200_000)))
            writer = threading.Thread(target=s.sendall, args=[sent]); writer.start()
            got = bytearray()
            while len(got) < len(sent):
                data = s.recv(1 << 20)
                if not data: break
                got += data
            if got != sent: return f'{{len(got)}} bytes of {{len(sent)}}, or others'
            writer.join()
            # Either end is the first.
            if n % 2: s.shutdown(socket.SHUT_WR); assert s.recv(9) == b''
    return 'same'
import random
print(at_once(16, short)[0])
print(at_once(4, lambda n: (up, down)[n % 2](addr, port, 40_000_000))[0])
carried, lost, late = counts()
print(carried > 1000 and lost > 0 and late > 0 or (carried, lost, late))",
            echo = echo.addr.port()
        ),
    )?
    .printed("same\nsame\nTrue")
}

/// The workspace's kernel drops what a short queue does not take: nothing is lost for good.
fn short_queue(ws: Workspace) -> Result<()> {
    let server = patterned(&ws)?;
    run(
        &ws.deadline(LONG),
        &server,
        "def dropped(): return int(open('/proc/net/dev').read().split('tap0:')[1].split()[11])
assert os.system('ip link set tap0 txqueuelen 3 gso_max_segs 1') == 0
for move in up, down: print(at_once(8, lambda n: move(addr, port, 2_000_000))[0])
print(dropped() > 0)",
    )?
    .printed("same\nsame\nTrue")
}

/// Docker's shape: `contained` calls `work` in a network namespace at a bridge, forwarded and masqueraded, with the
/// offloads on, once these routes to it are there.
const CONTAINED: &str = r#"
def ip(line): assert os.system('ip ' + line) == 0, line
def contained(work, *routes):
    go, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        assert ctypes.CDLL(None).unshare(0x40000000) == 0
        os.write(done[1], b'm'); os.read(go[0], 1)
        for line in ('link set lo up', 'link set eth0 up', 'addr add 172.17.0.2/16 dev eth0', 'addr add fd17::2/64 dev eth0 nodad',
                     'route add default via 172.17.0.1', 'route add default via fd17::1'): ip(line)
        work()
        os._exit(0)
    os.read(done[0], 1)
    for line in ('link add docker0 type bridge', 'addr add 172.17.0.1/16 dev docker0', 'addr add fd17::1/64 dev docker0 nodad',
                 'link set docker0 up', f'link add veth1 type veth peer name eth0 netns {child}',
                 'link set veth1 master docker0 up', *routes): ip(line)
    for name in 'ipv4/ip_forward', 'ipv6/conf/all/forwarding': open('/proc/sys/net/' + name, 'w').write('1')
    assert os.system("""nft 'add table inet t; add chain inet t post { type nat hook postrouting priority 100; };
        add rule inet t post oifname "tap0" masquerade' """) == 0
    os.write(go[1], b'g'); os.wait()
"#;

/// One stream of a container's, and many, both ways.
fn behind_a_bridge(ws: Workspace) -> Result<()> {
    let server = patterned(&ws)?;
    run(
        &ws.deadline(LONG),
        &server,
        &format!(
            "{CONTAINED}
def work():
    for count in 1, 4, 16:
        for move in up, down: say(count, move.__name__, at_once(count, lambda n: move(addr, port, 80_000_000 // count))[0])
contained(work)"
        ),
    )?
    .printed("1 up same\n1 down same\n4 up same\n4 down same\n16 up same\n16 down same")
}

/// The way to a container takes less than the TAP: what the workspace's kernel says about packets that do not fit reaches
/// the connection, the mapping or the pings whose they are.
fn small_link_inside(ws: Workspace) -> Result<()> {
    let ws = ws.deadline(LONG);
    for (addr, gateway) in REMOTE.into_iter().zip(["10.0.2.2", "fd00::2"]) {
        let server = patterned_at(&ws, addr)?;
        let echo = servers::udp_echo(&ws.lab.remote, addr)?.port();
        ws.python(&format!(
            "{PATTERN}
{CONTAINED}
def echoed(size):
    s, sent = udp('{addr}'), os.urandom(size)
    s.settimeout(1)
    # Of the first answer all that is left is what the workspace says about it.
    for again in range(15):
        s.sendto(sent, ('{addr}', {echo}))
        try: return s.recv(70_000) == sent
        except TimeoutError: pass
def pinged(addr): return os.system(f'ping -c5 -i.2 -W5 -s1400 {{addr}} >&2') == 0
def work():
    say(at_once(1, lambda n: down('{addr}', {port}, 5_000_000))[0], echoed(1400), echoed(9000))
    say(pinged('{addr}'), pinged('{gateway}'))
contained(work, 'route add 172.17.0.2 dev docker0 mtu 1280', '-6 route add fd17::2 dev docker0 mtu 1280')",
            port = server.addr.port()
        ))?
        .printed("same True True\nTrue True")?;
    }
    Ok(())
}

/// A program, or a server, that does not read for longer than the first window probes take.
fn readers_that_pause(ws: Workspace) -> Result<()> {
    let server = patterned(&ws)?;
    run(&ws, &server, "print(at_once(4, lambda n: (up, down)[n % 2](addr, port, 20_000_000, 1500))[0])")?
        .printed("same")
}

/// The urgent byte is at its place in the stream, and urgent, both ways.
fn urgent_data(ws: Workspace) -> Result<()> {
    const URGENT: &str = "
def gives(s):
    for _ in range(3): s.sendall(b'a' * 5000); s.send(b'bcU', socket.MSG_OOB); s.sendall(b'def' * 1000); assert s.recv(1) == b'k'
    s.shutdown(socket.SHUT_WR)
def takes(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    poll = select.poll(); poll.register(s, select.POLLPRI)
    for _ in range(3):
        if not poll.poll(20000): return 'nothing urgent'
        got = bytearray()
        while len(got) < 8003:
            if fcntl.ioctl(s, 0x8905, bytes(4)) != bytes(4): got += b'!'
            data = s.recv(9000)
            if not data: return f'the end after {got!r:.99}'
            got += data
        if got != b'a' * 5000 + b'bc!U' + b'def' * 1000: return f'{len(got)} {bytes(got[4990:5010])}'
        s.sendall(b'k')
    return 'same' if s.recv(1) == b'' else 'more'
";
    let mut remote = Program::new(["/usr/bin/python3", "-c"])
        .arg(format!(
            "import sys; sys.path.insert(0, '/run/lab'); from inside import *
{URGENT}
l = socket.create_server(('{}', 0)); say(l.getsockname()[1])
s, _ = l.accept(); s.settimeout(20); gives(s); s.recv(1)
s, _ = l.accept(); s.settimeout(20); say(takes(s))",
            REMOTE[0]
        ))
        .start(&ws.lab.remote)?;
    let port = remote.line()?;
    ws.python(&format!(
        "{URGENT}
print(takes(dial('{addr}', {port})))
s = dial('{addr}', {port}); gives(s); s.recv(1)",
        addr = REMOTE[0]
    ))?
    .printed("same")?;
    let said = remote.line()?;
    ensure!(said == "same", "towards the remote: {said}");
    Ok(())
}

/// One port for one connection after the other, however each ends.
fn ports_used_again(ws: Workspace) -> Result<()> {
    let server = TcpServer::whoami(&ws.lab.remote, REMOTE[0])?;
    ws.python(&format!(
        "linger = struct.pack('ii', 1, 0)
for n in range(60):
    s = tcp('{addr}'); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(('', 7777)); s.settimeout(20)
    if n % 3 == 1: s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    # Until the last connection's FIN is acknowledged; TIME_WAIT, where nobody may be, lasts longer.
    end = time.monotonic() + 20
    while (how := outcome(lambda: s.connect(('{addr}', {port})))) == 'EADDRNOTAVAIL' and time.monotonic() < end: time.sleep(.001)
    if how != 'connected': raise OSError(how)
    if n % 3 != 1: assert s.recv(99)
    if n % 3 == 0: assert not s.recv(99)
    if n % 3 == 2: s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    s.close()
print('all')",
        addr = REMOTE[0],
        port = server.addr.port()
    ))?
    .printed("all")
}

/// A long way to the server, or over the TAP's own link, fills as well as from the host itself.
fn far_away(ws: Workspace) -> Result<()> {
    let ws = ws.deadline(LONG);
    let server = patterned(&ws)?;
    for round_trip in [100, 300, 20, 0].into_iter().take(effort::tries(1, 4) as usize) {
        let mut best: Option<[[f64; 2]; 3]> = None;
        // On a busy machine the frames come late, which ends the sender's slow start, and the host has taken five times
        // its time as well: the best of some tells what is ours.
        for tries in 1.. {
            let now = times_far_away(&ws, server.addr.port(), f64::from(round_trip) / 2000.0)?;
            let best = best.insert(best.map_or(now, |best| least(best, now)));
            let [host, far, near] = *best;
            let is_near = |took: [f64; 2]| took.iter().zip(host).all(|(&took, host)| took < 2.5 * host + 0.1);
            if is_near(far) && is_near(near) {
                break;
            }
            ensure!(
                tries < 8,
                "{round_trip} ms away, up and down: the server {far:?}, the TAP {near:?}, the host itself {host:?}"
            );
        }
    }
    Ok(())
}

/// Seconds up and down: from the host, from the workspace, and from the workspace with its own link as long.
fn times_far_away(ws: &Workspace, port: u16, way: f64) -> Result<[[f64; 2]; 3]> {
    let slow = ws.lab.slow_cable(way)?;
    let code = format!(
        "{PATTERN}
times = [at_once(1, lambda n: move('{SLOW_REMOTE_V4}', {port}, 20_000_000)) for move in (up, down)]
assert all(said == 'same' for said, _ in times), times
print(*(took for _, took in times))"
    );
    let host = ws.python_outside(&code)?.output()?;
    let far = ws.python(&code)?.output()?;
    drop(slow);
    let near = code.replace(&SLOW_REMOTE_V4.to_string(), &REMOTE_V4.to_string());
    let near = ws.python(&near.replace("times =", &format!("behind(delay={way})\ntimes =")))?.output()?;
    let seconds = |text: &str| -> Result<[f64; 2]> {
        let (up, down) = text.split_once(' ').with_context(|| text.to_owned())?;
        Ok([up.parse()?, down.parse()?])
    };
    Ok([seconds(&host)?, seconds(&far)?, seconds(&near)?])
}

fn least(a: [[f64; 2]; 3], b: [[f64; 2]; 3]) -> [[f64; 2]; 3] {
    std::array::from_fn(|path| std::array::from_fn(|way| a[path][way].min(b[path][way])))
}

/// Ten thousand connections that say nothing cost little memory, no time, and are not in the way of another.
fn idle_connections(ws: Workspace) -> Result<()> {
    const COUNT: usize = 10_000;
    let ws = ws.deadline(LONG);
    let mut server = Program::new(["/usr/bin/python3", "-c", include_str!("streams/echo.py")])
        .arg(REMOTE[0].to_string())
        .deadline(LONG)
        .start(&ws.lab.remote)?;
    let port = server.line()?;
    let mut running = ws
        .python_program(include_str!("streams/idle.py"))
        .arg(REMOTE[0].to_string())
        .arg(port)
        .arg(COUNT.to_string())
        .start(&ws.lab.host)?;
    running.line_with("open")?;
    let forwarder = Tree::of(running.pid())?.worker("forwarder")?.clone();
    let busy = forwarder.footprint()?;
    ensure!(busy.descriptors > COUNT, "{busy:?}");
    ensure!(busy.memory < 64 << 20, "{busy:?}");
    // Of a silence that begins late, or on a machine that is suddenly busy, the next one tells more.
    again_where_busy(|| {
        let before = forwarder.cpu_time()?;
        std::thread::sleep(Duration::from_secs(3));
        let spent = forwarder.cpu_time()? - before;
        ensure!(spent <= Duration::from_millis(30), "{spent:?} in 3 s of silence");
        Ok(())
    })?;
    again_where_busy(|| {
        running.write("another\n")?;
        let line = running.line()?;
        let (alone, beside) = line.split_once(' ').with_context(|| line.clone())?;
        let (alone, beside): (f64, f64) = (alone.parse()?, beside.parse()?);
        // Whoever looked at each of them would take a hundred times as long.
        ensure!(beside < 10.0 * alone, "{alone} s alone, {beside} s beside {COUNT}");
        Ok(())
    })?;
    running.write("close\n")?;
    running.line_with("closed")?;
    poll("all are closed", LONG, || Ok((forwarder.footprint()?.descriptors < 100).then_some(())))?;
    running.finish()?.succeeded()?;
    Ok(())
}

/// Of what is measured the best of three tells what is ours.
fn again_where_busy(mut measure: impl FnMut() -> Result<()>) -> Result<()> {
    measure().or_else(|_| measure()).or_else(|_| measure())
}

/// Everything at once for a minute, an hour in the soak: nothing fails, and the forwarder is as small as before.
fn mixed_load(ws: Workspace) -> Result<()> {
    let lasting = effort::lasting(Duration::from_secs(60), Duration::from_secs(3600));
    let ws = ws.deadline(lasting + LONG);
    dns::serve(&ws.lab.remote, REMOTE[0])?;
    let server = patterned(&ws)?;
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let udp = servers::udp_echo(&ws.lab.remote, REMOTE[0])?;
    let mut running = ws
        .python_program(&format!("{PATTERN}\n{}", include_str!("streams/mixed.py")))
        .arg(REMOTE[0].to_string())
        .arg(server.addr.port().to_string())
        .arg(echo.addr.port().to_string())
        .arg(udp.port().to_string())
        .start(&ws.lab.host)?;
    running.line_with("ready")?;
    running.write("once\n")?;
    running.line_with("warm")?;
    let forwarder = Tree::of(running.pid())?.worker("forwarder")?.clone();
    let before = forwarder.footprint()?;
    running.write("go\n")?;
    std::thread::sleep(lasting);
    running.write("end\n")?;
    let said = running.line()?;
    ensure!(said == "5", "kinds of traffic that worked, and what failed: {said}");
    let mut now: Option<Footprint> = None;
    poll("the forwarder is as small as before", LONG, || {
        let footprint = forwarder.footprint()?;
        now = Some(footprint);
        Ok(is_near(footprint, before).then_some(()))
    })
    .with_context(|| format!("{before:?} before, {now:?} afterwards"))?;
    running.finish()?.succeeded()?;
    Ok(())
}
