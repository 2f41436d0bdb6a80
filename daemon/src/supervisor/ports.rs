//! Ports published while the workspace runs, whoever asks for them: `sidestep ports` or [`super::auto`].
//!
//! The forwarder has a copy of each socket, and so has the [`Link`]: whichever process dies, its successor has them from
//! the other. Those of `--publish` are the monitor's as well, which closes its copy first when one is removed: no forwarder
//! that comes later has it.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sidestep_forwarder::policy::Transport;
use sidestep_forwarder::ports::{Entry, MAX_PORTS, Origin, Publication};
use thiserror::Error;
use tokio::io::Interest;
use tokio::runtime::Handle;
use tokio::sync::{self, SetOnce};
use tokio::time::{Instant, timeout, timeout_at};

use crate::channel::Channel;
use crate::monitor::worker::ToMonitor;
use crate::publish::{self, Sharing};
use crate::sys::readiness;

use super::link::{ANSWER_WITHIN, Link, Silent};

/// How long a supervisor that begins waits for what a predecessor had: for a forwarder that is started again on a busy
/// machine, and less than a call of the workspace may take ([`super::active::STUCK_AFTER`]).
const PATIENCE: Duration = Duration::from_secs(4);

/// Why a port was not published, or still is.
#[derive(Debug, Error)]
pub enum Refused {
    #[error("no published port has the number {0}")]
    Unknown(u64),
    #[error("a program in the workspace listens at port {0} itself (--bypass): it goes when that one stops listening")]
    Shared(u16),
    #[error("{MAX_PORTS} ports can be published at a time")]
    Full,
    #[error("`sidestep run` does not answer, which has port {0}, too: it may be stopped (^Z)")]
    Monitor(u16),
    #[error(transparent)]
    Silent(#[from] Silent),
    #[error("{0:#}")]
    Taken(anyhow::Error),
}

struct Known {
    entries: BTreeMap<u64, Entry>,
    next: u64,
}

pub struct Ports {
    link: Arc<Link>,
    sharing: Sharing,
    /// None: nobody else has any port.
    monitor: Option<Channel>,
    /// Set when the forwarder has said what a predecessor had. Nothing is waited for under the lock: calls of the workspace
    /// wait for it.
    known: SetOnce<Mutex<Known>>,
    /// Until when that is waited for, however often: a call of the workspace may do so more than once.
    patience: Instant,
    /// Ports are removed one at a time.
    removing: sync::Mutex<()>,
}

impl Ports {
    /// Takes over what a predecessor has published, in the event loop of the caller.
    pub fn start(link: Arc<Link>, sharing: Sharing, monitor: Option<Channel>) -> Arc<Self> {
        let (known, patience, removing) = (SetOnce::new(), Instant::now() + PATIENCE, sync::Mutex::default());
        let ports = Arc::new(Self { link, sharing, monitor, known, patience, removing });
        let taking_over = Arc::clone(&ports);
        tokio::spawn(async move {
            // A forwarder that does not answer is about to be started again.
            let entries = loop {
                if let Ok(entries) = taking_over.link.recover_ports().await {
                    break entries;
                }
            };
            let _ = taking_over.known.set(Mutex::new(Known::of(entries)));
        });
        ports
    }

    /// What a predecessor has published, however long the forwarder takes to say.
    pub async fn inherited(&self) -> Vec<Entry> {
        locked(self.known.wait().await).entries.values().copied().collect()
    }

    pub async fn list(&self) -> Result<Vec<Entry>, Silent> {
        Ok(locked(self.known().await?).entries.values().copied().collect())
    }

    /// Waits until what a predecessor had is known, its shadows, too, where the forwarder says.
    pub async fn are_known(&self) {
        let _ = self.known().await;
    }

    /// Those that lead to this TCP port of the workspace; none where the forwarder does not say.
    pub fn leading_to(&self, guest_port: u16, event_loop: &Handle) -> Vec<Entry> {
        if event_loop.block_on(self.known()).is_err() {
            return Vec::new();
        }
        self.link.leading_to(guest_port)
    }

    /// TCP ports published at this port of the host.
    pub fn at(&self, host_port: u16, event_loop: &Handle) -> Vec<Entry> {
        let entries = event_loop.block_on(self.list()).unwrap_or_default().into_iter();
        let is_it =
            |entry: &Entry| entry.publication.transport == Transport::Tcp && entry.publication.host_port == host_port;
        entries.filter(is_it).collect()
    }

    /// Publishes all of them, or none.
    pub async fn add(&self, origin: Origin, publications: Vec<Publication>) -> Result<Vec<Entry>, Refused> {
        let mut known = locked(self.known().await?);
        if known.entries.len() + publications.len() > MAX_PORTS {
            return Err(Refused::Full);
        }
        // A forwarder that was taken over says which numbers it has.
        if known.next > u64::MAX - MAX_PORTS as u64 {
            return Err(Refused::Full);
        }
        let numbered = (known.next..).zip(publications);
        let made =
            numbered.map(|(number, publication)| publish::listen(Entry { number, origin, publication }, self.sharing));
        let made: Vec<_> = made.collect::<Result<_, _>>().map_err(Refused::Taken)?;
        let entries: Vec<_> = made.iter().map(|published| published.entry).collect();
        for published in made {
            let entry = published.entry;
            known.next = entry.number + 1;
            known.entries.insert(entry.number, entry);
            self.link.publish(entry, published.socket);
        }
        Ok(entries)
    }

    /// Publishes a port no more; its clients stay connected. The port is free by then, if the forwarder answers.
    pub async fn remove(&self, number: u64) -> Result<(), Refused> {
        let known = self.known().await?;
        let _turn = self.removing.lock().await;
        let &entry = locked(known).entries.get(&number).ok_or(Refused::Unknown(number))?;
        let port = entry.publication.host_port;
        let _alone = self.link.alone(number).ok_or(Refused::Shared(port))?;
        if entry.origin == Origin::Start {
            self.taken_from_monitor(number).await.map_err(|_| Refused::Monitor(port))?;
        }
        locked(known).entries.remove(&number);
        self.link.unpublish(number);
        self.link.has_withdrawn(number).await;
        Ok(())
    }

    /// Has the monitor close its copy of a socket, and waits until it has.
    async fn taken_from_monitor(&self, number: u64) -> anyhow::Result<()> {
        let Some(monitor) = &self.monitor else { return Ok(()) };
        let (closed, theirs) = Channel::pair()?;
        anyhow::ensure!(monitor.try_send(&ToMonitor::Unpublish { number }, &[theirs.as_fd()])?, "no room");
        drop(theirs);
        let closed = readiness::register(closed.into(), Interest::READABLE)?;
        timeout(ANSWER_WITHIN, closed.readable()).await??.retain_ready();
        Ok(())
    }

    async fn known(&self) -> Result<&Mutex<Known>, Silent> {
        timeout_at(self.patience, self.known.wait()).await.map_err(|_| Silent)
    }
}

impl Known {
    fn of(entries: Vec<Entry>) -> Self {
        let next = entries.iter().map(|entry| entry.number.saturating_add(1)).max().unwrap_or(1);
        Self { entries: entries.into_iter().map(|entry| (entry.number, entry)).collect(), next }
    }
}

fn locked(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use sidestep_forwarder::link::{ToForwarder, ToSupervisor};

    use super::*;
    use crate::supervisor::link::tests::heard;

    /// Others wait for whoever holds it, calls of the workspace among them.
    #[test]
    fn a_port_that_is_being_removed_keeps_nobody() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (link, forwarder) = Channel::pair().unwrap();
            let ports = Ports::start(Link::start(link.into(), None, Some(0)).unwrap(), Sharing::No, None);
            let removing = tokio::spawn({
                let ports = Arc::clone(&ports);
                async move {
                    let (host, guest_port) = (Some([127, 0, 0, 1].into()), 80);
                    let it = Publication { transport: Transport::Tcp, host, host_port: 0, guest: None, guest_port };
                    let added = ports.add(Origin::Added, vec![it]).await.unwrap();
                    ports.remove(added[0].number).await
                }
            });
            let mut is_begin = true;
            let unanswered = loop {
                match heard(&forwarder).await {
                    ToForwarder::Ports { id, .. } if is_begin => {
                        is_begin = false;
                        forwarder.send(&ToSupervisor::Ports { id, ports: Vec::new() }, &[]).unwrap();
                    }
                    ToForwarder::Shadows { id, .. } => {
                        forwarder.send(&ToSupervisor::Shadows { id, shadows: Vec::new() }, &[]).unwrap();
                    }
                    ToForwarder::Ports { id, .. } => break id,
                    _ => {}
                }
            };
            assert!(!removing.is_finished());
            assert_eq!(ports.list().await, Ok(Vec::new()));
            assert!(!removing.is_finished());
            tokio::time::resume();
            forwarder.send(&ToSupervisor::Ports { id: unanswered, ports: Vec::new() }, &[]).unwrap();
            assert!(removing.await.unwrap().is_ok());
        });
    }
}
