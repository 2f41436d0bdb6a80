//! Epolls of another process: what is registered in one, and moving a registration to another file (epoll(7), kcmp(2)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::sched::{CloneFlags, unshare};

/// linux/kcmp.h: does a file equal the target of an epoll?
const KCMP_EPOLL_TFD: i32 = 7;

/// struct kcmp_epoll_slot: the epoll, and in it the `offset`th registration under number `target`.
#[repr(C)]
struct KcmpEpollSlot {
    epoll: u32,
    target: u32,
    offset: u32,
}

/// What an epoll has under a descriptor number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The file asked about.
    Same,
    Other,
    /// Nothing, or nothing at this offset.
    None,
}

/// A registration: the events with their flags and the data, as epoll_ctl(2) took them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    pub events: u32,
    pub data: u64,
}

/// Asks whether `file` is what thread `tid` has registered in its epoll number `epoll` under its number `target`.
/// EBADF or EINVAL: that number is no epoll (any longer).
pub fn target(file: BorrowedFd<'_>, tid: u32, epoll: RawFd, target: RawFd, offset: u32) -> io::Result<Target> {
    let unsigned = |number: RawFd| u32::try_from(number).map_err(|_| io::Error::from_raw_os_error(libc::EBADF));
    let slot = KcmpEpollSlot { epoll: unsigned(epoll)?, target: unsigned(target)?, offset };
    // SAFETY: KCMP_EPOLL_TFD reads one struct kcmp_epoll_slot, alive here; the rest are numbers.
    let order = unsafe {
        libc::syscall(libc::SYS_kcmp, std::process::id(), tid, KCMP_EPOLL_TFD, file.as_raw_fd(), &raw const slot)
    };
    match order {
        0 => Ok(Target::Same),
        1.. => Ok(Target::Other),
        _ => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ENOENT) => Ok(Target::None),
            e => Err(e),
        },
    }
}

/// Replaces `old` by `new` in `epolls`, both as registered under `number`, which need not be ours.
///
/// A registration is named by file and number, so both have to stand under that number for a moment: in a thread with a
/// descriptor table of its own, which ends with the call.
pub fn replace(
    number: RawFd,
    old: BorrowedFd<'_>,
    new: BorrowedFd<'_>,
    epolls: &[(BorrowedFd<'_>, Interest)],
) -> io::Result<()> {
    in_own_table(|| {
        let (old, new) = (away_from(number, old)?, away_from(number, new)?);
        for &(epoll, interest) in epolls {
            let epoll = away_from(number, epoll)?;
            stand_under(number, old)?;
            control(epoll, libc::EPOLL_CTL_DEL, number, interest)?;
            stand_under(number, new)?;
            control(epoll, libc::EPOLL_CTL_ADD, number, interest)?;
        }
        Ok(())
    })
}

/// Registers `file` in `epolls` under `number`; where it is registered, it stays as it is.
pub fn add(number: RawFd, file: BorrowedFd<'_>, epolls: &[(BorrowedFd<'_>, Interest)]) -> io::Result<()> {
    in_own_table(|| {
        let file = away_from(number, file)?;
        for &(epoll, interest) in epolls {
            let epoll = away_from(number, epoll)?;
            stand_under(number, file)?;
            match control(epoll, libc::EPOLL_CTL_ADD, number, interest) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                added => added?,
            }
        }
        Ok(())
    })
}

/// Runs `work` on a thread whose descriptor table is a copy that ends with it.
fn in_own_table(work: impl FnOnce() -> io::Result<()> + Send) -> io::Result<()> {
    let unshared = || {
        unshare(CloneFlags::CLONE_FILES)?;
        work()
    };
    std::thread::scope(|scope| scope.spawn(unshared).join())
        .unwrap_or_else(|_| Err(io::Error::other("the thread that moves registrations died")))
}

/// A number other than `number` for this file; the copy, if one is needed, goes with the thread's table.
fn away_from(number: RawFd, file: BorrowedFd<'_>) -> io::Result<RawFd> {
    if file.as_raw_fd() != number {
        return Ok(file.as_raw_fd());
    }
    // SAFETY: takes numbers only; the new descriptor lives in this thread's own table.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    check(copy)?;
    Ok(copy)
}

fn stand_under(number: RawFd, file: RawFd) -> io::Result<()> {
    // SAFETY: the table is this thread's own copy, so whatever stood under `number` stays open for its owner.
    check(unsafe { libc::dup3(file, number, libc::O_CLOEXEC) })
}

fn control(epoll: RawFd, operation: i32, number: RawFd, interest: Interest) -> io::Result<()> {
    let mut event = libc::epoll_event { events: interest.events, u64: interest.data };
    // SAFETY: reads one struct epoll_event, alive here.
    check(unsafe { libc::epoll_ctl(epoll, operation, number, &raw mut event) })
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::UnixStream;

    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

    #[test]
    fn a_registration_moves_and_can_be_changed_afterwards() {
        let (old, _old_peer) = UnixStream::pair().unwrap();
        let (new, mut new_peer) = UnixStream::pair().unwrap();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll.add(&old, EpollEvent::new(flags, 7)).unwrap();

        // What ADDFD does to the tracee: its number means the new file, the old one lives on in a copy.
        let number = old.as_raw_fd();
        let copy: OwnedFd = old.as_fd().try_clone_to_owned().unwrap();
        let tid = std::process::id();
        assert_eq!(target(copy.as_fd(), tid, epoll.0.as_raw_fd(), number, 0).unwrap(), Target::Same);
        assert_eq!(target(new.as_fd(), tid, epoll.0.as_raw_fd(), number, 0).unwrap(), Target::Other);
        assert_eq!(target(copy.as_fd(), tid, epoll.0.as_raw_fd(), number, 1).unwrap(), Target::None);
        assert!(target(copy.as_fd(), tid, copy.as_raw_fd(), number, 0).is_err(), "a socket is no epoll");
        let mut old = OwnedFd::from(old);
        nix::unistd::dup2(&new, &mut old).unwrap();

        let events = u32::try_from(flags.bits()).unwrap_or(0x8000_0001);
        replace(number, copy.as_fd(), old.as_fd(), &[(epoll.0.as_fd(), Interest { events, data: 7 })]).unwrap();
        drop(copy);

        new_peer.write_all(b"x").unwrap();
        let mut fired = [EpollEvent::empty()];
        assert_eq!(epoll.wait(&mut fired, EpollTimeout::from(1000u16)).unwrap(), 1);
        assert_eq!(fired[0].data(), 7);
        epoll.modify(&old, &mut EpollEvent::new(EpollFlags::EPOLLOUT, 8)).unwrap();
        epoll.delete(&old).unwrap();
    }
}
