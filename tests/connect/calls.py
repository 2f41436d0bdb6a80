"""connect(2) itself, without what Python does about EINTR, and the signals that come in between."""
libc = ctypes.CDLL(None, use_errno=True)


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
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack('ll', milliseconds // 1000, milliseconds % 1000 * 1000))


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


def is_connecting(s):
    return s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b'\x02'


def until_connecting(s):
    """Waits until a SYN is on its way: only then is a signal sure to come in the middle of the connect."""
    while not is_connecting(s):
        os.sched_yield()


def stopped_and_continued(s, call):
    """What call() returns in a process that is stopped and continued while it connects `s`."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        def stop():
            until_connecting(s)
            os.kill(os.getpid(), signal.SIGSTOP)
        threading.Thread(target=stop).start()
        os.write(writing, call().encode())
        os._exit(0)
    os.close(writing)
    assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
    os.kill(child, signal.SIGCONT)
    os.waitpid(child, 0)
    return os.fdopen(reading).read()


def beside(s, call, other):
    """What call() returns on a thread, and other() on this one once `s` is connecting."""
    said = []
    thread = threading.Thread(target=lambda: said.append(call()))
    thread.start()
    until_connecting(s)
    others = other()
    thread.join()
    return said + [others]


def at_once(*calls):
    """What each call returns that begins with the others, sorted."""
    said, gate = [], threading.Barrier(len(calls))

    def run(call):
        gate.wait()
        said.append(call())
    threads = [threading.Thread(target=run, args=[call]) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(said)
