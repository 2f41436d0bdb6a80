//! Every `unsafe` block of this crate: one kernel object per file, `OwnedFd` in and out.

pub mod clone;
pub mod descriptors;
pub mod disposition;
pub mod landlock;
pub mod netdevice;
pub mod ready_fd;
pub mod spawn;
pub mod tap;
