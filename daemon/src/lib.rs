//! sidestep: launcher, monitor, supervisor and command line of the multi-call binary.

pub mod cli;
mod doctor;
pub mod init;
pub mod launcher;
pub mod logging;
pub mod monitor;
pub mod publish;
pub mod signals;
pub mod slirp4netns;
pub mod state_dir;
pub mod supervisor;
pub mod sys;

pub use sidestep_forwarder::channel;

/// Exit code of a failure of sidestep itself, as env(1) and docker have it.
pub const FAILURE: u8 = 125;
