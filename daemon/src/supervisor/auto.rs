//! `--publish-auto`: every TCP port that something listens at inside, at an address that is not the loopback's, is
//! published under its own number for as long as it does.
//!
//! The workspace decides what listens, and it is hostile: so no port below [`FIRST`], at most [`PORTS_MAX`], and none
//! that the host has already. What listens is looked at every [`PERIOD`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use sidestep_forwarder::network::{Role, VirtualNetwork};
use sidestep_forwarder::policy::Transport;
use sidestep_forwarder::ports::{Entry, Origin, Publication, Published};
use tokio::time::{MissedTickBehavior, interval};

use crate::publish;

use super::link::Link;
use super::listening::Listening;

/// Between two looks: a program that has just begun to listen is used by people.
const PERIOD: Duration = Duration::from_millis(500);
/// Ports at once: more than any workspace's services, and far from all of the host's.
const PORTS_MAX: usize = 128;
/// Ports below are the host's own services, whatever net.ipv4.ip_unprivileged_port_start says.
const FIRST: u16 = 1024;

pub struct Auto {
    /// The host's address; None: all of them.
    pub host: Option<IpAddr>,
    pub network: VirtualNetwork,
    pub listening: Arc<Listening>,
    pub link: Arc<Link>,
}

/// What has been made of the ports found.
#[derive(Default)]
struct Found {
    published: BTreeMap<u16, u64>,
    /// Not to be had, or published otherwise.
    skipped: BTreeSet<u16>,
    next: u64,
}

impl Auto {
    /// For as long as the event loop runs.
    pub async fn run(self) {
        let mut found = self.recover().await;
        let mut tick = interval(PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let listening = Arc::clone(&self.listening);
            match tokio::task::spawn_blocking(move || listening.addresses()).await {
                Ok(Ok(addresses)) => self.look(&mut found, &wanted(&addresses, &self.network)),
                Ok(Err(error)) => tracing::debug!("what listens inside: {error}"),
                Err(_) => return,
            }
        }
    }

    /// What a supervisor before this one has published, and what the monitor has.
    async fn recover(&self) -> Found {
        let entries = loop {
            // A forwarder that does not answer is about to be started again.
            if let Ok(entries) = self.link.recover_ports().await {
                break entries;
            }
        };
        let mut found = Found { next: 1, ..Found::default() };
        for Entry { number, origin, publication } in entries {
            found.next = found.next.max(number + 1);
            match origin {
                Origin::Auto => drop(found.published.insert(publication.host_port, number)),
                Origin::Start if publication.transport == Transport::Tcp => {
                    found.skipped.insert(publication.host_port);
                }
                Origin::Start => {}
            }
        }
        found
    }

    fn look(&self, found: &mut Found, wanted: &BTreeMap<u16, Option<IpAddr>>) {
        found.published.retain(|port, &mut number| {
            let listens = wanted.contains_key(port);
            if !listens {
                self.link.unpublish(number);
            }
            listens
        });
        for (&port, &guest) in wanted {
            if found.published.contains_key(&port) || found.skipped.contains(&port) {
                continue;
            }
            if found.published.len() == PORTS_MAX {
                tracing::debug!("port {port} is not published: {PORTS_MAX} are");
                return;
            }
            let publication =
                Publication { transport: Transport::Tcp, host: self.host, host_port: port, guest, guest_port: port };
            let entry = Entry { number: found.next, origin: Origin::Auto, publication };
            match publish::listen(entry) {
                Ok(Published { entry, socket }) => {
                    found.next += 1;
                    found.published.insert(port, entry.number);
                    self.link.publish(entry, socket);
                    tracing::info!("port {port} of the workspace is published");
                }
                Err(error) => {
                    tracing::warn!("--publish-auto: {error:#}");
                    found.skipped.insert(port);
                }
            }
        }
    }
}

/// The ports to publish, each with the address it is to lead to where that is not the workspace's own.
fn wanted(addresses: &[SocketAddr], network: &VirtualNetwork) -> BTreeMap<u16, Option<IpAddr>> {
    let mut wanted = BTreeMap::new();
    for address in addresses.iter().filter(|address| address.port() >= FIRST) {
        let ip = address.ip();
        let is_link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if ip.is_loopback() || is_link_local {
            continue;
        }
        if ip.is_unspecified() || network.role(ip) == Some(Role::Guest) {
            wanted.insert(address.port(), None);
        } else {
            wanted.entry(address.port()).or_insert(Some(ip));
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use sidestep_forwarder::network::{Ipv4Subnet, Ipv6Subnet};

    use super::*;

    #[test]
    fn what_is_reached_from_outside_and_no_more() {
        let network = VirtualNetwork::new(Ipv4Subnet::DEFAULT, Some(Ipv6Subnet::DEFAULT), 1500);
        let addresses: Vec<SocketAddr> = [
            "127.0.0.1:3000",
            "[::1]:3001",
            "[fe80::1]:3002",
            "0.0.0.0:80",
            "0.0.0.0:3003",
            "[::]:3004",
            "10.0.2.100:3005",
            "[fd00::64]:3006",
            "172.17.0.1:3007",
            "172.17.0.1:3003",
            "127.0.0.1:3004",
        ]
        .iter()
        .map(|text| text.parse().unwrap())
        .collect();
        let docker: IpAddr = "172.17.0.1".parse().unwrap();
        let want = [(3003, None), (3004, None), (3005, None), (3006, None), (3007, Some(docker))];
        assert_eq!(wanted(&addresses, &network), want.into());
    }
}
