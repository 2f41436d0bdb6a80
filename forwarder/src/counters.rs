//! What the forwarder has done and what it dropped, by reason. Plain numbers: one thread writes them.

use serde::{Deserialize, Serialize};

use crate::policy::Denial;

/// Frames and bytes in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    pub frames: u64,
    pub bytes: u64,
}

impl Traffic {
    pub fn count(&mut self, bytes: usize) {
        self.frames += 1;
        self.bytes += bytes as u64;
    }
}

/// Flows of one protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    pub opened: u64,
    pub closed: u64,
    /// Refused by the egress policy; [`Denied`] says why.
    pub denied: u64,
    /// Refused for want of descriptors, ports or room in the table.
    pub exhausted: u64,
    /// Failed at the host: refused, unreachable, reset.
    pub failed: u64,
    /// Given up after a timeout.
    pub timed_out: u64,
}

/// Why frames were dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// Too short, impossible fields, wrong checksums.
    pub malformed: u64,
    /// Ethertypes and IP protocols that are not forwarded.
    pub unsupported: u64,
    /// Fragmented packets of protocols that are not put together again.
    pub fragments: u64,
    /// Source addresses that could not be answered, such as multicast.
    pub source: u64,
    /// Multicast and broadcast.
    pub multicast: u64,
    /// For another machine on the TAP's link: a bridge that does not know where that one is sends to everybody.
    pub flooded: u64,
    /// Fragments that contradict each other, and those whose others never came or were too many.
    pub reassembly: u64,
    /// TCP payload that had been received before or was beyond the window.
    pub outside_window: u64,
    /// From addresses of the host's side that mean nothing inside.
    pub hidden_source: u64,
    /// More stretches ahead of gaps than are kept.
    pub out_of_order: u64,
    /// The host's socket took no more (datagrams only).
    pub host_full: u64,
    /// The TAP took no more; TCP sends these again.
    pub tap_full: u64,
    /// The TAP refused the frame: it is down.
    pub tap_down: u64,
    /// For an address on the TAP's link that is asked for, beyond what is kept meanwhile.
    pub neighbour: u64,
}

/// What the egress policy refused, connections and single datagrams, by the kind of rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denied {
    pub host_loopback: u64,
    pub gateway: u64,
    pub unassigned: u64,
    pub multicast: u64,
    pub link_local: u64,
    /// At the virtual resolver, where nothing but DNS answers.
    pub resolver: u64,
    /// A `--deny`.
    pub rule: u64,
}

impl Denied {
    pub fn count(&mut self, denial: Denial) {
        *match denial {
            Denial::HostLoopback => &mut self.host_loopback,
            Denial::Gateway => &mut self.gateway,
            Denial::Unassigned => &mut self.unassigned,
            Denial::Multicast => &mut self.multicast,
            Denial::LinkLocal => &mut self.link_local,
            Denial::Rule => &mut self.rule,
        } += 1;
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tcp {
    pub flows: Flows,
    pub resets_from_tap: u64,
    pub resets_to_tap: u64,
    pub retransmits_to_tap: u64,
    pub window_probes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Udp {
    pub flows: Flows,
    pub evicted: u64,
    pub errors_relayed: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    pub queries: u64,
    pub answers: u64,
    /// Sent to another resolver after silence or an error.
    pub failovers: u64,
    pub unanswered: u64,
    /// Queries and connections ignored for `--disable-dns`.
    pub disabled: u64,
}

/// Clients of published ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    pub accepted: u64,
    /// Nobody in the workspace listens.
    pub refused: u64,
    /// Of the accepted: by splice(2), not over the TAP.
    pub spliced: u64,
    /// From inside, by splice(2), to a program that listens on the host.
    pub relayed: u64,
    /// Clients that sent datagrams.
    pub udp_clients: u64,
    /// Turned away, or left waiting, for want of descriptors or room in a table.
    pub exhausted: u64,
}

/// Everything counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    pub from_tap: Traffic,
    pub to_tap: Traffic,
    pub drops: Drops,
    pub denied: Denied,
    pub tcp: Tcp,
    pub udp: Udp,
    pub ping: Flows,
    pub dns: Dns,
    pub ports: Ports,
}
