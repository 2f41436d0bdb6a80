//! What the virtual gateway answers by itself, without the host: address resolution, and word of what is unreachable;
//! and DNS, which it hands to the host's resolvers.
#![forbid(unsafe_code)]

pub mod arp;
pub mod dns;
pub mod ndp;
pub mod unreachable;
