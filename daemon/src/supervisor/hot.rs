//! The decision by itself, for `benches/hot`: its types are the supervisor's own. Its tests begin with the same socket.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};

use sidestep_forwarder::network::{Ipv4Subnet, VirtualNetwork};
use sidestep_forwarder::policy::{Action, Policy, Request, Rule};

use super::Extent;
use super::decide::{Candidate, Ground, Ways, candidate, with_routes};
use super::decode::Call;
use super::facts::{Bound, Kind, NetnsCookie, SocketCookie, SocketFacts, TcpState};
use super::netfilter::Netfilter;
use super::route::{HostRoute, InsideRoute};
use super::sockaddr::RawAddress;

/// A fresh socket's connect to an address outside, past so many egress rules of which none matches.
#[must_use]
#[allow(clippy::missing_panics_doc, reason = "made of constants")]
pub fn decide(rules: u8) -> Box<dyn FnMut()> {
    let rule =
        |number| Rule { action: Action::Deny, matches: format!("198.51.{number}.0/24").parse().expect("a rule") };
    let rules = (0..rules).map(rule).collect();
    let ground = Ground {
        host: NetnsCookie(1),
        workspace: NetnsCookie(2),
        network: VirtualNetwork::new(Ipv4Subnet::DEFAULT, None, 1500),
        policy: Policy { host_loopback: false, rules },
        extent: Extent::default(),
        tap_ifindex: 2,
    };
    let facts = fresh(NetnsCookie(2));
    let call = Call::Connect(RawAddress::from(SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 443))));
    Box::new(move || {
        let Candidate::Outward(destination, transport) = candidate(&ground, black_box(&call), black_box(&facts)) else {
            unreachable!("nothing keeps it inside")
        };
        let ways = Ways {
            inside: InsideRoute::OurTap { source: None },
            netfilter: Netfilter::Untouched,
            host: HostRoute::One { device: 2 },
        };
        black_box(with_routes(&ground, Request { destination, transport }, ways));
    })
}

/// A TCP socket as socket(2) makes it.
pub(super) fn fresh(netns: NetnsCookie) -> SocketFacts {
    SocketFacts {
        kind: Kind::Tcp,
        ipv6: false,
        raw: false,
        netns,
        cookie: SocketCookie(9),
        state: TcpState::Closed,
        bound: Bound::No,
        nonblocking: false,
        signals: false,
        uid: 0,
    }
}
