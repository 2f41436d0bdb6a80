/* Races the supervisor between its look at a connect and the connect itself.
 *
 *   race MODE ROUNDS ALLOWED_IP ALLOWED_PORT FORBIDDEN_IP FORBIDDEN_PORT
 *
 * One thread connects ROUNDS times; another changes what the call is about, as fast as it can:
 *   address     the socket address, between the allowed and the forbidden one
 *   family      the same, with the forbidden one disguised as AF_UNIX half of the time
 *   disconnect  as address, on one socket that is connected, dissolved with AF_UNSPEC and connected again
 *   descriptor  the descriptor's file, between a fresh socket and one that has been on the host's side
 *
 * Prints how many connects succeeded, and how many of those had the forbidden peer.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static union {
    struct sockaddr_in in;
    _Atomic uint64_t word[2]; /* family, port and address are the first word: changed at once, never torn */
} shared;
static uint64_t allowed, forbidden, disguised;
static _Atomic int done;
static int fresh_fd, host_fd, raced_fd;

static uint64_t address(const char *ip, const char *port) {
    union { struct sockaddr_in in; uint64_t word[2]; } a;
    memset(&a, 0, sizeof a);
    a.in.sin_family = AF_INET;
    a.in.sin_port = htons((uint16_t)atoi(port));
    if (inet_pton(AF_INET, ip, &a.in.sin_addr) != 1) { fprintf(stderr, "bad address %s\n", ip); exit(2); }
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
    while (!done) { dup2(fresh_fd, raced_fd); dup2(host_fd, raced_fd); }
    return unused;
}

static int stream(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0) { perror("socket"); exit(2); }
    struct timeval limit = {5, 0};
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    struct linger reset = {1, 0}; /* no TIME_WAIT: ports for thousands of rounds */
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    return fd;
}

static void dissolve(int fd) {
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    connect(fd, &none, sizeof none);
}

int main(int argc, char **argv) {
    if (argc != 7) return 2;
    const char *mode = argv[1];
    int rounds = atoi(argv[2]), connected = 0, reached = 0;
    allowed = address(argv[3], argv[4]);
    forbidden = address(argv[5], argv[6]);
    disguised = (forbidden & ~(uint64_t)0xffff) | AF_UNIX;
    shared.word[0] = allowed;

    int descriptor = !strcmp(mode, "descriptor"), again = !strcmp(mode, "disconnect");
    void *(*flip)(void *) = descriptor ? flip_descriptor : !strcmp(mode, "family") ? flip_family : flip_address;
    host_fd = stream();
    if (connect(host_fd, &shared.in, sizeof shared.in)) { perror("first connect"); return 2; }
    fresh_fd = stream();
    raced_fd = dup(fresh_fd);
    if (descriptor) shared.word[0] = forbidden;

    pthread_t flipper;
    if (pthread_create(&flipper, 0, flip, 0)) return 2;
    for (int i = 0; i < rounds; i++) {
        int fd = descriptor ? raced_fd : again ? host_fd : stream();
        if (descriptor || again) dissolve(host_fd);
        if (connect(fd, (struct sockaddr *)&shared, sizeof shared.in) == 0) {
            struct sockaddr_in peer;
            socklen_t length = sizeof peer;
            connected++;
            if (getpeername(fd, (struct sockaddr *)&peer, &length) == 0
                && peer.sin_addr.s_addr == (uint32_t)(forbidden >> 32))
                reached++;
        }
        if (!descriptor && !again) close(fd);
    }
    done = 1;
    pthread_join(flipper, 0);
    printf("connected %d reached %d\n", connected, reached);
    return 0;
}
