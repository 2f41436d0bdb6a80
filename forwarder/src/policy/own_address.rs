//! Whether an address is one of the host's own: the kernel lets a socket bind to those only.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr, UdpSocket};

use rustix::io::Errno;

/// Asked anew each time: addresses come and go. Doubt (no descriptors left, net.ipv4.ip_nonlocal_bind) counts as own.
pub fn is_own(addr: IpAddr) -> bool {
    match UdpSocket::bind(SocketAddr::new(addr, 0)) {
        Ok(_) => true,
        Err(error) => Errno::from_io_error(&error) != Some(Errno::ADDRNOTAVAIL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_own_and_the_documentation_nets_are_not() {
        for (addr, own) in [("127.0.0.1", true), ("127.8.8.8", true), ("::1", true), ("198.51.100.77", false)] {
            assert_eq!(is_own(addr.parse().unwrap()), own, "{addr}");
        }
    }
}
