//! The DNS relay between hostile clients and hostile resolvers: only who asked is answered, with an answer to what it
//! asked.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;

use super::*;

const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// Two that answer as they like, and between them one that refuses.
const RESOLVERS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(127, 0, 0, 1), Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3)];

#[derive(Clone, Debug)]
enum Step {
    Query {
        port: u16,
        id: u16,
        question: Vec<u8>,
        bends: Bends,
    },
    /// Of one resolver to the query it heard this many before its last.
    Answer {
        second: bool,
        before: usize,
        rest: Vec<u8>,
        bends: Bends,
        /// From a port that nobody asked.
        spoofed: bool,
    },
    Turn(u64),
}

fn question() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        // example.com, type A, class IN; one that points at itself; any.
        4 => Just(b"\x07example\x03com\x00\x00\x01\x00\x01".to_vec()),
        1 => Just(vec![0xc0, 12, 0, 1, 0, 1]),
        1 => vec(any::<u8>(), 0..40),
        1 => vec(any::<u8>(), 0..3000),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let query = (0..4_u16, 0..4_u16, question(), bends(3)).prop_map(|(port, id, question, bends)| Step::Query {
        port,
        id,
        question,
        bends,
    });
    let rest = prop_oneof![vec(any::<u8>(), 0..60), vec(any::<u8>(), 0..1400), vec(any::<u8>(), 8000..9000)];
    let answer = (any::<bool>(), 0..3_usize, rest, bends(3), prop::bool::weighted(0.2))
        .prop_map(|(second, before, rest, bends, spoofed)| Step::Answer { second, before, rest, bends, spoofed });
    prop_oneof![4 => query, 4 => answer, 3 => prop_oneof![0..10_u64, 0..20_000_u64].prop_map(Step::Turn)]
}

/// A resolver and the queries it has heard.
struct Hostile {
    socket: UdpSocket,
    heard: Vec<(SocketAddr, Vec<u8>)>,
}

impl Hostile {
    fn start(address: Ipv4Addr) -> Self {
        let socket = UdpSocket::bind((address, 53)).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket, heard: Vec::new() }
    }

    fn hear(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok((len, from)) = self.socket.recv_from(&mut buffer) {
            self.heard.push((from, buffer[..len].to_vec()));
        }
    }

    fn answer(&mut self, before: usize, rest: &[u8], bends: &Bends, spoofed: bool) {
        self.hear();
        let Some((to, query)) = self.heard.iter().rev().nth(before) else { return };
        let mut bytes = query.clone();
        if let Some(flags) = bytes.get_mut(2) {
            *flags |= 0x80;
        }
        bytes.extend_from_slice(rest);
        bend(&mut bytes, bends);
        // Refused where the query is over.
        let _gone = if spoofed {
            UdpSocket::bind((RESOLVERS[0], 0)).and_then(|other| other.send_to(&bytes, to))
        } else {
            self.socket.send_to(&bytes, to)
        };
    }
}

/// Gives the number of answers that were relayed.
fn run(resolvers: &mut [Hostile; 2], steps: Vec<Step>) -> Result<u64, TestCaseError> {
    for resolver in &mut *resolvers {
        resolver.hear();
        resolver.heard.clear();
    }
    let mut lab = Lab::new();
    lab.edge.set_resolvers(RESOLVERS.map(|resolver| (resolver, 53).into()).to_vec());
    // Who asked with which identifier.
    let mut asked = HashSet::new();
    for step in steps {
        match step {
            Step::Query { port, id, question, bends } => {
                let mut bytes = vec![0; 12];
                bytes[..2].copy_from_slice(&id.to_be_bytes());
                bytes[2..6].copy_from_slice(&[1, 0, 0, 1]);
                bytes.extend_from_slice(&question);
                bend(&mut bytes, &bends);
                asked.insert((6000 + port, bytes[..2].to_vec()));
                let ends = (IpAddr::V4(GUEST), IpAddr::V4(RESOLVER));
                let payload = udp_payload((6000 + port, 53), &bytes);
                lab.feed(&[Packet { ends, protocol: 17, fragment: 0, vnet: PARTIAL, payload }.to_frame()]);
            }
            Step::Answer { second, before, rest, bends, spoofed } => {
                resolvers[usize::from(second)].answer(before, &rest, &bends, spoofed);
            }
            Step::Turn(millis) => lab.turn(millis),
        }
        for (from, to, payload) in datagrams(&lab.received())? {
            prop_assert_eq!(from, (IpAddr::V4(RESOLVER), 53));
            prop_assert_eq!(to.0, IpAddr::V4(GUEST));
            prop_assert!(payload.len() >= 12, "no DNS header: {payload:?}");
            prop_assert!(asked.contains(&(to.1, payload[..2].to_vec())), "nobody asked: {payload:?}");
        }
    }
    prop_assert!(lab.is_alive());
    Ok(lab.edge.counters.dns.answers)
}

#[test]
fn any_resolver() {
    let resolvers = std::env::var_os(WORLD).map(|_| RefCell::new([RESOLVERS[0], RESOLVERS[2]].map(Hostile::start)));
    let relayed = Cell::new(0);
    fuzz("dns", concat!(module_path!(), "::any_resolver"), 100, &vec(step(), 1..60), |steps| {
        let Some(resolvers) = &resolvers else { return Ok(()) };
        relayed.set(relayed.get() + run(&mut resolvers.borrow_mut(), steps)?);
        Ok(())
    });
    assert!(resolvers.is_none() || relayed.get() > 0, "no answer was relayed");
}
