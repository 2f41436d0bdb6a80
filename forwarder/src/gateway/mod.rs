//! What the virtual gateway answers by itself, without the host: address resolution, configuration of the workspace's
//! interfaces, and word of what is unreachable; and DNS, which it hands to the host's resolvers.
#![forbid(unsafe_code)]

pub mod arp;
pub mod dhcp;
pub mod dns;
pub mod ndp;
mod search;
pub mod unreachable;
