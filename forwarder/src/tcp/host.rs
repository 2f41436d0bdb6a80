//! Events of the host's sockets.

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::sockopt;

use super::flow::{Deadline, State};
use super::{Tcp, from_tap, limits, to_tap};
use crate::edge::Edge;
use crate::flow::FlowId;
use crate::gateway::unreachable::Reason;

impl Tcp {
    /// Takes in what epoll reported for one connection.
    pub fn host_event(&mut self, edge: &mut Edge, id: FlowId, events: EventFlags) {
        let Some(index) = self.flows.current(id) else { return };
        let Some(flow) = self.flows.get_mut(index) else { return };
        if flow.state == State::Dialing {
            if events.intersects(EventFlags::ERR | EventFlags::HUP) {
                let errno = match sockopt::socket_error(&flow.socket) {
                    Ok(Err(errno)) | Err(errno) => errno,
                    Ok(Ok(())) => return,
                };
                return self.dial_failed(edge, index, errno);
            }
            if !events.contains(EventFlags::OUT) {
                return;
            }
            flow.state = State::SynReceived;
            flow.deadline = (Deadline::Retransmit, edge.now.after(limits::SYN_RTO_MS));
            edge.timers.set_at_latest(flow.timer, flow.deadline.1);
            flow.send.syn_sent(edge.now);
            to_tap::send_handshake(flow, edge);
        }
        if flow.state == State::Opening && events.intersects(EventFlags::ERR | EventFlags::HUP) {
            return self.abort(edge, index);
        }
        let reads = EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        flow.readable |= events.intersects(reads);
        flow.host_closing |= events.intersects(EventFlags::RDHUP | EventFlags::HUP);
        if events.contains(EventFlags::ERR) && flow.send.has_fin() {
            // The stream has ended, so no read will tell of this.
            return self.abort(edge, index);
        }
        // Every report is of all that is so now.
        flow.has_urgent = events.contains(EventFlags::PRI);
        flow.writable |= events.contains(EventFlags::OUT);
        self.settle(edge, index);
    }

    /// The host could not connect: the workspace learns why. A resolver that fails is followed by the next.
    fn dial_failed(&mut self, edge: &mut Edge, index: u32, errno: Errno) {
        if self.dial_next_resolver(edge, index) {
            return;
        }
        let Some(flow) = self.flows.get_mut(index) else { return };
        edge.counters.tcp.flows.failed += 1;
        match (errno, Reason::of(errno)) {
            // The workspace's own SYNs have gone unanswered as long: its connect times out by itself.
            (Errno::TIMEDOUT, _) => edge.counters.tcp.flows.timed_out += 1,
            (_, Some(reason)) => {
                let quoted = flow.quoted_syn();
                edge.unreachable_to_tap(&quoted, reason);
            }
            (_, None) => to_tap::send_reset(flow, edge),
        }
        self.remove(edge, index);
    }

    pub(super) fn dial_next_resolver(&mut self, edge: &mut Edge, index: u32) -> bool {
        let Some(flow) = self.flows.get_mut(index) else { return false };
        let Some(next) = flow.resolver.map(|step| step + 1) else { return false };
        let Some(resolver) = edge.resolver(next) else { return false };
        let Ok(socket) = from_tap::dial(&edge.config.outbound, resolver) else { return false };
        if edge.watch(&socket, flow.id).is_err() {
            return false;
        }
        edge.counters.dns.failovers += 1;
        flow.resolver = Some(next);
        flow.socket = socket;
        flow.deadline = (Deadline::Dial, edge.now.after(from_tap::dial_limit(edge, flow.resolver)));
        edge.timers.set(flow.timer, flow.deadline.1);
        true
    }
}
