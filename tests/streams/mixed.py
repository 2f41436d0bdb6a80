# Every kind of traffic at once, by threads, until a line arrives; then what failed.
import subprocess
addr, port, echo, udp = sys.argv[1], *map(int, sys.argv[2:5])
SIZE = 3_000_000


def bulk():
    for move in up, down:
        said = move(addr, port, SIZE)
        if said != 'same': raise OSError(said)


def short():
    with dial(addr, echo, HANG) as s:
        sent = os.urandom(1000); s.sendall(sent); s.shutdown(socket.SHUT_WR)
        if b''.join(iter(lambda: s.recv(9999), b'')) != sent: raise OSError('other bytes')
    # Each leaves a port in TIME_WAIT for a minute.
    time.sleep(.01)


datagrams = [socket.socket(family(addr), socket.SOCK_DGRAM) for _ in range(4)]


def datagram():
    """UDP may lose some; what comes is right."""
    for s in datagrams:
        s.settimeout(1); sent = os.urandom(1200); s.sendto(sent, (addr, udp))
        try:
            while s.recv(9999) != sent: pass
        except TimeoutError: pass


def query():
    # One label, type A: the answer has the question's number.
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1)
    number = os.urandom(2)
    s.sendto(number + bytes.fromhex('0100000100000000000004686f73740000010001'), ('10.0.2.3', 53))
    try:
        if s.recv(999)[:2] != number: raise OSError('the answer to another question')
    except TimeoutError: pass
    s.close()


def ping():
    subprocess.run(['ping', '-c2', '-i0.2', '-W5', addr], check=True, capture_output=True)


end, failed, rounds = threading.Event(), [], {}


def work(kind):
    while not end.is_set():
        try:
            kind()
            rounds[kind.__name__] = rounds.get(kind.__name__, 0) + 1
        except Exception as e:
            failed.append(f'{kind.__name__}: {e!r}')
            return


say('ready')
sys.stdin.readline()
for kind in bulk, short, datagram, query, ping: kind()
say('warm')
sys.stdin.readline()
threads = [threading.Thread(target=work, args=(kind,)) for kind in (bulk, bulk, short, short, datagram, query, ping)]
for thread in threads: thread.start()
sys.stdin.readline()
end.set()
for thread in threads: thread.join()
say(len(rounds), *failed)
sys.stdin.readline()
