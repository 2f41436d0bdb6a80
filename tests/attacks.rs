//! A hostile workspace against the bypass. Each attack's target is a server on the host's loopback, which counts.
//!
//! The attackers are Python where a few calls do, and otherwise C programs of tests/attacks, compiled here: what those
//! need is system calls in tight loops, from several threads, or none that a library would make.

pub mod arguments;
pub mod doors;
pub mod fuzz;
pub mod host_sockets;
pub mod outside;
pub mod races;
pub mod stalls;

use std::cell::Cell;
use std::fmt::Display;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpStream};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::lab::command::{DEADLINE, Program, Running};
use crate::lab::netns::Netns;
use crate::lab::processes::{Process, Tree};
use crate::lab::servers::TcpServer;
use crate::lab::workspace::Workspace;
use crate::lab::{BLACK_HOLE, REMOTE, poll};

crate::cases! {
    BYPASS: signal_outside;
}

/// Compiles an attacker; its directory is made by one test, so that none runs what another still writes.
fn attacker(ws: &Workspace, source: &str, name: &str) -> Result<PathBuf> {
    let out = Path::new("/tmp").join(format!("{name}-{}-{:?}", ws.way, std::thread::current().id()));
    let cc = ["cc", "-O2", "-pthread", "-x", "c", "-o"].map(std::ffi::OsStr::new);
    Program::new(cc).arg(&out).arg("-").stdin(source).run(&ws.lab.host)?.succeeded().context("compile an attacker")?;
    Ok(out)
}

/// What no attack may reach: the host's loopback, at the same port in both families.
struct Forbidden<'a> {
    host: &'a Netns,
    servers: [TcpServer; 2],
    asked: Cell<usize>,
}

impl<'a> Forbidden<'a> {
    fn start(ws: &'a Workspace) -> Result<Self> {
        let host = &ws.lab.host;
        let v4 = TcpServer::echo(host, IpAddr::V4(Ipv4Addr::LOCALHOST))?;
        let v6 = TcpServer::start(host, (IpAddr::V6(Ipv6Addr::LOCALHOST), v4.addr.port()), |_| Ok(()))?;
        Ok(Self { host, servers: [v4, v6], asked: Cell::new(0) })
    }

    fn port(&self) -> u16 {
        self.servers[0].addr.port()
    }

    fn is_untouched(&self, said: impl Display) -> Result<()> {
        self.asked.set(self.asked.get() + 1);
        for server in &self.servers {
            // Served in turn: what came before this connection is counted when its end is seen.
            let mut own = self.host.within(|| TcpStream::connect(server.addr))?;
            own.shutdown(Shutdown::Write)?;
            own.read_to_end(&mut Vec::new())?;
            let times = server.accepted() - self.asked.get();
            ensure!(times == 0, "the host's {} was reached {times} times: {said}", server.addr);
        }
        Ok(())
    }
}

/// Runs Python code with the names of [`prelude`]; what it prints, if the host's loopback was not reached.
fn attack(ws: &Workspace, code: &str) -> Result<String> {
    let allowed = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let forbidden = Forbidden::start(ws)?;
    let done = ws.python(&format!("{}{code}", prelude(allowed.addr.port(), forbidden.port())))?;
    forbidden.is_untouched(&done)?;
    done.output()
}

/// Addresses, and sockets that are on the host's side or were there.
fn prelude(allowed: u16, forbidden: u16) -> String {
    format!(
        "libc = ctypes.CDLL(None, use_errno=True)
remote, silent, allowed, forbidden = '{}', '{}', {allowed}, {forbidden}
def syscall(number, *arguments):
    r = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    return 'connected' if r >= 0 else errno.errorcode[ctypes.get_errno()]
def connected():
    s = dial(remote, allowed); assert side(s) == 'host'
    return s
def dissolved():
    'Connected once, then dissolved with AF_UNSPEC.'
    s = connected(); libc.connect(s.fileno(), bytes(16), 16); s.settimeout(5)
    return s
def shut():
    'Of the host and unconnected: shut down while it connected.'
    s = tcp(silent); s.setblocking(False); s.connect_ex((silent, 9)); s.shutdown(socket.SHUT_RDWR)
    assert side(s) == 'host'
    s.settimeout(5)
    return s
",
        REMOTE[0], BLACK_HOLE[0]
    )
}

/// Waits until no more than `lost` threads of a supervisor sleep in connect(2): nobody is left for whom one could, but a
/// process that makes a socket blocking in the midst of a call takes a thread until TCP gives up.
fn calms_down(supervisor: &Process, lost: usize) -> Result<()> {
    let connect = format!("{} ", libc::SYS_connect);
    let asleep = || -> Result<usize> {
        let threads = std::fs::read_dir(format!("/proc/{}/task", supervisor.pid))?.flatten();
        let calls = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("syscall")).ok());
        Ok(calls.filter(|call| call.starts_with(&connect)).count())
    };
    poll("the supervisor's threads are given back", DEADLINE, || Ok((asleep()? <= lost).then_some(())))
        .with_context(|| format!("{:?} threads", asleep()))
}

/// A program inside that attacks the supervisor, which must be the same process afterwards and answer others at once.
struct Survival {
    running: Running,
    supervisor: Process,
}

impl Survival {
    /// Starts Python code that must end by itself.
    fn start(ws: &Workspace, code: &str) -> Result<Self> {
        let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
        let mut running = ws.start_python(&format!(
            "say('ready'); sys.stdin.readline()
{code}
say('done'); sys.stdin.readline()
say(attempt('{}', {}))",
            REMOTE[0],
            echo.addr.port()
        ))?;
        running.line_with("ready")?;
        let supervisor = Tree::of(running.pid())?.worker("supervisor")?.clone();
        running.write("go\n")?;
        Ok(Self { running, supervisor })
    }

    /// What the code printed, line by line.
    fn end(mut self) -> Result<Vec<String>> {
        let mut said = Vec::new();
        loop {
            match self.running.line()? {
                line if line == "done" => break,
                line => said.push(line),
            }
        }
        ensure!(self.supervisor.is_alive(), "the supervisor died: {}", self.running.stderr());
        calms_down(&self.supervisor, 0)?;
        self.running.write("go\n")?;
        self.running.line_with("connected").context("others are served afterwards")?;
        let done = self.running.finish()?.succeeded()?;
        // The start line is all that a supervisor in good health has to say.
        ensure!(done.stderr.lines().count() <= 1 || std::env::var_os("LAB_LOG").is_some(), "{done}");
        Ok(said)
    }
}

/// Without a pid namespace of its own too: host processes of the same uid get no signal from inside.
fn signal_outside(ws: Workspace) -> Result<()> {
    let ws = ws.flag("--pidns=off");
    let victim = ws.outside(["sleep", "100"]).start(&ws.lab.host)?;
    ws.python(&format!("print(outcome(lambda: os.kill({}, 9)))", victim.pid()))?.printed("EPERM")
}
