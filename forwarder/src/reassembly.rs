//! Datagrams the workspace sent in IP fragments (RFC 791 3.2, RFC 8200 4.5), put together again. TCP never comes this
//! way, so this is for UDP and pings larger than the MTU, and rare.
//!
//! Overlapping fragments make a datagram invalid (RFC 5722) and it is forgotten. At most [`MAX_PARTIAL`] datagrams are
//! incomplete at once; the oldest gives way.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use crate::timer::Time;
use crate::wire::ip::header_for_quote;
use crate::wire::{Fragment, IpPacket};

/// Datagrams being put together: 1 MB of memory at the most.
const MAX_PARTIAL: usize = 16;
/// A local sender's fragments come together or not at all.
const LIFETIME_MS: u64 = 2_000;
/// Pieces of one datagram: 64 KB at the smallest MTU is 55.
const MAX_PIECES: usize = 64;
const MAX_PAYLOAD: usize = 65_535;

/// Which datagram a fragment belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    id: u32,
}

#[derive(Debug)]
struct Partial {
    key: Key,
    /// Hop limit and TOS of the first fragment.
    marks: (u8, u8),
    since: Time,
    bytes: Vec<u8>,
    /// Sorted pieces received, from and to.
    pieces: Vec<(usize, usize)>,
    /// Known once the last fragment is here.
    total: Option<usize>,
}

/// A whole datagram: an IP header for errors to quote, then the payload.
#[derive(Debug)]
pub struct Whole {
    bytes: Vec<u8>,
    header_len: usize,
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    marks: (u8, u8),
}

/// The incomplete datagrams.
#[derive(Debug, Default)]
pub struct Reassembly {
    partial: Vec<Partial>,
    /// Datagrams given up since this was last taken.
    pub given_up: u64,
}

impl Whole {
    pub fn packet(&self) -> IpPacket<'_> {
        IpPacket {
            src: self.src,
            dst: self.dst,
            protocol: self.protocol,
            hop_limit: self.marks.0,
            tos: self.marks.1,
            dont_fragment: false,
            fragment: None,
            payload: self.bytes.get(self.header_len..).unwrap_or_default(),
            bytes: &self.bytes,
        }
    }
}

impl Reassembly {
    /// Takes in one fragment; returns the datagram it completes.
    pub fn fragment_from_tap(&mut self, now: Time, ip: &IpPacket<'_>, fragment: Fragment) -> Option<Whole> {
        let before = self.partial.len();
        self.partial.retain(|partial| now.since(partial.since) < LIFETIME_MS);
        self.given_up += (before - self.partial.len()) as u64;
        let key = Key { src: ip.src, dst: ip.dst, protocol: ip.protocol, id: fragment.id };
        let at = match self.partial.iter().position(|partial| partial.key == key) {
            Some(at) => at,
            None => {
                if self.partial.len() >= MAX_PARTIAL {
                    self.partial.remove(0);
                    self.given_up += 1;
                }
                let marks = (ip.hop_limit, ip.tos);
                let (bytes, pieces) = (Vec::new(), Vec::new());
                self.partial.push(Partial { key, marks, since: now, bytes, pieces, total: None });
                self.partial.len() - 1
            }
        };
        let partial = self.partial.get_mut(at)?;
        if fragment.offset == 0 {
            partial.marks = (ip.hop_limit, ip.tos);
        }
        let is_valid = partial.add(fragment, ip.payload);
        if !is_valid {
            self.partial.remove(at);
            self.given_up += 1;
            return None;
        }
        if !partial.is_complete() {
            return None;
        }
        Some(self.partial.remove(at).finish())
    }
}

impl Partial {
    /// False: the pieces contradict each other, or are too many.
    fn add(&mut self, fragment: Fragment, data: &[u8]) -> bool {
        let (from, to) = (usize::from(fragment.offset), usize::from(fragment.offset) + data.len());
        let is_whole_units = !fragment.more || data.len().is_multiple_of(8);
        if data.is_empty() || to > MAX_PAYLOAD || !is_whole_units || self.pieces.len() >= MAX_PIECES {
            return false;
        }
        let index = self.pieces.partition_point(|piece| piece.0 < from);
        let overlaps_left = index.checked_sub(1).and_then(|i| self.pieces.get(i)).is_some_and(|piece| piece.1 > from);
        let overlaps_right = self.pieces.get(index).is_some_and(|piece| piece.0 < to);
        let ends_twice = !fragment.more && self.total.is_some();
        let past_end = self.total.is_some_and(|total| to > total);
        let end_inside = !fragment.more && self.pieces.last().is_some_and(|piece| piece.1 > to);
        if overlaps_left || overlaps_right || ends_twice || past_end || end_inside {
            return false;
        }
        if self.bytes.len() < to {
            self.bytes.resize(to, 0);
        }
        if let Some(place) = self.bytes.get_mut(from..to) {
            place.copy_from_slice(data);
        }
        self.pieces.insert(index, (from, to));
        if !fragment.more {
            self.total = Some(to);
        }
        true
    }

    fn is_complete(&self) -> bool {
        let received: usize = self.pieces.iter().map(|piece| piece.1 - piece.0).sum();
        self.total == Some(received)
    }

    fn finish(self) -> Whole {
        let Key { src, dst, protocol, .. } = self.key;
        let mut bytes = header_for_quote(src, dst, protocol, self.bytes.len());
        let header_len = bytes.len();
        bytes.extend_from_slice(&self.bytes);
        Whole { bytes, header_len, src, dst, protocol, marks: self.marks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::PROTOCOL_UDP;

    fn packet(payload: &[u8]) -> IpPacket<'_> {
        IpPacket {
            src: [10, 0, 2, 100].into(),
            dst: [192, 0, 2, 1].into(),
            protocol: PROTOCOL_UDP,
            hop_limit: 64,
            tos: 0,
            dont_fragment: false,
            fragment: None,
            payload,
            bytes: payload,
        }
    }

    /// Feeds (offset, len, more) pieces of counting bytes; whether and what they complete.
    fn feed(reassembly: &mut Reassembly, id: u32, pieces: &[(u16, usize, bool)]) -> Option<Vec<u8>> {
        pieces.iter().fold(None, |_, &(offset, len, more)| {
            let data: Vec<u8> = (0..len).map(|n| u8::try_from((usize::from(offset) + n) % 251).unwrap()).collect();
            let whole = reassembly.fragment_from_tap(Time(0), &packet(&data), Fragment { id, offset, more });
            whole.map(|whole| whole.packet().payload.to_vec())
        })
    }

    #[test]
    fn pieces_in_any_order() {
        let want: Vec<u8> = (0..30).collect();
        let orders: [&[(u16, usize, bool)]; 3] = [
            &[(0, 8, true), (8, 16, true), (24, 6, false)],
            &[(24, 6, false), (8, 16, true), (0, 8, true)],
            &[(8, 16, true), (0, 8, true), (24, 6, false)],
        ];
        for order in orders {
            assert_eq!(feed(&mut Reassembly::default(), 1, order), Some(want.clone()), "{order:?}");
        }
    }

    #[test]
    fn contradictions_are_forgotten() {
        let orders: [&[(u16, usize, bool)]; 6] = [
            &[(0, 16, true), (8, 8, true), (16, 4, false)],
            &[(0, 16, true), (0, 16, true), (16, 4, false)],
            &[(16, 4, false), (16, 8, true), (0, 16, true)],
            &[(0, 7, true), (7, 4, false)],
            &[(8, 8, false), (0, 8, false)],
            &[(65_528, 16, false), (0, 8, true)],
        ];
        for order in orders {
            assert_eq!(feed(&mut Reassembly::default(), 1, order), None, "{order:?}");
        }
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_goes_first() {
        let mut reassembly = Reassembly::default();
        for id in 0..100 {
            assert_eq!(feed(&mut reassembly, id, &[(0, 8, true)]), None);
        }
        assert_eq!(reassembly.partial.len(), MAX_PARTIAL);
        assert_eq!(feed(&mut reassembly, 0, &[(8, 8, false)]), None);
        assert!(feed(&mut reassembly, 99, &[(8, 8, false)]).is_some());
        reassembly.fragment_from_tap(Time(9_000), &packet(&[0; 8]), Fragment { id: 7, offset: 0, more: true });
        assert_eq!(reassembly.partial.len(), 1);
    }
}
