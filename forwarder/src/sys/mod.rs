//! The crate's only unsafe code: one kernel object per file, descriptors as `OwnedFd` or `BorrowedFd`.

#![allow(unsafe_code)]

pub mod datagram;
pub mod socket;
pub mod tun;
