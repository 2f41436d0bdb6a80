//! Everything a program can do with a socket of the host's that it was given, to get it elsewhere.

use anyhow::{Result, ensure};

use super::attack;
use crate::lab::workspace::Workspace;

crate::cases! {
    BYPASS: connected_again, listening, passed_on, options_before, options_after, privileges;
}

/// Connecting a socket that is not connected any more, however it came to that.
fn connected_again(ws: Workspace) -> Result<()> {
    let said = attack(
        &ws,
        "def refused():
    s = tcp(remote); s.setblocking(False); s.connect_ex((remote, 1)); select.select([], [s], [], 20)
    assert side(s) == 'host'; s.settimeout(20)
    return s
for make in dissolved, shut, refused, lambda: tcp(remote):
    for there in '127.0.0.1', '0.0.0.0', '10.0.2.2':
        s = make(); first = outcome(lambda: s.connect((there, forbidden)))
        if make == refused: first = outcome(lambda: s.connect((there, forbidden))) if first == 'ECONNREFUSED' else first
        print(first, side(s))
s = connected(); s.shutdown(socket.SHUT_RDWR); print(outcome(lambda: s.connect(('127.0.0.1', forbidden))))
# A nonblocking connect's own result, once, whatever is asked for; then no other.
s = connected(); print(*[outcome(lambda: s.connect(('127.0.0.1', forbidden))) for _ in range(2)], s.getpeername()[0] == remote)
s = tcp(silent); s.setblocking(False); s.connect_ex((silent, 9))
print(outcome(lambda: s.connect(('127.0.0.1', forbidden))))",
    )?;
    let inside = ["ECONNREFUSED workspace", "ECONNREFUSED workspace", "ENETUNREACH workspace"];
    let mut want: Vec<&str> = inside.into_iter().cycle().take(4 * inside.len()).collect();
    want.extend(["EISCONN", "connected EISCONN True", "EALREADY"]);
    ensure!(said == want.join("\n"), "{said}");
    Ok(())
}

/// Listening on the host is for published ports, which nobody asked for here. listen binds what is not bound.
fn listening(ws: Workspace) -> Result<()> {
    let said = attack(
        &ws,
        "for make in dissolved, shut:
    s = make(); print(outcome(s.listen), s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN), side(s))
    s = make(); print(outcome(lambda: s.bind(('0.0.0.0', 0))), s.getsockname()[1] != 0, side(s))
    s = make(); print(outcome(lambda: s.bind(('0.0.0.0', 80))), side(s))
for s in connected(), tcp(silent):
    if side(s) == 'workspace': s.setblocking(False); s.connect_ex((silent, 9))
    print(outcome(s.listen), outcome(lambda: s.bind(('0.0.0.0', 0))), s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))",
    )?;
    let closed = "connected 1 workspace\nconnected True workspace\nconnected workspace";
    ensure!(said == format!("{closed}\n{closed}\nEINVAL EINVAL 0\nEINVAL EINVAL 0"), "{said}");
    Ok(())
}

/// The same in another process that was sent the socket, in other user and network namespaces too.
fn passed_on(ws: Workspace) -> Result<()> {
    let said = attack(
        &ws,
        "CLONE_NEWUSER, CLONE_NEWNET, SIOCGSKNS = 0x10000000, 0x40000000, 0x894c
def receive(channel):
    s = socket.socket(fileno=socket.recv_fds(channel, 1, 1)[1][0])
    s.settimeout(20)
    return s
def child(channel, flags):
    if flags: assert libc.unshare(flags) == 0
    said = []
    for _ in range(2):
        s = receive(channel)
        said.append(outcome(lambda: fcntl.ioctl(s.fileno(), SIOCGSKNS, 0)))
        libc.connect(s.fileno(), bytes(16), 16)
        said.append(outcome(lambda: s.connect(('127.0.0.1', forbidden))))
        s = receive(channel)
        said.append(outcome(s.listen) + str(s.getsockopt(socket.SOL_SOCKET, 71, 8) == host))
    channel.send(' '.join(said).encode())
    os._exit(0)
for flags in 0, CLONE_NEWUSER, CLONE_NEWUSER | CLONE_NEWNET:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sockets = [connected(), shut(), shut(), shut()]
    host = cookie(sockets[0])
    pid = os.fork()
    if pid == 0: ours.close(); child(theirs, flags)
    theirs.close()
    for s in sockets: socket.send_fds(ours, [b'x'], [s.fileno()])
    print(ours.recv(999).decode())
    os.waitpid(pid, 0)",
    )?;
    ensure!(said == ["EPERM ECONNREFUSED connectedFalse EPERM ECONNREFUSED connectedFalse"; 3].join("\n"), "{said}");
    Ok(())
}

/// Options that bend a socket's way in the workspace's network keep it there, and none that takes a privilege is set on
/// the host by a supervisor that may.
fn options_before(ws: Workspace) -> Result<()> {
    let algorithms = |kind: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv4/tcp_{kind}_congestion_control"));
    let (available, allowed) = (algorithms("available")?, algorithms("allowed")?);
    let is_allowed = |algorithm: &&str| allowed.split_whitespace().any(|allowed| allowed == *algorithm);
    let restricted = available.split_whitespace().find(|algorithm| !is_allowed(algorithm));
    let said = attack(
        &ws,
        &(format!("RESTRICTED = b'{}'\n", restricted.unwrap_or("reno")) + "def with_option(level, name, value):
    s = tcp(remote); s.settimeout(20)
    try: s.setsockopt(level, name, value)
    except OSError as e: return 'not here'
    how = outcome(lambda: s.connect((remote, allowed)))
    return how + ' ' + side(s)
SO_MARK, SO_BINDTODEVICE, SO_PRIORITY, IP_TRANSPARENT, IP_FREEBIND, SO_ATTACH_FILTER, TCP_CONGESTION = 36, 25, 12, 19, 15, 26, 13
everything = ctypes.create_string_buffer(struct.pack('=HBBI', 6, 0, 0, 0xffffffff))
program = struct.pack('=H6xQ', 1, ctypes.addressof(everything))
sol, ip = socket.SOL_SOCKET, socket.IPPROTO_IP
for level, name, value in ((sol, SO_MARK, 7), (sol, SO_BINDTODEVICE, b'tap0'), (sol, SO_PRIORITY, 7),
    (sol, SO_PRIORITY, 0x10001), (socket.IPPROTO_TCP, TCP_CONGESTION, RESTRICTED), (ip, IP_TRANSPARENT, 1),
    (ip, IP_FREEBIND, 1), (sol, SO_ATTACH_FILTER, program)):
    print(with_option(level, name, value))"),
    )?;
    let lines: Vec<&str> = said.lines().collect();
    ensure!(lines.len() == 8, "{said}");
    for (index, line) in lines.iter().enumerate() {
        // IP_FREEBIND says something about bind(2) only. A congestion control may take a privilege, or be everybody's.
        let side = if index == 6 || index == 4 && restricted.is_none() { "host" } else { "workspace" };
        ensure!(*line == format!("connected {side}") || *line == "not here", "option {index}: {said}");
    }
    ensure!(lines[..5].iter().all(|line| *line != "not here"), "root of the workspace may set these: {said}");
    Ok(())
}

/// Options set on a host socket do not come along to the next one, nor do they bend its way.
fn options_after(ws: Workspace) -> Result<()> {
    let said = attack(
        &ws,
        "SO_BINDTODEVICE, TCP_FASTOPEN_CONNECT = 25, 30
def device(s): return s.getsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, 16).strip(b'\\0')
for there in (remote, allowed), ('127.0.0.1', forbidden):
    s = shut(); print(outcome(lambda: s.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, b'lo')))
    how = outcome(lambda: s.connect(there)); print(how, device(s), side(s))
s = connected(); s.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, b'lo'); s.settimeout(0.5)
print(outcome(lambda: s.sendall(b'x')), outcome(lambda: s.recv(1)))",
    )?;
    let want = "connected\nconnected b'' workspace\nconnected\nECONNREFUSED b'' workspace\nconnected timed out";
    ensure!(said == want, "{said}");
    Ok(())
}

/// The workspace's root has no capability over a socket of the host.
fn privileges(ws: Workspace) -> Result<()> {
    let said = attack(
        &ws,
        "SO_MARK, SO_PRIORITY, SO_RCVBUFFORCE, SO_SNDBUFFORCE, TCP_REPAIR, IP_TRANSPARENT, SIOCGSKNS = 36, 12, 33, 32, 19, 19, 0x894c
sol = socket.SOL_SOCKET
for make in connected, shut:
    s = make()
    print(*[outcome(lambda: s.setsockopt(*option)) for option in ((sol, SO_MARK, 7), (sol, SO_PRIORITY, 7),
        (sol, SO_RCVBUFFORCE, 1 << 24), (sol, SO_SNDBUFFORCE, 1 << 24), (socket.IPPROTO_TCP, TCP_REPAIR, 1),
        (socket.IPPROTO_IP, IP_TRANSPARENT, 1))], outcome(lambda: fcntl.ioctl(s.fileno(), SIOCGSKNS, 0)))",
    )?;
    ensure!(said == "EPERM EPERM EPERM EPERM EPERM EPERM EPERM\nEPERM EPERM EPERM EPERM EPERM EPERM EPERM", "{said}");
    Ok(())
}
