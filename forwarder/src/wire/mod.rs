//! Frames as bytes: views of what the workspace sent, and the frames built for it.
//!
//! Reading never copies and never panics: a header is a typed view of its bytes, and what does not fit is
//! [`Malformed`]. Building writes headers backwards from the payload in one reused buffer ([`FrameBuffer`]).
#![forbid(unsafe_code)]

pub mod build;
pub mod checksum;
pub mod ip;
pub mod quote;
pub mod transport;

use zerocopy::byteorder::{native_endian, network_endian};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use build::FrameBuffer;
pub use ip::{Fragment, IpPacket};
pub use quote::Quote;
pub use transport::{IcmpEcho, TcpFlags, TcpSegment, UdpDatagram};

use crate::network::MacAddr;

/// Bytes of the virtio-net header in front of every frame (the version with num_buffers).
pub const VNET_LEN: u8 = 12;
pub const ETHERNET_LEN: usize = 14;
/// The hardware address that every machine on a link listens to.
pub const EVERYBODY: MacAddr = [0xff; 6];
pub const IPV4_LEN: usize = 20;
pub const IPV6_LEN: usize = 40;
/// The IPv6 fragment header.
pub const FRAGMENT_LEN: usize = 8;
pub const TCP_LEN: usize = 20;
pub const UDP_LEN: usize = 8;
pub const ICMP_LEN: usize = 8;

/// The longest frame the kernel hands over: virtio-net and Ethernet headers and a 64 KB packet.
pub const MAX_FRAME: usize = VNET_LEN as usize + ETHERNET_LEN + 65_536;

pub const PROTOCOL_ICMP: u8 = 1;
pub const PROTOCOL_TCP: u8 = 6;
pub const PROTOCOL_UDP: u8 = 17;
pub const PROTOCOL_ICMPV6: u8 = 58;

/// Why a frame cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("shorter than its headers say")]
    Truncated,
    #[error("a header field is impossible")]
    Header,
    #[error("wrong checksum")]
    Checksum,
    #[error("a protocol that is not forwarded")]
    Protocol,
}

/// `struct virtio_net_hdr_mrg_rxbuf` (linux/virtio_net.h), in the byte order of this machine.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct VnetHeader {
    pub flags: u8,
    pub gso_type: u8,
    /// Length of the headers in front of the payload that segments are cut from.
    pub hdr_len: native_endian::U16,
    pub gso_size: native_endian::U16,
    pub csum_start: native_endian::U16,
    pub csum_offset: native_endian::U16,
    pub num_buffers: native_endian::U16,
}

impl VnetHeader {
    pub const NEEDS_CSUM: u8 = 1;
    pub const GSO_TCPV4: u8 = 1;
    pub const GSO_TCPV6: u8 = 4;
    /// UDP cut into datagrams of gso_size (USO).
    pub const GSO_UDP_L4: u8 = 5;
    /// Set beside the type when segments may carry ECN bits.
    const GSO_ECN: u8 = 0x80;

    /// The transport checksum is not there yet: the sender trusts the device to finish it.
    pub fn is_partial(&self) -> bool {
        self.flags & Self::NEEDS_CSUM != 0
    }

    pub fn gso_kind(&self) -> u8 {
        self.gso_type & !Self::GSO_ECN
    }
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct EthernetHeader {
    pub dst: MacAddr,
    pub src: MacAddr,
    pub ethertype: network_endian::U16,
}

impl EthernetHeader {
    pub const ARP: u16 = 0x0806;
    pub const IPV4: u16 = 0x0800;
    pub const IPV6: u16 = 0x86dd;
}

/// One frame as read from the TAP.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    pub vnet: &'a VnetHeader,
    pub ethernet: &'a EthernetHeader,
    /// What follows the Ethernet header.
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (vnet, rest) = VnetHeader::ref_from_prefix(bytes).map_err(|_| Malformed::Truncated)?;
        let (ethernet, body) = EthernetHeader::ref_from_prefix(rest).map_err(|_| Malformed::Truncated)?;
        Ok(Self { vnet, ethernet, body })
    }
}
