//! Connections of a forwarder that died: the workspace still believes in them.
//!
//! Where it sends, the answer is a reset like to any segment nobody knows. Where it only waits it is made to send: a
//! segment outside its window is answered with an acknowledgement (RFC 9293 3.10.7.4), whatever its number, and the
//! reset that this gets has the right one.

use std::collections::HashMap;

use super::flow::header;
use super::ledger::Record;
use super::{Seq, Tcp, limits};
use crate::edge::Edge;
use crate::flow::FlowKey;
use crate::timer::Time;
use crate::wire::TcpFlags;

#[derive(Debug)]
pub struct Orphans {
    left: HashMap<FlowKey, Record>,
    rounds: u8,
    due: Time,
}

impl Orphans {
    pub fn new(left: Vec<(Record, FlowKey)>) -> Self {
        let left = left.into_iter().map(|(record, key)| (key, record)).collect();
        Self { left, rounds: limits::ORPHAN_PROBES, due: Time(0) }
    }

    /// When they are to be probed next.
    pub fn deadline(&self) -> Option<Time> {
        (!self.left.is_empty()).then_some(self.due)
    }
}

impl Tcp {
    /// The connection with this key has been ended in the workspace, or there is a new one.
    pub(super) fn orphan_heard(&mut self, key: &FlowKey) {
        if !self.orphans.left.is_empty()
            && let Some(record) = self.orphans.left.remove(key)
        {
            self.ledger.forget(record);
        }
    }

    /// Probes what has not been heard of, some times in a row; then it is gone, too.
    pub fn probe_orphans(&mut self, edge: &mut Edge) {
        if self.orphans.left.is_empty() || edge.now < self.orphans.due {
            return;
        }
        if self.orphans.rounds == 0 {
            for record in std::mem::take(&mut self.orphans.left).into_values() {
                self.ledger.forget(record);
            }
            return;
        }
        for key in self.orphans.left.keys() {
            if edge.is_tap_full() {
                // Those that are left by then.
                self.orphans.due = edge.now.after(limits::ORPHAN_RETRY_MS);
                return;
            }
            // No window spans half of all numbers: one of the two is outside of it.
            for seq in [Seq(0), Seq(1 << 31)] {
                let probe = header(key, seq, Seq(0), TcpFlags::ACK, 0);
                edge.tcp_to_tap((key.remote, key.guest), probe, &[], 0, limits::MIN_MSS);
            }
        }
        self.orphans.rounds -= 1;
        self.orphans.due = edge.now.after(limits::ORPHAN_PROBE_MS);
    }
}
