//! Every `unsafe` block of this crate: one kernel object per file, `OwnedFd` in and out.
