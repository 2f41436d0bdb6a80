//! What was received and not yet answered, in memory that outlives a supervisor.

/// Bytes of the shared memory the monitor makes.
pub const SIZE: usize = 4096 * 256;
