//! What of the IP header a workspace's datagram came with goes out with it: hop limit, DSCP and ECN, and whether it may
//! be cut. A host socket has one of each at a time, so they are set when they differ from the last datagram's.
//!
//! The gateway is a router, and takes one off the hop limit; 64, everyone's default, stands for the host's own default
//! and costs nothing. With a datagram that may be cut the host cuts it at its path's MTU, and lets others do so too; one
//! that may not is refused (EMSGSIZE) or reported, and the workspace finds the path's MTU.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;

use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};

use crate::wire::IpPacket;

const DEFAULT_HOP_LIMIT: u8 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    hop_limit: u8,
    tos: u8,
    dont_fragment: bool,
}

/// What a host socket has been told.
#[derive(Clone, Copy, Debug)]
pub struct Marked {
    marks: Marks,
    is_ipv4: bool,
}

impl Marks {
    pub const NONE: Self = Self { hop_limit: DEFAULT_HOP_LIMIT, tos: 0, dont_fragment: false };

    pub fn of(ip: &IpPacket<'_>) -> Self {
        Self { hop_limit: ip.hop_limit, tos: ip.tos, dont_fragment: ip.dont_fragment }
    }
}

impl Marked {
    /// Makes a new socket send what `marks` say.
    pub fn new(socket: &OwnedFd, is_ipv4: bool, marks: Marks) -> Self {
        // Whatever the host's default is, it is to be set.
        let fresh = Marks { dont_fragment: !marks.dont_fragment, ..Marks::NONE };
        let mut marked = Self { marks: fresh, is_ipv4 };
        marked.set(socket, marks);
        marked
    }

    /// Makes the socket send what `marks` say. A host that refuses one sends its own instead: the datagram counts more.
    pub fn set(&mut self, socket: &OwnedFd, marks: Marks) {
        let Marks { hop_limit, tos, dont_fragment } = std::mem::replace(&mut self.marks, marks);
        if tos != marks.tos {
            let _ = if self.is_ipv4 {
                sockopt::set_ip_tos(socket, marks.tos)
            } else {
                sockopt::set_ipv6_tclass(socket, u32::from(marks.tos))
            };
        }
        if hop_limit != marks.hop_limit {
            let hops = (marks.hop_limit != DEFAULT_HOP_LIMIT).then(|| marks.hop_limit.saturating_sub(1).max(1));
            let _ = if self.is_ipv4 {
                // -1 is the default.
                sockopt::set_ip_ttl(socket, hops.map_or(u32::MAX, u32::from))
            } else {
                sockopt::set_ipv6_unicast_hops(socket, hops)
            };
        }
        if dont_fragment != marks.dont_fragment {
            let _ = if self.is_ipv4 {
                let discovery = if marks.dont_fragment { Ipv4PathMtuDiscovery::DO } else { Ipv4PathMtuDiscovery::DONT };
                sockopt::set_ip_mtu_discover(socket, discovery)
            } else {
                let discovery = if marks.dont_fragment { Ipv6PathMtuDiscovery::DO } else { Ipv6PathMtuDiscovery::DONT };
                sockopt::set_ipv6_mtu_discover(socket, discovery)
            };
        }
    }
}
