//! Two listening sockets at one port of the host: ours, which leads into the workspace, and under `--bypass` one in the
//! descriptor of a program inside, which gets the clients itself for as long as it is there.
//!
//! They are one SO_REUSEPORT group, and a classic BPF program of the group names the second of its sockets for every new
//! connection; where there is none, the kernel falls back to what is left, which is ours. So a program that closes its
//! socket has given the port back at that moment, and one that opens it takes nothing away: handshakes under way and the
//! queue stay with the socket they began at.
//!
//! Ours gets SO_REUSEPORT after bind(2): a second workspace, like any program that does not ask for a share, finds the
//! port taken. A program of the same user that does ask for one is let in by the kernel.
//!
//! Sockets are of one group only where family and address are the same, and the program's has its own family, for what
//! accept(2) and getpeername(2) show. An AF_INET socket needs no group: it scores higher with the kernel than one of
//! AF_INET6 for both. Hence:
//!
//! | published at | ours           | AF_INET | AF_INET6, both    | AF_INET6, IPV6_V6ONLY               |
//! |--------------|----------------|---------|-------------------|-------------------------------------|
//! | everywhere   | `::`, both     | 0.0.0.0 | `::`, both        | `::`, both, IPv4 clients kept ours  |
//! | IPv4 address | `::ffff:A`     | A       | `::ffff:A`        | not                                 |
//! | IPv6 address | A, IPV6_V6ONLY | not     | A, IPV6_V6ONLY    | A, IPV6_V6ONLY                      |

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{bind, sockopt};
use sidestep_forwarder::ports::{EVERYWHERE_V4, Publication};

use crate::sys::socket::{self, Instruction};

/// linux/bpf_common.h, linux/filter.h: "return", "load a word", "jump if equal", and where the packet's protocol is.
const RETURN: u16 = 0x06;
const LOAD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const PROTOCOL: u32 = (-0x1000_i32).cast_unsigned();
const ETH_P_IP: u32 = 0x0800;

const TO_PROGRAM: [Instruction; 1] = [(RETURN, 0, 0, 1)];
const IPV6_TO_PROGRAM: [Instruction; 4] =
    [(LOAD, 0, 0, PROTOCOL), (JUMP_IF_EQUAL, 0, 1, ETH_P_IP), (RETURN, 0, 0, 0), (RETURN, 0, 0, 1)];

/// Which clients a program's socket wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
    Both,
}

/// Where our socket of a TCP port is bound, so that a program's of either family can share it.
pub fn address(publication: &Publication) -> SocketAddr {
    let address = publication.host_addr();
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// Makes our socket, bound and not listening yet, the first of a group.
pub fn found(ours: &OwnedFd) -> Result<(), Errno> {
    sockopt::set_socket_reuseport(ours, true)?;
    choose(ours.as_fd(), &TO_PROGRAM)
}

/// How a program's socket comes to share a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    bind_to: SocketAddr,
    /// IPV6_V6ONLY; of a socket of the other family nothing.
    v6only: bool,
    keeps_v4: bool,
}

impl Place {
    /// None: the port is not for a socket that wants these clients.
    pub fn of(publication: &Publication, family: Family) -> Option<Self> {
        let at = |ip: IpAddr| SocketAddr::new(ip, publication.host_port);
        let (ip, v6only) = match (publication.host, family) {
            (None, Family::V4) => (Ipv4Addr::UNSPECIFIED.into(), false),
            (None, Family::V6 | Family::Both) => (publication.host_addr().ip(), false),
            (Some(IpAddr::V4(v4)), Family::V4) => (v4.into(), false),
            (Some(IpAddr::V4(v4)), Family::Both) => (v4.to_ipv6_mapped().into(), false),
            (Some(IpAddr::V4(_)), Family::V6) | (Some(IpAddr::V6(_)), Family::V4) => return None,
            (Some(IpAddr::V6(v6)), Family::V6 | Family::Both) => (v6.into(), true),
        };
        Some(Self { bind_to: at(ip), v6only, keeps_v4: publication.host.is_none() && family == Family::V6 })
    }

    /// Binds `program`, of this process's namespace, beside `ours`. Listening is what makes it the second of the group.
    pub fn take(self, program: &OwnedFd, ours: BorrowedFd<'_>) -> Result<(), Errno> {
        sockopt::set_socket_reuseport(program, true)?;
        if self.bind_to.is_ipv6() {
            sockopt::set_ipv6_v6only(program, self.v6only)?;
        }
        bind(program, &self.bind_to)?;
        choose(ours, if self.keeps_v4 { &IPV6_TO_PROGRAM } else { &TO_PROGRAM })
    }

    /// Where a client on this host reaches it, without being led astray by IPV6_V6ONLY.
    pub fn on_this_host(self) -> SocketAddr {
        let ip = match self.bind_to.ip() {
            IpAddr::V6(v6) if v6.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
            ip if ip.to_canonical().is_unspecified() => EVERYWHERE_V4.into(),
            ip => ip.to_canonical(),
        };
        SocketAddr::new(ip, self.bind_to.port())
    }
}

fn choose(ours: BorrowedFd<'_>, program: &[Instruction]) -> Result<(), Errno> {
    socket::attach_reuseport_program(ours, program).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, TcpListener, TcpStream};

    use sidestep_forwarder::policy::Transport;
    use sidestep_forwarder::ports::{Entry, Origin};

    use super::*;
    use crate::publish::{Sharing, listen};

    fn published(host: Option<IpAddr>) -> (Publication, TcpListener) {
        loop {
            // A port that is free now.
            let host_port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
            let publication = Publication { transport: Transport::Tcp, host, host_port, guest: None, guest_port: 80 };
            let entry = Entry { number: 1, origin: Origin::Start, publication };
            if let Ok(published) = listen(entry, Sharing::WithPrograms) {
                return (publication, published.socket.into());
            }
        }
    }

    fn program(family: Family) -> OwnedFd {
        let domain = if family == Family::V4 { libc::AF_INET } else { libc::AF_INET6 };
        socket::new(domain, libc::SOCK_STREAM, 0).unwrap()
    }

    fn accepted(listener: &TcpListener) -> usize {
        listener.set_nonblocking(true).unwrap();
        listener.incoming().take_while(Result::is_ok).count()
    }

    /// The table above: who gets the clients of each family, with the program's socket there and when it has gone.
    #[test]
    fn who_gets_the_clients() {
        use Family::{Both, V4, V6};
        let (v4, v6) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
        let cases = [
            (None, V4, Some((true, false))),
            (None, V6, Some((false, true))),
            (None, Both, Some((true, true))),
            (Some(v4), V4, Some((true, false))),
            (Some(v4), V6, None),
            (Some(v4), Both, Some((true, false))),
            (Some(v6), V4, None),
            (Some(v6), V6, Some((false, true))),
            (Some(v6), Both, Some((false, true))),
            (Some(Ipv4Addr::UNSPECIFIED.into()), Both, Some((true, false))),
            (Some(Ipv6Addr::UNSPECIFIED.into()), Both, Some((false, true))),
        ];
        for (host, family, want) in cases {
            let (publication, ours) = published(host);
            let Some((place, want)) = Place::of(&publication, family).zip(want) else {
                assert_eq!((Place::of(&publication, family), want), (None, None), "{host:?} {family:?}");
                continue;
            };
            // Twice: the port has been given back in between.
            for _ in 0..2 {
                let socket = program(family);
                place.take(&socket, ours.as_fd()).unwrap();
                socket::listen(socket.as_fd(), 128).unwrap();
                let theirs = TcpListener::from(socket);
                for (ip, is_theirs) in [(v4, want.0), (v6, want.1)] {
                    let count = || (0..20).filter(|_| TcpStream::connect((ip, publication.host_port)).is_ok()).count();
                    let reached = count();
                    let want = if is_theirs { (0, reached) } else { (reached, 0) };
                    assert_eq!((accepted(&ours), accepted(&theirs)), want, "{host:?} {family:?} {ip}");
                    assert!(!is_theirs || reached == 20, "{host:?} {family:?} {ip}");
                }
                assert!(TcpStream::connect(place.on_this_host()).is_ok() && accepted(&theirs) == 1);
                drop(theirs);
                assert!(TcpStream::connect(place.on_this_host()).is_ok() && accepted(&ours) == 1);
            }
        }
    }

    #[test]
    fn the_port_is_taken_for_others() {
        let (publication, _ours) = published(None);
        let entry = Entry { number: 2, origin: Origin::Added, publication };
        for sharing in [Sharing::No, Sharing::WithPrograms] {
            assert!(listen(entry, sharing).is_err());
        }
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
            assert!(TcpListener::bind((ip, publication.host_port)).is_err(), "{ip}");
        }
    }
}
