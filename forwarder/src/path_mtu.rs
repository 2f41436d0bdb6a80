//! What the links inside the workspace take, where that is less than its TAP's MTU: the workspace's kernel says so, as a
//! router, about a packet of ours that it could not forward, to a container at a smaller bridge, say (RFC 1191,
//! RFC 8201). What is kept is a connection's, a mapping's or a ping's own, for the next one may be another container's.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use crate::timer::Time;

/// Less is not believed: it would cut everything into crumbs. Linux's net.ipv4.route.min_pmtu; IPv6's smallest link.
const LEAST_V4: u16 = 552;
const LEAST_V6: u16 = 1280;
/// How long it is believed (RFC 8201 4).
const LIFETIME_MS: u64 = 600_000;

/// What was said about one destination inside.
#[derive(Clone, Copy, Debug, Default)]
pub struct PathMtu(Option<(u16, Time)>);

impl PathMtu {
    pub fn heard(&mut self, mtu: u16, now: Time) {
        self.0 = Some((mtu, now.after(LIFETIME_MS)));
    }

    /// The longest packet to send over a link of `link` bytes.
    pub fn within(self, link: u16, now: Time) -> u16 {
        self.0.filter(|&(_, until)| now < until).map_or(link, |(mtu, _)| mtu.min(link))
    }
}

/// What is made of an MTU that was reported for packets to `guest`.
pub fn believed(mtu: u16, guest: IpAddr) -> u16 {
    mtu.max(if guest.is_ipv4() { LEAST_V4 } else { LEAST_V6 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_only_makes_smaller_and_is_forgotten() {
        let mut path = PathMtu::default();
        assert_eq!(path.within(1500, Time(0)), 1500);
        path.heard(1400, Time(0));
        assert_eq!((path.within(1500, Time(1)), path.within(1300, Time(1))), (1400, 1300));
        path.heard(believed(9000, [10, 0, 2, 100].into()), Time(2));
        assert_eq!(path.within(1500, Time(3)), 1500);
        path.heard(believed(0, "fd00::64".parse().unwrap()), Time(4));
        assert_eq!((path.within(1500, Time(5)), path.within(1500, Time(4 + LIFETIME_MS))), (1280, 1500));
        assert_eq!(believed(0, [10, 0, 2, 100].into()), 552);
    }
}
