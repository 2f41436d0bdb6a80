//! Which rare socket options anybody in the workspace has ever set.
//!
//! The filter stops the setting of those ([`rare_options`]); it is noted here before it goes on, so that a socket on which
//! one was set is never read without it. A note stays: sockets are passed on and outlive whoever set something. Notes are
//! in the ledger's memory, so a supervisor that takes over has them.
//!
//! Limits: what was set on a socket outside of the workspace's filter is not known here: on a socket of the workspace's
//! namespace that the host's user made with nsenter(1) and passed in, or by a BPF program of the host's root.

use std::sync::atomic::{AtomicU64, Ordering};

use sidestep_seccomp_profile::rare_options::{OptionName, RARE};

/// A set of options, a bit for each rare one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionSet(u64);

const _: () = assert!(RARE.len() < 63, "a bit each, and two that mean more");

impl OptionSet {
    pub const ALL: Self = Self(u64::MAX);
    /// What is to be looked at whether anybody has set it or not.
    pub const ALWAYS: Self = Self(1 << 63);

    /// Of one option; of one that is not rare, [`Self::ALWAYS`].
    pub fn of(option: OptionName) -> Self {
        option.rare().map_or(Self::ALWAYS, |bit| Self(1 << bit))
    }

    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// A word of memory that outlives a supervisor.
pub struct Touched(&'static AtomicU64);

impl Touched {
    pub const fn new(word: &'static AtomicU64) -> Self {
        Self(word)
    }

    /// Before the option is set. Of one that is newer than this program nobody knows what it changes.
    pub fn note(&self, option: OptionName) {
        let set = if option.is_unknown() { OptionSet::ALL } else { OptionSet::of(option) };
        self.0.fetch_or(set.0, Ordering::AcqRel);
    }

    /// What a socket of the workspace may have that untouched ones do not.
    pub fn to_be_read(&self) -> OptionSet {
        OptionSet(self.0.load(Ordering::Acquire)).with(OptionSet::ALWAYS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_stay() {
        let word: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(0)));
        let mark = OptionName { level: libc::SOL_SOCKET, name: libc::SO_MARK };
        let unknown = OptionName { level: libc::IPPROTO_TCP, name: 1000 };
        let [first, successor] = [Touched::new(word), Touched::new(word)];
        assert!(!first.to_be_read().meets(OptionSet::of(mark)));
        assert!(first.to_be_read().meets(OptionSet::ALWAYS));
        first.note(mark);
        assert!(successor.to_be_read().meets(OptionSet::of(mark)));
        assert_ne!(successor.to_be_read(), OptionSet::ALL);
        successor.note(unknown);
        assert_eq!(first.to_be_read(), OptionSet::ALL);
    }
}
