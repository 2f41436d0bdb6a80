//! Deadlines of connections. Each has one, of the kind its state calls for; putting it off is free, because the wheel
//! is only told of earlier ones and a timer that fires early sets itself again.

use super::flow::{Deadline, Flow, State};
use super::{Tcp, limits, to_tap};
use crate::edge::Edge;
use crate::flow::FlowId;
use crate::timer::Time;

impl Tcp {
    /// A connection's timer fired.
    pub fn timer(&mut self, edge: &mut Edge, id: FlowId) {
        let Some(index) = self.flows.current(id) else { return };
        let Some(flow) = self.flows.get_mut(index) else { return };
        let (kind, at) = flow.deadline;
        if edge.now < at {
            return edge.timers.set(flow.timer, at);
        }
        match (kind, flow.state) {
            (Deadline::Dial, _) | (_, State::Dialing) => {
                if self.dial_next_resolver(edge, index) {
                    return;
                }
                edge.counters.tcp.flows.timed_out += 1;
                self.remove(edge, index);
            }
            (_, State::SynReceived | State::Opening) => self.handshake_unanswered(edge, index),
            (Deadline::Retransmit, State::Established) => self.retransmission_timeout(edge, index),
            (Deadline::Persist, State::Established) => {
                flow.tries = flow.tries.saturating_add(1);
                if is_lost(flow, edge.now) {
                    edge.counters.tcp.flows.timed_out += 1;
                    return self.abort(edge, index);
                }
                edge.counters.tcp.window_probes += 1;
                to_tap::send_probe(flow, edge);
                self.restart_deadline(edge, index);
            }
            (Deadline::Keepalive, State::Established) => self.keepalive(edge, index),
        }
    }

    fn handshake_unanswered(&mut self, edge: &mut Edge, index: u32) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        flow.tries += 1;
        if flow.tries > limits::SYN_TRIES {
            edge.counters.tcp.flows.timed_out += 1;
            return self.reset_host(edge, index);
        }
        flow.send.syn_sent_again();
        to_tap::send_handshake(flow, edge);
        flow.deadline.1 = edge.now.after(backoff(limits::SYN_RTO_MS, flow.tries));
        edge.timers.set(flow.timer, flow.deadline.1);
    }

    fn retransmission_timeout(&mut self, edge: &mut Edge, index: u32) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        flow.tries = flow.tries.saturating_add(1);
        if is_lost(flow, edge.now) {
            edge.counters.tcp.flows.timed_out += 1;
            return self.abort(edge, index);
        }
        edge.counters.tcp.retransmits_to_tap += 1;
        flow.send.timed_out();
        self.restart_deadline(edge, index);
        self.settle(edge, index);
    }

    /// Nothing for a while: memory that is not needed is given back. Nothing for long: both ends are asked whether
    /// they are there.
    fn keepalive(&mut self, edge: &mut Edge, index: u32) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        let idle = edge.now.since(flow.last_heard);
        if flow.receive.holds_memory() && idle >= limits::MEMORY_IDLE_MS {
            flow.receive.release_idle_memory();
        }
        if idle < idle_limit(flow) {
            flow.tries = 0;
            return self.restart_deadline(edge, index);
        }
        flow.tries += 1;
        // A resolver's end is not kept for one that merely lives.
        if flow.tries > limits::KEEPALIVE_TRIES || flow.resolver.is_some() {
            edge.counters.tcp.flows.timed_out += 1;
            return self.abort(edge, index);
        }
        if flow.tries == 1 {
            // Should this fail, a host that has gone is noticed later or never, as without keepalive.
            let _ = rustix::net::sockopt::set_socket_keepalive(&flow.socket, true);
        }
        to_tap::send_probe(flow, edge);
        flow.deadline = (Deadline::Keepalive, edge.now.after(limits::KEEPALIVE_INTERVAL_MS));
        edge.timers.set(flow.timer, flow.deadline.1);
    }

    /// Sets the deadline the connection's state calls for, after every event.
    pub(super) fn set_deadline(&mut self, edge: &mut Edge, index: u32) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        if flow.state != State::Established {
            return;
        }
        let kind = wanted(flow);
        let is_other = kind != flow.deadline.0;
        let is_progress = std::mem::take(&mut flow.restarts_timer) && kind == Deadline::Retransmit;
        if is_other {
            flow.tries = 0;
        }
        let due = due(flow, kind, edge.now);
        // A deadline that came nearer: one direction was closed, say.
        if is_other || is_progress || due < flow.deadline.1 {
            flow.deadline = (kind, due);
            edge.timers.set_at_latest(flow.timer, flow.deadline.1);
        }
    }

    fn restart_deadline(&mut self, edge: &mut Edge, index: u32) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        let kind = wanted(flow);
        flow.deadline = (kind, due(flow, kind, edge.now));
        edge.timers.set(flow.timer, flow.deadline.1);
    }
}

fn wanted(flow: &Flow) -> Deadline {
    let is_waiting = flow.send.in_flight() || flow.readable;
    if is_waiting && flow.send.is_window_closed() {
        Deadline::Persist
    } else if flow.send.in_flight() {
        Deadline::Retransmit
    } else {
        Deadline::Keepalive
    }
}

fn due(flow: &Flow, kind: Deadline, now: Time) -> Time {
    match kind {
        Deadline::Dial => now.after(limits::DIAL_MS),
        Deadline::Retransmit => now.after(backoff(flow.send.retransmission_timeout(), flow.tries)),
        Deadline::Persist => now.after(backoff(limits::PERSIST_MS, flow.tries)),
        Deadline::Keepalive if flow.receive.holds_memory() => now.after(limits::MEMORY_IDLE_MS),
        Deadline::Keepalive => now.after(idle_limit(flow)),
    }
}

/// Asked often enough, and the workspace's end has not said anything.
fn is_lost(flow: &Flow, now: Time) -> bool {
    flow.tries > limits::DATA_TRIES && now.since(flow.last_heard) >= limits::SILENCE_MS
}

/// Half-closed or half-finished connections are asked earlier: their socket in the workspace may have no owner.
fn idle_limit(flow: &Flow) -> u64 {
    if flow.resolver.is_some() {
        limits::RESOLVER_IDLE_MS
    } else if flow.receive.is_finished() || flow.send.has_fin() {
        limits::HALF_CLOSED_IDLE_MS
    } else {
        limits::KEEPALIVE_IDLE_MS
    }
}

fn backoff(first: u64, tries: u8) -> u64 {
    (first << tries.min(16)).min(limits::MAX_BACKOFF_MS)
}
