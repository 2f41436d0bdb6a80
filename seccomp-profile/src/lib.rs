//! Which system calls of a workspace stop at the supervisor, which are refused outright, which the forwarder may make,
//! and the loading of such filters.
//!
//! The data's way: [`syscalls`] and [`rare_options`] say what of a workspace stops and what is refused, [`forwarder`] what
//! the forwarder may; [`filter`] turns it into BPF with libseccomp, [`load`] installs that on the calling thread.

pub mod filter;
pub mod forwarder;
pub mod load;
pub mod rare_options;
pub mod syscalls;

/// libseccomp's version.
pub fn library_version() -> String {
    libseccomp::ScmpVersion::current().map_or_else(|_| "unknown".to_owned(), |version| version.to_string())
}
