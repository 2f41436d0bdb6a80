//! Which way a connection would go: what [`decide`](super::decide) wants to know of the kernels, asked in the order of
//! what an answer costs.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Instant;

use sidestep_forwarder::policy::Request;

use crate::sys::namespace;

use super::decide::{Candidate, Verdict, Ways, candidate, with_routes};
use super::decode::Call;
use super::nested::{self, Namespace};
use super::netfilter::{Netfilter, Way};
use super::reason::Reason;
use super::route::{HostRoute, InsideRoute};
use super::session::Session;
use super::stopped::Stopped;

impl Session {
    /// What is to be done about a call. Nothing is asked where the call itself settles it.
    pub(super) fn decide(&self, call: &Call, stopped: &mut Stopped<'_>) -> Verdict {
        let (destination, transport) = match candidate(&self.ground, call, &stopped.facts) {
            Candidate::Settled(verdict) => return verdict,
            Candidate::Outward(destination, transport) => (destination, transport),
            Candidate::Inward(to) => return self.inward(to, stopped),
        };
        let request = Request { destination, transport };
        let ways = if self.is_of_workspace(stopped) {
            self.ways(request, stopped.facts.uid)
        } else {
            match self.nested_ways(request, stopped) {
                Ok(ways) => ways,
                Err(error) => {
                    tracing::debug!(tid = stopped.tid, %error, "a nested namespace does not say its way: in place");
                    return Verdict::InPlace(Reason::NestedNamespace);
                }
            }
        };
        with_routes(&self.ground, request, ways)
    }

    /// Whether it is a socket of the workspace's own namespace, or a host socket of a caller there.
    pub(super) fn is_of_workspace(&self, stopped: &Stopped<'_>) -> bool {
        stopped.facts.netns == self.ground.workspace
            || stopped.facts.netns == self.ground.host && stopped.netns.is_none()
    }

    /// Cheap questions first; what an answer makes superfluous is not asked.
    fn ways(&self, request: Request, uid: u32) -> Ways {
        let ip = request.destination.ip().to_canonical();
        let tap = self.ground.tap_ifindex;
        let inside = self.inside.inside(ip, uid, tap);
        let InsideRoute::OurTap { source } = inside else {
            return Ways { inside, netfilter: Netfilter::CouldTouch, host: HostRoute::None };
        };
        let netfilter = self.netfilter.ask(source, request, Way::ByTap(tap));
        let host = match netfilter {
            Netfilter::Untouched => self.host_route(ip),
            Netfilter::CouldTouch => HostRoute::None,
        };
        Ways { inside, netfilter, host }
    }

    /// The same for a socket of a nested namespace, or for a host socket of a caller there.
    fn nested_ways(&self, request: Request, stopped: &mut Stopped<'_>) -> io::Result<Ways> {
        let Some(nested) = &self.nested else { return Err(io::ErrorKind::Unsupported.into()) };
        let of_socket;
        let netns = match &stopped.netns {
            Some(netns) => netns.as_fd(),
            None => {
                of_socket = namespace::of_socket(stopped.copy.as_fd())?;
                of_socket.as_fd()
            }
        };
        let open = || Namespace::open(&self.factory, netns, self.ground.extent.udp);
        let asked = nested.find(netns, Instant::now(), open)?;
        let workspace = nested::Workspace {
            netns: self.swap.netns.as_fd(),
            netfilter: &self.netfilter,
            tap: self.ground.tap_ifindex,
        };
        let (inside, netfilter) = nested.way(&workspace, &asked, request, stopped.facts.uid)?;
        let host = match netfilter {
            Netfilter::Untouched => self.host_route(request.destination.ip().to_canonical()),
            Netfilter::CouldTouch => HostRoute::None,
        };
        stopped.nested = Some(asked);
        Ok(Ways { inside, netfilter, host })
    }

    pub(super) fn host_route(&self, destination: IpAddr) -> HostRoute {
        self.host.host(destination, self.swap.outbound.source(destination))
    }
}
