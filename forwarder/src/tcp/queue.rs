//! How much of the host's stream may wait in the host socket's receive queue, which is what the window at the host's end
//! comes from.
//!
//! Linux makes it larger for a program that reads a windowful within a round trip (dynamic right-sizing,
//! tcp_rcv_space_adjust), but what is still in the queue when it looks counts as not read, and with us that is what the
//! workspace has not acknowledged: a peek of what has just arrived would keep the queue at its first 64 KB. So the same
//! is reckoned here, over the way to the host's end and the way to the workspace's together, for the bytes stay that
//! long. Ways of less than a millisecond are left to Linux: no window is too small for those.
#![forbid(unsafe_code)]

use crate::timer::Time;

/// The window that Linux begins with: half of tcp_rmem's 128 KB.
const FIRST: u32 = 1 << 16;
/// No larger one is asked for: 400 Mbit/s over 300 ms. The kernel has limits of its own (half of tcp_rmem's last, tcp_mem).
const LARGEST: u32 = 1 << 24;

/// Most connections never get so much, and nothing is looked for.
const WORTH_A_LOOK: u64 = 8192;

#[derive(Debug)]
pub struct Queue {
    size: u32,
    /// Bytes that were through when the measurement began, and when that was.
    mark: (u64, Time),
    /// The way to the host's end and back, in ms, once it has been asked for.
    round_trip: Option<u64>,
}

impl Queue {
    pub fn new(now: Time) -> Self {
        Self { size: FIRST, mark: (0, now), round_trip: None }
    }

    /// `total` bytes are through. The size to ask for, where a quarter of what there is has passed in hardly more than a
    /// round trip: twice as much, for a sender may double with each. `inside` is the way to the workspace and back,
    /// `outside` looks for that of the other.
    pub fn outgrown(&mut self, total: u64, now: Time, inside: u64, outside: impl FnOnce() -> u64) -> Option<u32> {
        if total < WORTH_A_LOOK || self.size == LARGEST {
            return None;
        }
        let round_trip = inside + *self.round_trip.get_or_insert_with(outside);
        let (before, since) = self.mark;
        let is_over = 2 * now.since(since) > 3 * round_trip;
        let is_much = total - before >= u64::from(self.size / 4);
        if is_over || is_much {
            self.mark = (total, now);
        }
        if round_trip == 0 || is_over || !is_much {
            return None;
        }
        self.size *= 2;
        Some(self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size after streams of `rate` bytes a ms over these round trips.
    fn size_after(inside: u64, outside: u64, rate: u64, millis: u64) -> u32 {
        let mut queue = Queue::new(Time(0));
        for now in 1..=millis {
            queue.outgrown(now * rate, Time(now), inside, || outside);
        }
        queue.size
    }

    #[test]
    fn it_is_a_few_times_what_a_round_trip_takes() {
        for (inside, outside, rate, want) in [
            (0, 0, 1_000_000, FIRST),
            (0, 1, 10_000, FIRST),
            (0, 100, 100, FIRST),
            (0, 100, 10_000, 1 << 23),
            (100, 0, 10_000, 1 << 23),
            (50, 50, 10_000, 1 << 23),
            (0, 300, 100_000, LARGEST),
        ] {
            assert_eq!(size_after(inside, outside, rate, 20_000), want, "{inside} {outside} {rate}");
        }
    }

    /// Whoever doubles what is sent each round trip finds room for it.
    #[test]
    fn a_slow_start_is_never_in_want() {
        let (mut queue, mut total, mut size) = (Queue::new(Time(0)), 0, FIRST);
        // The first of it comes some round trips after the beginning: those of the handshakes and of the question.
        for (n, burst) in (3..).zip((0..10).map(|n| 14_480u64 << n)) {
            assert!(burst <= u64::from(size), "{burst} {size}");
            for _ in 0..10 {
                total += burst / 10;
                size = queue.outgrown(total, Time(n * 100), 100, || 0).unwrap_or(size);
            }
        }
    }
}
