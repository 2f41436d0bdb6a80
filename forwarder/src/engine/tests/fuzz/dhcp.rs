//! DHCP: messages of a hostile client, through frames to UDP port 67, with options that lie about their length.

use super::*;

/// RFC 2131's fixed part, with the cookie.
const FIXED: usize = 240;

#[derive(Clone, Debug)]
struct Message {
    /// The client's address and where it sends to.
    ends: (IpAddr, IpAddr),
    kind: u8,
    client: [u8; 6],
    /// A code, the length it says, and what follows.
    options: Vec<(u8, u8, Vec<u8>)>,
    bends: Bends,
    cut: u16,
}

fn message() -> impl Strategy<Value = Message> {
    let v4 = |text: &str| IpAddr::V4(text.parse().unwrap());
    let ends = prop_oneof![
        4 => Just((v4("0.0.0.0"), v4("255.255.255.255"))),
        2 => Just((v4("10.0.2.15"), v4("10.0.2.2"))),
        1 => Just((v4("10.0.2.100"), v4("10.0.2.255"))),
    ];
    // Requested address, lease time, server, parameters, client identifier, host name, overload, and any.
    let code =
        prop_oneof![6 => prop::sample::select(vec![50_u8, 51, 54, 55, 61, 12, 52, 82, 0, 255]), 1 => any::<u8>()];
    let value = prop_oneof![
        Just(vec![10, 0, 2, 15]),
        Just(vec![10, 0, 2, 2]),
        Just(vec![1, 3, 6, 15, 26, 28, 51, 119]),
        vec(any::<u8>(), 0..20),
        vec(any::<u8>(), 0..255),
    ];
    let option =
        (code, value, prop_oneof![5 => Just(None), 1 => any::<u8>().prop_map(Some)]).prop_map(|(code, value, lie)| {
            (code, lie.unwrap_or_else(|| u8::try_from(value.len()).unwrap_or(u8::MAX)), value)
        });
    let kind = prop_oneof![3 => Just(1_u8), 4 => Just(3), 1 => Just(4), 1 => Just(7), 1 => Just(8), 1 => any::<u8>()];
    let cut = prop_oneof![9 => Just(u16::MAX), 1 => any::<u16>()];
    // Many clients, so that leases run out.
    let client = any::<u8>().prop_map(|last| [2, 0, 0, 0, 0, last]);
    (ends, kind, client, vec(option, 0..8), bends(4), cut)
        .prop_map(|(ends, kind, client, options, bends, cut)| Message { ends, kind, client, options, bends, cut })
}

impl Message {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; FIXED];
        // BOOTREQUEST over Ethernet.
        bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
        bytes[28..34].copy_from_slice(&self.client);
        bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
        bytes.extend_from_slice(&[53, 1, self.kind]);
        for (code, len, value) in &self.options {
            bytes.extend_from_slice(&[*code, *len]);
            bytes.extend_from_slice(value);
        }
        bytes.push(255);
        bend(&mut bytes, &self.bends);
        bytes.truncate(bytes.len() * usize::from(self.cut) / usize::from(u16::MAX));
        bytes
    }

    fn to_frame(&self) -> Vec<u8> {
        let payload = udp_payload((68, 67), &self.to_bytes());
        Packet { ends: self.ends, protocol: 17, fragment: 0, vnet: PARTIAL, payload }.to_frame()
    }
}

/// Gives the number of answers.
fn run(messages: &[(Message, u64)]) -> Result<u32, TestCaseError> {
    let mut answers = 0;
    let mut lab = Lab::new();
    for (message, wait) in messages {
        lab.feed(&[message.to_frame()]);
        for (from, to, payload) in datagrams(&lab.received())? {
            answers += 1;
            prop_assert!(from == (IpAddr::V4(GATEWAY), 67) && to.1 == 68, "{from:?} to {to:?}");
            prop_assert!(payload.len() >= FIXED && payload[0] == 2, "no BOOTREPLY: {payload:?}");
            // Transaction and hardware address.
            let asked = message.to_bytes();
            prop_assert_eq!(payload.get(4..8), asked.get(4..8), "another's");
            prop_assert_eq!(payload.get(28..34), asked.get(28..34), "another's");
        }
        if *wait > 0 {
            lab.turn(*wait);
        }
    }
    prop_assert!(lab.is_alive());
    Ok(answers)
}

#[test]
fn any_message() {
    let waits = prop_oneof![8 => Just(0_u64), 1 => 0..100_000_u64];
    let answers = std::cell::Cell::new(0);
    fuzz("dhcp", concat!(module_path!(), "::any_message"), 200, &vec((message(), waits), 1..40), |messages| {
        answers.set(answers.get() + run(&messages)?);
        Ok(())
    });
    assert!(std::env::var_os(WORLD).is_none() || answers.get() > 0, "no message was answered");
}
