//! kill -9 of each of sidestep's processes: the workspace goes on, or ends with one clear line, and nothing is left.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::lab::command::Running;
use crate::lab::processes::Tree;
use crate::lab::servers::TcpServer;
use crate::lab::workspace::Workspace;
use crate::lab::{REMOTE, poll};

crate::cases! {
    EVERY_WAY: monitor, init, forwarder, supervisor, ordinary_end;
    BOTH_PATHS: supervisor_again_and_again, forwarder_again_and_again, command_killed, without_state_directory;
    BYPASS: supervisor_amid_connects, options_set_before;
}

const SOON: Duration = Duration::from_secs(30);

/// A workspace whose command connects to the remote each time it reads a line, and tells how that went.
struct Connecting {
    running: Running,
    tree: Tree,
    state_dir: PathBuf,
    echo: TcpServer,
}

impl Connecting {
    fn start(ws: &Workspace) -> Result<Self> {
        let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
        let mut running = ws.start_python(&format!(
            "say(os.environ['SIDESTEP_STATE_DIR'])
for line in sys.stdin: say(attempt('{}', {}))",
            REMOTE[0],
            echo.addr.port()
        ))?;
        let state_dir = PathBuf::from(running.line()?);
        let tree = Tree::of(running.pid())?;
        let mut this = Self { running, tree, state_dir, echo };
        this.connects()?;
        Ok(this)
    }

    fn connects(&mut self) -> Result<()> {
        self.running.write("again\n")?;
        let said = self.running.line()?;
        ensure!(said == "connected", "connect: {said}; stderr: {}", self.running.stderr());
        Ok(())
    }

    /// It ended by itself, said why in one line, and left nothing.
    fn ends_with_a_line(self) -> Result<()> {
        let Self { running, tree, state_dir, .. } = self;
        let done = running.finish()?;
        ensure!(done.code() != 0, "a crash ended with success: {done}");
        // The start line and the reason.
        ensure!(done.stderr.lines().count() == 2, "not one line about it: {done}");
        nothing_left(&tree, &state_dir).context(done.to_string())
    }

    /// It goes on as if nothing had happened, with another `worker`.
    fn goes_on(mut self, worker: &str) -> Result<()> {
        self.connects()?;
        let now = poll("another worker is there", SOON, || {
            let now = Tree::of(self.running.pid())?;
            Ok(now.worker(worker).is_ok().then_some(now))
        })?;
        let done = self.running.finish()?.succeeded()?;
        nothing_left(&self.tree, &self.state_dir)?;
        nothing_left(&now, &self.state_dir).context(done.to_string())
    }
}

fn nothing_left(tree: &Tree, state_dir: &std::path::Path) -> Result<()> {
    tree.is_gone(SOON)?;
    poll("the state directory is gone", SOON, || Ok((!state_dir.exists()).then_some(())))
        .with_context(|| state_dir.display().to_string())
}

fn ordinary_end(ws: Workspace) -> Result<()> {
    let Connecting { running, tree, state_dir, .. } = Connecting::start(&ws)?;
    running.finish()?.succeeded()?;
    nothing_left(&tree, &state_dir)
}

fn monitor(ws: Workspace) -> Result<()> {
    let Connecting { running, tree, state_dir, .. } = Connecting::start(&ws)?;
    running.kill(Signal::SIGKILL)?;
    nothing_left(&tree, &state_dir)
}

fn init(ws: Workspace) -> Result<()> {
    let this = Connecting::start(&ws)?;
    this.tree.worker("init")?.kill(Signal::SIGKILL)?;
    this.ends_with_a_line()
}

fn forwarder(ws: Workspace) -> Result<()> {
    kill_and_go_on(ws, "forwarder")
}

fn supervisor(ws: Workspace) -> Result<()> {
    kill_and_go_on(ws, "supervisor")
}

/// Whoever clears /tmp takes away what tells others about a workspace, and not the workspace.
fn without_state_directory(ws: Workspace) -> Result<()> {
    let mut this = Connecting::start(&ws)?;
    std::fs::remove_dir_all(&this.state_dir)?;
    for worker in ["supervisor", "forwarder"] {
        let victim = this.tree.worker(worker)?;
        victim.kill(Signal::SIGKILL)?;
        poll("the worker is gone", SOON, || Ok((!victim.is_alive()).then_some(())))?;
        this.connects()?;
    }
    this.goes_on("forwarder")
}

/// A rare option that was set under a supervisor which is dead by the time of the connect is on the host socket all the same.
fn options_set_before(ws: Workspace) -> Result<()> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let mut running = ws.start_python(&format!(
        "s = socket.socket(); s.settimeout(20)
s.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 77)
say('set'); sys.stdin.readline()
s.connect(('{}', {}))
say(s.getsockopt(socket.IPPROTO_IP, socket.IP_TTL), s.getsockname()[0].startswith('10.0.2.'))",
        REMOTE[0],
        echo.addr.port()
    ))?;
    ensure!(running.line()? == "set");
    Tree::of(running.pid())?.worker("supervisor")?.kill(Signal::SIGKILL)?;
    running.write("go on\n")?;
    let said = running.line()?;
    ensure!(said == "77 False", "{said}");
    running.finish()?.succeeded().map(drop)
}

fn kill_and_go_on(ws: Workspace, worker: &str) -> Result<()> {
    let this = Connecting::start(&ws)?;
    let victim = this.tree.worker(worker)?;
    // What it is to ps(1) and top(1).
    ensure!(victim.command == format!("sidestep {worker}"), "{victim:?}");
    victim.kill(Signal::SIGKILL)?;
    poll("the worker is gone", SOON, || Ok((!victim.is_alive()).then_some(())))?;
    this.goes_on(worker)
}

fn supervisor_again_and_again(ws: Workspace) -> Result<()> {
    again_and_again(ws, "supervisor")
}

fn forwarder_again_and_again(ws: Workspace) -> Result<()> {
    again_and_again(ws, "forwarder")
}

/// A worker that dies over and over ends the workspace, with one line and the code of sidestep's own failures.
fn again_and_again(ws: Workspace, worker: &str) -> Result<()> {
    let mut this = Connecting::start(&ws)?;
    let mut killed = Vec::new();
    poll("the workspace gives up", SOON, || {
        let now = Tree::of(this.running.pid())?;
        if let Ok(victim) = now.worker(worker)
            && !killed.contains(victim)
            && victim.kill(Signal::SIGKILL).is_ok()
        {
            killed.push(victim.clone());
        }
        Ok(this.running.has_ended()?.then_some(()))
    })?;
    ensure!(killed.len() == 6, "gave up after {} deaths", killed.len());
    let Connecting { running, tree, state_dir, .. } = this;
    let done = running.finish()?.exited(125)?;
    let again = format!("the {worker} ended with SIGKILL and is started again");
    let at_last = format!("the {worker} ended again and again (last with SIGKILL): the workspace is ended");
    let counted = |what: &str| done.stderr.lines().filter(|line| line.contains(what)).count();
    ensure!((counted(&again), counted(&at_last), counted("")) == (5, 1, 7), "{done}");
    nothing_left(&tree, &state_dir).context(done.to_string())
}

/// Supervisors die while eight threads connect: each connect has one true result, and no connection is lost.
fn supervisor_amid_connects(ws: Workspace) -> Result<()> {
    let server = TcpServer::whoami(&ws.lab.remote, REMOTE[0])?;
    let mut running = ws.start_python(&format!(
        "results = []
def work():
    for _ in range(200):
        s = tcp('{addr}'); s.settimeout(20)
        how = outcome(lambda: s.connect(('{addr}', {port})))
        if how == 'connected' and not s.recv(99): how = 'no data'
        results.append(how); s.close()
workers = [threading.Thread(target=work) for _ in range(8)]
for w in workers: w.start()
say('ready')
for w in workers: w.join()
say({{how: results.count(how) for how in set(results)}})",
        addr = REMOTE[0],
        port = server.addr.port()
    ))?;
    running.line_with("ready")?;
    for _ in 0..3 {
        let before = server.accepted();
        let tree = Tree::of(running.pid())?;
        let Ok(victim) = tree.worker("supervisor") else { break };
        victim.kill(Signal::SIGKILL)?;
        poll("connections go on", SOON, || {
            Ok((server.accepted() > before + 50 || server.accepted() >= 1500).then_some(()))
        })
        .with_context(|| running.stderr())?;
    }
    let said = running.line()?;
    ensure!(said == "{'connected': 1600}", "{said}");
    running.finish()?.succeeded()?;
    Ok(())
}

fn command_killed(ws: Workspace) -> Result<()> {
    let Connecting { running, tree, state_dir, echo } = Connecting::start(&ws)?;
    let command = tree
        .processes
        .iter()
        .find(|process| process.command.contains("python3") && !process.command.contains("sidestep"));
    command.context("no python among the processes")?.kill(Signal::SIGKILL)?;
    running.finish()?.exited(137)?;
    drop(echo);
    nothing_left(&tree, &state_dir)
}
