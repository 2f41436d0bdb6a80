//! Every `unsafe` block of this crate: one kernel object per file, `OwnedFd` in and out.

pub mod clone;
pub mod descriptors;
pub mod disposition;
pub mod epoll;
pub mod fork;
pub mod inherited;
pub mod landlock;
pub mod listener;
pub mod namespace;
pub mod netdevice;
pub mod pidfd;
pub mod readiness;
pub mod refused;
pub mod shared_memory;
pub mod socket;
pub mod spawn;
pub mod thread;
