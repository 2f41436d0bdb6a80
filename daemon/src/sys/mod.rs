//! Every `unsafe` block of this crate: one kernel object per file, `OwnedFd` in and out.

pub mod fork;
pub mod listener;
pub mod namespace;
pub mod pidfd;
pub mod readiness;
pub mod shared_memory;
pub mod socket;
pub mod thread;
