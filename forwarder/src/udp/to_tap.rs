//! Datagrams for the workspace, and errors. Datagrams of one sender and size that wait in the host's socket are received
//! one behind the other into the frame buffer and go in as one frame for the workspace's kernel to cut (USO); some of
//! them the host's kernel hands over together to begin with (UDP_GRO).

use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::Udp;
use super::mapping::Mapping;
use crate::edge::Edge;
use crate::gateway::unreachable;
use crate::sys::datagram;
use crate::sys::socket::ErrorReport;
use crate::wire::build::Datagrams;
use crate::wire::ip::header_for_quote;
use crate::wire::transport::UdpHeader;
use crate::wire::{PROTOCOL_UDP, UDP_LEN};

/// Calls for one mapping before others have their turn.
const RECEIVES_A_TURN: usize = 64;
/// Datagrams in one frame, which no kernel has trouble with.
const MAX_SEGMENTS: usize = 64;
/// Bytes in one frame: its kernel takes no packet above 64 KB, headers included.
const MAX_BYTES: usize = 65_000;

impl Udp {
    /// One turn of a mapping's datagrams.
    pub(super) fn datagrams_to_tap(&mut self, edge: &mut Edge, index: u32) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        let mut waiting: Option<Datagrams> = None;
        let mut is_empty = false;
        for _ in 0..RECEIVES_A_TURN {
            let len = waiting.map_or(0, |datagrams| datagrams.len);
            let next = match receive(edge, flow, len) {
                Ok(Some(next)) => next,
                Ok(None) => {
                    edge.counters.drops.hidden_source += 1;
                    continue;
                }
                Err(errno) => {
                    is_empty = errno == Errno::AGAIN;
                    // A pending error is reported once; the datagrams behind it are read after it.
                    if is_empty { break } else { continue }
                }
            };
            flow.to_tap += next.len as u64;
            waiting = match waiting {
                Some(datagrams) if follows(&datagrams, &next) => Some(Datagrams { len: len + next.len, ..datagrams }),
                Some(datagrams) => {
                    edge.datagrams_to_tap(&datagrams, flow.path_mtu);
                    edge.frame.move_payload(len, next.len);
                    Some(next)
                }
                None => Some(next),
            };
            if edge.is_tap_full() {
                break;
            }
        }
        if let Some(datagrams) = waiting {
            flow.last_used = edge.now;
            edge.datagrams_to_tap(&datagrams, flow.path_mtu);
            self.recency.touch(index);
        }
        if !is_empty {
            self.ready.wait(index);
        }
    }

    /// What the host's network said about datagrams of this mapping, told to the workspace. Returns the MTU of the one
    /// that the host itself found too big.
    pub(super) fn errors_to_tap(&mut self, edge: &mut Edge, index: u32) -> Option<u16> {
        let flow = self.flows.get(index)?;
        let relayed = unreachable::relay(edge, &flow.socket, |edge, report| quoted(edge, flow, report));
        edge.counters.udp.errors_relayed += relayed.count;
        Some(relayed.mtu)
    }
}

/// The datagram a report is about, as the workspace sent it.
fn quoted(edge: &Edge, flow: &Mapping, report: &ErrorReport) -> Option<Vec<u8>> {
    let destination = report.destination?;
    let len = UDP_LEN + report.payload().len();
    let header = UdpHeader {
        src_port: flow.guest.1.into(),
        dst_port: destination.port().into(),
        len: u16::try_from(len).unwrap_or(u16::MAX).into(),
        checksum: 0.into(),
    };
    let mut quoted = header_for_quote(flow.guest.0, edge.guest_view(destination.ip())?, PROTOCOL_UDP, len);
    quoted.extend_from_slice(header.as_bytes());
    quoted.extend_from_slice(report.payload());
    Some(quoted)
}

/// Receives behind `len` bytes that wait in the frame buffer. None: not for the workspace.
fn receive(edge: &mut Edge, flow: &Mapping, len: usize) -> rustix::io::Result<Option<Datagrams>> {
    let Some(received) = datagram::receive(&flow.socket, edge.frame.after_payload_mut(len))? else { return Ok(None) };
    let source = edge.guest_view(received.source.ip()).filter(|source| source.is_ipv4() == flow.guest.0.is_ipv4());
    Ok(source.map(|source| Datagrams {
        src: (source, received.source.port()),
        dst: flow.guest,
        tos: received.tos,
        size: received.size,
        len: received.len,
    }))
}

/// Whether `next` can go into one frame with what waits: nothing may follow a shorter datagram.
fn follows(waiting: &Datagrams, next: &Datagrams) -> bool {
    let len = waiting.len + next.len;
    let fits = next.len > 0 && (next.size == waiting.size || next.len < waiting.size && next.size == next.len);
    fits && waiting.src == next.src
        && waiting.tos == next.tos
        && waiting.len.is_multiple_of(waiting.size.max(1))
        && len <= MAX_BYTES
        && len <= waiting.size * MAX_SEGMENTS
}
