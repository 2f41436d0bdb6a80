//! Which connections there are, in memory that outlives a forwarder, so that its successor can end them: the workspace
//! may be waiting for data on one, and would for ever.
//!
//! Kept are the ends only. Everything else about a connection died with its host socket. Beside them is where the
//! workspace is, which a server that never speaks by itself would not tell again.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};

use super::limits::MAX_FLOWS;
use crate::flow::FlowKey;
use crate::ports::Whereabouts;

/// Both addresses, then [`USED`] and both ports.
const RECORD_WORDS: usize = 5;
/// Before the records: the workspace's hardware address and its IPv4 address, each with [`USED`].
const HEAD_WORDS: usize = 2;
const USED: u64 = 1 << 63;

/// Words of the memory.
pub const WORDS: usize = HEAD_WORDS + MAX_FLOWS * RECORD_WORDS;

#[derive(Debug)]
pub struct Ledger {
    head: &'static [AtomicU64],
    whereabouts: Whereabouts,
    records: &'static [[AtomicU64; RECORD_WORDS]],
    /// No record from here on has been used.
    next: usize,
    free: Vec<usize>,
}

/// The place of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record(usize);

impl Ledger {
    /// Takes over the memory and what a predecessor left in it. Records that find no room are not kept: shorter memory
    /// than [`WORDS`] is a ledger that forgets.
    pub fn open(words: &'static [AtomicU64]) -> (Self, Vec<(Record, FlowKey)>) {
        let (head, records) = words.split_at(HEAD_WORDS.min(words.len()));
        let (records, _) = records.as_chunks();
        let left: Vec<_> =
            records.iter().enumerate().filter_map(|(index, record)| Some((Record(index), read(record)?))).collect();
        let next = left.last().map_or(0, |(record, _)| record.0 + 1);
        let used = |index: &usize| left.binary_search_by_key(index, |(record, _)| record.0).is_ok();
        let free = (0..next).filter(|index| !used(index)).collect();
        (Self { head, whereabouts: read_head(head), records, next, free }, left)
    }

    /// Where the workspace is, or was when a predecessor last knew.
    pub fn whereabouts(&self) -> Whereabouts {
        self.whereabouts
    }

    pub fn note_whereabouts(&mut self, whereabouts: Whereabouts) {
        if self.whereabouts == whereabouts {
            return;
        }
        self.whereabouts = whereabouts;
        let mac = whereabouts.mac.map_or(0, |[a, b, c, d, e, f]| USED | u64::from_be_bytes([0, 0, a, b, c, d, e, f]));
        let address = whereabouts.address.map_or(0, |address| USED | u64::from(address.to_bits()));
        for (word, value) in self.head.iter().zip([mac, address]) {
            word.store(value, Ordering::Release);
        }
    }

    pub fn note(&mut self, key: &FlowKey) -> Option<Record> {
        let index = self.free.pop().unwrap_or(self.next);
        let record = self.records.get(index)?;
        self.next = self.next.max(index + 1);
        let ([a, b], [c, d]) = (address_words(key.guest), address_words(key.remote));
        let ports = USED | u64::from(key.guest_port) << 16 | u64::from(key.remote_port);
        for (word, value) in record.iter().zip([a, b, c, d, ports]) {
            word.store(value, Ordering::Release);
        }
        Some(Record(index))
    }

    pub fn forget(&mut self, record: Record) {
        if let Some([.., ports]) = self.records.get(record.0) {
            ports.store(0, Ordering::Release);
            self.free.push(record.0);
        }
    }
}

fn read_head(head: &[AtomicU64]) -> Whereabouts {
    let [mac, address] = head else { return Whereabouts::default() };
    let used = |word: &AtomicU64| Some(word.load(Ordering::Acquire)).filter(|word| word & USED != 0);
    let mac = used(mac).map(|word| {
        let [_, _, mac @ ..] = word.to_be_bytes();
        mac
    });
    let address = used(address).map(|word| {
        let [.., a, b, c, d] = word.to_be_bytes();
        [a, b, c, d].into()
    });
    Whereabouts { mac, address }
}

fn read(record: &[AtomicU64; RECORD_WORDS]) -> Option<FlowKey> {
    let [a, b, c, d, ports] = record.each_ref().map(|word| word.load(Ordering::Acquire));
    let [.., p, q, r, s] = ports.to_be_bytes();
    (ports & USED != 0).then(|| FlowKey {
        guest: address([a, b]),
        guest_port: u16::from_be_bytes([p, q]),
        remote: address([c, d]),
        remote_port: u16::from_be_bytes([r, s]),
    })
}

fn address_words(address: IpAddr) -> [u64; 2] {
    let bits = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
    .to_bits()
    .to_be_bytes();
    let (words, _) = bits.as_chunks::<8>();
    [0, 1].map(|index| words.get(index).copied().map_or(0, u64::from_be_bytes))
}

fn address([high, low]: [u64; 2]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low))).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(words: usize) -> &'static [AtomicU64] {
        (0..words).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak()
    }

    fn key(guest_port: u16, remote: &str) -> FlowKey {
        let remote: IpAddr = remote.parse().unwrap();
        let guest = if remote.is_ipv4() { "10.0.2.100" } else { "fd00::100" };
        FlowKey { guest: guest.parse().unwrap(), guest_port, remote, remote_port: 443 }
    }

    #[test]
    fn connections_are_found_by_the_next_forwarder() {
        let words = memory(WORDS);
        let (mut ledger, left) = Ledger::open(words);
        assert_eq!((left, ledger.whereabouts()), (Vec::new(), Whereabouts::default()));
        let somewhere = Whereabouts { mac: Some([2, 0, 0, 0, 0, 1]), address: Some([10, 0, 2, 15].into()) };
        ledger.note_whereabouts(somewhere);
        let keys = [key(1, "192.0.2.1"), key(65535, "2001:db8::1"), key(3, "192.0.2.3")];
        let records = keys.map(|key| ledger.note(&key).unwrap());
        ledger.forget(records[0]);

        let (mut next, left) = Ledger::open(words);
        assert_eq!(left, [(records[1], keys[1]), (records[2], keys[2])]);
        assert_eq!(next.whereabouts(), somewhere);
        next.note_whereabouts(Whereabouts { address: None, ..somewhere });
        assert_eq!(Ledger::open(words).0.whereabouts(), Whereabouts { address: None, ..somewhere });
        assert_eq!(next.note(&keys[0]), Some(records[0]), "the free one first");
        assert_ne!(next.note(&key(4, "192.0.2.4")).unwrap(), records[1], "never one that is left");
    }

    #[test]
    fn what_finds_no_room_is_not_kept() {
        let (mut none, _) = Ledger::open(&[]);
        assert_eq!(none.note(&key(1, "192.0.2.1")), None);
        let (mut one, _) = Ledger::open(memory(HEAD_WORDS + RECORD_WORDS));
        let record = one.note(&key(1, "192.0.2.1")).unwrap();
        assert_eq!(one.note(&key(2, "192.0.2.1")), None);
        one.forget(record);
        assert_eq!(one.note(&key(2, "192.0.2.1")), Some(record));
    }
}
