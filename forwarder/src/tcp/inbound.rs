//! Connections from the host to the workspace: a client of a published port has been accepted, and we dial inside
//! (RFC 9293 3.10.7.3).
//!
//! The host's kernel has accepted the client before the workspace is asked, so a client of a port where nobody listens
//! sees its connect succeed and a reset after, as with docker-proxy and slirp4netns. What it sends meanwhile waits in
//! the host socket's queue. Where the workspace refuses, the same is tried once at its address of the other family.

use std::hash::BuildHasher;
use std::os::fd::OwnedFd;

use super::flow::{Deadline, Flow, Inbound, State, SynOptions, reset_at_death};
use super::from_tap::{link_mss, mss};
use super::receive::Receive;
use super::send::Send;
use super::{Seq, Tcp, limits, to_tap};
use crate::edge::Edge;
use crate::flow::FlowKey;
use crate::wire::TcpFlags;
use crate::wire::transport::TcpSegment;

/// Ports that stand for a client's own where that is taken: RFC 6335's dynamic ones.
const DYNAMIC_PORTS: std::ops::Range<u16> = 49_152..65_535;

impl Tcp {
    /// Another client may be accepted.
    pub fn has_room_for_client(&self) -> bool {
        !self.flows.is_full() && self.inbound < limits::MAX_INBOUND && self.opening < limits::MAX_OPENING
    }

    /// Dials the workspace for the client of `socket`; where that refuses as `key` says, as `other` says.
    pub fn open_to_guest(&mut self, edge: &mut Edge, socket: OwnedFd, key: FlowKey, other: Option<FlowKey>) {
        // Closing it means a reset: whoever does not get through is not to take that for an end of stream.
        reset_at_death(&socket);
        // As with those that are dialled: an urgent byte is one of the stream.
        let _ = rustix::net::sockopt::set_socket_oobinline(&socket, true);
        let Some(key) = self.free_key(key, edge) else {
            edge.counters.ports.exhausted += 1;
            return;
        };
        self.orphan_heard(&key);
        let iss = self.initial_seq(&key, edge);
        let options = SynOptions { mss: link_mss(edge, &key), window_scale: true, sack: true };
        // The workspace's SYN-ACK says the rest.
        let (receive, send) = (Receive::new(Seq(0), true), Send::new(iss, 0, 0, options.mss));
        let ledger = &mut self.ledger;
        let inserted = self.flows.insert(key, |id| {
            edge.watch(&socket, id).ok()?;
            let timer = edge.timers.insert(id);
            let mut flow = Flow::new(id, key, socket, receive, send, Seq(0), options, timer, edge.now);
            flow.state = State::Opening;
            flow.send.syn_sent(edge.now);
            flow.inbound = Some(Inbound { other });
            flow.readable = true;
            flow.record = ledger.note(&key);
            flow.deadline = (Deadline::Retransmit, edge.now.after(limits::SYN_RTO_MS));
            edge.timers.set(timer, flow.deadline.1);
            Some(flow)
        });
        let Some(flow) = inserted.and_then(|index| self.flows.get_mut(index)) else {
            edge.counters.ports.exhausted += 1;
            return;
        };
        edge.counters.tcp.flows.opened += 1;
        self.inbound += 1;
        self.opening += 1;
        to_tap::send_handshake(flow, edge);
    }

    /// The key, with another port of the client's where there is a connection with its own: two published ports may
    /// lead to one port of the workspace, and all clients of the host's loopback have one address there.
    fn free_key(&self, key: FlowKey, edge: &Edge) -> Option<FlowKey> {
        let other_port = |turn: u64| {
            let hash = self.iss_key.hash_one((key, edge.now.0, turn));
            let offset = u16::try_from(hash % u64::from(DYNAMIC_PORTS.end - DYNAMIC_PORTS.start)).unwrap_or(0);
            FlowKey { remote_port: DYNAMIC_PORTS.start + offset, ..key }
        };
        let mut keys = std::iter::once(key).chain((0..limits::PORT_TRIES).map(other_port));
        keys.find(|key| self.flows.find(key).is_none())
    }

    pub(super) fn while_opening(&mut self, edge: &mut Edge, index: u32, segment: &TcpSegment<'_>) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        let flags = segment.flags;
        if flags.has(TcpFlags::ACK) && !flow.send.acks_syn(segment.ack) {
            // An end of an earlier connection with this key, such as one in TIME-WAIT: the reset clears it away.
            to_tap::refuse(edge, &flow.key.clone(), segment);
            if !flags.has(TcpFlags::RST) && flow.tries == 0 {
                flow.tries = 1;
                flow.send.syn_sent_again();
                to_tap::send_handshake(flow, edge);
            }
            return;
        }
        // Neither a SYN that crosses ours nor a reset of nothing means anything here.
        if !flags.has(TcpFlags::ACK) {
            return;
        }
        if flags.has(TcpFlags::RST) {
            edge.counters.tcp.resets_from_tap += 1;
            return self.refused(edge, index);
        }
        if !flags.has(TcpFlags::SYN) {
            return;
        }
        let options = segment.syn_options();
        flow.irs = segment.seq;
        flow.options.window_scale = options.window_scale.is_some();
        flow.options.sack = options.sack_permitted;
        flow.receive = Receive::new(segment.seq + 1, options.window_scale.is_some());
        // What our SYN promised.
        flow.receive.advertise(true);
        let mss = mss(options.mss, flow.options.mss, &flow.key);
        flow.send.answered(segment.window, options.window_scale.unwrap_or(0), mss, edge.now);
        flow.state = State::Established;
        flow.tries = 0;
        flow.ack_due = true;
        self.opening -= 1;
        self.mark_dirty(index);
    }

    /// Nobody listens there. The socket closes with a reset where nothing else is to be tried.
    pub(super) fn refused(&mut self, edge: &mut Edge, index: u32) {
        let Some(flow) = self.take(edge, index) else { return };
        match flow.inbound.and_then(|inbound| inbound.other) {
            Some(other) => self.open_to_guest(edge, flow.socket, other, None),
            None => edge.counters.ports.refused += 1,
        }
    }
}
