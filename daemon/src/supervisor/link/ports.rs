//! Published ports and shadows on the [`Link`], as each forwarder is to have them. Whichever of forwarder and supervisor dies
//! has the sockets from the other; where both do at once, they are lost, but for the monitor's.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use sidestep_forwarder::link::{ToForwarder, ToSupervisor};
use sidestep_forwarder::policy::Transport;
use sidestep_forwarder::ports::{Entry, MAX_PORTS, Origin, Shadow};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, oneshot};
use tokio::time::timeout;

use super::{ANSWER_WITHIN, Link, Silent, Waiting};

/// A forwarder is asked so often whether it has closed a port; it has by the second time.
const WITHDRAWN_LOOKS: usize = 8;

#[derive(Clone)]
struct Port {
    entry: Entry,
    /// None: the forwarder alone has it.
    socket: Option<Arc<OwnedFd>>,
    /// Who shares it, or removes it.
    sharing: Arc<RwLock<()>>,
}

/// While it is there, the port is not removed.
pub type Shared = OwnedRwLockReadGuard<()>;
/// While it is there, nobody comes to share the port.
pub type Alone = OwnedRwLockWriteGuard<()>;

/// All published ports, and the shadows of programs that share them.
#[derive(Default)]
pub struct Ports {
    published: BTreeMap<u64, Port>,
    shadows: BTreeMap<u64, (Shadow, Arc<OwnedFd>)>,
    /// How many shadows there have been.
    added: u64,
    /// What the forwarder is to be told of ports and shadows that are no more. Each stays until it is on its way: who goes
    /// on without it would keep the port.
    ended: VecDeque<ToForwarder>,
}

impl Link {
    /// Has this forwarder and every later one serve the port.
    pub fn publish(&self, entry: Entry, socket: OwnedFd) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.published.insert(entry.number, Port { entry, socket: Some(Arc::new(socket)), sharing: Arc::default() });
        self.news.notify_one();
    }

    /// Ends that, for who is [`Self::alone`] with it.
    pub fn unpublish(&self, number: u64) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.published.remove(&number);
        ports.ended.push_back(ToForwarder::Unpublish { number });
        self.news.notify_one();
    }

    /// For a program that is about to listen at a port, and until it has its shadow. None: the port is being removed.
    pub fn share(&self, number: u64) -> Option<(Arc<OwnedFd>, Shared)> {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let port = ports.published.get(&number)?;
        Some((port.socket.clone()?, Arc::clone(&port.sharing).try_read_owned().ok()?))
    }

    /// For who is about to remove a port, and until it has. None: a program shares it.
    pub fn alone(&self, number: u64) -> Option<Alone> {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let alone = Arc::clone(&ports.published.get(&number)?.sharing).try_write_owned().ok()?;
        (!ports.shadows.values().any(|(shadow, _)| shadow.port == number)).then_some(alone)
    }

    /// Waits until the forwarder has closed a port, so that somebody may have it. What it is told and what it is asked are
    /// sent by different tasks, in either order; one that does not answer is about to be gone, with all its sockets.
    pub async fn has_withdrawn(&self, number: u64) {
        for _ in 0..WITHDRAWN_LOOKS {
            match self.ask(|id| ToForwarder::Ports { id, from: number }).await {
                Ok(ToSupervisor::Ports { ports, .. }) if ports.first().is_some_and(|port| port.number == number) => {}
                _ => return,
            }
        }
    }

    /// Takes over the ports that a supervisor before this one has published; gives all that there are.
    pub async fn recover_ports(&self) -> Result<Vec<Entry>, Silent> {
        let (mut entries, mut from) = (Vec::new(), 0);
        while entries.len() < MAX_PORTS {
            let answer = self.ask_with(|id| ToForwarder::Ports { id, from }).await?;
            let (ToSupervisor::Ports { ports, .. }, sockets) = answer else { return Err(Silent) };
            let Some(last) = ports.last() else { break };
            // Whatever a forwarder that was taken over says.
            from = last.number.saturating_add(1);
            for (&entry, socket) in ports.iter().zip(sockets) {
                entries.push(entry);
                self.publish(entry, socket);
            }
        }
        self.recover_shadows().await?;
        Ok(entries)
    }

    async fn recover_shadows(&self) -> Result<(), Silent> {
        let mut from = 0;
        for _ in 0..MAX_PORTS {
            let answer = self.ask_with(|id| ToForwarder::Shadows { id, from }).await?;
            let (ToSupervisor::Shadows { shadows, .. }, sockets) = answer else { return Err(Silent) };
            let Some(last) = shadows.last() else { break };
            from = last.program.saturating_add(1);
            for (&shadow, socket) in shadows.iter().zip(sockets) {
                self.add_shadow(shadow, socket);
            }
        }
        Ok(())
    }

    /// Published TCP ports that lead to this port of the workspace, the first published first.
    pub fn leading_to(&self, guest_port: u16) -> Vec<Entry> {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let leads = |entry: &Entry| {
            let publication = &entry.publication;
            publication.transport == Transport::Tcp
                && publication.guest.is_none()
                && publication.guest_port == guest_port
        };
        ports.published.values().map(|port| port.entry).filter(leads).collect()
    }

    /// Has this forwarder and every later one relay what comes to the shadow; gives what [`Self::has_told`] is asked with.
    pub fn add_shadow(&self, shadow: Shadow, socket: OwnedFd) -> u64 {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.shadows.insert(shadow.program, (shadow, Arc::new(socket)));
        ports.added += 1;
        self.news.notify_one();
        ports.added
    }

    /// Waits until a shadow is on its way to the forwarder: from then on a successor of ours has it from there. A forwarder
    /// that stands still may have left no room; it is not waited for.
    pub async fn has_told(&self, added: u64) {
        let mut told = self.told.subscribe();
        let _ = timeout(ANSWER_WITHIN, told.wait_for(|&told| told >= added)).await;
    }

    /// Our socket of a published port.
    pub fn socket_of(&self, number: u64) -> Option<Arc<OwnedFd>> {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.published.get(&number)?.socket.clone()
    }

    /// The shadows at this port of the workspace, with their sockets.
    pub fn shadows_at(&self, guest_port: u16) -> Vec<(Shadow, Arc<OwnedFd>)> {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.shadows.values().filter(|(shadow, _)| shadow.guest_port == guest_port).cloned().collect()
    }

    /// All shadows that there are.
    pub fn shadows(&self) -> Vec<Shadow> {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.shadows.values().map(|(shadow, _)| *shadow).collect()
    }

    /// Closes a shadow. When the forwarder has answered, its port inside is free; one that does not answer is gone, or
    /// will hear of it.
    pub async fn remove_shadow(&self, program: u64) -> Result<(), Silent> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (to, answer) = oneshot::channel();
        let _waiting = Waiting::new(&self.waiting, id, to);
        {
            let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
            if ports.shadows.remove(&program).is_none() {
                return Ok(());
            }
            ports.ended.push_back(ToForwarder::Unshadow { id, program });
            self.news.notify_one();
        }
        match timeout(ANSWER_WITHIN, answer).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Silent),
        }
    }

    /// A forwarder that has a port already takes no notice.
    pub(super) async fn tell_ports(&self) -> anyhow::Result<()> {
        let (published, shadows, added) = loop {
            let ended = {
                let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(ended) = ports.ended.front().cloned() else {
                    // Those of the start are the monitor's to tell.
                    let published = ports.published.values().filter(|port| port.entry.origin != Origin::Start);
                    let published: Vec<_> = published.cloned().collect();
                    break (published, ports.shadows.values().cloned().collect::<Vec<_>>(), ports.added);
                };
                ended
            };
            self.send(&ended, &[]).await?;
            self.ports.lock().unwrap_or_else(PoisonError::into_inner).ended.pop_front();
        };
        for Port { entry, socket, .. } in published {
            let Some(socket) = socket else { continue };
            self.send(&ToForwarder::Publish(entry), &[socket.as_fd()]).await?;
            if !self.has_successors {
                self.has_handed_over(entry.number);
            }
        }
        for (shadow, socket) in shadows {
            self.send(&ToForwarder::Shadow(shadow), &[socket.as_fd()]).await?;
        }
        self.told.send_replace(added);
        Ok(())
    }

    fn has_handed_over(&self, number: u64) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(port) = ports.published.get_mut(&number) {
            port.socket = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sidestep_forwarder::ports::Publication;

    use super::super::tests::with_link;
    use super::*;
    use crate::channel::{Channel, Received};

    /// Whichever comes first, a port and a share of it do not miss one another.
    #[test]
    fn a_port_stays_while_a_program_has_a_share() {
        with_link(async |link, _forwarder| {
            let (host_port, guest_port) = (8080, 80);
            let publication = Publication { transport: Transport::Tcp, host: None, host_port, guest: None, guest_port };
            let shadow = Shadow { program: 1, port: 7, guest_port, to: ([127, 0, 0, 1], host_port).into() };
            let socket = || rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
            assert!(link.share(7).is_none());
            link.publish(Entry { number: 7, origin: Origin::Added, publication }, socket());
            let share = link.share(7).unwrap();
            assert!(link.alone(7).is_none());
            link.add_shadow(shadow, socket());
            drop(share);
            assert!(link.alone(7).is_none());
            let _ = timeout(Duration::ZERO, link.remove_shadow(1)).await;
            let _alone = link.alone(7).unwrap();
            assert!(link.share(7).is_none());
        });
    }

    /// Whoever dies after that, the message is there.
    #[test]
    fn a_shadow_is_told_of_before_anybody_relies_on_it() {
        with_link(async |link, forwarder| {
            let shadow = Shadow { program: 7, port: 1, guest_port: 80, to: ([127, 0, 0, 1], 8080).into() };
            let added = link.add_shadow(shadow, Channel::pair().unwrap().0.into());
            link.has_told(added).await;
            let heard = forwarder.receive(Some(Duration::ZERO)).unwrap();
            assert!(
                matches!(heard, Received::Message(ToForwarder::Shadow(told), fds) if told == shadow && fds.len() == 1)
            );
        });
    }

    /// A forwarder that goes on without it would keep the port.
    #[test]
    fn an_end_that_could_not_be_told_is_not_forgotten() {
        with_link(async |link, forwarder| {
            tokio::time::pause();
            let shadow = Shadow { program: 7, port: 1, guest_port: 80, to: ([127, 0, 0, 1], 8080).into() };
            link.add_shadow(shadow, Channel::pair().unwrap().0.into());
            // From now on messages are refused.
            rustix::net::shutdown(&forwarder, rustix::net::Shutdown::Read).unwrap();
            assert_eq!(link.remove_shadow(7).await, Err(Silent));
            let ended = link.ports.lock().unwrap().ended.clone();
            assert!(matches!(ended.front(), Some(ToForwarder::Unshadow { program: 7, .. })), "{ended:?}");
        });
    }
}
