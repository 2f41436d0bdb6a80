//! Making the supervisor wait: it costs the attacker its calls, and nobody else anything.

use anyhow::{Context as _, Result, ensure};
use nix::unistd::Pid;

use super::{Survival, attacker};
use crate::lab::processes::Tree;
use crate::lab::servers::TcpServer;
use crate::lab::workspace::Workspace;
use crate::lab::{BLACK_HOLE, REMOTE};

crate::cases! {
    BYPASS: held_locks, held_lock_of_another_family, address_that_never_comes, abandoned_connects, copied_listener;
    EVERYWHERE: patient_connect;
}

/// A thread inside can hold a socket's lock for ever.
fn held_locks(ws: Workspace) -> Result<()> {
    stalled(&ws, "socket")
}

/// Reading a process's memory may wait for a page, which a process can hold back.
fn address_that_never_comes(ws: Workspace) -> Result<()> {
    stalled(&ws, "address")
}

/// The same on a socket that is none of IP's. Skipped, and said, where the kernel has no AF_VSOCK.
fn held_lock_of_another_family(ws: Workspace) -> Result<()> {
    if !ws
        .python("print(outcome(lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)))")?
        .output()?
        .contains("connected")
    {
        println!("not tried: no AF_VSOCK here");
        return Ok(());
    }
    stalled(&ws, "vsock")
}

fn stalled(ws: &Workspace, mode: &str) -> Result<()> {
    const CALLS: usize = 40;
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let lock = attacker(ws, include_str!("lock.c"), mode)?;
    let port = echo.addr.port();
    // The others are processes of the same workspace: the attacker is one's child.
    let mut running = ws.start_python(&format!(
        "import subprocess
attacker = subprocess.Popen(['{lock}', '{mode}', '{CALLS}', '{addr}', '{port}'])
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
    running.line_with("{'connected'}").context("others are served while calls are stuck")?;
    for _ in 0..CALLS {
        running.line_with("connect: EIO")?;
    }
    ensure!(supervisor.is_alive(), "the supervisor died: {}", running.stderr());
    let processes = Tree::of(Pid::from_raw(supervisor.pid))?.processes;
    ensure!(processes.len() <= 2, "more than a supervisor and its factory: {processes:#?}");
    running.finish()?.exited(0)?;
    Ok(())
}

/// Who has copied a socket before it listened on the host can make it blocking, and hold its lock: the forwarder, which
/// takes the clients that come to it inside, does not wait for that.
fn copied_listener(ws: Workspace) -> Result<()> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let lock = attacker(&ws, include_str!("lock.c"), "listener")?;
    ws.flag("-p=8080:80")
        .python(&format!(
            "import subprocess
def by_tap():
    s = tcp('{addr}'); s.settimeout(20); s.bind(('0.0.0.0', 0)); s.connect(('{addr}', {port}))
    return side(s)
l = tcp('0.0.0.0'); l.bind(('0.0.0.0', 80)); copy = l.dup(); l.listen(); os.set_blocking(copy.fileno(), True)
print(side(l), side(copy), flush=True)
c = dial('10.0.2.100', 80); l.settimeout(20); print(l.accept()[1][0], by_tap(), flush=True)
l.close(); copy.close(); c.close()
attacker = subprocess.Popen(['{lock}', 'listener', '1', '0.0.0.0', '80'], stdout=subprocess.PIPE, text=True)
print(attacker.stdout.readline().strip(), flush=True)
c = tcp('10.0.2.100'); c.settimeout(20); c.connect(('10.0.2.100', 80)); print(by_tap())
attacker.kill()",
            lock = lock.display(),
            addr = REMOTE[0],
            port = echo.addr.port(),
        ))?
        .printed("host workspace\n127.0.0.1 workspace\nheld\nworkspace")
}

/// Calls in place whose callers were interrupted cost no thread: more of them than there may be sleepers.
fn abandoned_connects(ws: Workspace) -> Result<()> {
    let said = Survival::start(
        &ws,
        &format!(
            "signal.signal(signal.SIGALRM, lambda *_: None)
libc = ctypes.CDLL(None, use_errno=True)
to = struct.pack('=H', socket.AF_INET) + struct.pack('!H', 9) + socket.inet_aton('{}') + bytes(8)
outcomes = set()
for _ in range(700):
    # What is bound stays in place.
    s = tcp('0.0.0.0'); s.bind(('0.0.0.0', 0))
    # Again and again, for the first one may come before the call.
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    libc.connect(s.fileno(), to, 16)
    outcomes.add(errno.errorcode[ctypes.get_errno()])
    signal.setitimer(signal.ITIMER_REAL, 0)
say(sorted(outcomes))",
            BLACK_HOLE[0]
        ),
    )?
    .end()?;
    // So many at a time that some may have to wait for the watch to make room.
    ensure!(said == ["['EINTR']"] || said == ["['EAGAIN', 'EINTR']"], "{said:?}");
    Ok(())
}

/// What takes as long as the network wants is not stuck, in any protocol: SO_SNDTIMEO ends it, with its own errno.
fn patient_connect(ws: Workspace) -> Result<()> {
    ws.python(&format!(
        "s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack('ll', 7, 0))
print(outcome(lambda: s.connect(('{}', 9))))",
        BLACK_HOLE[0]
    ))?
    .printed("EINPROGRESS")
}
