//! Flows: their keys, and the table that holds them. A slab gives each flow a small stable number for epoll and the
//! timer wheel, a hash map finds it by key. A generation in the number makes an event for a flow that has gone since
//! miss, instead of reaching the flow that took its place.
#![forbid(unsafe_code)]

pub mod list;

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Addresses and ports of one flow, as the workspace names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    pub guest: IpAddr,
    pub guest_port: u16,
    pub remote: IpAddr,
    pub remote_port: u16,
}

impl FlowKey {
    pub fn remote_addr(&self) -> SocketAddr {
        SocketAddr::new(self.remote, self.remote_port)
    }
}

/// Which engine a flow belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    Tcp,
    Udp,
    Ping,
    Dns,
    /// A published port.
    Port,
    /// A client of a published UDP port.
    PortClient,
    /// Both ends of a spliced connection: the client's, and the one inside.
    SplicedClient,
    SplicedInside,
    Shadow,
}

/// A flow's number, as epoll and the timers carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowId {
    pub kind: Kind,
    pub index: u32,
    /// 24 bits: how often the slot has been used.
    pub generation: u32,
}

const GENERATION_MASK: u32 = 0x00ff_ffff;

impl FlowId {
    pub fn to_bits(self) -> u64 {
        let kind: u64 = match self.kind {
            Kind::Tcp => 1,
            Kind::Udp => 2,
            Kind::Ping => 3,
            Kind::Dns => 4,
            Kind::Port => 5,
            Kind::PortClient => 6,
            Kind::SplicedClient => 7,
            Kind::SplicedInside => 8,
            Kind::Shadow => 9,
        };
        kind << 56 | u64::from(self.generation & GENERATION_MASK) << 32 | u64::from(self.index)
    }

    pub fn from_bits(bits: u64) -> Option<Self> {
        let [kind, g2, g1, g0, i3, i2, i1, i0] = bits.to_be_bytes();
        let kind = match kind {
            1 => Kind::Tcp,
            2 => Kind::Udp,
            3 => Kind::Ping,
            4 => Kind::Dns,
            5 => Kind::Port,
            6 => Kind::PortClient,
            7 => Kind::SplicedClient,
            8 => Kind::SplicedInside,
            9 => Kind::Shadow,
            _ => return None,
        };
        let generation = u32::from_be_bytes([0, g2, g1, g0]);
        Some(Self { kind, index: u32::from_be_bytes([i3, i2, i1, i0]), generation })
    }
}

#[derive(Debug)]
struct Slot<K, V> {
    generation: u32,
    entry: Option<(K, V)>,
}

/// Flows of one engine, at most `capacity`.
#[derive(Debug)]
pub struct Table<K, V> {
    kind: Kind,
    capacity: usize,
    slots: Vec<Slot<K, V>>,
    free: Vec<u32>,
    by_key: HashMap<K, u32>,
}

impl<K: Copy + Eq + Hash, V> Table<K, V> {
    pub fn new(kind: Kind, capacity: usize) -> Self {
        Self { kind, capacity, slots: Vec::new(), free: Vec::new(), by_key: HashMap::new() }
    }

    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    pub fn is_full(&self) -> bool {
        self.len() >= self.capacity
    }

    pub fn find(&self, key: &K) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    /// Adds what `make` makes of its number. None when the table is full, has the key already, or `make` declines.
    pub fn insert(&mut self, key: K, make: impl FnOnce(FlowId) -> Option<V>) -> Option<u32> {
        if self.is_full() || self.by_key.contains_key(&key) {
            return None;
        }
        let index = match self.free.last() {
            Some(&index) => index,
            None => u32::try_from(self.slots.len()).ok()?,
        };
        let generation = self.slots.get(index as usize).map_or(0, |slot| slot.generation);
        let value = make(FlowId { kind: self.kind, index, generation })?;
        let entry = Some((key, value));
        if self.free.pop().is_some() {
            self.slots[index as usize].entry = entry;
        } else {
            self.slots.push(Slot { generation, entry });
        }
        self.by_key.insert(key, index);
        Some(index)
    }

    pub fn get(&self, index: u32) -> Option<&V> {
        self.slots.get(index as usize)?.entry.as_ref().map(|(_, value)| value)
    }

    pub fn get_mut(&mut self, index: u32) -> Option<&mut V> {
        self.slots.get_mut(index as usize)?.entry.as_mut().map(|(_, value)| value)
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Slots, used or free: indexes are below this.
    pub fn slots(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.slots.iter().filter_map(|slot| slot.entry.as_ref().map(|(_, value)| value))
    }

    /// The flow's index, if it is still the one the number was given to.
    pub fn current(&self, id: FlowId) -> Option<u32> {
        let slot = self.slots.get(id.index as usize)?;
        (slot.generation == id.generation && slot.entry.is_some()).then_some(id.index)
    }

    /// The number the flow at `index` was given.
    pub fn id(&self, index: u32) -> Option<FlowId> {
        let slot = self.slots.get(index as usize)?;
        slot.entry.is_some().then_some(FlowId { kind: self.kind, index, generation: slot.generation })
    }

    pub fn remove(&mut self, index: u32) -> Option<V> {
        let slot = self.slots.get_mut(index as usize)?;
        let (key, value) = slot.entry.take()?;
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        self.by_key.remove(&key);
        self.free.push(index);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_epoll() {
        let kinds = [Kind::Tcp, Kind::Udp, Kind::Ping, Kind::Dns, Kind::Port, Kind::PortClient];
        for kind in kinds.into_iter().chain([Kind::SplicedClient, Kind::SplicedInside, Kind::Shadow]) {
            let id = FlowId { kind, index: 0xdead_beef, generation: 0x00ab_cdef };
            assert_eq!(FlowId::from_bits(id.to_bits()), Some(id));
        }
        assert_eq!(FlowId::from_bits(0), None);
    }

    #[test]
    fn a_reused_slot_is_not_reached_by_the_old_number() {
        let mut table = Table::new(Kind::Tcp, 2);
        let mut old = None;
        let a = table.insert("a", |id| {
            old = Some(id);
            Some(1)
        });
        assert_eq!(a, Some(0));
        assert_eq!(table.insert("a", |_| Some(2)), None);
        assert_eq!(table.insert("b", |_| Some(2)), Some(1));
        assert_eq!(table.insert("c", |_| Some(3)), None);
        assert_eq!(table.remove(0), Some(1));
        assert_eq!(table.find(&"a"), None);
        assert_eq!(table.insert("d", |_| None), None);
        assert_eq!(table.insert("c", |_| Some(3)), Some(0));
        assert_eq!(old.and_then(|id| table.current(id)), None);
        assert_eq!(table.get(0), Some(&3));
    }
}
