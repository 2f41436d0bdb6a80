//! Host sockets: what an untouched one reads, here and inside; making one, connecting it, and how far its connect has come.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys::socket;

use super::facts::{Kind, SocketFacts};
use super::options::Pristine;
use super::sockaddr::{RawAddress, for_domain};

/// How far a connect got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Connected,
    Underway,
    Failed(i32),
}

/// Untouched sockets of one namespace, the workspace's or the host's.
pub struct Untouched {
    tcp: PristinePair,
    /// None: UDP is not taken out.
    udp: Option<PristinePair>,
    /// None: the namespace has no MPTCP, or none of its sockets are taken out.
    mptcp: Option<PristinePair>,
}

/// Untouched sockets of both families.
struct PristinePair {
    v4: Pristine,
    /// None: the namespace has no IPv6.
    v6: Option<Pristine>,
}

impl Untouched {
    /// `make` gives a new socket of the domain, type and protocol asked for.
    pub fn read(udp: bool, make: impl Fn(i32, i32, i32) -> io::Result<OwnedFd>) -> io::Result<Self> {
        let pair = |kind: Kind, (socket_type, protocol)| {
            let v4 = Pristine::read(make(libc::AF_INET, socket_type, protocol)?.as_fd(), kind, false);
            let v6 = make(libc::AF_INET6, socket_type, protocol).ok();
            Ok::<_, io::Error>(PristinePair { v4, v6: v6.map(|fresh| Pristine::read(fresh.as_fd(), kind, true)) })
        };
        Ok(Self {
            tcp: pair(Kind::Tcp, (libc::SOCK_STREAM, libc::IPPROTO_TCP))?,
            udp: udp.then(|| pair(Kind::Udp, (libc::SOCK_DGRAM, libc::IPPROTO_UDP))).transpose()?,
            mptcp: pair(Kind::Mptcp, (libc::SOCK_STREAM, libc::IPPROTO_MPTCP)).ok(),
        })
    }

    /// Those of this process's namespace.
    pub fn on_host(udp: bool) -> io::Result<Self> {
        let Self { tcp, udp, .. } = Self::read(udp, socket::new)?;
        let udp = udp.map(|PristinePair { v4, v6 }| PristinePair {
            v4: v4.whatever_interface(),
            v6: v6.map(Pristine::whatever_interface),
        });
        Ok(Self { tcp, udp, mptcp: None })
    }

    pub fn of(&self, facts: &SocketFacts) -> Option<&Pristine> {
        let pair = match facts.kind {
            Kind::Tcp => &self.tcp,
            Kind::Udp => self.udp.as_ref()?,
            Kind::Mptcp => self.mptcp.as_ref()?,
            Kind::OtherIp | Kind::NotIp => return None,
        };
        if facts.ipv6 { pair.v6.as_ref() } else { Some(&pair.v4) }
    }
}

/// A new socket of this process's namespace, like `facts` (of plain TCP for MPTCP), nonblocking. None: this host has no such family.
pub fn like(facts: &SocketFacts) -> io::Result<Option<OwnedFd>> {
    let (socket_type, protocol) = match facts.kind {
        Kind::Mptcp => (libc::SOCK_STREAM, libc::IPPROTO_TCP),
        kind => match kind.exchangeable() {
            Some(exchangeable) => exchangeable,
            None => return Ok(None),
        },
    };
    match socket::new(domain(facts), socket_type, protocol) {
        Ok(host) => Ok(Some(host)),
        Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(None),
        Err(e) => Err(e),
    }
}

pub fn domain(facts: &SocketFacts) -> i32 {
    if facts.ipv6 { libc::AF_INET6 } else { libc::AF_INET }
}

/// Starts the connect. The kernel answers the SYN while the socket is ours, so even one that completes at once is
/// `Underway` here: [`progress`] tells.
pub fn start_connect(host: BorrowedFd<'_>, to: SocketAddr, facts: &SocketFacts) -> Progress {
    let address = RawAddress::from(for_domain(to, facts.ipv6));
    outcome(socket::connect(host, address.bytes()))
}

/// How far a connect is, its result taken like the second connect(2) of a program. Waits only where a blocking file's
/// connect is still under way. EISCONN: somebody took it already.
pub fn progress(host: BorrowedFd<'_>) -> Progress {
    outcome(probe(host))
}

/// connect(2) with an address too short to go anywhere. A connect that ended gives its result once, as POSIX has it
/// (0 or the error); an unconnected socket gives EINVAL and is untouched; a connected one EISCONN; one under way
/// EALREADY (the file must be nonblocking for that).
pub fn probe(host: BorrowedFd<'_>) -> io::Result<()> {
    /// AF_INET and half of a port: long enough for a family, too short for an address (net/ipv4/af_inet.c).
    const SHORT: [u8; 4] = [2, 0, 0, 0];
    socket::connect(host, &SHORT)
}

fn outcome(result: io::Result<()>) -> Progress {
    match result {
        Ok(()) => Progress::Connected,
        Err(e) => match e.raw_os_error() {
            Some(libc::EINPROGRESS | libc::EALREADY) => Progress::Underway,
            Some(libc::EISCONN) => Progress::Connected,
            Some(errno) => Progress::Failed(errno),
            None => Progress::Failed(libc::EIO),
        },
    }
}

/// Gives the new socket the blocking mode of the old: F_GETFL on a copy is right, it belongs to the open file.
pub fn set_blocking_like(new: BorrowedFd<'_>, facts: &SocketFacts) -> io::Result<()> {
    if facts.nonblocking { Ok(()) } else { Ok(rustix::io::ioctl_fionbio(new, false)?) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};
    use std::net::TcpListener;

    fn facts_of(socket: &OwnedFd) -> SocketFacts {
        SocketFacts::of(socket.as_fd()).unwrap()
    }

    fn fresh() -> OwnedFd {
        socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap()
    }

    fn wait(socket: &OwnedFd) {
        poll(&mut [PollFd::new(socket, PollFlags::OUT)], None).unwrap();
    }

    #[test]
    fn the_probe_never_moves_a_socket() {
        let errno = |socket: &OwnedFd| probe(socket.as_fd()).err().and_then(|e| e.raw_os_error());
        let unconnected = fresh();
        assert_eq!(errno(&unconnected), Some(libc::EINVAL));
        assert_eq!(errno(&unconnected), Some(libc::EINVAL));

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connected = fresh();
        start_connect(connected.as_fd(), listener.local_addr().unwrap(), &facts_of(&connected));
        wait(&connected);
        assert_eq!(errno(&connected), None, "the connect's own result, once");
        assert_eq!(errno(&connected), Some(libc::EISCONN));

        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let refused = fresh();
        start_connect(refused.as_fd(), SocketAddr::from(([127, 0, 0, 1], port)), &facts_of(&refused));
        wait(&refused);
        assert_eq!(errno(&refused), Some(libc::ECONNREFUSED));
        assert_eq!(errno(&refused), Some(libc::EINVAL), "unconnected again");
    }

    #[test]
    fn progress_is_seen_without_waiting() {
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let socket = socket::new(libc::AF_INET6, libc::SOCK_STREAM, 0).unwrap();
        let started = start_connect(socket.as_fd(), listener.local_addr().unwrap(), &facts_of(&socket));
        assert!(matches!(started, Progress::Underway | Progress::Connected));
        wait(&socket);
        assert_eq!(progress(socket.as_fd()), Progress::Connected);
    }
}
