"""Sets whatever can be set on a socket, connects it, and reads it again."""
NO_EFFECT = {
    # Of no consequence to a connected TCP socket, and not carried over a swap.
    socket.SOL_SOCKET: {
        6, 11, 40, 41, 43, 44, 49, 75, 82,  # BROADCAST, NO_CHECK, RXQ_OVFL, WIFI_STATUS, NOFCS, LOCK_FILTER, ..
        62,  # BINDTOIFINDEX: to lo, with index 1, and nothing comes of the connect.
    },
    socket.IPPROTO_IP: {6, 7, 8, 12, 15, 18, 20, 22, 23, 26, 49},  # what recvmsg on datagrams and bind look at
    socket.IPPROTO_TCP: {9, 23, 27, 34},  # DEFER_ACCEPT, FASTOPEN, SAVE_SYN, FASTOPEN_NO_COOKIE: of listeners
    # And 2292PKTOPTIONS, which is refused: it sets a routing header.
    socket.IPPROTO_IPV6: {2, 3, 4, 5, 6, 8, 11, 29, 30, 31, 49, 51, 53, 56, 58, 60, 62, 66, 74, 77, 78},
}


def read(s, level, name):
    try:
        return s.getsockopt(level, name, 32).hex()
    except OSError as e:
        return errno.errorcode[e.errno]


def every_option(servers):
    for server in servers:
        for level, no_effect in NO_EFFECT.items():
            for name in set(range(1, 100)) - no_effect:
                for value in 1, 7, 50_000:
                    s = tcp(server[0])
                    s.settimeout(20)
                    try:
                        s.setsockopt(level, name, value)
                    except OSError:
                        continue
                    before = read(s, level, name)
                    how = outcome(lambda: s.connect(server))
                    print(level, name, value, before, how, read(s, level, name))
                    s.close()
