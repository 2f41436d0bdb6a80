//! DHCPv4 (RFC 2131) for what configures itself inside: a client on the TAP, a container bridged to it. The gateway is
//! the link's only server, so it speaks with authority: any address of its range that nobody has may be asked for
//! again, which keeps clients where they are when a forwarder has taken over from another.
//!
//! | message | answer |
//! |---|---|
//! | DISCOVER | OFFER of the client's address, the one it asks for, or the lowest free one; none left: silence |
//! | REQUEST | ACK; NAK for an address that is another's or none of ours; another server's: silence |
//! | INFORM | ACK without an address |
//! | RELEASE, DECLINE | none: the address is free, or nobody's for a while |
//!
//! Every answer says all there is to say, whatever was asked for: it fits in the 576 bytes that each client takes. It
//! goes to the hardware address that the message came from, which is the client's, for no relay is on this link; or to
//! everybody's, as the client wishes.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr};

use smoltcp::wire::{
    ArpHardware, DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpFlags, DhcpMessageType, DhcpOpCode, DhcpOption,
    DhcpOptionWriter, DhcpPacket, EthernetAddress,
};

use super::search;
use crate::edge::Edge;
use crate::network::{MacAddr, VirtualNetwork};
use crate::timer::Time;
use crate::wire::{IpPacket, Malformed, UdpDatagram};

/// Option numbers that smoltcp has no public name for (RFC 2132, RFC 3397).
mod option {
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DOMAIN_NAME_SERVER: u8 = 6;
    pub const DOMAIN_NAME: u8 = 15;
    pub const INTERFACE_MTU: u8 = 26;
    pub const BROADCAST_ADDRESS: u8 = 28;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER_IDENTIFIER: u8 = 54;
    pub const CLIENT_IDENTIFIER: u8 = 61;
    pub const DOMAIN_SEARCH: u8 = 119;
    pub const END: u8 = 255;
}

/// As slirp has it. Nothing on this link runs short of addresses.
const LEASE_S: u32 = 86_400;
/// How long an offered address waits for its client.
const OFFER_MS: u64 = 60_000;
/// How long an address that a client found in use is nobody's.
const DECLINED_MS: u64 = 600_000;
/// Bytes of every answer: with IP and UDP headers the 576 that a client must take (RFC 2131 2).
const MESSAGE_LEN: usize = 548;
/// In front of the options (RFC 2131 3).
const MAGIC: u32 = 0x6382_5363;
/// Where options begin.
const OPTIONS_AT: usize = 240;
/// What the search list may take of them; the rest is less than 60.
const SEARCH_MAX: usize = 180;
const ETHERNET: u8 = 1;

/// Who has which address, one entry an address at most.
#[derive(Debug, Default)]
pub struct Dhcp {
    leases: Vec<Lease>,
}

#[derive(Debug)]
struct Lease {
    address: Ipv4Addr,
    /// The client's identifier; empty, which no client's is: declined.
    client: Vec<u8>,
    until: Time,
}

/// What a client says.
#[derive(Debug)]
struct Message<'a> {
    kind: DhcpMessageType,
    transaction: u32,
    flags: DhcpFlags,
    /// The address it has, or none: 0.0.0.0.
    client_address: Ipv4Addr,
    mac: MacAddr,
    identifier: Option<&'a [u8]>,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    kind: DhcpMessageType,
    /// The client's from now on; none in a NAK and for INFORM.
    address: Option<Ipv4Addr>,
    to: Ipv4Addr,
}

impl Dhcp {
    /// Takes in a datagram if it is for the link's DHCP server; false otherwise.
    pub fn datagram_from_tap(
        &mut self,
        edge: &mut Edge,
        ip: &IpPacket<'_>,
        datagram: &UdpDatagram<'_>,
    ) -> Result<bool, Malformed> {
        if datagram.dst_port != DHCP_SERVER_PORT {
            return Ok(false);
        }
        let v4 = edge.config.network.v4;
        if ![Ipv4Addr::BROADCAST, v4.broadcast(), v4.gateway()].map(IpAddr::V4).contains(&ip.dst) {
            return Ok(false);
        }
        let packet = DhcpPacket::new_checked(datagram.payload).map_err(|_| Malformed::Truncated)?;
        let Some(message) = parse(&packet)? else { return Ok(true) };
        if let Some(answer) = self.answer(edge.now, &edge.config.network, &message) {
            let bytes = edge.frame.payload_mut(MESSAGE_LEN);
            emit(bytes, &message, &answer, &edge.config.network, &edge.config.search);
            if let Some(address) = answer.address {
                edge.leases(address, answer.kind == DhcpMessageType::Ack);
            }
            let ends = (IpAddr::V4(v4.gateway()), IpAddr::V4(answer.to));
            edge.udp_to_tap((ends.0, DHCP_SERVER_PORT), (ends.1, DHCP_CLIENT_PORT), MESSAGE_LEN);
        }
        Ok(true)
    }

    fn answer(&mut self, now: Time, network: &VirtualNetwork, message: &Message<'_>) -> Option<Answer> {
        self.leases.retain(|lease| lease.until > now);
        let client = message.client();
        let is_ours = message.server.is_none_or(|server| server == network.v4.gateway());
        // What a client names before it has it, or has.
        let named = message.requested.or(Some(message.client_address).filter(|address| !address.is_unspecified()));
        match message.kind {
            DhcpMessageType::Discover => {
                let address = self.choose(network, &client, message.requested)?;
                self.note(address, &client, now.after(OFFER_MS));
                Some(message.answer(DhcpMessageType::Offer, Some(address)))
            }
            DhcpMessageType::Request if !is_ours => {
                self.leases.retain(|lease| lease.client != client);
                None
            }
            DhcpMessageType::Request => {
                let granted = named.filter(|&address| self.may_have(network, &client, address));
                match granted {
                    Some(address) => {
                        self.leases.retain(|lease| lease.client != client);
                        self.note(address, &client, now.after(u64::from(LEASE_S) * 1000));
                        Some(message.answer(DhcpMessageType::Ack, Some(address)))
                    }
                    None => Some(message.answer(DhcpMessageType::Nak, None)),
                }
            }
            DhcpMessageType::Inform => Some(message.answer(DhcpMessageType::Ack, None)),
            DhcpMessageType::Release if is_ours => {
                self.leases.retain(|lease| lease.client != client);
                None
            }
            DhcpMessageType::Decline if is_ours => {
                let declined = message.requested.filter(|&address| self.may_have(network, &client, address));
                self.leases.retain(|lease| lease.client != client);
                self.note(declined?, &[], now.after(DECLINED_MS));
                None
            }
            _ => None,
        }
    }

    /// The address a client has, else the one it would like, else the lowest that nobody has.
    fn choose(&self, network: &VirtualNetwork, client: &[u8], wish: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        let own = self.leases.iter().find(|lease| lease.client == client).map(|lease| lease.address);
        let mut wished = wish.into_iter().chain(network.v4.leases());
        own.or_else(|| wished.find(|&address| self.may_have(network, client, address)))
    }

    fn may_have(&self, network: &VirtualNetwork, client: &[u8], address: Ipv4Addr) -> bool {
        let mut others = self.leases.iter().filter(|lease| lease.client != client);
        network.v4.leases().any(|lease| lease == address) && !others.any(|lease| lease.address == address)
    }

    fn note(&mut self, address: Ipv4Addr, client: &[u8], until: Time) {
        match self.leases.iter_mut().find(|lease| lease.address == address) {
            // An offer does not shorten a lease.
            Some(lease) if lease.client == client => lease.until = lease.until.max(until),
            Some(_) => {}
            None => self.leases.push(Lease { address, client: client.to_vec(), until }),
        }
    }
}

impl Message<'_> {
    /// Who this is: as it calls itself, else by its hardware address in the form in which most clients do.
    fn client(&self) -> Vec<u8> {
        match self.identifier {
            Some(identifier) => identifier.to_vec(),
            None => [&[ETHERNET], &self.mac[..]].concat(),
        }
    }

    /// RFC 2131 4.1: to the address the client has, to everyone where it has none that it may use or asks for that.
    fn answer(&self, kind: DhcpMessageType, address: Option<Ipv4Addr>) -> Answer {
        let to = match address {
            _ if kind == DhcpMessageType::Nak => Ipv4Addr::BROADCAST,
            _ if !self.client_address.is_unspecified() => self.client_address,
            Some(address) if !self.flags.contains(DhcpFlags::BROADCAST) => address,
            _ => Ipv4Addr::BROADCAST,
        };
        Answer { kind, address, to }
    }
}

/// None: not a client's message, or one that came through a relay, whose clients are not on this link.
fn parse<'a>(packet: &'a DhcpPacket<&'a [u8]>) -> Result<Option<Message<'a>>, Malformed> {
    let is_ethernet = packet.hardware_type() == ArpHardware::Ethernet && packet.hardware_len() == 6;
    if packet.magic_number() != MAGIC || packet.opcode() != DhcpOpCode::Request || !is_ethernet {
        return Err(Malformed::Header);
    }
    if !packet.relay_agent_ip().is_unspecified() {
        return Ok(None);
    }
    let data = |number| packet.options().find(|option| option.kind == number).map(|option| option.data);
    let address = |number| data(number).and_then(|data| <[u8; 4]>::try_from(data).ok()).map(Ipv4Addr::from);
    let Some(&[kind]) = data(option::MESSAGE_TYPE) else { return Err(Malformed::Header) };
    Ok(Some(Message {
        kind: kind.into(),
        transaction: packet.transaction_id(),
        flags: packet.flags(),
        client_address: packet.client_ip(),
        mac: packet.client_hardware_address().0,
        // One byte says what kind of identifier it is (RFC 2132 9.14).
        identifier: data(option::CLIENT_IDENTIFIER).filter(|identifier| identifier.len() > 1),
        requested: address(option::REQUESTED_ADDRESS),
        server: address(option::SERVER_IDENTIFIER),
    }))
}

/// Writes an answer over all of `bytes`, of which there are [`MESSAGE_LEN`].
fn emit(bytes: &mut [u8], message: &Message<'_>, answer: &Answer, network: &VirtualNetwork, search: &[String]) {
    bytes.fill(0);
    let mut packet = DhcpPacket::new_unchecked(&mut *bytes);
    packet.set_opcode(DhcpOpCode::Reply);
    packet.set_hardware_type(ArpHardware::Ethernet);
    packet.set_hardware_len(6);
    packet.set_transaction_id(message.transaction);
    packet.set_flags(message.flags);
    if answer.kind == DhcpMessageType::Ack {
        packet.set_client_ip(message.client_address);
    }
    packet.set_your_ip(answer.address.unwrap_or(Ipv4Addr::UNSPECIFIED));
    packet.set_client_hardware_address(EthernetAddress(message.mac));
    packet.set_magic_number(MAGIC);
    let Some((last, options)) = bytes.get_mut(OPTIONS_AT..).and_then(<[u8]>::split_last_mut) else { return };
    // What the writer leaves says that nothing follows.
    options.fill(option::END);
    *last = option::END;
    let mut writer = DhcpOptionWriter::new(options);
    // What does not fit is left out; that can only be the last one.
    let mut put = |kind, data: &[u8]| {
        let _ = writer.emit(DhcpOption { kind, data });
    };
    put(option::MESSAGE_TYPE, &[answer.kind.into()]);
    put(option::SERVER_IDENTIFIER, &network.v4.gateway().octets());
    if answer.kind == DhcpMessageType::Nak {
        return;
    }
    if answer.address.is_some() {
        put(option::LEASE_TIME, &LEASE_S.to_be_bytes());
    }
    put(option::SUBNET_MASK, &network.v4.netmask().octets());
    put(option::BROADCAST_ADDRESS, &network.v4.broadcast().octets());
    put(option::ROUTER, &network.v4.gateway().octets());
    put(option::INTERFACE_MTU, &network.mtu.to_be_bytes());
    if network.dns {
        put(option::DOMAIN_NAME_SERVER, &network.v4.resolver().octets());
    }
    let list = search::encode(search, SEARCH_MAX);
    if !list.is_empty() {
        put(option::DOMAIN_SEARCH, &list);
    }
    if let Some(domain) = search::first(search) {
        put(option::DOMAIN_NAME, domain.as_bytes());
    }
}

#[cfg(test)]
mod tests;
