//! Whether an address is one of the host's own.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};

use rustix::io::Errno;
use rustix::net::sockopt;

/// RFC 863's: connecting a datagram socket to it sends nothing.
const DISCARD: u16 = 9;

/// Whether what is sent there stays on the host. Asked anew each time: addresses come and go. Doubt (no descriptors left,
/// net.ipv4.ip_nonlocal_bind) counts as own.
pub fn is_own(addr: IpAddr) -> bool {
    is_assigned(addr) || matches!(addr, IpAddr::V6(v6) if leads_to_loopback(v6))
}

/// Whether it is an address that the host has: the kernel lets a socket bind to those only.
pub fn is_assigned(addr: IpAddr) -> bool {
    match UdpSocket::bind(SocketAddr::new(addr, 0)) {
        Ok(_) => true,
        Err(error) => Errno::from_io_error(&error) != Some(Errno::ADDRNOTAVAIL),
    }
}

/// Of IPv6 the kernel takes in more than a socket may be bound to: what a route of type local covers, and where it
/// forwards each prefix's anycast address. The way there is the loopback device's, and so is its MTU, which is more than
/// an IPv6 packet can have on any other; where it has been made smaller, all that have the same count as own.
fn leads_to_loopback(addr: Ipv6Addr) -> bool {
    match (path_mtu(addr), path_mtu(Ipv6Addr::LOCALHOST)) {
        (Ok(mtu), Ok(loopback)) => mtu == loopback,
        (Err(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::ACCESS), _) => false,
        _ => true,
    }
}

fn path_mtu(addr: Ipv6Addr) -> Result<u32, Errno> {
    let errno = |error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).map_err(errno)?;
    socket.connect((addr, DISCARD)).map_err(errno)?;
    sockopt::ipv6_mtu(&socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_own_and_the_documentation_nets_are_not() {
        let cases = [
            ("127.0.0.1", true),
            ("127.8.8.8", true),
            ("::1", true),
            ("198.51.100.77", false),
            ("2001:db8::77", false),
        ];
        for (addr, own) in cases {
            assert_eq!(is_own(addr.parse().unwrap()), own, "{addr}");
        }
    }
}
