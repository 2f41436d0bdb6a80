//! The source address of what leaves the host (`--outbound-addr`, `--outbound-addr6`): one module for both paths.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use rustix::io::Errno;
use rustix::net::{AddressFamily, sockopt};
use serde::{Deserialize, Serialize};

/// None: the host's routes choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outbound {
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

impl Outbound {
    /// Where sockets for `destination` come from; the host's loopback is reached from itself in any case.
    pub fn source(&self, destination: IpAddr) -> Option<IpAddr> {
        match destination {
            _ if destination.is_loopback() => None,
            _ => self.of_family(destination.is_ipv4()),
        }
    }

    pub fn of_family(&self, ipv4: bool) -> Option<IpAddr> {
        if ipv4 { self.v4.map(IpAddr::V4) } else { self.v6.map(IpAddr::V6) }
    }

    /// Binds a socket that is about to go to `destination`.
    pub fn bind(&self, socket: impl AsFd, destination: IpAddr) -> rustix::io::Result<()> {
        self.source(destination).map_or(Ok(()), |source| bind(socket, source))
    }
}

/// Binds a socket that has not gone anywhere. Its port is chosen when it does, knowing the destination: connections to
/// different places share ports (IP_BIND_ADDRESS_NO_PORT, ip(7)). An address that the host has lost is a network that
/// cannot be reached.
pub fn bind(socket: impl AsFd, source: IpAddr) -> rustix::io::Result<()> {
    let source = match source {
        // An IPv6 socket on its way to an IPv4 address.
        IpAddr::V4(v4) if sockopt::socket_domain(&socket)? == AddressFamily::INET6 => v4.to_ipv6_mapped().into(),
        source => source,
    };
    // Without it there are fewer connections, and nothing is wrong. It is gone afterwards, for a workspace may get
    // the socket and look.
    let _ = setsockopt(&socket, IpBindAddressNoPort, &true);
    let bound = rustix::net::bind(&socket, &SocketAddr::new(source, 0));
    let _ = setsockopt(&socket, IpBindAddressNoPort, &false);
    bound.map_err(|errno| if errno == Errno::ADDRNOTAVAIL { Errno::NETUNREACH } else { errno })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use rustix::net::SocketType;

    use super::*;

    #[test]
    fn only_what_leaves_the_host_is_bound() {
        let outbound = Outbound { v4: Some([192, 0, 2, 1].into()), v6: None };
        for (destination, source) in
            [("192.0.2.2", Some("192.0.2.1")), ("127.0.0.53", None), ("2001:db8::1", None), ("::1", None)]
        {
            assert_eq!(outbound.source(destination.parse().unwrap()), source.map(|text| text.parse().unwrap()));
        }
    }

    #[test]
    fn a_bound_socket_shares_its_port_and_a_lost_address_is_no_network() {
        // 127.0.0.2 stands for an address of the host, 198.51.100.77 for one that it has no more.
        let own = Outbound { v4: Some([127, 0, 0, 2].into()), v6: None };
        let elsewhere = IpAddr::from([192, 0, 2, 1]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let mapped = SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), to.port()));
        for (family, to) in [(AddressFamily::INET, to), (AddressFamily::INET6, mapped)] {
            let socket = rustix::net::socket(family, SocketType::STREAM, None).unwrap();
            own.bind(&socket, elsewhere).unwrap();
            rustix::net::connect(&socket, &to).unwrap();
            assert_eq!(listener.accept().unwrap().1.ip(), IpAddr::from([127, 0, 0, 2]));
        }

        let lost = Outbound { v4: Some([198, 51, 100, 77].into()), v6: None };
        let udp = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
        assert_eq!(lost.bind(&udp, elsewhere), Err(Errno::NETUNREACH));
        // A datagram socket hears answers at the address it was given, once it has sent.
        let answerer = UdpSocket::bind("127.0.0.1:0").unwrap();
        own.bind(&udp, elsewhere).unwrap();
        let to = answerer.local_addr().unwrap();
        rustix::net::sendto(&udp, b"x", rustix::net::SendFlags::empty(), &to).unwrap();
        assert_eq!(answerer.recv_from(&mut [0; 9]).unwrap().1.ip(), IpAddr::from([127, 0, 0, 2]));
    }
}
