"""connect(2) itself, without what Python does about EINTR, and the signals that come in between."""
libc = ctypes.CDLL(None, use_errno=True)
SYS_CONNECT = {'x86_64': 42, 'aarch64': 203}[os.uname().machine]


def address(host, port):
    f = family(host)
    rest = bytes(8) if f == socket.AF_INET else bytes(4)
    flow = b'' if f == socket.AF_INET else bytes(4)
    return struct.pack('=H', f) + struct.pack('!H', port) + flow + socket.inet_pton(f, host) + rest


def connect(s, to):
    """'connected' or the errno's name, of one call."""
    return 'connected' if libc.connect(s.fileno(), to, len(to)) == 0 else errno.errorcode[ctypes.get_errno()]


def insist(call):
    """The first answer that is not EINTR."""
    while (how := call()) == 'EINTR':
        pass
    return how


def send_timeout(s, milliseconds):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack('ll', 0, milliseconds * 1000))


def storm(restarts):
    """A signal every millisecond; its handler is installed with SA_RESTART or without."""
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.siginterrupt(signal.SIGALRM, not restarts)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)


def calm():
    signal.setitimer(signal.ITIMER_REAL, 0)


def any_port(s):
    """A bound socket is never taken to the host."""
    insist(lambda: outcome(lambda: s.bind(('::' if s.family == socket.AF_INET6 else '0.0.0.0', 0))))


def until_connecting(pid, s):
    """Waits until the thread sleeps in connect(2) on `s`."""
    while True:
        words = open(f'/proc/{pid}/syscall').read().split()
        if words[0] == str(SYS_CONNECT) and int(words[1], 16) == s.fileno():
            return
        os.sched_yield()


def in_child(call, s):
    """Runs call() in a process that is stopped in its connect on `s` and continued; returns what it returned."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, call().encode())
        os._exit(0)
    until_connecting(child, s)
    os.kill(child, signal.SIGSTOP)
    os.waitpid(child, os.WUNTRACED)
    os.kill(child, signal.SIGCONT)
    os.waitpid(child, 0)
    return os.read(reading, 99).decode()
