//! From arbitrary notifications to verdicts: whatever the tracee says, the rules hold and nothing panics.
//!
//! Cases that ever failed are kept in tests/corpus/decide, where proptest adds the next; `LAB_SOAK` goes on with fresh
//! ones for ten minutes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use sidestep_forwarder::network::{Ipv4Subnet, Ipv6Subnet, VirtualNetwork};
use sidestep_forwarder::policy::{Action, Egress, Policy, Request, Rule, Transport};
use sidestep_forwarder::ports::Shadow;
use sidestep_seccomp_profile::syscalls::Stopped;

use super::Extent;
use super::decide::{Candidate, Exit, Ground, Verdict, Ways, candidate, with_routes};
use super::decode::Call;
use super::facts::{Bound, Kind, NetnsCookie, SocketCookie, SocketFacts, TcpState};
use super::netfilter::Netfilter;
use super::notification::Notification;
use super::route::{HostRoute, InsideRoute};
use super::sockaddr::{MAX_LENGTH, Meaning, RawAddress};
use super::tracee::TraceeError;

const CASES: u32 = 20_000;
const SOAK: Duration = Duration::from_secs(600);

const HOST: NetnsCookie = NetnsCookie(1);
const WORKSPACE: NetnsCookie = NetnsCookie(2);
const NESTED: NetnsCookie = NetnsCookie(3);

const PROGRAM: Shadow =
    Shadow { program: 1, port: 1, guest_port: 80, to: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 80) };

/// What a process says with a call, before anything is known to make sense.
#[derive(Clone, Debug)]
struct Said {
    number: u32,
    /// Descriptor, length or backlog.
    arguments: [u64; 3],
    /// The address is where the pointer points.
    is_readable: bool,
    /// With zeros behind it.
    address: Vec<u8>,
}

/// Longer than any address a tracee may pass.
const MEMORY: usize = 2 * MAX_LENGTH;

fn said() -> impl Strategy<Value = Said> {
    let stopped: Vec<u32> = Stopped::ALL.iter().filter_map(|call| u32::try_from(call.number()).ok()).collect();
    let number = prop_oneof![9 => prop::sample::select(stopped), 1 => any::<u32>()];
    let length = prop_oneof![8 => Just(None), 2 => any::<u64>().prop_map(Some), 2 => (0..140_u64).prop_map(Some)];
    (number, any::<[u64; 3]>(), prop::bool::weighted(0.95), address(), length).prop_map(
        |(number, mut arguments, is_readable, address, length)| {
            arguments[2] = length.unwrap_or(address.len() as u64);
            let mut address = address;
            address.resize(MEMORY, 0);
            Said { number, arguments, is_readable, address }
        },
    )
}

/// Bytes that are an address more often than not.
fn address() -> impl Strategy<Value = Vec<u8>> {
    let v4 = prop_oneof![
        any::<u32>().prop_map(Ipv4Addr::from),
        prop::sample::select(vec![
            Ipv4Addr::LOCALHOST,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::BROADCAST,
            Ipv4Addr::new(10, 0, 2, 2),
            Ipv4Addr::new(10, 0, 2, 3),
            Ipv4Addr::new(127, 1, 2, 3),
            Ipv4Addr::new(224, 0, 0, 1),
            Ipv4Addr::new(169, 254, 169, 254),
            Ipv4Addr::new(192, 0, 2, 1),
        ]),
    ];
    let v6 = prop_oneof![
        any::<u128>().prop_map(Ipv6Addr::from),
        v4.clone().prop_map(|v4| v4.to_ipv6_mapped()),
        v4.clone().prop_map(|v4| Ipv6Addr::from(u128::from(u32::from(v4)))),
        prop::sample::select(vec!["::1", "::", "fd00::2", "fd00::3", "fe80::1", "ff02::1", "2001:db8::1"])
            .prop_map(|text| text.parse().unwrap_or(Ipv6Addr::LOCALHOST)),
    ];
    let ip = prop_oneof![v4.prop_map(IpAddr::V4), v6.prop_map(IpAddr::V6)];
    let port = prop_oneof![Just(0_u16), Just(53), Just(80), any::<u16>()];
    let whole = (ip, port, any::<u32>(), 0..4_u32).prop_map(|(ip, port, flow, scope)| {
        let mut address = SocketAddr::new(ip, port);
        if let SocketAddr::V6(v6) = &mut address {
            v6.set_flowinfo(flow);
            v6.set_scope_id(scope);
        }
        RawAddress::from(address).bytes().to_vec()
    });
    prop_oneof![
        6 => whole.clone(),
        1 => (whole.clone(), 0..MAX_LENGTH + 4).prop_map(|(mut bytes, length)| { bytes.resize(length, 0); bytes }),
        1 => (whole, 0..48_u16).prop_map(|(mut bytes, family)| {
            bytes.splice(..2, family.to_ne_bytes());
            bytes
        }),
        1 => prop::collection::vec(any::<u8>(), 0..MAX_LENGTH + 4),
    ]
}

fn facts() -> impl Strategy<Value = SocketFacts> {
    let kind = prop_oneof![
        4 => Just(Kind::Tcp),
        2 => Just(Kind::Udp),
        1 => Just(Kind::Mptcp),
        1 => Just(Kind::OtherIp),
        1 => Just(Kind::NotIp),
    ];
    let netns = prop_oneof![4 => Just(WORKSPACE), 3 => Just(HOST), 1 => Just(NESTED)];
    let state = prop_oneof![
        4 => Just(TcpState::Closed),
        1 => Just(TcpState::Connecting),
        1 => Just(TcpState::Listening),
        1 => Just(TcpState::InUse),
    ];
    let bound =
        prop_oneof![8 => Just(Bound::No), 1 => Just(Bound::Address), 1 => any::<u16>().prop_map(Bound::Anywhere)];
    (kind, netns, state, any::<[bool; 2]>(), bound, prop::bool::weighted(0.2), any::<(u64, u32)>()).prop_map(
        |(kind, netns, state, [ipv6, nonblocking], bound, signals, (cookie, uid))| SocketFacts {
            kind,
            ipv6,
            raw: false,
            netns,
            cookie: SocketCookie(cookie),
            state,
            bound,
            nonblocking,
            signals,
            uid,
        },
    )
}

fn ways() -> impl Strategy<Value = Ways> {
    let inside = prop_oneof![
        3 => Just(InsideRoute::OurTap { source: None }),
        1 => Just(InsideRoute::Elsewhere),
    ];
    let netfilter = prop_oneof![3 => Just(Netfilter::Untouched), 1 => Just(Netfilter::CouldTouch)];
    let host =
        prop::sample::select(vec![HostRoute::One { device: 3 }, HostRoute::Own, HostRoute::None, HostRoute::Many]);
    (inside, netfilter, host).prop_map(|(inside, netfilter, host)| Ways { inside, netfilter, host })
}

/// With and without the flags that open or close something.
fn ground([host_loopback, udp, nested, rules]: [bool; 4]) -> Ground {
    let network = VirtualNetwork::new(Ipv4Subnet::DEFAULT, Some(Ipv6Subnet::DEFAULT), 1500);
    let deny = |text: &str| Some(Rule { action: Action::Deny, matches: text.parse().ok()? });
    let rules =
        if rules { ["metadata", "host", "192.0.2.0/24:80"].into_iter().filter_map(deny).collect() } else { vec![] };
    let policy = Policy { host_loopback, rules };
    let extent = Extent { udp, nested };
    Ground { host: HOST, workspace: WORKSPACE, network, policy, extent, tap_ifindex: 2 }
}

/// Decodes as the session does, out of this process's own memory.
fn decode(said: &Said) -> Result<Call, TraceeError> {
    let [descriptor, wild, length] = said.arguments;
    let pointer = if said.is_readable { said.address.as_ptr().addr() as u64 } else { wild };
    // A listen's backlog stands where an address's pointer does.
    let tid = u64::from(std::process::id());
    let words = [1, tid, u64::from(said.number), 0, descriptor, pointer, length, 0, 0, 0];
    Call::decode(&Notification::from_words(&words.map(AtomicU64::new)))
}

/// What must be so, said without looking at how it is decided.
fn holds(
    ground: &Ground,
    said: &Said,
    call: &Call,
    facts: &SocketFacts,
    host: HostRoute,
    verdict: Verdict,
) -> Result<(), TestCaseError> {
    let on_host = facts.netns == HOST && facts.kind != Kind::NotIp;
    let disconnects = matches!(call, Call::Connect(address) if address.meaning() == Meaning::Unspecified);
    match verdict {
        Verdict::Continue(_) => {
            prop_assert!(facts.kind == Kind::NotIp, "an IP socket's call goes on");
            prop_assert!(!matches!(call, Call::Listen { .. }), "a listen goes on");
        }
        Verdict::Bypass(Exit { to, device, program }) => {
            let Call::Connect(address) = call else { return Err(TestCaseError::fail("not a connect")) };
            prop_assert!(said.address.starts_with(address.bytes()), "not the address that was copied");
            let transport = match facts.kind {
                Kind::Tcp => Transport::Tcp,
                Kind::Udp if ground.extent.udp => Transport::Udp,
                other => return Err(TestCaseError::fail(format!("{other:?} is not taken out"))),
            };
            prop_assert!(facts.kind == Kind::Udp || facts.state == TcpState::Closed, "not a fresh TCP socket");
            prop_assert!(facts.kind == Kind::Tcp || device == Some(3), "a UDP socket free to leave by any interface");
            prop_assert!(facts.netns != NESTED || ground.extent.nested, "another namespace's socket");
            prop_assert!(
                facts.netns == HOST || !(facts.bound != Bound::No || facts.signals),
                "a swap would lose something"
            );
            if program.is_some() {
                return is_inward(facts, to);
            }
            is_outward(ground, to)?;
            let Meaning::Ip(asked) = address.meaning() else { return Err(TestCaseError::fail("no address")) };
            prop_assert_eq!(asked.is_ipv6(), facts.ipv6, "no address of the socket's family");
            let request = Request { destination: asked, transport };
            let egress = ground.policy.egress(&ground.network, request, |_| host == HostRoute::Own);
            prop_assert_eq!(egress, Egress::Host(to), "against the policy");
        }
        Verdict::Listen { port } => {
            prop_assert!(matches!(call, Call::Listen { .. }), "not a listen");
            prop_assert!(matches!(facts.kind, Kind::Tcp | Kind::Mptcp), "{:?} is not taken out", facts.kind);
            prop_assert!(facts.netns == WORKSPACE && !facts.signals, "a swap would lose something");
            prop_assert_eq!(facts.bound, Bound::Anywhere(port), "not at every address");
        }
        Verdict::OnHostSocket => prop_assert!(on_host && facts.state != TcpState::Closed),
        // A host socket that is in use is given up only where the program dissolves it.
        Verdict::InPlace(_) => {
            prop_assert!(!on_host || facts.state == TcpState::Closed || facts.kind == Kind::Udp || disconnects);
        }
        Verdict::Deny(errno, _) => prop_assert!(on_host && errno > 0, "only calls on host sockets are denied here"),
    }
    Ok(())
}

fn is_outward(ground: &Ground, to: SocketAddr) -> Result<(), TestCaseError> {
    let ip = match to.ip() {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4),
        v4 @ IpAddr::V4(_) => v4,
    };
    prop_assert!(!ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast(), "{to}");
    prop_assert!(ip != IpAddr::V4(Ipv4Addr::BROADCAST) && to.port() != 0, "{to}");
    prop_assert!(ground.network.role(ip).is_none(), "{to} is virtual");
    Ok(())
}

fn is_inward(facts: &SocketFacts, to: SocketAddr) -> Result<(), TestCaseError> {
    prop_assert!(to.ip().to_canonical().is_loopback() && to.port() != 0, "{to} is not on the loopback");
    prop_assert!(facts.kind == Kind::Tcp && to.is_ipv6() == facts.ipv6);
    Ok(())
}

#[test]
fn arbitrary_notifications() {
    let soak = std::env::var_os("LAB_SOAK").map(|_| Instant::now() + SOAK);
    let config = Config {
        cases: CASES,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("../tests/corpus/decide"))),
        source_file: Some(file!()),
        ..Config::default()
    };
    // The same cases every time, unless there is time for others.
    let same = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config.clone(), same);
    loop {
        let ran = runner.run(&(said(), facts(), ways(), any::<[bool; 4]>()), |(said, facts, ways, flags)| {
            let Ok(call) = decode(&said) else { return Ok(()) };
            let ground = ground(flags);
            let verdict = match candidate(&ground, &call, &facts) {
                Candidate::Settled(verdict) => verdict,
                Candidate::Inward(to) => Verdict::Bypass(Exit { to, device: None, program: Some(PROGRAM) }),
                Candidate::Outward(destination, transport) => {
                    with_routes(&ground, Request { destination, transport }, ways)
                }
            };
            holds(&ground, &said, &call, &facts, ways.host, verdict)
        });
        if let Err(failure) = ran {
            panic!("{failure}; see tests/corpus/decide");
        }
        if soak.is_none_or(|until| Instant::now() >= until) {
            return;
        }
        runner = TestRunner::new(config.clone());
    }
}
