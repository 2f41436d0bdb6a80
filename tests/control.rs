//! The control socket: what it answers and to whom, `sidestep stats`, and that nobody can hold it up.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::command::{Finished, Running};
use crate::lab::processes::Tree;
use crate::lab::servers::TcpServer;
use crate::lab::workspace::{Workspace, contains};
use crate::lab::world::SIDESTEP;
use crate::lab::{REMOTE, poll};

crate::cases! {
    EVERY_WAY: counters, workspace_is_refused;
    BYPASS: who_listens_on_the_host;
    BOTH_PATHS: flows, clients_that_misbehave, workers_that_die;
    USER: which_workspace, long_paths;
}

const SOON: Duration = Duration::from_secs(30);

/// A workspace that has told where its state directory is, and the way to its control socket.
struct Controlled {
    running: Running,
    state_dir: PathBuf,
}

impl Controlled {
    /// `code` says `ready` when what it does is done.
    fn start(ws: &Workspace, code: &str) -> Result<Self> {
        let mut running =
            ws.start_python(&format!("say(os.environ['SIDESTEP_STATE_DIR'])\n{code}\nsay('ready'); sys.stdin.read()"))?;
        let state_dir = PathBuf::from(running.line()?);
        running.line_with("ready").with_context(|| running.stderr())?;
        Ok(Self { running, state_dir })
    }

    /// What the caller gets for `GET path`.
    fn get(&self, ws: &Workspace, path: &str) -> Result<String> {
        let socket = self.state_dir.join("control.sock").display().to_string();
        let url = format!("http://sidestep{path}");
        let curl = ["curl", "-sS", "--fail", "--max-time", "20", "--unix-socket", &socket, &url];
        ws.beside(&self.running, curl).run(&ws.lab.host)?.output()
    }

    fn json(&self, ws: &Workspace, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.get(ws, path)?)?)
    }

    fn stats(&self, ws: &Workspace, arguments: &[&str]) -> Result<Finished> {
        let dir = self.state_dir.display().to_string();
        let words = [SIDESTEP, "stats", "--state-dir", &dir].into_iter().chain(arguments.iter().copied());
        ws.beside(&self.running, words).run(&ws.lab.host)
    }

    fn ends(self) -> Result<()> {
        self.running.finish()?.succeeded()?;
        ensure!(!self.state_dir.exists(), "the state directory is still there");
        Ok(())
    }
}

fn number(of: &Value, path: &str) -> Result<u64> {
    of.pointer(path).and_then(Value::as_u64).with_context(|| format!("no {path} in {of}"))
}

fn counters(ws: Workspace) -> Result<()> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let ws = ws.flag("--deny=198.51.100.0/24");
    let this = Controlled::start(
        &ws,
        &format!(
            "for _ in range(3): dial('{remote}', {port}).close()
attempt('127.0.0.1', 1, 5)
attempt('198.51.100.9', 1, 5)
s = tcp('{remote}'); s.setsockopt(socket.IPPROTO_IP, 50, socket.htonl(socket.if_nametoindex('tap0')))
s.connect(('{remote}', {port}))
s = tcp('{remote}'); s.bind(('', 0)); s.connect(('{remote}', {port}))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.sendto(b'x', ('10.0.2.3', 99))",
            remote = REMOTE[0],
            port = echo.addr.port()
        ),
    )?;
    let mode = fs::metadata(this.state_dir.join("control.sock"))?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "mode {mode:o}");

    let counted = poll("the last datagram is counted", SOON, || {
        let counted = this.json(&ws, "/v1/counters")?;
        Ok((number(&counted, "/forwarder/denied/resolver")? == 1).then_some(counted))
    })?;
    let verdicts = |path: &str| number(&counted, &format!("/supervisor/verdicts/{path}"));
    let opened = if ws.bypasses() {
        ensure!(verdicts("bypass/tcp")? == 3, "{counted}");
        for reason in ["policy", "virtual_address", "socket_option", "bound"] {
            ensure!(verdicts(&format!("in_place/{reason}"))? == 1, "{reason}: {counted}");
        }
        ensure!(number(&counted, "/supervisor/calls/connect")? >= 7, "{counted}");
        ensure!(number(&counted, "/supervisor/calls/bind")? >= 1, "{counted}");
        2
    } else {
        ensure!(verdicts("bypass/tcp")? == 0 && number(&counted, "/supervisor/calls/connect")? == 0, "{counted}");
        5
    };
    ensure!(number(&counted, "/forwarder/tcp/flows/opened")? == opened, "{counted}");
    for path in ["/forwarder/denied/rule", "/forwarder/tcp/flows/denied"] {
        ensure!(number(&counted, path)? == 1, "{path}: {counted}");
    }
    ensure!(number(&counted, "/restarts/supervisor")? == 0, "{counted}");

    metrics_are(&ws, &this, &counted)?;
    let state: Value = serde_json::from_str(&fs::read_to_string(this.state_dir.join("state.json"))?)?;
    ensure!(this.json(&ws, "/v1/state")? == state);

    let shown = this.stats(&ws, &[])?.output()?;
    contains(&shown, &format!("opened {opened}"))?;
    contains(&shown, "rule 1")?;
    let json: Value = serde_json::from_str(&this.stats(&ws, &["--json"])?.output()?)?;
    ensure!(verdicts("bypass/tcp")? == number(&json, "/supervisor/verdicts/bypass/tcp")?, "{json}");
    contains(&this.stats(&ws, &["--prometheus"])?.output()?, "# TYPE sidestep_calls_total counter")?;
    this.ends()
}

/// Counted is what listens, and not what tried to.
fn who_listens_on_the_host(ws: Workspace) -> Result<()> {
    let ws = ws.flag("-p=8080:8000");
    let this = Controlled::start(
        &ws,
        "def bound():
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(('', 8000)); return s
one, other = bound(), bound()
one.listen(8)
try: other.listen(8); say('two listen')
except OSError as e: assert e.errno == errno.EADDRINUSE, e",
    )?;
    let counted = this.json(&ws, "/v1/counters")?;
    ensure!(number(&counted, "/supervisor/verdicts/bypass/listening")? == 1, "{counted}");
    this.ends()
}

/// `/metrics` is well formed and says what `/v1/counters` said.
fn metrics_are(ws: &Workspace, this: &Controlled, counted: &Value) -> Result<()> {
    let text = this.get(ws, "/metrics")?;
    let samples = exposition(&text).context(text.clone())?;
    for (sample, path) in [
        ("sidestep_calls_total{call=\"connect\"}", "/supervisor/calls/connect"),
        ("sidestep_bypassed_total{transport=\"tcp\"}", "/supervisor/verdicts/bypass/tcp"),
        ("sidestep_in_place_total{reason=\"socket_option\"}", "/supervisor/verdicts/in_place/socket_option"),
        ("sidestep_flows_opened_total{protocol=\"tcp\"}", "/forwarder/tcp/flows/opened"),
        ("sidestep_egress_denied_total{rule=\"rule\"}", "/forwarder/denied/rule"),
        ("sidestep_egress_denied_total{rule=\"resolver\"}", "/forwarder/denied/resolver"),
        ("sidestep_restarts_total{worker=\"forwarder\"}", "/restarts/forwarder"),
    ] {
        let value = samples.get(sample).with_context(|| format!("no {sample} in {text}"))?;
        ensure!(*value == number(counted, path)?, "{sample} is {value}: {counted}");
    }
    ensure!(samples.get("sidestep_forwarder_up") == Some(&1), "{text}");
    Ok(())
}

/// Samples by name and labels, where each family has its HELP and TYPE before it and appears once.
fn exposition(text: &str) -> Result<BTreeMap<String, u64>> {
    let (mut samples, mut families) = (BTreeMap::new(), BTreeMap::new());
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let (name, help) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')).context("no HELP")?;
        let kind = lines.next().and_then(|line| line.strip_prefix(&format!("# TYPE {name} "))).context("no TYPE")?;
        ensure!(kind == "gauge" || (kind == "counter" && name.ends_with("_total")), "{name} is a {kind}");
        ensure!(families.insert(name, help).is_none(), "{name} twice");
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let (sample, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
            let labels = sample.strip_prefix(name).with_context(|| line.to_owned())?;
            ensure!(labels.is_empty() || labels.starts_with('{') && labels.ends_with("\"}"), "{line}");
            ensure!(samples.insert(sample.to_owned(), value.parse()?).is_none(), "{sample} twice");
        }
    }
    Ok(samples)
}

/// It sees the socket, has the caller's own uid outside, and gets nothing.
fn workspace_is_refused(ws: Workspace) -> Result<()> {
    let this = Controlled::start(
        &ws,
        "def ask():
    s = socket.socket(socket.AF_UNIX); s.settimeout(10)
    s.connect(os.environ['SIDESTEP_STATE_DIR'] + '/control.sock')
    try: s.sendall(b'GET /v1/counters HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n')
    except OSError: pass
    try: return s.recv(99).split(b'\\r\\n')[0]
    except ConnectionResetError: return b'reset'
answers = {ask() for _ in range(20)}
say(answers <= {b'HTTP/1.1 403 Forbidden', b'reset', b''} or answers)
import subprocess
p = subprocess.run(['/run/lab/sidestep', 'stats', '--state-dir', os.environ['SIDESTEP_STATE_DIR']], stdout=-1, stderr=-1)
say(p.returncode, p.stderr.decode())
n = subprocess.run(['unshare', '-Urn', '/usr/bin/python3', '-c', 'import socket,sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(10); print(s.recv(99)[:12])', os.environ['SIDESTEP_STATE_DIR'] + '/control.sock'], stdout=-1)
say(n.stdout)",
    )?;
    let said = this.running.all_so_far();
    contains(&said, "True\n")?;
    contains(&said, "125 sidestep: ")?;
    contains(&said, "is not served by a supervisor of yours")?;
    contains(&said, "b\"b'HTTP/1.1 403'")?;
    // The caller is still answered.
    this.json(&ws, "/v1/counters")?;
    this.ends()
}

fn flows(ws: Workspace) -> Result<()> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let this = Controlled::start(
        &ws,
        &format!(
            "keep = []
for size in (300_000, 7):
    # Bound before: not for the bypass.
    s = tcp('{remote}'); s.bind(('', 0)); s.connect(('{remote}', {port})); keep.append(s)
    sent = threading.Thread(target=s.sendall, args=(b'x' * size,)); sent.start()
    got = 0
    while got < size: got += len(s.recv(65536))
    sent.join()
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.sendto(b'12345', ('{remote}', 9)); keep.append(u)",
            remote = REMOTE[0],
            port = echo.addr.port()
        ),
    )?;
    // The last acknowledgements, and the datagram, may be under way.
    poll("the flows are listed with their bytes", SOON, || {
        let listed = this.json(&ws, "/v1/flows")?;
        let flows = listed["flows"].as_array().context("no flows")?;
        let [large, small, udp] = &flows[..] else { return Ok(None) };
        let is = |flow: &Value, protocol, bytes: u64, back: u64| {
            flow["protocol"] == protocol
                && flow["from_tap"] == bytes
                && flow["to_tap"] == back
                && flow["state"] == "open"
        };
        ensure!(listed["total"] == 3, "{listed}");
        ensure!(large["remote"] == echo.addr.to_string(), "{listed}");
        let all = is(large, "tcp", 300_000, 300_000) && is(small, "tcp", 7, 7) && is(udp, "udp", 5, 0);
        Ok(all.then_some(()))
    })?;
    contains(&this.stats(&ws, &[])?.output()?, &format!("-> {}  open  300.0 kB sent", echo.addr))?;
    this.ends()
}

/// Clients that say nothing, too much or half of something change nothing for anyone else.
fn clients_that_misbehave(ws: Workspace) -> Result<()> {
    let this = Controlled::start(&ws, "")?;
    let supervisor = Tree::of(this.running.pid())?.worker("supervisor")?.clone();
    let socket = this.state_dir.join("control.sock");
    let script = "import socket, sys
def client(text=b''):
    s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect(sys.argv[1])
    try: s.sendall(text)
    except (BrokenPipeError, ConnectionResetError): pass
    return s
def status(s):
    try: return s.recv(99).split(b' ')[1:2]
    except ConnectionResetError: return 'reset'
silent = [client() for _ in range(8)]
half = client(b'GET /v1/cou')
client(b'GET /v1/counters HTTP/1.1\\r\\nhost').close()
client(b'GET /v1/flows HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n').close()
head = client(b'GET / HTTP/1.1\\r\\n' + b'x: ' + b'y' * 1_000_000 + b'\\r\\n\\r\\n')
print('head', status(head) in ('reset', [], [b'431']))
body = client(b'POST /v1/counters HTTP/1.1\\r\\nhost: x\\r\\ncontent-length: 1000000\\r\\n\\r\\n' + b'y' * 1_000_000)
print('body', status(body) in ('reset', [], [b'405']))
for request in (b'POST /v1/state', b'GET /v1/nothing', b'GET /metrics', b'nonsense\\0'):
    print(request, status(client(request + b' HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n')))
print('others', {str(status(s)) for s in silent + [half]})";
    let mut held = ws
        .beside(&this.running, ["/usr/bin/python3", "-c", script, &socket.display().to_string()])
        .start(&ws.lab.host)?;
    for line in ["head True", "body True", "b'POST /v1/state' [b'405']", "b'GET /v1/nothing' [b'404']"] {
        let said = held.line()?;
        ensure!(said == line, "{said} instead of {line}: {}", held.stderr());
    }
    held.line_with("b'GET /metrics' [b'200']")?;
    held.line_with("[b'400']")?;
    // Eight silent ones are still there.
    this.json(&ws, "/v1/counters")?;
    // Until their time is over: hung up on.
    held.line_with("others {'[]'}")?;
    held.finish()?.succeeded()?;
    ensure!(supervisor.is_alive(), "the supervisor is another");
    this.ends()
}

/// Each worker's successor serves as it did, and is counted.
fn workers_that_die(ws: Workspace) -> Result<()> {
    let this = Controlled::start(&ws, "")?;
    for (worker, path) in [("forwarder", "/restarts/forwarder"), ("supervisor", "/restarts/supervisor")] {
        let victim = Tree::of(this.running.pid())?.worker(worker)?.clone();
        victim.kill(Signal::SIGKILL)?;
        poll("its successor is counted, and answers", SOON, || {
            let Ok(counted) = this.json(&ws, "/v1/counters") else { return Ok(None) };
            Ok((number(&counted, path)? == 1 && counted["forwarder"].is_object()).then_some(()))
        })?;
    }
    let counted = this.json(&ws, "/v1/counters")?;
    ensure!(number(&counted, "/restarts/forwarder")? == 1, "{counted}");
    this.ends()
}

fn which_workspace(ws: Workspace) -> Result<()> {
    // One shell, as a single-id world's caller has a user namespace of its own each time it calls.
    let runtime_dir = format!("/tmp/control-{}", std::process::id());
    let script = format!(
        "export XDG_RUNTIME_DIR={runtime_dir}; mkdir -p $XDG_RUNTIME_DIR; cd /
stats() {{ {SIDESTEP} stats \"$@\" 2>&1 | head -1; }}
stats
coproc one {{ exec {SIDESTEP} run --log-level=error -- sh -c 'echo started; read x'; }}; read x <&${{one[0]}}; first=$one_PID
stats
exec 7<&${{one[0]}} 8>&${{one[1]}}
coproc two {{ exec {SIDESTEP} run --log-level=error -- sh -c 'echo started; read x'; }} 2>/dev/null; read x <&${{two[0]}}
stats; stats $first; stats 1
echo >&8; echo >&${{two[1]}}; wait; rm -r $XDG_RUNTIME_DIR"
    );
    let done = ws.shell(&script).run(&ws.lab.host)?.succeeded()?;
    let lines: Vec<_> = done.stdout.lines().collect();
    let [none, one, several, named, unknown] = lines[..] else { bail!("not five lines: {done}") };
    contains(none, "no workspace is running in /tmp/control-")?;
    contains(one, "workspace of process ")?;
    contains(several, "2 workspaces are running (")?;
    ensure!(named == one, "{done}");
    contains(unknown, "process 1 runs no workspace of /tmp/control-")
}

fn long_paths(ws: Workspace) -> Result<()> {
    let ws = ws.flag(format!("--state-dir=/tmp/{}", "x".repeat(100)));
    let done = ws.run(["true"])?.exited(125)?;
    ensure!(done.stderr.lines().count() == 1, "{done}");
    contains(&done.stderr, "bytes too long for a Unix socket in it: choose a shorter one with --state-dir")
}
