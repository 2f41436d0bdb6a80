//! Stretches of sequence numbers beyond a gap: what the workspace sent ahead of one, and what it said it has (SACK).
#![forbid(unsafe_code)]

use super::Seq;

/// More than reordering ever makes, and a bound on the work for each segment.
const MAX_STRETCHES: usize = 32;

/// Sorted, disjoint, not touching: (from, to).
#[derive(Debug, Default)]
pub struct Stretches(Vec<(Seq, Seq)>);

impl Stretches {
    /// Adds one, joined with those it touches. False when there are too many: it is not kept.
    pub fn add(&mut self, mut from: Seq, mut to: Seq) -> bool {
        let first = self.0.iter().take_while(|range| range.1.before(from)).count();
        let touching = self.0[first..].iter().take_while(|range| !to.before(range.0)).count();
        if touching == 0 && self.0.len() == MAX_STRETCHES {
            return false;
        }
        for range in self.0.drain(first..first + touching) {
            from = from.earlier_of(range.0);
            to = to.later_of(range.1);
        }
        self.0.insert(first, (from, to));
        true
    }

    /// Forgets what `next` has reached; how far the last of these goes.
    pub fn reach(&mut self, mut next: Seq) -> Seq {
        while let Some(&(from, to)) = self.0.first() {
            if next.before(from) {
                break;
            }
            next = next.later_of(to);
            self.0.remove(0);
        }
        next
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn as_slice(&self) -> &[(Seq, Seq)] {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn end(&self) -> Option<Seq> {
        self.0.last().map(|range| range.1)
    }
}
