/* Ways to connect(2) that the filter might not see as such.
 *
 *   doors FORBIDDEN_PORT SILENT_IP
 *
 * Each way is taken by a process of its own with an unconnected socket of the host, towards the host's loopback. Prints a
 * line for each: "connected", the errno, or "killed".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static struct sockaddr_in *to; /* in the low 4 GB, where a 32-bit call can name it */
static int fd;

static void die(const char *what) {
    perror(what);
    exit(200);
}

static int answer(long result) { return result == 0 ? 0 : errno; }

static int plain_connect(void) { return answer(connect(fd, (struct sockaddr *)to, sizeof *to)); }

#ifdef __x86_64__
static int int80(long number, long a, void *b, long c) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "r8", "r9", "r10", "r11", "memory");
    return (int)-result;
}

static int connect_32(void) { return int80(362, fd, to, sizeof *to); }
static int bind_32(void) { return int80(361, fd, to, sizeof *to); }
static int listen_32(void) { return int80(363, fd, (void *)1, 0); }

static int socketcall_32(void) {
    uint32_t *arguments = (uint32_t *)(to + 1);
    arguments[0] = (uint32_t)fd;
    arguments[1] = (uint32_t)(uintptr_t)to;
    arguments[2] = sizeof *to;
    return int80(102, 3, arguments, 0);
}

static int connect_x32(void) { return answer(syscall(0x40000000 | SYS_connect, fd, to, sizeof *to)); }

/* A tracer turns the child's harmless call into connect, where `stop` says that it is about to be made. */
static int rewritten(int by_filter);
static int rewritten_by_filter(void) { return rewritten(1); }
static int rewritten_at_entry(void) { return rewritten(0); }
#endif

/* A filter of our own, in a user namespace of our own, for one system call. */
static long filter(unsigned flags, unsigned number, unsigned action) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof code / sizeof *code, .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) die("no_new_privs");
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

static void nested(void) {
    if (unshare(CLONE_NEWUSER)) die("unshare");
}

static int listener_of_its_own(void) {
    nested();
    if (filter(SECCOMP_FILTER_FLAG_NEW_LISTENER, SYS_connect, SECCOMP_RET_USER_NOTIF) >= 0) return 0;
    return errno;
}

static int notification_without_listener(void) {
    nested();
    if (filter(0, SYS_connect, SECCOMP_RET_USER_NOTIF)) die("filter");
    return plain_connect();
}

static int allowed_by_its_own_filter(void) {
    nested();
    if (filter(0, SYS_connect, SECCOMP_RET_ALLOW)) die("filter");
    return plain_connect();
}

static int logged_by_its_own_filter(void) {
    nested();
    if (filter(0, SYS_connect, SECCOMP_RET_LOG)) die("filter");
    return plain_connect();
}

#ifdef __x86_64__
static int rewritten(int by_filter) {
    nested();
    pid_t child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        if (by_filter && filter(0, SYS_getppid, SECCOMP_RET_TRACE)) die("filter");
        raise(SIGSTOP);
        _exit(answer(syscall(SYS_getppid)));
    }
    int status, want = by_filter ? SIGTRAP | PTRACE_EVENT_SECCOMP << 8 : SIGTRAP | 0x80;
    waitpid(child, &status, 0);
    ptrace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_TRACESECCOMP | PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
    for (int turned = 0; !WIFEXITED(status) && !WIFSIGNALED(status);) {
        struct user_regs_struct registers;
        if (!turned && status >> 8 == want) {
            if (ptrace(PTRACE_GETREGS, child, 0, &registers)) die("PTRACE_GETREGS");
            if (registers.orig_rax == SYS_getppid) {
                registers.orig_rax = SYS_connect;
                registers.rdi = (unsigned)fd;
                registers.rsi = (uintptr_t)to;
                registers.rdx = sizeof *to;
                if (ptrace(PTRACE_SETREGS, child, 0, &registers)) die("PTRACE_SETREGS");
                turned = 1;
            }
        }
        ptrace(by_filter || turned ? PTRACE_CONT : PTRACE_SYSCALL, child, 0, 0);
        waitpid(child, &status, 0);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 201;
}
#endif

static void take(const char *name, int (*way)(void)) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) _exit(way());
    int status;
    waitpid(child, &status, 0);
    if (WIFSIGNALED(status)) printf("%s: killed\n", name);
    else if (WEXITSTATUS(status) == 0) printf("%s: connected\n", name);
    else if (strerrorname_np(WEXITSTATUS(status))) printf("%s: %s\n", name, strerrorname_np(WEXITSTATUS(status)));
    else printf("%s: went wrong\n", name);
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    int low = 0;
#ifdef MAP_32BIT
    low = MAP_32BIT;
#endif
    to = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | low, -1, 0);
    if (to == MAP_FAILED) die("mmap");

    fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    to->sin_family = AF_INET;
    to->sin_port = htons(9);
    if (inet_pton(AF_INET, argv[2], &to->sin_addr) != 1) return 2;
    if (connect(fd, (struct sockaddr *)to, sizeof *to) == 0 || errno != EINPROGRESS) die("connect to nobody");
    if (shutdown(fd, SHUT_RDWR)) die("shutdown");
    fcntl(fd, F_SETFL, 0);
    to->sin_port = htons((uint16_t)atoi(argv[1]));
    to->sin_addr.s_addr = htonl(INADDR_LOOPBACK);

    take("listener of its own", listener_of_its_own);
    take("notification without listener", notification_without_listener);
    take("allowed by its own filter", allowed_by_its_own_filter);
    take("logged by its own filter", logged_by_its_own_filter);
#ifdef __x86_64__
    take("rewritten by a filter's tracer", rewritten_by_filter);
    take("rewritten at entry", rewritten_at_entry);
    take("x32 connect", connect_x32);
    take("32-bit connect", connect_32);
    take("32-bit socketcall", socketcall_32);
    take("32-bit bind", bind_32);
    take("32-bit listen", listen_32);
#endif
    return 0;
}
