"""What the tests' Python programs have at hand inside a workspace (or on the host)."""
import asyncio, ctypes, errno, fcntl, os, select, signal, socket, struct, sys, threading, time

SO_NETNS_COOKIE = 71


def family(addr):
    return socket.AF_INET6 if ':' in addr else socket.AF_INET


def tcp(addr):
    return socket.socket(family(addr), socket.SOCK_STREAM)


def dial(addr, port, timeout=20):
    s = tcp(addr)
    s.settimeout(timeout)
    s.connect((addr, port))
    try:
        s.getpeername()
    except OSError:
        # Linux queues an ICMP error over IPv4 for MSG_ERRQUEUE, and wakes poll(), a moment before it sets SO_ERROR.
        # A program with a timeout that looks in between takes the refusal for a connection.
        hangup = select.poll()
        hangup.register(s, 0)
        hangup.poll(timeout * 1000)
        raise OSError(s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 'refused') from None
    return s


def cookie(s):
    return s.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)


def side(s):
    """Whose network namespace the socket belongs to. Neither its addresses nor its peer could tell: both paths
    leave the host by the host's sockets."""
    own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    return 'workspace' if cookie(s) == cookie(own) else 'host'


def outcome(call):
    """'connected', 'timed out' (by the program's own clock) or the name of the errno."""
    try:
        call()
    except OSError as e:
        return 'timed out' if e.errno is None else errno.errorcode[e.errno]
    return 'connected'


def attempt(addr, port, timeout=20):
    return outcome(lambda: dial(addr, port, timeout).close())


def udp(addr, *options):
    s = socket.socket(family(addr), socket.SOCK_DGRAM)
    s.settimeout(20)
    for option in options:
        s.setsockopt(*option)
    return s


def hears_errors(addr):
    """The option with which a socket keeps the ICMP errors it gets (IP_RECVERR, IPV6_RECVERR)."""
    return (socket.IPPROTO_IPV6, 25, 1) if ':' in addr else (socket.IPPROTO_IP, 11, 1)


def never_cut(addr):
    """The option with which a socket finds its path's MTU: IP_PMTUDISC_DO."""
    return (socket.IPPROTO_IPV6, 23, 2) if ':' in addr else (socket.IPPROTO_IP, 10, 2)


def mtu(s):
    return s.getsockopt(socket.IPPROTO_IPV6, 24) if s.family == socket.AF_INET6 else s.getsockopt(socket.IPPROTO_IP, 14)


def reported(s):
    """What the socket's error queue says next: errno, ICMP type and code, MTU, and who says so."""
    waiter = select.poll()
    waiter.register(s, 0)
    waiter.poll(20_000)
    _, [(level, _, report)], _, _ = s.recvmsg(512, 512, socket.MSG_ERRQUEUE)
    error, _, kind, code, _, info, _ = struct.unpack('IBBBBII', report[:16])
    address = report[20:24] if level == socket.IPPROTO_IP else report[24:40]
    who = socket.inet_ntop(socket.AF_INET if level == socket.IPPROTO_IP else socket.AF_INET6, address)
    # Only about the MTU it says more.
    return errno.errorcode[error], kind, code, info if error == errno.EMSGSIZE else 0, who


def say(*words):
    print(*words, flush=True)
