//! Segments from the workspace (RFC 9293 3.10.7): new connections, payload, acknowledgements, ends.

use std::io::IoSlice;
use std::net::SocketAddr;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::flow::{Flow, State, SynOptions, reset_at_death};
use super::receive::{Placement, Receive, Reset};
use super::send::{Ack, Send};
use super::{Gather, Tcp, limits, to_tap};
use crate::edge::Edge;
use crate::flow::FlowKey;
use crate::gateway::dns;
use crate::gateway::unreachable::{Reason, Said};
use crate::outbound::Outbound;
use crate::path_mtu;
use crate::policy::{Egress, Transport};
use crate::wire::transport::TcpSegment;
use crate::wire::{IPV4_LEN, IPV6_LEN, IpPacket, Quote, TCP_LEN, TcpFlags};

impl Tcp {
    /// Takes in one segment. Its payload may stay in `gather` until [`Self::flush`].
    pub fn segment_from_tap<'b>(
        &mut self,
        edge: &mut Edge,
        gather: &mut Gather<'b>,
        ip: &IpPacket<'b>,
        segment: &TcpSegment<'b>,
    ) {
        let key =
            FlowKey { guest: ip.src, guest_port: segment.src_port, remote: ip.dst, remote_port: segment.dst_port };
        let Some(index) = self.flows.find(&key) else {
            self.orphan_heard(&key);
            let flags = segment.flags;
            let opens = flags.has(TcpFlags::SYN) && !flags.has(TcpFlags::ACK) && !flags.has(TcpFlags::RST);
            if opens {
                self.open(edge, ip, &key, segment);
            } else {
                to_tap::refuse(edge, &key, segment);
            }
            return;
        };
        let Some(flow) = self.flows.get_mut(index) else { return };
        flow.last_heard = edge.now;
        match flow.state {
            State::Dialing | State::SynReceived if is_new_dial(flow, segment) => {
                self.reset_host(edge, index);
                self.open(edge, ip, &key, segment);
            }
            State::Established if is_reuse(flow, segment) => {
                self.remove(edge, index);
                self.open(edge, ip, &key, segment);
            }
            State::Dialing => self.while_dialing(edge, index, segment),
            State::SynReceived => self.while_syn_received(edge, gather, index, segment),
            State::Opening => self.while_opening(edge, index, segment),
            State::Established => self.while_established(edge, gather, index, segment),
        }
    }

    /// A SYN for a new connection: ask the policy, then dial.
    fn open(&mut self, edge: &mut Edge, ip: &IpPacket<'_>, key: &FlowKey, segment: &TcpSegment<'_>) {
        let (destination, resolver) = match edge.egress(key.remote_addr(), Transport::Tcp) {
            Egress::Host(address) => (address, None),
            Egress::Resolver if key.remote_port == dns::PORT && !edge.config.network.dns => {
                edge.counters.dns.disabled += 1;
                return;
            }
            Egress::Resolver if key.remote_port == dns::PORT && self.to_resolver >= limits::MAX_TO_RESOLVER => {
                edge.counters.tcp.flows.exhausted += 1;
                return;
            }
            Egress::Resolver if key.remote_port == dns::PORT => match edge.resolver(0) {
                Some(resolver) => (resolver, Some(0)),
                None => return to_tap::refuse(edge, key, segment),
            },
            Egress::Resolver => {
                edge.counters.tcp.flows.denied += 1;
                edge.counters.denied.resolver += 1;
                return to_tap::refuse(edge, key, segment);
            }
            Egress::Denied(denial) => {
                edge.counters.tcp.flows.denied += 1;
                edge.counters.denied.count(denial);
                return edge.unreachable_to_tap(ip.bytes, Reason::of_denial(denial));
            }
        };
        let options = segment.syn_options();
        let link_mss = link_mss(edge, key);
        let mss = mss(options.mss, link_mss, key);
        let iss = self.initial_seq(key, edge);
        let send = Send::new(iss, segment.window, options.window_scale.unwrap_or(0), mss);
        let receive = Receive::new(segment.seq + 1, options.window_scale.is_some());
        let ours =
            SynOptions { mss: link_mss, window_scale: options.window_scale.is_some(), sack: options.sack_permitted };

        if self.flows.is_full() {
            edge.counters.tcp.flows.exhausted += 1;
            return to_tap::refuse(edge, key, segment);
        }
        let dialled = dial(&edge.config.outbound, destination);
        let socket = match dialled {
            Ok(socket) => socket,
            Err(errno) => {
                let flows = &mut edge.counters.tcp.flows;
                *if is_exhaustion(errno) { &mut flows.exhausted } else { &mut flows.failed } += 1;
                return match Reason::of(errno) {
                    Some(reason) => edge.unreachable_to_tap(ip.bytes, reason),
                    None => to_tap::refuse(edge, key, segment),
                };
            }
        };
        let ledger = &mut self.ledger;
        let inserted = self.flows.insert(*key, |id| {
            edge.watch(&socket, id).ok()?;
            let timer = edge.timers.insert(id);
            let mut flow = Flow::new(id, *key, socket, receive, send, segment.seq, ours, timer, edge.now);
            flow.resolver = resolver;
            flow.record = ledger.note(key);
            flow.deadline.1 = edge.now.after(dial_limit(edge, resolver));
            edge.timers.set(timer, flow.deadline.1);
            Some(flow)
        });
        if inserted.is_some() {
            edge.counters.tcp.flows.opened += 1;
            self.to_resolver += usize::from(resolver.is_some());
        } else {
            edge.counters.tcp.flows.exhausted += 1;
            to_tap::refuse(edge, key, segment);
        }
    }

    /// Before the host has answered, only a reset means anything; the SYN repeated is being worked on.
    fn while_dialing(&mut self, edge: &mut Edge, index: u32, segment: &TcpSegment<'_>) {
        if segment.flags.has(TcpFlags::RST) {
            edge.counters.tcp.resets_from_tap += 1;
            self.reset_host(edge, index);
        }
    }

    fn while_syn_received<'b>(
        &mut self,
        edge: &mut Edge,
        gather: &mut Gather<'b>,
        index: u32,
        segment: &TcpSegment<'b>,
    ) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        let flags = segment.flags;
        if flags.has(TcpFlags::SYN) && segment.seq == flow.irs {
            return to_tap::send_handshake(flow, edge);
        }
        if flags.has(TcpFlags::ACK) && !flags.has(TcpFlags::RST) {
            if !flow.send.acks_syn(segment.ack) {
                return to_tap::refuse(edge, &flow.key.clone(), segment);
            }
            flow.state = State::Established;
            flow.tries = 0;
            flow.send.established(edge.now);
        }
        self.while_established(edge, gather, index, segment);
    }

    fn while_established<'b>(
        &mut self,
        edge: &mut Edge,
        gather: &mut Gather<'b>,
        index: u32,
        segment: &TcpSegment<'b>,
    ) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        let flags = segment.flags;
        if flags.has(TcpFlags::RST) {
            if flow.receive.is_finished() && flow.send.is_finished() {
                // The workspace has had everything and forgotten the connection; the host still gets what it sent.
                return;
            }
            match flow.receive.reset(segment.seq) {
                Reset::Believed => {
                    edge.counters.tcp.resets_from_tap += 1;
                    self.flush(edge, gather);
                    self.reset_host(edge, index);
                }
                Reset::Challenged => {
                    flow.ack_due = true;
                    self.mark_dirty(index);
                }
                Reset::Ignored => {}
            }
            return;
        }
        if flags.has(TcpFlags::SYN) || !flags.has(TcpFlags::ACK) {
            // A challenge (RFC 5961 4.2): an end that has forgotten this connection answers with a reset.
            flow.ack_due = true;
            return self.mark_dirty(index);
        }
        self.acknowledgement(edge, index, segment);
        self.payload(edge, gather, index, segment);
        self.mark_dirty(index);
    }

    /// The workspace said that a segment of ours did not arrive: a SYN that its firewall rejects, say, or one that is too
    /// long for the way to a container.
    pub fn error_from_tap(&mut self, edge: &mut Edge, said: Said, quote: &Quote) {
        let Some(index) = self.flows.find(&quote.flow()) else { return };
        let Some(flow) = self.flows.get_mut(index) else { return };
        match (said, flow.state) {
            (Said::Unreachable, State::Opening) if flow.send.una() == quote.seq => self.refused(edge, index),
            (Said::TooBig(mtu), State::Established) => {
                let mss = path_mtu::believed(mtu, flow.key.guest).saturating_sub(headers_len(&flow.key));
                if flow.send.too_big(quote.seq, mss) {
                    edge.counters.tcp.retransmits_to_tap += 1;
                    self.mark_dirty(index);
                }
            }
            _ => {}
        }
    }

    fn acknowledgement(&mut self, edge: &mut Edge, index: u32, segment: &TcpSegment<'_>) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        // An old segment's window is old, too.
        let is_old = segment.seq_len() == 0 && segment.seq.before(flow.receive.ack());
        // It may be a keepalive or a window probe, which want an answer.
        flow.ack_due |= is_old;
        if is_old && segment.ack == flow.send.una() {
            return;
        }
        let TcpSegment { seq, ack: number, window, .. } = *segment;
        let ack = Ack { seq, number, window, bare: segment.seq_len() == 0 };
        let acked = flow.send.acknowledge(ack, segment.sack_blocks(), edge.now);
        if acked.progress {
            flow.tries = 0;
            flow.restarts_timer = true;
        }
        flow.ack_due |= acked.unsent;
        if acked.retransmit {
            flow.discard_acknowledged(&mut self.scratch);
            self.retransmit(edge, index);
        }
    }

    fn payload<'b>(&mut self, edge: &mut Edge, gather: &mut Gather<'b>, index: u32, segment: &TcpSegment<'b>) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        let is_fin = segment.flags.has(TcpFlags::FIN);
        if segment.payload.is_empty() && !is_fin {
            return;
        }
        flow.ack_due = true;
        if segment.flags.has(TcpFlags::URG) {
            // Behind the urgent byte (RFC 1122 4.2.2.4 would have it at the byte, but nobody does: RFC 6093).
            flow.receive.note_urgent(segment.seq + u32::from(segment.urgent.max(1)));
        }
        let placement = flow.receive.place(segment.seq, segment.payload.len());
        match placement {
            Placement::Unacceptable => edge.counters.drops.outside_window += u64::from(!segment.payload.is_empty()),
            Placement::InOrder { skip, take } => {
                let data = segment.payload.get(skip..skip + take).unwrap_or_default();
                let is_gathered = gather.flow == Some(index);
                let direct = flow.receive.is_direct() && (is_gathered || flow.receive.pending() == 0);
                if direct {
                    if !is_gathered || gather.count == limits::GATHERED {
                        self.flush(edge, gather);
                    }
                    self.gather(gather, index, data);
                } else {
                    self.flush(edge, gather);
                    self.store(index, segment, skip, data);
                }
            }
            Placement::Ahead { skip, take } => {
                let data = segment.payload.get(skip..skip + take).unwrap_or_default();
                let at = segment.seq + u32::try_from(skip).unwrap_or(0);
                if !flow.receive.store_ahead(at, data) {
                    edge.counters.drops.out_of_order += 1;
                }
            }
        }
        if is_fin && let Some(flow) = self.flows.get_mut(index) {
            flow.receive.note_fin(segment.seq + u32::try_from(segment.payload.len()).unwrap_or(0));
        }
    }

    fn gather<'b>(&mut self, gather: &mut Gather<'b>, index: u32, data: &'b [u8]) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        // A flush may have left bytes pending: these queue up behind them.
        if gather.flow != Some(index) && flow.receive.pending() > 0 {
            let seq = flow.receive.ack();
            flow.receive.store(seq, data);
            flow.receive.advance(data.len());
            return;
        }
        let Some(slot) = gather.slices.get_mut(gather.count) else { return };
        *slot = IoSlice::new(data);
        gather.count += 1;
        gather.flow = Some(index);
        flow.receive.advance(data.len());
    }

    /// In-order payload that cannot go to the socket at once: into the ring, from where it goes at the end of the batch.
    fn store(&mut self, index: u32, segment: &TcpSegment<'_>, skip: usize, data: &[u8]) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        flow.receive.store(segment.seq + u32::try_from(skip).unwrap_or(0), data);
        flow.receive.advance(data.len());
    }

    /// Gives what was gathered to its host socket and keeps what that does not take.
    pub fn flush(&mut self, edge: &mut Edge, gather: &mut Gather<'_>) {
        let Some(index) = gather.flow.take() else { return };
        let count = std::mem::take(&mut gather.count);
        let Some(flow) = self.flows.get_mut(index) else { return };
        let slices = gather.slices.get(..count).unwrap_or_default();
        let Ok(mut taken) = flow.write_host(slices) else { return self.host_hung_up(edge, index) };
        flow.receive.took(taken);
        let mut left = flow.receive.pending() as usize;
        for slice in slices {
            let skipped = taken.min(slice.len());
            taken -= skipped;
            let rest = slice.get(skipped..).unwrap_or_default();
            flow.receive.store_pending_at(left, rest);
            left -= rest.len();
        }
    }
}

/// The largest segment the link carries.
pub(super) fn link_mss(edge: &Edge, key: &FlowKey) -> u16 {
    edge.config.network.mtu.saturating_sub(headers_len(key))
}

/// What of a packet the headers take.
pub(super) fn headers_len(key: &FlowKey) -> u16 {
    let len = if key.remote.is_ipv4() { IPV4_LEN + TCP_LEN } else { IPV6_LEN + TCP_LEN };
    u16::try_from(len).unwrap_or(0)
}

/// The segments to send to the workspace, whose SYN named `theirs` or nothing.
pub(super) fn mss(theirs: Option<u16>, link_mss: u16, key: &FlowKey) -> u16 {
    let default = if key.remote.is_ipv4() { limits::DEFAULT_MSS_V4 } else { limits::DEFAULT_MSS_V6 };
    theirs.unwrap_or(default).min(link_mss).max(limits::MIN_MSS)
}

/// The workspace gave up a connect, which needs no segment, and uses its port for another one.
fn is_new_dial(flow: &Flow, segment: &TcpSegment<'_>) -> bool {
    let flags = segment.flags;
    flags.has(TcpFlags::SYN) && !flags.has(TcpFlags::ACK) && !flags.has(TcpFlags::RST) && segment.seq != flow.irs
}

/// The workspace has ended its stream, the host's socket has all of it, and a later connection has the same ports: that
/// the host did not end its own does not keep the old one alive.
fn is_reuse(flow: &Flow, segment: &TcpSegment<'_>) -> bool {
    let flags = segment.flags;
    let opens = flags.has(TcpFlags::SYN) && !flags.has(TcpFlags::ACK) && !flags.has(TcpFlags::RST);
    opens && flow.host_shut && flow.receive.ack().before(segment.seq)
}

/// A nonblocking socket on its way to `destination`.
pub(super) fn dial(outbound: &Outbound, destination: SocketAddr) -> Result<std::os::fd::OwnedFd, Errno> {
    let family = if destination.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    reset_at_death(&socket);
    // An urgent byte is one of the stream, where peeks count it. Failing, it is missing there, as tcp(7) has it.
    let _ = rustix::net::sockopt::set_socket_oobinline(&socket, true);
    outbound.bind(&socket, destination.ip())?;
    match rustix::net::connect(&socket, &destination) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// How long a host connect may take: a resolver that says nothing gives way to the next.
pub(super) fn dial_limit(edge: &Edge, resolver: Option<usize>) -> u64 {
    match resolver {
        Some(step) if edge.resolver(step + 1).is_some() => limits::RESOLVER_DIAL_MS,
        _ => limits::DIAL_MS,
    }
}

fn is_exhaustion(errno: Errno) -> bool {
    matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL | Errno::AGAIN)
}
