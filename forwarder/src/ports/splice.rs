//! Clients of the host's loopback, past the TAP: their bytes go by splice(2) to a socket of the workspace's own network
//! namespace, which is connected to the workspace's address. What listens on the loopback inside is not reached by it,
//! as over the TAP; the workspace sees a client with its own address.
//!
//! The other way round, what comes to a [`super::shadow`] goes to the program on the host.
//!
//! Limits: [`MAX_SPLICED`] connections, beyond which clients go over the TAP, and those of shadows wait.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::sockopt;

use super::pipe::{Direction, Pipes, Turn};
use crate::edge::Edge;
use crate::flow::list::{Listed, Page, Protocol, State};
use crate::flow::{FlowId, FlowKey, Kind, Table};
use crate::tcp::reset_at_death;
use crate::timer::Time;
use crate::turns::Turns;

/// Connections at once: each may pin a pipe's worth of memory in each direction.
const MAX_SPLICED: usize = 1024;
/// Bytes moved in one wake before frames have their turn; a connection's own turn may be as much beyond it.
const BYTES_A_WAKE: u64 = 8 << 20;

#[derive(Debug)]
struct Spliced {
    id: FlowId,
    client: OwnedFd,
    address: SocketAddr,
    inside: OwnedFd,
    is_connected: bool,
    key: FlowKey,
    /// Where else to try when the workspace refuses.
    other: Option<FlowKey>,
    since: Time,
    last_used: Time,
    to_guest: Direction,
    to_client: Direction,
    /// Of a shadow's: the cookie of the program's socket.
    program: Option<u64>,
}

/// What a connection is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Name {
    Client(u64),
    /// Our own address towards a program that has a shadow.
    Relay(SocketAddr),
}

/// All of them.
#[derive(Debug)]
pub struct Splices {
    connections: Table<Name, Spliced>,
    /// Programs that were found to listen no more.
    lost: Vec<u64>,
    made: u64,
    pipes: Pipes,
    ready: Turns,
}

impl Splices {
    pub fn new() -> Self {
        Self {
            connections: Table::new(Kind::SplicedClient, MAX_SPLICED),
            lost: Vec::new(),
            made: 0,
            pipes: Pipes::default(),
            ready: Turns::default(),
        }
    }

    /// Takes the client over; gives it back where the TAP has to do.
    pub fn open(
        &mut self,
        edge: &mut Edge,
        (client, address): (OwnedFd, SocketAddr),
        key: FlowKey,
        other: Option<FlowKey>,
    ) -> Option<OwnedFd> {
        if self.connections.is_full() {
            return Some(client);
        }
        let Some(inside) = dial(edge, &key) else { return Some(client) };
        if address.ip().to_canonical().is_loopback() {
            do_not_pace(&client);
        }
        self.made += 1;
        self.insert(edge, Name::Client(self.made), (client, address), inside, (key, other), None);
        None
    }

    pub fn is_full(&self) -> bool {
        self.connections.is_full()
    }

    /// Leads a client of a shadow to the program's socket.
    pub fn relay(
        &mut self,
        edge: &mut Edge,
        client: (OwnedFd, SocketAddr),
        (program, own): (OwnedFd, SocketAddr),
        key: FlowKey,
        cookie: u64,
    ) {
        prepare(&program);
        self.insert(edge, Name::Relay(canonical(own)), client, program, (key, None), Some(cookie));
    }

    /// Whether a client that came to a port of ours is our own, on the way to a program: that has gone, then.
    pub fn is_relay(&mut self, client: SocketAddr) -> bool {
        let Some(index) = self.connections.find(&Name::Relay(canonical(client))) else { return false };
        self.lost.extend(self.connections.get(index).and_then(|spliced| spliced.program));
        self.remove(index);
        true
    }

    /// A program that was found to have gone.
    pub fn next_lost(&mut self) -> Option<u64> {
        self.lost.pop()
    }

    fn insert(
        &mut self,
        edge: &mut Edge,
        name: Name,
        (client, address): (OwnedFd, SocketAddr),
        inside: OwnedFd,
        (key, other): (FlowKey, Option<FlowKey>),
        program: Option<u64>,
    ) {
        prepare(&client);
        let inserted = self.connections.insert(name, |id| {
            edge.watch(&client, id).ok()?;
            edge.watch(&inside, FlowId { kind: Kind::SplicedInside, ..id }).ok()?;
            Some(Spliced {
                id,
                client,
                address,
                inside,
                is_connected: false,
                key,
                other,
                since: edge.now,
                last_used: edge.now,
                to_guest: Direction::default(),
                to_client: Direction::default(),
                program,
            })
        });
        match inserted {
            Some(_) if program.is_some() => edge.counters.ports.relayed += 1,
            Some(_) => edge.counters.ports.spliced += 1,
            None => edge.counters.ports.exhausted += 1,
        }
    }

    /// Something has happened at one end.
    pub fn host_event(&mut self, edge: &mut Edge, id: FlowId, events: EventFlags) {
        let Some(index) = self.connections.current(id) else { return };
        let Some(spliced) = self.connections.get_mut(index) else { return };
        let is_inside = id.kind == Kind::SplicedInside;
        let failed = events.intersects(EventFlags::ERR | EventFlags::HUP);
        if !spliced.is_connected && failed {
            return if is_inside { self.refused(edge, index) } else { self.remove(index) };
        }
        if is_inside && !spliced.is_connected {
            if !events.contains(EventFlags::OUT) {
                return;
            }
            spliced.is_connected = true;
        }
        let reads = failed || events.intersects(EventFlags::IN | EventFlags::RDHUP);
        let writes = failed || events.contains(EventFlags::OUT);
        let (from_it, to_it) = if is_inside {
            (&mut spliced.to_client, &mut spliced.to_guest)
        } else {
            (&mut spliced.to_guest, &mut spliced.to_client)
        };
        from_it.readable |= reads;
        // Every report is of all that is so now.
        from_it.has_urgent = events.contains(EventFlags::PRI);
        to_it.writable |= writes;
        self.ready.wait(index);
    }

    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub fn run_ready(&mut self, edge: &Edge) {
        let mut moved = 0;
        for _ in 0..self.ready.due() {
            if moved >= BYTES_A_WAKE {
                return;
            }
            if let Some(index) = self.ready.next() {
                moved += self.turn(edge, index);
            }
        }
    }

    /// Something the workspace has sent is not with its client yet.
    pub fn is_owed_to_host(&self) -> bool {
        self.connections.values().any(|spliced| spliced.is_connected && !spliced.to_client.is_shut)
    }

    /// Puts connections on a page.
    pub fn list(&self, page: &mut Page) {
        page.list(&self.connections, |spliced, now| Listed {
            protocol: Protocol::Tcp,
            guest: SocketAddr::new(spliced.key.guest, spliced.key.guest_port),
            remote: Some(canonical(spliced.address)),
            state: match (spliced.is_connected, spliced.to_guest.is_shut || spliced.to_client.is_shut) {
                (false, _) => State::Opening,
                (true, false) => State::Open,
                (true, true) => State::Closing,
            },
            from_tap: spliced.to_client.total,
            to_tap: spliced.to_guest.total,
            age_ms: now.since(spliced.since),
            idle_ms: now.since(spliced.last_used),
        });
    }

    /// Returns how many bytes it has moved.
    fn turn(&mut self, edge: &Edge, index: u32) -> u64 {
        let Some(spliced) = self.connections.get_mut(index).filter(|spliced| spliced.is_connected) else { return 0 };
        spliced.last_used = edge.now;
        let Spliced { client, inside, to_guest, to_client, .. } = spliced;
        let before = to_guest.total + to_client.total;
        // Both, whatever becomes of the other: what was said before a failure is still handed on.
        let turns = [to_guest.turn(client, inside, &mut self.pipes), to_client.turn(inside, client, &mut self.pipes)];
        if turns.iter().any(Result::is_err) {
            reset_at_death(client);
            reset_at_death(inside);
            self.remove(index);
            return 0;
        }
        let moved = to_guest.total + to_client.total - before;
        if to_guest.is_shut && to_client.is_shut {
            self.remove(index);
        } else if turns.contains(&Ok(Turn::More)) {
            self.ready.wait(index);
        }
        moved
    }

    /// Nobody listens at the workspace's address of one family: there is the other.
    fn refused(&mut self, edge: &mut Edge, index: u32) {
        let Some(spliced) = self.connections.get_mut(index) else { return };
        let next = spliced.other.take().and_then(|key| dial(edge, &key).map(|inside| (key, inside)));
        let Some((key, inside)) = next else {
            edge.counters.ports.refused += 1;
            return self.remove(index);
        };
        if edge.watch(&inside, FlowId { kind: Kind::SplicedInside, ..spliced.id }).is_ok() {
            // The one that was refused is closed.
            (spliced.key, spliced.inside) = (key, inside);
        } else {
            self.remove(index);
        }
    }

    fn remove(&mut self, index: u32) {
        // Both sockets close, with a reset where no end was handed on.
        drop(self.connections.remove(index));
    }
}

/// A socket for both families shows IPv4 addresses in IPv6 ones.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// What both ends are like. Whatever fails is only missing.
fn prepare(socket: &OwnedFd) {
    // A close means a reset, until an end of stream has been handed on.
    reset_at_death(socket);
    // Whoever writes has decided already what to hold back.
    let _ = sockopt::set_tcp_nodelay(socket, true);
    // An urgent byte is one of the stream.
    let _ = sockopt::set_socket_oobinline(socket, true);
}

/// Over a loopback nothing has to be paced, which halves what it carries: no BBR, a default on some machines.
fn do_not_pace(socket: &OwnedFd) {
    // Which of them a namespace may choose is up to the host; the last is built in.
    let _ = ["cubic", "reno"].into_iter().any(|name| sockopt::set_tcp_congestion(socket, name).is_ok());
}

/// A socket inside on its way to the workspace's address; None where there is none to be had.
fn dial(edge: &mut Edge, key: &FlowKey) -> Option<OwnedFd> {
    let socket = edge.stock.take(key.guest.is_ipv6())?;
    prepare(&socket);
    do_not_pace(&socket);
    match rustix::net::connect(&socket, &SocketAddr::new(key.guest, key.guest_port)) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Some(socket),
        // The workspace may have given up that address: the TAP shows what becomes of it.
        Err(_) => None,
    }
}
