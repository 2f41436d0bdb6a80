/* Takes the workspace's first process over: PR_SET_PDEATHSIG, which ends it with its parent, is switched off in it. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>

#define INIT 1
#define SYSCALL_INSTRUCTION 2

static void check(const char *what, long result)
{
    if (result < 0) {
        printf("%s: %s\n", what, strerror(errno));
        exit(1);
    }
}

int main(void)
{
    struct user_regs_struct asleep, call;
    check("seize", ptrace(PTRACE_SEIZE, INIT, 0, 0));
    check("interrupt", ptrace(PTRACE_INTERRUPT, INIT, 0, 0));
    check("wait", waitpid(INIT, NULL, __WALL));
    check("registers", ptrace(PTRACE_GETREGS, INIT, 0, &asleep));
    call = asleep;
    call.rip -= SYSCALL_INSTRUCTION;
    call.rax = SYS_prctl;
    call.orig_rax = -1;
    call.rdi = PR_SET_PDEATHSIG;
    call.rsi = 0;
    check("set", ptrace(PTRACE_SETREGS, INIT, 0, &call));
    check("step", ptrace(PTRACE_SINGLESTEP, INIT, 0, 0));
    check("wait", waitpid(INIT, NULL, __WALL));
    check("registers", ptrace(PTRACE_GETREGS, INIT, 0, &call));
    check("prctl", (long)call.rax);
    /* Asleep again in what it was asleep in. */
    asleep.rip -= SYSCALL_INSTRUCTION;
    asleep.rax = asleep.orig_rax;
    asleep.orig_rax = -1;
    check("set", ptrace(PTRACE_SETREGS, INIT, 0, &asleep));
    check("detach", ptrace(PTRACE_DETACH, INIT, 0, 0));
    puts("done");
    return 0;
}
