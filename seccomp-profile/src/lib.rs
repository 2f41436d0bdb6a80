//! Which system calls of a workspace stop at the supervisor, which are refused outright, and the loading of that filter.
//!
//! The data's way: [`syscalls`] says what stops and what is refused, [`filter`] turns that into BPF with libseccomp,
//! [`load`] installs it on the calling thread and returns the listener.

pub mod filter;
pub mod load;
pub mod syscalls;
