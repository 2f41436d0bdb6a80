//! Datagrams with the local address they came to or are to leave by: IP_PKTINFO and IPV6_PKTINFO (ip(7), ipv6(7)).

use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, sockopt};
use zerocopy::IntoBytes as _;

use super::socket::{errno, socket_addr};

/// A local address, with the device where it needs one to mean something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    address: IpAddr,
    device: u32,
}

#[derive(Clone, Copy, Debug)]
pub struct Received {
    pub len: usize,
    pub client: SocketAddr,
    /// None: the socket has one address.
    pub local: Option<Local>,
}

/// Has [`receive`] tell the local address. On a socket of both families IPv4 addresses read as IPv6 ones.
pub fn ask(socket: &OwnedFd, is_ipv4: bool) -> rustix::io::Result<()> {
    let result = if is_ipv4 {
        nix::sys::socket::setsockopt(socket, sockopt::Ipv4PacketInfo, &true)
    } else {
        nix::sys::socket::setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)
    };
    result.map_err(errno)
}

/// Receives one datagram into `buffer`. None: from nobody that could be answered.
pub fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> rustix::io::Result<Option<Received>> {
    // Words, since the kernel's headers are aligned; room for the larger of both messages.
    let mut control = [0u64; 8];
    let mut parts = [IoSliceMut::new(buffer)];
    let descriptor = socket.as_fd().as_raw_fd();
    let message =
        recvmsg::<SockaddrStorage>(descriptor, &mut parts, Some(control.as_mut_bytes()), MsgFlags::MSG_DONTWAIT);
    let message = message.map_err(errno)?;
    let Some(client) = message.address.as_ref().and_then(socket_addr) else { return Ok(None) };
    let local = message.cmsgs().into_iter().flatten().find_map(|control| match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            // The address to answer from: for a broadcast not the one it was sent to.
            let address = Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)).into();
            Some(Local { address, device: 0 })
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
            let device = if address.is_unicast_link_local() { info.ipi6_ifindex } else { 0 };
            Some(Local { address: address.into(), device })
        }
        _ => None,
    });
    Ok(Some(Received { len: message.bytes, client, local }))
}

/// Sends one datagram from the address given.
pub fn send(socket: &OwnedFd, payload: &[u8], to: SocketAddr, from: Option<Local>) -> rustix::io::Result<()> {
    let (v4, v6);
    let control = match from {
        None => None,
        Some(Local { address: IpAddr::V4(address), .. }) => {
            let none = libc::in_addr { s_addr: 0 };
            let source = libc::in_addr { s_addr: u32::from(address).to_be() };
            v4 = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: none };
            Some(ControlMessage::Ipv4PacketInfo(&v4))
        }
        Some(Local { address: IpAddr::V6(address), device }) => {
            let source = libc::in6_addr { s6_addr: address.octets() };
            v6 = libc::in6_pktinfo { ipi6_addr: source, ipi6_ifindex: device };
            Some(ControlMessage::Ipv6PacketInfo(&v6))
        }
    };
    let to = SockaddrStorage::from(to);
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let descriptor = socket.as_fd().as_raw_fd();
    sendmsg(descriptor, &[IoSlice::new(payload)], control.as_slice(), flags, Some(&to)).map(drop).map_err(errno)
}
