//! The TAP forwarder: Ethernet frames of one workspace to host sockets and back, and the egress policy that both it
//! and the bypass obey.

#![deny(unsafe_code)]

pub mod capture;
pub mod channel;
pub mod counters;
mod edge;
mod engine;
mod flow;
mod gateway;
pub mod hot;
mod icmp;
pub mod link;
mod marks;
mod neighbours;
pub mod network;
pub mod outbound;
mod path_mtu;
pub mod policy;
pub mod ports;
mod reassembly;
mod recency;
pub mod sandbox;
pub mod slirp4netns;
mod sys;
pub mod tap;
mod tcp;
mod timer;
mod turns;
mod udp;
mod wire;
mod worker;

pub use edge::Config;
pub use flow::list;
pub use worker::{Handles, MEMORY_WORDS, run};
