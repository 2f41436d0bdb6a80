//! The supervisor: answers the workspace's stopped system calls, and what is asked on the [`control`] socket.
//!
//! The way of a call, one type per arrow: [`receivers`] take it from the kernel into a slot of the [`ledger`]; a
//! [`notification`] becomes a [`decode`]d call with copies of what the [`tracee`] passed; [`facts`] says what socket it
//! names; [`decide`] gives a verdict, with what the [`ways`] are: [`route`]s and [`netfilter`] rules, for containers by
//! way of [`nested`], to the workspace's own programs [`straight`]; [`swap`], [`host_listener`] or [`in_place`] act on it;
//! what takes time goes to [`waits`]; [`session`] holds it all together and sends the reply.

mod active;
mod auto;
pub mod control;
pub mod counters;
mod decide;
mod decode;
mod device;
mod epoll;
pub(crate) mod factory;
pub(crate) mod facts;
#[cfg(test)]
mod fuzz;
mod host_listener;
mod host_socket;
pub mod hot;
mod in_place;
pub(crate) mod inside;
mod known_routes;
pub mod ledger;
pub(crate) mod link;
mod listening;
mod nested;
mod netfilter;
mod netlink;
mod notices;
pub(crate) mod notification;
mod options;
pub(crate) mod ports;
mod privileged_port;
mod receivers;
pub(crate) mod resolvers;
mod route;
mod rules;
mod session;
mod sockaddr;
mod straight;
mod swap;
mod touched;
pub(crate) mod tracee;
mod turns;
mod waits;
mod ways;

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use sidestep_forwarder::network::VirtualNetwork;
use sidestep_forwarder::outbound::Outbound;
use sidestep_forwarder::policy::Policy;
use tokio::io::Interest;
use tokio::time::{MissedTickBehavior, interval};

use crate::channel::Channel;
use crate::publish::Sharing;
use crate::sys::listener::Listener;
use crate::sys::{namespace, readiness, shared_memory, socket, thread};

use self::active::{Active, STUCK_REPLY};
use self::auto::Auto;
use self::control::Control;
use self::counters::{Counters, Restarts};
use self::decide::Ground;
use self::epoll::Epolls;
use self::factory::Factory;
use self::host_listener::HostListeners;
use self::host_socket::Untouched;
use self::inside::Inside;
use self::ledger::Ledger;
use self::link::Link;
use self::listening::Listening;
use self::nested::{Namespace, Nested};
use self::ports::Ports;
use self::route::Oracle;
use self::session::Session;
use self::swap::Swap;
use self::tracee::Tracees;
use self::waits::Waits;

pub use self::link::Flows;

/// How often the watch looks for calls that are stuck or that nobody waits for, and for callers that have ended.
const WATCH: Duration = Duration::from_millis(250);

/// What the supervisor needs to know; its descriptors come beside it, in [`Handles`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    /// The workspace runs in a Landlock domain that denies TCP bind and connect (DESIGN, security 2).
    pub strict: bool,
    pub network: VirtualNetwork,
    pub policy: Policy,
    pub outbound: Outbound,
    pub extent: Extent,
    /// Index of the TAP inside the workspace's network namespace.
    pub tap_ifindex: u32,
    /// `--publish-auto`.
    pub publish_auto: Option<PublishAuto>,
    /// Where the control socket goes, and what the monitor wrote.
    pub state_dir: PathBuf,
    /// How often each worker has died by now.
    pub restarts: Restarts,
}

/// Where ports are published by themselves.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct PublishAuto {
    /// None: at all addresses of the host.
    pub host: Option<IpAddr>,
}

/// What the bypass takes out besides TCP of the workspace's own namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// `--bypass-udp`: connected UDP sockets, bound to the interface they leave by.
    pub udp: bool,
    /// `--bypass-nested`: connections of network namespaces nested in the workspace that leave through it.
    pub nested: bool,
}

/// Descriptors the monitor keeps copies of, in the order in which they are sent.
pub struct Handles {
    /// The seccomp listener; None without `--bypass`.
    pub listener: Option<OwnedFd>,
    /// Memory of [`ledger::SIZE`] bytes that outlives a supervisor.
    pub ledger: OwnedFd,
    /// The workspace's user and network namespaces (/proc/self/ns/user, /proc/self/ns/net as opened inside).
    pub userns: OwnedFd,
    pub netns: OwnedFd,
}

/// Runs until `stop` (the channel to the monitor) is closed at the other end; `link` is the channel to the forwarder.
/// Called in a process that has one thread.
pub fn run(
    start: Start,
    mut handles: Handles,
    link: OwnedFd,
    stop: OwnedFd,
    ready: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    abort_on_panic();
    // The one thing that must come before any thread.
    let factory = Arc::new(Factory::start().context("cannot start the socket factory")?);
    let inside = Inside::new(Arc::clone(&factory), &handles.userns, &handles.netns)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MAX_WORKERS)
        .thread_keep_alive(KEEP_WORKERS)
        .build()
        .context("cannot start the event loop")?;
    let counters = Arc::new(Counters::default());
    let _in_event_loop = runtime.enter();
    let auto = start
        .publish_auto
        .map(|asked| (asked.host, inside.sock_diag().and_then(Listening::new), start.network.clone()));
    let link = Link::start(link, Some(inside), start.restarts.forwarder)?;
    let sharing = if handles.listener.is_some() { Sharing::WithPrograms } else { Sharing::No };
    let monitor = Channel::from(stop.try_clone().context("cannot ask the monitor")?);
    let ports = Ports::start(Arc::clone(&link), sharing, Some(monitor));
    start_control(&start, &counters, &link, &ports);
    tokio::spawn(resolvers::follow(Arc::clone(&link)));
    let auto = match auto {
        Some((host, listening, network)) => {
            let listening = Arc::new(listening.context("--publish-auto: cannot ask what listens in the workspace")?);
            let (found, listened) = (Default::default(), Default::default());
            let auto = Arc::new(Auto { host, network, listening, ports: Arc::clone(&ports), found, listened });
            tokio::spawn(Arc::clone(&auto).run());
            Some(auto)
        }
        None => None,
    };
    let session = match handles.listener.take() {
        Some(listener) => {
            thread::install_wake_up().context("cannot install the wake-up signal")?;
            let netlink = socket::new(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_SOCK_DIAG);
            let listening = netlink.and_then(Listening::new).context("cannot ask what listens on the host")?;
            let event_loop = runtime.handle().clone();
            let removing = Default::default();
            let host_listeners = Arc::new(HostListeners { ports, link, listening, auto, event_loop, removing });
            tokio::spawn(Arc::clone(&host_listeners).follow());
            let waits = Waits::new(runtime.handle().clone());
            Some(serve(start, handles, listener, factory, (waits, host_listeners), counters)?)
        }
        None => None,
    };
    ready()?;
    runtime.block_on(watch(session, stop))
}

/// Without a control socket (somebody has taken the directory away) a workspace still has its network.
fn start_control(start: &Start, counters: &Arc<Counters>, link: &Arc<Link>, ports: &Arc<Ports>) {
    match control::bind(&start.state_dir) {
        Ok(listener) => {
            let control = Control {
                state_dir: start.state_dir.clone(),
                counters: Arc::clone(counters),
                link: Arc::clone(link),
                ports: Arc::clone(ports),
                restarts: start.restarts.supervisor,
            };
            tokio::spawn(control::serve(listener, Arc::new(control)));
        }
        Err(error) => tracing::warn!("no control socket: {error:#}"),
    }
}

/// Threads of the event loop's pool that may be at work, or lost, at the same time.
const MAX_WORKERS: usize = 512;
/// How long one with nothing to do stays.
const KEEP_WORKERS: Duration = Duration::from_secs(1);

/// Starts answering.
fn serve(
    start: Start,
    handles: Handles,
    listener: OwnedFd,
    factory: Arc<Factory>,
    (waits, host_listeners): (Waits, Arc<HostListeners>),
    counters: Arc<Counters>,
) -> anyhow::Result<Arc<Session>> {
    let make = |domain, kind, protocol| {
        factory.socket(handles.userns.as_fd(), handles.netns.as_fd(), (domain, kind, protocol))
    };
    let workspace =
        Untouched::read(start.extent.udp, make).context("cannot make a socket in the workspace's network namespace")?;
    let host = Untouched::on_host(start.extent.udp).context("cannot make a socket")?;
    let probe = make(libc::AF_INET, libc::SOCK_DGRAM, 0).context("cannot make a socket in the workspace")?;
    let ground = Ground {
        host: facts::own_netns().context("this kernel has no SO_NETNS_COOKIE (Linux 5.14)")?,
        workspace: facts::netns_of(probe.as_fd()).context("this kernel has no SO_NETNS_COOKIE (Linux 5.14)")?,
        network: start.network,
        policy: start.policy,
        extent: start.extent,
        tap_ifindex: start.tap_ifindex,
    };
    let netfilter = netfilter_sources(&factory, handles.userns.as_fd(), handles.netns.as_fd(), Unseen::Passed)
        .and_then(|sources| netfilter::Oracle::new(sources, netfilter::MAX_BYTES))
        .context("cannot ask for the workspace's netfilter rules")?;
    let routes = |make: &dyn Fn(i32, i32, i32) -> io::Result<OwnedFd>| {
        let netlink = || make(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE);
        Oracle::remembering(netlink()?, netlink()?)
    };
    let inside = routes(&make).context("cannot ask for the workspace's routes")?;
    let nested =
        ground.extent.nested.then(|| routes(&make)).transpose().context("cannot ask for the workspace's routes")?;
    let outside = routes(&socket::new);
    let words =
        shared_memory::map_words(&handles.ledger, ledger::SIZE / size_of::<u64>()).context("cannot map the ledger")?;
    let (ledger, inherited) = Ledger::open(words);
    let swap = Swap {
        workspace,
        host,
        host_netns: ground.host,
        outbound: start.outbound,
        userns: handles.userns,
        netns: handles.netns,
        memory: swap::Memory::default(),
        turns: turns::Turns::default(),
        epolls: Epolls::default(),
    };
    let session = Arc::new(Session {
        listener: Listener::new(listener),
        ledger,
        inherited: Mutex::new(inherited),
        active: Active::default(),
        tracees: Tracees::default(),
        factory,
        inside,
        netfilter,
        nested: nested.map(Nested::new),
        host: outside.context("cannot ask for the host's routes")?,
        ground,
        swap,
        host_listeners,
        waits,
        counters,
        strict: start.strict,
    });
    receivers::start(&session).context("cannot start receiving")?;
    Ok(session)
}

/// Legacy tables that are there and not shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unseen {
    /// Taken for none: a limit of the workspace.
    Passed,
    /// Their namespace is not asked.
    Refused,
}

fn netfilter_sources(
    factory: &Factory,
    userns: BorrowedFd<'_>,
    netns: BorrowedFd<'_>,
    unseen: Unseen,
) -> io::Result<netfilter::Sources> {
    let socket = || factory.socket(userns, netns, (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER));
    let netlink = match socket() {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => None,
        notices => Some((notices?, socket()?)),
    };
    let names = |ipv6| match factory.legacy_tables(userns, netns, ipv6) {
        Ok(names) => Ok(Some(names)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Where nobody in the workspace is root, the kernel shows them to nobody.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && unseen == Unseen::Passed => {
            tracing::debug!("rules of iptables-legacy in the workspace are not seen");
            Ok(None)
        }
        Err(error) => Err(error),
    };
    Ok(netfilter::Sources { netlink, legacy: [names(false)?, names(true)?] })
}

/// What `netns`, nested in the workspace, is to be asked with.
fn open_nested(factory: &Factory, netns: BorrowedFd<'_>, udp: bool) -> io::Result<Namespace> {
    let userns = namespace::owner(netns)?;
    let make = |domain, kind, protocol| factory.socket(userns.as_fd(), netns, (domain, kind, protocol));
    let sources = netfilter_sources(factory, userns.as_fd(), netns, Unseen::Refused)?;
    Ok(Namespace {
        routes: Oracle::new(make(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?)?,
        netfilter: netfilter::Oracle::new(sources, nested::MAX_BYTES)?,
        untouched: Untouched::read(udp, make)?,
    })
}

/// Looks after calls whose thread does not come back or whose caller has left, until the monitor is gone.
async fn watch(session: Option<Arc<Session>>, stop: OwnedFd) -> anyhow::Result<()> {
    let stop = readiness::register(stop, Interest::READABLE).context("cannot watch the monitor")?;
    let Some(session) = session else {
        stop.readable().await?.retain_ready();
        return Ok(());
    };
    let mut tick = interval(WATCH);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = stop.readable() => return Ok(()),
            _ = tick.tick() => look(&session, Instant::now()),
        }
    }
}

fn look(session: &Session, now: Instant) {
    let found = session.active.inspect(now);
    if let Some((_, tid)) = found.stuck.first() {
        tracing::warn!(
            tid,
            count = found.stuck.len(),
            "calls of the workspace hold on to the supervisor: they get EIO"
        );
    }
    for (id, _) in found.stuck {
        session.counters.stuck.count();
        let _ = session.send(id, STUCK_REPLY);
    }
    for id in found.sleeping {
        if !session.listener.is_waiting(id) {
            session.active.interrupt(id);
        }
    }
    for id in found.overdue {
        session.active.interrupt(id);
    }
    session.swap.memory.expire(now);
    if let Some(nested) = &session.nested {
        nested.expire(now);
    }
    session.tracees.forget_ended();
}

/// A thread that panicked may hold anything; a new supervisor with the ledger is better than half of this one.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}
