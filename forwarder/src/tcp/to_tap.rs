//! Segments to the workspace: data from the host's socket, acknowledgements, resets.

use super::flow::{Flow, Peeked, State, header};
use super::{Seq, Tcp, limits};
use crate::edge::Edge;
use crate::flow::FlowKey;
use crate::tap::Written;
use crate::wire::build::MAX_PAYLOAD;
use crate::wire::transport::{
    OPTION_MSS, OPTION_NOP, OPTION_SACK, OPTION_SACK_PERMITTED, OPTION_WINDOW_SCALE, TcpSegment,
};
use crate::wire::{IPV4_LEN, TCP_LEN, TcpFlags};

/// The longest payload of one frame: an IPv4 packet's 65,535 bytes less both headers; IPv6 would admit 20 more.
const MAX_SEGMENT: usize = MAX_PAYLOAD - IPV4_LEN - TCP_LEN;
/// SACK blocks in one acknowledgement (RFC 2018: 4 without timestamps).
const SACK_BLOCKS: usize = 4;

/// Why a turn of sending ended.
enum Turn {
    /// Nothing more to send, or no window for it.
    Done,
    /// More might go: another turn, later.
    More,
    /// The host's socket failed: the connection is lost.
    Failed,
}

impl Tcp {
    /// Gives the host what is pending, sends what the connection may send now, drops what was acknowledged, answers
    /// what is owed, sets its deadline and removes it when it is finished.
    pub(super) fn settle(&mut self, edge: &mut Edge, index: u32) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        if flow.state == State::Established {
            if flow.write_pending().is_err() {
                return self.host_hung_up(edge, index);
            }
            if let Some(more) = flow.receive.earned()
                && self.grown + more <= limits::MAX_GROWN_WINDOWS
            {
                self.grown += more;
                flow.receive.grow();
            }
            flow.discard_acknowledged(&mut self.scratch);
            flow.widen_queue(edge.now);
            match send_turn(flow, edge, &mut self.scratch) {
                Turn::Done => {}
                Turn::More => self.ready.wait(index),
                Turn::Failed => return self.abort(edge, index),
            }
            if flow.ack_due || flow.receive.should_update() {
                send_ack(flow, edge);
                if flow.ack_due {
                    self.ready.wait(index);
                }
            }
            if flow.is_finished() {
                return self.remove(edge, index);
            }
        }
        self.set_deadline(edge, index);
    }

    /// Sends again what is known to be lost.
    pub(super) fn retransmit(&mut self, edge: &mut Edge, index: u32) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        for _ in 0..limits::FRAMES_A_TURN {
            let Some((seq, len)) = flow.send.lost(frame_limit(flow)) else { return };
            let (flags, count) = if len == 0 {
                (TcpFlags::FIN.with(TcpFlags::ACK), 0)
            } else {
                let offset = flow.send.offset_of(seq);
                match flow.peek(offset, edge.frame.payload_mut(len), &mut self.scratch) {
                    Ok(Peeked::Data(count)) => (TcpFlags::ACK, count),
                    _ => return,
                }
            };
            let count = cut_for_urgent(flow, seq, count);
            if send_segment(flow, edge, seq, flags, count) == Written::Full {
                return;
            }
            edge.counters.tcp.retransmits_to_tap += 1;
            flow.send.sent_again(seq + u32::try_from(count.max(1)).unwrap_or(1));
        }
    }

    /// Nobody reads at the host any more, but what it said before may be an answer (an early HTTP error, say): the
    /// workspace gets as much of it as it has a window for, then the reset.
    pub(super) fn host_hung_up(&mut self, edge: &mut Edge, index: u32) {
        if let Some(flow) = self.flows.get_mut(index) {
            flow.readable = true;
            send_turn(flow, edge, &mut self.scratch);
        }
        self.abort(edge, index);
    }

    /// The connection is lost at the host: both ends get a reset.
    pub(super) fn abort(&mut self, edge: &mut Edge, index: u32) {
        if let Some(flow) = self.flows.get_mut(index) {
            edge.counters.tcp.flows.failed += 1;
            send_reset(flow, edge);
        }
        self.reset_host(edge, index);
    }
}

/// Up to [`limits::FRAMES_A_TURN`] frames of the host's stream, then its end.
fn send_turn(flow: &mut Flow, edge: &mut Edge, scratch: &mut [u8]) -> Turn {
    let limit = frame_limit(flow);
    for _ in 0..limits::FRAMES_A_TURN {
        if flow.send.is_fin_due() {
            if edge.is_tap_full() {
                return Turn::More;
            }
            let seq = flow.send.nxt();
            if send_segment(flow, edge, seq, TcpFlags::FIN.with(TcpFlags::ACK), 0) == Written::Full {
                return Turn::More;
            }
            flow.send.sent(1, edge.now);
            return Turn::Done;
        }
        // Bytes seen before are in the queue whatever was said about it since.
        let again = flow.send.nxt() != flow.send.max();
        if !flow.readable && !again {
            return Turn::Done;
        }
        let room = flow.send.sendable(limit);
        // Nothing is in flight beyond what can be peeked over; acknowledgements bring it back into reach.
        if room == 0 || flow.send.offset() as usize >= scratch.len() {
            return Turn::Done;
        }
        if edge.is_tap_full() {
            return Turn::More;
        }
        let count = match flow.peek(flow.send.offset(), edge.frame.payload_mut(room), scratch) {
            Ok(Peeked::Data(count)) => count,
            Ok(Peeked::Empty) => {
                // Without SO_PEEK_OFF nothing is seen behind an urgent byte before what precedes it was taken.
                flow.readable = flow.has_urgent && flow.send.in_flight();
                return Turn::Done;
            }
            Ok(Peeked::OutOfReach) => return Turn::Done,
            Ok(Peeked::EndOfStream) => {
                flow.send.end_of_stream();
                continue;
            }
            Err(_) => return Turn::Failed,
        };
        // A short read emptied the queue, and more would be another edge; only its end may already be there, and reads
        // end before an urgent byte.
        if count < room && !flow.host_closing && !flow.has_urgent {
            flow.readable = false;
        }
        let seq = flow.send.nxt();
        if !again && flow.is_urgent(flow.send.offset(), scratch) {
            flow.send.next_is_urgent();
        }
        let count = cut_for_urgent(flow, seq, count);
        match send_segment(flow, edge, seq, TcpFlags::ACK.with(TcpFlags::PSH), count) {
            Written::Full => {
                flow.readable = true;
                return Turn::More;
            }
            Written::Sent | Written::Dropped => flow.send.sent(count, edge.now),
        }
    }
    Turn::More
}

/// How much of `count` bytes at `seq` one frame takes: a single segment where it has an urgent pointer.
fn cut_for_urgent(flow: &Flow, seq: Seq, count: usize) -> usize {
    match flow.send.urgent_pointer(seq) {
        Some(_) => count.min(flow.send.mss().into()),
        None => count,
    }
}

/// Whole segments that fit in one frame.
fn frame_limit(flow: &Flow) -> usize {
    let mss = usize::from(flow.send.mss()).max(1);
    (MAX_SEGMENT - MAX_SEGMENT % mss).max(mss.min(MAX_SEGMENT))
}

fn send_segment(flow: &mut Flow, edge: &mut Edge, seq: Seq, flags: TcpFlags, payload_len: usize) -> Written {
    let ends = flow.ends();
    let mut header = flow.header(seq, flags);
    if let Some(pointer) = flow.send.urgent_pointer(seq) {
        header.flags |= TcpFlags::URG.0;
        header.urgent = pointer.into();
    }
    let written = edge.tcp_to_tap(ends, header, &[], payload_len, flow.send.mss());
    if written == Written::Sent {
        flow.ack_due = false;
    }
    written
}

/// A bare acknowledgement, with what is held ahead of gaps when the workspace wants to know.
fn send_ack(flow: &mut Flow, edge: &mut Edge) {
    let ends = flow.ends();
    let header = flow.header(flow.send.max(), TcpFlags::ACK);
    let mut options = [OPTION_NOP; 4 + 8 * SACK_BLOCKS];
    let mut len = 0;
    if flow.options.sack && !flow.receive.ahead().is_empty() {
        let blocks = flow.receive.ahead().iter().rev().take(SACK_BLOCKS);
        len = 4;
        for (from, to) in blocks {
            options[len..len + 4].copy_from_slice(&from.0.to_be_bytes());
            options[len + 4..len + 8].copy_from_slice(&to.0.to_be_bytes());
            len += 8;
        }
        options[2] = OPTION_SACK;
        options[3] = u8::try_from(len - 2).unwrap_or(2);
    }
    if edge.tcp_to_tap(ends, header, &options[..len], 0, flow.send.mss()) != Written::Full {
        flow.ack_due = false;
    }
}

/// Our SYN or SYN-ACK, for the first time or again.
pub(super) fn send_handshake(flow: &mut Flow, edge: &mut Edge) {
    let ends = flow.ends();
    let flags = if flow.state == State::Opening { TcpFlags::SYN } else { TcpFlags::SYN.with(TcpFlags::ACK) };
    let header = flow.header(flow.send.una(), flags);
    let [high, low] = flow.options.mss.to_be_bytes();
    let mut options = [OPTION_NOP; 12];
    options[..4].copy_from_slice(&[OPTION_MSS, 4, high, low]);
    let mut len = 4;
    if flow.options.sack {
        options[len + 2..len + 4].copy_from_slice(&[OPTION_SACK_PERMITTED, 2]);
        len += 4;
    }
    if flow.options.window_scale {
        options[len + 1..len + 4].copy_from_slice(&[OPTION_WINDOW_SCALE, 3, flow.receive.shift()]);
        len += 4;
    }
    edge.tcp_to_tap(ends, header, &options[..len], 0, flow.send.mss());
}

/// An acknowledgement of the byte before the last: the workspace must answer with its window, or with a reset when it
/// does not know the connection (RFC 1122 4.2.3.6, RFC 9293 3.8.6.1).
pub(super) fn send_probe(flow: &mut Flow, edge: &mut Edge) {
    let ends = flow.ends();
    let seq = Seq(flow.send.una().0.wrapping_sub(1));
    let header = flow.header(seq, TcpFlags::ACK);
    edge.tcp_to_tap(ends, header, &[], 0, flow.send.mss());
}

pub(super) fn send_reset(flow: &mut Flow, edge: &mut Edge) {
    let ends = flow.ends();
    let seq = if flow.state == State::Dialing { Seq(0) } else { flow.send.max() };
    let header = flow.header(seq, TcpFlags::RST.with(TcpFlags::ACK));
    edge.counters.tcp.resets_to_tap += 1;
    edge.tcp_to_tap(ends, header, &[], 0, flow.send.mss());
}

/// The answer to a segment that belongs to no connection (RFC 9293 3.10.7.1).
pub(super) fn refuse(edge: &mut Edge, key: &FlowKey, segment: &TcpSegment<'_>) {
    if segment.flags.has(TcpFlags::RST) {
        return;
    }
    let header = if segment.flags.has(TcpFlags::ACK) {
        header(key, segment.ack, Seq(0), TcpFlags::RST, 0)
    } else {
        let ack = segment.seq + segment.seq_len();
        header(key, Seq(0), ack, TcpFlags::RST.with(TcpFlags::ACK), 0)
    };
    edge.counters.tcp.resets_to_tap += 1;
    edge.tcp_to_tap((key.remote, key.guest), header, &[], 0, limits::MIN_MSS);
}
