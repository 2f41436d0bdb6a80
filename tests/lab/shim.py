"""A link with faults: two TAP devices, and a process that carries the frames of each to the other, late, in another
order or not at all. Offloads are on: a frame is what the kernel takes for one, up to 64 KB.

`behind()` puts it between the calling process and tap0, `shim.py NETNS NETNS SECONDS` between two hosts of the lab.
"""
import ctypes, fcntl, heapq, mmap, os, random, select, signal, struct, subprocess, sys, time

TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454ca, 0x400454d0, 0x400454d8
# IFF_TAP | IFF_NO_PI | IFF_VNET_HDR; TUN_F_CSUM | TSO4 | TSO6 | TSO_ECN
FLAGS, OFFLOADS = 0x5002, 0xf
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
# Frames of one direction at once; more are lost, as on any link. The longest delay times the fastest flow is less.
QUEUE = 20_000
libc = ctypes.CDLL(None, use_errno=True)


def tap(name):
    fd = os.open('/dev/net/tun', os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack('16sH22x', name.encode(), FLAGS))
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack('i', 12))
    fcntl.ioctl(fd, TUNSETOFFLOAD, OFFLOADS)
    return fd


def must(result):
    if result < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def ip(*lines):
    subprocess.run(['ip', '-batch', '-'], input='\n'.join(lines) + '\n', text=True, check=True)


def sysctl(name, value):
    with open(f'/proc/sys/net/{name}', 'w') as file: file.write(value)


class Direction:
    def __init__(self, to, faults, counts):
        self.to, self.waiting, self.faults, self.counts = to, [], faults, counts

    def take(self, frame, now):
        loss, late, delay, seed = self.faults
        self.counts[0] += 1
        if loss and seed.random() < loss or len(self.waiting) > QUEUE:
            self.counts[1] += 1
            return
        due = now + delay
        if late and seed.random() < late:
            self.counts[2] += 1
            due += seed.uniform(0.001, 0.03)
        heapq.heappush(self.waiting, (due, self.counts[0], frame))

    def send(self, now):
        """Sends what is due; when to come again."""
        while self.waiting and self.waiting[0][0] <= now:
            try:
                os.write(self.to, self.waiting[0][2])
            except BlockingIOError:
                return now + 0.001
            except OSError as e:
                # The device is not up, or gone with its namespace.
                if e.errno != 5: raise
            heapq.heappop(self.waiting)
        return self.waiting[0][0] if self.waiting else None


def carry(a, b, counts, loss=0, late=0, delay=0, seed=1):
    """Both directions, until killed. `loss` and `late`: which part of the frames; `delay`: of all, in seconds.
    `counts`: frames in all, lost, late."""
    faults = loss, late, delay, random.Random(seed)
    ways = {a: Direction(b, faults, counts), b: Direction(a, faults, counts)}
    ready = select.epoll()
    for fd in ways: ready.register(fd, select.EPOLLIN)
    while True:
        comes = [at for way in ways.values() if (at := way.send(time.monotonic())) is not None]
        wait = max(0, min(comes) - time.monotonic()) if comes else -1
        for fd, _ in ready.poll(wait):
            now = time.monotonic()
            for _ in range(64):
                try:
                    frame = os.read(fd, 70_000)
                except BlockingIOError:
                    break
                ways[fd].take(frame, now)


def carrier(*devices, **faults):
    """A process that carries; it ends with this one. Returns what reads its counts."""
    parent = os.getpid()
    counts = memoryview(mmap.mmap(-1, 24)).cast('Q')
    if os.fork() == 0:
        try:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == parent: carry(*devices, counts, **faults)
        finally:
            os._exit(1)
    for fd in devices: os.close(fd)
    return lambda: list(counts)


def behind(**faults):
    """Moves this process to a network namespace that has the workspace's addresses and reaches its gateway over a link
    with faults; tap0 and the link's near end are in a bridge."""
    gateway = subprocess.run(['ip', '-4', 'neigh', 'show', '10.0.2.2', 'dev', 'tap0'], capture_output=True, text=True).stdout
    mac = gateway.split()[gateway.split().index('lladdr') + 1]
    near = tap('near')
    ip('link add bridge type bridge')
    # The forwarder answers whoever spoke last: nobody but the far end shall.
    for device in 'tap0', 'near', 'bridge': sysctl(f'ipv6/conf/{device}/disable_ipv6', '1')
    ip('addr flush dev tap0', *(f'link set {device} master bridge' for device in ('tap0', 'near')),
       'link set near up', 'link set bridge up')
    must(libc.unshare(CLONE_NEWNET))
    far = tap('far')
    for choice in 'reno', 'cubic':
        try: sysctl('ipv4/tcp_congestion_control', choice)
        except OSError: pass
    ip('link set lo up', 'link set far up', 'addr add 10.0.2.100/24 dev far', 'addr add fd00::64/64 dev far nodad',
       'route add default via 10.0.2.2', 'route add default via fd00::2',
       *(f'neigh add {a} dev far lladdr {mac} nud permanent' for a in ('10.0.2.2', '10.0.2.3', 'fd00::2', 'fd00::3')))
    return carrier(near, far, **faults)


def between(host, remote, delay):
    """A second cable between two hosts, at 192.0.3.1 and .2."""
    ends = []
    for netns, address in (host, '192.0.3.1/24'), (remote, '192.0.3.2/24'):
        fd = os.open(netns, os.O_RDONLY)
        must(libc.setns(fd, CLONE_NEWNET))
        ends.append(tap('slow0'))
        ip('link set slow0 up', f'addr add {address} dev slow0 noprefixroute',
           'route add 192.0.3.0/24 dev slow0 congctl cubic')
    print('ready', flush=True)
    carry(*ends, [0] * 3, delay=delay)


if __name__ == '__main__':
    between(sys.argv[1], sys.argv[2], float(sys.argv[3]))
