//! What every frame, connect and system call passes, one piece at a time, in nanoseconds: `cargo bench --bench hot`.
//!
//! The whole-program figures (`make bench`) say whether people gain; these say which piece to look at when one of them
//! moves. A piece is only worth making faster if it is a visible part of the whole that its file names.

use criterion::{Criterion, criterion_group, criterion_main};

#[path = "hot/decide.rs"]
mod decide;
#[path = "hot/engine.rs"]
mod engine;
#[path = "hot/flow.rs"]
mod flow;
#[path = "hot/notification.rs"]
mod notification;
#[path = "hot/wire.rs"]
mod wire;

fn pieces(criterion: &mut Criterion) {
    wire::pieces(criterion);
    flow::pieces(criterion);
    engine::pieces(criterion);
    decide::pieces(criterion);
    notification::pieces(criterion);
}

criterion_group!(hot, pieces);
criterion_main!(hot);
