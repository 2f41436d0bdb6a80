//! One mapping and its host socket.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::marks::Marked;
use crate::outbound::{self, Outbound};
use crate::path_mtu::PathMtu;
use crate::sys;
use crate::timer::{Time, TimerId};

/// Ports below are the host's services', also where the host would let us have them.
const FIRST_UNPRIVILEGED: u16 = 1024;

/// A destination, which the workspace and the host may know by different addresses, and when the policy was asked about it.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub destination: SocketAddr,
    pub host: SocketAddr,
    pub asked: Time,
}

#[derive(Debug)]
pub struct Mapping {
    pub socket: OwnedFd,
    pub guest: (IpAddr, u16),
    pub marked: Marked,
    pub timer: TimerId,
    pub since: Time,
    pub last_used: Time,
    /// Bytes of payload each way.
    pub from_tap: u64,
    pub to_tap: u64,
    pub idle_ms: u64,
    /// To the last destination.
    pub route: Option<Route>,
    /// The host has not refused UDP_SEGMENT on the way to that destination.
    pub takes_segments: bool,
    /// What the workspace has said of the way to whoever has it.
    pub path_mtu: PathMtu,
}

/// A host socket with the workspace's port, where that can be had. One that has a source address has it for everything
/// it sends, whatever it sends to first.
pub fn open_socket(outbound: &Outbound, is_ipv4: bool, port: u16) -> rustix::io::Result<OwnedFd> {
    let (family, any) = if is_ipv4 {
        (AddressFamily::INET, IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    } else {
        (AddressFamily::INET6, IpAddr::V6(Ipv6Addr::UNSPECIFIED))
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    if !is_ipv4 {
        // Else IPv4 senders, the host's loopback among them, would come in as ::ffff:a.b.c.d.
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
    }
    sys::socket::receive_errors(&socket, is_ipv4)?;
    sys::datagram::receive_offloaded(&socket, is_ipv4)?;
    let source = outbound.of_family(is_ipv4);
    if port >= FIRST_UNPRIVILEGED {
        // Taken on the host: the kernel chooses another with the first datagram.
        let bound = rustix::net::bind(&socket, &SocketAddr::new(source.unwrap_or(any), port));
        if bound.is_ok() {
            return Ok(socket);
        }
    }
    if let Some(source) = source {
        outbound::bind(&socket, source)?;
    }
    Ok(socket)
}
