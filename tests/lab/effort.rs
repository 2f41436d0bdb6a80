//! How hard the lab tries: a few times in `make test`, as often as it takes in `make soak` (`LAB_SOAK` set).

use std::time::Duration;

fn soaks() -> bool {
    std::env::var_os("LAB_SOAK").is_some()
}

/// How often something that may go wrong is tried.
pub fn tries(in_test: u32, in_soak: u32) -> u32 {
    if soaks() { in_soak } else { in_test }
}

/// How long something goes on.
pub fn lasting(in_test: Duration, in_soak: Duration) -> Duration {
    if soaks() { in_soak } else { in_test }
}
