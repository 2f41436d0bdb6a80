//! sidestep: launcher, monitor, supervisor and command line of the multi-call binary.

pub mod supervisor;
pub mod sys;
