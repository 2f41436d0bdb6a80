//! Which options a host socket is to have from the one that it replaces, and which it cannot have; of the rare ones, what
//! has to have been set for them to differ.

use sidestep_seccomp_profile::rare_options::{
    IP_LOCAL_PORT_RANGE, IPV6_ADDR_PREFERENCES, IPV6_AUTOFLOWLABEL, IPV6_FLOWINFO_SEND, IPV6_MINHOPCOUNT,
    IPV6_UNICAST_IF, OptionName, SO_BINDTOIFINDEX, SO_TIMESTAMP_NEW, SO_TIMESTAMPING_NEW, SO_TIMESTAMPNS_NEW,
    SO_TXREHASH, TCP_DELACK_MAX_US, TCP_RTO_MAX_MS, TCP_RTO_MIN_US, TCP_TX_DELAY,
};

use crate::supervisor::facts::Kind;
use crate::supervisor::touched::OptionSet;

/// linux/in.h, linux/in6.h, linux/udp.h, linux/tcp.h; libc lacks them for this target.
const TCP_FASTOPEN_NO_COOKIE: i32 = 34;
const IPV6_RECVERR_RFC4884: i32 = 31;
const IP_RECVFRAGSIZE: i32 = 25;
const IP_RECVERR_RFC4884: i32 = 26;
pub const UDP_ENCAP: i32 = 100;
const UDP_NO_CHECK6_TX: i32 = 101;
const UDP_NO_CHECK6_RX: i32 = 102;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketOption {
    pub level: i32,
    pub name: i32,
    pub ipv6_only: bool,
}

pub const fn general(name: i32) -> SocketOption {
    SocketOption { level: libc::SOL_SOCKET, name, ipv6_only: false }
}

const fn tcp(name: i32) -> SocketOption {
    SocketOption { level: libc::IPPROTO_TCP, name, ipv6_only: false }
}

const fn udp(name: i32) -> SocketOption {
    SocketOption { level: libc::IPPROTO_UDP, name, ipv6_only: false }
}

const fn ip(name: i32) -> SocketOption {
    SocketOption { level: libc::IPPROTO_IP, name, ipv6_only: false }
}

pub const fn ipv6(name: i32) -> SocketOption {
    SocketOption { level: libc::IPPROTO_IPV6, name, ipv6_only: true }
}

/// Set on the new socket where they differ.
/// Left out is what changes nothing about a connected socket: each costs every connect.
pub const CARRIED: [SocketOption; 36] = [
    general(libc::SO_REUSEADDR),
    general(libc::SO_REUSEPORT),
    general(libc::SO_KEEPALIVE),
    general(libc::SO_OOBINLINE),
    general(libc::SO_LINGER),
    general(libc::SO_RCVLOWAT),
    general(libc::SO_RCVTIMEO),
    general(libc::SO_SNDTIMEO),
    general(libc::SO_TIMESTAMP),
    general(libc::SO_TIMESTAMPNS),
    general(libc::SO_TIMESTAMPING),
    // The last one set says whether times have 64 bits.
    general(SO_TIMESTAMP_NEW),
    general(SO_TIMESTAMPNS_NEW),
    general(SO_TIMESTAMPING_NEW),
    general(libc::SO_PEEK_OFF),
    general(libc::SO_SELECT_ERR_QUEUE),
    general(libc::SO_BUSY_POLL),
    general(libc::SO_ZEROCOPY),
    general(libc::SO_MAX_PACING_RATE),
    general(SO_TXREHASH),
    ip(libc::IP_TOS),
    ip(libc::IP_TTL),
    ip(libc::IP_MINTTL),
    ip(libc::IP_MTU_DISCOVER),
    ip(libc::IP_RECVERR),
    ip(libc::IP_RECVTOS),
    ip(libc::IP_BIND_ADDRESS_NO_PORT),
    ipv6(libc::IPV6_V6ONLY),
    ipv6(libc::IPV6_UNICAST_HOPS),
    ipv6(libc::IPV6_TCLASS),
    ipv6(libc::IPV6_MTU_DISCOVER),
    ipv6(libc::IPV6_RECVERR),
    ipv6(IPV6_ADDR_PREFERENCES),
    ipv6(IPV6_MINHOPCOUNT),
    ipv6(IPV6_AUTOFLOWLABEL),
    ipv6(IPV6_FLOWINFO_SEND),
];

const CARRIED_TCP: [SocketOption; 18] = [
    tcp(libc::TCP_NODELAY),
    tcp(libc::TCP_CORK),
    tcp(libc::TCP_KEEPIDLE),
    tcp(libc::TCP_KEEPINTVL),
    tcp(libc::TCP_KEEPCNT),
    tcp(libc::TCP_SYNCNT),
    tcp(libc::TCP_LINGER2),
    tcp(libc::TCP_WINDOW_CLAMP),
    tcp(libc::TCP_MAXSEG),
    tcp(libc::TCP_CONGESTION),
    tcp(libc::TCP_USER_TIMEOUT),
    tcp(libc::TCP_NOTSENT_LOWAT),
    tcp(libc::TCP_INQ),
    tcp(libc::TCP_THIN_LINEAR_TIMEOUTS),
    tcp(TCP_TX_DELAY),
    tcp(TCP_RTO_MAX_MS),
    tcp(TCP_RTO_MIN_US),
    tcp(TCP_DELACK_MAX_US),
];

const CARRIED_UDP: [SocketOption; 29] = [
    udp(libc::UDP_CORK),
    udp(libc::UDP_SEGMENT),
    udp(libc::UDP_GRO),
    udp(UDP_NO_CHECK6_TX),
    udp(UDP_NO_CHECK6_RX),
    general(libc::SO_BROADCAST),
    general(libc::SO_NO_CHECK),
    general(libc::SO_RXQ_OVFL),
    ip(libc::IP_PKTINFO),
    ip(libc::IP_RECVTTL),
    ip(libc::IP_RECVOPTS),
    ip(libc::IP_RETOPTS),
    ip(libc::IP_RECVORIGDSTADDR),
    ip(libc::IP_CHECKSUM),
    ip(IP_RECVFRAGSIZE),
    ip(IP_RECVERR_RFC4884),
    ip(libc::IP_MULTICAST_TTL),
    ip(libc::IP_MULTICAST_LOOP),
    ip(libc::IP_MULTICAST_ALL),
    ipv6(libc::IPV6_RECVPKTINFO),
    ipv6(libc::IPV6_RECVHOPLIMIT),
    ipv6(libc::IPV6_RECVTCLASS),
    ipv6(libc::IPV6_RECVPATHMTU),
    ipv6(libc::IPV6_RECVORIGDSTADDR),
    ipv6(libc::IPV6_RECVFRAGSIZE),
    ipv6(IPV6_RECVERR_RFC4884),
    ipv6(libc::IPV6_DONTFRAG),
    ipv6(libc::IPV6_MULTICAST_HOPS),
    ipv6(libc::IPV6_MULTICAST_LOOP),
];

/// What changes nothing about a connection that is made, only about those that are accepted.
pub const CARRIED_LISTENING: [SocketOption; 4] =
    [tcp(libc::TCP_DEFER_ACCEPT), tcp(libc::TCP_FASTOPEN), tcp(libc::TCP_SAVE_SYN), tcp(TCP_FASTOPEN_NO_COOKIE)];

/// After IP_TOS, which sets it too.
pub const CARRIED_LAST: SocketOption = general(libc::SO_PRIORITY);

/// These bend where or how packets go in the workspace's own network, or cannot be read back whole: a socket on which
/// one differs stays there.
pub const KEEPS_IN_PLACE: [SocketOption; 8] = [
    general(libc::SO_MARK),
    general(SO_BINDTOIFINDEX),
    // Only what is on the link is reached, and that is the workspace's link.
    general(libc::SO_DONTROUTE),
    ip(libc::IP_TRANSPARENT),
    ip(libc::IP_UNICAST_IF),
    ip(libc::IP_OPTIONS),
    ip(IP_LOCAL_PORT_RANGE),
    ipv6(IPV6_UNICAST_IF),
];

/// Not TCP_ULP: the filter refuses it.
const KEEPS_IN_PLACE_TCP: [SocketOption; 2] = [tcp(libc::TCP_FASTOPEN_CONNECT), tcp(libc::TCP_REPAIR)];

const KEEPS_IN_PLACE_UDP: [SocketOption; 4] =
    [udp(UDP_ENCAP), general(libc::SO_TXTIME), ip(libc::IP_MULTICAST_IF), ipv6(libc::IPV6_MULTICAST_IF)];

/// Asked for in a way of their own, for what they are set to cannot be read back.
pub const FILTERS: [SocketOption; 2] = [general(libc::SO_ATTACH_FILTER), general(libc::SO_ATTACH_BPF)];

/// The same, of IPv6: sticky extension headers.
/// Not IPV6_RTHDR, nor IPV6_2292PKTOPTIONS, which sets it, too: the filter refuses them.
pub const IPV6_HEADERS: [SocketOption; 3] =
    [ipv6(libc::IPV6_HOPOPTS), ipv6(libc::IPV6_DSTOPTS), ipv6(libc::IPV6_RTHDRDSTOPTS)];

/// What a kind of socket has beside the options of all: carried, and keeping it in place.
pub fn options_of(kind: Kind) -> (&'static [SocketOption], &'static [SocketOption]) {
    match kind {
        Kind::Tcp | Kind::Mptcp => (&CARRIED_TCP, &KEEPS_IN_PLACE_TCP),
        Kind::Udp => (&CARRIED_UDP, &KEEPS_IN_PLACE_UDP),
        Kind::OtherIp | Kind::NotIp => (&[], &[]),
    }
}

/// By what else a rare option changes: each of the first is to be read when one of the second was set.
const CHANGED_BY: [(&[SocketOption], &[SocketOption]); 4] = [
    (&[general(SO_BINDTOIFINDEX)], &[general(libc::SO_BINDTODEVICE)]),
    (&[ip(libc::IP_TRANSPARENT)], &[ipv6(libc::IPV6_TRANSPARENT)]),
    (&[tcp(libc::TCP_WINDOW_CLAMP)], &[general(libc::SO_RCVLOWAT)]),
    (&TIMESTAMPS, &TIMESTAMPS),
];

const TIMESTAMPS: [SocketOption; 6] = [
    general(libc::SO_TIMESTAMP),
    general(libc::SO_TIMESTAMPNS),
    general(libc::SO_TIMESTAMPING),
    general(SO_TIMESTAMP_NEW),
    general(SO_TIMESTAMPNS_NEW),
    general(SO_TIMESTAMPING_NEW),
];

impl SocketOption {
    pub fn named(self) -> OptionSet {
        OptionSet::of(OptionName { level: self.level, name: self.name })
    }

    /// What has to have been set for this one to differ.
    pub fn changed_by(self) -> OptionSet {
        let others = CHANGED_BY.into_iter().filter(|(options, _)| options.contains(&self));
        others.flat_map(|(_, by)| by).fold(self.named(), |set, by| set.with(by.named()))
    }
}
