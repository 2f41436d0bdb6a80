//! `sidestep run` as a command: exit codes, what the command finds in place, flags, and what is said on stderr.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::XattrFlags;

use crate::lab::command::Program;
use crate::lab::servers::TcpServer;
use crate::lab::workspace::{Caller, UNREAD, Workspace, contains};
use crate::lab::{REMOTE, world};

crate::cases! {
    EVERY_WAY: exit_codes, start_line, environment, descriptors, own_failures, resolv_conf, limits_and_signals,
        privileges, own_tun, nested, pid_namespace;
    BOTH_PATHS: ready_fd, mtu, names_of_the_network, ipv6, standard_streams, bypass_by_environment;
    USER: ids, subordinate_ids, keep_id, without_pid_namespace, help, standard_output, file_capability;
}

fn exit_codes(ws: Workspace) -> Result<()> {
    for (script, code) in [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 143), ("kill -KILL $$", 137)] {
        ws.sh(script)?.exited(code)?;
    }
    ws.run(["/nonexistent/program"])?.exited(127)?;
    ws.run(["no-such-program-on-the-path"])?.exited(127)?;
    ws.run(["/etc/passwd"])?.exited(126)?;
    Ok(())
}

fn start_line(ws: Workspace) -> Result<()> {
    let done = ws.run(["true"])?.succeeded()?;
    let lines: Vec<&str> = done.stderr.lines().collect();
    ensure!(lines.len() == 1, "{} lines instead of one: {done}", lines.len());
    let bypass = if ws.bypasses() { "bypass=strict" } else { "bypass=off" };
    for part in ["tap0 10.0.2.100/24", "mtu=1500", bypass, "pidns=on"] {
        contains(lines[0], part)?;
    }
    Ok(())
}

fn environment(ws: Workspace) -> Result<()> {
    let active = if ws.bypasses() { "bypass" } else { "tap" };
    let done =
        ws.sh("echo $SIDESTEP_ACTIVE; echo $SIDESTEP_STATE_DIR; test -d $SIDESTEP_STATE_DIR && echo there; env")?;
    let text = done.output()?;
    let mut lines = text.lines();
    ensure!(lines.next() == Some(active), "{text}");
    let state = lines.next().unwrap_or_default();
    ensure!(lines.next() == Some("there"), "no state directory while it runs: {text}");
    ensure!(!Path::new(state).exists(), "{state} was left behind");
    for name in ["PATH=", "HOME=/tmp", "XDG_RUNTIME_DIR="] {
        contains(&text, name)?;
    }
    Ok(())
}

/// The command gets the caller's descriptors and no other.
fn descriptors(ws: Workspace) -> Result<()> {
    let script = "ls /proc/self/fd | tr '\n' ' '";
    let outside = ws.shell(script).run(&ws.lab.host)?.output()?;
    ws.sh(script)?.printed(&outside)
}

fn own_failures(ws: Workspace) -> Result<()> {
    let bad_cidr = Workspace::new(ws.way)?.flag("--cidr=10.0.2.100/24").run(["true"])?.exited(125)?;
    contains(&bad_cidr.stderr, "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24")?;
    let bad_directory = ws.flag("--state-dir=/proc/nowhere").run(["true"])?.exited(125)?;
    contains(&bad_directory.stderr, "/proc/nowhere")
}

fn resolv_conf(ws: Workspace) -> Result<()> {
    let before = fs::read_to_string("/etc/resolv.conf")?;
    let done = ws.sh("cat /etc/resolv.conf; echo nameserver 10.9.9.9 > /etc/resolv.conf && cat /etc/resolv.conf")?;
    let text = done.output()?;
    contains(&text, "nameserver 10.0.2.3")?;
    ensure!(text.ends_with("nameserver 10.9.9.9"), "not writable: {text}");
    ensure!(fs::read_to_string("/etc/resolv.conf")? == before, "the host's own was changed");
    Ok(())
}

fn limits_and_signals(ws: Workspace) -> Result<()> {
    let script = "ulimit -Sn; ulimit -Hn; yes | head -n1 >/dev/null; echo ${PIPESTATUS[0]}";
    let done = ws.program(["bash", "-c", script]).behind(["prlimit", "--nofile=777:888"]).run(&ws.lab.host)?;
    done.printed("777\n888\n141")
}

fn privileges(ws: Workspace) -> Result<()> {
    ws.sh("grep NoNewPrivs /proc/self/status; ip link set lo mtu 60000 && ip -o link show lo | grep -o 'mtu 60000'")?
        .printed("NoNewPrivs:\t0\nmtu 60000")
}

/// VPNs make their own device.
fn own_tun(ws: Workspace) -> Result<()> {
    ws.sh("ip tuntap add mode tun name vpn0 && ip link set vpn0 up && ip -o link show vpn0 | grep -o vpn0")?
        .printed("vpn0")
}

/// A workspace in a workspace: one listener a process is all the kernel gives, so the inner one has the TAP.
fn nested(ws: Workspace) -> Result<()> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let connect = format!("exec 3<>/dev/tcp/{}/{} && echo $SIDESTEP_ACTIVE", REMOTE[0], echo.addr.port());
    let nested = |mode: &str| ws.run([world::SIDESTEP, "run", mode, "--", "bash", "-c", &connect]);
    nested("--bypass=off")?.printed("tap")?;
    if ws.bypasses() {
        let done = nested("--bypass=auto")?.succeeded()?;
        ensure!(done.stdout.trim() == "tap", "{done}");
        // Two start lines and one warning.
        ensure!(done.stderr.lines().count() == 3, "not one warning: {done}");
        contains(&done.stderr, "listener")?;
        let refused = nested("--bypass=require")?.exited(125)?;
        contains(&refused.stderr, "listener")?;
    }
    Ok(())
}

fn pid_namespace(ws: Workspace) -> Result<()> {
    // A daemon that left its session ends with the workspace all the same: its pipe closes.
    let done = ws.sh("cat /proc/1/cmdline | tr '\\0' ' '; setsid sleep 600 & exit 0")?.succeeded()?;
    contains(&done.stdout, "init")?;
    ensure!(done.took.as_secs() < 20, "{done}");
    Ok(())
}

fn ready_fd(ws: Workspace) -> Result<()> {
    let file = format!("/tmp/ready-{}", ws.way);
    let redirect = format!("exec \"$@\" 7>{file}");
    let ws = ws.flag("--ready-fd=7");
    let program = ws.program(["sh", "-c", "test -e /proc/self/fd/7 && echo inherited; cat \"$0\"", &file]);
    // The byte is there before the command runs, and the command does not get the descriptor.
    program.behind(["sh", "-c", &redirect, "sh"]).run(&ws.lab.host)?.printed("1")
}

fn mtu(ws: Workspace) -> Result<()> {
    let show = "ip -o link show tap0 | grep -o 'mtu [0-9]*'";
    Workspace::new(ws.way)?.flag("--mtu=9000").sh(show)?.printed("mtu 9000")?;
    Workspace::new(ws.way)?.flag("--mtu=65520").sh(show)?.printed("mtu 65520")?;
    ws.lab.host.run("ip link set veth0 mtu 1400")?;
    ws.flag("--mtu=auto").sh(show)?.printed("mtu 1400")
}

fn names_of_the_network(ws: Workspace) -> Result<()> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let ws = ws.flag("--cidr=10.9.0.0/16").flag("--ifname=eth7");
    let said = ws.sh("ip -o -4 addr show eth7; ip route show default; cat /etc/resolv.conf")?.output()?;
    for part in ["inet 10.9.0.100/16", "default via 10.9.0.2 dev eth7", "nameserver 10.9.0.3"] {
        contains(&said, part)?;
    }
    ws.takes_its_path(echo.addr)
}

fn ipv6(ws: Workspace) -> Result<()> {
    let show = "ip -6 -o addr show dev tap0 scope global | awk '{print $4}'; ip -6 route show default | grep -c via";
    ws.sh(show)?.printed("fd00::64/64\n1")?;
    Workspace::new(ws.way)?.flag("--ipv6=off").sh(&format!("{show}; true"))?.printed("0")?;
    ws.lab.host.run("ip -6 route del default")?;
    ws.sh(&format!("{show}; true"))?.printed("0")?;
    ws.flag("--ipv6=on").sh(show)?.printed("fd00::64/64\n1")
}

fn standard_streams(ws: Workspace) -> Result<()> {
    let program = ws.program(["sh", "-c", "cat; echo error >&2"]).stdin("through");
    let done = program.run(&ws.lab.host)?.succeeded()?;
    ensure!(done.stdout == "through", "{done}");
    contains(&done.stderr, "error\n")
}

fn bypass_by_environment(ws: Workspace) -> Result<()> {
    let mode = if ws.bypasses() { "require" } else { "off" };
    let active = if ws.bypasses() { "bypass" } else { "tap" };
    ws.env("SIDESTEP_BYPASS", mode).sh("echo $SIDESTEP_ACTIVE")?.printed(active)
}

fn ids(ws: Workspace) -> Result<()> {
    ws.sh("id -u; id -g")?.printed("0\n0")?;
    let root = Workspace::new(crate::lab::workspace::Way { caller: Caller::Root, ..ws.way })?;
    root.sh("id -u; id -g")?.printed("0\n0")
}

/// Where the caller has subordinate ids they can be used inside: packages are installed, daemons drop privileges.
fn subordinate_ids(ws: Workspace) -> Result<()> {
    let script = "touch /tmp/owned && chown 33:33 /tmp/owned && stat -c %u:%g /tmp/owned; rm -f /tmp/owned";
    let done = ws.sh(script)?;
    if world::is_single_id() {
        ensure!(done.stdout.trim() != "33:33", "more ids than there are: {done}");
        return Ok(());
    }
    done.printed("33:33")
}

fn keep_id(ws: Workspace) -> Result<()> {
    let me = ws.shell("id -u; id -g").run(&ws.lab.host)?.output()?;
    ws.flag("--keep-id").sh("id -u; id -g")?.printed(&me)
}

fn without_pid_namespace(ws: Workspace) -> Result<()> {
    let done = ws.flag("--pidns=off").sh("exit 5")?.exited(5)?;
    contains(&done.stderr, "pidns=off")
}

fn help(ws: Workspace) -> Result<()> {
    let done = ws.outside([world::SIDESTEP, "run", "--help"]).run(&ws.lab.host)?.succeeded()?;
    let flags = [
        "--bypass",
        "--mtu",
        "--cidr",
        "--ifname",
        "--ipv6",
        "--host-loopback",
        "--pidns",
        "--keep-id",
        "--state-dir",
        "--ready-fd",
        "--log-level",
        "--log-format",
    ];
    flags.into_iter().try_for_each(|flag| contains(&done.stdout, flag))
}

/// What cannot be written is told; a reader that has seen enough ends a command without a word.
fn standard_output(ws: Workspace) -> Result<()> {
    let script = format!(
        "{s} completions bash > /dev/full; echo $?; {s} man /nowhere; echo $?
{UNREAD}; {s} run --help >&4; echo $?; {s} completions bash >&4; echo $?",
        s = world::SIDESTEP
    );
    let done = ws.shell(&script).run(&ws.lab.host)?.succeeded()?;
    ensure!(done.stdout == "125\n125\n141\n141\n", "{done}");
    let [full, nowhere] = done.stderr.lines().collect::<Vec<_>>()[..] else { bail!("not two lines: {done}") };
    contains(full, "sidestep: cannot write to standard output: No space left on device")?;
    contains(nowhere, "sidestep: cannot write man pages into /nowhere: ")
}

/// What the refusal of a port below 1024 advises to: the kernel hides such a process's /proc from its user.
fn file_capability(ws: Workspace) -> Result<()> {
    /// struct vfs_cap_data (linux/capability.h) of `setcap cap_net_bind_service=ep`: revision 2, effective; permitted.
    const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let dir = std::env::temp_dir().join("file-capability");
    fs::create_dir(&dir)?;
    // The lab's own are MS_NOSUID, where such a file is like any other.
    mount(Some("lab"), &dir, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))?;
    let run = || {
        let sidestep = dir.join("sidestep");
        // By another process: a child that another test is about to start would have a copy of our descriptor, and a file
        // that somebody may write to is not executed (ETXTBSY).
        Program::new(["cp", world::SIDESTEP]).arg(&sidestep).run(&ws.lab.host)?.succeeded()?;
        rustix::fs::setxattr(&sidestep, "security.capability", &CAPABILITY, XattrFlags::empty())?;
        let script = format!(
            "run() {{ {s} run --log-level=error --state-dir=/tmp/capable \"$@\"; }}
coproc ws {{ run -p 127.0.0.1:{port}:80 -- sh -c 'echo started; read x'; }}; read x <&${{ws[0]}}; echo $x
{s} stats --state-dir=/tmp/capable | head -1; echo >&${{ws[1]}}; wait $ws_PID",
            s = sidestep.display(),
            // With one id the lab's root is another user, and the capability not the caller's.
            port = if world::is_single_id() { 8080 } else { 80 },
        );
        let done = ws.shell(&script).run(&ws.lab.host)?.succeeded()?;
        contains(&done.stdout, "started\nworkspace of process ")
    };
    let ran = run();
    umount2(&dir, MntFlags::MNT_DETACH)?;
    ran
}
