//! ARP (RFC 826) for the gateway and the resolver: both have the gateway's hardware address. Nobody else answers, so
//! the workspace's duplicate address detection finds its own address free. What others say of themselves is learned, and
//! asked for where it is not known.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr};

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};

use crate::edge::Edge;
use crate::network::{Role, VirtualNetwork};
use crate::wire::{EVERYBODY, EthernetHeader, Frame, Malformed};

/// Notes who asks, and answers a request about one of ours.
pub fn frame_from_tap(edge: &mut Edge, frame: &Frame<'_>) -> Result<(), Malformed> {
    let packet = ArpPacket::new_checked(frame.body).map_err(|_| Malformed::Truncated)?;
    let message = ArpRepr::parse(&packet).map_err(|_| Malformed::Header)?;
    if let ArpRepr::EthernetIpv4 { source_protocol_addr, .. } = message {
        edge.heard(source_protocol_addr.into(), frame.ethernet.src);
    }
    let Some(reply) = answer(&edge.config.network, message) else { return Ok(()) };
    let len = reply.buffer_len();
    reply.emit(&mut ArpPacket::new_unchecked(edge.frame.payload_mut(len)));
    edge.ethernet_to_tap(frame.ethernet.src, EthernetHeader::ARP, len);
    Ok(())
}

/// Asks who has `address`.
pub fn ask(edge: &mut Edge, address: Ipv4Addr) {
    let network = &edge.config.network;
    let request = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(network.gateway_mac),
        source_protocol_addr: network.v4.gateway(),
        target_hardware_addr: EthernetAddress::default(),
        target_protocol_addr: address,
    };
    let len = request.buffer_len();
    request.emit(&mut ArpPacket::new_unchecked(edge.frame.payload_mut(len)));
    edge.ethernet_to_tap(EVERYBODY, EthernetHeader::ARP, len);
}

fn answer(network: &VirtualNetwork, message: ArpRepr) -> Option<ArpRepr> {
    let ArpRepr::EthernetIpv4 { operation, source_hardware_addr, source_protocol_addr, target_protocol_addr, .. } =
        message
    else {
        return None;
    };
    let role = network.role(IpAddr::V4(target_protocol_addr));
    let ours = matches!(role, Some(Role::Gateway | Role::Resolver));
    if operation != ArpOperation::Request || !ours {
        return None;
    }
    Some(ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(network.gateway_mac),
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Ipv4Subnet;

    #[test]
    fn gateway_and_resolver_only() {
        let network = VirtualNetwork::new(Ipv4Subnet::DEFAULT, None, 1500);
        for (last, want) in [(2, true), (3, true), (100, false), (9, false)] {
            let request = ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Request,
                source_hardware_addr: EthernetAddress([2; 6]),
                source_protocol_addr: [10, 0, 2, 100].into(),
                target_hardware_addr: EthernetAddress([0; 6]),
                target_protocol_addr: [10, 0, 2, last].into(),
            };
            assert_eq!(answer(&network, request).is_some(), want, "{last}");
        }
    }
}
