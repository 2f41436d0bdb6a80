//! Hostile frames, DHCP messages, DNS queries and resolvers against the whole engine: nothing they say makes it panic,
//! and what the workspace is sent is well-formed.
//!
//! Each target runs in a world of its own, a child process in user and network namespaces with nothing but a loopback:
//! whatever a frame asks for, no packet leaves it. Cases that ever failed are kept in tests/corpus/NAME, where proptest
//! adds the next; `LAB_SOAK` goes on with fresh ones for ten minutes and, where it is a path, adds a line to that file,
//! as the whole-program tests do.
//!
//! Not guided by coverage: libFuzzer needs a build of everything with its instrumentation, and a corpus of frames that
//! it would have to get past checksums. Here frames are made whole and then bent.

mod dhcp;
mod dns;
mod frames;

use std::fmt::Debug;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use proptest::test_runner::{FileFailurePersistence, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use super::*;
use crate::wire::UdpDatagram;

const SOAK: Duration = Duration::from_secs(600);
/// Set in a target's own world.
const WORLD: &str = "SIDESTEP_FUZZ_WORLD";

type Tried = Result<(), TestCaseError>;

/// Runs `cases` cases of a target, or as many as fit into the soak, in its world. `test` is the test function's path.
fn fuzz<S: Strategy>(name: &str, test: &str, cases: u32, strategy: &S, target: impl Fn(S::Value) -> Tried)
where
    S::Value: Debug,
{
    if std::env::var_os(WORLD).is_none() {
        return in_a_world(test);
    }
    let start = Instant::now();
    let soak = std::env::var_os("LAB_SOAK");
    let config = ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(Box::leak(
            format!("../tests/corpus/{name}").into_boxed_str(),
        )))),
        source_file: Some(file!()),
        ..ProptestConfig::default()
    };
    // The same cases every time, unless there is time for others.
    let mut runner = TestRunner::new_with_rng(config.clone(), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    loop {
        if let Err(failure) = runner.run(strategy, &target) {
            panic!("{failure}; see tests/corpus/{name}");
        }
        if soak.is_none() || start.elapsed() >= SOAK {
            break;
        }
        runner = TestRunner::new(config.clone());
    }
    let seconds = start.elapsed().as_secs();
    if let Some(report) = soak.filter(|path| Path::new(path).is_absolute()) {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(report).unwrap();
        file.write_all(format!("fuzz::{name}\t{seconds} s\t{seconds}\tok\n").as_bytes()).unwrap();
    }
}

/// Runs one test of this program again, where there is no network but lo.
fn in_a_world(test: &str) {
    let path = test.split_once("::").map_or(test, |(_crate, path)| path);
    let status = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--net",
            "sh",
            "-c",
            r#"ip link set lo up && exec "$0" --exact "$1" --nocapture"#,
        ])
        .arg(std::env::current_exe().unwrap())
        .arg(path)
        .env(WORLD, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{path}: {status}");
}

/// How a frame is sent through the wire's parsers and the engine.
#[derive(Clone, Debug)]
struct Packet {
    ends: (IpAddr, IpAddr),
    protocol: u8,
    /// IPv4's flags and fragment offset.
    fragment: u16,
    /// The virtio-net header.
    vnet: [u8; 12],
    payload: Vec<u8>,
}

/// NEEDS_CSUM: nobody looks at a transport checksum.
const PARTIAL: [u8; 12] = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

impl Packet {
    fn to_frame(&self) -> Vec<u8> {
        let len = u16::try_from(self.payload.len()).unwrap();
        let mut bytes = self.vnet.to_vec();
        bytes.extend_from_slice(&MACS.guest);
        bytes.extend_from_slice(&MACS.gateway);
        match self.ends {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                bytes.extend_from_slice(&EthernetHeader::IPV4.to_be_bytes());
                let mut ip = [0; IPV4_LEN];
                ip[0] = 0x45;
                ip[2..4].copy_from_slice(&(len + 20).to_be_bytes());
                ip[6..8].copy_from_slice(&self.fragment.to_be_bytes());
                (ip[8], ip[9]) = (64, self.protocol);
                ip[12..16].copy_from_slice(&src.octets());
                ip[16..20].copy_from_slice(&dst.octets());
                let sum = Sum::default().bytes(&ip).finish();
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
                bytes.extend_from_slice(&ip);
            }
            (src, dst) => {
                let octets = |address| match address {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                    IpAddr::V6(v6) => v6.octets(),
                };
                bytes.extend_from_slice(&EthernetHeader::IPV6.to_be_bytes());
                bytes.extend_from_slice(&[0x60, 0, 0, 0]);
                bytes.extend_from_slice(&len.to_be_bytes());
                bytes.extend_from_slice(&[self.protocol, 255]);
                bytes.extend_from_slice(&octets(src));
                bytes.extend_from_slice(&octets(dst));
            }
        }
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

fn udp_payload(ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).unwrap();
    let mut bytes = Vec::with_capacity(usize::from(len));
    for field in [ports.0, ports.1, len, 0] {
        bytes.extend_from_slice(&field.to_be_bytes());
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// Changes to bytes that made sense: a place, as a part of the whole, and what becomes of it.
type Bends = Vec<(u16, u8)>;

fn bends(at_most: usize) -> impl Strategy<Value = Bends> {
    prop_oneof![3 => Just(Vec::new()), 2 => vec(any::<(u16, u8)>(), 1..=at_most)]
}

fn bend(bytes: &mut [u8], bends: &Bends) {
    for &(place, value) in bends {
        let index = (usize::from(place) * bytes.len()) >> 16;
        if let Some(byte) = bytes.get_mut(index) {
            *byte = value;
        }
    }
}

/// A datagram to the workspace: from, to, payload.
type Datagram = ((IpAddr, u16), (IpAddr, u16), Vec<u8>);

/// The datagrams among what the workspace was sent. Fails on a frame that no kernel would take.
fn datagrams(frames: &[Vec<u8>]) -> Result<Vec<Datagram>, TestCaseError> {
    let mut found = Vec::new();
    for bytes in frames {
        let frame = Frame::parse(bytes).map_err(|error| TestCaseError::fail(format!("{error:?}: {bytes:?}")))?;
        let ethertype = frame.ethernet.ethertype.get();
        if ethertype == EthernetHeader::ARP {
            continue;
        }
        let ip = IpPacket::parse(ethertype, frame.body)
            .map_err(|error| TestCaseError::fail(format!("{error:?}: {bytes:?}")))?;
        let is_segmented = bytes.get(1).is_some_and(|&kind| kind != 0);
        prop_assert!(is_segmented || frame.body.len() <= 1500, "{} bytes above the MTU", frame.body.len());
        if ip.protocol == 17 && ip.fragment.is_none() {
            let datagram =
                UdpDatagram::parse(&ip, true).map_err(|error| TestCaseError::fail(format!("{error:?}: {bytes:?}")))?;
            let ends = ((ip.src, datagram.src_port), (ip.dst, datagram.dst_port));
            found.push((ends.0, ends.1, datagram.payload.to_vec()));
        }
    }
    Ok(found)
}
