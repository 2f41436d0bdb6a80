//! The decision, pure: what was called on which socket, where the routes lead, what policy says → what is done.
//!
//! Rule 1: the workspace's own kernel decides. A connection is taken out only where its namespace would have sent it
//! through our TAP unchanged; every doubt is `InPlace`, which is always right. Rule 2: policy is the same on both paths.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use sidestep_forwarder::network::VirtualNetwork;
use sidestep_forwarder::policy::{Egress, Policy, Request, Transport};
use sidestep_forwarder::ports::Shadow;

use super::Extent;
use super::decode::Call;
use super::facts::{Bound, Kind, NetnsCookie, SocketFacts, TcpState};
use super::netfilter::Netfilter;
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

/// Why, for the log and the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    NotIp,
    /// No socket that is taken out: UDP without `--bypass-udp`, raw, a connection of MPTCP.
    NotTcp,
    /// Without `--bypass-nested`, or one that cannot be asked.
    NestedNamespace,
    NotConnect,
    NotAnAddress,
    /// connect to AF_UNSPEC on a host socket.
    Disconnect,
    InUse,
    Bound,
    Signals,
    VirtualAddress,
    Multicast,
    PortZero,
    /// The route inside leads elsewhere: loopback, a bridge, another device, nowhere.
    Route,
    /// A rule of the workspace's netfilter could touch it.
    Netfilter,
    /// The host would not send it to one peer.
    HostRoute,
    Policy,
    // What shows only in the swap.
    /// One of the namespaces has no sockets of this family.
    NoFamily,
    /// An option that has no meaning, or another one, on a host socket.
    SocketOption,
    SocketFilter,
    /// Sticky IPv6 headers and packet information.
    ExtensionHeaders,
    /// A priority that takes a privilege.
    Priority,
    /// The host socket did not take an option's value.
    NotTaken,
    /// A UDP socket could not be bound to the interface it would leave by.
    Interface,
    // Of listen(2).
    /// The port is not published, or not for a socket of this family.
    NotPublished,
    /// The program shares its port with others (SO_REUSEPORT), or it is published more than once.
    SharedPort,
    /// The host's port could not be shared.
    HostPort,
    // Of a connect to a program that listens on the host.
    /// The host has it at another address or port, which the program that connects would see; or its queue is full.
    Relayed,
}

impl Reason {
    /// In the order of their declaration.
    pub const ALL: [Self; 27] = [
        Self::NotIp,
        Self::NotTcp,
        Self::NestedNamespace,
        Self::NotConnect,
        Self::NotAnAddress,
        Self::Disconnect,
        Self::InUse,
        Self::Bound,
        Self::Signals,
        Self::VirtualAddress,
        Self::Multicast,
        Self::PortZero,
        Self::Route,
        Self::Netfilter,
        Self::HostRoute,
        Self::Policy,
        Self::NoFamily,
        Self::SocketOption,
        Self::SocketFilter,
        Self::ExtensionHeaders,
        Self::Priority,
        Self::NotTaken,
        Self::Interface,
        Self::NotPublished,
        Self::SharedPort,
        Self::HostPort,
        Self::Relayed,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::NotIp => "not_ip",
            Self::NotTcp => "not_tcp",
            Self::NestedNamespace => "nested_namespace",
            Self::NotConnect => "not_connect",
            Self::NotAnAddress => "not_an_address",
            Self::Disconnect => "disconnect",
            Self::InUse => "in_use",
            Self::Bound => "bound",
            Self::Signals => "signals",
            Self::VirtualAddress => "virtual_address",
            Self::Multicast => "multicast",
            Self::PortZero => "port_zero",
            Self::Route => "route",
            Self::Netfilter => "netfilter",
            Self::HostRoute => "host_route",
            Self::Policy => "policy",
            Self::NoFamily => "no_family",
            Self::SocketOption => "socket_option",
            Self::SocketFilter => "socket_filter",
            Self::ExtensionHeaders => "extension_headers",
            Self::Priority => "priority",
            Self::NotTaken => "not_taken",
            Self::Interface => "interface",
            Self::NotPublished => "not_published",
            Self::SharedPort => "shared_port",
            Self::HostPort => "host_port",
            Self::Relayed => "relayed",
        }
    }
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
    let Egress::Host(to) = ground.policy.egress(&ground.network, request, |_| ways.host == HostRoute::Own) else {
        // The TAP refuses it in the same words, at the same place.
        return Verdict::InPlace(Reason::Policy);
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
mod tests {
    use super::*;
    use crate::supervisor::hot::fresh;
    use crate::supervisor::sockaddr::RawAddress;
    use sidestep_forwarder::network::{Ipv4Subnet, Ipv6Subnet};
    use sidestep_forwarder::policy::{Action, Rule};

    const HOST: NetnsCookie = NetnsCookie(1);
    const WORKSPACE: NetnsCookie = NetnsCookie(2);
    const NESTED: NetnsCookie = NetnsCookie(3);

    fn ground() -> Ground {
        let network = VirtualNetwork::new(Ipv4Subnet::DEFAULT, Some(Ipv6Subnet::DEFAULT), 1500);
        Ground {
            host: HOST,
            workspace: WORKSPACE,
            network,
            policy: Policy::default(),
            extent: Extent::default(),
            tap_ifindex: 2,
        }
    }

    fn connect(address: &str) -> Call {
        Call::Connect(RawAddress::from(address.parse::<SocketAddr>().unwrap()))
    }

    fn settled(call: &Call, facts: SocketFacts) -> Verdict {
        match candidate(&ground(), call, &facts) {
            Candidate::Settled(verdict) => verdict,
            going => panic!("{call:?} went to {going:?}"),
        }
    }

    #[test]
    fn only_a_fresh_tcp_socket_of_the_workspace_goes_outward() {
        let call = connect("192.0.2.1:80");
        let outward = Candidate::Outward("192.0.2.1:80".parse().unwrap(), Transport::Tcp);
        assert_eq!(candidate(&ground(), &call, &fresh(WORKSPACE)), outward);
        let cases = [
            (SocketFacts { netns: NESTED, ..fresh(WORKSPACE) }, Reason::NestedNamespace),
            (SocketFacts { kind: Kind::OtherIp, ..fresh(WORKSPACE) }, Reason::NotTcp),
            (SocketFacts { kind: Kind::Udp, ..fresh(WORKSPACE) }, Reason::NotTcp),
            (SocketFacts { state: TcpState::InUse, ..fresh(WORKSPACE) }, Reason::InUse),
            (SocketFacts { bound: Bound::Address, ..fresh(WORKSPACE) }, Reason::Bound),
            (SocketFacts { signals: true, ..fresh(WORKSPACE) }, Reason::Signals),
        ];
        for (facts, reason) in cases {
            assert_eq!(settled(&call, facts), Verdict::InPlace(reason));
        }
        let unix = SocketFacts { kind: Kind::NotIp, ..fresh(WORKSPACE) };
        assert_eq!(settled(&call, unix), Verdict::Continue(Reason::NotIp));
        assert_eq!(settled(&Call::Listen { backlog: 1 }, unix), Verdict::InPlace(Reason::NotIp));
    }

    #[test]
    fn what_may_listen_at_a_published_port() {
        let listen = Call::Listen { backlog: 1 };
        let bound = SocketFacts { bound: Bound::Anywhere(80), ..fresh(WORKSPACE) };
        let taken = [
            bound,
            SocketFacts { ipv6: true, ..bound },
            SocketFacts { kind: Kind::Mptcp, ..bound },
            SocketFacts { state: TcpState::Listening, ..bound },
        ];
        for facts in taken {
            assert_eq!(settled(&listen, facts), Verdict::Listen { port: 80 }, "{facts:?}");
        }
        let kept = [
            SocketFacts { bound: Bound::Address, ..bound },
            SocketFacts { bound: Bound::No, ..bound },
            SocketFacts { netns: NESTED, ..bound },
            SocketFacts { kind: Kind::Udp, ..bound },
            SocketFacts { kind: Kind::OtherIp, ..bound },
            SocketFacts { state: TcpState::InUse, ..bound },
            SocketFacts { signals: true, ..bound },
        ];
        for facts in kept {
            assert_eq!(settled(&listen, facts), Verdict::InPlace(Reason::NotConnect), "{facts:?}");
        }
    }

    #[test]
    fn a_nested_namespace_goes_outward_on_request() {
        let ground = Ground { extent: Extent { nested: true, ..Extent::default() }, ..ground() };
        let call = connect("192.0.2.1:80");
        let outward = Candidate::Outward("192.0.2.1:80".parse().unwrap(), Transport::Tcp);
        assert_eq!(candidate(&ground, &call, &fresh(NESTED)), outward);
        let kept = |call: &Call, facts, reason| {
            assert_eq!(candidate(&ground, call, &facts), Candidate::Settled(Verdict::InPlace(reason)));
        };
        kept(&call, SocketFacts { bound: Bound::Address, ..fresh(NESTED) }, Reason::Bound);
        kept(&Call::Listen { backlog: 1 }, fresh(NESTED), Reason::NotConnect);
    }

    #[test]
    fn addresses_that_stay_inside() {
        let cases = [
            ("[::ffff:0.0.0.0]:80", Reason::VirtualAddress),
            ("10.0.2.2:80", Reason::VirtualAddress),
            ("[fd00::3]:53", Reason::VirtualAddress),
            ("224.0.0.1:80", Reason::Multicast),
            ("192.0.2.1:0", Reason::PortZero),
        ];
        for (address, reason) in cases {
            let facts = SocketFacts { ipv6: address.starts_with('['), ..fresh(WORKSPACE) };
            assert_eq!(settled(&connect(address), facts), Verdict::InPlace(reason), "{address}");
        }
        for (address, ipv6) in [("192.0.2.1:80", true), ("[2001:db8::1]:80", false)] {
            let facts = SocketFacts { ipv6, ..fresh(WORKSPACE) };
            assert_eq!(settled(&connect(address), facts), Verdict::InPlace(Reason::NotAnAddress), "{address}");
        }
        let bind = Call::Bind(RawAddress::from("0.0.0.0:80".parse::<SocketAddr>().unwrap()));
        for call in [bind, Call::Listen { backlog: 1 }] {
            assert_eq!(settled(&call, fresh(WORKSPACE)), Verdict::InPlace(Reason::NotConnect));
        }
        for bytes in [&[][..], &[0, 0][..], &[1, 0, 47][..]] {
            let call = Call::Connect(RawAddress::new(bytes));
            assert_eq!(settled(&call, fresh(WORKSPACE)), Verdict::InPlace(Reason::NotAnAddress));
        }
    }

    #[test]
    fn the_loopback_may_have_programs_of_the_host() {
        for (asked, to) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("127.9.9.9:80", "127.9.9.9:80"),
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("[::1]:80", "[::1]:80"),
            ("[::]:80", "[::1]:80"),
            ("[::ffff:127.0.0.1]:80", "[::ffff:127.0.0.1]:80"),
        ] {
            let facts = SocketFacts { ipv6: asked.starts_with('['), ..fresh(WORKSPACE) };
            let inward = Candidate::Inward(to.parse().unwrap());
            assert_eq!(candidate(&ground(), &connect(asked), &facts), inward, "{asked}");
        }
        let ground = Ground { extent: Extent { udp: true, ..Extent::default() }, ..ground() };
        let udp = SocketFacts { kind: Kind::Udp, ..fresh(WORKSPACE) };
        let in_place = Candidate::Settled(Verdict::InPlace(Reason::VirtualAddress));
        assert_eq!(candidate(&ground, &connect("127.0.0.1:80"), &udp), in_place);
    }

    #[test]
    fn a_host_socket_never_moves() {
        let in_state = |state| SocketFacts { state, ..fresh(HOST) };
        let elsewhere = connect("192.0.2.9:80");
        let unspecified = Call::Connect(RawAddress::new(&[0; 16]));
        let bind = Call::Bind(RawAddress::from("0.0.0.0:0".parse::<SocketAddr>().unwrap()));
        let listen = Call::Listen { backlog: 1 };
        for state in [TcpState::Connecting, TcpState::InUse] {
            assert_eq!(settled(&elsewhere, in_state(state)), Verdict::OnHostSocket);
            assert_eq!(settled(&unspecified, in_state(state)), Verdict::InPlace(Reason::Disconnect));
            assert_eq!(settled(&bind, in_state(state)), Verdict::Deny(libc::EINVAL, Reason::InUse));
            assert_eq!(settled(&listen, in_state(state)), Verdict::Deny(libc::EINVAL, Reason::InUse));
        }
        let listening = in_state(TcpState::Listening);
        assert_eq!(settled(&elsewhere, listening), Verdict::OnHostSocket);
        assert_eq!(settled(&unspecified, listening), Verdict::InPlace(Reason::Disconnect));
        assert_eq!(settled(&bind, listening), Verdict::Deny(libc::EINVAL, Reason::InUse));
        assert_eq!(settled(&listen, listening), Verdict::OnHostSocket);
        for call in [&bind, &listen] {
            assert_eq!(settled(call, in_state(TcpState::Closed)), Verdict::InPlace(Reason::NotConnect));
        }
        let udp = SocketFacts { kind: Kind::OtherIp, ..fresh(HOST) };
        assert_eq!(settled(&elsewhere, udp), Verdict::Deny(libc::EPERM, Reason::NotTcp));
        // A connect from a closed host socket is decided anew, like one from a fresh socket.
        let again = candidate(&ground(), &elsewhere, &in_state(TcpState::Closed));
        assert_eq!(again, Candidate::Outward("192.0.2.9:80".parse().unwrap(), Transport::Tcp));
        let inward = candidate(&ground(), &connect("127.0.0.1:80"), &in_state(TcpState::Closed));
        assert_eq!(inward, Candidate::Inward("127.0.0.1:80".parse().unwrap()));
    }

    fn request(destination: &str, transport: Transport) -> Request {
        Request { destination: destination.parse().unwrap(), transport }
    }

    #[test]
    fn routes_and_policy() {
        let tcp = request("192.0.2.1:80", Transport::Tcp);
        let out = Verdict::Bypass(Exit { to: tcp.destination, device: None, program: None });
        let tap = InsideRoute::OurTap { source: None };
        let one = HostRoute::One { device: 3 };
        let cases = [
            (tap, Netfilter::Untouched, one, out),
            (tap, Netfilter::Untouched, HostRoute::Own, out),
            (tap, Netfilter::Untouched, HostRoute::None, out),
            (tap, Netfilter::Untouched, HostRoute::Many, Verdict::InPlace(Reason::HostRoute)),
            (tap, Netfilter::CouldTouch, one, Verdict::InPlace(Reason::Netfilter)),
            (tap, Netfilter::CouldTouch, HostRoute::Many, Verdict::InPlace(Reason::Netfilter)),
            (InsideRoute::Elsewhere, Netfilter::Untouched, one, Verdict::InPlace(Reason::Route)),
            (InsideRoute::Elsewhere, Netfilter::CouldTouch, one, Verdict::InPlace(Reason::Route)),
        ];
        for (inside, netfilter, host, want) in cases {
            let ways = Ways { inside, netfilter, host };
            assert_eq!(with_routes(&ground(), tcp, ways), want, "{ways:?}");
        }
        let open = Ways { inside: tap, netfilter: Netfilter::Untouched, host: one };
        let link_local = request("[fe80::1%3]:80", Transport::Tcp);
        assert_eq!(with_routes(&ground(), link_local, open), Verdict::InPlace(Reason::Policy));
        assert_eq!(with_routes(&ground(), request("[::ffff:192.0.2.1]:80", Transport::Tcp), open), out);
    }

    #[test]
    fn rules_of_the_policy_keep_a_connection_in_place() {
        let deny = |text: &str| Rule { action: Action::Deny, matches: text.parse().unwrap() };
        let policy = Policy { rules: vec![deny("192.0.2.0/24:80"), deny("host")], ..Policy::default() };
        let ground = Ground { policy, ..ground() };
        let one = HostRoute::One { device: 3 };
        let cases = [
            ("192.0.2.1:80", one, false),
            ("192.0.2.1:81", one, true),
            ("192.0.2.1:81", HostRoute::Own, false),
            ("[::ffff:192.0.2.1]:80", one, false),
        ];
        for (destination, host, bypassed) in cases {
            let inside = InsideRoute::OurTap { source: None };
            let ways = Ways { inside, netfilter: Netfilter::Untouched, host };
            let verdict = with_routes(&ground, request(destination, Transport::Tcp), ways);
            let denied = verdict == Verdict::InPlace(Reason::Policy);
            assert_eq!(
                (matches!(verdict, Verdict::Bypass(_)), denied),
                (bypassed, !bypassed),
                "{destination} {host:?}"
            );
        }
    }

    #[test]
    fn udp_leaves_by_one_interface_and_only_on_request() {
        let ground = Ground { extent: Extent { udp: true, ..Extent::default() }, ..ground() };
        let call = connect("192.0.2.1:53");
        let outward = Candidate::Outward("192.0.2.1:53".parse().unwrap(), Transport::Udp);
        let fresh_udp = |netns| SocketFacts { kind: Kind::Udp, ..fresh(netns) };
        assert_eq!(candidate(&ground, &call, &fresh_udp(WORKSPACE)), outward);
        assert_eq!(candidate(&ground, &call, &fresh_udp(HOST)), outward, "a connected one may be connected again");
        let sent = SocketFacts { bound: Bound::Address, ..fresh_udp(WORKSPACE) };
        assert_eq!(candidate(&ground, &call, &sent), Candidate::Settled(Verdict::InPlace(Reason::Bound)));
        let bind = Call::Bind(RawAddress::from("0.0.0.0:0".parse::<SocketAddr>().unwrap()));
        let refused = Verdict::Deny(libc::EINVAL, Reason::InUse);
        assert_eq!(candidate(&ground, &bind, &fresh_udp(HOST)), Candidate::Settled(refused));

        let udp = request("192.0.2.1:53", Transport::Udp);
        let out = Verdict::Bypass(Exit { to: udp.destination, device: Some(3), program: None });
        let kept = Verdict::InPlace(Reason::HostRoute);
        let cases = [
            (HostRoute::One { device: 3 }, out),
            (HostRoute::Own, kept),
            (HostRoute::None, kept),
            (HostRoute::Many, kept),
        ];
        for (host, want) in cases {
            let inside = InsideRoute::OurTap { source: None };
            let ways = Ways { inside, netfilter: Netfilter::Untouched, host };
            assert_eq!(with_routes(&ground, udp, ways), want, "{host:?}");
        }
    }
}
