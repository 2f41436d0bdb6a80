//! The TAP forwarder: Ethernet frames of one workspace to host sockets and back, and the egress policy that both it
//! and the bypass obey.

pub mod network;
pub mod policy;
pub mod worker;

pub use worker::{Config, run};
