//! Socket options that hardly a program sets. Setting one stops for a moment, for the supervisor to take note; what
//! nobody has set it need not read of any socket.
//!
//! Left out, and always to be read, is what common programs set on every connection: SO_REUSEADDR, SO_KEEPALIVE,
//! SO_LINGER, buffers, timeouts, SO_PRIORITY (which IP_TOS sets, too); IP_TOS, IP_RECVERR (the C library's resolver);
//! TCP_NODELAY, TCP_CORK, TCP_KEEP*, TCP_USER_TIMEOUT, TCP_NOTSENT_LOWAT; IPV6_TCLASS, IPV6_V6ONLY, IPV6_RECVERR.

use crate::syscalls::Argument;

/// linux/tcp.h, linux/in.h, linux/in6.h, asm-generic/socket.h; libc lacks them for this target.
pub const SO_BINDTOIFINDEX: i32 = 62;
pub const SO_TIMESTAMP_NEW: i32 = 63;
pub const SO_TIMESTAMPNS_NEW: i32 = 64;
pub const SO_TIMESTAMPING_NEW: i32 = 65;
pub const SO_TXREHASH: i32 = 74;
pub const IP_LOCAL_PORT_RANGE: i32 = 51;
pub const IPV6_2292PKTOPTIONS: i32 = 6;
pub const IPV6_FLOWINFO_SEND: i32 = 33;
pub const IPV6_AUTOFLOWLABEL: i32 = 70;
pub const IPV6_ADDR_PREFERENCES: i32 = 72;
pub const IPV6_MINHOPCOUNT: i32 = 73;
pub const IPV6_UNICAST_IF: i32 = 76;
pub const TCP_TX_DELAY: i32 = 37;
pub const TCP_RTO_MAX_MS: i32 = 44;
pub const TCP_RTO_MIN_US: i32 = 45;
pub const TCP_DELACK_MAX_US: i32 = 46;

/// An option as setsockopt(2) takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionName {
    pub level: i32,
    pub name: i32,
}

const fn general(name: i32) -> OptionName {
    OptionName { level: libc::SOL_SOCKET, name }
}

const fn ip(name: i32) -> OptionName {
    OptionName { level: libc::IPPROTO_IP, name }
}

const fn ipv6(name: i32) -> OptionName {
    OptionName { level: libc::IPPROTO_IPV6, name }
}

const fn tcp(name: i32) -> OptionName {
    OptionName { level: libc::IPPROTO_TCP, name }
}

/// Their order is the order of the bits in the supervisor's ledger.
pub const RARE: [OptionName; 54] = [
    general(libc::SO_DONTROUTE),
    general(libc::SO_OOBINLINE),
    general(libc::SO_REUSEPORT),
    general(libc::SO_RCVLOWAT),
    general(libc::SO_BINDTODEVICE),
    general(libc::SO_ATTACH_FILTER),
    general(libc::SO_TIMESTAMP),
    general(libc::SO_TIMESTAMPNS),
    general(libc::SO_MARK),
    general(libc::SO_TIMESTAMPING),
    general(libc::SO_PEEK_OFF),
    general(libc::SO_SELECT_ERR_QUEUE),
    general(libc::SO_BUSY_POLL),
    general(libc::SO_MAX_PACING_RATE),
    general(libc::SO_ATTACH_BPF),
    general(libc::SO_ZEROCOPY),
    general(SO_BINDTOIFINDEX),
    general(SO_TIMESTAMP_NEW),
    general(SO_TIMESTAMPNS_NEW),
    general(SO_TIMESTAMPING_NEW),
    general(SO_TXREHASH),
    ip(libc::IP_TTL),
    ip(libc::IP_OPTIONS),
    ip(libc::IP_MTU_DISCOVER),
    ip(libc::IP_RECVTOS),
    ip(libc::IP_TRANSPARENT),
    ip(libc::IP_MINTTL),
    ip(libc::IP_BIND_ADDRESS_NO_PORT),
    ip(libc::IP_UNICAST_IF),
    ip(IP_LOCAL_PORT_RANGE),
    ipv6(libc::IPV6_UNICAST_HOPS),
    ipv6(libc::IPV6_MTU_DISCOVER),
    ipv6(IPV6_FLOWINFO_SEND),
    ipv6(libc::IPV6_HOPOPTS),
    ipv6(libc::IPV6_RTHDRDSTOPTS),
    ipv6(libc::IPV6_DSTOPTS),
    ipv6(IPV6_AUTOFLOWLABEL),
    ipv6(IPV6_ADDR_PREFERENCES),
    ipv6(IPV6_MINHOPCOUNT),
    ipv6(libc::IPV6_TRANSPARENT),
    ipv6(IPV6_UNICAST_IF),
    tcp(libc::TCP_MAXSEG),
    tcp(libc::TCP_SYNCNT),
    tcp(libc::TCP_LINGER2),
    tcp(libc::TCP_WINDOW_CLAMP),
    tcp(libc::TCP_CONGESTION),
    tcp(libc::TCP_THIN_LINEAR_TIMEOUTS),
    tcp(libc::TCP_REPAIR),
    tcp(libc::TCP_FASTOPEN_CONNECT),
    tcp(libc::TCP_INQ),
    tcp(TCP_TX_DELAY),
    tcp(TCP_RTO_MAX_MS),
    tcp(TCP_RTO_MIN_US),
    tcp(TCP_DELACK_MAX_US),
];

/// From these names on a level has options that this program does not know (Linux 6.18), or that are not a socket's own
/// (iptables): they stop, too, for whatever they set.
pub const UNKNOWN: [OptionName; 4] = [general(85), ip(53), ipv6(81), tcp(47)];

impl OptionName {
    /// Both are ints to the kernel.
    pub(crate) const fn arguments(self) -> [Argument; 2] {
        [Argument::is_int(1, self.level), Argument::is_int(2, self.name)]
    }

    /// The place among the rare ones.
    pub fn rare(self) -> Option<usize> {
        RARE.iter().position(|&rare| rare == self)
    }

    /// Newer than what is known here.
    pub fn is_unknown(self) -> bool {
        let from = |unknown: &OptionName| self.name.cast_unsigned() >= unknown.name.cast_unsigned();
        UNKNOWN.iter().any(|unknown| self.level == unknown.level && from(unknown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_named_once_and_known() {
        for (at, &option) in RARE.iter().enumerate() {
            assert_eq!(option.rare(), Some(at), "{option:?}");
            assert!(!option.is_unknown(), "{option:?}");
        }
        assert!(general(-1).is_unknown() && tcp(1000).is_unknown());
        assert!(!OptionName { level: libc::IPPROTO_UDP, name: 1000 }.is_unknown());
    }
}
