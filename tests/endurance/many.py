# Connects by the thousand, by processes of several threads that come and go; a line on standard input asks for more.
addr, ports, threads, each = sys.argv[1], [int(port) for port in sys.argv[2].split(',')], int(sys.argv[3]), int(sys.argv[4])
AT_ONCE = 4


def connects(failed):
    for n in range(each):
        s = tcp(addr)
        s.settimeout(30 if n % 2 else None)
        how = outcome(lambda: s.connect((addr, ports[n % len(ports)])))
        # The server closes first, so that no port of ours is left in TIME_WAIT.
        if how == 'connected' and not s.recv(99): how = 'no data'
        s.close()
        if how != 'connected': failed.append(how)


def process():
    failed = []
    workers = [threading.Thread(target=connects, args=(failed,)) for _ in range(threads)]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
    if failed: print(*failed, file=sys.stderr)
    os._exit(1 if failed else 0)


say('ready')
for line in sys.stdin:
    failed = running = 0
    for left in range(int(line), 0, -1):
        if os.fork() == 0: process()
        running += 1
        if running == AT_ONCE:
            failed += os.wait()[1] != 0
            running -= 1
    for _ in range(running): failed += os.wait()[1] != 0
    say('failed', failed)
