# Streams whose every byte is known, both ways, several at once; the server is `patterned` in streams.rs.
from shim import behind
HANG = 60
block = bytes(i * 2654435761 >> 16 & 255 for i in range(65521))
pattern = block * 34


def same(data, at):
    start = at % len(block)
    return data == pattern[start:start + len(data)]


def up(addr, port, size, pause=0):
    """Sends; the server looks at what it got, after a pause."""
    s = dial(addr, port, HANG)
    s.sendall(struct.pack('>cQQ', b'u', size, pause))
    for at in range(0, size, len(block) * 32):
        s.sendall(pattern[:min(size - at, len(block) * 32)])
    s.shutdown(socket.SHUT_WR)
    return s.recv(99).decode()


def down(addr, port, size, pause=0):
    s = dial(addr, port, HANG)
    s.sendall(struct.pack('>cQQ', b'd', size, 0))
    time.sleep(pause / 1000)
    at = 0
    while data := s.recv(1 << 20):
        if not same(data, at): return f'other bytes at {at}'
        at += len(data)
    return 'same' if at == size else f'{at} bytes'


def at_once(count, work):
    """What `count` threads say, each thing once, and how long they took."""
    said, begun = [], time.monotonic()
    def one(n):
        try: said.append(work(n))
        except Exception as e: said.append(repr(e))
    threads = [threading.Thread(target=one, args=(n,)) for n in range(count)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return ' '.join(sorted(set(said))), time.monotonic() - begun
