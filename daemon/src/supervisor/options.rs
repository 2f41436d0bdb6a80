//! What a process has set on a socket, carried to the socket that replaces it.
//!
//! Options are compared with a pristine socket of the same namespace and only differences are set: most values read
//! back differently from what set them (SO_SNDBUF doubles, TCP_MAXSEG has a default that must not be set), and a socket
//! nobody touched costs no setsockopt at all. An option that cannot be carried keeps the socket in place.
//!
//! Rare options are read only once somebody in the workspace has set one of them ([`super::touched`]): reading all of them
//! was a quarter of what a connect costs.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use sidestep_seccomp_profile::rare_options::{
    IP_LOCAL_PORT_RANGE, IPV6_ADDR_PREFERENCES, IPV6_AUTOFLOWLABEL, IPV6_FLOWINFO_SEND, IPV6_MINHOPCOUNT,
    IPV6_UNICAST_IF, OptionName, SO_BINDTOIFINDEX, SO_TIMESTAMP_NEW, SO_TIMESTAMPING_NEW, SO_TIMESTAMPNS_NEW,
    SO_TXREHASH, TCP_DELACK_MAX_US, TCP_RTO_MAX_MS, TCP_RTO_MIN_US, TCP_TX_DELAY,
};

use crate::sys::socket;

use super::decide::Reason;
use super::facts::Kind;
use super::touched::OptionSet;

/// The largest option below: struct timeval, 16 bytes; a congestion control's name has as many.
const VALUE: usize = 16;

/// linux/in.h, linux/in6.h, linux/udp.h, linux/tcp.h, asm-generic/socket.h; libc lacks them for this target.
const TCP_FASTOPEN_NO_COOKIE: i32 = 34;
const IPV6_RECVERR_RFC4884: i32 = 31;
const IP_RECVFRAGSIZE: i32 = 25;
const IP_RECVERR_RFC4884: i32 = 26;
const UDP_ENCAP: i32 = 100;
const UDP_NO_CHECK6_TX: i32 = 101;
const UDP_NO_CHECK6_RX: i32 = 102;
const SO_BUF_LOCK: i32 = 72;
const SOCK_SNDBUF_LOCK: i32 = 1;
const SOCK_RCVBUF_LOCK: i32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SocketOption {
    level: i32,
    name: i32,
    ipv6_only: bool,
}

const fn general(name: i32) -> SocketOption {
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

const fn ipv6(name: i32) -> SocketOption {
    SocketOption { level: libc::IPPROTO_IPV6, name, ipv6_only: true }
}

/// Set on the new socket where they differ.
/// Left out is what changes nothing about a connected socket: each costs every connect.
const CARRIED: [SocketOption; 36] = [
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
const CARRIED_LISTENING: [SocketOption; 4] =
    [tcp(libc::TCP_DEFER_ACCEPT), tcp(libc::TCP_FASTOPEN), tcp(libc::TCP_SAVE_SYN), tcp(TCP_FASTOPEN_NO_COOKIE)];

/// After IP_TOS, which sets it too.
const CARRIED_LAST: SocketOption = general(libc::SO_PRIORITY);

/// These bend where or how packets go in the workspace's own network, or cannot be read back whole: a socket on which
/// one differs stays there.
const KEEPS_IN_PLACE: [SocketOption; 8] = [
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

/// What a kind of socket has beside the options of all: carried, and keeping it in place.
fn options_of(kind: Kind) -> (&'static [SocketOption], &'static [SocketOption]) {
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
    fn named(self) -> OptionSet {
        OptionSet::of(OptionName { level: self.level, name: self.name })
    }

    /// What has to have been set for this one to differ.
    fn changed_by(self) -> OptionSet {
        let others = CHANGED_BY.into_iter().filter(|(options, _)| options.contains(&self));
        others.flat_map(|(_, by)| by).fold(self.named(), |set, by| set.with(by.named()))
    }
}

/// An option's value as the kernel writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Value {
    bytes: [u8; VALUE],
    length: usize,
}

impl Value {
    /// None: this kernel or this socket does not have the option.
    fn read(from: BorrowedFd<'_>, option: SocketOption) -> Option<Self> {
        let mut bytes = [0; VALUE];
        let length = socket::option(from, option.level, option.name, &mut bytes).ok()?;
        Some(Self { bytes, length: length.min(VALUE) })
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&self.bytes)
    }
}

/// What an untouched socket of one namespace, kind and family reads.
pub struct Pristine {
    ipv6: bool,
    carried: Vec<PristineValue>,
    listening: Vec<PristineValue>,
    keeps_in_place: Vec<PristineValue>,
}

struct PristineValue {
    option: SocketOption,
    value: Value,
    changed_by: OptionSet,
}

impl PristineValue {
    fn differs(&self, socket: BorrowedFd<'_>) -> Option<(SocketOption, Value)> {
        Value::read(socket, self.option).filter(|value| *value != self.value).map(|value| (self.option, value))
    }
}

/// What a process changed on its socket.
#[derive(Debug, Default)]
pub struct Difference {
    values: Vec<(SocketOption, Value)>,
}

/// Options that a socket did not take (a congestion control the host lacks, a priority the host's kernel refuses us).
pub static NOT_CARRIED: AtomicU64 = AtomicU64::new(0);

impl Pristine {
    /// `untouched` is a socket of that kind just made.
    pub fn read(untouched: BorrowedFd<'_>, kind: Kind, ipv6: bool) -> Self {
        let read = |options: &[&[SocketOption]]| {
            let options = options.iter().copied().flatten().filter(|option| ipv6 || !option.ipv6_only);
            let read = |&option: &SocketOption| {
                let value = Value::read(untouched, option)?;
                Some(PristineValue { option, value, changed_by: option.changed_by() })
            };
            options.filter_map(read).collect()
        };
        let (carried, keeps_in_place) = options_of(kind);
        Self {
            ipv6,
            carried: read(&[&CARRIED, carried, &[CARRIED_LAST]]),
            listening: if kind == Kind::Udp { Vec::new() } else { read(&[&CARRIED_LISTENING]) },
            keeps_in_place: read(&[&KEEPS_IN_PLACE, keeps_in_place]),
        }
    }

    /// For host sockets that are bound to an interface when they are made.
    pub fn whatever_interface(mut self) -> Self {
        self.keeps_in_place.retain(|pristine| pristine.option != general(SO_BINDTOIFINDEX));
        self
    }

    /// What differs on `socket`, or why it must stay in its namespace. On it nothing else was set than what is `touched`.
    pub fn difference(&self, socket: BorrowedFd<'_>, touched: OptionSet) -> Result<Difference, Reason> {
        let differs = |pristine: &PristineValue| {
            if pristine.changed_by.meets(touched) { pristine.differs(socket) } else { None }
        };
        if self.keeps_in_place.iter().any(|entry| differs(entry).is_some()) {
            return Err(Reason::SocketOption);
        }
        let any = |options: &[SocketOption]| options.iter().any(|option| option.named().meets(touched));
        if any(&FILTERS) && has_filter(socket) {
            return Err(Reason::SocketFilter);
        }
        if self.ipv6 && any(&IPV6_HEADERS) && has_ipv6_headers(socket) {
            return Err(Reason::ExtensionHeaders);
        }
        let mut values: Vec<_> = self.carried.iter().filter_map(differs).collect();
        if values.iter().any(|(option, value)| takes_privilege(*option, value)) {
            return Err(Reason::Priority);
        }
        values.extend(locked_buffers(socket));
        Ok(Difference { values })
    }

    /// The same for a socket that is to listen.
    pub fn difference_listening(&self, socket: BorrowedFd<'_>, touched: OptionSet) -> Result<Difference, Reason> {
        let mut difference = self.difference(socket, touched)?;
        if difference.values.iter().any(|(option, _)| *option == general(libc::SO_REUSEPORT)) {
            return Err(Reason::SharedPort);
        }
        difference.values.extend(self.listening.iter().filter_map(|pristine| pristine.differs(socket)));
        Ok(difference)
    }
}

impl Difference {
    /// Whether `to` took everything; what it can take it has in any case.
    pub fn apply(&self, to: BorrowedFd<'_>) -> bool {
        let mut whole = true;
        for (option, value) in &self.values {
            if let Err(error) = socket::set_option(to, option.level, option.name, value.bytes()) {
                NOT_CARRIED.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(?option, %error, "a socket option is not carried over");
                whole = false;
            }
        }
        whole
    }
}

const FILTERS: [SocketOption; 2] = [general(libc::SO_ATTACH_FILTER), general(libc::SO_ATTACH_BPF)];

/// A socket filter; asking with no room returns the number of instructions, or an error about an
/// eBPF program, which has none to show.
fn has_filter(socket: BorrowedFd<'_>) -> bool {
    socket::option(socket, libc::SOL_SOCKET, libc::SO_GET_FILTER, &mut []).map_or(true, |length| length != 0)
}

/// A priority that takes CAP_NET_ADMIN: the workspace's root has that over its own network only, where a supervisor of the
/// host's root would set it on the host's, too.
fn takes_privilege(option: SocketOption, value: &Value) -> bool {
    const UNPRIVILEGED: std::ops::RangeInclusive<i32> = 0..=6;
    let number = value.bytes().first_chunk().map_or(-1, |bytes| i32::from_ne_bytes(*bytes));
    option == general(libc::SO_PRIORITY) && !UNPRIVILEGED.contains(&number)
}

/// Not IPV6_RTHDR, nor IPV6_2292PKTOPTIONS, which sets it, too: the filter refuses them.
const IPV6_HEADERS: [SocketOption; 3] =
    [ipv6(libc::IPV6_HOPOPTS), ipv6(libc::IPV6_DSTOPTS), ipv6(libc::IPV6_RTHDRDSTOPTS)];

/// Sticky extension headers (RFC 3542).
fn has_ipv6_headers(socket: BorrowedFd<'_>) -> bool {
    IPV6_HEADERS.into_iter().any(|option| {
        let mut value = [0; VALUE];
        // A header longer than the room is an error, and is there too.
        socket::option(socket, option.level, option.name, &mut value).map_or_else(is_too_small, |length| length != 0)
    })
}

fn is_too_small(error: io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
}

/// Buffer sizes the process fixed. They read doubled, and setting one that was not fixed would end autotuning.
fn locked_buffers(from: BorrowedFd<'_>) -> Vec<(SocketOption, Value)> {
    let locks = socket::int_option(from, libc::SOL_SOCKET, SO_BUF_LOCK).unwrap_or(0);
    let fixed = [(SOCK_SNDBUF_LOCK, libc::SO_SNDBUF), (SOCK_RCVBUF_LOCK, libc::SO_RCVBUF)];
    let fixed = fixed.into_iter().filter(|(bit, _)| locks & bit != 0);
    fixed
        .filter_map(|(_, name)| {
            let size = socket::int_option(from, libc::SOL_SOCKET, name).ok()? / 2;
            let mut bytes = [0; VALUE];
            bytes.first_chunk_mut().map(|start: &mut [u8; 4]| *start = size.to_ne_bytes())?;
            Some((general(name), Value { bytes, length: 4 }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::touched::Touched;
    use super::*;
    use std::os::fd::{AsFd, OwnedFd};

    fn new(kind: Kind, ipv6: bool) -> OwnedFd {
        let (socket_type, protocol) = kind.exchangeable().unwrap();
        socket::new(if ipv6 { libc::AF_INET6 } else { libc::AF_INET }, socket_type, protocol).unwrap()
    }

    fn fresh(ipv6: bool) -> OwnedFd {
        new(Kind::Tcp, ipv6)
    }

    fn pristine(ipv6: bool) -> Pristine {
        Pristine::read(fresh(ipv6).as_fd(), Kind::Tcp, ipv6)
    }

    fn set(on: &OwnedFd, level: i32, name: i32, value: i32) {
        socket::set_option(on.as_fd(), level, name, &value.to_ne_bytes()).unwrap();
    }

    #[test]
    fn an_untouched_socket_differs_in_nothing() {
        for (kind, ipv6) in [(Kind::Tcp, false), (Kind::Tcp, true), (Kind::Udp, false), (Kind::Udp, true)] {
            let pristine = Pristine::read(new(kind, ipv6).as_fd(), kind, ipv6);
            assert!(pristine.carried.len() >= 30, "this kernel has most options: {}", pristine.carried.len());
            assert_eq!(pristine.difference(new(kind, ipv6).as_fd(), OptionSet::ALL).unwrap().values, []);
        }
    }

    #[test]
    fn what_was_set_reads_the_same_on_the_new_socket() {
        let settings = [
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
            (libc::SOL_SOCKET, libc::SO_SNDBUF, 50_000),
            (libc::SOL_SOCKET, libc::SO_RCVBUF, 60_000),
            (libc::SOL_SOCKET, libc::SO_PRIORITY, 3),
            (libc::IPPROTO_TCP, libc::TCP_NODELAY, 1),
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 77),
            (libc::IPPROTO_TCP, libc::TCP_MAXSEG, 1000),
            (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 5000),
            (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, 16384),
            (libc::IPPROTO_IP, libc::IP_TOS, 0x10),
            (libc::IPPROTO_IP, libc::IP_TTL, 7),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, 0x20),
        ];
        let (old, new) = (fresh(true), fresh(true));
        let pristine = pristine(true);
        for (level, name, value) in settings {
            set(&old, level, name, value);
        }
        let difference = pristine.difference(old.as_fd(), OptionSet::ALL).unwrap();
        assert_eq!(difference.values.len(), settings.len());
        difference.apply(new.as_fd());
        for (level, name, _) in settings {
            let read = |of: &OwnedFd| socket::int_option(of.as_fd(), level, name).unwrap();
            assert_eq!(read(&old), read(&new), "level {level} option {name}");
        }
    }

    #[test]
    fn a_datagram_socket_keeps_what_was_set() {
        let settings = [
            (libc::IPPROTO_UDP, libc::UDP_SEGMENT, 1200),
            (libc::IPPROTO_UDP, libc::UDP_GRO, 1),
            (libc::SOL_SOCKET, libc::SO_BROADCAST, 1),
            (libc::IPPROTO_IP, libc::IP_PKTINFO, 1),
            (libc::IPPROTO_IP, libc::IP_RECVTTL, 1),
            (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1),
            (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1),
            (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, 5),
        ];
        let (old, to) = (new(Kind::Udp, true), new(Kind::Udp, true));
        for (level, name, value) in settings {
            set(&old, level, name, value);
        }
        let pristine = Pristine::read(new(Kind::Udp, true).as_fd(), Kind::Udp, true);
        let difference = pristine.difference(old.as_fd(), OptionSet::ALL).unwrap();
        assert_eq!(difference.values.len(), settings.len());
        difference.apply(to.as_fd());
        for (level, name, value) in settings {
            assert_eq!(socket::int_option(to.as_fd(), level, name).unwrap(), value, "level {level} option {name}");
        }
        set(&old, libc::IPPROTO_UDP, UDP_ENCAP, 2);
        assert_eq!(pristine.difference(old.as_fd(), OptionSet::ALL).err(), Some(Reason::SocketOption));
    }

    #[test]
    fn the_receive_buffer_keeps_tuning_itself_unless_it_was_fixed() {
        let old = fresh(false);
        set(&old, libc::SOL_SOCKET, libc::SO_SNDBUF, 50_000);
        let new = fresh(false);
        pristine(false).difference(old.as_fd(), OptionSet::ALL).unwrap().apply(new.as_fd());
        assert_eq!(socket::int_option(new.as_fd(), libc::SOL_SOCKET, SO_BUF_LOCK).unwrap(), SOCK_SNDBUF_LOCK);
    }

    /// Whatever is set without stopping shows in what is read always; and what stops, in what is read then.
    #[test]
    fn nothing_is_missed_of_what_anybody_sets() {
        const LEVELS: [i32; 4] = [libc::SOL_SOCKET, libc::IPPROTO_IP, libc::IPPROTO_IPV6, libc::IPPROTO_TCP];
        let numbers = [0_i32, 1, 2, 5, 1000, 1_i32.to_be()].map(|number| number.to_ne_bytes().to_vec());
        let others = [b"lo\0\0".to_vec(), b"reno".to_vec(), b"cubic".to_vec(), [1, 0, 0, 0, 0, 0, 0, 0].to_vec()];
        let timeout = [[3, 0, 0, 0, 0, 0, 0, 0].as_slice(), &[0; 8]].concat();
        let values: Vec<_> = numbers.into_iter().chain(others).chain([timeout]).collect();
        let mut taken = 0;
        for (kind, ipv6) in [(Kind::Tcp, false), (Kind::Tcp, true), (Kind::Udp, false), (Kind::Udp, true)] {
            let pristine = Pristine::read(new(kind, ipv6).as_fd(), kind, ipv6);
            let options = LEVELS.into_iter().flat_map(|level| (0..128).map(move |name| OptionName { level, name }));
            for option in
                options.filter(|&option| option != OptionName { level: libc::IPPROTO_TCP, name: libc::TCP_ULP })
            {
                for value in &values {
                    let socket = new(kind, ipv6);
                    if socket::set_option(socket.as_fd(), option.level, option.name, value).is_err() {
                        continue;
                    }
                    taken += 1;
                    let word: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(0)));
                    let touched = Touched::new(word);
                    if option.rare().is_some() || option.is_unknown() {
                        touched.note(option);
                    }
                    let [some, all] = [touched.to_be_read(), OptionSet::ALL]
                        .map(|set| pristine.difference(socket.as_fd(), set).map(|difference| difference.values));
                    assert_eq!(some, all, "{kind:?} {option:?} {value:?}");
                }
            }
        }
        assert!(taken > 500, "{taken}");
    }

    #[test]
    fn options_that_keep_a_socket_in_place() {
        let pristine = pristine(false);
        for (level, name, value) in
            [(libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1), (libc::IPPROTO_IP, libc::IP_UNICAST_IF, 1_i32.to_be())]
        {
            let socket = fresh(false);
            set(&socket, level, name, value);
            let difference = pristine.difference(socket.as_fd(), OptionSet::ALL);
            assert_eq!(difference.err(), Some(Reason::SocketOption), "level {level} option {name}");
        }
        let socket = fresh(false);
        // IP_OPTIONS: two "no operation" and an end of list, padded.
        socket::set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_OPTIONS, &[1, 1, 0, 0]).unwrap();
        assert_eq!(pristine.difference(socket.as_fd(), OptionSet::ALL).err(), Some(Reason::SocketOption));
    }
}
