//! Which hardware address each of the workspace's addresses is at, as its frames say: machines that are bridged to the
//! TAP have their own. What becomes of an address that was not heard of is in [`sought`].
//!
//! Everything is O(1). Bulk transfers do not look into the table: who was heard or sent to last is kept in front of it,
//! of each family.
#![forbid(unsafe_code)]

pub mod sought;

use std::collections::HashMap;
use std::net::IpAddr;

use crate::network::MacAddr;
use crate::recency::Recency;

/// A large bridge's worth; of more, those give way that were not used for longest.
const MAX_NEIGHBOURS: usize = 1024;

#[derive(Debug)]
pub struct Neighbours {
    /// By place.
    entries: Vec<(IpAddr, MacAddr)>,
    by_address: HashMap<IpAddr, u32>,
    recency: Recency,
    /// The places of those used last, IPv4's and IPv6's.
    last: [u32; 2],
}

impl Neighbours {
    pub fn new() -> Self {
        Self { entries: Vec::new(), by_address: HashMap::new(), recency: Recency::new(), last: [0; 2] }
    }

    /// `address` is at `mac`. False: so it was when a neighbour of its family was last used.
    pub fn learn(&mut self, address: IpAddr, mac: MacAddr) -> bool {
        if self.entries.get(self.last(address) as usize) == Some(&(address, mac)) {
            return false;
        }
        if !is_unicast(mac) || address.is_unspecified() {
            return false;
        }
        let place = match self.by_address.get(&address).copied() {
            Some(place) => place,
            None => self.place_for(address, mac),
        };
        if let Some(entry) = self.entries.get_mut(place as usize) {
            *entry = (address, mac);
        }
        self.use_place(place, address);
        true
    }

    /// Where `address` is, if it was heard of.
    pub fn find(&mut self, address: IpAddr) -> Option<MacAddr> {
        match self.entries.get(self.last(address) as usize) {
            Some(&(last, mac)) if last == address => return Some(mac),
            _ => {}
        }
        let place = self.by_address.get(&address).copied()?;
        self.use_place(place, address);
        self.entries.get(place as usize).map(|&(_, mac)| mac)
    }

    fn last(&self, address: IpAddr) -> u32 {
        self.last[usize::from(address.is_ipv6())]
    }

    fn use_place(&mut self, place: u32, address: IpAddr) {
        // The one before was in use up to now.
        let before = std::mem::replace(&mut self.last[usize::from(address.is_ipv6())], place);
        self.recency.touch(before);
        self.recency.touch(place);
    }

    /// A place that is `address`'s from now on.
    fn place_for(&mut self, address: IpAddr, mac: MacAddr) -> u32 {
        let place = match self.recency.oldest().filter(|_| self.entries.len() >= MAX_NEIGHBOURS) {
            Some(oldest) => {
                if let Some((gone, _)) = self.entries.get(oldest as usize) {
                    self.by_address.remove(gone);
                }
                oldest
            }
            None => {
                let place = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
                self.entries.push((address, mac));
                self.recency.insert(place);
                place
            }
        };
        self.by_address.insert(address, place);
        place
    }
}

/// Whether it is one device's.
pub fn is_unicast(mac: MacAddr) -> bool {
    mac[0] & 1 == 0
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn v4(number: usize) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(0x0a01_0000 | u32::try_from(number).unwrap()))
    }

    #[test]
    fn each_address_is_where_it_was_last_heard() {
        let (a, b, group) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], [3, 0, 0, 0, 0, 1]);
        let v6 = "fe80::1".parse().unwrap();
        let mut neighbours = Neighbours::new();
        assert_eq!(neighbours.find(v4(1)), None);
        let said = [(v4(1), a, true), (v4(1), a, false), (v4(2), b, true), (v4(1), a, true), (v6, b, true)];
        // Another family's is no neighbour of these.
        for (address, mac, is_news) in said.into_iter().chain([(v4(1), a, false), (v4(1), group, false)]) {
            assert_eq!(neighbours.learn(address, mac), is_news, "{address}");
        }
        for (address, mac) in [(v4(1), Some(a)), (v4(2), Some(b)), (v6, Some(b)), (v4(3), None)] {
            assert_eq!(neighbours.find(address), mac, "{address}");
        }
        // It has moved.
        assert!(neighbours.learn(v4(1), b));
        assert_eq!(neighbours.find(v4(1)), Some(b));
    }

    #[test]
    fn the_table_is_bounded_and_keeps_what_is_used() {
        let mut neighbours = Neighbours::new();
        neighbours.learn(v4(0), [2; 6]);
        for number in 1..3 * MAX_NEIGHBOURS {
            neighbours.learn(v4(number), [4; 6]);
            assert_eq!(neighbours.find(v4(0)), Some([2; 6]), "{number}");
        }
        assert_eq!((neighbours.entries.len(), neighbours.by_address.len()), (MAX_NEIGHBOURS, MAX_NEIGHBOURS));
        assert_eq!(neighbours.find(v4(1)), None);
    }
}
