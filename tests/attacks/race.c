/* Races the supervisor between its look at a call and the call itself.
 *
 *   race MODE ROUNDS ALLOWED_IP ALLOWED_PORT FORBIDDEN_IP FORBIDDEN_PORT SILENT_IP
 *
 * One thread makes a call ROUNDS times; another changes what the call is about, as fast as it can:
 *   address     connect: the socket address, between the allowed and the forbidden one
 *   family      the same, with the forbidden one disguised as AF_UNIX half of the time
 *   disconnect  as address, on one socket that is connected, dissolved with AF_UNSPEC and connected again
 *   shutdown    as address, on sockets of the host that were shut down while they connected
 *   descriptor  connect: the descriptor's file, between a fresh socket and an unconnected one of the host
 *   unix        connect: file and address together, between an AF_UNIX socket and an unconnected one of the host
 *   bind        bind: the same, with any port for an address
 *   listen      listen: the same
 *
 * Prints how many calls succeeded, how many of them got a host socket where it must not be (the forbidden peer, a port,
 * listening), and how many Landlock denied, which is what becomes of a race that was won.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

static union {
    struct sockaddr_in in;
    _Atomic uint64_t word[2]; /* family, port and address are the first word: changed at once, never torn */
} shared;
static uint64_t allowed, forbidden, disguised, silent;
static _Atomic int done;
static int other_fd, host_fd, raced_fd;

static void die(const char *what) {
    perror(what);
    exit(2);
}

static uint64_t address(const char *ip, const char *port) {
    union { struct sockaddr_in in; uint64_t word[2]; } a;
    memset(&a, 0, sizeof a);
    a.in.sin_family = AF_INET;
    a.in.sin_port = htons((uint16_t)atoi(port));
    if (inet_pton(AF_INET, ip, &a.in.sin_addr) != 1) die(ip);
    return a.word[0];
}

static void *flip_address(void *unused) {
    while (!done) { shared.word[0] = forbidden; shared.word[0] = allowed; }
    return unused;
}

static void *flip_family(void *unused) {
    while (!done) { shared.word[0] = forbidden; shared.word[0] = disguised; shared.word[0] = allowed; }
    return unused;
}

static void *flip_descriptor(void *unused) {
    while (!done) { dup2(other_fd, raced_fd); dup2(host_fd, raced_fd); }
    return unused;
}

static void *flip_both(void *unused) {
    while (!done) {
        shared.word[0] = disguised;
        dup2(other_fd, raced_fd);
        shared.word[0] = forbidden;
        dup2(host_fd, raced_fd);
    }
    return unused;
}

static int stream(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0) die("socket");
    struct timeval limit = {5, 0};
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    struct linger reset = {1, 0}; /* no TIME_WAIT: ports for thousands of rounds */
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    return fd;
}

static uint64_t namespace_of(int fd) {
    uint64_t cookie = 0;
    socklen_t length = sizeof cookie;
    if (getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &length)) die("SO_NETNS_COOKIE");
    return cookie;
}

/* A socket of the host's namespace that is not connected: a shutdown ends a connect that nobody answers. */
static int unconnected_host_socket(void) {
    union { struct sockaddr_in in; uint64_t word[2]; } to = {.word = {silent, 0}};
    int fd = stream(), own = socket(AF_INET, SOCK_DGRAM, 0);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    if (connect(fd, (struct sockaddr *)&to, sizeof to.in) == 0 || errno != EINPROGRESS) die("connect to nobody");
    if (shutdown(fd, SHUT_RDWR)) die("shutdown");
    fcntl(fd, F_SETFL, 0);
    if (namespace_of(fd) == namespace_of(own)) { fputs("not a socket of the host\n", stderr); exit(2); }
    close(own);
    return fd;
}

static int unix_socket(void) {
    struct sockaddr_un any = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&any, offsetof(struct sockaddr_un, sun_path))) die("AF_UNIX");
    return fd;
}

static int peer_is_forbidden(int fd) {
    struct sockaddr_in peer;
    socklen_t length = sizeof peer;
    return getpeername(fd, (struct sockaddr *)&peer, &length) == 0
        && peer.sin_addr.s_addr == (uint32_t)(forbidden >> 32);
}

/* A socket that was connecting still shows the port it did that from; it is bound no more. */
static in_port_t port_of(int fd) {
    struct sockaddr_in name = {0};
    socklen_t length = sizeof name;
    if (getsockname(fd, (struct sockaddr *)&name, &length)) die("getsockname");
    return name.sin_port;
}

static int listens(int fd) {
    int yes = 0;
    socklen_t length = sizeof yes;
    return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &yes, &length) == 0 && yes;
}

int main(int argc, char **argv) {
    if (argc != 8) return 2;
    const char *mode = argv[1];
    int rounds = atoi(argv[2]), succeeded = 0, reached = 0, denied = 0;
    allowed = address(argv[3], argv[4]);
    forbidden = address(argv[5], argv[6]);
    silent = address(argv[7], "9");
    disguised = (forbidden & ~(uint64_t)0xffff) | AF_UNIX;

    int is_bind = !strcmp(mode, "bind"), is_listen = !strcmp(mode, "listen");
    int both = is_bind || is_listen || !strcmp(mode, "unix"), descriptor = !strcmp(mode, "descriptor");
    int again = !strcmp(mode, "disconnect"), shut = !strcmp(mode, "shutdown");
    if (is_bind) forbidden = address("0.0.0.0", "0");
    shared.word[0] = descriptor || both ? forbidden : allowed;
    if (again) {
        host_fd = stream();
        if (connect(host_fd, (struct sockaddr *)&shared, sizeof shared.in)) die("first connect");
    } else {
        host_fd = unconnected_host_socket();
    }
    in_port_t port = port_of(host_fd);
    other_fd = both ? unix_socket() : stream();
    raced_fd = dup(other_fd);

    pthread_t flipper;
    void *(*flip)(void *) = both ? flip_both
        : descriptor ? flip_descriptor
        : !strcmp(mode, "family") ? flip_family
        : flip_address;
    if (pthread_create(&flipper, 0, flip, 0)) return 2;
    for (int i = 0; i < rounds; i++) {
        int fd = descriptor || both ? raced_fd : again ? host_fd : shut ? unconnected_host_socket() : stream();
        if (again) {
            struct sockaddr none = {.sa_family = AF_UNSPEC};
            connect(fd, &none, sizeof none);
        }
        int result = is_listen ? listen(fd, 1)
            : is_bind ? bind(fd, (struct sockaddr *)&shared, sizeof shared.in)
            : connect(fd, (struct sockaddr *)&shared, sizeof shared.in);
        succeeded += result == 0;
        denied += result != 0 && errno == EACCES;
        reached += is_listen ? listens(host_fd)
            : is_bind ? port_of(host_fd) != port
            : (result == 0 && peer_is_forbidden(fd)) || peer_is_forbidden(host_fd);
        if (fd != raced_fd && fd != host_fd) close(fd);
    }
    done = 1;
    pthread_join(flipper, 0);
    printf("succeeded %d reached %d denied %d\n", succeeded, reached, denied);
    return 0;
}
