//! A descriptor in tokio's event loop.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers an owned descriptor; `wake_ups` names what is waited for.
pub fn register(descriptor: OwnedFd, wake_ups: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names one open descriptor from here until it is dropped, and AsyncFd deregisters before that.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, wake_ups) }?)
}
