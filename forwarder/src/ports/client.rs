//! How a client of a published port is known inside.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::Publication;
use crate::flow::FlowKey;
use crate::network::VirtualNetwork;

/// The connection as the workspace will see it, and what to try where it refuses that: its address of the client's
/// family comes first. `own` is the IPv4 one.
pub fn keys(
    network: &VirtualNetwork,
    own: Ipv4Addr,
    publication: &Publication,
    client: SocketAddr,
) -> [Option<FlowKey>; 2] {
    // A socket for both families shows IPv4 addresses in IPv6 ones.
    let address = client.ip().to_canonical();
    let v4 = Some(IpAddr::V4(own));
    let v6 = network.v6.map(|v6| IpAddr::V6(v6.guest()));
    let guests = match publication.guest {
        Some(guest) => [Some(guest), None],
        None if address.is_ipv4() => [v4, v6],
        None if v6.is_some() => [v6, v4],
        None => [v4, None],
    };
    guests.map(|guest| {
        let guest = guest?;
        let remote = source(network, guest, address)?;
        Some(FlowKey { guest, guest_port: publication.guest_port, remote, remote_port: client.port() })
    })
}

/// The client's own address where the workspace's answer to it comes to us, else the gateway's.
fn source(network: &VirtualNetwork, guest: IpAddr, client: IpAddr) -> Option<IpAddr> {
    let is_answerable = match client {
        IpAddr::V4(v4) => !v4.is_broadcast(),
        // Link-local addresses mean something else on each link.
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    };
    let is_strange = client.is_loopback() || client.is_unspecified() || client.is_multicast();
    if client.is_ipv4() == guest.is_ipv4() && is_answerable && !is_strange && network.role(client).is_none() {
        return Some(client);
    }
    match guest {
        IpAddr::V4(_) => Some(IpAddr::V4(network.v4.gateway())),
        IpAddr::V6(_) => network.v6.map(|v6| IpAddr::V6(v6.gateway())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Ipv4Subnet, Ipv6Subnet};
    use crate::policy::Transport;

    #[test]
    fn clients_keep_their_address_where_it_can_be_answered() {
        let both = VirtualNetwork::new(Ipv4Subnet::DEFAULT, Some(Ipv6Subnet::DEFAULT), 1500);
        let only_v4 = VirtualNetwork::new(Ipv4Subnet::DEFAULT, None, 1500);
        let (g4, g6) = (Some(("10.0.2.2", "10.0.2.100")), Some(("fd00::2", "fd00::64")));
        let cases = [
            (&both, "192.0.2.2", [Some(("192.0.2.2", "10.0.2.100")), g6]),
            (&both, "::ffff:192.0.2.2", [Some(("192.0.2.2", "10.0.2.100")), g6]),
            (&both, "2001:db8::2", [Some(("2001:db8::2", "fd00::64")), g4]),
            (&both, "127.0.0.1", [g4, g6]),
            (&both, "::1", [g6, g4]),
            (&both, "10.0.2.7", [g4, g6]),
            (&both, "fd00::7", [g6, g4]),
            (&both, "fe80::1", [g6, g4]),
            (&only_v4, "2001:db8::2", [g4, None]),
            (&only_v4, "192.0.2.2", [Some(("192.0.2.2", "10.0.2.100")), None]),
        ];
        let mut publication =
            Publication { transport: Transport::Tcp, host: None, host_port: 8080, guest: None, guest_port: 80 };
        for (network, client, want) in cases {
            let client = SocketAddr::new(client.parse().unwrap(), 5000);
            let key = |(remote, guest): (&str, &str)| FlowKey {
                guest: guest.parse().unwrap(),
                guest_port: 80,
                remote: remote.parse().unwrap(),
                remote_port: 5000,
            };
            assert_eq!(
                keys(network, network.v4.guest(), &publication, client),
                want.map(|pair| pair.map(key)),
                "{client}"
            );
        }
        publication.guest = Some("10.0.2.15".parse().unwrap());
        let ends = keys(&both, both.v4.guest(), &publication, "[2001:db8::2]:5000".parse().unwrap());
        assert_eq!(
            ends.map(|key| key.map(|key| (key.remote, key.guest))),
            [Some((g4.unwrap().0.parse::<IpAddr>().unwrap(), publication.guest.unwrap())), None]
        );
    }
}
