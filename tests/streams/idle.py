# Connections that stay open and say nothing; how long another one takes before and beside them.
import resource, statistics
addr, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def another():
    begun = time.monotonic()
    with dial(addr, port) as s:
        s.sendall(b'x')
        assert s.recv(9) == b'x'
    return time.monotonic() - begun


def median():
    return statistics.median(another() for _ in range(100))


alone = median()
idle = [dial(addr, port) for _ in range(count)]
say('open')
while sys.stdin.readline() == 'another\n': say(alone, median())
for s in idle: s.close()
say('closed')
sys.stdin.readline()
