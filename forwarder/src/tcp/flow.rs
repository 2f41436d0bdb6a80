//! One TCP connection: its two halves, its host socket ([`host_socket`]), and which of its deadlines runs.

mod host_socket;

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use zerocopy::IntoBytes;

use host_socket::PeekOffset;
pub use host_socket::{Peeked, reset_at_death};

use super::ledger::Record;
use super::queue::Queue;
use super::receive::Receive;
use super::send::Send;
use super::{Seq, limits};
use crate::flow::{FlowId, FlowKey, list};
use crate::timer::{Time, TimerId};
use crate::wire::ip::header_for_quote;
use crate::wire::transport::TcpHeader;
use crate::wire::{PROTOCOL_TCP, TCP_LEN, TcpFlags};

/// Where the connection stands. Closing is told by the halves: each has its own end of stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The workspace's SYN is here, the host's connect is under way.
    Dialing,
    /// The host is connected; our SYN-ACK waits for its acknowledgement.
    SynReceived,
    /// The host's client is connected; our SYN waits for the workspace's answer.
    Opening,
    /// Both are connected; data flows.
    Established,
}

/// The one deadline that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// The host's connect has taken too long.
    Dial,
    /// The SYN, the SYN-ACK, or data, was not acknowledged in time.
    Retransmit,
    /// The workspace's window is closed and nothing will open it but a probe.
    Persist,
    /// Nothing has happened for long: is the workspace's end still there?
    Keepalive,
}

/// One connection.
#[derive(Debug)]
pub struct Flow {
    pub id: FlowId,
    pub key: FlowKey,
    pub state: State,
    pub receive: Receive,
    pub send: Send,
    pub socket: OwnedFd,
    /// The workspace's SYN's sequence number.
    pub irs: Seq,
    pub options: SynOptions,
    pub timer: TimerId,
    /// Its place in the ledger.
    pub record: Option<Record>,
    pub deadline: (Deadline, Time),
    /// Deadlines of this kind that have passed in a row.
    pub tries: u8,
    pub since: Time,
    pub last_heard: Time,
    /// The how-manieth resolver was dialled, for TCP to the virtual one.
    pub resolver: Option<usize>,
    /// It came from the host, to a published port.
    pub inbound: Option<Inbound>,
    /// Something new was acknowledged: the retransmission timer starts anew (RFC 6298 5.3).
    pub restarts_timer: bool,
    /// An acknowledgement is owed.
    pub ack_due: bool,
    /// In the list of flows to settle at the end of the batch.
    pub is_dirty: bool,
    /// The host socket may have more to read.
    pub readable: bool,
    /// The host has sent its FIN; it may still be behind data.
    pub host_closing: bool,
    /// The host has sent urgent data that was not taken: the kernel ends reads before it.
    pub has_urgent: bool,
    /// The host's socket takes data.
    pub writable: bool,
    pub host_shut: bool,
    no_delay: bool,
    has_sent: bool,
    peek: PeekOffset,
    queue: Queue,
}

/// What is only of interest for a connection from the host.
#[derive(Clone, Copy, Debug)]
pub struct Inbound {
    /// Where else to try it when the workspace refuses.
    pub other: Option<FlowKey>,
}

/// What our SYN or SYN-ACK says.
#[derive(Clone, Copy, Debug)]
pub struct SynOptions {
    pub mss: u16,
    pub window_scale: bool,
    pub sack: bool,
}

impl Flow {
    #[expect(clippy::too_many_arguments, reason = "each argument is a different part of the connection")]
    pub fn new(
        id: FlowId,
        key: FlowKey,
        socket: OwnedFd,
        receive: Receive,
        send: Send,
        irs: Seq,
        options: SynOptions,
        timer: TimerId,
        now: Time,
    ) -> Self {
        Self {
            id,
            key,
            state: State::Dialing,
            receive,
            send,
            socket,
            irs,
            options,
            timer,
            record: None,
            deadline: (Deadline::Dial, now.after(limits::DIAL_MS)),
            tries: 0,
            since: now,
            last_heard: now,
            resolver: None,
            inbound: None,
            restarts_timer: false,
            ack_due: false,
            is_dirty: false,
            readable: false,
            host_closing: false,
            has_urgent: false,
            writable: true,
            host_shut: false,
            no_delay: false,
            has_sent: false,
            peek: PeekOffset::Unset,
            queue: Queue::new(now),
        }
    }

    /// Where it stands, as a person would ask.
    pub fn listed_state(&self) -> list::State {
        match self.state {
            State::Dialing | State::SynReceived | State::Opening => list::State::Opening,
            State::Established if self.receive.is_finished() || self.send.has_fin() => list::State::Closing,
            State::Established => list::State::Open,
        }
    }

    /// Sender and receiver of a segment to the workspace.
    pub fn ends(&self) -> (IpAddr, IpAddr) {
        (self.key.remote, self.key.guest)
    }

    pub fn header(&mut self, seq: Seq, flags: TcpFlags) -> TcpHeader {
        let window = self.receive.advertise(flags.has(TcpFlags::SYN));
        header(&self.key, seq, self.receive.ack(), flags, window)
    }

    /// Both streams have ended and everyone knows.
    pub fn is_finished(&self) -> bool {
        self.send.is_finished() && self.receive.is_drained()
    }

    /// The start of the workspace's SYN, rebuilt for an ICMP error to quote.
    pub fn quoted_syn(&self) -> Vec<u8> {
        let mut tcp = header(&self.key, self.irs, Seq(0), TcpFlags::SYN, 0);
        (tcp.src_port, tcp.dst_port) = (self.key.guest_port.into(), self.key.remote_port.into());
        let mut bytes = header_for_quote(self.key.guest, self.key.remote, PROTOCOL_TCP, TCP_LEN);
        bytes.extend_from_slice(tcp.as_bytes());
        bytes
    }
}

/// The header of a segment to the workspace.
pub fn header(key: &FlowKey, seq: Seq, ack: Seq, flags: TcpFlags, window: u16) -> TcpHeader {
    TcpHeader {
        src_port: key.remote_port.into(),
        dst_port: key.guest_port.into(),
        seq: seq.0.into(),
        ack: ack.0.into(),
        data_offset: 0,
        flags: flags.0,
        window: window.into(),
        checksum: 0.into(),
        urgent: 0.into(),
    }
}
