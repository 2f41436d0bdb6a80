//! What supervisor and forwarder tell each other: the messages, and the forwarder's end.
//!
//! The monitor makes the [`Channel`] once and holds both ends, so a worker that dies leaves the other's messages to its
//! successor. What must not be lost is said again whenever somebody new listens: a forwarder begins with
//! [`ToSupervisor::Started`], whose answer is everything it is to know, and a supervisor begins by saying that unasked.
//! What is asked has a number that no other supervisor uses, and may stay without an answer.
//!
//! The forwarder never waits for the link. An answer for which there is no room is dropped: that a supervisor asks only
//! a few things at a time means that it is gone, or stands still, and its successor asks for itself.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::channel::{Channel, DESCRIPTORS_MAX, Received};
use crate::counters::Counters;
use crate::edge::Edge;
use crate::engine::Engine;
use crate::flow::list::{Listed, Place};
use crate::gateway::ndp;
use crate::ports::{Entry, Published, Shadow};

/// Messages taken in one wake of the forwarder; the rest makes the next wake.
const MESSAGES_A_WAKE: usize = 4;
/// Resolvers and search domains in a message at most, which has room for them; the C library's own limits are 3 and
/// (until 2.26) 6.
pub const RESOLVERS_MAX: usize = 64;
pub const SEARCH_MAX: usize = 32;

/// supervisor → forwarder
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToForwarder {
    /// The host's resolvers, in order, and its search list, from now on.
    Resolvers { resolvers: Vec<SocketAddr>, search: Vec<String> },
    /// Sockets of the workspace's network namespace, as many as come beside it; none where none can be made.
    Sockets { ipv6: bool },
    /// One more published port, its socket beside it; one that is served already is no news.
    Publish(Entry),
    /// The port with this number is published no more.
    Unpublish { number: u64 },
    /// One more shadow, its socket beside it; one that is served already is no news.
    Shadow(Shadow),
    /// The program with this cookie listens no more: its shadow is to be closed. Asks for [`ToSupervisor::Unshadowed`].
    Unshadow { id: u64, program: u64 },
    /// Asks for [`ToSupervisor::Shadows`], from this cookie on.
    Shadows { id: u64, from: u64 },
    /// Asks for [`ToSupervisor::Ports`], from this number on.
    Ports { id: u64, from: u64 },
    /// Asks for [`ToSupervisor::Counters`].
    Counters { id: u64 },
    /// Asks for [`ToSupervisor::Flows`], from the start or where an earlier page ended.
    Flows { id: u64, from: Option<Place> },
}

/// forwarder → supervisor
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSupervisor {
    /// A forwarder has begun, and knows what the monitor told it at its own start; how many were there before it.
    Started { restarts: u64 },
    /// Asks for [`ToForwarder::Sockets`]; what is not answered is asked again.
    Sockets { ipv6: bool },
    /// Published ports in the order of their numbers, as many as have room, with their sockets beside them; none at the
    /// end.
    Ports { id: u64, ports: Vec<Entry> },
    /// The shadow is closed.
    Unshadowed { id: u64 },
    /// Shadows in the order of their programs' cookies, as many as have room, with their sockets beside them; none at
    /// the end.
    Shadows { id: u64, shadows: Vec<Shadow> },
    /// The answer to [`ToForwarder::Counters`].
    Counters { id: u64, counters: Box<Counters> },
    /// A page of flows, and where the next one begins; None: it was the last. Flows come and go between pages.
    Flows { id: u64, flows: Vec<Listed>, next: Option<Place> },
}

/// The forwarder's end.
#[derive(Debug)]
pub struct Link {
    channel: Channel,
    restarts: u64,
}

impl Link {
    /// `restarts`: how many forwarders had this end before.
    pub fn new(channel: Channel, restarts: u64) -> Self {
        Self { channel, restarts }
    }

    /// Announces this forwarder.
    pub fn start(&self) {
        self.send(&ToSupervisor::Started { restarts: self.restarts });
    }

    /// Takes in what has come and answers it; without flows and ports where the workspace has taken the TAP away. False:
    /// nobody will ever say anything again.
    #[must_use]
    pub fn messages(&self, mut edge: Option<&mut Edge>, mut engine: Option<&mut Engine>) -> bool {
        for _ in 0..MESSAGES_A_WAKE {
            match self.channel.receive(Some(Duration::ZERO)) {
                Ok(Received::Message(message, fds)) => {
                    self.message(edge.as_deref_mut(), engine.as_deref_mut(), message, fds);
                }
                Ok(Received::Timeout) => return true,
                Ok(Received::Closed) => return false,
                Err(error) => tracing::debug!("from the supervisor: {error:#}"),
            }
        }
        true
    }

    fn message(&self, edge: Option<&mut Edge>, engine: Option<&mut Engine>, message: ToForwarder, fds: Vec<OwnedFd>) {
        match message {
            ToForwarder::Resolvers { resolvers, search } => {
                if let Some(edge) = edge {
                    edge.set_resolvers(resolvers);
                    if edge.config.search != search {
                        edge.config.search = search;
                        // RFC 8106 5.1: nodes are told of a change at once.
                        ndp::advertise(edge);
                    }
                }
            }
            ToForwarder::Sockets { ipv6 } => {
                if let Some(edge) = edge {
                    edge.stock.add(ipv6, fds);
                }
            }
            ToForwarder::Publish(entry) => {
                if let (Some(edge), Some(engine), Some(socket)) = (edge, engine, fds.into_iter().next()) {
                    engine.publish(edge, Published { entry, socket });
                }
            }
            ToForwarder::Unpublish { number } => {
                if let (Some(edge), Some(engine)) = (edge, engine) {
                    engine.unpublish(edge, number);
                }
            }
            ToForwarder::Shadow(shadow) => {
                if let (Some(edge), Some(engine), Some(socket)) = (edge, engine, fds.into_iter().next()) {
                    engine.add_shadow(edge, shadow, socket);
                }
            }
            ToForwarder::Unshadow { id, program } => {
                if let (Some(edge), Some(engine)) = (edge, engine) {
                    engine.remove_shadow(edge, program);
                }
                self.send(&ToSupervisor::Unshadowed { id });
            }
            ToForwarder::Shadows { id, from } => {
                let listed =
                    engine.map(|engine| engine.ports().list_shadows(from, DESCRIPTORS_MAX)).unwrap_or_default();
                let (shadows, sockets): (Vec<_>, Vec<_>) = listed.into_iter().unzip();
                self.send_with(&ToSupervisor::Shadows { id, shadows }, &sockets);
            }
            ToForwarder::Ports { id, from } => {
                let listed = engine.map(|engine| engine.ports().list(from, DESCRIPTORS_MAX)).unwrap_or_default();
                let (ports, sockets): (Vec<_>, Vec<_>) = listed.into_iter().unzip();
                self.send_with(&ToSupervisor::Ports { id, ports }, &sockets);
            }
            ToForwarder::Counters { id } => {
                let counters = edge.map_or_else(Counters::default, |edge| edge.counters);
                self.send(&ToSupervisor::Counters { id, counters: Box::new(counters) });
            }
            ToForwarder::Flows { id, from } => {
                let listed = edge.zip(engine).map(|(edge, engine)| engine.list(edge.now, from));
                let (flows, next) = listed.unwrap_or_default();
                self.send(&ToSupervisor::Flows { id, flows, next });
            }
        }
    }

    /// Asks for what the edge lacks.
    pub fn ask(&self, edge: &mut Edge) {
        while let Some(ipv6) = edge.stock.lacking(edge.now) {
            self.send(&ToSupervisor::Sockets { ipv6 });
        }
    }

    fn send(&self, message: &ToSupervisor) {
        self.send_with(message, &[]);
    }

    fn send_with(&self, message: &ToSupervisor, fds: &[BorrowedFd<'_>]) {
        match self.channel.try_send(message, fds) {
            Ok(true) => {}
            Ok(false) => tracing::debug!("no room for a message to the supervisor"),
            Err(error) => tracing::debug!("to the supervisor: {error:#}"),
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tests::Lab;

    fn heard(supervisor: &Channel) -> Option<ToSupervisor> {
        match supervisor.receive(Some(Duration::ZERO)).unwrap() {
            Received::Message(message, _) => Some(message),
            Received::Timeout | Received::Closed => None,
        }
    }

    #[test]
    fn messages_are_answered_and_a_full_link_is_no_trouble() {
        let (supervisor, ours) = Channel::pair().unwrap();
        let (link, mut lab) = (Link::new(ours, 2), Lab::new());
        link.start();
        assert_eq!(heard(&supervisor), Some(ToSupervisor::Started { restarts: 2 }));
        supervisor.send(&"of another kind", &[]).unwrap();
        supervisor.send(&ToForwarder::Counters { id: 7 }, &[]).unwrap();
        lab.edge.counters.dns.queries = 3;
        assert!(link.messages(Some(&mut lab.edge), None));
        let counters = Box::new(lab.edge.counters);
        assert_eq!(heard(&supervisor), Some(ToSupervisor::Counters { id: 7, counters }));
        for id in 0..2000 {
            supervisor.send(&ToForwarder::Counters { id }, &[]).unwrap();
            assert!(link.messages(None, None));
        }
        let kept = std::iter::from_fn(|| heard(&supervisor)).count();
        assert!((1..2000).contains(&kept), "{kept}");
        supervisor.send(&ToForwarder::Counters { id: 7 }, &[]).unwrap();
        assert!(link.messages(None, None));
        let counters = Box::default();
        assert_eq!(heard(&supervisor), Some(ToSupervisor::Counters { id: 7, counters }));
        drop(supervisor);
        assert!(!link.messages(None, None));
    }

    #[test]
    fn the_preferred_resolver_stays_where_it_is_still_one() {
        let (supervisor, ours) = Channel::pair().unwrap();
        let (link, mut lab) = (Link::new(ours, 2), Lab::new());
        let [a, b, c] = [1, 2, 3].map(|last| SocketAddr::from(([192, 0, 2, last], 53)));
        let cases = [
            (vec![a, b], Some(b), vec![b, a]),
            (vec![c, b, c, a], None, vec![b, a, c]),
            (vec![c, a], None, vec![c, a]),
            (vec![], None, vec![]),
            (vec![a], Some(c), vec![a]),
        ];
        for (resolvers, answered, want) in cases {
            let search = lab.edge.config.search.clone();
            supervisor.send(&ToForwarder::Resolvers { resolvers, search }, &[]).unwrap();
            assert!(link.messages(Some(&mut lab.edge), None));
            if let Some(answered) = answered {
                lab.edge.prefer_resolver(answered);
            }
            let got: Vec<_> = (0..).map_while(|step| lab.edge.resolver(step)).collect();
            assert_eq!(got, want);
            let next = want.first().and_then(|&first| lab.edge.resolver_after(first));
            assert_eq!(next.is_some(), want.len() > 1);
        }
    }
}
