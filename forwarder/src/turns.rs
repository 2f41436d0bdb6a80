//! Which flows of a table have more to do than their turn allowed: each waits once, in the order they came. The queue
//! is of places in the table, at most as many as that has: one whose flow has gone gives its turn to whoever is there.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

/// As many as there are events in a wake: frames wait for no more than these.
const A_WAKE: usize = 64;

#[derive(Debug, Default)]
pub struct Turns {
    waiting: VecDeque<u32>,
    /// By place: it is in the queue.
    waits: Vec<bool>,
}

impl Turns {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many have their turn in one wake: those that wait now, and no more than [`A_WAKE`].
    pub fn due(&self) -> usize {
        self.waiting.len().min(A_WAKE)
    }

    /// The flow at `index` wants another turn.
    pub fn wait(&mut self, index: u32) {
        let at = index as usize;
        if self.waits.len() <= at {
            self.waits.resize(at + 1, false);
        }
        if !std::mem::replace(&mut self.waits[at], true) {
            self.waiting.push_back(index);
        }
    }

    /// Whose turn it is.
    pub fn next(&mut self) -> Option<u32> {
        let index = self.waiting.pop_front()?;
        self.waits[index as usize] = false;
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_waits_once_and_in_order() {
        let mut turns = Turns::default();
        [5, 0, 5, 2, 0].into_iter().for_each(|index| turns.wait(index));
        assert_eq!((turns.due(), turns.next()), (3, Some(5)));
        // Its turn did not suffice.
        turns.wait(5);
        assert_eq!(std::iter::from_fn(|| turns.next()).collect::<Vec<_>>(), [0, 2, 5]);
        assert!(turns.is_empty());
        (0..100).for_each(|index| turns.wait(index));
        assert_eq!(turns.due(), 64);
    }
}
