//! One stopped system call as the kernel reports it: numbers only, nothing of the tracee's memory.

use std::sync::atomic::{AtomicU64, Ordering};

use sidestep_seccomp_profile::rare_options::OptionName;
use sidestep_seccomp_profile::syscalls::Stopped;

use crate::sys::listener::NOTIFICATION_WORDS;

/// struct seccomp_notif, the parts that are used. `tid` is the calling thread as this process's pid namespace numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notification {
    pub id: u64,
    pub tid: u32,
    /// None: a call this filter does not stop.
    pub call: Option<Stopped>,
    pub arguments: [u64; 3],
}

impl Notification {
    /// Layout of struct seccomp_notif in 64-bit words: id; pid, flags; nr, arch; instruction pointer; six arguments.
    pub fn from_words(words: &[AtomicU64; NOTIFICATION_WORDS]) -> Self {
        let word = |index: usize| words[index].load(Ordering::Acquire);
        let low = |index: usize| {
            let [a, b, c, d, ..] = word(index).to_ne_bytes();
            [a, b, c, d]
        };
        Self {
            id: word(0),
            tid: u32::from_ne_bytes(low(1)),
            call: Stopped::from_number(i32::from_ne_bytes(low(2))),
            arguments: [word(4), word(5), word(6)],
        }
    }

    /// The same call with the same arguments: what a thread makes again when a signal took it out of this one.
    pub fn repeats(&self, earlier: &Self) -> bool {
        self.call == earlier.call && self.arguments == earlier.arguments
    }

    /// An epoll is about to be made: of interest, but the kernel's to do.
    pub fn creates_epoll(&self) -> bool {
        match self.call {
            #[cfg(target_arch = "x86_64")]
            Some(Stopped::EpollCreate) => true,
            Some(Stopped::EpollCreate1) => true,
            Some(Stopped::Connect | Stopped::Bind | Stopped::Listen | Stopped::Setsockopt) | None => false,
        }
    }

    /// An option is about to be set that few programs set: of interest, but the kernel's to do.
    pub fn sets_option(&self) -> Option<OptionName> {
        (self.call == Some(Stopped::Setsockopt))
            .then(|| OptionName { level: self.int_argument(1), name: self.int_argument(2) })
    }

    /// Landlock rules over TCP connect and bind, so whatever these become when left to the kernel, it is not TCP.
    pub fn is_seen_by_landlock(&self) -> bool {
        matches!(self.call, Some(Stopped::Connect | Stopped::Bind))
    }

    /// An argument that the kernel takes as an int: the low half, whatever the caller left in the high one.
    pub fn int_argument(&self, index: usize) -> i32 {
        let [a, b, c, d, ..] = self.arguments.get(index).copied().unwrap_or(0).to_ne_bytes();
        i32::from_ne_bytes([a, b, c, d])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_the_kernel_writes_them() {
        let kernel =
            [9, 0x0000_0001_0000_04d2, 0xc000_003e_0000_002a, 0x1000, 0xdead_beef_0000_0007, 0x7fff_0000, 16, 0, 0, 0];
        let notification = Notification::from_words(&kernel.map(AtomicU64::new));
        assert_eq!((notification.id, notification.tid), (9, 1234));
        assert_eq!(notification.call, Some(Stopped::Connect));
        assert_eq!(notification.int_argument(0), 7);
        assert_eq!(notification.arguments[1], 0x7fff_0000);
    }
}
