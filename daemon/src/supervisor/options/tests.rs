//! Against the running kernel: what is set on one socket is read on the next.

use std::os::fd::{AsFd, OwnedFd};

use sidestep_seccomp_profile::rare_options::OptionName;

use super::known::UDP_ENCAP;
use super::*;
use crate::supervisor::touched::Touched;

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
        for option in options.filter(|&option| option != OptionName { level: libc::IPPROTO_TCP, name: libc::TCP_ULP }) {
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
