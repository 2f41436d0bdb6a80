//! The network of the workspace: lo up, the TAP with its address, default route and the neighbours that never change.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use anyhow::Context;
use netlink_packet_route::address::{AddressAttribute, AddressFlags};
use netlink_packet_route::neighbour::NeighbourState;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder, new_connection};
use sidestep_forwarder::network::{Ipv6Subnet, VirtualNetwork};

use super::namespaces::Namespaces;
use super::needs;

/// The loopback device has this index in every network namespace.
const LOOPBACK: u32 = 1;

pub struct Networked {
    pub namespaces: Namespaces,
    pub tap: OwnedFd,
    pub ifindex: u32,
}

pub fn bring_up(namespaces: Namespaces, network: &VirtualNetwork, ifname: &str) -> anyhow::Result<Networked> {
    let tap = sidestep_forwarder::tap::open(ifname).map_err(|error| needs::tap_refused(&error))?.into_fd();
    let gid = nix::unistd::getegid();
    // Ping works without a capability for the caller's group.
    set_sysctl("ipv4/ping_group_range", &format!("{gid} {gid}"));
    if network.v6.is_none() {
        set_sysctl(&format!("ipv6/conf/{ifname}/disable_ipv6"), "1");
    }
    let ifindex = set_up(network, ifname)?;
    Ok(Networked { namespaces, tap, ifindex })
}

/// Gives the TAP of this network namespace what it has on `network`; its index is returned. Without an IPv6 of ours the
/// link keeps its own.
pub fn set_up(network: &VirtualNetwork, ifname: &str) -> anyhow::Result<u32> {
    let ifindex = nix::net::if_::if_nametoindex(ifname).context("the TAP has no index")?;
    set_sysctls(network, ifname);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(configure(network, ifindex)).context("cannot configure the network")?;
    Ok(ifindex)
}

async fn configure(network: &VirtualNetwork, ifindex: u32) -> anyhow::Result<()> {
    let (connection, handle, _) = new_connection().context("cannot open netlink")?;
    tokio::spawn(connection);
    handle.link().set(LinkUnspec::new_with_index(LOOPBACK).up().build()).execute().await.context("lo up")?;
    let link = LinkUnspec::new_with_index(ifindex).address(network.guest_mac.to_vec()).mtu(network.mtu.into()).up();
    handle.link().set(link.build()).execute().await.context("TAP up")?;

    let v4 = network.v4;
    handle.address().add(ifindex, v4.guest().into(), v4.prefix_len()).execute().await.context("address")?;
    for peer in [v4.gateway(), v4.resolver()] {
        neighbour(&handle, ifindex, peer.into(), network).await?;
    }
    let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(v4.gateway()).output_interface(ifindex).build();
    handle.route().add(route).execute().await.context("default route")?;

    let Some(v6) = network.v6 else { return Ok(()) };
    let mut address = handle.address().add(ifindex, v6.guest().into(), Ipv6Subnet::PREFIX_LEN);
    // Duplicate address detection would take a second, on a link where nobody else is.
    address.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Permanent));
    address.execute().await.context("IPv6 address")?;
    for peer in [v6.gateway(), v6.resolver()] {
        neighbour(&handle, ifindex, peer.into(), network).await?;
    }
    let route = RouteMessageBuilder::<Ipv6Addr>::new().gateway(v6.gateway()).output_interface(ifindex).build();
    handle.route().add(route).execute().await.context("IPv6 default route")
}

async fn neighbour(handle: &Handle, ifindex: u32, peer: IpAddr, network: &VirtualNetwork) -> anyhow::Result<()> {
    let neighbour = handle.neighbours().add(ifindex, peer).link_layer_address(&network.gateway_mac);
    neighbour.state(NeighbourState::Permanent).execute().await.with_context(|| format!("neighbour {peer}"))
}

/// Best effort, for /proc/sys is read-only in some containers: nothing depends on it. The TAP's IPv6 is what we set and
/// nothing that the kernel learns or tries. TCP that paces itself (bbr, which a new namespace takes from the machine's
/// default) halves the rate of a link that neither loses nor queues; what goes over the network has the congestion
/// control of the host's sockets.
fn set_sysctls(network: &VirtualNetwork, ifname: &str) {
    let v6 = format!("ipv6/conf/{ifname}");
    if network.v6.is_some() {
        for name in ["disable_ipv6", "accept_ra", "router_solicitations", "dad_transmits"] {
            set_sysctl(&format!("{v6}/{name}"), "0");
        }
    }
    // A machine that allows the first takes it last.
    for algorithm in ["reno", "cubic"] {
        set_sysctl("ipv4/tcp_congestion_control", algorithm);
    }
}

fn set_sysctl(name: &str, value: &str) {
    if let Err(error) = fs::write(format!("/proc/sys/net/{name}"), value) {
        tracing::debug!("net/{name} stays as it is: {error}");
    }
}
