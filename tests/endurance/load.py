# Connects of every kind, by threads of several processes, until a line arrives. Then a line about each kind of them.
addr, good, closed, hole = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
PROCESSES = 2
HANG = 20
end = threading.Event()


def seconds(t):
    return struct.pack('ll', int(t), int(t % 1 * 1e6))


def socket_to(addr, timeout=HANG):
    s = tcp(addr)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds(timeout))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds(HANG))
    return s


def echoes(s):
    sent = os.urandom(16)
    s.sendall(sent)
    got = s.recv(99)
    if got != sent: raise OSError(errno.EBADMSG, 'the echo of somebody else')


def blocking():
    with socket_to(addr) as s:
        s.connect((addr, good)); echoes(s)


def inside():
    with socket_to('127.0.0.1') as s:
        s.connect(('127.0.0.1', own_port)); echoes(s)


def watched(port=good):
    """Registered with an epoll before the connect, which is not to wait."""
    with tcp(addr) as s, select.epoll() as ep:
        s.setblocking(False)
        ep.register(s, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        ep.poll(0)
        how = s.connect_ex((addr, port))
        if how not in (0, errno.EINPROGRESS): raise OSError(how, 'at once')
        if not ep.poll(HANG): raise OSError(errno.ETIMEDOUT, 'no event')
        how = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if how: raise OSError(how, 'later')
        s.setblocking(True)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds(HANG))
        echoes(s)


def refused():
    with socket_to(addr) as s: s.connect((addr, closed))


def refused_later():
    watched(closed)


def until_timeout(addr, port, timeout):
    with socket_to(addr, timeout) as s: s.connect((addr, port))


# What to do, what comes of it, how long it is to take. The long ones live through several deaths.
KINDS = {
    'blocking': (blocking, 'connected', 0),
    'inside': (inside, 'connected', 0),
    'watched': (watched, 'connected', 0),
    'refused': (refused, 'ECONNREFUSED', 0),
    'refused later': (refused_later, 'ECONNREFUSED', 0),
    'hole': (lambda: until_timeout(hole, 80, .4), 'EINPROGRESS', .4),
    'long hole': (lambda: until_timeout(hole, 80, 2.5), 'EINPROGRESS', 2.5),
    'hole inside': (lambda: until_timeout('127.0.0.1', full_port, .4), 'EINPROGRESS', .4),
    'long hole inside': (lambda: until_timeout('127.0.0.1', full_port, 2.5), 'EINPROGRESS', 2.5),
}


def repeat(kind, report):
    call, want, takes = KINDS[kind]
    while not end.is_set():
        start = time.monotonic()
        how = outcome(call)
        took = time.monotonic() - start
        report.append((kind, how, took - takes))
        # Two processors that never rest say more about their scheduler than about anybody's connects.
        end.wait(.005)
        if how == want and took < takes - .05: report.append((kind, 'too soon', took))


def stalls(report):
    """What the machine itself adds: a sleep that takes longer than asked for."""
    while not end.is_set():
        start = time.monotonic()
        time.sleep(.01)
        report.append(('stall', 'stall', time.monotonic() - start - .01))


def process(told):
    report = []
    threads = [threading.Thread(target=repeat, args=(kind, report)) for kind in KINDS]
    threads.append(threading.Thread(target=stalls, args=(report,)))
    for thread in threads: thread.start()
    os.read(told, 1)
    end.set()
    for thread in threads: thread.join()
    worst = {}
    for kind, how, over in report:
        count, most = worst.get((kind, how), (0, 0))
        worst[kind, how] = count + 1, max(most, over)
    return ''.join(f'{kind}|{how}|{count}|{most:.3f}\n' for (kind, how), (count, most) in worst.items())


def echo_inside(server):
    while True:
        s, _ = server.accept()
        with s:
            s.sendall(s.recv(99))


class Transfer(threading.Thread):
    """A connection that carries data from before the first death until after the last."""
    def __init__(self):
        super().__init__()
        self.s = dial(addr, good, HANG)
        self.bytes = 0

    def run(self):
        self.how = outcome(self.carry)

    def carry(self):
        self.s.settimeout(HANG)
        while not end.is_set():
            sent = os.urandom(50_000)
            self.s.sendall(sent)
            got = b''
            while len(got) < len(sent):
                piece = self.s.recv(len(sent) - len(got))
                if not piece: raise OSError(errno.EPIPE, 'its end')
                got += piece
            if got != sent: raise OSError(errno.EBADMSG, 'other bytes')
            self.bytes += len(got)
            end.wait(.002)


own = tcp('127.0.0.1'); own.bind(('127.0.0.1', 0)); own.listen(1000); own_port = own.getsockname()[1]
full = tcp('127.0.0.1'); full.bind(('127.0.0.1', 0)); full.listen(0); full_port = full.getsockname()[1]
# Its queue is full when a connect is not over at once.
queued = []
while True:
    queued.append(tcp('127.0.0.1')); queued[-1].settimeout(.2)
    if outcome(lambda: queued[-1].connect(('127.0.0.1', full_port))) != 'connected': break
idle = dial(addr, good, HANG)

children = []
for _ in range(PROCESSES):
    (told, tell), (answer, answers) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(tell); os.close(answer)
        os.write(answers, process(told).encode())
        os._exit(0)
    os.close(told); os.close(answers)
    children.append((child, tell, answer))
threading.Thread(target=echo_inside, args=(own,), daemon=True).start()
transfer = Transfer(); transfer.start()
say('ready')
sys.stdin.readline()
for _, tell, _ in children: os.close(tell)
for child, _, answer in children:
    with open(answer) as report: sys.stdout.write(report.read())
    os.waitpid(child, 0)
end.set(); transfer.join()
say(f'transfer|{transfer.how}|{transfer.bytes}|0')
say(f'idle|{outcome(lambda: echoes(idle))}|1|0')
say('done')
