//! What the kernel says about the socket a call names, asked on a copy of the descriptor.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use crate::sys::socket;

use super::sockaddr::{Meaning, RawAddress};

/// TCP_INFO begins with the state (linux/tcp.h).
const TCP_CLOSE: u8 = 7;
const TCP_SYN_SENT: u8 = 2;
const TCP_SYN_RECV: u8 = 3;
const TCP_LISTEN: u8 = 10;

/// TCP by another name: its addresses are those of AF_INET and AF_INET6 (linux/socket.h; libc lacks it).
const AF_SMC: i32 = 43;

/// Identity of a network namespace (SO_NETNS_COOKIE): never reused while the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetnsCookie(pub u64);

/// Identity of a socket (SO_COOKIE): never reused while the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketCookie(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    Udp,
    /// Its connections stay in place; what listens may become plain TCP, which its clients fall back to.
    Mptcp,
    /// Raw, ping, SCTP, SMC: an IP socket all the same, never answered with CONTINUE.
    OtherIp,
    /// AF_UNIX, netlink, packet and the rest: no IP address to reach.
    NotIp,
}

impl Kind {
    fn of(socket_type: i32, protocol: i32) -> Self {
        match (socket_type, protocol) {
            (libc::SOCK_STREAM, libc::IPPROTO_TCP) => Self::Tcp,
            (libc::SOCK_DGRAM, libc::IPPROTO_UDP) => Self::Udp,
            (libc::SOCK_STREAM, libc::IPPROTO_MPTCP) => Self::Mptcp,
            _ => Self::OtherIp,
        }
    }

    /// Type and protocol, as socket(2) takes them, where there may be a host socket in the place of such a one.
    pub fn exchangeable(self) -> Option<(i32, i32)> {
        match self {
            Self::Tcp => Some((libc::SOCK_STREAM, libc::IPPROTO_TCP)),
            Self::Udp => Some((libc::SOCK_DGRAM, libc::IPPROTO_UDP)),
            Self::Mptcp | Self::OtherIp | Self::NotIp => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpState {
    /// CLOSE: new, refused, or disconnected.
    Closed,
    /// SYN_SENT or SYN_RECV.
    Connecting,
    Listening,
    /// Anything later.
    InUse,
}

/// What a socket has by bind(2), or (UDP) by having sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    No,
    /// A port at every address.
    Anywhere(u16),
    /// An address, with or without a port.
    Address,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketFacts {
    pub kind: Kind,
    pub ipv6: bool,
    pub raw: bool,
    pub netns: NetnsCookie,
    pub cookie: SocketCookie,
    /// Of a TCP socket, and whether one of MPTCP listens; Closed for others.
    pub state: TcpState,
    /// Of a socket of TCP, MPTCP or UDP; No for others.
    pub bound: Bound,
    pub nonblocking: bool,
    /// Signal-driven I/O (O_ASYNC, F_SETOWN) is set up on the open file.
    pub signals: bool,
    /// Who made it, as uid seen here: routing rules may look at it.
    pub uid: u32,
}

impl SocketFacts {
    /// ENOTSOCK for another kind of file.
    pub fn of(copy: BorrowedFd<'_>) -> io::Result<Self> {
        let domain = socket::int_option(copy, libc::SOL_SOCKET, libc::SO_DOMAIN)?;
        let cookie = SocketCookie(socket::u64_option(copy, libc::SOL_SOCKET, libc::SO_COOKIE)?);
        if ![libc::AF_INET, libc::AF_INET6, AF_SMC].contains(&domain) {
            return Ok(Self::not_ip(cookie));
        }
        let socket_type = socket::int_option(copy, libc::SOL_SOCKET, libc::SO_TYPE)?;
        let protocol = socket::int_option(copy, libc::SOL_SOCKET, libc::SO_PROTOCOL)?;
        let netns = NetnsCookie(socket::u64_option(copy, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE)?);
        let kind = Kind::of(socket_type, protocol);
        let flags = rustix::fs::fcntl_getfl(copy)?.bits().cast_signed();
        Ok(Self {
            kind,
            ipv6: domain == libc::AF_INET6,
            raw: socket_type == libc::SOCK_RAW,
            netns,
            cookie,
            state: match kind {
                Kind::Tcp => tcp_state(copy)?,
                Kind::Mptcp if socket::int_option(copy, libc::SOL_SOCKET, libc::SO_ACCEPTCONN)? != 0 => {
                    TcpState::Listening
                }
                _ => TcpState::Closed,
            },
            bound: if matches!(kind, Kind::Tcp | Kind::Mptcp | Kind::Udp) { bound(copy)? } else { Bound::No },
            nonblocking: flags & libc::O_NONBLOCK != 0,
            signals: flags & libc::O_ASYNC != 0 || socket::has_signal_owner(copy),
            uid: rustix::fs::fstat(copy)?.st_uid,
        })
    }

    fn not_ip(cookie: SocketCookie) -> Self {
        Self {
            kind: Kind::NotIp,
            ipv6: false,
            raw: false,
            netns: NetnsCookie(0),
            cookie,
            state: TcpState::Closed,
            bound: Bound::No,
            nonblocking: false,
            signals: false,
            uid: 0,
        }
    }
}

/// Of a TCP socket. Takes the socket's lock, like getsockname: only for threads that may be lost.
pub fn tcp_state(tcp: BorrowedFd<'_>) -> io::Result<TcpState> {
    let mut state = [0; 1];
    socket::option(tcp, libc::IPPROTO_TCP, libc::TCP_INFO, &mut state)?;
    Ok(match state {
        [TCP_CLOSE] => TcpState::Closed,
        [TCP_SYN_SENT | TCP_SYN_RECV] => TcpState::Connecting,
        [TCP_LISTEN] => TcpState::Listening,
        _ => TcpState::InUse,
    })
}

fn bound(socket: BorrowedFd<'_>) -> io::Result<Bound> {
    let mut address = [0; 128];
    let length = socket::name(socket, &mut address)?;
    // Family aside, an unbound socket's name is zeros: port, flow label, address, scope.
    if address.iter().skip(2).all(|&byte| byte == 0) {
        return Ok(Bound::No);
    }
    let name = address.get(..length).map(RawAddress::new);
    Ok(match name.map(|name| name.meaning()) {
        Some(Meaning::Ip(name)) if is_port_only(name) => Bound::Anywhere(name.port()),
        _ => Bound::Address,
    })
}

fn is_port_only(name: SocketAddr) -> bool {
    name.ip().is_unspecified() && name.port() != 0
}

/// The namespace this process's sockets belong to.
pub fn own_netns() -> io::Result<NetnsCookie> {
    let probe = socket::new(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    netns_of(probe.as_fd())
}

pub fn netns_of(socket: BorrowedFd<'_>) -> io::Result<NetnsCookie> {
    Ok(NetnsCookie(socket::u64_option(socket, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    fn facts_follow_the_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let fresh = socket::new(libc::AF_INET6, libc::SOCK_STREAM, 0).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (unix, _peer) = std::os::unix::net::UnixStream::pair().unwrap();

        let of = |fd: BorrowedFd<'_>| SocketFacts::of(fd).unwrap();
        assert_eq!(of(listener.as_fd()).state, TcpState::Listening);
        assert_eq!(of(listener.as_fd()).bound, Bound::Address);
        for (address, ipv6) in [("0.0.0.0:0", false), ("[::]:0", true)] {
            let anywhere = TcpListener::bind(address).unwrap();
            let facts = of(anywhere.as_fd());
            assert_eq!((facts.bound, facts.ipv6), (Bound::Anywhere(anywhere.local_addr().unwrap().port()), ipv6));
        }
        assert_eq!(of(stream.as_fd()).state, TcpState::InUse);
        assert!(of(stream.as_fd()).bound == Bound::Address && !of(stream.as_fd()).nonblocking);
        let facts = of(fresh.as_fd());
        assert_eq!((facts.kind, facts.state, facts.bound, facts.ipv6), (Kind::Tcp, TcpState::Closed, Bound::No, true));
        assert!(facts.nonblocking && !facts.signals);
        assert_eq!(facts.netns, own_netns().unwrap());
        assert_eq!((of(udp.as_fd()).kind, of(udp.as_fd()).bound), (Kind::Udp, Bound::Address));
        assert_eq!(of(unix.as_fd()).kind, Kind::NotIp);
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(SocketFacts::of(file.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
    }
}
