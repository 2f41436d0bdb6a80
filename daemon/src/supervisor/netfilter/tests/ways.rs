//! Packets that do not leave by the TAP from a socket here: forwarded ones, and those that come to a socket here.

use super::*;

/// A container's connection through a bridge, 172.17.0.2 by docker0 to tap0.
fn forwarded(rules: &Ruleset, l4proto: u8) -> bool {
    let (input, tap) = (Device::new(7, b"docker0"), Device::new(2, b"tap0"));
    let way = Way::Through { input, tap, outer: "10.0.2.100".parse().ok() };
    let (source, destination) = ("172.17.0.2".parse().ok(), "192.0.2.1:443".parse().unwrap());
    rules.could_touch(&Connection { source, destination, l4proto, way })
}

#[test]
fn a_forwarded_packet() {
    let drop = || verdict(DROP, "");
    let masquerade = || expression("masq", &[]);
    let device = |key, name: &str| {
        let mut bytes = [0; 16];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        vec![meta(key), cmp(0, &bytes)]
    };
    let (from_bridge, to_tap) = (device(6, "docker0"), device(7, "tap0"));
    let at = |hook, priority| Base { hook, priority, ..OUTPUT };
    let (pre, forward, post) = (at(NF_INET_PRE_ROUTING, 0), at(NF_INET_FORWARD, 0), at(NF_INET_POST_ROUTING, 0));
    let nat = Base { nat: true, ..at(NF_INET_POST_ROUTING, 100) };
    let saddr = |address: [u8; 4]| vec![payload(1, 12, 4), cmp(0, &address)];
    let daddr = |address: [u8; 4]| vec![payload(1, 16, 4), cmp(0, &address)];
    let local =
        |of| vec![expression("fib", &[number(1, REGISTER), number(2, 3), number(3, of)]), cmp(0, &2_u32.to_ne_bytes())];
    let (container, outer, server) = ([172, 17, 0, 2], [10, 0, 2, 100], [192, 0, 2, 1]);
    let with_drop = |steps: Vec<Vec<u8>>| [steps, vec![drop()]].concat();
    // The rule at its hook; whether the connection is touched without masquerading, and with it.
    type Case<'a> = (&'a str, Base, Vec<Vec<u8>>, [bool; 2]);
    let cases: Vec<Case<'_>> = vec![
        ("drop", forward, vec![drop()], [true, true]),
        ("not for it", at(NF_INET_LOCAL_OUT, 0), vec![drop()], [false, false]),
        ("nor is this", at(NF_INET_LOCAL_IN, 0), vec![drop()], [false, false]),
        ("in by the bridge", forward, with_drop(from_bridge.clone()), [true, true]),
        ("in by another", forward, with_drop(device(6, "br0")), [false, false]),
        ("out by the TAP", forward, with_drop(to_tap.clone()), [true, true]),
        ("no device yet", pre, with_drop(to_tap.clone()), [false, false]),
        ("both, behind routing", post, with_drop([from_bridge.clone(), to_tap.clone()].concat()), [true, true]),
        ("its source", forward, with_drop(saddr(container)), [true, true]),
        ("its source, outside", at(NF_INET_POST_ROUTING, 200), with_drop(saddr(container)), [true, false]),
        ("the outer source", at(NF_INET_POST_ROUTING, 200), with_drop(saddr(outer)), [false, true]),
        ("the outer source, too early", post, with_drop(saddr(outer)), [false, false]),
        ("either source", at(NF_INET_POST_ROUTING, 100), with_drop(saddr(outer)), [false, true]),
        ("replies to it", forward, with_drop(daddr(container)), [true, true]),
        ("replies to it, from outside", at(NF_INET_PRE_ROUTING, -300), with_drop(daddr(container)), [true, false]),
        ("replies to the outer one", at(NF_INET_PRE_ROUTING, -300), with_drop(daddr(outer)), [false, true]),
        ("the same, too late", at(NF_INET_PRE_ROUTING, 0), with_drop(daddr(outer)), [false, false]),
        ("replies from the server", forward, with_drop(saddr(server)), [true, true]),
        ("local source", forward, with_drop(local(1)), [false, false]),
        ("local destination, early", at(NF_INET_PRE_ROUTING, -300), with_drop(local(2)), [false, true]),
        ("udp", forward, with_drop(vec![meta(16), cmp(0, &[UDP])]), [false, false]),
        ("netdev", Base { family: 5, hook: NF_NETDEV_EGRESS, ..OUTPUT }, with_drop(saddr(outer)), [false, true]),
        ("bridge", Base { family: 7, ..pre }, with_drop(daddr(server)), [true, true]),
        ("bridge, of another", Base { family: 7, ..pre }, with_drop(daddr([192, 0, 2, 9])), [false, true]),
    ];
    for (what, base, rule, want) in cases {
        let mut rules = ruleset(base, &[&[&rule]]);
        assert_eq!(forwarded(&rules, TCP), want[0], "{what}");
        rules.chains.push(vec![lowered(&[masquerade()])]);
        rules.bases.push(Base { chain: 1, ..nat });
        assert_eq!(forwarded(&rules, TCP), want[1], "{what}, masqueraded");
    }
    let udp_only = with_drop(vec![meta(16), cmp(0, &[UDP])]);
    assert!(forwarded(&ruleset(forward, &[&[&udp_only]]), UDP));
    // Whether it is masqueraded must be known.
    let perhaps = vec![expression("limit", &[]), masquerade()];
    assert!(forwarded(&ruleset(nat, &[&[&perhaps]]), TCP));
    let perhaps_not = [vec![expression("limit", &[]), verdict(ACCEPT, "")], vec![masquerade()]];
    assert!(forwarded(&ruleset(nat, &[&[&perhaps_not[0], &perhaps_not[1]]]), TCP));
    assert!(!forwarded(&ruleset(nat, &[&[&[masquerade()]]]), TCP));
    let first_of_two = ruleset(Base { priority: 200, ..nat }, &[&[&with_drop(saddr(container))]]);
    assert!(forwarded(&first_of_two, TCP), "as it came, at whatever priority");
    // A nested namespace's own: what the workspace would see of it then is not known.
    let leaving = |rules: &Ruleset| {
        let (source, destination) = ("172.17.0.2".parse().ok(), "192.0.2.1:443".parse().unwrap());
        let way = Way::Nested(Device::new(3, b"eth0"));
        rules.could_touch(&Connection { source, destination, l4proto: TCP, way })
    };
    assert!(leaving(&ruleset(nat, &[&[&[masquerade()]]])));
    assert!(!leaving(&ruleset(nat, &[&[&[verdict(ACCEPT, "")]]])));
    assert!(leaving(&ruleset(OUTPUT, &[&[&with_drop(device(7, "eth0"))]])));
    assert!(!leaving(&ruleset(forward, &[&[&[drop()]]])));
}

/// A client from anywhere, in by tap0 to 10.0.2.100:80; one from 127.0.0.1 to itself.
#[test]
fn packets_to_a_socket_here() {
    let drop = || verdict(DROP, "");
    let name = |key, name: &[u8; 4]| vec![meta(key), cmp(0, name)];
    let at = |hook| Base { hook, ..OUTPUT };
    let port = |offset, port: u16| vec![payload(2, offset, 2), cmp(0, &port.to_be_bytes())];
    let address = |offset, address: [u8; 4]| vec![payload(1, offset, 4), cmp(0, &address)];
    let of_type = |of, kind: u32| {
        vec![expression("fib", &[number(1, REGISTER), number(2, 3), number(3, of)]), cmp(0, &kind.to_ne_bytes())]
    };
    let state = |bit: u32| vec![ct_state(), and(&bit.to_ne_bytes()), cmp(1, &[0; 4])];
    let with_drop = |steps: Vec<Vec<u8>>| [steps, vec![drop()]].concat();
    const LOCAL: u32 = 2;
    const UNICAST: u32 = 1;
    // The rule at its hook; whether the client is touched by the TAP, and over the loopback.
    type Case<'a> = (&'a str, Base, Vec<Vec<u8>>, [bool; 2]);
    let cases: Vec<Case<'_>> = vec![
        ("all that comes in", at(NF_INET_LOCAL_IN), vec![drop()], [true, true]),
        ("before routing", at(NF_INET_PRE_ROUTING), vec![drop()], [true, true]),
        ("what is forwarded", at(NF_INET_FORWARD), vec![drop()], [false, false]),
        ("its port", at(NF_INET_LOCAL_IN), with_drop(port(2, 80)), [true, true]),
        // Over the loopback answers come in, too, and nobody knows to which port.
        ("another port", at(NF_INET_LOCAL_IN), with_drop(port(2, 81)), [false, true]),
        ("the client's port", at(NF_INET_LOCAL_IN), with_drop(port(0, 4000)), [true, true]),
        ("answers from its port", at(NF_INET_LOCAL_OUT), with_drop(port(0, 80)), [true, true]),
        ("the TAP", at(NF_INET_LOCAL_IN), with_drop(name(6, b"tap0")), [true, false]),
        ("out by the TAP", at(NF_INET_POST_ROUTING), with_drop(name(7, b"tap0")), [true, false]),
        ("the loopback", at(NF_INET_LOCAL_IN), with_drop(name(6, b"lo\0\0")), [false, true]),
        ("out by the loopback", at(NF_INET_LOCAL_OUT), with_drop(name(7, b"lo\0\0")), [false, true]),
        ("its address", at(NF_INET_LOCAL_IN), with_drop(address(16, [10, 0, 2, 100])), [true, false]),
        ("anybody's address", at(NF_INET_LOCAL_IN), with_drop(address(12, [192, 0, 2, 1])), [true, false]),
        ("a new one", at(NF_INET_LOCAL_IN), with_drop(state(8)), [true, true]),
        ("a new one out", at(NF_INET_LOCAL_OUT), with_drop(state(8)), [false, true]),
        ("a local source", at(NF_INET_LOCAL_IN), with_drop(of_type(1, LOCAL)), [false, true]),
        ("a local destination", at(NF_INET_LOCAL_IN), with_drop(of_type(2, LOCAL)), [true, true]),
        ("a remote destination", at(NF_INET_LOCAL_IN), with_drop(of_type(2, UNICAST)), [false, false]),
        ("masquerading", Base { nat: true, ..at(NF_INET_POST_ROUTING) }, vec![expression("masq", &[])], [false, true]),
        ("a redirection", Base { nat: true, ..at(NF_INET_PRE_ROUTING) }, vec![expression("redir", &[])], [true, true]),
        ("the same out", Base { nat: true, ..OUTPUT }, vec![expression("redir", &[])], [false, true]),
        ("at the device", Base { family: 5, hook: NF_NETDEV_EGRESS, ..OUTPUT }, with_drop(port(0, 80)), [true, true]),
    ];
    for (what, base, rule, want) in cases {
        let rules = ruleset(base, &[&[&rule]]);
        let touches = |source: Option<&str>, destination: &str, way| {
            let source = source.and_then(|text| text.parse().ok());
            rules.could_touch(&Connection { source, destination: destination.parse().unwrap(), l4proto: TCP, way })
        };
        let inward = touches(None, "10.0.2.100:80", Way::Inward(Device::new(2, b"tap0")));
        let within = touches(Some("127.0.0.1"), "127.0.0.1:80", Way::Within(Device::new(1, b"lo")));
        assert_eq!([inward, within], want, "{what}");
    }
}
