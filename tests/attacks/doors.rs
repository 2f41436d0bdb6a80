//! Other ways to a connection than a connect(2) that stops at the supervisor, and other names for the host's loopback.

use anyhow::{Context as _, Result, ensure};

use super::{Forbidden, attack, attacker};
use crate::lab::BLACK_HOLE;
use crate::lab::workspace::Workspace;

crate::cases! {
    BYPASS: fast_open, io_uring, upper_layer_protocol, other_entries, other_protocols, every_spelling, source_route;
}

/// sendto, sendmsg and sendmmsg connect on the way when they are asked to.
fn fast_open(ws: Workspace) -> Result<()> {
    let said = attack(
        &ws,
        "MSG_FASTOPEN = 0x20000000
class mmsghdr(ctypes.Structure):
    _fields_ = [('name', ctypes.c_void_p), ('namelen', ctypes.c_uint), ('iov', ctypes.c_void_p),
        ('iovlen', ctypes.c_size_t), ('control', ctypes.c_void_p), ('controllen', ctypes.c_size_t),
        ('flags', ctypes.c_int), ('len', ctypes.c_uint)]
to = ctypes.create_string_buffer(struct.pack('=H', socket.AF_INET) + struct.pack('!HI8x', forbidden, 0x7f000001))
text = ctypes.create_string_buffer(b'x')
iov = (ctypes.c_size_t * 2)(ctypes.addressof(text), 1)
message = mmsghdr(ctypes.addressof(to), 16, ctypes.addressof(iov), 1, None, 0, MSG_FASTOPEN, 0)
def several(s):
    if libc.sendmmsg(s.fileno(), ctypes.byref(message), 1, MSG_FASTOPEN) < 0: raise OSError(ctypes.get_errno(), '')
there = ('127.0.0.1', forbidden)
for make in shut, dissolved, lambda: tcp(remote):
    print(outcome(lambda: make().sendto(b'x', MSG_FASTOPEN, there)),
        outcome(lambda: make().sendmsg([b'x'], [], MSG_FASTOPEN, there)), outcome(lambda: several(make())))
s = shut(); s.setsockopt(socket.IPPROTO_TCP, 30, 1)  # TCP_FASTOPEN_CONNECT: connect waits for the first send.
print(outcome(lambda: s.connect(there)), outcome(lambda: s.send(b'x')), side(s))",
    )?;
    // EOPNOTSUPP, by Python's name for the same number. A deferred connect has yet to be refused when data is sent.
    let (sends, deferred) = said.rsplit_once('\n').context("a line for each kind of socket")?;
    ensure!(sends == ["ENOTSUP ENOTSUP ENOTSUP"; 3].join("\n"), "{said}");
    ensure!(deferred.ends_with("workspace"), "{said}");
    Ok(())
}

fn io_uring(ws: Workspace) -> Result<()> {
    let said = attack(
        &ws,
        "for number in 425, 426, 427: print(syscall(number, 8, ctypes.addressof(ctypes.create_string_buffer(120)), 0, 0))",
    )?;
    ensure!(said == ["EPERM"; 3].join("\n"), "{said}");
    Ok(())
}

/// TCP_ULP can turn a TCP socket into one of another family ("smc"), whose connect nobody would see. Level and option are
/// ints: the kernel does not look at what stands above them.
fn upper_layer_protocol(ws: Workspace) -> Result<()> {
    let said = attack(
        &ws,
        "SETSOCKOPT = {'x86_64': 54}.get(os.uname().machine, 208)
for name in b'smc', b'mptcp':
    text = ctypes.create_string_buffer(name)
    for above in 0, 1 << 32, -1 << 32:
        print(syscall(SETSOCKOPT, shut().fileno(), 6 | above, 31 | above, ctypes.addressof(text), len(name)))",
    )?;
    ensure!(said == ["ENOENT"; 6].join("\n"), "{said}");
    Ok(())
}

/// Calls of another architecture, filters of the workspace's own, and tracers that exchange a call for another.
fn other_entries(ws: Workspace) -> Result<()> {
    // A filter of the workspace's may forbid more; what it allows, logs or rewrites is stopped all the same. ECONNREFUSED
    // is the workspace's own loopback.
    let filters = [
        "listener of its own: EBUSY",
        "notification without listener: ENOSYS",
        "allowed by its own filter: ECONNREFUSED",
        "logged by its own filter: ECONNREFUSED",
    ];
    let of_x86 = [
        "rewritten by a filter's tracer: ECONNREFUSED",
        "rewritten at entry: ECONNREFUSED",
        "x32 connect: killed",
        "32-bit connect: killed",
        "32-bit socketcall: killed",
        "32-bit bind: killed",
        "32-bit listen: killed",
    ];
    let mut want = filters.to_vec();
    want.extend(of_x86.iter().filter(|_| cfg!(target_arch = "x86_64")));
    let forbidden = Forbidden::start(&ws)?;
    let doors = attacker(&ws, include_str!("doors.c"), "doors")?;
    let done = ws
        .program([doors.as_os_str()])
        .arg(forbidden.port().to_string())
        .arg(BLACK_HOLE[0].to_string())
        .run(&ws.lab.host)?;
    forbidden.is_untouched(&done)?;
    done.printed(&want.join("\n"))
}

/// Protocols that Landlock does not know stay in the workspace's namespace, where they are no matter of the host's.
fn other_protocols(ws: Workspace) -> Result<()> {
    let said = attack(
        &ws,
        "IPPROTO_SMC, AF_SMC = 256, 43
kinds = [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP), (socket.AF_INET, socket.SOCK_STREAM, IPPROTO_SMC),
    (AF_SMC, socket.SOCK_STREAM, 0), (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP),
    (socket.AF_INET, socket.SOCK_SEQPACKET, socket.IPPROTO_SCTP), (socket.AF_INET, 6, 33),
    (socket.AF_INET, socket.SOCK_DGRAM, 0), (socket.AF_INET, socket.SOCK_DGRAM, 136),
    (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP), (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP),
    (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)]
made = []
for kind in kinds:
    try: s = socket.socket(*kind)
    except OSError: continue
    made.append(kind)
    to = struct.pack('=H', socket.AF_INET) + struct.pack('!HI8x', allowed, int.from_bytes(socket.inet_aton(remote), 'big'))
    libc.connect(s.fileno(), to, 16)
    assert side(s) == 'workspace', (kind, side(s))
    t = socket.socket(*kind)
    to = struct.pack('=H', socket.AF_INET) + struct.pack('!HI8x', forbidden, 0x7f000001)
    libc.connect(t.fileno(), to, 16)
    libc.listen(t.fileno(), 1)
    assert side(t) == 'workspace', (kind, side(t))
    try: t.send(b'x')
    except OSError: pass
print(len(made) > 4)",
    )?;
    ensure!(said == "True", "{said}");
    Ok(())
}

/// The host's loopback by every name and in every shape of an address, by fresh sockets and by used ones.
fn every_spelling(ws: Workspace) -> Result<()> {
    let said = attack(
        &ws,
        "def v4(addr, length=16): return (struct.pack('=H', 2) + struct.pack('!H', forbidden) + socket.inet_aton(addr) + bytes(112))[:length]
def v6(addr, scope=0, flow=0, length=28):
    return (struct.pack('=H', 10) + struct.pack('!HI', forbidden, flow) + socket.inet_pton(10, addr) + struct.pack('=I', scope) + bytes(100))[:length]
addresses = [v4(a, length) for a in ('127.0.0.1', '127.1.2.3', '127.255.255.255', '0.0.0.0', '10.0.2.2', '10.0.2.3',
    '255.255.255.255') for length in (16, 17, 28, 128)]
addresses += [v6(a, scope, flow, length) for a in ('::1', '::', '::127.0.0.1', '::ffff:127.0.0.1', '::ffff:0.0.0.0',
    '::ffff:127.1.2.3', '::ffff:10.0.2.2', '::ffff:0:127.0.0.1', '64:ff9b::127.0.0.1', '2002:7f00:1::', 'fd00::2',
    'fd00::3', 'fe80::1', 'ff01::1', 'ff02::1') for scope in (0, 1, 2, 3, 0xffffffff) for flow in (0, 0x0fffffff)
    for length in (24, 27, 28, 128)]
addresses += [v4('127.0.0.1', length) for length in range(16)] + [v6('::1', length=length) for length in range(24)]
addresses += [bytes(2) + v4('127.0.0.1')[2:], struct.pack('=H', 43) + v4('127.0.0.1')[2:]]
def quick(addr):
    s = tcp(addr); s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack('ll', 0, 50000))
    return s
def used():
    s = shut(); s.settimeout(None); s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack('ll', 0, 50000))
    return s
for to in addresses:
    for s in quick('0.0.0.0'), quick('::'), *([used()] if len(to) in (16, 28) else []):
        if libc.connect(s.fileno(), to, len(to)) == 0 and to[:2] != bytes(2):
            peer = s.getpeername()
            print('connected', to, peer)
        s.close()",
    )?;
    ensure!(said.is_empty(), "{said}");
    Ok(())
}

/// A source route sends packets past other machines first, and past the host's own loopback: it takes a privilege over
/// the host's network to set one there, and one that is set inside stays inside.
fn source_route(ws: Workspace) -> Result<()> {
    let said = attack(
        &ws,
        "LSRR = bytes([131, 7, 4, 127, 0, 0, 1, 0])
def route(s): return outcome(lambda: s.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, LSRR))
s = tcp(remote); s.settimeout(1); print(route(s), outcome(lambda: s.connect((remote, allowed))) != 'connected', side(s))
s = tcp(silent); s.setblocking(False); s.connect_ex((silent, forbidden))
print(side(s), route(s), route(connected()), route(shut()))",
    )?;
    ensure!(said == "connected True workspace\nhost EPERM EPERM EPERM", "{said}");
    // Of IPv6 no privilege would be asked for.
    let said = attack(
        &ws,
        "SETSOCKOPT = {'x86_64': 54}.get(os.uname().machine, 208)
IPPROTO_IPV6, IPV6_RTHDR, IPV6_2292PKTOPTIONS = 41, 57, 6
# Of segment routing, with no segment left: it goes to the one address there is, and says the peer's.
header = bytes([0, 2, 4, 0, 0, 0, 0, 0]) + socket.inet_pton(socket.AF_INET6, '::1')
several = struct.pack('=QII', 16 + len(header), IPPROTO_IPV6, IPV6_RTHDR) + header
s = tcp('::'); s.setblocking(False); s.connect_ex(('::ffff:' + silent, forbidden))
print(side(s))
for name, value in (IPV6_RTHDR, header), (IPV6_2292PKTOPTIONS, several):
    text = ctypes.create_string_buffer(value)
    for above in 0, 1 << 32, -1 << 32:
        print(syscall(SETSOCKOPT, s.fileno(), IPPROTO_IPV6 | above, name | above, ctypes.addressof(text), len(value)))",
    )?;
    ensure!(said == format!("host{}", "\nEPERM".repeat(6)), "{said}");
    Ok(())
}
