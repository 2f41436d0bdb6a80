//! Frames to typed packets and back.
//!
//! - `parse`: Ethernet, IP and TCP headers of one frame. Its payload is not looked at, so a super-frame of 64 KB has to cost
//!   what one of 1 byte costs; hold it against the read(2) of the TAP that brings it, some 600 ns and the copy.
//! - `build`: the same headers written in front of a payload. The checksum is the device's to finish: again no difference.
//! - `checksum`: the Internet checksum over a payload, which only frames without offload need (ICMP, DHCP, fragments).
//!   Hold it against memory: 10 GB/s and more.

use criterion::{Criterion, Throughput};
use sidestep_forwarder::hot;

pub fn pieces(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire");
    for payload in [1, 64_000] {
        group.bench_function(format!("parse, {payload} bytes"), |bench| bench.iter(hot::parse(payload)));
        group.bench_function(format!("build, {payload} bytes"), |bench| bench.iter(hot::build(payload)));
    }
    for bytes in [64, 1460, 64_000] {
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(format!("checksum, {bytes} bytes"), |bench| bench.iter(hot::checksum(bytes)));
    }
    group.finish();
}
