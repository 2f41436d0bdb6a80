//! `--publish-auto`: every TCP port that something listens at inside, at an address that is not the loopback's, is
//! published under its own number for as long as it does.
//!
//! The workspace decides what listens, and it is hostile: so no port below [`FIRST`], at most [`PORTS_MAX`], and none
//! that the host has already. A program may keep a socket of the host, and with it the port, when it listens no more: such a
//! port counts as long as nobody else could have it. What listens is looked at every [`PERIOD`], and at once when the
//! supervisor has seen a listen(2); one that can be taken out asks before, so that the program has the port from the
//! start.
//!
//! Limits: what a supervisor before this one has counted as kept is not known.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sidestep_forwarder::network::{Role, VirtualNetwork};
use sidestep_forwarder::policy::Transport;
use sidestep_forwarder::ports::{Entry, Origin, Publication};
use tokio::sync::{Mutex, Notify};
use tokio::time::{MissedTickBehavior, interval};

use crate::publish;

use super::listening::Listening;
use super::ports::{Ports, Refused};

/// Between two looks: a program that has just begun to listen is used by people.
const PERIOD: Duration = Duration::from_millis(500);
/// A port that was asked for stays this long without being seen to listen: what listens may have been asked before.
const GRACE: Duration = Duration::from_secs(2);
/// Ports at once: more than any workspace's services, and far from all of the host's.
const PORTS_MAX: usize = 128;
/// Ports below are the host's own services, whatever net.ipv4.ip_unprivileged_port_start says.
const FIRST: u16 = 1024;

pub struct Auto {
    /// The host's address; None: all of them.
    host: Option<IpAddr>,
    network: VirtualNetwork,
    /// Of the workspace.
    listening: Arc<Listening>,
    ports: Arc<Ports>,
    /// None: it is not known yet what a predecessor has published.
    found: Mutex<Option<Found>>,
    listened: Notify,
}

/// What has been made of the ports found.
#[derive(Default)]
struct Found {
    published: BTreeMap<u16, Published>,
    /// Published no more, and still somebody's on the host.
    held: BTreeSet<u16>,
    /// Not to be had, or published otherwise.
    skipped: BTreeSet<u16>,
}

struct Published {
    number: u64,
    since: Instant,
}

impl Auto {
    /// Begins to look, in the event loop of the caller. `listening`: of the workspace.
    pub fn start(host: Option<IpAddr>, network: VirtualNetwork, listening: Listening, ports: Arc<Ports>) -> Arc<Self> {
        let (found, listened) = (Mutex::default(), Notify::new());
        let auto = Arc::new(Self { host, network, listening: Arc::new(listening), ports, found, listened });
        tokio::spawn(Arc::clone(&auto).run());
        auto
    }

    /// Something inside has begun to listen.
    pub fn look_now(&self) {
        self.listened.notify_one();
    }

    /// For as long as the event loop runs.
    async fn run(self: Arc<Self>) {
        *self.found.lock().await = Some(self.inherited().await);
        let mut tick = interval(PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.listened.notified() => {}
            }
            let listening = Arc::clone(&self.listening);
            match tokio::task::spawn_blocking(move || listening.addresses()).await {
                Ok(Ok(addresses)) => {
                    let wanted = wanted(&addresses, &self.network);
                    self.withdraw(&wanted).await;
                    if let Some(found) = &mut *self.found.lock().await {
                        self.look(found, &wanted).await;
                    }
                }
                Ok(Err(error)) => tracing::debug!("what listens inside: {error}"),
                Err(_) => return,
            }
        }
    }

    /// What a supervisor before this one has published.
    async fn inherited(&self) -> Found {
        let autos = self.ports.inherited().await.into_iter().filter(|entry| entry.origin == Origin::Auto);
        let published = |entry: Entry| Published { number: entry.number, since: Instant::now() };
        let published = autos.map(|entry| (entry.publication.host_port, published(entry))).collect();
        Found { published, ..Found::default() }
    }

    async fn look(&self, found: &mut Found, wanted: &BTreeMap<u16, Option<IpAddr>>) {
        found.skipped.retain(|port| wanted.contains_key(port));
        for (&port, &guest) in wanted {
            if found.published.contains_key(&port) || found.skipped.contains(&port) {
                continue;
            }
            if !found.has_room_for(port) {
                tracing::debug!("port {port} is not published: {PORTS_MAX} are");
                continue;
            }
            match self.publish(port, guest).await {
                Ok(Some(number)) => {
                    found.add(port, number);
                    tracing::info!("port {port} of the workspace is published");
                }
                Ok(None) => drop(found.skipped.insert(port)),
                Err(error) => {
                    tracing::warn!("--publish-auto: {error}");
                    found.skipped.insert(port);
                }
            }
        }
    }

    /// Publishes no more what nobody listens at. A program that is about to listen does not wait until each is gone.
    async fn withdraw(&self, wanted: &BTreeMap<u16, Option<IpAddr>>) {
        let over = self.found.lock().await.as_mut().map(|found| {
            found.held.retain(|&port| !self.is_free(port));
            found.over(wanted)
        });
        for (port, number) in over.unwrap_or_default() {
            match self.ports.remove(number).await {
                // Somebody may have removed it.
                Ok(()) | Err(Refused::Unknown(_)) => {
                    if let Some(found) = &mut *self.found.lock().await {
                        found.published.remove(&port);
                        if !self.is_free(port) {
                            found.held.insert(port);
                        }
                    }
                }
                // A program that has come to listen there since, say: the next look tells.
                Err(error) => tracing::debug!("--publish-auto: {error}"),
            }
        }
    }

    /// Publishes a port at which a program is about to listen, at every address. What is not to be had is told when it is
    /// seen to listen.
    pub async fn ahead(&self, port: u16) {
        let mut found = self.found.lock().await;
        let Some(found) = &mut *found else { return };
        let is_known = found.published.contains_key(&port) || found.skipped.contains(&port);
        if port < FIRST || is_known || !found.has_room_for(port) {
            return;
        }
        match self.publish(port, None).await {
            Ok(Some(number)) => found.add(port, number),
            Ok(None) => {}
            Err(error) => tracing::debug!("--publish-auto: {error}"),
        }
    }

    /// None: it is published otherwise.
    async fn publish(&self, port: u16, guest: Option<IpAddr>) -> Result<Option<u64>, Refused> {
        let is_it =
            |entry: &Entry| entry.publication.transport == Transport::Tcp && entry.publication.host_port == port;
        if self.ports.list().await?.iter().any(is_it) {
            return Ok(None);
        }
        let added = self.ports.add(Origin::Auto, vec![self.publication(port, guest)]).await?;
        Ok(added.first().map(|entry| entry.number))
    }

    fn is_free(&self, port: u16) -> bool {
        publish::is_free(&self.publication(port, None))
    }

    fn publication(&self, port: u16, guest: Option<IpAddr>) -> Publication {
        Publication { transport: Transport::Tcp, host: self.host, host_port: port, guest, guest_port: port }
    }
}

impl Found {
    fn has_room_for(&self, port: u16) -> bool {
        self.held.contains(&port) || self.published.len() + self.held.len() < PORTS_MAX
    }

    /// It counts once: a server that is started again comes to a port that its own connections have held.
    fn add(&mut self, port: u16, number: u64) {
        self.held.remove(&port);
        self.published.insert(port, Published { number, since: Instant::now() });
    }

    /// What nobody listens at, with the numbers.
    fn over(&self, wanted: &BTreeMap<u16, Option<IpAddr>>) -> Vec<(u16, u64)> {
        let is_over = |port, published: &Published| !wanted.contains_key(port) && published.since.elapsed() >= GRACE;
        let over = self.published.iter().filter(|(port, published)| is_over(port, published));
        over.map(|(&port, published)| (port, published.number)).collect()
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
    use crate::channel::Channel;
    use crate::publish::Sharing;
    use crate::supervisor::link::Link;
    use crate::sys::socket;

    #[test]
    fn a_port_that_cannot_be_withdrawn_now_is_not_forgotten() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            // Nobody answers at the other end.
            let (link, _forwarder) = Channel::pair().unwrap();
            let ports = Ports::start(Link::start(link.into(), None, Some(0)).unwrap(), Sharing::No, None);
            let netlink = socket::new(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_SOCK_DIAG).unwrap();
            let network = VirtualNetwork::new(Ipv4Subnet::DEFAULT, None, 1500);
            let auto = Auto::start(None, network, Listening::new(netlink).unwrap(), ports);
            let since = Instant::now().checked_sub(GRACE).unwrap();
            let found = Found { published: [(3000, Published { number: 7, since })].into(), ..Found::default() };
            *auto.found.lock().await = Some(found);
            auto.withdraw(&BTreeMap::new()).await;
            assert!(auto.found.lock().await.as_ref().unwrap().published.contains_key(&3000));
        });
    }

    #[test]
    fn a_port_that_is_published_again_counts_once() {
        let mut found = Found { held: (FIRST..).take(PORTS_MAX).collect(), ..Found::default() };
        for number in 1..3 {
            assert!(found.has_room_for(FIRST));
            assert!(!found.has_room_for(FIRST - 1));
            found.add(FIRST, number);
            assert_eq!((found.published.len(), found.held.len()), (1, PORTS_MAX - 1));
            found.published.clear();
            found.held.insert(FIRST);
        }
    }

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
