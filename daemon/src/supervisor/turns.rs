//! One swap of a socket at a time: threads that connect the same socket at once begin one connection, as by the kernel.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

use super::active::STUCK_AFTER;
use super::facts::SocketCookie;

/// Turns that ended and are remembered: as many as may end while another thread is on its way to its own.
const RECENT: usize = 256;

#[derive(Default)]
pub struct Turns {
    state: Mutex<State>,
    ended: Condvar,
    /// Threads that wait for `ended`; changed under the lock.
    waiting: AtomicUsize,
}

#[derive(Default)]
struct State {
    taken: HashSet<SocketCookie>,
    recent: VecDeque<SocketCookie>,
}

/// Nobody else swaps the socket while this lives.
pub struct Turn<'a> {
    turns: &'a Turns,
    cookie: SocketCookie,
    /// Somebody had a turn just before: what was known of the descriptor may be old.
    pub second: bool,
}

impl Turns {
    /// None: whoever has the turn does not come to an end.
    pub fn take(&self, cookie: SocketCookie) -> Option<Turn<'_>> {
        let mut state = self.state.lock().ok()?;
        if state.taken.contains(&cookie) {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            let ended = self.ended.wait_timeout_while(state, STUCK_AFTER, |state| state.taken.contains(&cookie));
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            (state, _) = ended.ok()?;
        }
        let second = state.recent.contains(&cookie);
        state.taken.insert(cookie).then_some(Turn { turns: self, cookie, second })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Ok(mut state) = self.turns.state.lock() else { return };
        state.taken.remove(&self.cookie);
        if state.recent.len() >= RECENT {
            state.recent.pop_front();
        }
        state.recent.push_back(self.cookie);
        if self.turns.waiting.load(Ordering::Relaxed) != 0 {
            self.turns.ended.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_after_the_other() {
        let turns = Turns::default();
        let first = turns.take(SocketCookie(1)).unwrap();
        assert!(!first.second);
        assert!(!turns.take(SocketCookie(2)).unwrap().second);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| turns.take(SocketCookie(1)).unwrap().second);
            while turns.waiting.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            drop(first);
            assert!(second.join().unwrap());
        });
        assert!(turns.take(SocketCookie(1)).unwrap().second);
        assert!(!turns.take(SocketCookie(3)).unwrap().second);
    }
}
