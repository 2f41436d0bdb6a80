//! Whether an address is one of the host's own.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::LazyLock;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, connect, send, socket_with};

use crate::sys::socket::never_fragment;
use crate::wire::{IPV6_LEN, UDP_LEN};

/// RFC 863's, though nothing is sent there.
const DISCARD: u16 = 9;
/// With its headers one byte more than a packet of IPv6 can have without a jumbo payload: the loopback device's MTU, and
/// no other's.
static PAYLOAD: [u8; 65_536 - IPV6_LEN - UDP_LEN] = [0; 65_536 - IPV6_LEN - UDP_LEN];
/// Nobody has made the loopback's MTU smaller. Asked once.
static LOOPBACK_IS_WHOLE: LazyLock<bool> = LazyLock::new(|| takes_payload(Ipv6Addr::LOCALHOST).unwrap_or(true));

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
/// forwards each prefix's anycast address. The way there is the loopback device's, and that is told by what it takes; the
/// path's MTU would be whatever an ICMPv6 message said last. Where the loopback takes less, all of IPv6 counts as own.
fn leads_to_loopback(addr: Ipv6Addr) -> bool {
    match takes_payload(addr) {
        Ok(takes) => takes || !*LOOPBACK_IS_WHOLE,
        Err(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::ACCESS) => false,
        Err(_) => true,
    }
}

/// Whether the first device on the way takes [`PAYLOAD`]. It is not sent: MSG_MORE has it wait for more, and it goes with
/// its socket.
fn takes_payload(addr: Ipv6Addr) -> Result<bool, Errno> {
    let socket = socket_with(AddressFamily::INET6, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    never_fragment(socket.as_fd())?;
    connect(&socket, &SocketAddr::new(addr.into(), DISCARD))?;
    match send(&socket, &PAYLOAD, SendFlags::MORE | SendFlags::DONTWAIT) {
        Ok(_) => Ok(true),
        Err(Errno::MSGSIZE) => Ok(false),
        Err(error) => Err(error),
    }
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
