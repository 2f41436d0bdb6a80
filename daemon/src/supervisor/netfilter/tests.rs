//! Rules as the kernel dumps them, put together here, against connections that they touch or do not.

mod ways;

use std::collections::HashMap;
use std::net::SocketAddr;

use proptest::prelude::*;

use super::lower::{self, Names};
use super::packet::{
    Connection, Device, NF_INET_FORWARD, NF_INET_LOCAL_IN, NF_INET_LOCAL_OUT, NF_INET_POST_ROUTING,
    NF_INET_PRE_ROUTING, NF_NETDEV_EGRESS, TCP, UDP, Way,
};
use super::ruleset::{Base, Boundary, ChainId, Ruleset, Set, SetId, Verdict};
use super::xt::Match;

const IPV4: u8 = 2;
const INET: u8 = 1;
const REGISTER: u32 = 1;
const DROP: i32 = 0;
const ACCEPT: i32 = 1;
const JUMP: i32 = -3;
const GOTO: i32 = -4;
const RETURN: i32 = -5;

/// Chains are named by a letter, sets by a digit.
struct ByLetter;

impl Names for ByLetter {
    fn chain(&self, name: &[u8]) -> Option<ChainId> {
        name.first().map(|letter| usize::from(letter.wrapping_sub(b'a')))
    }

    fn set(&self, name: &[u8]) -> Option<SetId> {
        name.first().map(|digit| usize::from(digit.wrapping_sub(b'0')))
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap();
    let mut bytes = [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn data(kind: u16, value: &[u8]) -> Vec<u8> {
    attribute(kind, &attribute(1, value))
}

fn expression(name: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
    let name = attribute(1, &[name.as_bytes(), &[0]].concat());
    attribute(1, &[name, attribute(2, &attributes.concat())].concat())
}

fn payload(base: u32, offset: u32, length: u32) -> Vec<u8> {
    expression("payload", &[number(1, REGISTER), number(2, base), number(3, offset), number(4, length)])
}

fn meta(key: u32) -> Vec<u8> {
    expression("meta", &[number(1, REGISTER), number(2, key)])
}

fn ct_state() -> Vec<u8> {
    expression("ct", &[number(1, REGISTER), number(2, 0)])
}

/// Equal is 0, unequal 1.
fn cmp(operation: u32, value: &[u8]) -> Vec<u8> {
    expression("cmp", &[number(1, REGISTER), number(2, operation), data(3, value)])
}

fn and(mask: &[u8]) -> Vec<u8> {
    let length = u32::try_from(mask.len()).unwrap();
    let xor = vec![0; mask.len()];
    expression("bitwise", &[number(1, REGISTER), number(2, REGISTER), number(3, length), data(4, mask), data(5, &xor)])
}

fn verdict(code: i32, chain: &str) -> Vec<u8> {
    let code = attribute(1, &code.to_be_bytes());
    let chain = if chain.is_empty() { Vec::new() } else { attribute(2, &[chain.as_bytes(), &[0]].concat()) };
    expression("immediate", &[number(1, 0), attribute(2, &attribute(2, &[code, chain].concat()))])
}

fn lookup(set: &str) -> Vec<u8> {
    expression("lookup", &[attribute(1, set.as_bytes()), number(2, REGISTER)])
}

fn vmap(set: &str) -> Vec<u8> {
    expression("lookup", &[attribute(1, set.as_bytes()), number(2, REGISTER), number(3, 0)])
}

fn xt(name: &str, revision: u32, info: &[u8]) -> Vec<u8> {
    expression("match", &[attribute(1, name.as_bytes()), number(2, revision), attribute(3, info)])
}

fn lowered(expressions: &[Vec<u8>]) -> super::ruleset::Rule {
    lower::rule(&expressions.concat(), &ByLetter).unwrap()
}

/// Chain `a` is hooked, of `family` at `hook`.
fn ruleset(base: Base, chains: &[&[&[Vec<u8>]]]) -> Ruleset {
    Ruleset {
        bases: vec![base],
        chains: chains.iter().map(|rules| rules.iter().map(|rule| lowered(rule)).collect()).collect(),
        ..Ruleset::default()
    }
}

const OUTPUT: Base = Base { family: INET, hook: NF_INET_LOCAL_OUT, priority: 0, nat: false, drops: false, chain: 0 };

fn touches(rules: &Ruleset, destination: &str) -> bool {
    let destination: SocketAddr = destination.parse().unwrap();
    let source = if destination.is_ipv4() { "10.0.2.100" } else { "fd00::64" };
    let way = Way::ByTap(Device::new(2, b"tap0"));
    rules.could_touch(&Connection { source: source.parse().ok(), destination, l4proto: TCP, way })
}

#[test]
fn single_rules() {
    let drop = || verdict(DROP, "");
    let port = || payload(2, 2, 2);
    let tcp = || [meta(16), cmp(0, &[6])].concat();
    let mut name = *b"docker0\0\0\0\0\0\0\0\0\0";
    let state = |mask: u32| [ct_state(), and(&mask.to_ne_bytes()), cmp(1, &[0; 4])].concat();
    let fib = |flags, kind: u32| {
        let read = expression("fib", &[number(1, REGISTER), number(2, 3), number(3, flags)]);
        [read, cmp(0, &kind.to_ne_bytes())].concat()
    };
    let addrtype = |source: u16, destination: u16, flags: u32| {
        let info = [source.to_ne_bytes().as_slice(), &destination.to_ne_bytes(), &flags.to_ne_bytes()].concat();
        xt("addrtype", 1, &info)
    };
    let tcp_ports = |from: u16, to: u16| {
        let ports = [0, u16::MAX, from, to].map(u16::to_ne_bytes).concat();
        xt("tcp", 0, &[ports.as_slice(), &[0; 4]].concat())
    };
    // Each rule ends in drop where it says nothing else; all are asked about 192.0.2.1:443.
    let cases: Vec<(&str, Vec<Vec<u8>>, bool)> = vec![
        ("anything", vec![drop()], true),
        ("accept", vec![verdict(ACCEPT, "")], false),
        ("counter", vec![expression("counter", &[])], false),
        ("counter, drop", vec![expression("counter", &[]), drop()], true),
        ("an unknown expression", vec![expression("flux", &[])], true),
        ("log", vec![expression("log", &[])], true),
        ("mark", vec![expression("meta", &[number(2, 3), number(3, REGISTER)])], true),
        ("limit, drop", vec![expression("limit", &[]), drop()], true),
        ("limit, accept", vec![expression("limit", &[]), verdict(ACCEPT, "")], false),
        ("masquerade", vec![expression("masq", &[])], false),
        ("xt MASQUERADE", vec![expression("target", &[attribute(1, b"MASQUERADE\0")])], false),
        ("xt LOG", vec![expression("target", &[attribute(1, b"LOG\0")])], true),
        ("daddr", vec![payload(1, 16, 4), cmp(0, &[192, 0, 2, 1]), drop()], true),
        ("daddr of another", vec![payload(1, 16, 4), cmp(0, &[192, 0, 2, 9]), drop()], false),
        ("daddr != another", vec![payload(1, 16, 4), cmp(1, &[192, 0, 2, 9]), drop()], true),
        ("daddr/24", vec![payload(1, 16, 4), and(&[255, 255, 255, 0]), cmp(0, &[192, 0, 2, 0]), drop()], true),
        (
            "daddr/24, another",
            vec![payload(1, 16, 4), and(&[255, 255, 255, 0]), cmp(0, &[192, 0, 3, 0]), drop()],
            false,
        ),
        ("daddr/16 by three bytes", vec![payload(1, 16, 2), cmp(0, &[192, 1]), drop()], false),
        ("saddr", vec![payload(1, 12, 4), cmp(0, &[10, 0, 2, 100]), drop()], true),
        ("saddr of a bridge", vec![payload(1, 12, 2), cmp(0, &[172, 17]), drop()], false),
        ("ttl", vec![payload(1, 8, 1), cmp(0, &[64]), drop()], true),
        ("dport", vec![tcp(), port(), cmp(0, &[1, 187]), drop()], true),
        ("dport of another", vec![tcp(), port(), cmp(0, &[0, 80]), drop()], false),
        ("dport > 1023", vec![tcp(), port(), cmp(4, &[3, 255]), drop()], false),
        ("dport < 1024", vec![tcp(), port(), cmp(2, &[4, 0]), drop()], true),
        ("sport and dport of another", vec![payload(2, 0, 4), cmp(0, &[1, 2, 0, 80]), drop()], false),
        ("sport", vec![payload(2, 0, 2), cmp(0, &[1, 2]), drop()], true),
        ("udp", vec![meta(16), cmp(0, &[17]), drop()], false),
        ("protocol in the header", vec![payload(1, 9, 1), cmp(1, &[6]), drop()], false),
        ("ipv6", vec![meta(15), cmp(0, &[10]), drop()], false),
        ("ethertype", vec![meta(1), cmp(0, &[8, 0]), drop()], true),
        ("oifname", vec![meta(7), cmp(0, &name), drop()], false),
        ("oifname != ", vec![meta(7), cmp(1, &name), drop()], true),
        ("oifname tap+", vec![meta(7), cmp(0, b"tap"), drop()], true),
        ("oif", vec![meta(5), cmp(0, &2_u32.to_ne_bytes()), drop()], true),
        ("oif of another", vec![meta(5), cmp(0, &3_u32.to_ne_bytes()), drop()], false),
        ("iifname", vec![meta(6), cmp(0, &name), drop()], false),
        ("mark", vec![meta(3), and(&[0, 0, 4, 0]), cmp(1, &[0; 4]), drop()], false),
        ("no mark", vec![meta(3), cmp(0, &[0; 4]), drop()], true),
        ("skuid", vec![meta(10), cmp(0, &7_u32.to_ne_bytes()), drop()], true),
        ("ct state new", vec![state(8), drop()], true),
        ("ct state established", vec![state(2), drop()], true),
        ("ct state invalid", vec![state(1), drop()], false),
        ("fib daddr type local", vec![fib(2, 2), drop()], false),
        ("fib daddr type unicast", vec![fib(2, 1), drop()], true),
        ("fib saddr type local", vec![fib(1, 2), drop()], true),
        ("fib daddr . iif", vec![fib(2 | 8, 2), drop()], true),
        ("xt addrtype dst LOCAL", vec![addrtype(0, 4, 0), drop()], false),
        ("xt addrtype ! dst LOCAL", vec![addrtype(0, 4, 2), drop()], true),
        ("xt addrtype src LOCAL", vec![addrtype(4, 0, 0), drop()], true),
        ("xt addrtype limited to a device", vec![addrtype(0, 4, 8), drop()], true),
        ("xt tcp", vec![tcp_ports(443, 443), drop()], true),
        ("xt tcp, another", vec![tcp_ports(80, 442), drop()], false),
        ("xt owner", vec![xt("owner", 1, &[0; 20]), drop()], true),
        ("xt comment", vec![xt("comment", 0, &[0; 256]), drop()], true),
        (
            "a shift",
            vec![
                payload(1, 16, 4),
                expression("bitwise", &[number(1, 1), number(2, 1), number(3, 4), number(6, 1)]),
                cmp(0, &[0; 4]),
                drop(),
            ],
            true,
        ),
        (
            "a constant",
            vec![expression("immediate", &[number(1, 1), data(2, &[7; 4])]), cmp(0, &[8; 4]), drop()],
            false,
        ),
        (
            "dport, of a control group",
            vec![
                tcp(),
                port(),
                cmp(0, &[1, 187]),
                expression("socket", &[number(1, 3), number(2, REGISTER), number(3, 1)]),
                cmp(0, &[7; 8]),
                drop(),
            ],
            true,
        ),
        (
            "dport, of a tunnel",
            vec![
                port(),
                cmp(0, &[1, 187]),
                expression("tunnel", &[number(1, 1), number(2, REGISTER)]),
                cmp(0, &[7; 4]),
                drop(),
            ],
            true,
        ),
        ("transparent", vec![expression("socket", &[number(1, 0), number(2, 1)]), cmp(0, &[1]), drop()], true),
        (
            "an option",
            vec![expression("exthdr", &[number(1, 1), number(4, 2)]), cmp(0, &[1, 2]), verdict(ACCEPT, "")],
            false,
        ),
    ];
    for (what, rule, want) in cases {
        assert_eq!(touches(&ruleset(OUTPUT, &[&[&rule]]), "192.0.2.1:443"), want, "{what}");
    }
    name[..5].copy_from_slice(b"tap0\0");
    name[5..].fill(0);
    let rule = [meta(7), cmp(0, &name), drop()];
    assert!(touches(&ruleset(OUTPUT, &[&[&rule]]), "[2001:db8::1]:443"));
    let rule = [payload(1, 24, 2), cmp(0, &[0x20, 2]), drop()];
    assert!(!touches(&ruleset(OUTPUT, &[&[&rule]]), "[2001:db8::1]:443"));
    let of_ipv4 = Base { family: IPV4, ..OUTPUT };
    assert!(!touches(&ruleset(of_ipv4, &[&[&[drop()]]]), "[2001:db8::1]:443"));
}

/// What becomes of a packet in several rules and chains: `a` is the base, `b` and `c` are called.
#[test]
fn chains() {
    let [drop, accept, back] = [DROP, ACCEPT, RETURN].map(|code| [verdict(code, "")]);
    let maybe = |code, chain: &str| [expression("limit", &[]), verdict(code, chain)];
    let (jump, goto) = ([verdict(JUMP, "b")], [verdict(GOTO, "b")]);
    let call_c = [verdict(JUMP, "c")];
    let (maybe_accept, maybe_back) = (maybe(ACCEPT, ""), maybe(RETURN, ""));
    let (maybe_jump, maybe_goto) = (maybe(JUMP, "b"), maybe(GOTO, "b"));
    type Chain<'a> = &'a [&'a [Vec<u8>]];
    let cases: &[(&str, &[Chain<'_>], bool)] = &[
        ("accepted before a drop", &[&[&accept, &drop]], false),
        ("perhaps accepted before a drop", &[&[&maybe_accept, &drop]], true),
        ("returned from a base", &[&[&back, &drop]], false),
        ("accepted in a jump", &[&[&jump, &drop], &[&accept]], false),
        ("perhaps accepted in a jump", &[&[&jump, &drop], &[&maybe_accept]], true),
        ("returned from a jump", &[&[&jump, &drop], &[&back, &accept]], true),
        ("perhaps returned from a jump", &[&[&jump, &drop], &[&maybe_back, &accept]], true),
        ("dropped in a jump", &[&[&jump], &[&drop]], true),
        ("through a jump", &[&[&jump, &drop], &[]], true),
        ("gone to an accept", &[&[&goto, &drop], &[&accept]], false),
        ("gone to nothing", &[&[&goto, &drop], &[]], false),
        ("perhaps gone", &[&[&maybe_goto, &drop], &[]], true),
        ("perhaps gone, back from a jump", &[&[&jump, &drop], &[&[verdict(GOTO, "c")], &accept], &[]], true),
        ("perhaps jumped to an accept", &[&[&maybe_jump, &drop], &[&accept]], true),
        ("perhaps jumped to a drop", &[&[&maybe_jump], &[&drop]], true),
        ("a chain nobody calls", &[&[], &[&drop]], false),
        ("two deep", &[&[&jump], &[&call_c, &accept], &[&drop]], true),
        ("a chain that is not there", &[&[&jump]], true),
        ("a circle", &[&[&jump], &[&jump]], true),
    ];
    for (what, chains, want) in cases {
        assert_eq!(touches(&ruleset(OUTPUT, chains), "192.0.2.1:443"), *want, "{what}");
        // Behind the last rule there is the policy.
        let falls_through = ["returned from a base", "gone to nothing", "a chain nobody calls"].contains(what);
        let drops = Base { drops: true, ..OUTPUT };
        assert_eq!(touches(&ruleset(drops, chains), "192.0.2.1:443"), *want || falls_through, "{what}, policy drop");
    }
}

#[test]
fn hooks() {
    let drop_from = |address: [u8; 4]| [payload(1, 12, 4), cmp(0, &address), verdict(DROP, "")];
    let input = Base { hook: NF_INET_LOCAL_IN, ..OUTPUT };
    let forward = Base { hook: NF_INET_FORWARD, ..OUTPUT };
    assert!(touches(&ruleset(input, &[&[&drop_from([192, 0, 2, 1])]]), "192.0.2.1:443"), "the replies");
    assert!(!touches(&ruleset(input, &[&[&drop_from([192, 0, 2, 9])]]), "192.0.2.1:443"));
    assert!(!touches(&ruleset(forward, &[&[&drop_from([192, 0, 2, 1])]]), "192.0.2.1:443"));
    // Replies are established: the usual firewall lets them in, and what lets nothing else out stops the first packet.
    let established = [ct_state(), and(&2_u32.to_ne_bytes()), cmp(1, &[0; 4]), verdict(ACCEPT, "")];
    assert!(!touches(&ruleset(Base { drops: true, ..input }, &[&[&established]]), "192.0.2.1:443"));
    assert!(touches(&ruleset(Base { drops: true, ..OUTPUT }, &[&[&established]]), "192.0.2.1:443"));
    // Address translation sees first packets only.
    let later = [ct_state(), and(&2_u32.to_ne_bytes()), cmp(1, &[0; 4]), verdict(DROP, "")];
    assert!(!touches(&ruleset(Base { nat: true, ..OUTPUT }, &[&[&later]]), "192.0.2.1:443"));
    let unknown = Ruleset { too_many: true, ..Ruleset::default() };
    assert!(touches(&unknown, "192.0.2.1:443") && !unknown.is_empty());
}

#[test]
fn sets() {
    let port = |port: u16| port.to_be_bytes().to_vec();
    let boundary = |at, gap| Boundary { key: port(at), gap, verdict: None };
    let exact = Set::Exact(HashMap::from([(port(80), None), (port(443), None)]));
    let ranges = || vec![boundary(100, false), boundary(200, true), boundary(8000, false), boundary(9000, true)];
    let map = |to| Set::Exact(HashMap::from([(port(80), Some(Verdict::Accept)), (port(443), Some(to))]));
    let dport = [payload(2, 2, 2), lookup("0"), verdict(DROP, "")];
    let sport = [payload(2, 0, 2), lookup("0"), verdict(DROP, "")];
    let by_dport = [payload(2, 2, 2), vmap("0")];
    let by_sport = [payload(2, 0, 2), vmap("0")];
    type Case<'a> = (&'a str, Set, &'a [Vec<u8>], u16, bool);
    let cases: Vec<Case<'_>> = vec![
        ("a member", exact, &dport, 443, true),
        ("no member", Set::Exact(HashMap::from([(port(80), None)])), &dport, 443, false),
        ("an empty set", Set::Exact(HashMap::new()), &sport, 443, false),
        ("an unknown key", Set::Exact(HashMap::from([(port(80), None)])), &sport, 443, true),
        ("an unknown set", Set::Opaque, &dport, 443, true),
        ("before the ranges", Set::Intervals(ranges()), &dport, 99, false),
        ("in a range", Set::Intervals(ranges()), &dport, 199, true),
        ("in the gap", Set::Intervals(ranges()), &dport, 200, false),
        ("behind the ranges", Set::Intervals(ranges()), &dport, 9000, false),
        ("a verdict", map(Verdict::Effect), &by_dport, 443, true),
        ("another's verdict", map(Verdict::Effect), &by_dport, 80, false),
        ("nobody's verdict", map(Verdict::Effect), &by_dport, 81, false),
        ("any verdict", map(Verdict::Effect), &by_sport, 80, true),
        ("only good verdicts", map(Verdict::Accept), &by_sport, 80, false),
        ("a jump", map(Verdict::Jump(1)), &by_dport, 443, true),
    ];
    for (what, set, rule, port, want) in cases {
        let mut rules = ruleset(OUTPUT, &[&[rule], &[&[verdict(DROP, "")]]]);
        rules.sets = vec![set];
        assert_eq!(touches(&rules, &format!("192.0.2.1:{port}")), want, "{what}");
    }
}

/// Chains that call each other a thousand times a level would take longer than the machine has been there.
#[test]
fn a_walk_ends() {
    let jumps: Vec<_> = ["b", "c", "d", "e"].map(|to| vec![[verdict(JUMP, to)]; 1000]).into();
    let chains: Vec<Vec<_>> = jumps.iter().map(|rules| rules.iter().map(|rule| lowered(rule)).collect()).collect();
    let chains = chains.into_iter().chain([Vec::new()]).collect();
    let rules = Ruleset { bases: vec![OUTPUT], chains, ..Ruleset::default() };
    assert!(touches(&rules, "192.0.2.1:443"));
    // So would rules that do nothing.
    let chains = vec![vec![lowered(&[verdict(JUMP, "b")]); 1000], vec![lowered(&[expression("counter", &[])]); 1000]];
    let rules = Ruleset { bases: vec![OUTPUT], chains, ..Ruleset::default() };
    assert!(touches(&rules, "192.0.2.1:443"));
}

/// struct xt_conntrack_mtinfo3 as iptables 1.8.9 fills it for `--ctstate RELATED,ESTABLISHED`.
#[test]
fn conntrack_of_iptables() {
    let mut info = [0; 164];
    let fields: [(usize, u16); 3] = [(146, 0x2001), (148, 0), (150, 6)];
    for (at, value) in fields {
        info[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    }
    assert_eq!(Match::parse(b"conntrack", 3, &info), Some(Match::State { of: 6, not: false }));
    info[148] = 1;
    assert_eq!(Match::parse(b"conntrack", 3, &info), Some(Match::State { of: 6, not: true }));
    info[146] |= 4;
    assert_eq!(Match::parse(b"conntrack", 3, &info), None, "asks for an address, too");
    assert_eq!(Match::parse(b"conntrack", 3, &info[..100]), None);
    assert_eq!(Match::parse(b"conntrack", 9, &info), None);
}

proptest! {
    #[test]
    fn no_bytes_panic(
        name in "payload|meta|ct|fib|cmp|range|bitwise|byteorder|lookup|immediate|exthdr|match|target|objref|limit",
        attributes in prop::collection::vec((0_u16..10, prop::collection::vec(any::<u8>(), 0..24)), 0..8),
        raw in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let attributes: Vec<_> = attributes.iter().map(|(kind, value)| attribute(*kind, value)).collect();
        if let Ok(rule) = lower::rule(&expression(&name, &attributes), &ByLetter) {
            let rules = Ruleset { bases: vec![OUTPUT], chains: vec![vec![rule]], ..Ruleset::default() };
            touches(&rules, "192.0.2.1:443");
        }
        let _ = lower::rule(&raw, &ByLetter);
    }
}
