//! TCP between the workspace and the host's sockets: a translation, not a proxy of bytes through buffers of our own.
//!
//! Every connection of the workspace is one nonblocking host socket. The workspace's SYN dials; the SYN-ACK goes out
//! when the host is connected, a reset or an ICMP error when it is not. From then on:
//!
//! - **workspace to host** ([`receive`]): payloads of one batch of frames are gathered and given to the socket in one
//!   call, straight from the frames. What the socket does not take is kept within the advertised window. One
//!   acknowledgement a connection a batch.
//! - **host to workspace** ([`send`]): the socket's receive queue is the retransmission buffer. Bytes are peeked into
//!   the frame being built, up to 64 KB for the workspace's kernel to cut, and taken from the queue when acknowledged.
//!
//! A client of a published port comes the other way round ([`inbound`]): its host socket is connected, and we dial the
//! workspace.
//!
//! Files: [`seq`] numbers and [`stretches`] of them; [`receive`] and [`send`], the pure halves; [`queue`], room at the
//! host's end; [`flow`], one connection with its host socket; [`from_tap`], [`host`] and [`timers`], what the three kinds of
//! events do; [`to_tap`], the segments sent; [`ledger`] and [`orphans`], what a forwarder leaves to its successor;
//! [`limits`].
#![forbid(unsafe_code)]

mod flow;
mod from_tap;
mod host;
mod inbound;
pub mod ledger;
mod limits;
mod orphans;
mod queue;
mod receive;
mod send;
mod seq;
mod stretches;
mod timers;
mod to_tap;

use std::hash::{BuildHasher, RandomState};
use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;

pub use flow::reset_at_death;
pub use seq::Seq;

use crate::edge::Edge;
use crate::flow::list::{Listed, Page, Protocol};
use crate::flow::{FlowKey, Kind, Table};
use crate::timer::Time;
use crate::turns::Turns;
use flow::{Flow, State};
use ledger::Ledger;
use orphans::Orphans;

/// Bytes dropped from a host socket's queue in one call, and peeked over where SO_PEEK_OFF is missing. The kernel
/// writes nothing there when it drops, so the pages are never touched.
const SCRATCH: usize = 1 << 22;

/// All connections.
#[derive(Debug)]
pub struct Tcp {
    flows: Table<FlowKey, Flow>,
    /// The same for a successor.
    ledger: Ledger,
    /// What a predecessor left.
    orphans: Orphans,
    /// Flows touched by this batch: acknowledgements and freed queue space are settled at its end.
    dirty: Vec<u32>,
    /// Flows with more to send than their turn allowed.
    ready: Turns,
    scratch: Vec<u8>,
    /// Bytes the windows of all connections have grown by, at most [`limits::MAX_GROWN_WINDOWS`].
    grown: usize,
    /// Connections from the host, and those of them that the workspace has not answered yet.
    inbound: usize,
    opening: usize,
    /// Connections to the virtual resolver.
    to_resolver: usize,
    /// Keys the initial sequence numbers (RFC 6528).
    iss_key: RandomState,
}

/// Payloads of consecutive segments of one connection, on their way to the host in one call.
#[derive(Debug)]
pub struct Gather<'b> {
    flow: Option<u32>,
    slices: [IoSlice<'b>; limits::GATHERED],
    count: usize,
}

impl Gather<'_> {
    pub fn new() -> Self {
        Self { flow: None, slices: [IoSlice::new(&[]); limits::GATHERED], count: 0 }
    }
}

impl Tcp {
    /// `memory` outlives this process: up to [`ledger::WORDS`] words.
    pub fn new(memory: &'static [AtomicU64]) -> Self {
        let (ledger, left) = Ledger::open(memory);
        Self {
            ledger,
            orphans: Orphans::new(left),
            flows: Table::new(Kind::Tcp, limits::MAX_FLOWS),
            dirty: Vec::new(),
            ready: Turns::default(),
            scratch: vec![0; SCRATCH],
            grown: 0,
            inbound: 0,
            opening: 0,
            to_resolver: 0,
            iss_key: RandomState::new(),
        }
    }

    /// Where a predecessor's workspace was.
    pub fn recall(&self, edge: &mut Edge) {
        edge.recall(self.ledger.whereabouts());
    }

    /// Keeps where the workspace is for a successor.
    pub fn note_whereabouts(&mut self, edge: &Edge) {
        self.ledger.note_whereabouts(edge.guest.whereabouts());
    }

    /// When [`Self::probe_orphans`] has something to do.
    pub fn orphans_deadline(&self) -> Option<Time> {
        self.orphans.deadline()
    }

    /// Some connection has not been given all that the workspace sends, its end of stream included.
    pub fn is_owed_to_host(&self) -> bool {
        self.flows.values().any(|flow| !flow.host_shut)
    }

    /// Puts connections on a page.
    pub fn list(&self, page: &mut Page) {
        page.list(&self.flows, |flow, now| Listed {
            protocol: Protocol::Tcp,
            guest: SocketAddr::new(flow.key.guest, flow.key.guest_port),
            remote: Some(flow.key.remote_addr()),
            state: flow.listed_state(),
            from_tap: flow.receive.total(),
            to_tap: flow.send.total(),
            age_ms: now.since(flow.since),
            idle_ms: now.since(flow.last_heard),
        });
    }

    /// Connections wait for their turn to send.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Gives every waiting connection one turn.
    pub fn run_ready(&mut self, edge: &mut Edge) {
        if edge.is_tap_full() {
            return;
        }
        for _ in 0..self.ready.due() {
            if let Some(index) = self.ready.next() {
                self.settle(edge, index);
            }
        }
    }

    /// Ends a batch: every connection it touched sends what it may, or the acknowledgement it owes.
    pub fn settle_batch(&mut self, edge: &mut Edge) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for index in dirty.drain(..) {
            if let Some(flow) = self.flows.get_mut(index) {
                flow.is_dirty = false;
                self.settle(edge, index);
            }
        }
        self.dirty = dirty;
    }

    fn mark_dirty(&mut self, index: u32) {
        if let Some(flow) = self.flows.get_mut(index)
            && !flow.is_dirty
        {
            flow.is_dirty = true;
            self.dirty.push(index);
        }
    }

    fn remove(&mut self, edge: &mut Edge, index: u32) {
        drop(self.take(edge, index));
    }

    /// Removes the connection, but leaves its host socket open.
    fn take(&mut self, edge: &mut Edge, index: u32) -> Option<Flow> {
        let flow = self.flows.remove(index)?;
        edge.timers.remove(flow.timer);
        if let Some(record) = flow.record {
            self.ledger.forget(record);
        }
        self.grown = self.grown.saturating_sub(flow.receive.grown());
        self.inbound -= usize::from(flow.inbound.is_some());
        self.opening -= usize::from(flow.state == State::Opening);
        self.to_resolver -= usize::from(flow.resolver.is_some());
        edge.counters.tcp.flows.closed += 1;
        Some(flow)
    }

    /// Closes the host's socket with a reset instead of an orderly end.
    fn reset_host(&mut self, edge: &mut Edge, index: u32) {
        if let Some(flow) = self.flows.get(index) {
            // Failing to ask for the reset leaves an orderly close, which is the next best.
            let _ = rustix::net::sockopt::set_socket_linger(&flow.socket, Some(std::time::Duration::ZERO));
        }
        self.remove(edge, index);
    }

    fn initial_seq(&self, key: &FlowKey, edge: &Edge) -> Seq {
        // 4 µs steps as in RFC 9293 3.4.1, from a millisecond clock.
        let [.., a, b, c, d] = (self.iss_key.hash_one(key).wrapping_add(edge.now.0 * 250)).to_be_bytes();
        Seq(u32::from_be_bytes([a, b, c, d]))
    }
}
