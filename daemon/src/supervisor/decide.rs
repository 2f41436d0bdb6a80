//! The decision, pure: what was called on which socket, where the routes lead, what policy says → what is done.
//!
//! Rule 1: the workspace's own kernel decides. A connection is taken out only where its namespace would have sent it
//! through our TAP unchanged; every doubt is `InPlace`, which is always right. Rule 2: policy is the same on both paths.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use sidestep_forwarder::network::VirtualNetwork;
use sidestep_forwarder::policy::{Egress, Policy, Request, Transport};
use sidestep_forwarder::ports::Shadow;

use super::Extent;
use super::decode::Call;
use super::facts::{Bound, Kind, NetnsCookie, SocketFacts, TcpState};
use super::netfilter::Netfilter;
use super::reason::Reason;
use super::route::{HostRoute, InsideRoute};
use super::sockaddr::Meaning;

/// What a supervisor knows before any call.
#[derive(Clone, Debug)]
pub struct Ground {
    pub host: NetnsCookie,
    pub workspace: NetnsCookie,
    pub network: VirtualNetwork,
    pub policy: Policy,
    pub extent: Extent,
    /// Index of our TAP in the workspace's namespace.
    pub tap_ifindex: u32,
}

/// What is done about a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Dialled from the host's namespace, and the host socket put in the process's descriptor.
    Bypass(Exit),
    /// To listen on a host socket, where this port of the workspace is published and can be shared; else in place.
    Listen {
        port: u16,
    },
    /// Carried out by the supervisor on the process's own socket, in that socket's namespace. A host socket is first
    /// replaced by one of the workspace's namespace.
    InPlace(Reason),
    /// On a host socket that is connecting, connected or listening: the kernel's answer there, no new destination.
    OnHostSocket,
    Deny(i32, Reason),
    /// Left to the kernel: no IP address is involved.
    Continue(Reason),
}

/// Where a connection taken out goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    pub to: SocketAddr,
    /// The interface to bind the host socket to: a UDP socket's, which could be aimed elsewhere later.
    pub device: Option<u32>,
    /// Nowhere out of the workspace: to its program that listens on the host.
    pub program: Option<Shadow>,
}

/// Where a connect might be taken to, before routes are asked; everything cheap is settled here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Candidate {
    Settled(Verdict),
    /// Ask the routes about this destination, then [`with_routes`].
    Outward(SocketAddr, Transport),
    /// To the loopback of the socket's own namespace, by TCP: ask whether a program of it listens there on the host.
    Inward(SocketAddr),
}

/// The part of the decision that needs no route.
pub fn candidate(ground: &Ground, call: &Call, facts: &SocketFacts) -> Candidate {
    if facts.kind == Kind::NotIp {
        return Candidate::Settled(not_ip(call));
    }
    if facts.netns == ground.host {
        return on_host_socket(ground, call, facts);
    }
    if let Some(port) = listens_at(ground, call, facts) {
        return Candidate::Settled(Verdict::Listen { port });
    }
    match in_place_reason(ground, call, facts) {
        Some(reason) => Candidate::Settled(Verdict::InPlace(reason)),
        None => outward(ground, call, facts),
    }
}

/// What the two kernels say about a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ways {
    /// Where the kernel would send a connection inside, and whether it would leave it as it is: in the workspace, and in
    /// a nested namespace before that.
    pub inside: InsideRoute,
    pub netfilter: Netfilter,
    /// Where the host's would send it.
    pub host: HostRoute,
}

/// The rest of the decision.
pub fn with_routes(ground: &Ground, request: Request, ways: Ways) -> Verdict {
    if ways.inside == InsideRoute::Elsewhere {
        return Verdict::InPlace(Reason::Route);
    }
    if ways.netfilter == Netfilter::CouldTouch {
        return Verdict::InPlace(Reason::Netfilter);
    }
    // The host's routes have been asked about one spelling of it: about another, behind a NAT64, the TAP asks.
    let is_of_another = Cell::new(false);
    let is_own = |addr| {
        is_of_another.set(is_of_another.get() || addr != request.destination.ip().to_canonical());
        ways.host == HostRoute::Own
    };
    let to = match ground.policy.egress(&ground.network, request, is_own) {
        Egress::Host(to) if !is_of_another.get() => to,
        // The TAP decides, and what it refuses has the same words, at the same place.
        _ => return Verdict::InPlace(Reason::Policy),
    };
    match (request.transport, ways.host) {
        (_, HostRoute::Many) => Verdict::InPlace(Reason::HostRoute),
        (Transport::Tcp, _) => Verdict::Bypass(Exit { to, device: None, program: None }),
        (_, HostRoute::One { device }) => Verdict::Bypass(Exit { to, device: Some(device), program: None }),
        // No interface to bind to that leads there and not to the host's loopback.
        (_, HostRoute::Own | HostRoute::None) => Verdict::InPlace(Reason::HostRoute),
    }
}

/// No IP address is involved, and Landlock denies what an exchanged descriptor could turn connect and bind into.
/// It knows nothing of listen, which binds an unbound socket: that is never left to the kernel.
fn not_ip(call: &Call) -> Verdict {
    match call {
        Call::Connect(_) | Call::Bind(_) => Verdict::Continue(Reason::NotIp),
        Call::Listen { .. } => Verdict::InPlace(Reason::NotIp),
    }
}

/// The port at which a listen might be taken out: of the workspace itself, at every address. One that listens already may
/// have been begun with by a supervisor that died.
fn listens_at(ground: &Ground, call: &Call, facts: &SocketFacts) -> Option<u16> {
    let Call::Listen { .. } = call else { return None };
    let is_it = matches!(facts.kind, Kind::Tcp | Kind::Mptcp)
        && facts.netns == ground.workspace
        && matches!(facts.state, TcpState::Closed | TcpState::Listening)
        && !facts.signals;
    match facts.bound {
        Bound::Anywhere(port) if is_it => Some(port),
        _ => None,
    }
}

fn in_place_reason(ground: &Ground, call: &Call, facts: &SocketFacts) -> Option<Reason> {
    let Call::Connect(_) = call else { return Some(Reason::NotConnect) };
    if facts.netns != ground.workspace && !ground.extent.nested {
        Some(Reason::NestedNamespace)
    } else if transport(ground, facts.kind).is_none() {
        Some(Reason::NotTcp)
    } else if facts.state != TcpState::Closed {
        Some(Reason::InUse)
    } else if facts.bound != Bound::No {
        Some(Reason::Bound)
    } else if facts.signals {
        Some(Reason::Signals)
    } else {
        None
    }
}

/// None: sockets of this kind are not taken out.
fn transport(ground: &Ground, kind: Kind) -> Option<Transport> {
    match kind {
        Kind::Tcp => Some(Transport::Tcp),
        Kind::Udp => ground.extent.udp.then_some(Transport::Udp),
        Kind::Mptcp | Kind::OtherIp | Kind::NotIp => None,
    }
}

fn outward(ground: &Ground, call: &Call, facts: &SocketFacts) -> Candidate {
    let in_place = |reason| Candidate::Settled(Verdict::InPlace(reason));
    let Some(transport) = transport(ground, facts.kind) else { return in_place(Reason::NotTcp) };
    let Call::Connect(address) = call else { return in_place(Reason::NotConnect) };
    let Meaning::Ip(destination) = address.meaning() else { return in_place(Reason::NotAnAddress) };
    let ip = destination.ip().to_canonical();
    if destination.is_ipv6() != facts.ipv6 {
        // An address of the other family is none to this socket.
        in_place(Reason::NotAnAddress)
    } else if destination.port() == 0 {
        in_place(Reason::PortZero)
    } else if ip.is_multicast() {
        in_place(Reason::Multicast)
    } else if transport == Transport::Tcp
        && let Some(to) = on_loopback(destination)
    {
        Candidate::Inward(to)
    } else if ground.network.role(ip).is_some() || ip.is_unspecified() || ip.is_loopback() {
        in_place(Reason::VirtualAddress)
    } else {
        Candidate::Outward(destination, transport)
    }
}

/// A destination on the loopback: connect(2) takes "any address" for it.
fn on_loopback(destination: SocketAddr) -> Option<SocketAddr> {
    let ip = match destination.ip() {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    ip.to_canonical().is_loopback().then(|| SocketAddr::new(ip, destination.port()))
}

/// Host sockets exist in the workspace only because a connect or a listen was taken out, or by accept(2) on such a one;
/// each further call on one is settled so that none of them ever moves it to another destination or port.
fn on_host_socket(ground: &Ground, call: &Call, facts: &SocketFacts) -> Candidate {
    if transport(ground, facts.kind).is_none() {
        return Candidate::Settled(Verdict::Deny(libc::EPERM, Reason::NotTcp));
    }
    match (call, facts.state) {
        (Call::Connect(address), state) => match (address.meaning(), state) {
            (Meaning::Unspecified, _) => Candidate::Settled(Verdict::InPlace(Reason::Disconnect)),
            // A UDP socket may be connected again and again: each time it is decided anew.
            (_, TcpState::Closed) => outward(ground, call, facts),
            _ => Candidate::Settled(Verdict::OnHostSocket),
        },
        (Call::Bind(_), _) if facts.kind == Kind::Udp => Candidate::Settled(Verdict::Deny(libc::EINVAL, Reason::InUse)),
        // Another backlog.
        (Call::Listen { .. }, TcpState::Listening) => Candidate::Settled(Verdict::OnHostSocket),
        (Call::Bind(_) | Call::Listen { .. }, TcpState::Closed) => {
            Candidate::Settled(Verdict::InPlace(Reason::NotConnect))
        }
        (Call::Bind(_) | Call::Listen { .. }, _) => Candidate::Settled(Verdict::Deny(libc::EINVAL, Reason::InUse)),
    }
}

#[cfg(test)]
mod tests;
