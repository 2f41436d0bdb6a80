//! What the virtual gateway answers by itself, without the host: address resolution, and word of what is unreachable.

pub mod arp;
pub mod unreachable;
