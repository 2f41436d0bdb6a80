//! Deadlines of flows: a hashed timer wheel. Every flow owns one timer node, so setting, moving and cancelling are
//! O(1), nothing is allocated after the flow is made, and memory is bounded by the flow tables.
//!
//! Time is passed in. A deadline further away than the wheel's span stays in its slot and is passed over until its
//! round comes.
#![forbid(unsafe_code)]

use crate::flow::FlowId;

/// Milliseconds of a monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub u64);

impl Time {
    #[must_use]
    pub fn after(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Names a timer node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerId(usize);

/// Slots of the wheel: 4096 of 8 ms span 32 s, beyond every retransmission timer.
const SLOTS: usize = 4096;
/// Granularity: 2^3 ms.
const TICK_SHIFT: u32 = 3;
const WORD: usize = 64;

const NONE: usize = usize::MAX;

#[derive(Debug)]
struct Node {
    owner: FlowId,
    deadline: Time,
    /// The slot this node is linked into, or NONE.
    slot: usize,
    prev: usize,
    next: usize,
}

/// The wheel.
#[derive(Debug)]
pub struct Wheel {
    heads: Vec<usize>,
    occupied: [u64; SLOTS / WORD],
    nodes: Vec<Node>,
    free: Vec<usize>,
    /// Every tick before this one has been expired.
    tick: u64,
}

impl Wheel {
    pub fn new(now: Time) -> Self {
        Self {
            heads: vec![NONE; SLOTS],
            occupied: [0; SLOTS / WORD],
            nodes: Vec::new(),
            free: Vec::new(),
            tick: now.0 >> TICK_SHIFT,
        }
    }

    /// A new timer, not set.
    pub fn insert(&mut self, owner: FlowId) -> TimerId {
        let node = Node { owner, deadline: Time(0), slot: NONE, prev: NONE, next: NONE };
        if let Some(index) = self.free.pop() {
            self.nodes[index] = node;
            return TimerId(index);
        }
        self.nodes.push(node);
        TimerId(self.nodes.len() - 1)
    }

    pub fn remove(&mut self, timer: TimerId) {
        self.unlink(timer.0);
        self.free.push(timer.0);
    }

    /// Sets or moves the timer. It fires at or shortly after `deadline`, never before.
    pub fn set(&mut self, timer: TimerId, deadline: Time) {
        self.unlink(timer.0);
        // The tick after the deadline's own: by then all of it has passed.
        let tick = ((deadline.0 >> TICK_SHIFT) + 1).max(self.tick);
        let slot = slot_of(tick);
        let head = self.heads[slot];
        if head != NONE {
            self.nodes[head].prev = timer.0;
        }
        let node = &mut self.nodes[timer.0];
        node.deadline = deadline;
        node.slot = slot;
        node.prev = NONE;
        node.next = head;
        self.heads[slot] = timer.0;
        self.occupied[slot / WORD] |= 1 << (slot % WORD);
    }

    /// Sets the timer unless it is already set to an earlier moment: its owner looks at its own deadlines when it
    /// fires, so putting one off costs nothing.
    pub fn set_at_latest(&mut self, timer: TimerId, deadline: Time) {
        let node = &self.nodes[timer.0];
        if node.slot == NONE || node.deadline > deadline {
            self.set(timer, deadline);
        }
    }

    /// When to look again: the next tick with a timer in its slot.
    pub fn next_deadline(&self) -> Option<Time> {
        let start = slot_of(self.tick);
        (0..=SLOTS / WORD).find_map(|step| {
            let word = (start / WORD + step) % (SLOTS / WORD);
            let mut bits = self.occupied[word];
            if step == 0 {
                bits &= u64::MAX << (start % WORD);
            }
            if bits == 0 {
                return None;
            }
            let slot = word * WORD + bits.trailing_zeros() as usize;
            let ahead = (slot + SLOTS - start) % SLOTS;
            Some(Time((self.tick + ahead as u64) << TICK_SHIFT))
        })
    }

    /// Takes every timer that is due off the wheel and appends its owner to `due`.
    pub fn expire(&mut self, now: Time, due: &mut Vec<FlowId>) {
        let last = now.0 >> TICK_SHIFT;
        if last < self.tick {
            return;
        }
        let first = self.tick.max(last.saturating_sub(SLOTS as u64 - 1));
        for tick in first..=last {
            let mut at = self.heads[slot_of(tick)];
            while at != NONE {
                let Node { next, deadline, owner, .. } = self.nodes[at];
                if deadline.0 >> TICK_SHIFT < tick {
                    self.unlink(at);
                    due.push(owner);
                }
                at = next;
            }
        }
        self.tick = last + 1;
    }

    fn unlink(&mut self, index: usize) {
        let Node { slot, prev, next, .. } = self.nodes[index];
        if slot == NONE {
            return;
        }
        if prev == NONE {
            self.heads[slot] = next;
            if next == NONE {
                self.occupied[slot / WORD] &= !(1 << (slot % WORD));
            }
        } else {
            self.nodes[prev].next = next;
        }
        if next != NONE {
            self.nodes[next].prev = prev;
        }
        self.nodes[index].slot = NONE;
    }
}

fn slot_of(tick: u64) -> usize {
    // The remainder is below SLOTS, so it fits any usize.
    usize::try_from(tick % SLOTS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Kind;

    fn owner(index: u32) -> FlowId {
        FlowId { kind: Kind::Tcp, index, generation: 0 }
    }

    fn fired(wheel: &mut Wheel, now: u64) -> Vec<u32> {
        let mut due = Vec::new();
        wheel.expire(Time(now), &mut due);
        due.iter().map(|id| id.index).collect()
    }

    #[test]
    fn fires_once_and_never_early() {
        let mut wheel = Wheel::new(Time(1000));
        for (index, deadline) in [(0, 1000), (1, 1100), (2, 1101), (3, 200_000)] {
            let timer = wheel.insert(owner(index));
            wheel.set(timer, Time(deadline));
        }
        assert_eq!(fired(&mut wheel, 999), [0u32; 0]);
        assert_eq!(fired(&mut wheel, 1008), [0]);
        assert_eq!(fired(&mut wheel, 1099), [0u32; 0]);
        let mut late = fired(&mut wheel, 1112);
        late.sort_unstable();
        assert_eq!(late, [1, 2]);
        // Rounds of the wheel pass without the distant one.
        for now in (2000..200_000).step_by(1000) {
            assert_eq!(fired(&mut wheel, now), [0u32; 0], "{now}");
        }
        assert_eq!(fired(&mut wheel, 300_000), [3]);
        assert_eq!(wheel.next_deadline(), None);
    }

    #[test]
    fn moved_cancelled_and_reused() {
        let mut wheel = Wheel::new(Time(0));
        let (a, b) = (wheel.insert(owner(1)), wheel.insert(owner(2)));
        wheel.set(a, Time(100));
        wheel.set(b, Time(100));
        wheel.set(a, Time(500));
        wheel.set_at_latest(b, Time(900));
        assert_eq!(fired(&mut wheel, 300), [2]);
        wheel.remove(a);
        let c = wheel.insert(owner(3));
        assert_eq!(c, a);
        wheel.set_at_latest(c, Time(900));
        assert_eq!(fired(&mut wheel, 1000), [3]);
    }

    #[test]
    fn next_deadline_is_never_after_the_timer() {
        let mut wheel = Wheel::new(Time(5));
        let timer = wheel.insert(owner(1));
        for deadline in [5, 6, 8, 4000, 40_000, 1_000_000] {
            wheel.set(timer, Time(deadline));
            let mut now = Time(0);
            for _ in 0..100 {
                let Some(next) = wheel.next_deadline() else { break };
                assert!(next >= now && next.0 <= deadline + 16, "{deadline}: {next:?}");
                now = next;
                wheel.expire(now, &mut Vec::new());
            }
            assert_eq!(wheel.next_deadline(), None);
        }
    }
}
