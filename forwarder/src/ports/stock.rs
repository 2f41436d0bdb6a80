//! Unconnected TCP sockets of the workspace's network namespace, for connections that do not pass the TAP.
//!
//! Only a process inside can make them, which takes a fork: so some are kept ready, and the supervisor's factory is asked
//! for more before they run out. A client for whom there is none goes over the TAP.

use std::os::fd::OwnedFd;

use crate::timer::Time;

/// Sockets kept of each family: a burst of clients.
const KEPT: usize = 64;
/// Asked for again when no answer has come: whoever was asked may have died.
const ASK_AGAIN_MS: u64 = 2_000;

#[derive(Debug, Default)]
struct Shelf {
    sockets: Vec<OwnedFd>,
    asked: Option<Time>,
}

#[derive(Debug, Default)]
pub struct Stock {
    is_wanted: bool,
    v4: Shelf,
    v6: Shelf,
}

impl Stock {
    /// There is something to use them for.
    pub fn want(&mut self) {
        self.is_wanted = true;
    }

    pub fn take(&mut self, ipv6: bool) -> Option<OwnedFd> {
        self.shelf(ipv6).sockets.pop()
    }

    /// Puts what has been made on the shelf; None made is an answer, too.
    pub fn add(&mut self, ipv6: bool, sockets: Vec<OwnedFd>) {
        let shelf = self.shelf(ipv6);
        if !sockets.is_empty() {
            shelf.asked = None;
        }
        let room = KEPT - shelf.sockets.len().min(KEPT);
        shelf.sockets.extend(sockets.into_iter().take(room));
    }

    /// The family of which more should be asked for now.
    pub fn lacking(&mut self, now: Time) -> Option<bool> {
        if !self.is_wanted {
            return None;
        }
        let lacks = |shelf: &Shelf| {
            let is_asked = shelf.asked.is_some_and(|asked| now < asked.after(ASK_AGAIN_MS));
            shelf.sockets.len() <= KEPT / 2 && !is_asked
        };
        let ipv6 = if lacks(&self.v4) { false } else { lacks(&self.v6).then_some(true)? };
        self.shelf(ipv6).asked = Some(now);
        Some(ipv6)
    }

    fn shelf(&mut self, ipv6: bool) -> &mut Shelf {
        if ipv6 { &mut self.v6 } else { &mut self.v4 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets(count: usize) -> Vec<OwnedFd> {
        (0..count).map(|_| rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap()).collect()
    }

    #[test]
    fn more_is_asked_for_ahead_and_once() {
        let mut stock = Stock::default();
        assert_eq!(stock.lacking(Time(0)), None);
        stock.want();
        assert_eq!([0, 0, 0].map(|now| stock.lacking(Time(now))), [Some(false), Some(true), None]);
        stock.add(false, sockets(8));
        assert_eq!([0, 0].map(|now| stock.lacking(Time(now))), [Some(false), None]);
        // The family that cannot be had is asked for again, but not at once.
        stock.add(true, Vec::new());
        assert_eq!(stock.lacking(Time(1)), None);
        assert_eq!(stock.lacking(Time(ASK_AGAIN_MS)), Some(false));
        stock.add(false, sockets(KEPT));
        assert_eq!(stock.lacking(Time(ASK_AGAIN_MS)), Some(true));
        assert_eq!((0..KEPT + 8).filter_map(|_| stock.take(false)).count(), KEPT);
        assert!(stock.take(true).is_none());
    }
}
