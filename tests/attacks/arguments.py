"""Stopped calls with every kind of descriptor, pointer and length; prints what each returns.

PORT is bound and connected to, here and at the addresses OUTWARD; nobody listens there."""
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
CONNECT, BIND, LISTEN, PIDFD_OPEN = (42, 49, 50, 434) if os.uname().machine == 'x86_64' else (203, 200, 201, 434)
page = libc.mmap(None, ctypes.c_size_t(2 * 4096), 3, 0x22, -1, ctypes.c_long(0))
end = page + 4096
libc.mprotect(ctypes.c_void_p(end), ctypes.c_size_t(4096), 0)


def call(number, *arguments):
    r = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    return 'ok' if r >= 0 else errno.errorcode[ctypes.get_errno()]


def v4(addr, family=socket.AF_INET):
    return struct.pack('=H', family) + struct.pack('!H', PORT) + socket.inet_aton(addr) + bytes(112)


def v6(addr, scope=0):
    to = struct.pack('!HI', PORT, 0) + socket.inet_pton(socket.AF_INET6, addr) + struct.pack('=I', scope)
    return struct.pack('=H', socket.AF_INET6) + to + bytes(100)


def socket_of(*kind):
    def make():
        s = socket.socket(*kind)
        # Long enough never to be reached, short enough not to hang a run that would hang.
        s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack('ll', 10, 0))
        return s.detach()
    return make


def number_of(call):
    def make():
        r = call()
        assert r >= 0
        return r
    return make


def closed():
    a = os.open('/dev/null', os.O_RDONLY)
    os.close(a)
    return a


descriptors = {
    'tcp4': socket_of(socket.AF_INET, socket.SOCK_STREAM),
    'tcp6': socket_of(socket.AF_INET6, socket.SOCK_STREAM),
    'mptcp': socket_of(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP),
    'udp4': socket_of(socket.AF_INET, socket.SOCK_DGRAM),
    'udp6': socket_of(socket.AF_INET6, socket.SOCK_DGRAM),
    'unix stream': socket_of(socket.AF_UNIX, socket.SOCK_STREAM),
    'unix datagram': socket_of(socket.AF_UNIX, socket.SOCK_DGRAM),
    'netlink': socket_of(socket.AF_NETLINK, socket.SOCK_RAW, 0),
    'pipe': lambda: os.pipe()[1],
    'file': lambda: os.open('/dev/null', os.O_RDWR),
    'path': lambda: os.open('/dev/null', os.O_PATH),
    'directory': lambda: os.open('/', os.O_RDONLY),
    'memory': lambda: os.memfd_create('m'),
    'epoll': number_of(lambda: libc.epoll_create1(0)),
    'event': number_of(lambda: libc.eventfd(0, 0)),
    'pidfd': number_of(lambda: libc.syscall(ctypes.c_long(PIDFD_OPEN), os.getpid(), 0)),
    'closed': closed,
    'minus one': lambda: -1,
    'least': lambda: -1 << 31,
    'most': lambda: (1 << 31) - 1,
    'int only': lambda: socket_of(socket.AF_INET, socket.SOCK_STREAM)() | 1 << 32,
}

addresses = []


def at(name, pointer, length, content=b''):
    addresses.append((name, pointer, length, content))


local4, local6 = v4('127.0.0.1'), v6('::1')
for length in 0, 1, 2, 3, 4, 8, 15, 16, 17, 28, 127, 128, 129, 1 << 20, (1 << 31) - 1, 1 << 31, -1, 16 | 1 << 32:
    at(f'v4 length {length}', page, length, local4)
for length in 2, 16, 23, 24, 27, 28, 128, 129:
    at(f'v6 length {length}', page, length, local6)
for pointer in 0, 1, end, -1, -4096, 0x7ffffffff000, -1 << 47:
    for length in 0, 16, 129, -1:
        at(f'at {pointer:#x} length {length}' if pointer != end else f'no page length {length}', pointer, length)
for length in 15, 16, 17, 28:
    at(f'16 bytes of {length}', end - 16, length, local4[:16])
for name, content, length in (
    ('v4 any', v4('0.0.0.0'), 16), ('v4 multicast', v4('224.0.0.1'), 16),
    ('v4 broadcast', v4('255.255.255.255'), 16), ('v6 any', v6('::'), 28), ('mapped', v6('::ffff:127.0.0.1'), 28),
    ('mapped any', v6('::ffff:0.0.0.0'), 24), ('link-local', v6('fe80::1'), 28), ('no such scope', v6('fe80::1', 77), 28),
    ('v6 loopback scoped', v6('::1', 1), 28), ('unspecified', v4('0.0.0.0', 0), 16), ('short unspecified', bytes(2), 2),
    ('unspecified of loopback', v4('127.0.0.1', 0), 16), ('no family', v4('127.0.0.1', 0xffff), 16),
    ('v4 outward', v4(OUTWARD[0]), 16), ('v4 outward, longer', v4(OUTWARD[0]), 28), ('v6 outward', v6(OUTWARD[1]), 28),
    ('nobody', b'\1\0/nonexistent/socket', 21), ('abstract', b'\1\0\0nobody', 9), ('unnamed', b'\1\0', 2),
    ('netlink', struct.pack('=HHII', 16, 0, 0, 0), 12), ('SMC', v4('127.0.0.1', 43), 16),
):
    at(name, page, length, content)

# A connect to this one would wait.
only_bind = [('v4 of others', page, 16, v4('203.0.113.1')), ('v6 of others', page, 28, v6('2001:db8:113::9'))]

for kind, make in descriptors.items():
    for number, what, also in (CONNECT, 'connect', []), (BIND, 'bind', only_bind):
        for name, pointer, length, content in addresses + also:
            fd = make()
            ctypes.memset(page, 0, 4096)
            if content:
                ctypes.memmove(pointer, content, len(content))
            say(what, kind, '|', name, '|', call(number, fd, pointer, length))
            if fd > 2 and kind != 'closed' and kind != 'most':
                os.close(fd & 0x7fffffff)
    for backlog in 0, 1, -1, (1 << 31) - 1, 1 << 32:
        fd = make()
        say('listen', kind, '|', backlog, '|', call(LISTEN, fd, backlog))
        if fd > 2 and kind != 'closed' and kind != 'most':
            os.close(fd & 0x7fffffff)
