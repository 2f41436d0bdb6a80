//! sidestep: launcher, monitor, supervisor and command line of the multi-call binary.
//!
//! A library only for `main` and for `benches/hot`: what neither of them names is private, so that the compiler sees what
//! nobody uses.

pub mod cli;
mod doctor;
mod init;
mod launcher;
pub mod logging;
mod monitor;
mod publish;
mod signals;
mod slirp4netns;
mod state_dir;
mod supervisor;
mod sys;

use sidestep_forwarder::channel;

pub use supervisor::hot;
pub use sys::listener;

/// Exit code of a failure of sidestep itself, as env(1) and docker have it.
pub const FAILURE: u8 = 125;
