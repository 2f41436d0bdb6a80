//! The registers of nftables' virtual machine, where each bit has a value or is not known.

use std::cmp::Ordering;

use super::packet::{IFNAMSIZ, Packet, Port, Stage};
use super::ruleset::{Place, REGISTERS, Relation, Set, Source, Step, Verdict};
use super::walk::Truth;

const WORD: usize = 4;

pub struct Registers {
    value: [u8; REGISTERS],
    known: [u8; REGISTERS],
}

impl Default for Registers {
    fn default() -> Self {
        Self { value: [0; REGISTERS], known: [0; REGISTERS] }
    }
}

impl Registers {
    /// A step that reads or compares; others change nothing and may match.
    pub fn step(&mut self, step: &Step, packet: &Packet) -> Truth {
        match step {
            &Step::Load { from, to } => self.load(from, to, packet),
            Step::Constant { to, bytes } => self.put(*to, bytes),
            Step::Mask { from, to, mask, xor } => self.mask(*from, *to, mask, xor),
            &Step::Forget(place) => {
                self.forget(place);
                // A packet that lacks what is to be read does not match.
                return Truth::Maybe;
            }
            Step::Compare { at, is, with } => return self.compare(*at, *is, with),
            Step::Range { at, outside, from, to } => {
                let below = self.order(*at, from).map(Ordering::is_lt);
                let above = self.order(*at, to).map(Ordering::is_gt);
                return match (below, above) {
                    (Some(below), Some(above)) => Truth::from((below || above) == *outside),
                    _ => Truth::Maybe,
                };
            }
            _ => return Truth::Maybe,
        }
        Truth::Yes
    }

    fn load(&mut self, from: Source, to: Place, packet: &Packet) {
        match from {
            Source::Network { offset } => self.copy(to, offset, &packet.network.value, &packet.network.known),
            Source::Transport { offset } => self.copy(to, offset, &packet.transport.value, &packet.transport.known),
            Source::Ethertype => self.put(to.at, &packet.ethertype().to_be_bytes()),
            Source::Nfproto => self.put(to.at, &[packet.nfproto()]),
            Source::L4proto => self.put(to.at, &[packet.l4proto]),
            // A socket with SO_MARK stays in place before anybody asks here, and setting a mark is an effect.
            Source::Mark => self.put(to.at, &[0; WORD]),
            Source::InputIndex => self.put_known(to, index(packet.input)),
            Source::OutputIndex => self.put_known(to, index(packet.output)),
            Source::InputName => self.put_known(to, name(packet.input)),
            Source::OutputName => self.put_known(to, name(packet.output)),
            Source::ConntrackState => self.put(to.at, &packet.conntrack_state().to_ne_bytes()),
            Source::ConntrackDirection => self.put(to.at, &[u8::from(packet.stage == Stage::Reply)]),
            Source::FibSaddr => self.put_known(to, packet.address_type(true).map(word)),
            Source::FibDaddr => self.put_known(to, packet.address_type(false).map(word)),
        }
    }

    /// As the kernel stores it: what remains of the last word is 0.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        let padded = bytes.len().next_multiple_of(WORD);
        let (Some(value), Some(known)) = (self.value.get_mut(at..at + padded), self.known.get_mut(at..at + padded))
        else {
            return;
        };
        value.fill(0);
        known.fill(0xff);
        if let Some(value) = value.get_mut(..bytes.len()) {
            value.copy_from_slice(bytes);
        }
    }

    fn put_known<const N: usize>(&mut self, to: Place, bytes: Option<[u8; N]>) {
        match bytes {
            Some(bytes) => self.put(to.at, &bytes),
            None => self.forget(to),
        }
    }

    fn copy(&mut self, to: Place, offset: usize, value: &[u8], known: &[u8]) {
        self.put(to.at, &[0; REGISTERS][..to.length.min(REGISTERS)]);
        for n in 0..to.length {
            let from = (value.get(offset + n), known.get(offset + n));
            let (Some(into), Some(knows)) = (self.value.get_mut(to.at + n), self.known.get_mut(to.at + n)) else {
                return;
            };
            (*into, *knows) = match from {
                (Some(&value), Some(&known)) => (value, known),
                _ => (0, 0),
            };
        }
    }

    fn forget(&mut self, place: Place) {
        let end = place.at.saturating_add(place.length).next_multiple_of(WORD).min(REGISTERS);
        if let Some(known) = self.known.get_mut(place.at..end) {
            known.fill(0);
        }
    }

    fn mask(&mut self, from: usize, to: usize, mask: &[u8], xor: &[u8]) {
        for (n, (mask, xor)) in mask.iter().zip(xor).enumerate() {
            let (Some(&value), Some(&known)) = (self.value.get(from + n), self.known.get(from + n)) else { return };
            let (Some(into), Some(knows)) = (self.value.get_mut(to + n), self.known.get_mut(to + n)) else { return };
            *into = value & mask ^ xor;
            // What the mask clears is known whatever it was.
            *knows = known | !mask;
        }
    }

    fn bytes(&self, at: usize, length: usize) -> Option<(&[u8], &[u8])> {
        Some((self.value.get(at..at + length)?, self.known.get(at..at + length)?))
    }

    /// The bytes, where every bit of them is known.
    fn whole(&self, at: usize, length: usize) -> Option<&[u8]> {
        let (value, known) = self.bytes(at, length)?;
        known.iter().all(|&known| known == 0xff).then_some(value)
    }

    /// memcmp(), as the kernel compares.
    fn order(&self, at: usize, with: &[u8]) -> Option<Ordering> {
        self.whole(at, with.len()).map(|value| value.cmp(with))
    }

    fn compare(&self, at: usize, is: Relation, with: &[u8]) -> Truth {
        if matches!(is, Relation::Equal | Relation::Unequal) {
            return self.equal(at, with).xor(is == Relation::Unequal);
        }
        let Some(order) = self.order(at, with) else { return Truth::Maybe };
        Truth::from(match is {
            Relation::Less => order.is_lt(),
            Relation::LessOrEqual => order.is_le(),
            Relation::Greater => order.is_gt(),
            Relation::GreaterOrEqual => order.is_ge(),
            Relation::Equal | Relation::Unequal => return Truth::Maybe,
        })
    }

    fn equal(&self, at: usize, with: &[u8]) -> Truth {
        let Some((value, known)) = self.bytes(at, with.len()) else { return Truth::Maybe };
        let differs = value.iter().zip(known).zip(with).any(|((value, known), with)| (value ^ with) & known != 0);
        if differs {
            Truth::No
        } else if known.iter().all(|&known| known == 0xff) {
            Truth::Yes
        } else {
            Truth::Maybe
        }
    }

    pub fn is_in(&self, set: &Set, at: usize) -> Truth {
        match self.find(set, at) {
            Some(found) => Truth::from(found.is_some()),
            None => Truth::Maybe,
        }
    }

    /// None: not known. Some(None): not an element. Otherwise an element, and its verdict in a verdict map.
    pub fn find(&self, set: &Set, at: usize) -> Option<Option<Option<Verdict>>> {
        let length = set.key_length()?;
        let Some(length) = length else { return Some(None) };
        let key = self.whole(at, length)?;
        Some(match set {
            Set::Opaque => return None,
            Set::Exact(elements) => elements.get(key).copied(),
            Set::Intervals(boundaries) => {
                let above = boundaries.partition_point(|boundary| boundary.key.as_slice() <= key);
                let below = above.checked_sub(1).and_then(|last| boundaries.get(last));
                below.filter(|boundary| !boundary.gap).map(|boundary| boundary.verdict)
            }
        })
    }
}

impl Set {
    /// None: not known. Some(None): there are no elements.
    fn key_length(&self) -> Option<Option<usize>> {
        Some(match self {
            Self::Opaque => return None,
            Self::Exact(elements) => elements.keys().next().map(Vec::len),
            Self::Intervals(boundaries) => boundaries.first().map(|boundary| boundary.key.len()),
        })
    }

    /// Of every element of a verdict map; None: not known.
    pub fn verdicts(&self) -> Option<Vec<Option<Verdict>>> {
        match self {
            Self::Opaque => None,
            Self::Exact(elements) => Some(elements.values().copied().collect()),
            Self::Intervals(boundaries) => {
                Some(boundaries.iter().filter(|boundary| !boundary.gap).map(|boundary| boundary.verdict).collect())
            }
        }
    }
}

fn index(port: Port) -> Option<[u8; WORD]> {
    match port {
        Port::None => Some([0; WORD]),
        Port::Is(device) => Some(device.index.to_ne_bytes()),
        Port::Unknown => None,
    }
}

fn name(port: Port) -> Option<[u8; IFNAMSIZ]> {
    match port {
        Port::None => Some([0; IFNAMSIZ]),
        Port::Is(device) => Some(device.name),
        Port::Unknown => None,
    }
}

fn word(byte: u8) -> [u8; WORD] {
    u32::from(byte).to_ne_bytes()
}
