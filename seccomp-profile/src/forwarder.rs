//! What the forwarder may ask of the kernel once it is set up: an allow-list, with the reason for each call.
//!
//! Two answers for the rest. What only code that was brought in would try ([`FATAL`]) kills the process: the monitor says
//! so in one line and starts another. Anything else gets ENOSYS, for it may be a later C library's new way of doing an
//! old thing: told that this kernel does not have it, it takes the old way, where a filter that kills would end every
//! workspace with the library's update.

use libc::{c_int, c_long};
use libseccomp::{ScmpAction, ScmpFilterContext};

use crate::filter::{Error, Program, add, export};
use crate::syscalls::Argument;

/// Allowed with any arguments. The kernel knows these without running the filter (seccomp's action cache, Linux 5.11).
const FREELY: &[c_long] = &[
    // Frames of the TAP; the end of the monitor's channel.
    libc::SYS_read,
    // Frames to the TAP; log lines.
    libc::SYS_write,
    // Log lines in parts.
    libc::SYS_writev,
    // The next place in the file of captured frames, which is a ring.
    libc::SYS_lseek,
    // Flows end.
    libc::SYS_close,
    // The loop's wait, and who is waited for.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_epoll_ctl,
    // The wait for the monitor alone, without a TAP.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    // A wait that was stopped (^Z, a debugger) and goes on.
    libc::SYS_restart_syscall,
    // Flows to the host; where a datagram's port is kept, and whether an address is the host's own.
    libc::SYS_connect,
    libc::SYS_bind,
    // Clients of published ports, whose listening sockets come from outside; it listens at none of its own.
    libc::SYS_accept4,
    // Clients of the host's loopback: from socket to pipe to socket, without a copy here.
    libc::SYS_splice,
    // Bytes and datagrams of flows; errors of their queues; messages and descriptors of the monitor.
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    // A half-close.
    libc::SYS_shutdown,
    // How a connect ended; what the host's TCP knows of a flow.
    libc::SYS_getsockopt,
    // Which address and port a socket was given.
    libc::SYS_getsockname,
    // The allocator; what it maps is looked at below.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Locks of the standard library and the logger, where somebody else holds them.
    libc::SYS_futex,
    // Time, where the machine's clock cannot be read without a call.
    libc::SYS_clock_gettime,
    libc::SYS_gettimeofday,
    // Seeds of hash tables.
    libc::SYS_getrandom,
    // The ends: an ordinary one, and a panic's (with tgkill below); the handler of a stack that ran over.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
];

/// No library of ours makes these by itself.
const FATAL: &[c_long] = &[
    // Other programs and processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    // Ways back to a file system or to another namespace.
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_open_by_handle_at,
    libc::SYS_setns,
    libc::SYS_unshare,
    // Where kernels break.
    libc::SYS_bpf,
    libc::SYS_userfaultfd,
    libc::SYS_perf_event_open,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
];

/// linux/sockios.h; libc has it for other systems only.
const SIOCATMARK: libc::Ioctl = 0x8905;

/// socket(2)'s type without its flags.
const TYPE: u64 = 0xf;

/// Allowed with these arguments.
fn with_arguments(own_pid: c_int) -> Vec<(c_long, Vec<Argument>)> {
    let int = Argument::is_int;
    let mut rules = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        // TCP, UDP and ping of both families. No Unix, netlink, packet or raw socket, no MPTCP, SCTP or SMC.
        let kinds = [
            (libc::SOCK_STREAM, 0),
            (libc::SOCK_STREAM, libc::IPPROTO_TCP),
            (libc::SOCK_DGRAM, 0),
            (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
            (libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
            (libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6),
        ];
        for (kind, protocol) in kinds {
            let kind = Argument { index: 1, mask: TYPE, value: u64::from(kind.unsigned_abs()) };
            rules.push((libc::SYS_socket, vec![int(0, family), kind, int(2, protocol)]));
        }
    }
    // Options of these sockets. Nothing else's: not of netfilter's tables, packet sockets or TLS.
    for level in [libc::SOL_SOCKET, libc::IPPROTO_IP, libc::IPPROTO_IPV6, libc::IPPROTO_UDP] {
        rules.push((libc::SYS_setsockopt, vec![int(1, level)]));
    }
    // What is there leaves at once; over a loopback it is not paced.
    for option in [libc::TCP_NODELAY, libc::TCP_CONGESTION] {
        rules.push((libc::SYS_setsockopt, vec![int(1, libc::IPPROTO_TCP), int(2, option)]));
    }
    // Memory of its own that holds no code.
    let anonymous = Argument::has_bits(3, libc::MAP_ANONYMOUS);
    rules.push((libc::SYS_mmap, vec![Argument::has_none_of(2, libc::PROT_EXEC), anonymous]));
    // Pipes for splice(2). None for kernel notifications (O_NOTIFICATION_PIPE).
    rules.push((libc::SYS_pipe2, vec![int(1, libc::O_CLOEXEC | libc::O_NONBLOCK)]));
    // Copies of descriptors, and O_NONBLOCK on those that it is sent; pipes that hold more.
    for command in [libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_GETFL, libc::F_SETFL, libc::F_SETPIPE_SZ] {
        rules.push((libc::SYS_fcntl, vec![int(1, command)]));
    }
    // O_NONBLOCK as the standard library sets it; whether urgent data is next. Nothing of terminals (standard error may be
    // one) or of the TAP.
    for request in [libc::FIONBIO, SIOCATMARK] {
        rules.push((libc::SYS_ioctl, vec![Argument { index: 1, mask: u64::MAX, value: request }]));
    }
    // abort(3): a signal to itself only.
    rules.push((libc::SYS_tgkill, vec![int(0, own_pid)]));
    rules
}

/// Builds the filter of the forwarder whose process id is `own_pid`.
pub fn build(own_pid: c_int) -> Result<Program, Error> {
    let mut context = ScmpFilterContext::new(ScmpAction::Errno(libc::ENOSYS))?;
    context.set_act_badarch(ScmpAction::KillProcess)?;
    // A binary tree: calls that are looked at should not be compared with every other first.
    context.set_ctl_optimize(2)?;
    for &number in FATAL {
        add(&mut context, ScmpAction::KillProcess, number, &[])?;
    }
    for &number in FREELY {
        add(&mut context, ScmpAction::Allow, number, &[])?;
    }
    for (number, when) in with_arguments(own_pid) {
        add(&mut context, ScmpAction::Allow, number, &when)?;
    }
    export(&context)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::load_unmitigated;
    use nix::errno::Errno;
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt};

    #[test]
    fn no_call_is_on_both_lists() {
        for number in FATAL {
            assert!(!FREELY.contains(number), "{number}");
        }
        build(1).unwrap();
    }

    /// What the program says about a call: a filter machine of what libseccomp's programs are made of.
    fn verdict(program: &Program, number: c_long, arguments: [u64; 6]) -> u32 {
        const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
        const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
        const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
        let architecture: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
        // struct seccomp_data: number, architecture, instruction pointer, arguments (low half first).
        let mut data = vec![u32::try_from(number).unwrap(), architecture, 0, 0];
        let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap();
        data.extend(arguments.iter().flat_map(|&argument| [half(argument), half(argument >> 32)]));
        let (mut accumulator, mut at) = (0_u32, 0);
        loop {
            let instruction = program.instructions[at];
            at += 1;
            let operand = instruction.k;
            let mut jump = |taken: bool| at += usize::from(if taken { instruction.jt } else { instruction.jf });
            match u32::from(instruction.code) {
                LOAD => accumulator = data[operand as usize / 4],
                AND => accumulator &= operand,
                RETURN => return operand,
                code if code == libc::BPF_JMP | libc::BPF_JA => at += operand as usize,
                code if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => jump(accumulator == operand),
                code if code == libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K => jump(accumulator > operand),
                code if code == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K => jump(accumulator >= operand),
                code => panic!("an instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn calls_by_their_arguments() {
        const PID: c_int = 4711;
        let int = |value: c_int| u64::from(value.unsigned_abs());
        let program = build(PID).unwrap();
        let allow = libc::SECCOMP_RET_ALLOW;
        let refused = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
        let own = int(PID);
        let (anonymous, read_write) =
            (int(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS), int(libc::PROT_READ | libc::PROT_WRITE));
        let stream = int(libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
        let cases: &[(c_long, [u64; 6], u32)] = &[
            (libc::SYS_read, [0; 6], allow),
            (libc::SYS_openat, [0; 6], refused),
            (libc::SYS_clone, [int(libc::CLONE_VM | libc::CLONE_THREAD), 0, 0, 0, 0, 0], refused),
            (libc::SYS_clone3, [0; 6], refused),
            (libc::SYS_mprotect, [0, 0, int(libc::PROT_EXEC), 0, 0, 0], refused),
            (libc::SYS_execve, [0; 6], libc::SECCOMP_RET_KILL_PROCESS),
            (libc::SYS_kill, [own, 9, 0, 0, 0, 0], libc::SECCOMP_RET_KILL_PROCESS),
            (libc::SYS_tgkill, [own, own, 6, 0, 0, 0], allow),
            (libc::SYS_tgkill, [own + 1, own + 1, 6, 0, 0, 0], refused),
            (libc::SYS_mmap, [0, 4096, read_write, anonymous, u64::MAX, 0], allow),
            (libc::SYS_mmap, [0, 4096, read_write | int(libc::PROT_EXEC), anonymous, u64::MAX, 0], refused),
            (libc::SYS_mmap, [0, 4096, read_write, int(libc::MAP_SHARED), 3, 0], refused),
            (libc::SYS_socket, [int(libc::AF_INET6), stream, 0, 0, 0, 0], allow),
            // What is above the int, the kernel does not see either.
            (libc::SYS_socket, [int(libc::AF_INET6) | 1 << 32, stream, 0, 0, 0, 0], allow),
            (libc::SYS_socket, [int(libc::AF_INET), stream, int(libc::IPPROTO_MPTCP), 0, 0, 0], refused),
            (libc::SYS_socket, [int(libc::AF_UNIX), stream, 0, 0, 0, 0], refused),
            (libc::SYS_socket, [int(libc::AF_INET), int(libc::SOCK_RAW), int(libc::IPPROTO_UDP), 0, 0, 0], refused),
            (libc::SYS_ioctl, [2, libc::TIOCSTI, 0, 0, 0, 0], refused),
            (libc::SYS_ioctl, [3, SIOCATMARK, 0, 0, 0, 0], allow),
            (libc::SYS_fcntl, [3, int(libc::F_SETFL), 0, 0, 0, 0], allow),
            (libc::SYS_fcntl, [3, int(libc::F_SETOWN), 1, 0, 0, 0], refused),
            (libc::SYS_fcntl, [3, int(libc::F_SETPIPE_SZ), 1 << 20, 0, 0, 0], allow),
            (libc::SYS_pipe2, [0, int(libc::O_CLOEXEC | libc::O_NONBLOCK), 0, 0, 0, 0], allow),
            (libc::SYS_pipe2, [0, int(libc::O_EXCL), 0, 0, 0, 0], refused),
            (libc::SYS_accept4, [0; 6], allow),
            (libc::SYS_listen, [3, 1, 0, 0, 0, 0], refused),
            (libc::SYS_vmsplice, [0; 6], refused),
            (libc::SYS_setsockopt, [3, int(libc::IPPROTO_TCP), int(libc::TCP_ULP), 0, 0, 0], refused),
            (libc::SYS_setsockopt, [3, int(libc::IPPROTO_TCP), int(libc::TCP_NODELAY), 0, 0, 0], allow),
            (libc::SYS_setsockopt, [3, int(libc::SOL_SOCKET), int(libc::SO_LINGER), 0, 0, 0], allow),
        ];
        for &(number, arguments, want) in cases {
            assert_eq!(verdict(&program, number, arguments), want, "call {number} with {arguments:x?}");
        }
    }

    /// On the kernel, in a thread of its own, so that the test runner stays without the filter.
    #[test]
    fn sockets_and_options_by_their_arguments() {
        let pid = nix::unistd::getpid().as_raw();
        std::thread::spawn(move || {
            let program = build(pid).unwrap();
            nix::sys::prctl::set_no_new_privs().unwrap();
            load_unmitigated(&program).unwrap();
            let open = |family, kind, protocol: Option<SockProtocol>| {
                socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, protocol).map(drop)
            };
            for family in [AddressFamily::Inet, AddressFamily::Inet6] {
                assert_eq!(open(family, SockType::Stream, None), Ok(()));
                assert_eq!(open(family, SockType::Datagram, Some(SockProtocol::Udp)), Ok(()));
                assert_eq!(open(family, SockType::Raw, Some(SockProtocol::Icmp)), Err(Errno::ENOSYS));
            }
            for family in [AddressFamily::Unix, AddressFamily::Netlink, AddressFamily::Packet, AddressFamily::Vsock] {
                assert_eq!(open(family, SockType::Datagram, None), Err(Errno::ENOSYS), "{family:?}");
            }
            let stream = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
            assert_eq!(setsockopt(&stream, sockopt::TcpNoDelay, &true), Ok(()));
            assert_eq!(setsockopt(&stream, sockopt::TcpUlp::default(), b"tls"), Err(Errno::ENOSYS));
        })
        .join()
        .unwrap();
    }
}
