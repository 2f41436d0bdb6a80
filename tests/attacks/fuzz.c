/* Makes system calls with arbitrary arguments, from several threads on the same descriptors.
 *
 *   fuzz SEED THREADS CALLS REMOTE_IP REMOTE_PORT FORBIDDEN_PORT SILENT_IP
 *
 * Each thread makes CALLS calls, drawn from SEED; one more interrupts them all the time. Prints how many connects
 * succeeded; that none got anywhere it must not is for others to see.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { FIRST = 3, DESCRIPTORS = 24, ADDRESS = 160 };

static int calls, remote_port, forbidden_port;
static struct in_addr remote, silent;
static unsigned char *shared; /* a page that all threads write addresses to, with nothing mapped behind it */
static _Atomic int running, connected;

struct thread {
    pthread_t id;
    uint64_t random;
};

static uint32_t draw(struct thread *t) { /* splitmix64 */
    uint64_t z = t->random += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return (uint32_t)((z ^ z >> 31) >> 16);
}

static uint32_t below(struct thread *t, uint32_t limit) { return draw(t) % limit; }

#define PICK(t, ...) ((const int64_t[]){__VA_ARGS__}[below(t, sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t))])

static int64_t descriptor(struct thread *t) {
    int64_t fd = FIRST + below(t, DESCRIPTORS);
    if (below(t, 30) == 0) return PICK(t, -1, INT32_MIN, INT32_MAX, 1023, 1 << 20);
    if (below(t, 30) == 0) return fd | 1ll << (32 + below(t, 31));
    return fd;
}

static int64_t domain(struct thread *t) {
    return below(t, 10) ? PICK(t, AF_INET, AF_INET, AF_INET, AF_INET6, AF_INET6, AF_UNIX) : below(t, 48);
}

/* Writes an address to `to`; returns how long it is by rights. */
static int address(struct thread *t, unsigned char *to) {
    uint16_t port = htons((uint16_t)PICK(t, remote_port, forbidden_port, 0, 80, 9, draw(t)));
    in_addr_t v4[] = {remote.s_addr, remote.s_addr, silent.s_addr, htonl(0x7f000001), htonl(0x0a000202), htonl(0x0a000203),
        0, htonl(0xe0000001), htonl(0xffffffff), draw(t)};
    in_addr_t addr = v4[below(t, sizeof v4 / sizeof *v4)];
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = port, .sin_addr = {addr}};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = port, .sin6_scope_id = below(t, 4)};
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    int length;
    for (int i = 0; i < ADDRESS; i++) to[i] = (unsigned char)draw(t);
    switch (below(t, 8)) {
    case 0: case 1: case 2:
        memcpy(to, &in, length = sizeof in);
        break;
    case 3: /* ::ffff:a.b.c.d */
        in6.sin6_addr.s6_addr16[5] = 0xffff;
        in6.sin6_addr.s6_addr32[3] = addr;
        memcpy(to, &in6, length = sizeof in6);
        break;
    case 4: /* ::1, ::, and what else is in one byte */
        in6.sin6_addr.s6_addr[below(t, 16)] = (uint8_t)PICK(t, 0, 1, 0xfd, 0xfe, 0xff, draw(t));
        memcpy(to, &in6, length = sizeof in6);
        break;
    case 5:
        un.sun_path[1] = (char)('a' + below(t, 4));
        memcpy(to, &un, length = 4);
        break;
    case 6:
        memset(to, 0, length = 16);
        break;
    default:
        length = (int)below(t, ADDRESS);
    }
    if (below(t, 10) == 0) to[below(t, 32)] ^= (unsigned char)(1 << below(t, 8));
    return length;
}

/* Where an address is read from: the thread's own memory, memory others write to, or nowhere. */
static int64_t pointer(struct thread *t, unsigned char *own, int64_t *length) {
    *length = address(t, own);
    if (below(t, 12) == 0) *length = PICK(t, 0, 1, 2, 15, 24, 127, 128, 129, -1, INT32_MIN, INT32_MAX, *length | 1ll << 32);
    switch (below(t, 12)) {
    case 0: return PICK(t, 0, 1, -1, -4096, 0x7ffffffff000, (int64_t)1 << 63, (int64_t)draw(t) << 16);
    case 1: {
        int64_t at = (int64_t)shared + 4096 - below(t, 40);
        return at;
    }
    case 2: case 3:
        memcpy(shared, own, ADDRESS);
        return (int64_t)shared;
    default: return (int64_t)own;
    }
}

static void into_range(struct thread *t, int fd) {
    if (fd < 0) return;
    dup3(fd, FIRST + (int)below(t, DESCRIPTORS), below(t, 2) ? O_CLOEXEC : 0);
    if (fd >= FIRST + DESCRIPTORS) close(fd);
}

static void one_call(struct thread *t, unsigned char *own) {
    int64_t fd = descriptor(t), length, at;
    switch (below(t, 24)) {
    case 0: case 1: case 2:
        into_range(t, socket((int)domain(t), (int)PICK(t, SOCK_STREAM, SOCK_STREAM, SOCK_STREAM, SOCK_DGRAM, below(t, 11))
            | (below(t, 2) ? SOCK_NONBLOCK : 0), (int)(below(t, 8) ? 0 : PICK(t, 1, 6, 17, 132, 136, 255, 256, 262))));
        break;
    case 3: case 4: case 5: case 6: case 7: case 8:
        at = pointer(t, own, &length);
        if (syscall(SYS_connect, fd, at, length) == 0) connected++;
        break;
    case 9: case 10:
        at = pointer(t, own, &length);
        syscall(SYS_bind, fd, at, length);
        break;
    case 11:
        syscall(SYS_listen, fd, PICK(t, 0, 1, -1, INT32_MAX, (int64_t)draw(t) << 20));
        break;
    case 12: case 13:
        dup3((int)fd, FIRST + (int)below(t, DESCRIPTORS), 0);
        break;
    case 14:
        if ((int)fd >= FIRST) close((int)fd);
        break;
    case 15: case 16:
        for (int i = 0; i < 32; i++) own[i] = (unsigned char)(i < 4 || below(t, 2) ? draw(t) : 0);
        if (below(t, 2)) *(int *)own = (int)PICK(t, 0, 1, 7, -1);
        syscall(SYS_setsockopt, fd, PICK(t, SOL_SOCKET, IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP, draw(t)),
            (int64_t)below(t, 80), own, (int64_t)PICK(t, 4, 4, 4, 8, 16, below(t, 33)));
        break;
    case 17:
        into_range(t, epoll_create1(below(t, 2) ? EPOLL_CLOEXEC : 0));
        break;
    case 18: {
        struct epoll_event event = {.events = draw(t), .data = {.u64 = draw(t)}};
        syscall(SYS_epoll_ctl, fd, PICK(t, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, 0), descriptor(t), &event);
        break;
    }
    case 19: {
        struct epoll_event events[4];
        epoll_wait((int)fd, events, 4, 0);
        break;
    }
    case 20:
        at = pointer(t, own, &length);
        syscall(SYS_sendto, fd, own, (int64_t)below(t, ADDRESS), MSG_DONTWAIT | MSG_NOSIGNAL | (below(t, 2) ? MSG_FASTOPEN : 0),
            at, length);
        break;
    case 21:
        shutdown((int)fd, (int)below(t, 4));
        break;
    case 22:
        fcntl((int)fd, F_SETFL, (int)PICK(t, 0, 0, O_NONBLOCK, O_NONBLOCK | O_ASYNC));
        if (below(t, 8) == 0) fcntl((int)fd, F_SETOWN, getpid());
        break;
    default:
        if (below(t, 40)) {
            into_range(t, accept4((int)fd, NULL, NULL, SOCK_NONBLOCK));
        } else if (fork() == 0) {
            /* Calls of a process that may be gone before they are answered. */
            signal(SIGALRM, SIG_DFL);
            alarm(1);
            for (int i = 0; i < 10; i++) one_call(t, own);
            _exit(0);
        }
    }
}

static void *work(void *argument) {
    struct thread *t = argument;
    unsigned char own[ADDRESS];
    for (int i = 0; i < calls; i++) one_call(t, own);
    running--;
    return NULL;
}

static void woken(int signal) { (void)signal; }

int main(int argc, char **argv) {
    if (argc != 8) return 2;
    uint64_t seed = strtoull(argv[1], NULL, 10);
    int threads = atoi(argv[2]);
    calls = atoi(argv[3]);
    remote_port = atoi(argv[5]);
    forbidden_port = atoi(argv[6]);
    if (inet_pton(AF_INET, argv[4], &remote) != 1 || inet_pton(AF_INET, argv[7], &silent) != 1) return 2;

    /* Unix sockets by name stay in a directory of their own. */
    char directory[] = "/tmp/fuzz-XXXXXX";
    if (!mkdtemp(directory) || chdir(directory) || (chroot(".") && errno != EPERM)) return 2;
    shared = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED || mprotect(shared + 4096, 4096, PROT_NONE)) return 2;
    for (int number = 1; number < NSIG; number++)
        if (number != SIGSEGV && number != SIGABRT && number != SIGTERM) signal(number, SIG_IGN);
    struct sigaction wake = {.sa_handler = woken}; /* without SA_RESTART */
    sigaction(SIGUSR1, &wake, NULL);

    struct thread thread[threads];
    running = threads;
    for (int i = 0; i < threads; i++) {
        thread[i].random = seed * 1000003 + (uint64_t)i;
        if (pthread_create(&thread[i].id, NULL, work, &thread[i])) return 2;
    }
    /* Not joined yet, so each id is good. The pause is a pace, short enough for signals to come in the midst of calls. */
    while (running > 0) {
        for (int i = 0; i < threads; i++) pthread_kill(thread[i].id, SIGUSR1);
        nanosleep(&(struct timespec){.tv_nsec = 700000}, NULL);
    }
    for (int i = 0; i < threads; i++) pthread_join(thread[i].id, NULL);
    printf("connected %d\n", connected);
    return 0;
}
