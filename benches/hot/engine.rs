//! One TCP segment from the workspace through the engine to a socket of the host's loopback, and its acknowledgement back.
//!
//! The number has the send(2) to the host's socket, the reading at its other end and two calls on the socket pair that
//! stands for the TAP in it, so the 1-byte figure is nearly all the kernel's: the send runs the loopback's TCP as far as
//! the receiver's queue. Hold it against the same calls by themselves, and what 64,000 bytes take more than one, three
//! copies, against memory's speed.

use criterion::{Criterion, Throughput};
use sidestep_forwarder::hot;

pub fn pieces(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine");
    for payload in [1, 1460, 64_000] {
        group.throughput(Throughput::Bytes(payload as u64));
        group
            .bench_function(format!("segment to the host, {payload} bytes"), |bench| bench.iter(hot::to_host(payload)));
    }
    group.finish();
}
