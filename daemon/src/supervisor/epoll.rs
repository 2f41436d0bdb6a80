//! Registrations in epolls, kept over a swap.
//!
//! An epoll knows a file and a number. After a swap the number means another file: the registration stays with the old
//! one and the program never hears of its connection. nginx's upstreams, Boost.Asio and Java's selectors register
//! before they connect. So before a swap the tracee's epolls are asked for the socket, and after it what they had is
//! registered again, for the new socket under the same number; the program's own changes and deletions then fit.
//!
//! Which epolls a process has is learned by looking through its descriptors once a thread, and again after an
//! epoll_create (which stops for that alone); asking one takes a kcmp(2), 2 µs. A process without epolls pays nothing.
//!
//! Limits: epolls of other processes that share the socket, an epoll received from another process after the look, and
//! registrations under another number (a dup of the socket) stay with the old file.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Mutex;

use dashmap::DashMap;

use crate::sys::epoll::{self, Interest, Target};

use super::tracee::{Tracee, TraceeFd, process_of};

/// Descriptors of a process that are looked through; one with more is not worth holding its connects up for.
const MAX_LOOKED_AT: usize = 16_384;
/// Processes whose epoll_creates are counted; past it all counts begin anew, and everybody looks once more.
const MAX_PROCESSES: usize = 4096;
/// Registrations under one number: old files whose number was reused while a copy kept them alive.
const MAX_UNDER_ONE_NUMBER: u32 = 4;

/// How many epolls each process has made, by process number.
#[derive(Default)]
pub struct Epolls {
    created: DashMap<u32, u64>,
}

/// The epolls of one thread's process, as last seen by that thread.
#[derive(Default)]
pub struct KnownEpolls(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// The process's count at the time of the look; None: never looked.
    as_of: Option<u64>,
    numbers: Vec<RawFd>,
}

/// A socket's registration in one epoll.
pub struct Registration {
    /// The epoll's number in the tracee, and a copy of it.
    number: RawFd,
    epoll: OwnedFd,
    interest: Interest,
}

impl Registration {
    /// What another supervisor needs to make it again.
    pub fn note(&self) -> (RawFd, Interest) {
        (self.number, self.interest)
    }
}

impl Epolls {
    /// Notes an epoll_create that is about to happen.
    pub fn created_by(&self, tid: u32) {
        let Some(process) = process_of(tid) else { return };
        if self.created.len() >= MAX_PROCESSES {
            self.created.clear();
        }
        *self.created.entry(process).or_default() += 1;
    }

    /// Where `socket`, which stands under `number` there, is registered.
    pub fn registrations(&self, tracee: &Tracee, number: TraceeFd, socket: BorrowedFd<'_>) -> Vec<Registration> {
        let created = tracee.process().and_then(|process| self.created.get(&process).map(|count| *count));
        let Ok(mut known) = tracee.epolls.0.lock() else { return Vec::new() };
        if known.as_of != Some(created.unwrap_or(0)) {
            *known = Known { as_of: Some(created.unwrap_or(0)), numbers: epoll_numbers(tracee.tid) };
        }
        let mut registrations = Vec::new();
        known.numbers.retain(|&epoll| match is_registered(socket, tracee.tid, epoll, number) {
            Ok(false) => true,
            Ok(true) => {
                registrations.extend(registration(tracee, epoll, number, socket));
                true
            }
            // Closed, or something else stands there now.
            Err(_) => false,
        });
        registrations
    }
}

/// Registers `new` where `old` was. What cannot be done is logged: the socket is in its place already.
pub fn transfer(registrations: &[Registration], number: TraceeFd, old: BorrowedFd<'_>, new: BorrowedFd<'_>) {
    if registrations.is_empty() {
        return;
    }
    let epolls: Vec<_> = registrations.iter().map(|r| (r.epoll.as_fd(), r.interest)).collect();
    if let Err(error) = epoll::replace(number.0, old, new, &epolls) {
        tracing::debug!(fd = number.0, %error, "an epoll of the workspace does not watch its new socket");
    }
}

/// Registers `socket` as a predecessor had noted, which died before it could or before the exchange itself: then the
/// socket still is registered.
pub fn restore(noted: &[(RawFd, Interest)], tracee: &Tracee, number: TraceeFd, socket: BorrowedFd<'_>) {
    let copies: Vec<_> =
        noted.iter().filter_map(|&(epoll, interest)| Some((tracee.copy_descriptor(epoll).ok()?, interest))).collect();
    let epolls: Vec<_> = copies.iter().map(|(epoll, interest)| (epoll.as_fd(), *interest)).collect();
    if let Err(error) = epoll::add(number.0, socket, &epolls) {
        tracing::debug!(fd = number.0, %error, "an epoll of the workspace does not watch its new socket");
    }
}

fn is_registered(socket: BorrowedFd<'_>, tid: u32, epoll: RawFd, number: TraceeFd) -> io::Result<bool> {
    for offset in 0..MAX_UNDER_ONE_NUMBER {
        match epoll::target(socket, tid, epoll, number.0, offset)? {
            Target::Same => return Ok(true),
            Target::Other => {}
            Target::None => break,
        }
    }
    Ok(false)
}

/// The numbers of a process's epolls.
fn epoll_numbers(tid: u32) -> Vec<RawFd> {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{tid}/fd")) else { return Vec::new() };
    let is_epoll = |entry: &std::fs::DirEntry| {
        std::fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == "anon_inode:[eventpoll]")
    };
    let entries = descriptors.take(MAX_LOOKED_AT).filter_map(Result::ok).filter(is_epoll);
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// What the epoll has for this socket, and a copy of the epoll to change it by.
fn registration(tracee: &Tracee, epoll: RawFd, number: TraceeFd, socket: BorrowedFd<'_>) -> Option<Registration> {
    let inode = rustix::fs::fstat(socket).ok()?.st_ino;
    let fdinfo = std::fs::read_to_string(format!("/proc/{}/fdinfo/{epoll}", tracee.tid)).ok()?;
    let interest = fdinfo.lines().find_map(|line| parse_target(line, number.0, inode))?;
    Some(Registration { number: epoll, epoll: tracee.copy_descriptor(epoll).ok()?, interest })
}

/// A line of an epoll's fdinfo (proc_pid_fdinfo(5)): `tfd: 5 events: 19 data: 5  pos:0 ino:61af sdev:7`, the number in
/// decimal and the rest in hexadecimal.
fn parse_target(line: &str, number: RawFd, inode: u64) -> Option<Interest> {
    let mut words = line.strip_prefix("tfd:")?.split_whitespace();
    let target: RawFd = words.next()?.parse().ok()?;
    let events = words.nth(1)?;
    let data = words.nth(1)?;
    let target_inode = words.find_map(|word| word.strip_prefix("ino:"))?;
    if target != number || u64::from_str_radix(target_inode, 16).ok()? != inode {
        return None;
    }
    Some(Interest { events: u32::from_str_radix(events, 16).ok()?, data: u64::from_str_radix(data, 16).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_fdinfo() {
        let line = "tfd:        5 events: 8000201d data: ffffffff00000005  pos:0 ino:61af sdev:7";
        let interest = Interest { events: 0x8000_201d, data: 0xffff_ffff_0000_0005 };
        assert_eq!(parse_target(line, 5, 0x61af), Some(interest));
        for (number, inode) in [(6, 0x61af), (5, 0x61ae)] {
            assert_eq!(parse_target(line, number, inode), None);
        }
        for line in ["", "pos:\t0", "tfd:", "tfd: 5", "tfd: 5 events: zz data: 5 pos:0 ino:61af"] {
            assert_eq!(parse_target(line, 5, 0x61af), None, "{line}");
        }
    }

    #[test]
    fn own_epolls_are_found() {
        use nix::sys::epoll::{Epoll, EpollCreateFlags};
        use std::os::fd::AsRawFd;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        assert!(epoll_numbers(std::process::id()).contains(&epoll.0.as_raw_fd()));
    }
}
