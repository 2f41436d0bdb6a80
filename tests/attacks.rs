//! A hostile workspace against the bypass. Each attack's target is a server on the host's loopback, which counts.
//!
//! The attackers are C programs of tests/attacks, compiled here: what they need is system calls in tight loops.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::lab::REMOTE;
use crate::lab::command::Program;
use crate::lab::effort;
use crate::lab::processes::Tree;
use crate::lab::servers::TcpServer;
use crate::lab::workspace::Workspace;

crate::cases! {
    BYPASS: address_race, family_race, disconnect_race, descriptor_race, fast_open, io_uring, dissolved_socket,
        signal_outside, foreign_abi, held_locks;
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Compiles an attacker; its directory is made by one test, so that none runs what another still writes.
fn attacker(ws: &Workspace, source: &str, name: &str) -> Result<PathBuf> {
    let out = Path::new("/tmp").join(format!("{name}-{}-{:?}", ws.way, std::thread::current().id()));
    let cc = ["cc", "-O2", "-pthread", "-x", "c", "-o"].map(std::ffi::OsStr::new);
    Program::new(cc).arg(&out).arg("-").stdin(source).run(&ws.lab.host)?.succeeded().context("compile an attacker")?;
    Ok(out)
}

/// `rounds` tries in one run of the attacker; 20,000 in the soak.
fn race(ws: Workspace, mode: &str, rounds: u32) -> Result<()> {
    let rounds = effort::tries(rounds, 20_000);
    let ws = ws.deadline(effort::lasting(Duration::from_secs(90), Duration::from_secs(900)));
    let race = attacker(&ws, include_str!("attacks/race.c"), mode)?;
    let allowed = TcpServer::start(&ws.lab.remote, (REMOTE[0], 0), |stream| {
        let mut stream = stream;
        std::io::copy(&mut stream, &mut std::io::sink()).map(drop)
    })?;
    let forbidden = TcpServer::start(&ws.lab.host, (LOOPBACK, 0), |_| Ok(()))?;
    // A race nobody ran proves nothing: it is run again where the scheduler let the other thread win nearly always.
    let least = if mode == "descriptor" { 1 } else { rounds as usize / 20 };
    for _ in 0..20 {
        let done = ws
            .program([race.as_os_str()])
            .arg(mode)
            .arg(rounds.to_string())
            .arg(REMOTE[0].to_string())
            .arg(allowed.addr.port().to_string())
            .arg(LOOPBACK.to_string())
            .arg(forbidden.addr.port().to_string())
            .run(&ws.lab.host)?
            .succeeded()?;
        ensure!(forbidden.accepted() == 0, "the forbidden server was reached {} times: {done}", forbidden.accepted());
        ensure!(done.stdout.contains(" reached 0"), "{done}");
        if allowed.accepted() >= least {
            return Ok(());
        }
    }
    bail!("only {} of 20 times {rounds} reached the allowed server", allowed.accepted())
}

fn address_race(ws: Workspace) -> Result<()> {
    race(ws, "address", 2000)
}

fn family_race(ws: Workspace) -> Result<()> {
    race(ws, "family", 2000)
}

fn disconnect_race(ws: Workspace) -> Result<()> {
    race(ws, "disconnect", 1000)
}

fn descriptor_race(ws: Workspace) -> Result<()> {
    race(ws, "descriptor", 2000)
}

/// Runs Python code that has a once bypassed socket `s`, now unconnected, and `forbidden`, an address on the host.
fn with_dissolved_socket(ws: &Workspace, code: &str) -> Result<(TcpServer, String)> {
    let allowed = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let forbidden = TcpServer::echo(&ws.lab.host, LOOPBACK)?;
    let done = ws.python(&format!(
        "libc = ctypes.CDLL(None, use_errno=True)
def dissolve(s): libc.connect(s.fileno(), struct.pack('HHI8x', socket.AF_UNSPEC, 0, 0), 16)
s = dial('{}', {}); assert side(s) == 'host'
forbidden = ('127.0.0.1', {})
{code}",
        REMOTE[0],
        allowed.addr.port(),
        forbidden.addr.port()
    ))?;
    Ok((forbidden, done.output()?))
}

/// Everything a program can do to an unconnected socket to get it to the host's loopback.
fn dissolved_socket(ws: Workspace) -> Result<()> {
    let (forbidden, said) = with_dissolved_socket(
        &ws,
        "dissolve(s); s.settimeout(5)
print(outcome(lambda: s.connect(forbidden)), side(s))
t = tcp('127.0.0.1'); print(outcome(lambda: t.connect(forbidden)), side(t))",
    )?;
    ensure!(forbidden.accepted() == 0, "the host's loopback was reached: {said}");
    ensure!(said == "ECONNREFUSED workspace\nECONNREFUSED workspace", "{said}");
    // Listening on the host is for published ports, which nobody asked for here.
    let (_, said) = with_dissolved_socket(
        &ws,
        "dissolve(s)
for call in (lambda: s.bind(('0.0.0.0', 0)), lambda: s.listen()):
    outcome(call)
print('listens on the host' if s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and side(s) == 'host' else 'no')",
    )?;
    ensure!(said == "no", "{said}");
    Ok(())
}

fn fast_open(ws: Workspace) -> Result<()> {
    let (forbidden, said) = with_dissolved_socket(
        &ws,
        "dissolve(s); MSG_FASTOPEN = 0x20000000
print(outcome(lambda: s.sendto(b'x', MSG_FASTOPEN, forbidden)))
print(outcome(lambda: s.sendmsg([b'x'], [], MSG_FASTOPEN, forbidden)))
print(outcome(lambda: tcp('127.0.0.1').sendto(b'x', MSG_FASTOPEN, forbidden)))",
    )?;
    ensure!(forbidden.accepted() == 0, "the host's loopback was reached: {said}");
    // EOPNOTSUPP, by Python's name for the same number.
    ensure!(said == ["ENOTSUP"; 3].join("\n"), "{said}");
    Ok(())
}

fn io_uring(ws: Workspace) -> Result<()> {
    ws.python(
        "libc = ctypes.CDLL(None, use_errno=True)
for number in 425, 426, 427:
    r = libc.syscall(number, 8, ctypes.byref(ctypes.create_string_buffer(120)), 0, 0)
    print(r, errno.errorcode[ctypes.get_errno()])",
    )?
    .printed(&["-1 EPERM"; 3].join("\n"))
}

/// The x32 entry to connect(2) is no way around the filter.
fn foreign_abi(ws: Workspace) -> Result<()> {
    let (forbidden, said) = with_dissolved_socket(
        &ws,
        "dissolve(s); X32 = 0x40000000
addr = struct.pack('!HI8x', forbidden[1], 0x7f000001); addr = struct.pack('H', socket.AF_INET) + addr
child = os.fork()
if child == 0: os._exit(0 if libc.syscall(X32 + 42, s.fileno(), addr, 16) == 0 else 1)
print('refused' if os.waitpid(child, 0)[1] != 0 else 'connected')",
    )?;
    ensure!(forbidden.accepted() == 0, "the host's loopback was reached: {said}");
    ensure!(said == "refused", "{said}");
    Ok(())
}

/// Locks held for ever cost the supervisor threads, the attacker its calls, and nobody else anything.
fn held_locks(ws: Workspace) -> Result<()> {
    const LOCKS: usize = 40;
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let lock = attacker(&ws, include_str!("attacks/lock.c"), "lock")?;
    let port = echo.addr.port();
    // The others are processes of the same workspace: the attacker is one's child.
    let mut running = ws.start_python(&format!(
        "import subprocess
attacker = subprocess.Popen(['{lock}', '{LOCKS}', '{addr}', '{port}'])
sys.stdin.readline()
say({{attempt('{addr}', {port}) for _ in range(50)}})
sys.stdin.readline()
attacker.kill()",
        lock = lock.display(),
        addr = REMOTE[0],
    ))?;
    running.line_with("held")?;
    let supervisor = Tree::of(running.pid())?.worker("supervisor")?.clone();
    running.write("go\n")?;
    running.line_with("{'connected'}").context("others are served while the locks are held")?;
    for _ in 0..LOCKS {
        running.line_with("connect: EIO")?;
    }
    ensure!(supervisor.is_alive(), "the supervisor died: {}", running.stderr());
    running.finish()?.exited(0)?;
    Ok(())
}

/// Without a pid namespace of its own too: host processes of the same uid get no signal from inside.
fn signal_outside(ws: Workspace) -> Result<()> {
    let ws = ws.flag("--pidns=off");
    let victim = ws.outside(["sleep", "100"]).start(&ws.lab.host)?;
    ws.python(&format!("print(outcome(lambda: os.kill({}, 9)))", victim.pid()))?.printed("EPERM")
}
