//! Matches of iptables, as iptables-nft hands them to the kernel: a name, a revision, and a C struct of that module.
//!
//! Known are `addrtype` (1), `conntrack` (1 to 3), `tcp` (0), `comment` (0) and `state` (0); others may match.

use super::packet::Packet;
use super::walk::Truth;
use crate::supervisor::netlink::array;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    Comment,
    /// Bit sets of RTN_*; 0 matches any.
    AddressType {
        source: u16,
        destination: u16,
        not_source: bool,
        not_destination: bool,
    },
    /// A bit set of conntrack's states.
    State {
        of: u32,
        not: bool,
    },
    TcpPorts {
        source: (u16, u16),
        destination: (u16, u16),
        not_source: bool,
        not_destination: bool,
        more: bool,
    },
}

/// linux/netfilter/xt_addrtype.h
const INVERT_SOURCE: u32 = 1;
const INVERT_DEST: u32 = 2;
const LIMIT_IFACE: u32 = 4 | 8;
/// linux/netfilter/xt_conntrack.h: offsets in struct xt_conntrack_mtinfo1..3, and the only flag understood.
const MATCH_FLAGS: usize = 146;
const STATE_MASK: usize = 150;
const XT_CONNTRACK_STATE: u16 = 1;
/// Asks for the state of the connection, with its old name.
const XT_CONNTRACK_STATE_ALIAS: u16 = 1 << 13;
/// SNAT and DNAT, which share the bit set.
const TRANSLATED: u32 = 1 << 6 | 1 << 7;
/// linux/netfilter/xt_tcpudp.h
const INV_SRCPT: u8 = 1;
const INV_DSTPT: u8 = 2;

impl Match {
    /// None: not known, may match.
    pub fn parse(name: &[u8], revision: u32, info: &[u8]) -> Option<Self> {
        match (name, revision) {
            (b"comment", 0) => Some(Self::Comment),
            (b"addrtype", 1) => address_type(info),
            (b"conntrack", 1..=3) => conntrack(revision, info),
            (b"state", 0) => Some(Self::State { of: u32::from_ne_bytes(array(info, 0)?), not: false }),
            (b"tcp", 0) => tcp(info),
            _ => None,
        }
    }

    pub fn of(&self, packet: &Packet) -> Truth {
        match *self {
            Self::Comment => Truth::Yes,
            Self::AddressType { source, destination, not_source, not_destination } => {
                let has = |set: u16, not: bool, of_source: bool| match packet.address_type(of_source) {
                    _ if set == 0 => Truth::Yes,
                    Some(kind) => Truth::from((set & 1_u16.checked_shl(kind.into()).unwrap_or(0) != 0) != not),
                    None => Truth::Maybe,
                };
                has(source, not_source, true).and(has(destination, not_destination, false))
            }
            Self::State { of, not } => Truth::from((of & packet.conntrack_state() != 0) != not),
            Self::TcpPorts { source, destination, not_source, not_destination, more } => {
                let within = |port: Option<u16>, (from, to): (u16, u16), not: bool| match port {
                    _ if (from, to) == (0, u16::MAX) => Truth::from(!not),
                    Some(port) => Truth::from((from..=to).contains(&port) != not),
                    None => Truth::Maybe,
                };
                let flags = if more { Truth::Maybe } else { Truth::Yes };
                within(packet.source_port, source, not_source)
                    .and(within(packet.destination_port, destination, not_destination))
                    .and(flags)
            }
        }
    }
}

fn address_type(info: &[u8]) -> Option<Match> {
    let flags = u32::from_ne_bytes(array(info, 4)?);
    (flags & LIMIT_IFACE == 0).then_some(Match::AddressType {
        source: u16::from_ne_bytes(array(info, 0)?),
        destination: u16::from_ne_bytes(array(info, 2)?),
        not_source: flags & INVERT_SOURCE != 0,
        not_destination: flags & INVERT_DEST != 0,
    })
}

fn conntrack(revision: u32, info: &[u8]) -> Option<Match> {
    let matched = u16::from_ne_bytes(array(info, MATCH_FLAGS)?) & !XT_CONNTRACK_STATE_ALIAS;
    let inverted = u16::from_ne_bytes(array(info, MATCH_FLAGS + 2)?) & !XT_CONNTRACK_STATE_ALIAS;
    let of: u32 = match revision {
        1 => array::<1>(info, STATE_MASK)?[0].into(),
        _ => u16::from_ne_bytes(array(info, STATE_MASK)?).into(),
    };
    (matched == XT_CONNTRACK_STATE && of & TRANSLATED == 0)
        .then_some(Match::State { of, not: inverted & XT_CONNTRACK_STATE != 0 })
}

fn tcp(info: &[u8]) -> Option<Match> {
    let port = |at| Some(u16::from_ne_bytes(array(info, at)?));
    let [option, flag_mask, _, inverted] = array(info, 8)?;
    Some(Match::TcpPorts {
        source: (port(0)?, port(2)?),
        destination: (port(4)?, port(6)?),
        not_source: inverted & INV_SRCPT != 0,
        not_destination: inverted & INV_DSTPT != 0,
        more: option != 0 || flag_mask != 0,
    })
}
