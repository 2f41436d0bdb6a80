//! slirp4netns as others call it: its command line and the requests of its API socket. Both are pure: what they ask for
//! is done by the program (`sidestep`, started under that name).
#![forbid(unsafe_code)]

pub mod api;
pub mod command_line;
