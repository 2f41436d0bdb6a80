//! `sidestep doctor`: that it finds nothing where nothing is missing, and on a host that lacks something the same
//! sentence as `sidestep run` there.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::lab::command::{Finished, Program};
use crate::lab::netns::Netns;
use crate::lab::terminal::Terminal;
use crate::lab::workspace::{Caller, Workspace, contains};
use crate::lab::world::{self, SIDESTEP, USER};

crate::cases! {
    TAP: nothing_missing, output, no_tun, no_user_namespaces, no_network_namespaces, masked_proc, no_resolv_conf,
        no_state_dir, no_ping_sockets, refused_calls;
    BYPASS: second_listener;
    USER: closed_tun, no_newuidmap, nobody_reads;
}

const DOCTOR: [&str; 3] = [SIDESTEP, "doctor", "--json"];

/// What the doctor said of one check.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    status: String,
    /// As `sidestep run` says it.
    sentence: String,
}

struct Examined {
    code: i32,
    json: Value,
}

impl Examined {
    fn new(done: &Finished) -> Result<Self> {
        let json = serde_json::from_str(&done.stdout).with_context(|| format!("no JSON: {done}"))?;
        Ok(Self { code: done.code(), json })
    }

    fn all(&self) -> Result<Vec<(String, Said)>> {
        let checks = self.json["checks"].as_array().context("no checks")?;
        checks.iter().map(said).collect()
    }

    fn of(&self, name: &str) -> Result<Said> {
        let all = self.all()?.into_iter();
        let found = all.into_iter().find(|(other, _)| other == name);
        found.map(|(_, said)| said).with_context(|| format!("no check {name}: {:#}", self.json))
    }

    /// Of all checks but those that were not tried, the names of those that are not well.
    fn ailing(&self) -> Result<Vec<String>> {
        let all = self.all()?.into_iter();
        Ok(all.filter(|(_, said)| said.status == "warn" || said.status == "fail").map(|(name, _)| name).collect())
    }

    fn works(&self) -> [bool; 3] {
        ["tap", "bypass", "strict"].map(|mode| self.json["works"][mode].as_bool().unwrap_or(false))
    }
}

fn said(check: &Value) -> Result<(String, Said)> {
    let text = |key: &str| check[key].as_str().with_context(|| format!("no {key} in {check}"));
    let sentence = match check["fix"].as_str() {
        Some(fix) => format!("{}; {fix}", text("found")?),
        None => text("found")?.to_owned(),
    };
    Ok((text("name")?.to_owned(), Said { status: text("status")?.to_owned(), sentence }))
}

/// An ordinary user of a world with one id cannot have more inside; nothing else is missing in the lab.
fn missing_anyway(ws: &Workspace) -> &'static [&'static str] {
    if ws.way.caller == Caller::User && world::is_single_id() { &["ids"] } else { &[] }
}

/// The caller's program on a host which this script, that may mount, has prepared.
fn prepared(ws: &Workspace, script: &str, argv: &[&'static str]) -> Program {
    let script = format!("{script} && exec \"$@\"");
    let mount: &[&str] = match ws.way.caller {
        Caller::User if !world::is_single_id() => &["unshare", "--user", "--map-root-user", "--mount"],
        _ => &["unshare", "--mount"],
    };
    ws.outside(argv.iter().copied()).behind([mount, &["sh", "-c", &script, "sh"]].concat())
}

/// The doctor finds this check so, the exit code follows, and `sidestep run FLAG` says the same, with this code.
fn found(ws: &Workspace, script: &str, (name, status): (&str, &str), (flag, code): (&'static str, i32)) -> Result<()> {
    let examined = Examined::new(&prepared(ws, script, &DOCTOR).run(&ws.lab.host)?)?;
    let said = examined.of(name)?;
    ensure!(said.status == status, "{said:?}: {:#}", examined.json);
    let fails = status == "fail";
    ensure!(examined.code == if fails { 2 } else { 1 }, "exit code {}: {:#}", examined.code, examined.json);
    ensure!(examined.works()[0] != fails, "{:#}", examined.json);
    let run = prepared(ws, script, &[SIDESTEP, "run", flag, "--", "true"]).run(&ws.lab.host)?.exited(code)?;
    contains(&run.stderr, &said.sentence)
}

fn nothing_missing(ws: Workspace) -> Result<()> {
    let runtime = tempfile::tempdir()?;
    fs::set_permissions(runtime.path(), fs::Permissions::from_mode(0o777))?;
    let doctor = ws.outside(DOCTOR).env("XDG_RUNTIME_DIR", runtime.path());
    let examined = Examined::new(&doctor.run(&ws.lab.host)?)?;
    ensure!(examined.ailing()? == missing_anyway(&ws), "{:#}", examined.json);
    ensure!(examined.works() == [true; 3], "{:#}", examined.json);
    ensure!(examined.all()?.iter().all(|(_, said)| said.status != "skip"), "{:#}", examined.json);
    ensure!(examined.code == i32::from(!missing_anyway(&ws).is_empty()), "{}", examined.code);
    ensure!(fs::read_dir(runtime.path())?.next().is_none(), "something was left behind in the runtime directory");
    let links = ws.lab.host.run("ip -o link show")?.stdout;
    ensure!(!links.contains("tap0"), "{links}");
    Ok(())
}

/// Headings and lines, with colours on a terminal only.
fn output(ws: Workspace) -> Result<()> {
    let plain = ws.outside([SIDESTEP, "doctor"]).run(&ws.lab.host)?;
    for part in ["sidestep run: works\n", "--bypass=require): works\n", "  ok    /dev/net/tun", "  ok    Landlock"] {
        contains(&plain.stdout, part)?;
    }
    ensure!(!plain.stdout.contains('\x1b') && plain.stderr.is_empty(), "{plain}");
    Terminal::start(ws.outside([SIDESTEP, "doctor"]), &ws.lab.host)?.expect("\x1b[32mok  \x1b[0m  user namespace")?;
    let plain = ws.outside([SIDESTEP, "doctor"]).env("NO_COLOR", "1");
    Terminal::start(plain, &ws.lab.host)?.expect("  ok    user namespace")
}

fn no_tun(ws: Workspace) -> Result<()> {
    found(&ws, "mount -t tmpfs none /dev/net", ("/dev/net/tun", "fail"), ("--bypass=off", 125))?;
    // The rest is tried without.
    let done = prepared(&ws, "mount -t tmpfs none /dev/net", &DOCTOR).run(&ws.lab.host)?;
    let landlock = Examined::new(&done)?.of("Landlock")?;
    ensure!(landlock.status == "ok", "{landlock:?}");
    Ok(())
}

fn closed_tun(ws: Workspace) -> Result<()> {
    if world::is_single_id() {
        // Nobody here makes a node; a mount that allows none is refused alike.
        let script = "mount --bind /dev/net/tun /dev/net/tun && mount -o remount,bind,nodev /dev/net/tun";
        return found(&ws, script, ("/dev/net/tun", "fail"), ("--bypass=off", 125));
    }
    let script = "node=$(mktemp -u) && mknod -m 0600 $node c 10 200 && mount --bind $node /dev/net/tun && rm $node && \
                  exec setpriv --reuid $0 --regid $0 --clear-groups \"$@\"";
    let as_user = |argv: &[&str]| {
        let words = ["unshare", "--mount", "sh", "-c", script, &USER.to_string()].map(str::to_owned);
        let words = words.into_iter().chain(argv.iter().map(|&word| word.to_owned()));
        Program::new(words).env("XDG_RUNTIME_DIR", "/run/user/1000").run(&ws.lab.host)
    };
    let said = Examined::new(&as_user(&DOCTOR)?.exited(2)?)?.of("/dev/net/tun")?;
    ensure!(said.status == "fail" && said.sentence.contains("chmod 0666 /dev/net/tun"), "{said:?}");
    contains(&as_user(&[SIDESTEP, "run", "--", "true"])?.exited(125)?.stderr, &said.sentence)
}

/// A program of the caller's in a user namespace in which this limit is 0.
fn limited(ws: &Workspace, limit: &str, argv: &[&'static str]) -> Result<Finished> {
    let script: &'static str = match limit {
        "user" => "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"",
        _ => "echo 0 > /proc/sys/user/max_net_namespaces && exec \"$@\"",
    };
    let words = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"];
    ws.outside(words.into_iter().chain(argv.iter().copied())).run(&ws.lab.host)
}

fn no_user_namespaces(ws: Workspace) -> Result<()> {
    let examined = Examined::new(&limited(&ws, "user", &DOCTOR)?.exited(2)?)?;
    let said = examined.of("user namespace")?;
    ensure!(said.status == "fail" && said.sentence.contains("sysctl -w user.max_user_namespaces"), "{said:?}");
    ensure!(examined.of("Landlock")?.status == "skip", "{:#}", examined.json);
    contains(&limited(&ws, "user", &[SIDESTEP, "run", "--", "true"])?.exited(125)?.stderr, &said.sentence)
}

fn no_network_namespaces(ws: Workspace) -> Result<()> {
    let said = Examined::new(&limited(&ws, "net", &DOCTOR)?.exited(2)?)?.of("network namespace")?;
    ensure!(said.status == "fail" && said.sentence.contains("sysctl -w user.max_net_namespaces"), "{said:?}");
    contains(&limited(&ws, "net", &[SIDESTEP, "run", "--", "true"])?.exited(125)?.stderr, &said.sentence)
}

fn masked_proc(ws: Workspace) -> Result<()> {
    found(&ws, "mount --bind /dev/null /proc/cpuinfo", ("pid namespace", "warn"), ("--pidns=on", 125))
}

fn no_resolv_conf(ws: Workspace) -> Result<()> {
    found(&ws, "mount -t tmpfs none /etc", ("resolv.conf", "warn"), ("--bypass=off", 0))
}

fn no_state_dir(ws: Workspace) -> Result<()> {
    // As in a container with --read-only.
    let read_only = "mount -t tmpfs -o ro none /tmp && export XDG_RUNTIME_DIR=/nonexistent";
    let said = Examined::new(&prepared(&ws, read_only, &DOCTOR).run(&ws.lab.host)?)?.of("state directory")?;
    ensure!(said.status == "ok" && said.sentence.starts_with("in /dev/shm/sidestep-"), "{said:?}");
    let script = format!("{read_only} && mount -t tmpfs -o ro none /dev/shm");
    found(&ws, &script, ("state directory", "fail"), ("--bypass=off", 125))
}

/// In a new network namespace no group may have ping sockets.
fn no_ping_sockets(ws: Workspace) -> Result<()> {
    let examined = Examined::new(&ws.outside(DOCTOR).run(&Netns::new()?)?.exited(1)?)?;
    let said = examined.of("ping")?;
    ensure!(said.status == "warn" && said.sentence.contains("net.ipv4.ping_group_range="), "{said:?}");
    ensure!(examined.works() == [true; 3], "{:#}", examined.json);
    Ok(())
}

/// Runs the program in $2 and after where a filter refuses system call $1, as a container's does.
const REFUSE: &str = "
import ctypes, os, struct, sys
LOAD, EQUAL, RETURN, ERRNO, ALLOW = 0x20, 0x15, 0x06, 0x00050001, 0x7fff0000
program = [(LOAD, 0, 0, 0), (EQUAL, 0, 1, int(sys.argv[1])), (RETURN, 0, 0, ERRNO), (RETURN, 0, 0, ALLOW)]
program = ctypes.create_string_buffer(b''.join(struct.pack('=HBBI', *line) for line in program))
filter = struct.pack('@HP', 4, ctypes.addressof(program))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, filter) == 0
os.execvp(sys.argv[2], sys.argv[2:])";

/// What a container's seccomp profile keeps from the supervisor is found before a workspace would be without any TCP;
/// what it keeps from the launcher and the forwarder ends both, with the same sentence.
fn refused_calls(ws: Workspace) -> Result<()> {
    let without = |call: libc::c_long, argv: &[&'static str]| {
        let python = ws.outside(["/usr/bin/python3", "-c", REFUSE]).arg(call.to_string());
        argv.iter().fold(python, |program, word| program.arg(word)).run(&ws.lab.host)
    };
    for (call, name) in [(libc::SYS_pidfd_getfd, "pidfd_getfd"), (libc::SYS_kcmp, "kcmp"), (libc::SYS_setns, "setns")] {
        let examined = Examined::new(&without(call, &DOCTOR)?.exited(1)?)?;
        let said = examined.of("pidfd_getfd")?;
        ensure!(said.status == "fail" && said.sentence.contains(&format!("{name} is refused")), "{said:?}");
        ensure!(examined.works() == [true, false, false], "{:#}", examined.json);
        let run = without(call, &[SIDESTEP, "run", "--bypass=require", "--", "true"])?.exited(125)?;
        contains(&run.stderr, &said.sentence)?;
        let run = without(call, &[SIDESTEP, "run", "--bypass", "--", "sh", "-c", "echo $SIDESTEP_ACTIVE"])?;
        contains(&run.stderr, &said.sentence)?;
        run.printed("tap")?;
    }
    let ends = [
        ("sandbox", libc::SYS_pivot_root),
        ("network namespace", libc::SYS_unshare),
        ("resolv.conf", libc::SYS_umount2),
    ];
    for (check, call) in ends {
        let examined = Examined::new(&without(call, &DOCTOR)?.exited(2)?)?;
        let said = examined.of(check)?;
        ensure!(said.status == "fail" && said.sentence.contains("seccomp=unconfined"), "{said:?}");
        let run = without(call, &[SIDESTEP, "run", "--", "true"])?.exited(125)?;
        contains(&run.stderr, &said.sentence)?;
    }
    Ok(())
}

/// Inside a workspace that has a listener there is no second one.
fn second_listener(ws: Workspace) -> Result<()> {
    let examined = Examined::new(&ws.run(DOCTOR)?.exited(1)?)?;
    let said = examined.of("listener")?;
    ensure!(said.status == "fail", "{said:?}");
    ensure!(examined.works() == [true, false, false], "{:#}", examined.json);
    ensure!(examined.of("ADDFD")?.status == "skip", "{:#}", examined.json);
    let run = ws.run([SIDESTEP, "run", "--bypass=require", "--", "true"])?.exited(125)?;
    contains(&run.stderr, &said.sentence)
}

fn no_newuidmap(ws: Workspace) -> Result<()> {
    let without =
        |argv: &[&'static str]| ws.outside(argv.iter().copied()).env("PATH", "/nonexistent").run(&ws.lab.host);
    if world::is_single_id() {
        let said = Examined::new(&ws.outside(DOCTOR).run(&ws.lab.host)?.exited(1)?)?.of("ids")?;
        ensure!(said.status == "warn" && said.sentence.contains("/etc/subuid has no range"), "{said:?}");
        return Ok(());
    }
    let examined = Examined::new(&without(&DOCTOR)?.exited(1)?)?;
    let said = examined.of("ids")?;
    ensure!(said.status == "warn" && said.sentence.contains("newuidmap is not installed"), "{said:?}");
    ensure!(examined.ailing()? == ["ids"], "{:#}", examined.json);
    contains(&without(&[SIDESTEP, "run", "--", "/bin/true"])?.succeeded()?.stderr, &said.sentence)
}

/// It ends as other programs do: in silence by SIGPIPE, or with a sentence.
fn nobody_reads(ws: Workspace) -> Result<()> {
    let left = ws.shell(&format!("{} | true", DOCTOR.join(" "))).run(&ws.lab.host)?.succeeded()?;
    ensure!(left.stderr.is_empty(), "{left}");
    let full = ws.shell(&format!("{} > /dev/full", DOCTOR.join(" "))).run(&ws.lab.host)?.exited(125)?;
    contains(&full.stderr, "cannot write to standard output")
}
