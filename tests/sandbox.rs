//! The forwarder's sandbox: as others see the forwarder of a workspace, and tried from inside, one layer at a time.
//!
//! What is tried runs in a process of its own, which is this program again ([`SELF`]), started with the layer's name in
//! [`ATTEMPT`]: it enters that part of the sandbox, tries what the part must refuse, and prints what became of it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::unistd::{Pid, getppid};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use sidestep_forwarder::sandbox;

use crate::lab::REMOTE;
use crate::lab::command::Finished;
use crate::lab::processes::{Tree, namespaces_of};
use crate::lab::servers::{self, TcpServer};
use crate::lab::workspace::{Caller, Workspace};
use crate::lab::world::{self, SELF};

crate::cases! {
    TAP: seen_from_outside, kept_from_its_user;
    HOST: no_files, no_privileges, landlock, few_calls, fatal_calls, its_task, panics, two_threads;
}

/// Which part of the sandbox is tried.
const ATTEMPT: &str = "SIDESTEP_LAB_ATTEMPT";
const SOON: Duration = Duration::from_secs(10);

/// A workspace's forwarder in /proc: no file, no capability, a filter, and the host's network namespace only.
fn seen_from_outside(ws: Workspace) -> Result<()> {
    let mut running = ws.start(["sh", "-c", "echo ready; cat"])?;
    running.line_with("ready")?;
    let monitor = running.pid().to_string();
    let forwarder = Tree::of(running.pid())?.worker("forwarder")?.pid.to_string();
    let proc = |name: &str| -> Result<String> {
        let path = format!("/proc/{forwarder}/{name}");
        fs::read_to_string(&path).context(path)
    };

    let root = fs::read_dir(format!("/proc/{forwarder}/root/"))?.count();
    let mounts = proc("mountinfo")?;
    let is_read_only = mounts.split(' ').nth(5).is_some_and(|options| options.split(',').any(|option| option == "ro"));
    ensure!(root == 0 && mounts.lines().count() == 1 && is_read_only, "{root} names in its root; {mounts}");

    let status = proc("status")?;
    let none = "0000000000000000";
    for (field, want) in [
        ("CapInh", none),
        ("CapPrm", none),
        ("CapEff", none),
        ("CapBnd", none),
        ("CapAmb", none),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("Threads", "1"),
    ] {
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        ensure!(line.map(str::trim) == Some(want), "{field} is {line:?}");
    }
    let limits = proc("limits")?;
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).context("no limit of core files")?;
    ensure!(core.split_whitespace().skip(4).take(2).all(|limit| limit == "0"), "{core}");

    let (of_monitor, of_forwarder) = (namespaces_of(&monitor), namespaces_of(&forwarder));
    let shared: Vec<&str> = of_monitor.intersection(&of_forwarder).filter_map(|ns| ns.split(':').next()).collect();
    ensure!(of_forwarder.len() == 4 && shared == ["net", "pid"], "{of_monitor:?} {of_forwarder:?}");

    for entry in fs::read_dir(format!("/proc/{forwarder}/fd")).into_iter().flatten() {
        let path = entry?.path();
        let (kind, link) = (fs::metadata(&path)?, fs::read_link(&path)?);
        let is_known = kind.file_type().is_socket()
            || kind.file_type().is_fifo()
            || kind.file_type().is_char_device()
            || link.to_string_lossy() == "anon_inode:[eventpoll]";
        ensure!(is_known, "it holds {}", link.display());
    }
    running.finish()?.succeeded()?;
    Ok(())
}

/// Neither memory nor descriptors of it are its own user's to look at, and nobody's to trace.
fn kept_from_its_user(ws: Workspace) -> Result<()> {
    let mut running = ws.start(["sh", "-c", "echo ready; cat"])?;
    running.line_with("ready")?;
    let forwarder = Tree::of(running.pid())?.worker("forwarder")?.pid;
    // /proc/PID/mem is its owner's: root's of the user namespace that started it, or of the first one (proc(5)).
    let owner = fs::metadata(format!("/proc/{forwarder}/mem"))?.uid();
    let roots = [0, 65534];
    ensure!(roots.contains(&owner), "a dumpable process's: uid {owner}");
    if ws.way.caller == Caller::User {
        for file in ["maps", "mem", "environ", "fd/0", "root/"] {
            let path = format!("/proc/{forwarder}/{file}");
            let done = ws.outside(["head", "-c1"]).arg(&path).run(&ws.lab.host)?;
            ensure!(done.code() == 1 && done.stderr.contains("Permission denied"), "{path}: {done}");
        }
        let traced = ws.outside(["strace", "-qp"]).arg(forwarder.to_string()).run(&ws.lab.host)?;
        ensure!(traced.code() == 1 && traced.stderr.contains("not permitted"), "{traced}");
    }
    if ws.way.caller == Caller::User && !world::is_single_id() {
        // What shows that it is not the lab which refuses: the monitor is its user's.
        let monitor = format!("/proc/{}/maps", running.pid());
        ws.outside(["head", "-c1"]).arg(monitor).run(&ws.lab.host)?.succeeded()?;
    }
    running.finish()?.succeeded()?;
    Ok(())
}

/// Runs this program again as `attempt`; see [`attempt`].
fn run(ws: &Workspace, attempt: &str) -> Result<Finished> {
    ws.outside([SELF]).env(ATTEMPT, attempt).run(&ws.lab.host)
}

fn no_files(ws: Workspace) -> Result<()> {
    run(&ws, "files")?.printed("/etc/passwd ENOENT\n/proc/self/exe ENOENT\n/.. 0 names\ncreate EROFS")
}

fn no_privileges(ws: Workspace) -> Result<()> {
    run(&ws, "privileges")?
        .printed("mount namespace EPERM\nhost name EPERM\nraw socket EPERM\nport 80 EACCES\nkeeps nothing")
}

/// Without the other layers, so that it is Landlock which refuses.
fn landlock(ws: Workspace) -> Result<()> {
    let name = "sidestep-lab-abstract";
    let _listener = ws.lab.host.within(|| UnixListener::bind_addr(&UnixAddr::from_abstract_name(name)?))?;
    run(&ws, "landlock")?.printed("/etc/passwd EACCES\n/ EACCES\nexec EACCES\nabstract socket EPERM\nsignal EPERM")
}

fn few_calls(ws: Workspace) -> Result<()> {
    run(&ws, "calls")?.printed(
        "/etc/passwd ENOSYS\nunix socket ENOSYS\nnetlink socket ENOSYS\nraw socket ENOSYS\nthread ENOSYS\nlisten ENOSYS\n\
         prctl ENOSYS",
    )
}

/// What only code that was brought in would try ends the process.
fn fatal_calls(ws: Workspace) -> Result<()> {
    for attempt in ["exec", "kill", "trace", "unshare", "chroot"] {
        let done = run(&ws, attempt)?;
        ensure!(done.code() == 128 + Signal::SIGSYS as i32 && done.stdout.is_empty(), "{attempt}: {done}");
    }
    Ok(())
}

/// All of the sandbox leaves what the forwarder is for.
fn its_task(ws: Workspace) -> Result<()> {
    let echo = TcpServer::echo(&ws.lab.remote, REMOTE[0])?;
    let udp = servers::udp_echo(&ws.lab.remote, REMOTE[1])?;
    let done =
        ws.outside([SELF]).env(ATTEMPT, "task").arg(echo.addr.to_string()).arg(udp.to_string()).run(&ws.lab.host)?;
    ensure!(done.stderr.contains("a log line"), "{done}");
    done.printed("tcp hello\nudp hello\nclient hello\nping sockets 2\nown address true\nmemory 67108864")
}

/// A panic ends it as it ends any program, and so does abort(3).
fn panics(ws: Workspace) -> Result<()> {
    let done = run(&ws, "panic")?.exited(101)?;
    ensure!(done.stderr.contains("panicked") && done.stderr.contains("on purpose"), "{done}");
    let done = run(&ws, "abort")?;
    ensure!(done.code() == 128 + Signal::SIGABRT as i32, "{done}");
    Ok(())
}

/// Where the kernel refuses the namespaces, nothing goes on without them.
fn two_threads(ws: Workspace) -> Result<()> {
    let done = run(&ws, "threads")?.exited(1)?;
    ensure!(done.stderr.contains("cannot give the forwarder a user and mount namespace of its own"), "{done}");
    Ok(())
}

/// In the process that tries: None in all others. To be called while there is one thread.
pub fn attempt() -> Result<Option<ExitCode>> {
    let Ok(attempt) = std::env::var(ATTEMPT) else { return Ok(None) };
    let own = Pid::this();
    match attempt.as_str() {
        "files" => {
            sandbox::leave_files()?;
            for path in ["/etc/passwd", "/proc/self/exe"] {
                say(path, fs::File::open(path));
            }
            println!("/.. {} names", fs::read_dir("/..")?.count());
            say("create", fs::File::create("/file"));
        }
        "privileges" => {
            sandbox::leave_files()?;
            sandbox::drop_privileges()?;
            say("mount namespace", unshare(CloneFlags::CLONE_NEWNS));
            say("host name", nix::unistd::sethostname("other"));
            say("raw socket", open(AddressFamily::Inet, SockType::Raw, Some(SockProtocol::Icmp)));
            say("port 80", TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)));
            let kept = rustix::thread::capabilities(None)?;
            let is_nothing = (kept.effective | kept.permitted | kept.inheritable).is_empty();
            println!("keeps {}", if is_nothing { "nothing" } else { "something" });
        }
        "landlock" => {
            let parent = getppid();
            sandbox::enter_landlock()?;
            for path in ["/etc/passwd", "/"] {
                say(path, fs::File::open(path));
            }
            say("exec", nix::unistd::execv(c"/bin/true", &[c"true"]));
            let address = UnixAddr::from_abstract_name("sidestep-lab-abstract")?;
            say("abstract socket", UnixStream::connect_addr(&address));
            say("signal", kill(parent, Signal::SIGCONT));
        }
        "calls" => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            sandbox::filter_calls()?;
            say("/etc/passwd", fs::File::open("/etc/passwd"));
            say("unix socket", open(AddressFamily::Unix, SockType::Stream, None));
            say("netlink socket", open(AddressFamily::Netlink, SockType::Raw, None));
            say("raw socket", open(AddressFamily::Inet, SockType::Raw, Some(SockProtocol::Icmp)));
            say("thread", std::thread::Builder::new().spawn(|| ()));
            say("listen", rustix::net::listen(&listener, 1).map_err(std::io::Error::from));
            say("prctl", nix::sys::prctl::get_dumpable());
        }
        "exec" | "kill" | "trace" | "unshare" | "chroot" => {
            sandbox::filter_calls()?;
            match attempt.as_str() {
                "exec" => say("exec", nix::unistd::execv(c"/bin/true", &[c"true"])),
                "kill" => say("kill", kill(own, Signal::SIGCONT)),
                "trace" => say("trace", nix::sys::ptrace::traceme()),
                "unshare" => say("unshare", unshare(CloneFlags::CLONE_NEWUSER)),
                _ => say("chroot", nix::unistd::chroot("/")),
            }
        }
        "task" => task()?,
        "panic" => {
            sandbox::enter()?;
            panic!("on purpose");
        }
        "abort" => {
            sandbox::enter()?;
            std::process::abort();
        }
        "threads" => {
            let _second = std::thread::spawn(|| std::thread::sleep(SOON));
            sandbox::enter()?;
        }
        other => bail!("{ATTEMPT}={other}"),
    }
    Ok(Some(ExitCode::SUCCESS))
}

/// What the forwarder does, after all of the sandbox.
fn task() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<SocketAddr>());
    let (tcp, udp) = (arguments.next().context("no TCP server")??, arguments.next().context("no UDP server")??);
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    sandbox::enter()?;
    eprintln!("a log line");
    let mut stream = TcpStream::connect(tcp)?;
    stream.set_nodelay(true)?;
    stream.write_all(b"hello")?;
    let mut echoed = [0; 5];
    stream.read_exact(&mut echoed)?;
    println!("tcp {}", String::from_utf8_lossy(&echoed));
    let socket = UdpSocket::bind("[::]:0")?;
    socket.set_read_timeout(Some(SOON))?;
    socket.send_to(b"hello", udp)?;
    let (count, _) = socket.recv_from(&mut echoed)?;
    println!("udp {}", String::from_utf8_lossy(&echoed[..count]));
    let mut client = TcpStream::connect(port.local_addr()?)?;
    client.write_all(b"hello")?;
    let accepted = rustix::net::accept_with(&port, rustix::net::SocketFlags::CLOEXEC)?;
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    fcntl_setpipe_size(&write, 1 << 17)?;
    let moved = splice(&accepted, None, &write, None, 1 << 17, SpliceFlags::MOVE)?;
    splice(&read, None, &accepted, None, moved, SpliceFlags::MOVE)?;
    client.read_exact(&mut echoed)?;
    println!("client {}", String::from_utf8_lossy(&echoed));
    let families = [(AddressFamily::Inet, SockProtocol::Icmp), (AddressFamily::Inet6, SockProtocol::IcmpV6)];
    let pings = families.into_iter().filter(|&(family, kind)| open(family, SockType::Datagram, Some(kind)).is_ok());
    println!("ping sockets {}", pings.count());
    println!("own address {}", sidestep_forwarder::policy::is_own(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    // Grown step by step: remapped, not only mapped.
    let mut memory = Vec::new();
    while memory.len() < 64 << 20 {
        memory.extend_from_slice(&[7; 1 << 16]);
    }
    println!("memory {}", memory.len());
    Ok(())
}

fn open(family: AddressFamily, kind: SockType, protocol: Option<SockProtocol>) -> nix::Result<()> {
    socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol).map(drop)
}

/// One line: what was tried, and the name of the error.
fn say<T, E: Into<std::io::Error>>(what: &str, result: std::result::Result<T, E>) {
    let how = match result {
        Ok(_) => "done".to_owned(),
        Err(error) => format!("{:?}", Errno::from_raw(error.into().raw_os_error().unwrap_or(0))),
    };
    println!("{what} {how}");
}
