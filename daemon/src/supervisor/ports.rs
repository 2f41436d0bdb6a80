//! Ports published while the workspace runs, whoever asks for them: `sidestep ports` or [`super::auto`].
//!
//! The forwarder has a copy of each socket, and so has the [`Link`]: whichever process dies, its successor has them from
//! the other. Those of `--publish` are the monitor's, and stay for as long as the workspace runs.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use sidestep_forwarder::policy::Transport;
use sidestep_forwarder::ports::{Entry, MAX_PORTS, Origin, Publication};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, MutexGuard};

use crate::publish::{self, Sharing};

use super::link::{Link, Silent};

/// Why a port was not published, or still is.
#[derive(Debug, Error)]
pub enum Refused {
    #[error("no published port has the number {0}")]
    Unknown(u64),
    #[error("port {0} was given to `sidestep run`, and stays for as long as it runs")]
    Lasting(u16),
    #[error("a program in the workspace listens at port {0} itself (--bypass): it goes when that one stops listening")]
    Shared(u16),
    #[error("{MAX_PORTS} ports can be published at a time")]
    Full,
    #[error(transparent)]
    Silent(#[from] Silent),
    #[error("{0:#}")]
    Taken(anyhow::Error),
}

#[derive(Default)]
struct Known {
    entries: BTreeMap<u64, Entry>,
    next: u64,
}

pub struct Ports {
    link: Arc<Link>,
    sharing: Sharing,
    /// None: not known yet.
    known: Mutex<Option<Known>>,
}

impl Ports {
    /// Takes over what a predecessor has published, in the event loop of the caller.
    pub fn start(link: Arc<Link>, sharing: Sharing) -> Arc<Self> {
        let ports = Arc::new(Self { link, sharing, known: Mutex::new(None) });
        let taking_over = Arc::clone(&ports);
        tokio::spawn(async move {
            // A forwarder that does not answer is about to be started again.
            while taking_over.list().await.is_err() {}
        });
        ports
    }

    pub async fn list(&self) -> Result<Vec<Entry>, Silent> {
        let known = self.known().await?;
        Ok(known.iter().flat_map(|known| known.entries.values().copied()).collect())
    }

    /// Those that lead to this TCP port of the workspace, with our sockets; none where the forwarder does not say.
    pub fn leading_to(&self, guest_port: u16, event_loop: &Handle) -> Vec<(Entry, Arc<OwnedFd>)> {
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
        let mut known = self.known().await?;
        let Some(known) = &mut *known else { return Err(Silent.into()) };
        if known.entries.len() + publications.len() > MAX_PORTS {
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
        let mut known = self.known().await?;
        let Some(known) = &mut *known else { return Err(Silent.into()) };
        match known.entries.get(&number) {
            None => return Err(Refused::Unknown(number)),
            Some(entry) if entry.origin == Origin::Start => {
                return Err(Refused::Lasting(entry.publication.host_port));
            }
            Some(entry) if !self.link.unpublish(number) => {
                return Err(Refused::Shared(entry.publication.host_port));
            }
            Some(_) => drop(known.entries.remove(&number)),
        }
        self.link.has_withdrawn(number).await;
        Ok(())
    }

    async fn known(&self) -> Result<MutexGuard<'_, Option<Known>>, Silent> {
        let mut known = self.known.lock().await;
        if known.is_none() {
            let entries = self.link.recover_ports().await?;
            let next = entries.iter().map(|entry| entry.number + 1).max().unwrap_or(1);
            *known = Some(Known { entries: entries.into_iter().map(|entry| (entry.number, entry)).collect(), next });
        }
        Ok(known)
    }
}
