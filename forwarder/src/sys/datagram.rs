//! Datagrams with what recvmsg(2) and sendmsg(2) say beside them: the local address they came to or are to leave by
//! (IP_PKTINFO, IPV6_PKTINFO; ip(7), ipv6(7)), their TOS, and how several in one call are cut (UDP_SEGMENT, UDP_GRO;
//! udp(7)).

use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use zerocopy::IntoBytes as _;

use super::socket::{errno, socket_addr};

/// A local address, with the device where it needs one to mean something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    address: IpAddr,
    device: u32,
}

/// One datagram, or several of one sender in a row, each of `size` bytes but the last, which may be shorter.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    pub source: SocketAddr,
    /// None: nobody has asked, or the socket has one address.
    pub local: Option<Local>,
    pub tos: u8,
    pub size: usize,
    pub len: usize,
}

/// Asks for the local address. On a socket of both families IPv4 addresses read as IPv6 ones.
pub fn receive_local(socket: &OwnedFd, is_ipv4: bool) -> rustix::io::Result<()> {
    let result = if is_ipv4 {
        setsockopt(socket, sockopt::Ipv4PacketInfo, &true)
    } else {
        setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)
    };
    result.map_err(errno)
}

/// Asks for the TOS, and for several datagrams in one (UDP_GRO, Linux 5.0).
pub fn receive_offloaded(socket: &OwnedFd, is_ipv4: bool) -> rustix::io::Result<()> {
    let tos = if is_ipv4 {
        setsockopt(socket, sockopt::IpRecvTos, &true)
    } else {
        setsockopt(socket, sockopt::Ipv6RecvTClass, &true)
    };
    tos.and_then(|()| setsockopt(socket, sockopt::UdpGroSegment, &true)).map_err(errno)
}

/// Receives into `buffer`, with what was asked for. None: from nobody that could be answered.
pub fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> rustix::io::Result<Option<Received>> {
    // Two messages of one int each, and the larger of the local addresses; words, since the kernel's headers are aligned.
    let mut control = [0u64; 11];
    let mut parts = [IoSliceMut::new(buffer)];
    let descriptor = socket.as_fd().as_raw_fd();
    let message =
        recvmsg::<SockaddrStorage>(descriptor, &mut parts, Some(control.as_mut_bytes()), MsgFlags::MSG_DONTWAIT);
    let message = message.map_err(errno)?;
    let Some(source) = message.address.as_ref().and_then(socket_addr) else { return Ok(None) };
    let mut received = Received { source, local: None, tos: 0, size: message.bytes, len: message.bytes };
    for control in message.cmsgs().into_iter().flatten() {
        match control {
            ControlMessageOwned::Ipv4Tos(tos) => received.tos = tos,
            ControlMessageOwned::Ipv6TClass(class) => received.tos = u8::try_from(class).unwrap_or(0),
            ControlMessageOwned::UdpGroSegments(size) => {
                received.size = usize::try_from(size).ok().filter(|&size| size > 0).unwrap_or(message.bytes);
            }
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                // The address to answer from: for a broadcast not the one it was sent to.
                let address = Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)).into();
                received.local = Some(Local { address, device: 0 });
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                let device = if address.is_unicast_link_local() { info.ipi6_ifindex } else { 0 };
                received.local = Some(Local { address: address.into(), device });
            }
            _ => {}
        }
    }
    Ok(Some(received))
}

/// Sends the parts, put together, from the address given: as one datagram, or as datagrams of `size` bytes.
pub fn send(
    socket: &OwnedFd,
    parts: &[IoSlice<'_>],
    size: Option<u16>,
    from: Option<Local>,
    to: SocketAddr,
) -> rustix::io::Result<usize> {
    let v4;
    let v6;
    let source = match from {
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
    let cut = size.as_ref().map(ControlMessage::UdpGsoSegments);
    let to = SockaddrStorage::from(to);
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let descriptor = socket.as_fd().as_raw_fd();
    let sent = match (source, cut) {
        (Some(source), Some(cut)) => sendmsg(descriptor, parts, &[source, cut], flags, Some(&to)),
        (source, cut) => sendmsg(descriptor, parts, source.or(cut).as_slice(), flags, Some(&to)),
    };
    sent.map_err(errno)
}
