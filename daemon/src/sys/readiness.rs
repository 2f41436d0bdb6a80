//! A descriptor in tokio's event loop.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdRegisterError};

/// The same; a descriptor that is not taken comes back, for its close(2) may wait.
pub fn register_or_return(descriptor: OwnedFd, wake_ups: Interest) -> Result<AsyncFd<OwnedFd>, (OwnedFd, io::Error)> {
    // SAFETY: an OwnedFd names one open descriptor from here until it is dropped, and AsyncFd deregisters before that.
    unsafe { AsyncFd::register_with_interest(descriptor, wake_ups) }.map_err(AsyncFdRegisterError::into_parts)
}

/// Registers an owned descriptor; `wake_ups` names what is waited for.
pub fn register(descriptor: OwnedFd, wake_ups: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    register_or_return(descriptor, wake_ups).map_err(|(_, error)| error)
}
