"""Plays scripts of socket calls: a JSON list of steps a line in, a JSON list of what each returned out."""
import json, termios

DESTINATIONS = json.loads(sys.stdin.readline())
OPTIONS = {
    'error': (socket.SOL_SOCKET, socket.SO_ERROR), 'nodelay': (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    'keepalive': (socket.SOL_SOCKET, socket.SO_KEEPALIVE), 'keepidle': (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    'reuseaddr': (socket.SOL_SOCKET, socket.SO_REUSEADDR), 'rcvbuf': (socket.SOL_SOCKET, socket.SO_RCVBUF),
    'sndbuf': (socket.SOL_SOCKET, socket.SO_SNDBUF), 'tos': (socket.IPPROTO_IP, socket.IP_TOS),
    'ttl': (socket.IPPROTO_IP, socket.IP_TTL), 'priority': (socket.SOL_SOCKET, socket.SO_PRIORITY),
    'listening': (socket.SOL_SOCKET, socket.SO_ACCEPTCONN),
    'usertimeout': (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    'keepintvl': (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL), 'oobinline': (socket.SOL_SOCKET, socket.SO_OOBINLINE),
    'rcvlowat': (socket.SOL_SOCKET, socket.SO_RCVLOWAT), 'recverr': (socket.IPPROTO_IP, 11),
    'mtudiscover': (socket.IPPROTO_IP, 10), 'v6only': (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY),
}
libc = ctypes.CDLL(None, use_errno=True)
TCP_CLOSE, TCP_LISTEN = 7, 10
sockets, impatient = {}, set()


def raw_connect(s, address):
    if libc.connect(s.fileno(), address, len(address)) < 0:
        raise OSError(ctypes.get_errno(), '')


def connect(s, name):
    destination = DESTINATIONS[name]
    if name in ('hole', 'unspecified'):
        patience(s, 0.03 if name == 'hole' else 0)
    if isinstance(destination, str):
        call = lambda: raw_connect(s, bytes.fromhex(destination))
    else:
        call = lambda: s.connect(tuple(destination[:4 if s.family == socket.AF_INET6 else 2]))
    how = attempt_call(call)
    # When a connect ends is not the kernel's promise; how it ends is.
    return [how, settle(s)] if how == 'EINPROGRESS' else how


def patience(s, seconds):
    '''For as long as the socket is in a black hole, nothing is waited for.'''
    impatient.add(s) if seconds else impatient.discard(s)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack('ll', 0, int(seconds * 1_000_000)))


def settle(s):
    p = select.poll()
    p.register(s, select.POLLOUT)
    return p.poll(30 if s in impatient else 5000) and p.poll(0)[0][1]


def is_there(s, what):
    '''Waits for what the other end does about it: how soon is not the kernel's promise either.'''
    end = time.monotonic() + 10
    while not what() and time.monotonic() < end:
        if s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in (TCP_CLOSE, TCP_LISTEN): break
        time.sleep(0.001)


def waiting(s):
    try: return struct.unpack('i', fcntl.ioctl(s, termios.FIONREAD, bytes(4)))[0]
    except OSError: return 0


def send(s):
    before = waiting(s)
    sent = s.send(b'ping', socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
    is_there(s, lambda: waiting(s) >= before + sent)
    return sent


def shutdown(s, how):
    patience(s, 0)
    s.shutdown(how)
    # The echo ends with what it echoes.
    if how != socket.SHUT_RD: is_there(s, lambda: False)


def receive(s):
    p = select.poll()
    p.register(s, select.POLLIN | select.POLLRDHUP)
    return p.poll(200) and [p.poll(0)[0][1], s.recv(100, socket.MSG_DONTWAIT).decode()]


def attempt_call(call):
    try:
        return call()
    except OSError as e:
        return errno.errorcode.get(e.errno, str(e))


def play(step):
    op, slot, *rest = step
    if op == 'socket':
        sockets[slot] = socket.socket(socket.AF_INET6 if rest[0] else socket.AF_INET, socket.SOCK_STREAM)
        return None
    s = sockets.get(slot)
    if s is None:
        return 'no socket'
    match op:
        case 'connect': return connect(s, *rest)
        case 'blocking': return s.setblocking(rest[0])
        case 'cloexec': return os.set_inheritable(s.fileno(), not rest[0])
        case 'flags': return [fcntl.fcntl(s, fcntl.F_GETFL), fcntl.fcntl(s, fcntl.F_GETFD)]
        case 'peer': return s.getpeername()
        case 'bound': return s.getsockname()[1] != 0
        case 'get': return s.getsockopt(*OPTIONS[rest[0]])
        case 'set': return s.setsockopt(*OPTIONS[rest[0]], rest[1])
        case 'shutdown': return shutdown(s, rest[0])
        case 'send': return send(s)
        case 'receive': return receive(s)
        case 'bind': return s.bind((('::' if s.family == socket.AF_INET6 else '0.0.0.0'), 0))
        case 'listen': return s.listen()
        case 'poll':
            p = select.poll(); p.register(s, select.POLLIN | select.POLLOUT); return p.poll(0) and p.poll(0)[0][1]
        case 'close': return sockets.pop(slot).close()


for line in sys.stdin:
    say(json.dumps([attempt_call(lambda: play(step)) for step in json.loads(line)]))
    for s in sockets.values():
        s.close()
    sockets.clear()
    impatient.clear()
