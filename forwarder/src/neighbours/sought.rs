//! Addresses on the TAP's link that nobody has spoken from yet: a machine bridged to it that only listens, anybody after a
//! crash. They are asked for (ARP, neighbour solicitations) while the first frames for them wait.
//!
//! ```text
//! kept ── asked for, up to ASKS times ──┬─ somebody speaks from there: what was kept goes there
//!                                       └─ nobody does: to the workspace, which may not answer, or know the way
//! ```
//!
//! Limits: [`MAX_SOUGHT`] addresses, beyond which frames go to the workspace at once; [`MAX_KEPT`] bytes for each.

use std::net::IpAddr;

use crate::edge::Edge;
use crate::gateway::{arp, ndp};
use crate::timer::Time;

/// Addresses at once: more machines than these are not silent all at a time.
const MAX_SOUGHT: usize = 16;
/// Bytes of frames kept for one of them: a client's first datagrams, and what ends a predecessor's connections. That is
/// 3 MB for all.
const MAX_KEPT: usize = 192 << 10;
/// How often it is asked for, and how long is waited each time. A machine answers at once, if it is not very busy.
const ASKS: u8 = 3;
const ASK_MS: u64 = 500;

#[derive(Debug)]
struct Seek {
    address: IpAddr,
    frames: Vec<Vec<u8>>,
    /// Of all frames.
    bytes: usize,
    asked: u8,
    due: Time,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    Yes,
    /// As much waits for this address already.
    Dropped,
    /// There is no room for another address.
    No,
}

enum Due {
    Ask(IpAddr),
    GiveUp(Vec<Vec<u8>>),
}

/// All of them.
#[derive(Debug, Default)]
pub struct Sought {
    seeks: Vec<Seek>,
}

impl Sought {
    /// Keeps a frame for an address that is asked for from now on.
    pub fn keep(&mut self, address: IpAddr, frame: &[u8], now: Time) -> Kept {
        if let Some(seek) = self.seeks.iter_mut().find(|seek| seek.address == address) {
            if seek.bytes + frame.len() > MAX_KEPT {
                return Kept::Dropped;
            }
            seek.bytes += frame.len();
            seek.frames.push(frame.to_vec());
            return Kept::Yes;
        }
        if self.seeks.len() >= MAX_SOUGHT {
            return Kept::No;
        }
        self.seeks.push(Seek { address, frames: vec![frame.to_vec()], bytes: frame.len(), asked: 0, due: now });
        Kept::Yes
    }

    /// Somebody has spoken from `address`: what was kept for it.
    pub fn found(&mut self, address: IpAddr) -> Vec<Vec<u8>> {
        let index = self.seeks.iter().position(|seek| seek.address == address);
        index.map(|index| self.seeks.swap_remove(index).frames).unwrap_or_default()
    }

    /// When [`ask`] has something to do.
    pub fn deadline(&self) -> Option<Time> {
        self.seeks.iter().map(|seek| seek.due).min()
    }

    fn due(&mut self, now: Time) -> Option<Due> {
        let index = self.seeks.iter().position(|seek| seek.due <= now)?;
        let seek = self.seeks.get_mut(index)?;
        if seek.asked >= ASKS {
            return Some(Due::GiveUp(self.seeks.swap_remove(index).frames));
        }
        seek.asked += 1;
        seek.due = now.after(ASK_MS);
        Some(Due::Ask(seek.address))
    }
}

/// Asks for those that are due.
pub fn ask(edge: &mut Edge) {
    while let Some(due) = edge.sought.due(edge.now) {
        match due {
            Due::Ask(IpAddr::V4(address)) => arp::ask(edge, address),
            Due::Ask(IpAddr::V6(address)) => ndp::ask(edge, address),
            Due::GiveUp(frames) => frames.iter().for_each(|frame| edge.kept_to_tap(frame)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 2, last].into()
    }

    #[test]
    fn frames_wait_until_it_is_found_or_given_up() {
        let mut sought = Sought::default();
        for (first, len, want) in
            [(0, 10, Kept::Yes), (1, 60_000, Kept::Yes), (2, MAX_KEPT, Kept::Dropped), (3, 1, Kept::Yes)]
        {
            assert_eq!(sought.keep(address(40), &vec![first; len], Time(7)), want, "{first}");
        }
        sought.keep(address(41), b"b", Time(7));
        let mut asked = Vec::new();
        let given_up = loop {
            let now = sought.deadline().unwrap();
            match sought.due(now).unwrap() {
                Due::Ask(address) => asked.push((now.0, address)),
                Due::GiveUp(frames) => break (now.0, frames),
            }
            if asked.len() == 3 {
                assert_eq!(sought.found(address(41)), [b"b"]);
            }
        };
        let want = [(7, 40), (7, 41), (507, 40), (1007, 40)].map(|(at, last)| (at, address(last)));
        assert_eq!(asked, want);
        assert_eq!(given_up, (1507, vec![vec![0; 10], vec![1; 60_000], vec![3]]));
        assert_eq!((sought.deadline(), sought.found(address(40))), (None, Vec::new()));
    }

    #[test]
    fn addresses_are_bounded() {
        let mut sought = Sought::default();
        let kept = (0..=255).filter(|&last| sought.keep(address(last), b"x", Time(0)) == Kept::Yes).count();
        assert_eq!(kept, MAX_SOUGHT);
        assert_eq!(sought.keep(address(255), b"x", Time(0)), Kept::No);
    }
}
