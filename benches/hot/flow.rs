//! What a frame or a deadline finds its connection with, among 10,000.
//!
//! - `lookup`: a frame's addresses and ports to its flow, one hash and a few cache misses, once a frame. Hold it against a
//!   small frame's whole way (`engine`, 1 byte).
//! - `timer`: a timer put off, at most once a batch and connection. No part of it may depend on how many there are.

use criterion::Criterion;
use sidestep_forwarder::hot;

pub fn pieces(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("flow");
    group.bench_function("lookup among 10,000", |bench| bench.iter(hot::lookup()));
    group.bench_function("timer among 10,000", |bench| bench.iter(hot::timer()));
    group.finish();
}
