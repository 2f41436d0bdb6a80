//! The filter as BPF, built with libseccomp from the lists in [`crate::syscalls`].
//!
//! Every call of another architecture (32-bit, x32) kills the process: such a call could name a connect by a number the
//! filter does not know. Calls that the lists do not name are allowed without looking at arguments, which the kernel
//! remembers per call number (seccomp's action cache), so they cost next to nothing.

use std::io::{Read, Seek};

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::rare_options::{OptionName, RARE, UNKNOWN};
use crate::syscalls::{Argument, REFUSED, Stopped, TYPING};

/// What a kernel runs beside its own kind of programs.
const ALSO: &[ScmpArch] = if cfg!(target_arch = "x86_64") {
    &[ScmpArch::X86, ScmpArch::X32]
} else if cfg!(target_arch = "aarch64") {
    &[ScmpArch::Arm]
} else {
    &[]
};

/// A compiled filter. Build it before fork: libseccomp allocates.
#[derive(Clone)]
pub struct Program {
    pub(crate) instructions: Vec<libc::sock_filter>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("libseccomp: {0}")]
    Libseccomp(#[from] libseccomp::error::SeccompError),
    #[error("exporting the filter: {0}")]
    Export(#[from] std::io::Error),
    #[error("a filter of {0} bytes is no whole number of instructions")]
    Size(usize),
}

/// Builds the filter a workspace under the bypass runs with.
pub fn build() -> Result<Program, Error> {
    let mut context = ScmpFilterContext::new(ScmpAction::Allow)?;
    context.set_act_badarch(ScmpAction::KillProcess)?;
    for &call in Stopped::ALL {
        match call {
            Stopped::Setsockopt => stop_rare_options(&mut context)?,
            _ => context.add_rule(ScmpAction::Notify, syscall(call.number())).map(drop)?,
        }
    }
    for refused in REFUSED.into_iter().chain(TYPING) {
        add(&mut context, ScmpAction::Errno(refused.errno), refused.number, refused.when)?;
    }
    // Compared first: of the calls whose arguments are looked at, the one that programs make most.
    context.set_syscall_priority(syscall(libc::SYS_setsockopt), u8::MAX)?;
    export(&context)
}

/// Builds the filter of a workspace without the bypass, for programs of every architecture that runs here.
pub fn build_typing() -> Result<Program, Error> {
    let mut context = ScmpFilterContext::new(ScmpAction::Allow)?;
    context.set_act_badarch(ScmpAction::Allow)?;
    for &architecture in ALSO {
        context.add_arch(architecture)?;
    }
    for refused in TYPING {
        add(&mut context, ScmpAction::Errno(refused.errno), refused.number, refused.when)?;
    }
    export(&context)
}

fn stop_rare_options(context: &mut ScmpFilterContext) -> Result<(), Error> {
    for option in RARE {
        add(context, ScmpAction::Notify, libc::SYS_setsockopt, &option.arguments())?;
    }
    for OptionName { level, name } in UNKNOWN {
        // All 64 bits are compared: what is in the high half makes a call stop that need not, no other way round.
        let from = ScmpArgCompare::new(2, ScmpCompareOp::GreaterEqual, u64::from(name.cast_unsigned()));
        let conditions = [condition(&Argument::is_int(1, level)), from];
        context.add_rule_conditional(ScmpAction::Notify, syscall(libc::SYS_setsockopt), &conditions)?;
    }
    Ok(())
}

/// One rule: what happens to a call whose arguments are all as said.
pub(crate) fn add(
    context: &mut ScmpFilterContext,
    action: ScmpAction,
    number: libc::c_long,
    when: &[Argument],
) -> Result<(), Error> {
    let conditions: Vec<_> = when.iter().map(condition).collect();
    context.add_rule_conditional(action, syscall(number), &conditions)?;
    Ok(())
}

fn condition(argument: &Argument) -> ScmpArgCompare {
    ScmpArgCompare::new(argument.index, ScmpCompareOp::MaskedEqual(argument.mask), argument.value)
}

/// System call numbers are small positive numbers on every architecture.
fn syscall(number: libc::c_long) -> ScmpSyscall {
    ScmpSyscall::from(i32::try_from(number).unwrap_or(-1))
}

pub(crate) fn export(context: &ScmpFilterContext) -> Result<Program, Error> {
    let mut file = std::fs::File::from(memfd_create(c"filter", MFdFlags::MFD_CLOEXEC).map_err(std::io::Error::from)?);
    context.export_bpf(&file)?;
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let (instructions, rest) = bytes.as_chunks::<{ size_of::<libc::sock_filter>() }>();
    if !rest.is_empty() {
        return Err(Error::Size(bytes.len()));
    }
    Ok(Program { instructions: instructions.iter().map(instruction).collect() })
}

/// struct sock_filter, linux/filter.h: code, jump if true, jump if false, operand.
fn instruction(bytes: &[u8; 8]) -> libc::sock_filter {
    let [code0, code1, jt, jf, k0, k1, k2, k3] = *bytes;
    libc::sock_filter { code: u16::from_ne_bytes([code0, code1]), jt, jf, k: u32::from_ne_bytes([k0, k1, k2, k3]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::load;
    use nix::errno::Errno;
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, send, sendto, setsockopt, socket, sockopt,
    };
    use std::os::fd::AsRawFd;

    /// Runs `call` in a thread of its own under the filter, so that the test runner stays without one.
    fn under_filter<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
        let program = build().unwrap();
        std::thread::spawn(move || {
            nix::sys::prctl::set_no_new_privs().unwrap();
            let _listener = load(&program).unwrap();
            call()
        })
        .join()
        .unwrap()
    }

    #[test]
    fn fast_open_and_io_uring_are_refused_and_the_rest_is_not() {
        let errnos = under_filter(|| {
            let stream = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
            let fast_open = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
            let address = SockaddrIn::new(127, 0, 0, 1, 1);
            let with = sendto(stream.as_raw_fd(), b"x", &address, fast_open).unwrap_err();
            let without = send(stream.as_raw_fd(), b"x", MsgFlags::MSG_NOSIGNAL).unwrap_err();
            (with, without)
        });
        assert_eq!(errnos, (Errno::EOPNOTSUPP, Errno::EPIPE));
    }

    #[test]
    fn no_upper_layer_protocol() {
        let errno = under_filter(|| {
            let stream = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
            setsockopt(&stream, sockopt::TcpUlp::default(), b"mptcp").unwrap_err()
        });
        assert_eq!(errno, Errno::ENOENT);
    }

    #[test]
    fn one_listener_a_thread() {
        let second = under_filter(|| load(&build().unwrap()).map(drop).map_err(|e| e.raw_os_error()));
        assert_eq!(second, Err(Some(libc::EBUSY)));
    }

    #[test]
    fn the_program_is_small() {
        let length = build().unwrap().instructions.len();
        assert!((10..256).contains(&length), "{length} instructions");
    }
}
