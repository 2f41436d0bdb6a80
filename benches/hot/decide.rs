//! The supervisor's decision about a connect, once everything it asks the kernel is known.
//!
//! Hold it against the whole of a bypassed connect, more than 100 µs: it must stay invisible, however many egress rules
//! there are.

use criterion::Criterion;
use sidestep::hot;

pub fn pieces(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide");
    for rules in [0, 100] {
        group.bench_function(format!("connect, {rules} egress rules"), |bench| bench.iter(hot::decide(rules)));
    }
    group.finish();
}
