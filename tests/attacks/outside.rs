//! What a workspace could leave outside for the caller: stories in what his commands show, links where sidestep writes,
//! processes that outlive `sidestep run`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::{Survival, attacker};
use crate::lab::command::DEADLINE;
use crate::lab::processes::Tree;
use crate::lab::servers::TcpServer;
use crate::lab::workspace::{Workspace, contains};
use crate::lab::world::SIDESTEP;
use crate::lab::{REMOTE, poll};

crate::cases! {
    BYPASS: stories, links, outlived_monitor, complaints;
}

fn path_of_its_own(ws: &Workspace, name: &str) -> PathBuf {
    format!("/tmp/{name}-{}-{}", ws.way, std::process::id()).into()
}

/// Commands show a terminal nothing that the workspace has written into the directories it sees.
fn stories(ws: Workspace) -> Result<()> {
    const ATTACK: &str = "import sys; sys.path.insert(0, '/run/lab'); from inside import *; import json
here = os.environ['SIDESTEP_STATE_DIR']
with open(here + '/state.json', 'r+') as file:
    state = json.load(file)
    state['ifname'] = state['bypass'] = '\\x1b[31mforged'; state['init'] = 1
    file.seek(0); json.dump(state, file); file.truncate()
beside = os.path.dirname(here) + '/\\x1b[31m7'
os.mkdir(beside); s = socket.socket(socket.AF_UNIX); s.bind(beside + '/control.sock'); s.listen()
say('forged'); sys.stdin.readline()";
    // One shell, as a single-id world's caller has a user namespace of its own each time it calls.
    let script = format!(
        "export XDG_RUNTIME_DIR={runtime_dir}; mkdir $XDG_RUNTIME_DIR; cd /
coproc one {{ exec {SIDESTEP} run --bypass=require --log-level=error -- /usr/bin/python3 -c \"$1\"; }}; read x <&${{one[0]}}; echo $x
{SIDESTEP} stats 2>&1 | head -1
{SIDESTEP} stats 1 2>&1 | head -1
curl -sS --unix-socket $XDG_RUNTIME_DIR/sidestep/[0-9]*/control.sock http://sidestep/v1/state; echo
grep -c forged $XDG_RUNTIME_DIR/sidestep/[0-9]*/state.json
echo >&${{one[1]}}; wait; rm -r $XDG_RUNTIME_DIR",
        runtime_dir = path_of_its_own(&ws, "stories").display()
    );
    let done = ws.shell(&script).arg("bash").arg(ATTACK).run(&ws.lab.host)?.succeeded()?;
    let lines: Vec<_> = done.stdout.lines().collect();
    let ["forged", stats, unknown, state, "1"] = lines[..] else { bail!("not five lines: {done}") };
    contains(stats, ", bypass strict, tap0")?;
    contains(unknown, "process 1 runs no workspace of")?;
    let state: serde_json::Value = serde_json::from_str(state).with_context(|| done.to_string())?;
    ensure!(state["ifname"] == "tap0" && state["init"] != 1, "{done}");
    ensure!(!format!("{}{}", done.stdout, done.stderr).contains('\x1b'), "{done}");
    Ok(())
}

/// A link in the place of the state directory leads nobody elsewhere.
fn links(ws: Workspace) -> Result<()> {
    const NAMES: [&str; 3] = ["control.sock", "state.json", "state.json.new"];
    let victim = path_of_its_own(&ws, "victim");
    let mut running = ws.start_python(&format!(
        "here, victim = os.environ['SIDESTEP_STATE_DIR'], '{}'
os.mkdir(victim)
for name in {NAMES:?}:
    with open(victim + '/' + name, 'w') as file: file.write('as it was')
os.rename(here, here + '.moved'); os.unlink(here + '.moved/control.sock'); os.symlink(victim, here)
say(here); sys.stdin.read()",
        victim.display()
    ))?;
    let state_dir = PathBuf::from(running.line()?);
    let moved = state_dir.with_extension("moved");
    let first = Tree::of(running.pid())?.worker("supervisor")?.clone();
    first.kill(Signal::SIGKILL)?;
    poll("another supervisor has its socket", DEADLINE, || Ok(moved.join("control.sock").exists().then_some(())))?;
    running.finish()?.succeeded()?;
    for name in NAMES {
        ensure!(fs::read_to_string(victim.join(name)).is_ok_and(|text| text == "as it was"), "{name}");
        fs::remove_file(victim.join(name))?;
    }
    fs::remove_dir(victim)?;
    fs::remove_file(state_dir)?;
    // Nothing of ours is left in it.
    Ok(fs::remove_dir(moved)?)
}

/// The workspace ends with `sidestep run` whatever it has made of its first process.
fn outlived_monitor(ws: Workspace) -> Result<()> {
    if cfg!(not(target_arch = "x86_64")) {
        println!("not tried: init.c knows the registers of x86_64 only");
        return Ok(());
    }
    let init = attacker(&ws, include_str!("init.c"), "init")?;
    let mut running = ws.start_python(&format!(
        "import subprocess; say(subprocess.run(['{}'], stdout=-1).stdout); sys.stdin.read()",
        init.display()
    ))?;
    running.line_with("b'done\\n'")?;
    let tree = Tree::of(running.pid())?;
    running.kill(Signal::SIGKILL)?;
    tree.is_gone(DEADLINE)
}

/// What goes wrong for a call because the workspace makes it go wrong fills nobody's log.
fn complaints(ws: Workspace) -> Result<()> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    // Registered and not, while its registration is moved.
    let attack = format!(
        "ep, over, s = select.epoll(), False, tcp('{addr}')
number = s.fileno()
def toggle():
    while not over:
        for call in ep.unregister, lambda number: ep.register(number, select.EPOLLOUT):
            try: call(number)
            except OSError: pass
toggling = threading.Thread(target=toggle); toggling.start()
for _ in range(500):
    fresh = tcp('{addr}'); os.dup2(fresh.fileno(), number); fresh.close()
    s.setblocking(False); s.connect_ex(('{addr}', {port}))
over = True; toggling.join()",
        addr = REMOTE[0],
        port = echo.addr.port()
    );
    ensure!(Survival::start(&ws, &attack)?.end()?.is_empty());
    Ok(())
}
