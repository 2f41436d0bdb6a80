//! Verdicts by table; arbitrary calls are in [`fuzz`](crate::supervisor::fuzz).

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
        ("[2001:db8::1]:80", one, true),
        ("[64:ff9b::198.51.100.1]:80", one, false),
    ];
    for (destination, host, bypassed) in cases {
        let inside = InsideRoute::OurTap { source: None };
        let ways = Ways { inside, netfilter: Netfilter::Untouched, host };
        let verdict = with_routes(&ground, request(destination, Transport::Tcp), ways);
        let denied = verdict == Verdict::InPlace(Reason::Policy);
        assert_eq!((matches!(verdict, Verdict::Bypass(_)), denied), (bypassed, !bypassed), "{destination} {host:?}");
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
    let cases =
        [(HostRoute::One { device: 3 }, out), (HostRoute::Own, kept), (HostRoute::None, kept), (HostRoute::Many, kept)];
    for (host, want) in cases {
        let inside = InsideRoute::OurTap { source: None };
        let ways = Ways { inside, netfilter: Netfilter::Untouched, host };
        assert_eq!(with_routes(&ground, udp, ways), want, "{host:?}");
    }
}
