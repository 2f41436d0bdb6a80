# An echo server that holds thousands of connections, on one thread.
import resource, select, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
listener = socket.create_server((sys.argv[1], 0), backlog=4096)
print(listener.getsockname()[1], flush=True)
ready, held = select.epoll(), {}
ready.register(listener, select.EPOLLIN)
while True:
    for fd, _ in ready.poll():
        if fd == listener.fileno():
            s, _ = listener.accept()
            held[s.fileno()] = s
            ready.register(s, select.EPOLLIN)
        elif data := held[fd].recv(999):
            held[fd].sendall(data)
        else:
            held.pop(fd).close()
