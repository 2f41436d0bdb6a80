//! The crate's only unsafe code: one kernel object per file, descriptors as `OwnedFd` or `BorrowedFd`.

pub mod pktinfo;
pub mod socket;
pub mod tun;
