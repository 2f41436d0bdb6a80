//! The supervisor's end of the link to the forwarder (see [`sidestep_forwarder::link`]): what the forwarder is to know is
//! kept here and said to each forwarder that begins; what it is asked has a number, a time limit, and company of at most
//! [`REQUESTS_MAX`] others, so that the link cannot fill. What is told of [`ports`] has a file of its own.

mod ports;

use std::collections::HashMap;
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
use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::channel::{Channel, Received};
use crate::sys::readiness;

use self::ports::Ports;
use super::inside::Inside;

pub use self::ports::Shared;

/// How long the forwarder may take to answer; one that is being started again takes some 100 ms.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Requests under way at a time: their answers, of up to 16 KB each, have room in the link (net.core.wmem_default).
const REQUESTS_MAX: usize = 4;

/// After a message that the kernel did not take (ENOBUFS, ETOOMANYREFS) all is told again.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

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
    has_successors: bool,
}

impl Link {
    /// Begins to listen, in the event loop of the caller. `restarts` is how often the forwarder has been started again;
    /// None: nobody does that, and once it has the socket of a port, the port ends when it says so or ends itself.
    pub fn start(channel: OwnedFd, inside: Option<Inside>, restarts: Option<u64>) -> anyhow::Result<Arc<Self>> {
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
            forwarder_restarts: AtomicU64::new(restarts.unwrap_or(0)),
            has_successors: restarts.is_some(),
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
pub(super) mod tests {
    use super::*;

    pub fn with_link(test: impl AsyncFnOnce(Arc<Link>, Channel)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, theirs) = Channel::pair().unwrap();
            test(Link::start(ours.into(), None, Some(0)).unwrap(), theirs).await;
        });
    }

    /// Lets the link's tasks run until the forwarder has a message.
    pub async fn heard(forwarder: &Channel) -> ToForwarder {
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
