//! Routes that were asked for lately and have not changed since: most programs connect to few places, and a look at the
//! kernel's notifications costs a tenth of the question.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::notices::Notices;
use super::route::Route;

/// Everything that a routing decision is made of: linux/rtnetlink.h, RTNLGRP_*.
const GROUPS: [u32; 8] = [
    1,  // LINK
    5,  // IPV4_IFADDR
    7,  // IPV4_ROUTE
    8,  // IPV4_RULE
    9,  // IPV6_IFADDR
    11, // IPV6_ROUTE
    19, // IPV6_RULE
    32, // NEXTHOP
];
/// How long an answer is good. Of which of several IPv6 routers is reachable there are no notifications.
const KEEP: Duration = Duration::from_secs(1);
/// Answers kept at a time, some 100 bytes each. Where there are more, all of them are asked for anew.
const MAX_KEPT: usize = 1024;

/// Destination, the socket's owner, and its address, where the routes do not choose it.
pub type Question = (IpAddr, Option<u32>, Option<IpAddr>);

pub struct KnownRoutes {
    notices: Notices,
    kept: HashMap<Question, (Option<Route>, Instant)>,
    changes: u64,
}

/// The state of the routes that an answer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State(u64);

pub enum Recalled {
    Route(Option<Route>),
    /// To be asked for, and then told with this.
    Unknown(State),
}

impl KnownRoutes {
    /// `netlink`: a NETLINK_ROUTE socket made in the namespace whose routes these are.
    pub fn new(netlink: OwnedFd) -> io::Result<Self> {
        Ok(Self { notices: Notices::join(netlink, &GROUPS)?, kept: HashMap::new(), changes: 0 })
    }

    pub fn recall(&mut self, question: &Question, now: Instant) -> io::Result<Recalled> {
        if self.notices.any()? {
            self.kept.clear();
            self.changes += 1;
        }
        let fresh = |since: Instant| now.saturating_duration_since(since) < KEEP;
        Ok(match self.kept.get(question) {
            Some(&(route, since)) if fresh(since) => Recalled::Route(route),
            _ => Recalled::Unknown(State(self.changes)),
        })
    }

    /// Keeps what the kernel said after [`Self::recall`], unless somebody else has seen a change in between.
    pub fn remember(&mut self, question: Question, route: Option<Route>, state: State, asked: Instant) {
        if state != State(self.changes) {
            return;
        }
        if self.kept.len() >= MAX_KEPT {
            self.kept.clear();
        }
        self.kept.insert(question, (route, asked));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket;

    #[test]
    fn only_what_was_asked_since_the_last_change_is_recalled() {
        let netlink = socket::new(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE).unwrap();
        let (mut known, start) = (KnownRoutes::new(netlink).unwrap(), Instant::now());
        let question: Question = ("192.0.2.1".parse().unwrap(), Some(7), None);
        let Recalled::Unknown(state) = known.recall(&question, start).unwrap() else { panic!("nobody told") };
        let route = Some(Route { kind: libc::RTN_UNICAST, device: 3, source: None, gateway: None });
        let is_known = |known: &mut KnownRoutes, question: &Question, after| matches!(known.recall(question, start + after).unwrap(), Recalled::Route(known) if known == route);
        known.remember(question, route, state, start);
        assert!(is_known(&mut known, &question, KEEP / 2));
        assert!(!is_known(&mut known, &(question.0, Some(8), None), KEEP / 2), "another user's");
        assert!(!is_known(&mut known, &question, KEEP), "too old");
        known.changes += 1;
        known.kept.clear();
        known.remember(question, route, state, start);
        assert!(!is_known(&mut known, &question, Duration::ZERO), "asked before a change that somebody else has seen");
    }
}
