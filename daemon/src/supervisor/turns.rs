//! One swap of a socket at a time: threads that connect the same socket at once begin one connection, as by the kernel.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

use super::active::STUCK_AFTER;
use super::facts::SocketCookie;

#[derive(Default)]
pub struct Turns {
    taken: Mutex<HashSet<SocketCookie>>,
    ended: Condvar,
    /// Threads that wait for `ended`; changed under the lock.
    waiting: AtomicUsize,
}

/// Nobody else swaps the socket while this lives.
pub struct Turn<'a> {
    turns: &'a Turns,
    cookie: SocketCookie,
    /// Somebody had a turn before: what was known of the socket is old.
    pub waited: bool,
}

impl Turns {
    /// None: whoever has the turn does not come to an end.
    pub fn take(&self, cookie: SocketCookie) -> Option<Turn<'_>> {
        let mut taken = self.taken.lock().ok()?;
        let waited = taken.contains(&cookie);
        if waited {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            let ended = self.ended.wait_timeout_while(taken, STUCK_AFTER, |taken| taken.contains(&cookie));
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            (taken, _) = ended.ok()?;
        }
        taken.insert(cookie).then_some(Turn { turns: self, cookie, waited })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Ok(mut taken) = self.turns.taken.lock() else { return };
        taken.remove(&self.cookie);
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
        assert!(!first.waited);
        assert!(!turns.take(SocketCookie(2)).unwrap().waited);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| turns.take(SocketCookie(1)).unwrap().waited);
            while turns.waiting.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            drop(first);
            assert!(second.join().unwrap());
        });
        assert!(!turns.take(SocketCookie(1)).unwrap().waited);
    }
}
