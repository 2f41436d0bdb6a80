/* Has the supervisor wait for ever, if it waits.
 *
 *   lock MODE COUNT IP PORT
 *
 * There is a page whose fault nobody ever handles. For each of COUNT sockets,
 *   socket   one thread enters setsockopt(IP_OPTIONS), which copies its argument from there under the socket's lock;
 *            another thread then connects that socket;
 *   vsock    the same with an AF_VSOCK socket, SO_VM_SOCKETS_BUFFER_SIZE and listen;
 *   address  a thread connects a socket to an address that is there;
 *   listener the socket listens at IP and PORT, and it is a copy from before that whose lock is held as above.
 * Prints "held" once every lock is held, a line "connect: ERRNO" as each connect comes back (of a listener there is none),
 * and waits to be killed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static char *page;
static struct sockaddr_in known;
static const void *to = &known;
static int of_vsock;

static void die(const char *what) {
    perror(what);
    exit(2);
}

static void *hold(void *fd) {
    if (of_vsock) setsockopt((int)(long)fd, AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE, page, 8);
    else setsockopt((int)(long)fd, IPPROTO_IP, IP_OPTIONS, page, 4);
    return NULL;
}

static void *dial(void *fd) {
    int result = of_vsock ? listen((int)(long)fd, 1) : connect((int)(long)fd, to, sizeof known);
    printf("connect: %s\n", result == 0 ? "connected" : strerrorname_np(errno));
    fflush(stdout);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    int count = atoi(argv[2]), by_address = !strcmp(argv[1], "address"), listens = !strcmp(argv[1], "listener");
    of_vsock = !strcmp(argv[1], "vsock");
    known.sin_family = AF_INET;
    known.sin_port = htons((uint16_t)atoi(argv[4]));
    if (inet_pton(AF_INET, argv[3], &known.sin_addr) != 1) return 2;

    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device < 0) die("/dev/userfaultfd");
    int faults = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC);
    if (faults < 0) die("USERFAULTFD_IOC_NEW");
    struct uffdio_api api = {.api = UFFD_API};
    if (ioctl(faults, UFFDIO_API, &api) < 0) die("UFFDIO_API");
    page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct uffdio_register range = {.range = {(unsigned long)page, 4096}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    if (ioctl(faults, UFFDIO_REGISTER, &range) < 0) die("UFFDIO_REGISTER");

    if (by_address) to = page;

    long fds[count];
    for (int i = 0; i < count; i++) {
        pthread_t holder;
        struct uffd_msg fault;
        fds[i] = socket(of_vsock ? AF_VSOCK : AF_INET, SOCK_STREAM, 0);
        if (fds[i] < 0) die("socket");
        if (by_address) continue;
        if (listens) {
            int one = 1, listener = (int)fds[i];
            setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
            if (bind(listener, (void *)&known, sizeof known) < 0) die("bind");
            fds[i] = dup(listener);
            if (listen(listener, 1) < 0) die("listen");
        }
        pthread_create(&holder, NULL, hold, (void *)fds[i]);
        /* The fault is reported when the lock is held. */
        if (read(faults, &fault, sizeof fault) != sizeof fault) die("read");
    }
    puts("held");
    fflush(stdout);
    for (int i = 0; i < count && !listens; i++) {
        pthread_t dialler;
        pthread_create(&dialler, NULL, dial, (void *)fds[i]);
    }
    pause();
    return 0;
}
