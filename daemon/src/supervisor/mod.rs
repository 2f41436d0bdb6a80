//! The supervisor: answers the workspace's stopped system calls, and what is asked on the [`control`] socket.
//!
//! The way of a call, one type per arrow: [`receivers`] take it from the kernel into a slot of the [`ledger`]; a
//! [`notification`] becomes a [`decode`]d call with copies of what the [`tracee`] passed; [`facts`] says what socket it
//! names; [`decide`] gives a verdict, with what the [`ways`] are: [`route`]s and [`netfilter`] rules, for containers by
//! way of [`nested`], to the workspace's own programs [`straight`]; [`swap`], [`host_listener`] or [`in_place`] act on it;
//! what takes time goes to [`waits`]; [`session`] holds it all together and sends the reply; the [`watch`] looks after what
//! does not come to an end.

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
mod reason;
mod receivers;
pub(crate) mod resolvers;
mod route;
mod rules;
mod session;
mod sockaddr;
mod stopped;
mod straight;
mod swap;
mod touched;
pub(crate) mod tracee;
mod turns;
mod waits;
mod watch;
mod ways;

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use serde::{Deserialize, Serialize};
use sidestep_forwarder::network::VirtualNetwork;
use sidestep_forwarder::outbound::Outbound;
use sidestep_forwarder::policy::Policy;

use crate::channel::Channel;
use crate::launcher::needs;
use crate::publish::Sharing;
use crate::sys::listener::Listener;
use crate::sys::{pidfd, shared_memory, socket, thread};

use self::active::Active;
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
use self::nested::Nested;
use self::netfilter::{Sources, Unseen};
use self::ports::Ports;
use self::route::Oracle;
use self::session::Session;
use self::swap::Swap;
use self::tracee::Tracees;
use self::waits::Waits;

pub use self::link::Flows;

/// What the supervisor needs to know; its descriptors come beside it, in [`Handles`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    /// The workspace runs in a Landlock domain that denies TCP bind and connect.
    pub strict: bool,
    pub network: VirtualNetwork,
    pub policy: Policy,
    pub outbound: Outbound,
    pub extent: Extent,
    /// Index of the TAP inside the workspace's network namespace.
    pub tap_ifindex: u32,
    /// `--publish-auto`.
    pub publish_auto: Option<PublishAuto>,
    /// The state directory's path.
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

/// Descriptors the monitor keeps copies of.
pub struct Handles {
    /// Memory of [`ledger::SIZE`] bytes that outlives a supervisor.
    pub ledger: OwnedFd,
    /// The workspace's user and network namespaces (/proc/self/ns/user, /proc/self/ns/net as opened inside).
    pub userns: OwnedFd,
    pub netns: OwnedFd,
    /// A pidfd of the workspace's first process.
    pub init: OwnedFd,
    /// Where the control socket goes.
    pub state_dir: OwnedFd,
    /// The seccomp listener; None without `--bypass`.
    pub listener: Option<OwnedFd>,
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
    give_up_network_privileges().context("cannot give up capabilities")?;
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
    let listening = start.publish_auto.map(|_| inside.sock_diag().and_then(Listening::new)).transpose();
    let listening = listening.context("--publish-auto: cannot ask what listens in the workspace")?;
    let link = Link::start(link, Some(inside), Some(start.restarts.forwarder))?;
    let sharing = if handles.listener.is_some() { Sharing::WithPrograms } else { Sharing::No };
    let monitor = Channel::from(stop.try_clone().context("cannot ask the monitor")?);
    let ports = Ports::start(Arc::clone(&link), sharing, Some(monitor));
    let (told, state) = tokio::sync::watch::channel(None);
    start_control(&start, handles.state_dir.as_fd(), state, &counters, &link, &ports);
    tokio::spawn(resolvers::follow(Arc::clone(&link)));
    let auto = start
        .publish_auto
        .zip(listening)
        .map(|(asked, listening)| Auto::start(asked.host, start.network.clone(), listening, Arc::clone(&ports)));
    let init = handles.init.try_clone().context("cannot keep hold of the workspace")?;
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
    runtime.block_on(watch::until_closed(session, stop, told))?;
    // The monitor's death ends the workspace, unless that has seen to it that it does not (PR_SET_PDEATHSIG). Before our
    // own end, which waits for threads that hold on to it.
    let _ = pidfd::kill(init.as_fd());
    Ok(())
}

/// What the workspace has set on a socket is set on the host's as by anybody: a supervisor of root's could do more, and
/// needs nothing of it.
fn give_up_network_privileges() -> rustix::io::Result<()> {
    let privileges = CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW;
    let mut sets = capabilities(None)?;
    for set in [&mut sets.effective, &mut sets.permitted, &mut sets.inheritable] {
        set.remove(privileges);
    }
    set_capabilities(None, sets)
}

/// Without a control socket (somebody has taken the directory away) a workspace still has its network.
fn start_control(
    start: &Start,
    state_dir: BorrowedFd<'_>,
    state: tokio::sync::watch::Receiver<Option<String>>,
    counters: &Arc<Counters>,
    link: &Arc<Link>,
    ports: &Arc<Ports>,
) {
    match control::bind(state_dir) {
        Ok(listener) => {
            let control = Control {
                state,
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
        host: facts::own_netns().map_err(|error| needs::no_netns_cookie(&error))?,
        workspace: facts::netns_of(probe.as_fd()).map_err(|error| needs::no_netns_cookie(&error))?,
        network: start.network,
        policy: start.policy,
        extent: start.extent,
        tap_ifindex: start.tap_ifindex,
    };
    let netfilter = Sources::made_in(&factory, handles.userns.as_fd(), handles.netns.as_fd(), Unseen::Passed)
        .and_then(|sources| netfilter::Oracle::new(sources, netfilter::MAX_BYTES))
        .context("cannot ask for the workspace's netfilter rules")?;
    let inside = routes(make).context("cannot ask for the workspace's routes")?;
    let nested = ground.extent.nested.then(|| routes(make)).transpose();
    let nested = nested.context("cannot ask for the workspace's routes")?.map(Nested::new);
    let outside = routes(socket::new).context("cannot ask for the host's routes")?;
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
        nested,
        host: outside,
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

/// The routes of the namespace whose sockets `make` makes.
fn routes(make: impl Fn(i32, i32, i32) -> io::Result<OwnedFd>) -> io::Result<Oracle> {
    let netlink = || make(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE);
    Oracle::remembering(netlink()?, netlink()?)
}

/// A thread that panicked may hold anything; a new supervisor with the ledger is better than half of this one.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}
