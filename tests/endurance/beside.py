# 64 threads that connect to a server that answers, alone and beside 64 that wait for one that never does.
addr, port, hole, rounds = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
THREADS = 64


def good(times):
    for _ in range(rounds):
        s = tcp(addr)
        start = time.monotonic()
        s.connect((addr, port))
        times.append(time.monotonic() - start)
        s.recv(99); s.close()


def measured():
    times = []
    workers = [threading.Thread(target=good, args=(times,)) for _ in range(THREADS)]
    start = time.monotonic()
    for worker in workers: worker.start()
    for worker in workers: worker.join()
    times.sort()
    assert len(times) == THREADS * rounds
    return f'{times[len(times) // 2]:.6f} {time.monotonic() - start:.6f}'


def forever(n):
    s = tcp(hole); ended.append(outcome(lambda: s.connect((hole, 1000 + n))))


ended = []
say(measured())
for n in range(THREADS): threading.Thread(target=forever, args=(n,), daemon=True).start()
say('waiting')
sys.stdin.readline()
say(measured())
say('ended', len(ended))
os._exit(0)
