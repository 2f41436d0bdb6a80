//! A namespace's rules as far as they concern connections: chains of steps, as nftables' own virtual machine has
//! them, with everything that is not understood made a doubt or an effect.

use std::collections::HashMap;

use super::xt::Match;

/// Registers hold 64 bytes; both ways of numbering them lead to offsets.
pub const REGISTERS: usize = 64;

pub type ChainId = usize;
pub type SetId = usize;

#[derive(Debug, Default)]
pub struct Ruleset {
    pub bases: Vec<Base>,
    pub chains: Vec<Vec<Rule>>,
    pub sets: Vec<Set>,
    /// There are more rules than anybody reads.
    pub too_many: bool,
}

impl Ruleset {
    /// Whether there is nothing that any packet could meet.
    pub fn is_empty(&self) -> bool {
        self.bases.is_empty() && !self.too_many
    }
}

/// Where a hook of the kernel enters the chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// NFPROTO_*.
    pub family: u8,
    pub hook: u32,
    pub priority: i32,
    /// Of type nat: sees the first packet of a connection only.
    pub nat: bool,
    /// The policy is drop.
    pub drops: bool,
    pub chain: ChainId,
}

pub type Rule = Vec<Step>;

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Load {
        from: Source,
        to: Place,
    },
    Constant {
        to: usize,
        bytes: Vec<u8>,
    },
    /// `to = from & mask ^ xor`.
    Mask {
        from: usize,
        to: usize,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    /// Something that is not known before the packet is there.
    Forget(Place),
    Compare {
        at: usize,
        is: Relation,
        with: Vec<u8>,
    },
    Range {
        at: usize,
        outside: bool,
        from: Vec<u8>,
        to: Vec<u8>,
    },
    Lookup {
        at: usize,
        set: SetId,
        outside: bool,
        verdict: bool,
    },
    Match(Match),
    /// May match or not: a rate limit, a quota, a match nobody here knows.
    Doubt,
    Verdict(Verdict),
}

/// Bytes of the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub at: usize,
    pub length: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Network {
        offset: usize,
    },
    Transport {
        offset: usize,
    },
    /// In the order in which the kernel has them: bytes of the packet, as `ethertype` in network byte order.
    Ethertype,
    Nfproto,
    L4proto,
    Mark,
    InputIndex,
    OutputIndex,
    InputName,
    OutputName,
    ConntrackState,
    ConntrackDirection,
    FibSaddr,
    FibDaddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    /// Accepted, from the address of the device it leaves by.
    Masquerade,
    /// Back to the caller.
    Return,
    Jump(ChainId),
    Goto(ChainId),
    /// Drop, reject, another address, another mark, a queue, a copy, a line in the log, and whatever is not known: the
    /// connection would not be the same, or somebody is to be told of it.
    Effect,
}

/// Elements of a set, or keys of a verdict map.
#[derive(Debug, PartialEq)]
pub enum Set {
    /// May contain anything: elements that come and go with packets or time, ranges in several dimensions.
    Opaque,
    Exact(HashMap<Vec<u8>, Option<Verdict>>),
    /// Sorted by key; each element holds until the next, those that begin a gap are marked.
    Intervals(Vec<Boundary>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Boundary {
    pub key: Vec<u8>,
    pub gap: bool,
    pub verdict: Option<Verdict>,
}
