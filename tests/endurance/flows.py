# Connections through the TAP, of every kind there is, made anew at each line; before that, how the old ones ended.
import subprocess
addr, echo, sink, source, udp = sys.argv[1], *map(int, sys.argv[2:6])
HANG = 20


def device():
    """The TAP, its addresses and the routes."""
    show = ('link', 'show', 'dev', 'tap0'), ('addr', 'show', 'dev', 'tap0'), ('route',), ('-6', 'route')
    said = [subprocess.run(('ip', '-o', *what), capture_output=True, check=True).stdout for what in show]
    # Of the link-local address, for its first second.
    return [text.replace(b' tentative', b'') for text in said]


def dialled(port):
    s = dial(addr, port, HANG)
    s.settimeout(None)
    return s


def waits(s):
    return s.recv(99)


def sends(s):
    while True: s.sendall(bytes(50_000))


def receives(s):
    while s.recv(50_000): pass


def half_closed(s):
    s.shutdown(socket.SHUT_WR)
    return s.recv(99)


class Old(threading.Thread):
    def __init__(self, work, port):
        super().__init__(daemon=True)
        self.s, self.work = dialled(port), work
        self.start()

    def run(self):
        self.how = outcome(lambda: self.work(self.s))

    def end(self):
        self.join(HANG)
        if self.is_alive(): return 'hangs'
        return 'reset' if self.how in ('ECONNRESET', 'EPIPE') else self.how


def new():
    s = dialled(echo)
    s.sendall(b'hello')
    assert s.recv(99) == b'hello'
    u = socket.socket(family(addr), socket.SOCK_DGRAM); u.settimeout(HANG)
    u.sendto(b'hello', (addr, udp))
    assert u.recv(99) == b'hello'
    return [Old(waits, echo), Old(sends, sink), Old(receives, source), Old(half_closed, source_that_waits)]


source_that_waits = int(sys.argv[6])
before, old = device(), new()
say('ready')
for line in sys.stdin:
    start = time.monotonic()
    young = new()
    took = time.monotonic() - start
    say(*[o.end() for o in old], 'same' if device() == before else device(), f'{took:.3f}')
    old = young
