//! Connections of network namespaces nested in the workspace, containers' usually (`--bypass-nested`): which of them
//! leave by our TAP, unchanged.
//!
//! Four questions, each to the kernel of a namespace as it stands, and in place wherever an answer is missing:
//!
//! 1. the nested namespace: the route leads by a gateway, through a veth, its own netfilter leaves the connection alone;
//! 2. the link: the other end of that veth is in the workspace, by itself or as a port of a bridge there;
//! 3. the workspace, about a packet that comes in there: the gateway is the workspace itself, the destination is routed
//!    to our TAP, the replies back to where it came from. The kernel's answers to that take ip_forward and rp_filter in;
//! 4. the workspace's netfilter, about the packets that are forwarded.
//!
//! Whoever owns the namespace may change any of it while it is asked, and gains nothing: the policy is that of every other
//! connection, and the workspace could have sent this one over the TAP.
//!
//! **A descriptor of a namespace keeps it alive**, and with it veths and bridges that somebody waits to see gone. So what
//! is asked with is kept for [`KEEP`] after its last use, for [`MAX_KEPT`] namespaces; a container that has ended lives that
//! much longer. To make it anew takes seven jobs of the factory, a connection with it ten more questions than usual.
//!
//! Limits: the link layer below is not asked beyond the bridge's ports (a neighbour entry that leads to another
//! container, ebtables-legacy, tc). A gateway with a link-local address, devices other than veth, bridges that know VLANs,
//! and namespaces behind other nested ones stay in place; so does everything where the legacy tables cannot be read.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sidestep_forwarder::policy::Request;

use crate::sys::namespace;

use super::device::LinkKind;
use super::factory::Factory;
use super::host_socket::Untouched;
use super::netfilter::{self, Netfilter, Way};
use super::route::{InsideRoute, Oracle, Packet, Route};

/// How long after its last use. A container that connects more rarely pays for being asked anew.
const KEEP: Duration = Duration::from_secs(1);
/// Namespaces kept at a time, five descriptors each; past it the one that was not used for longest goes.
const MAX_KEPT: usize = 64;
/// A container's own rules are few, if any; kept they take several times as much.
const MAX_BYTES: usize = 256 << 10;

/// What one nested namespace is asked with, all of it made inside.
pub struct Namespace {
    pub routes: Oracle,
    pub netfilter: netfilter::Oracle,
    /// What untouched sockets read in it.
    pub untouched: Untouched,
}

impl Namespace {
    /// `netns`: nested in the workspace.
    pub fn open(factory: &Factory, netns: BorrowedFd<'_>, udp: bool) -> io::Result<Self> {
        let userns = namespace::owner(netns)?;
        let make = |domain, kind, protocol| factory.socket(userns.as_fd(), netns, (domain, kind, protocol));
        let sources = netfilter::Sources::made_in(factory, userns.as_fd(), netns, netfilter::Unseen::Refused)?;
        Ok(Self {
            routes: Oracle::new(make(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?)?,
            netfilter: netfilter::Oracle::new(sources, MAX_BYTES)?,
            untouched: Untouched::read(udp, make)?,
        })
    }
}

pub struct Nested {
    /// The namespaces at work, by their identity: it is no other's while they are kept.
    kept: Mutex<HashMap<u64, Kept>>,
    /// The workspace's routes and links, for nested namespaces alone: what is said about links waits for whoever changes
    /// some (the kernel's RTNL), and connections of the workspace itself must not wait along.
    routes: Oracle,
}

struct Kept {
    namespace: Arc<Namespace>,
    used: Instant,
}

impl Nested {
    /// `routes`: of the workspace.
    pub fn new(routes: Oracle) -> Self {
        Self { kept: Mutex::default(), routes }
    }

    pub fn find(
        &self,
        netns: BorrowedFd<'_>,
        now: Instant,
        open: impl FnOnce() -> io::Result<Namespace>,
    ) -> io::Result<Arc<Namespace>> {
        let identity = namespace::identity(netns)?;
        let lock = || self.kept.lock().map_err(|_| io::Error::other("a thread died while it held the namespaces"));
        if let Some(kept) = lock()?.get_mut(&identity) {
            kept.used = now;
            return Ok(Arc::clone(&kept.namespace));
        }
        // Not under the lock: it takes as long as a hostile namespace wants.
        let namespace = Arc::new(open()?);
        let mut kept = lock()?;
        if kept.len() >= MAX_KEPT
            && let Some(oldest) = kept.iter().min_by_key(|(_, kept)| kept.used).map(|(&identity, _)| identity)
        {
            kept.remove(&oldest);
        }
        kept.insert(identity, Kept { namespace: Arc::clone(&namespace), used: now });
        Ok(namespace)
    }

    /// Lets go of those that were not asked lately.
    pub fn expire(&self, now: Instant) {
        let Ok(mut kept) = self.kept.lock() else { return };
        kept.retain(|_, kept| now.saturating_duration_since(kept.used) < KEEP);
    }
}

/// The network namespace of a thread, as a descriptor that is good whatever becomes of the thread. Read by its number:
/// to be believed only when the caller still waits afterwards.
pub fn of_thread(tid: u32) -> io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/{tid}/ns/net"))?.into())
}

/// The workspace, as its nested namespaces' connections go through it.
pub struct Workspace<'a> {
    pub netns: BorrowedFd<'a>,
    pub netfilter: &'a netfilter::Oracle,
    pub tap: u32,
}

/// How a packet leaves a nested namespace.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    device: u32,
    gateway: IpAddr,
    source: IpAddr,
    /// The device in the workspace at which it comes out.
    peer: u32,
}

impl Nested {
    /// What both namespaces would make of a connection of a socket of `uid` in `nested`.
    pub fn way(
        &self,
        workspace: &Workspace<'_>,
        nested: &Namespace,
        request: Request,
        uid: u32,
    ) -> io::Result<(InsideRoute, Netfilter)> {
        let tap = workspace.tap;
        let destination = request.destination.ip().to_canonical();
        let elsewhere = (InsideRoute::Elsewhere, Netfilter::CouldTouch);
        let Some(leaving) = leaving(&nested.routes, workspace.netns, destination, uid)? else { return Ok(elsewhere) };
        let Some(input) = self.received_by(leaving)? else { return Ok(elsewhere) };
        if !self.is_forwarded(leaving, input, destination, tap)? {
            return Ok(elsewhere);
        }
        let route = InsideRoute::OurTap { source: Some(leaving.source) };
        let outer = match self.routes.inside(destination, uid, tap) {
            InsideRoute::OurTap { source } => source,
            InsideRoute::Elsewhere => None,
        };
        let through = Way::Through { input, tap, outer };
        let netfilter = match nested.netfilter.ask(Some(leaving.source), request, Way::Nested(leaving.device)) {
            Netfilter::Untouched => workspace.netfilter.ask(Some(leaving.source), request, through),
            Netfilter::CouldTouch => Netfilter::CouldTouch,
        };
        Ok((route, netfilter))
    }

    /// The device whose packets these are in the workspace: the veth's other end, or the bridge it is a port of.
    fn received_by(&self, leaving: Leaving) -> io::Result<Option<u32>> {
        let peer = self.routes.link(leaving.peer)?;
        // The index may have come to mean another device since; this one knows its own other end.
        if !peer.is_running || !matches!(peer.kind, LinkKind::Veth { peer, .. } if peer == leaving.device) {
            return Ok(None);
        }
        let Some(bridge) = peer.master else { return Ok(Some(leaving.peer)) };
        let link = self.routes.link(bridge)?;
        let bridged = peer.is_forwarding_port && link.is_running && link.kind == LinkKind::Bridge;
        Ok((bridged && link.master.is_none()).then_some(bridge))
    }

    /// Whether the workspace routes what comes in by `input` to the TAP, and what comes back to `input`.
    fn is_forwarded(&self, leaving: Leaving, input: u32, destination: IpAddr, tap: u32) -> io::Result<bool> {
        let Leaving { gateway, source, .. } = leaving;
        if destination.is_ipv6() && !self.routes.forwards_ipv6()? {
            return Ok(false);
        }
        let received = Packet::Received { source, device: input };
        let returned = Packet::Received { source: destination, device: tap };
        let leads_to = |route: Option<Route>, to| matches!(route, Some(Route { kind: libc::RTN_UNICAST, device, .. }) if device == to);
        Ok(matches!(self.routes.route(gateway, received)?, Some(Route { kind: libc::RTN_LOCAL, .. }))
            && leads_to(self.routes.route(destination, received)?, tap)
            && leads_to(self.routes.route(source, returned)?, input))
    }
}

/// None: not by a gateway, or not by a veth into the workspace.
fn leaving(nested: &Oracle, workspace: BorrowedFd<'_>, destination: IpAddr, uid: u32) -> io::Result<Option<Leaving>> {
    let route = nested.route(destination, Packet::Own { uid: Some(uid), source: None })?;
    let Some(Route { kind: libc::RTN_UNICAST, device, source: Some(source), gateway: Some(gateway) }) = route else {
        return Ok(None);
    };
    let link = nested.link(device)?;
    // Asked for after the link: naming a namespace there gives it its number.
    let LinkKind::Veth { peer, namespace: Some(namespace) } = link.kind else { return Ok(None) };
    let leads_here = link.is_running && link.master.is_none() && namespace == nested.number_of(workspace)?;
    Ok(leads_here.then_some(Leaving { device, gateway, source, peer }))
}
