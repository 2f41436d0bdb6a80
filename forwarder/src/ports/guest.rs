//! Where published ports lead that name no IPv4 address: to the workspace's own, which is .100 until it is heard with
//! another one or DHCP gives it one. What else speaks on the TAP, machines bridged to it, changes nothing about it: the
//! workspace is at the hardware address that spoke first, or where its address was heard from since.
//!
//! A successor goes on from where it was, for a server inside may never speak by itself. A lease counts at once, for the
//! same reason; a client that asks for one and then goes on with the address that it had is taken at its word as soon as
//! it does.

use std::net::Ipv4Addr;

use crate::network::{Ipv4Subnet, MacAddr};

/// What has been told about where the workspace is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Whereabouts {
    pub mac: Option<MacAddr>,
    pub address: Option<Ipv4Addr>,
}

#[derive(Debug)]
pub struct Guest {
    subnet: Ipv4Subnet,
    address: Ipv4Addr,
    /// No packet of its own, and no lease, has told its address yet.
    is_assumed: bool,
    mac: Option<MacAddr>,
    lease: Option<Ipv4Addr>,
}

impl Guest {
    pub fn new(subnet: Ipv4Subnet) -> Self {
        Self { subnet, address: subnet.guest(), is_assumed: true, mac: None, lease: None }
    }

    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The hardware address that the workspace is at, once somebody has spoken.
    pub fn mac(&self) -> Option<MacAddr> {
        self.mac
    }

    pub fn whereabouts(&self) -> Whereabouts {
        Whereabouts { mac: self.mac, address: (!self.is_assumed).then_some(self.address) }
    }

    /// What a predecessor knew.
    pub fn recall(&mut self, Whereabouts { mac, address }: Whereabouts) {
        self.mac = mac;
        if let Some(address) = address.filter(|&address| self.subnet.may_be_guest(address)) {
            (self.address, self.is_assumed) = (address, false);
        }
    }

    /// Any frame from `mac`.
    pub fn speaks(&mut self, mac: MacAddr) {
        self.mac.get_or_insert(mac);
    }

    /// A packet from `address`.
    pub fn heard(&mut self, address: Ipv4Addr, mac: MacAddr) {
        if !self.subnet.may_be_guest(address) {
            return;
        }
        let is_known = address == self.address || address == self.subnet.guest();
        let is_told = self.mac == Some(mac) && (self.is_assumed || Some(address) == self.lease);
        if is_known || is_told {
            (self.address, self.mac, self.is_assumed) = (address, Some(mac), false);
        }
    }

    /// DHCP has given `address` to whoever is at `mac`.
    pub fn leased(&mut self, address: Ipv4Addr, mac: MacAddr) {
        if self.mac == Some(mac) {
            self.lease = Some(address);
            (self.address, self.is_assumed) = (address, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MacAddr = [2, 0, 0, 0, 0, 1];
    const OTHER: MacAddr = [2, 0, 0, 0, 0, 2];

    /// What is heard (`true`: leased), and where ports lead then.
    fn follow(said: &[(bool, u8, MacAddr, u8)]) {
        let mut guest = Guest::new(Ipv4Subnet::DEFAULT);
        guest.speaks(OWN);
        guest.speaks(OTHER);
        for &(is_leased, last, mac, want) in said {
            let address = Ipv4Addr::new(10, 0, 2, last);
            if is_leased {
                guest.leased(address, mac)
            } else {
                guest.heard(address, mac)
            }
            assert_eq!(guest.address().octets(), [10, 0, 2, want], "{said:?}");
        }
    }

    #[test]
    fn ports_follow_the_workspace() {
        // An address set by hand, though not each further one.
        follow(&[(false, 50, OWN, 50), (false, 51, OWN, 50), (false, 100, OWN, 100)]);
        // A lease, which it may not use after all.
        follow(&[(false, 100, OWN, 100), (true, 15, OWN, 15), (false, 15, OWN, 15)]);
        follow(&[(true, 15, OWN, 15), (false, 100, OWN, 100), (false, 15, OWN, 15)]);
        // What is bridged to it has its own.
        follow(&[(true, 15, OTHER, 100), (false, 15, OTHER, 100), (false, 100, OWN, 100), (false, 15, OTHER, 100)]);
        // Another hardware address.
        follow(&[(false, 100, OWN, 100), (false, 100, OTHER, 100), (true, 16, OTHER, 16), (false, 15, OWN, 16)]);
        // Nobody's: network, gateway, resolver, broadcast.
        follow(&[0, 2, 3, 255].map(|last| (false, last, OWN, 100)));
    }

    #[test]
    fn nobody_elses_addresses() {
        let mut guest = Guest::new(Ipv4Subnet::DEFAULT);
        guest.speaks(OWN);
        guest.heard([172, 17, 0, 2].into(), OWN);
        guest.leased([10, 0, 2, 15].into(), OTHER);
        assert_eq!(guest.address(), Ipv4Subnet::DEFAULT.guest());
    }
}
