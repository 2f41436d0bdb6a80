//! The supervisor's end of the link to the forwarder (see [`sidestep_forwarder::link`]): what the forwarder is to know is
//! kept here and said to each forwarder that begins; what it is asked has a number, a time limit, and company of at most
//! [`REQUESTS_MAX`] others, so that the link cannot fill.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use sidestep_forwarder::counters::Counters;
use sidestep_forwarder::link::{ToForwarder, ToSupervisor};
use sidestep_forwarder::list::Listed;
use sidestep_forwarder::policy::Transport;
use sidestep_forwarder::ports::{Entry, MAX_PORTS, Origin, Shadow};
use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, Semaphore, oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::channel::{Channel, Received};
use crate::sys::readiness;

use super::inside::Inside;

/// How long the forwarder may take to answer; one that is being started again takes some 100 ms.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Requests under way at a time: their answers, of up to 16 KB each, have room in the link (net.core.wmem_default).
const REQUESTS_MAX: usize = 4;

/// After a message that the kernel did not take (ENOBUFS, ETOOMANYREFS) all is told again.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// A forwarder is asked so often whether it has closed a port; it has by the second time.
const WITHDRAWN_LOOKS: usize = 8;

/// With its descriptors.
type Answer = (ToSupervisor, Vec<OwnedFd>);
/// Flows in one listing.
pub const FLOWS_MAX: usize = 1000;
/// The forwarder has room for 51,000 flows, 48 a page.
const PAGES_MAX: usize = 1200;

/// The largest of the forwarder's flows, and how many there are.
#[derive(Debug, Serialize, Deserialize)]
pub struct Flows {
    pub total: usize,
    pub flows: Vec<Listed>,
}

/// The forwarder did not answer in time: it is busy, stopped or about to be started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the forwarder does not answer")]
pub struct Silent;

#[derive(Clone)]
struct Port {
    entry: Entry,
    socket: Arc<OwnedFd>,
    /// Who shares it, or removes it.
    sharing: Arc<RwLock<()>>,
}

/// While it is there, the port is not removed.
pub type Shared = OwnedRwLockReadGuard<()>;
/// While it is there, nobody comes to share the port.
pub type Alone = OwnedRwLockWriteGuard<()>;

/// All published ports, and the shadows of programs that share them. Whichever of forwarder and supervisor dies has the
/// sockets from the other; where both do at once, they are lost, but for the monitor's.
#[derive(Default)]
struct Ports {
    published: BTreeMap<u64, Port>,
    shadows: BTreeMap<u64, (Shadow, Arc<OwnedFd>)>,
    /// How many shadows there have been.
    added: u64,
    /// What the forwarder is to be told of ports and shadows that are no more. Each stays until it is on its way: who goes
    /// on without it would keep the port.
    ended: VecDeque<ToForwarder>,
}

pub struct Link {
    channel: Channel,
    watched: AsyncFd<OwnedFd>,
    /// Set once something is to be told, or told again.
    news: Notify,
    /// How many of the shadows the link has had.
    told: watch::Sender<u64>,
    /// The host's resolvers and its search list.
    resolvers: Mutex<Option<(Vec<SocketAddr>, Vec<String>)>>,
    ports: Mutex<Ports>,
    requests: Semaphore,
    listing: Semaphore,
    next_id: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    /// Where the forwarder's sockets inside come from.
    inside: Option<Arc<Inside>>,
    /// The forwarder asks for those of one family once at a time.
    supplies: Semaphore,
    forwarder_restarts: AtomicU64,
}

impl Link {
    /// Begins to listen, in the event loop of the caller.
    pub fn start(channel: OwnedFd, inside: Option<Inside>, forwarder_restarts: u64) -> anyhow::Result<Arc<Self>> {
        let channel = Channel::from(channel);
        let watched = readiness::register(channel.try_clone()?.into(), Interest::READABLE | Interest::WRITABLE)
            .context("cannot watch the channel to the forwarder")?;
        let link = Arc::new(Self {
            channel,
            watched,
            news: Notify::new(),
            told: watch::Sender::default(),
            resolvers: Mutex::default(),
            ports: Mutex::default(),
            requests: Semaphore::new(REQUESTS_MAX),
            listing: Semaphore::new(1),
            // A predecessor's answers may still come.
            next_id: AtomicU64::new(RandomState::new().hash_one(std::process::id())),
            waiting: Mutex::default(),
            inside: inside.map(Arc::new),
            supplies: Semaphore::new(2),
            forwarder_restarts: AtomicU64::new(forwarder_restarts),
        });
        tokio::spawn(Arc::clone(&link).listen());
        tokio::spawn(Arc::clone(&link).tell());
        Ok(link)
    }

    /// The resolvers that this forwarder and every later one is to ask, in order, and the search list they tell of.
    pub fn set_resolvers(&self, resolvers: Vec<SocketAddr>, search: Vec<String>) {
        *self.resolvers.lock().unwrap_or_else(PoisonError::into_inner) = Some((resolvers, search));
        self.news.notify_one();
    }

    /// Has this forwarder and every later one serve the port.
    pub fn publish(&self, entry: Entry, socket: OwnedFd) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.published.insert(entry.number, Port { entry, socket: Arc::new(socket), sharing: Arc::default() });
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
        Some((Arc::clone(&port.socket), Arc::clone(&port.sharing).try_read_owned().ok()?))
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
            from = last.number + 1;
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
        ports.published.get(&number).map(|port| Arc::clone(&port.socket))
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

    /// How often the forwarder has died.
    pub fn forwarder_restarts(&self) -> u64 {
        self.forwarder_restarts.load(Ordering::Relaxed)
    }

    /// What the forwarder has counted.
    pub async fn counters(&self) -> Result<Counters, Silent> {
        match self.ask(|id| ToForwarder::Counters { id }).await? {
            ToSupervisor::Counters { counters, .. } => Ok(*counters),
            _ => Err(Silent),
        }
    }

    /// The largest flows, at most [`FLOWS_MAX`]. Pages are asked for one by one, for one listing at a time.
    pub async fn flows(&self) -> Result<Flows, Silent> {
        let _turn = self.listing.acquire().await.map_err(|_| Silent)?;
        let (mut listed, mut total, mut from) = (Vec::new(), 0, None);
        // A forwarder that was taken over could go on for ever.
        for _ in 0..PAGES_MAX {
            let answer = self.ask(|id| ToForwarder::Flows { id, from }).await?;
            let ToSupervisor::Flows { flows, next, .. } = answer else { return Err(Silent) };
            total += flows.len();
            listed.extend(flows);
            if listed.len() >= 2 * FLOWS_MAX {
                keep_largest(&mut listed);
            }
            from = next;
            if from.is_none() {
                break;
            }
        }
        keep_largest(&mut listed);
        Ok(Flows { total, flows: listed })
    }

    async fn ask(&self, request: impl FnOnce(u64) -> ToForwarder) -> Result<ToSupervisor, Silent> {
        self.ask_with(request).await.map(|(answer, _)| answer)
    }

    async fn ask_with(&self, request: impl FnOnce(u64) -> ToForwarder) -> Result<Answer, Silent> {
        let _turn = self.requests.acquire().await.map_err(|_| Silent)?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (to, answer) = oneshot::channel();
        let _waiting = Waiting::new(&self.waiting, id, to);
        let asked = async {
            self.send(&request(id), &[]).await.map_err(|_| Silent)?;
            answer.await.map_err(|_| Silent)
        };
        timeout(ANSWER_WITHIN, asked).await.unwrap_or(Err(Silent))
    }

    /// Waits for room: a forwarder that stands still may go on.
    async fn send(&self, message: &ToForwarder, fds: &[BorrowedFd<'_>]) -> anyhow::Result<()> {
        loop {
            let mut room = self.watched.writable().await?;
            if self.channel.try_send(message, fds)? {
                return Ok(());
            }
            room.clear_ready();
        }
    }

    async fn listen(self: Arc<Self>) {
        while let Ok(mut ready) = self.watched.readable().await {
            match self.channel.receive(Some(Duration::ZERO)) {
                Ok(Received::Message(message, fds)) => self.message(message, fds),
                Ok(Received::Timeout) => ready.clear_ready(),
                Ok(Received::Closed) => return,
                Err(error) => {
                    tracing::debug!("from the forwarder: {error:#}");
                    ready.clear_ready();
                }
            }
        }
    }

    fn message(self: &Arc<Self>, message: ToSupervisor, fds: Vec<OwnedFd>) {
        match message {
            ToSupervisor::Started { restarts } => {
                self.forwarder_restarts.fetch_max(restarts, Ordering::Relaxed);
                self.news.notify_one();
            }
            ToSupervisor::Sockets { ipv6 } => drop(tokio::spawn(Arc::clone(self).supply(ipv6))),
            ToSupervisor::Counters { id, .. }
            | ToSupervisor::Flows { id, .. }
            | ToSupervisor::Ports { id, .. }
            | ToSupervisor::Shadows { id, .. }
            | ToSupervisor::Unshadowed { id } => {
                // Nobody waits for what comes late.
                if let Some(to) = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id) {
                    let _ = to.send((message, fds));
                }
            }
        }
    }

    /// Has sockets made inside for the forwarder. What it does not get it asks for again.
    async fn supply(self: Arc<Self>, ipv6: bool) {
        let (Some(inside), Ok(_turn)) = (self.inside.clone(), self.supplies.try_acquire()) else { return };
        let made = tokio::task::spawn_blocking(move || inside.tcp_sockets(ipv6)).await;
        let sockets = match made {
            Ok(Ok(sockets)) => sockets,
            Ok(Err(error)) => {
                tracing::debug!("sockets for the forwarder: {error}");
                Vec::new()
            }
            Err(_) => return,
        };
        let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        if let Err(error) = self.send(&ToForwarder::Sockets { ipv6 }, &fds).await {
            tracing::debug!("to the forwarder: {error:#}");
        }
    }

    async fn tell(self: Arc<Self>) {
        loop {
            self.news.notified().await;
            let (resolvers, ports) = (self.tell_resolvers().await, self.tell_ports().await);
            if let Err(error) = resolvers.and(ports) {
                tracing::debug!("to the forwarder: {error:#}");
                sleep(AGAIN_AFTER).await;
                self.news.notify_one();
            }
        }
    }

    async fn tell_resolvers(&self) -> anyhow::Result<()> {
        let resolvers = self.resolvers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some((resolvers, search)) = resolvers else { return Ok(()) };
        self.send(&ToForwarder::Resolvers { resolvers, search }, &[]).await
    }

    /// A forwarder that has a port already takes no notice.
    async fn tell_ports(&self) -> anyhow::Result<()> {
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
            self.send(&ToForwarder::Publish(entry), &[socket.as_fd()]).await?;
        }
        for (shadow, socket) in shadows {
            self.send(&ToForwarder::Shadow(shadow), &[socket.as_fd()]).await?;
        }
        self.told.send_replace(added);
        Ok(())
    }
}

fn keep_largest(flows: &mut Vec<Listed>) {
    flows.sort_by_key(|flow| std::cmp::Reverse(flow.from_tap.saturating_add(flow.to_tap)));
    flows.truncate(FLOWS_MAX);
}

/// An answer somebody waits for, until it comes or they give up.
struct Waiting<'a> {
    all: &'a Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    id: u64,
}

impl<'a> Waiting<'a> {
    fn new(all: &'a Mutex<HashMap<u64, oneshot::Sender<Answer>>>, id: u64, to: oneshot::Sender<Answer>) -> Self {
        all.lock().unwrap_or_else(PoisonError::into_inner).insert(id, to);
        Self { all, id }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use sidestep_forwarder::ports::Publication;

    use super::*;

    fn with_link(test: impl AsyncFnOnce(Arc<Link>, Channel)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, theirs) = Channel::pair().unwrap();
            test(Link::start(ours.into(), None, 0).unwrap(), theirs).await;
        });
    }

    /// Lets the link's tasks run until the forwarder has a message.
    async fn heard(forwarder: &Channel) -> ToForwarder {
        loop {
            match forwarder.receive(Some(Duration::ZERO)).unwrap() {
                Received::Message(message, _) => return message,
                Received::Timeout => tokio::task::yield_now().await,
                Received::Closed => panic!("closed"),
            }
        }
    }

    fn answer(forwarder: &Channel, id: u64, queries: u64) {
        let mut counters = Box::new(Counters::default());
        counters.dns.queries = queries;
        forwarder.send(&ToSupervisor::Counters { id, counters }, &[]).unwrap();
    }

    #[test]
    fn each_forwarder_hears_of_the_resolvers() {
        with_link(async |link, forwarder| {
            let (resolvers, search) = (vec![SocketAddr::from(([192, 0, 2, 1], 53))], vec!["lab".to_owned()]);
            link.set_resolvers(resolvers.clone(), search.clone());
            let told = ToForwarder::Resolvers { resolvers, search };
            assert_eq!(heard(&forwarder).await, told);
            forwarder.send(&ToSupervisor::Started { restarts: 3 }, &[]).unwrap();
            assert_eq!(heard(&forwarder).await, told);
            assert_eq!(link.forwarder_restarts(), 3);
        });
    }

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

    #[test]
    fn what_the_kernel_did_not_take_is_told_again() {
        with_link(async |link, forwarder| {
            tokio::time::pause();
            let size = rustix::net::sockopt::socket_send_buffer_size(&link.channel).unwrap() / 2;
            rustix::net::sockopt::set_socket_send_buffer_size(&link.channel, 0).unwrap();
            link.set_resolvers(Vec::new(), vec!["x".repeat(8000)]);
            // EMSGSIZE.
            sleep(AGAIN_AFTER / 2).await;
            rustix::net::sockopt::set_socket_send_buffer_size(&link.channel, size).unwrap();
            tokio::time::resume();
            assert!(matches!(heard(&forwarder).await, ToForwarder::Resolvers { .. }));
        });
    }

    #[test]
    fn answers_to_others_are_nobodys() {
        with_link(async |link, forwarder| {
            forwarder.send(&"not a message", &[]).unwrap();
            let asking = tokio::spawn(async move { link.counters().await });
            let ToForwarder::Counters { id } = heard(&forwarder).await else { panic!("another request") };
            answer(&forwarder, id.wrapping_sub(1), 1);
            answer(&forwarder, id, 2);
            assert_eq!(asking.await.unwrap().map(|counters| counters.dns.queries), Ok(2));
        });
    }

    #[test]
    fn a_forwarder_that_says_nothing_is_not_waited_for() {
        with_link(async |link, forwarder| {
            tokio::time::pause();
            assert_eq!(link.counters().await, Err(Silent));
            assert!(link.waiting.lock().unwrap().is_empty());
            let ToForwarder::Counters { id } = heard(&forwarder).await else { panic!("another request") };
            answer(&forwarder, id, 1);
            tokio::time::resume();
            let asking = tokio::spawn(async move { link.counters().await });
            let ToForwarder::Counters { id } = heard(&forwarder).await else { panic!("another request") };
            answer(&forwarder, id, 2);
            assert_eq!(asking.await.unwrap().map(|counters| counters.dns.queries), Ok(2));
        });
    }
}
