//! sidestep: launcher, monitor, supervisor and command line of the multi-call binary.

pub mod cli;
mod doctor;
pub mod init;
pub mod launcher;
pub mod logging;
pub mod monitor;
pub mod publish;
pub mod slirp4netns;
pub mod supervisor;
pub mod sys;

pub use sidestep_forwarder::channel;
