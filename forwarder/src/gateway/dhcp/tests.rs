//! Clients of every kind, and what is no client.

use proptest::collection::vec;
use proptest::prelude::*;
use smoltcp::wire::DhcpRepr;

use super::*;
use crate::network::Ipv4Subnet;

fn network() -> VirtualNetwork {
    VirtualNetwork::new(Ipv4Subnet::DEFAULT, None, 1500)
}

/// A message of client number `client`.
fn message(kind: DhcpMessageType, client: u8) -> Message<'static> {
    Message {
        kind,
        transaction: 7,
        flags: DhcpFlags::empty(),
        client_address: Ipv4Addr::UNSPECIFIED,
        mac: [2, 0, 0, 0, 0, client],
        identifier: None,
        requested: None,
        server: None,
    }
}

fn lease(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 2, last)
}

fn server() -> Option<Ipv4Addr> {
    Some(network().v4.gateway())
}

/// The kind of the answer, the last byte of the address given, and the last byte of where it goes.
fn told(answer: Option<Answer>) -> Option<(DhcpMessageType, u8, u8)> {
    answer.map(|a| (a.kind, a.address.map_or(0, |address| address.octets()[3]), a.to.octets()[3]))
}

#[test]
fn a_lease_from_discover_to_release() {
    use DhcpMessageType::{Ack, Decline, Discover, Inform, Nak, Offer, Release, Request};
    let steps = [
        ("first", message(Discover, 1), Some((Offer, 15, 15))),
        (
            "selecting",
            Message { requested: Some(lease(15)), server: server(), ..message(Request, 1) },
            Some((Ack, 15, 15)),
        ),
        ("again", message(Discover, 1), Some((Offer, 15, 15))),
        ("another", Message { flags: DhcpFlags::BROADCAST, ..message(Discover, 2) }, Some((Offer, 16, 255))),
        ("a wish", Message { requested: Some(lease(20)), ..message(Discover, 3) }, Some((Offer, 20, 20))),
        ("a vain wish", Message { requested: Some(lease(100)), ..message(Discover, 4) }, Some((Offer, 17, 17))),
        ("renewing", Message { client_address: lease(15), ..message(Request, 1) }, Some((Ack, 15, 15))),
        ("rebooting", Message { requested: Some(lease(15)), ..message(Request, 1) }, Some((Ack, 15, 15))),
        ("another's", Message { requested: Some(lease(15)), ..message(Request, 2) }, Some((Nak, 0, 255))),
        ("no lease", Message { client_address: lease(100), ..message(Request, 2) }, Some((Nak, 0, 255))),
        ("of a predecessor", Message { client_address: lease(25), ..message(Request, 5) }, Some((Ack, 25, 25))),
        ("nothing named", message(Request, 6), Some((Nak, 0, 255))),
        ("another server", Message { server: Some(lease(9)), ..message(Request, 3) }, None),
        ("so it is free", Message { requested: Some(lease(20)), ..message(Discover, 7) }, Some((Offer, 20, 20))),
        ("static", Message { client_address: lease(100), ..message(Inform, 8) }, Some((Ack, 0, 100))),
        ("release", Message { client_address: lease(15), server: server(), ..message(Release, 1) }, None),
        ("free again", message(Discover, 9), Some((Offer, 15, 15))),
        ("in use", Message { requested: Some(lease(15)), server: server(), ..message(Decline, 9) }, None),
        ("not that one", message(Discover, 9), Some((Offer, 18, 18))),
        ("an answer", message(Offer, 1), None),
    ];
    let mut dhcp = Dhcp::default();
    for (step, message, want) in steps {
        assert_eq!(told(dhcp.answer(Time(1), &network(), &message)), want, "{step}");
    }
}

#[test]
fn leases_are_few_and_end() {
    let mut dhcp = Dhcp::default();
    let discover = |dhcp: &mut Dhcp, now, client| {
        told(dhcp.answer(Time(now), &network(), &message(DhcpMessageType::Discover, client))).map(|(_, last, _)| last)
    };
    for client in 0..16 {
        assert_eq!(discover(&mut dhcp, 0, client), Some(15 + client));
    }
    assert_eq!(discover(&mut dhcp, 0, 16), None);
    // Offers nobody took.
    assert_eq!(discover(&mut dhcp, OFFER_MS + 1, 16), Some(15));
    let request = Message { requested: Some(lease(15)), server: server(), ..message(DhcpMessageType::Request, 16) };
    dhcp.answer(Time(OFFER_MS + 1), &network(), &request).unwrap();
    for now in [3 * OFFER_MS, 86_400_000 + 3 * OFFER_MS] {
        assert_eq!(discover(&mut dhcp, now, 17), Some(if now > 86_400_000 { 15 } else { 16 }));
    }
}

/// By identifier, where there is one: a client may have another interface the next time.
#[test]
fn who_a_client_is() {
    let client = |mac, identifier| Message { identifier, ..message(DhcpMessageType::Discover, mac) }.client();
    assert_eq!(client(1, Some(b"\0name")), client(2, Some(b"\0name")));
    assert_ne!(client(1, Some(b"\0name")), client(1, None));
    assert_eq!(client(1, Some(&[1, 2, 0, 0, 0, 0, 1])), client(1, None));
}

/// Bytes of an answer with everything in it.
fn answered(message: &Message<'_>, network: &VirtualNetwork, search: &[String]) -> Vec<u8> {
    let mut bytes = vec![0x5a; MESSAGE_LEN];
    let answer = Dhcp::default().answer(Time(0), network, message).unwrap();
    emit(&mut bytes, message, &answer, network, search);
    bytes
}

#[test]
fn answers_are_what_smoltcp_reads() {
    let search = ["lab", "example.org"].map(str::to_owned);
    let bytes = answered(&message(DhcpMessageType::Discover, 1), &network(), &search);
    let packet = DhcpPacket::new_checked(&bytes[..]).unwrap();
    let read = DhcpRepr::parse(&packet).unwrap();
    assert_eq!(read.message_type, DhcpMessageType::Offer);
    assert_eq!((read.transaction_id, read.your_ip, read.lease_duration), (7, lease(15), Some(86_400)));
    assert_eq!((read.router, read.server_identifier), (server(), server()));
    assert_eq!(read.subnet_mask, Some([255, 255, 255, 0].into()));
    assert_eq!(read.dns_servers.unwrap()[..], [lease(3)]);
    let data = |kind| packet.options().find(|option| option.kind == kind).map(|option| option.data.to_vec());
    assert_eq!(data(option::INTERFACE_MTU), Some(vec![5, 220]));
    assert_eq!(data(option::DOMAIN_NAME), Some(b"lab".to_vec()));
    assert_eq!(data(option::DOMAIN_SEARCH), Some(b"\x03lab\0\x07example\x03org\0".to_vec()));

    let silent = VirtualNetwork { dns: false, ..network() };
    let bytes = answered(&message(DhcpMessageType::Inform, 1), &silent, &[]);
    let packet = DhcpPacket::new_checked(&bytes[..]).unwrap();
    let kinds: Vec<_> = packet.options().map(|option| option.kind).collect();
    assert_eq!(kinds, [53, 54, 1, 28, 3, 26]);
}

/// However long the host's search list is, the answer keeps its length and its other options, and has an end.
#[test]
fn a_long_search_list_is_cut() {
    let label = "x".repeat(60);
    for domain in [format!("{label}.{label}.{label}.{label}"), format!("{label}.{label}"), "lab".into()] {
        let bytes = answered(&message(DhcpMessageType::Discover, 1), &network(), &vec![domain; 100]);
        let packet = DhcpPacket::new_checked(&bytes[..]).unwrap();
        assert!(packet.options().any(|option| option.kind == option::DOMAIN_NAME_SERVER));
        assert!(packet.options().map(|option| 2 + option.data.len()).sum::<usize>() < MESSAGE_LEN - OPTIONS_AT);
        assert_eq!(bytes.last(), Some(&option::END));
    }
}

#[test]
fn what_is_no_clients_message() {
    let mut bytes = answered(&message(DhcpMessageType::Discover, 1), &network(), &[]);
    let read = |bytes: &[u8]| {
        let packet = DhcpPacket::new_checked(bytes).map_err(|_| Malformed::Truncated)?;
        parse(&packet).map(|message| message.map(|message| message.transaction))
    };
    assert_eq!(read(&bytes), Err(Malformed::Header), "a server's");
    bytes[0] = 1;
    assert_eq!(read(&bytes), Ok(Some(7)));
    for (at, value, want) in [
        (1, 6, Err(Malformed::Header)),
        (2, 16, Err(Malformed::Header)),
        (24, 10, Ok(None)),
        (236, 0, Err(Malformed::Header)),
        (240, 0, Err(Malformed::Header)),
    ] {
        let mut changed = bytes.clone();
        changed[at] = value;
        assert_eq!(read(&changed), want, "{at}");
    }
    for len in 0..bytes.len() {
        assert!(read(&bytes[..len]).is_ok() || len < 243, "{len}");
    }
}

proptest! {
    /// Whatever comes, nothing panics, leases stay few, and an answer can be read.
    #[test]
    fn no_message_stops_it(messages in vec((0u8..9, vec(any::<u8>(), 0..80), any::<[u8; 34]>()), 1..60)) {
        let (mut dhcp, mut bytes) = (Dhcp::default(), vec![0; MESSAGE_LEN]);
        let search = vec!["lab".to_owned()];
        for (now, (kind, options, head)) in messages.into_iter().enumerate() {
            let mut message = [&head[..], &[0; 202], &MAGIC.to_be_bytes(), &[option::MESSAGE_TYPE, 1, kind]].concat();
            message[..3].copy_from_slice(&[1, 1, 6]);
            message[24..28].fill(0);
            message.extend_from_slice(&options);
            let packet = DhcpPacket::new_checked(&message[..]).unwrap();
            let message = parse(&packet).unwrap().unwrap();
            if let Some(answer) = dhcp.answer(Time(now as u64 * 10_000), &network(), &message) {
                emit(&mut bytes, &message, &answer, &network(), &search);
                prop_assert!(DhcpPacket::new_checked(&bytes[..]).unwrap().options().count() > 1);
            }
            prop_assert!(dhcp.leases.len() <= 16);
        }
    }
}
