//! Routes that were asked for lately and have not changed since: most programs connect to few places, and a look at the
//! kernel's notifications costs a tenth of the question.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use sidestep_forwarder::policy::{Request, Transport};

use super::notices::Notices;
use super::route::{Packet, Route};
use super::rules::Rules;

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

/// What a kernel is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    pub destination: IpAddr,
    pub packet: Packet,
    /// Protocol and destination port, as far as rules look at them; port 0 is none.
    pub carries: Option<(Transport, u16)>,
}

impl Question {
    pub fn new(request: Request, packet: Packet, rules: Rules) -> Self {
        let port = if rules.by_port { request.destination.port() } else { 0 };
        let carries = (rules.by_protocol || rules.by_port).then_some((request.transport, port));
        Self { destination: request.destination.ip().to_canonical(), packet, carries }
    }
}

pub struct KnownRoutes {
    notices: Notices,
    /// Of IPv4 and of IPv6. None: not asked for since the last change.
    rules: [Option<Rules>; 2],
    kept: HashMap<Question, (Option<Route>, Instant)>,
    changes: u64,
}

/// The state of the routes that an answer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State(u64);

/// What the kernel has said.
pub type Answer = (Rules, Option<Route>);

pub enum Recalled {
    Route(Rules, Option<Route>),
    /// To be asked for, and then told with this; and so are rules that are not known.
    Unknown(State, Option<Rules>),
}

impl KnownRoutes {
    /// `netlink`: a NETLINK_ROUTE socket made in the namespace whose routes these are.
    pub fn new(netlink: OwnedFd) -> io::Result<Self> {
        Ok(Self { notices: Notices::join(netlink, &GROUPS)?, rules: [None; 2], kept: HashMap::new(), changes: 0 })
    }

    pub fn recall(&mut self, request: Request, packet: Packet, now: Instant) -> io::Result<Recalled> {
        if self.notices.any()? {
            self.kept.clear();
            self.rules = [None; 2];
            self.changes += 1;
        }
        let unknown = |rules| Recalled::Unknown(State(self.changes), rules);
        let Some(rules) = self.rules[family(request.destination.ip())] else { return Ok(unknown(None)) };
        let fresh = |since: Instant| now.saturating_duration_since(since) < KEEP;
        Ok(match self.kept.get(&Question::new(request, packet, rules)) {
            Some(&(route, since)) if fresh(since) => Recalled::Route(rules, route),
            _ => unknown(Some(rules)),
        })
    }

    /// Keeps what the kernel said after [`Self::recall`], unless somebody else has seen a change in between.
    pub fn remember(&mut self, question: Question, (rules, route): Answer, state: State, asked: Instant) {
        if state != State(self.changes) {
            return;
        }
        self.rules[family(question.destination)] = Some(rules);
        // Nobody notifies of what else there is to a packet that is received: net.ipv4.ip_forward.
        if !matches!(question.packet, Packet::Own { .. }) {
            return;
        }
        if self.kept.len() >= MAX_KEPT {
            self.kept.clear();
        }
        self.kept.insert(question, (route, asked));
    }
}

fn family(ip: IpAddr) -> usize {
    usize::from(ip.to_canonical().is_ipv6())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket;

    #[test]
    fn only_what_was_asked_since_the_last_change_is_recalled() {
        let netlink = socket::new(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE).unwrap();
        let (mut known, start) = (KnownRoutes::new(netlink).unwrap(), Instant::now());
        let request = |port| Request { destination: ([192, 0, 2, 1], port).into(), transport: Transport::Tcp };
        let of = |uid| Packet::Own { uid: Some(uid), source: None };
        let Recalled::Unknown(state, None) = known.recall(request(1), of(7), start).unwrap() else {
            panic!("nobody told")
        };
        let route = Some(Route { kind: libc::RTN_UNICAST, device: 3, source: None, gateway: None });
        let is_known = |known: &mut KnownRoutes, port, uid, after| matches!(known.recall(request(port), of(uid), start + after).unwrap(), Recalled::Route(_, known) if known == route);
        for by_port in [false, true] {
            let rules = Rules { by_port, ..Rules::default() };
            known.remember(Question::new(request(1), of(7), rules), (rules, route), state, start);
            assert!(is_known(&mut known, 1, 7, KEEP / 2));
            assert_eq!(is_known(&mut known, 2, 7, KEEP / 2), !by_port, "another port");
            assert!(!is_known(&mut known, 1, 8, KEEP / 2), "another user's");
            assert!(!is_known(&mut known, 1, 7, KEEP), "too old");
        }
        let (rules, received) = (Rules::default(), Packet::Received { source: [192, 0, 2, 9].into(), device: 3 });
        known.remember(Question::new(request(1), received, rules), (rules, route), state, start);
        let recalled = known.recall(request(1), received, start).unwrap();
        assert!(matches!(recalled, Recalled::Unknown(_, Some(_))), "depends on what nobody tells of");
        known.changes += 1;
        known.kept.clear();
        known.remember(Question::new(request(1), of(7), rules), (rules, route), state, start);
        assert!(!is_known(&mut known, 1, 7, Duration::ZERO), "asked before a change that somebody else has seen");
    }
}
