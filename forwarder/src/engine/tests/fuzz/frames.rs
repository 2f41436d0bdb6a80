//! Frame → engine: frames of every protocol, whole, bent and arbitrary, between acts of the host's ends and the time.

use std::cell::RefCell;
use std::io::{Read as _, Write as _};
use std::net::Ipv6Addr;

use super::*;

/// The loopback's servers; a world has these ports for itself.
const TCP: u16 = 7;
const UDP: u16 = 9;
/// Connections of the host's end that are kept; older ones are closed.
const KEPT: usize = 8;

#[derive(Clone, Debug)]
enum Step {
    Packet(Packet, Bends),
    Raw(Vec<u8>),
    /// An earlier frame once more, bent.
    Again(usize, Bends),
    /// The workspace's half of a handshake with the last SYN-ACK, and this payload.
    Answer(u16, i16),
    Host(Host),
    Turn(u64),
}

/// What the host's end of a connection does.
#[derive(Clone, Copy, Debug)]
enum Host {
    Write(usize),
    Read,
    Shutdown,
    Close,
}

fn address() -> impl Strategy<Value = IpAddr> {
    let special = [
        "10.0.2.2",
        "10.0.2.3",
        "10.0.2.100",
        "10.0.2.77",
        "10.0.2.255",
        "127.0.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.251",
        "169.254.169.254",
        "192.0.2.9",
        "fd00::2",
        "fd00::3",
        "fd00::64",
        "fd00::77",
        "::1",
        "::",
        "fe80::1",
        "ff02::1",
        "ff02::2",
        "ff02::1:ff00:2",
        "2001:db8::9",
        "::ffff:127.0.0.1",
        "::ffff:10.0.2.2",
    ];
    prop_oneof![
        9 => prop::sample::select(special.map(|text| text.parse::<IpAddr>().unwrap()).to_vec()),
        1 => any::<[u8; 4]>().prop_map(IpAddr::from),
        1 => any::<[u8; 16]>().prop_map(IpAddr::from),
    ]
}

/// Ends of one family more often than not the workspace's and the gateway's.
fn ends() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    let v6 = |last: u16| IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last));
    let guest = |dst: &IpAddr| {
        if dst.is_ipv4() {
            IpAddr::V4(GUEST)
        } else {
            IpAddr::from([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x64])
        }
    };
    prop_oneof![
        4 => Just((IpAddr::V4(GUEST), IpAddr::V4(GATEWAY))),
        2 => Just((v6(0x64), v6(2))),
        4 => address().prop_map(move |dst| (guest(&dst), dst)),
        1 => (address(), address()),
    ]
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![6 => Just(TCP), 4 => Just(UDP), 2 => prop::sample::select(vec![0, 53, 67, 68, 547]), 1 => any::<u16>()]
}

fn tcp() -> impl Strategy<Value = Vec<u8>> {
    let flags = prop_oneof![4 => Just(2_u8), 3 => Just(0x10), 1 => Just(0x11), 1 => Just(4), 2 => any::<u8>()];
    let options = prop_oneof![
        3 => Just(vec![2, 4, 5, 0xb4, 1, 3, 3, 7, 4, 2, 1, 1]),
        1 => Just(vec![]),
        2 => vec(any::<u8>(), 0..40),
    ];
    ((0..4_u16, port()), any::<[u32; 2]>(), flags, any::<u16>(), options, vec(any::<u8>(), 0..200)).prop_map(
        |(ports, numbers, flags, window, mut options, payload)| {
            options.resize(options.len().next_multiple_of(4), 0);
            let mut bytes = Vec::new();
            bytes.extend_from_slice(&(4000 + ports.0).to_be_bytes());
            bytes.extend_from_slice(&ports.1.to_be_bytes());
            // Numbers close to each other more often than not, so that segments meet the connection.
            for number in numbers {
                bytes.extend_from_slice(&(if number & 3 == 0 { number } else { 1000 + (number >> 22) }).to_be_bytes());
            }
            bytes.push(u8::try_from((20 + options.len()) / 4).unwrap() << 4);
            bytes.push(flags);
            bytes.extend_from_slice(&window.to_be_bytes());
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(&options);
            bytes.extend_from_slice(&payload);
            bytes
        },
    )
}

fn icmp() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let v4 = (prop_oneof![3 => Just(8_u8), 1 => any::<u8>()], any::<u8>(), vec(any::<u8>(), 0..100));
    let v6 = (
        prop_oneof![2 => Just(128_u8), 2 => Just(133), 3 => Just(135), 1 => Just(136), 1 => any::<u8>()],
        Just(0_u8),
        vec(any::<u8>(), 0..100),
    );
    let message = |(kind, code, rest): (u8, u8, Vec<u8>)| [&[kind, code, 0, 0][..], &rest].concat();
    prop_oneof![v4.prop_map(move |said| (1, message(said))), v6.prop_map(move |said| (58, message(said)))]
}

fn packet() -> impl Strategy<Value = Packet> {
    let transport = prop_oneof![
        5 => tcp().prop_map(|bytes| (6_u8, bytes)),
        3 => ((0..4_u16, port()), vec(any::<u8>(), 0..2000))
            .prop_map(|((src, dst), payload)| (17, udp_payload((5000 + src, dst), &payload))),
        2 => icmp(),
        1 => (any::<u8>(), vec(any::<u8>(), 0..200)),
        // Extension headers: hop by hop, routing, fragment, options.
        1 => (prop::sample::select(vec![0_u8, 43, 44, 60]), vec(any::<u8>(), 8..200)),
    ];
    let fragment = prop_oneof![5 => Just(0_u16), 1 => any::<u16>(), 1 => (0..8_u16).prop_map(|piece| 0x2000 | piece)];
    let vnet = prop_oneof![
        4 => Just(PARTIAL),
        // A GSO type and any size of its pieces.
        2 => (prop::sample::select(vec![1_u8, 4, 5, 0x81, 0x84, 3]), any::<u16>()).prop_map(|(kind, size)| {
            let mut vnet = PARTIAL;
            vnet[1] = kind;
            vnet[4..6].copy_from_slice(&size.to_ne_bytes());
            vnet
        }),
        1 => any::<[u8; 12]>(),
    ];
    (ends(), transport, fragment, vnet).prop_map(|(ends, (protocol, payload), fragment, vnet)| Packet {
        ends,
        protocol,
        fragment,
        vnet,
        payload,
    })
}

/// ARP with any fields, and any other ethertype.
fn raw() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..120),
        (any::<[u8; 6]>(), vec(any::<u8>(), 0..60), any::<bool>()).prop_map(|(mac, mut body, is_request)| {
            if is_request {
                body.splice(..0, [0, 1, 8, 0, 6, 4, 0, 1]);
            }
            [&[0; 12][..], &[0xff; 6], &mac, &EthernetHeader::ARP.to_be_bytes(), &body].concat()
        }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let host = prop_oneof![
        (0..200_000_usize).prop_map(Host::Write),
        Just(Host::Read),
        Just(Host::Shutdown),
        Just(Host::Close)
    ];
    prop_oneof![
        8 => (packet(), bends(6)).prop_map(|(packet, bends)| Step::Packet(packet, bends)),
        2 => raw().prop_map(Step::Raw),
        2 => (any::<usize>(), bends(6)).prop_map(|(index, bends)| Step::Again(index, bends)),
        4 => any::<(u16, i16)>().prop_map(|(len, shift)| Step::Answer(len % 3000, shift % 100)),
        3 => host.prop_map(Step::Host),
        3 => prop_oneof![0..500_u64, 0..200_000_u64].prop_map(Step::Turn),
    ]
}

/// The servers of the loopback, and what they have accepted.
struct Servers {
    tcp: TcpListener,
    _udp: UdpSocket,
    streams: Vec<TcpStream>,
    accepted: usize,
}

impl Servers {
    fn start() -> Self {
        let tcp = TcpListener::bind((Ipv6Addr::UNSPECIFIED, TCP)).unwrap();
        tcp.set_nonblocking(true).unwrap();
        Self { tcp, _udp: UdpSocket::bind((Ipv6Addr::UNSPECIFIED, UDP)).unwrap(), streams: Vec::new(), accepted: 0 }
    }

    /// Whatever the stream says to it, an error is the workspace's doing.
    fn act(&mut self, act: Host) {
        while let Ok((stream, _)) = self.tcp.accept() {
            stream.set_nonblocking(true).unwrap();
            self.streams.push(stream);
            self.accepted += 1;
        }
        let surplus = self.streams.len().saturating_sub(KEPT);
        self.streams.drain(..surplus);
        let Some(mut stream) = self.streams.last() else { return };
        let _result = match act {
            Host::Write(len) => stream.write(&vec![7; len]).map(drop),
            Host::Read => stream.read(&mut [0; 1 << 16]).map(drop),
            Host::Shutdown => stream.shutdown(std::net::Shutdown::Write),
            Host::Close => {
                self.streams.pop();
                Ok(())
            }
        };
    }
}

fn run(servers: &mut Servers, steps: Vec<Step>) -> Tried {
    let mut lab = Lab::new();
    let mut sent: Vec<Vec<u8>> = Vec::new();
    let mut seen = Vec::new();
    for step in steps {
        let frame = match step {
            Step::Packet(packet, bends) => {
                let mut frame = packet.to_frame();
                bend(&mut frame, &bends);
                Some(frame)
            }
            Step::Raw(frame) => Some(frame),
            Step::Again(index, bends) => {
                sent.get(index.checked_rem(sent.len()).unwrap_or(0)).cloned().map(|mut frame| {
                    bend(&mut frame, &bends);
                    frame
                })
            }
            Step::Answer(len, shift) => {
                let last = segments(&seen).into_iter().rfind(|(flags, ..)| flags.has(TcpFlags::ACK));
                last.map(|(_, seq, ack, payload)| {
                    let next = seq.wrapping_add(u32::try_from(payload.len()).unwrap()).wrapping_add(1);
                    let next = next.wrapping_add_signed(shift.into());
                    lab.tcp((4000, TCP), ack, next, TcpFlags::ACK, &vec![5; len.into()])
                })
            }
            Step::Host(act) => {
                servers.act(act);
                None
            }
            Step::Turn(millis) => {
                lab.turn(millis);
                None
            }
        };
        if let Some(frame) = frame {
            lab.feed(std::slice::from_ref(&frame));
            sent.push(frame);
        }
        seen = lab.received();
        datagrams(&seen)?;
    }
    prop_assert!(lab.is_alive());
    Ok(())
}

#[test]
fn any_frame() {
    let servers = std::env::var_os(WORLD).map(|_| RefCell::new(Servers::start()));
    fuzz("frames", concat!(module_path!(), "::any_frame"), 150, &vec(step(), 1..60), |steps| {
        servers.as_ref().map_or(Ok(()), |servers| run(&mut servers.borrow_mut(), steps))
    });
    assert!(servers.is_none_or(|servers| servers.borrow().accepted > 0), "no frame made a connection");
}
