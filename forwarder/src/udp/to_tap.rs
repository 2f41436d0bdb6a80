//! What comes for a mapping: datagrams, in trains, and errors.

use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::Udp;
use super::mapping::Mapping;
use super::train::{RECEIVES_A_TURN, Train};
use crate::edge::Edge;
use crate::gateway::unreachable;
use crate::sys::datagram;
use crate::sys::socket::ErrorReport;
use crate::wire::build::Datagrams;
use crate::wire::ip::header_for_quote;
use crate::wire::transport::UdpHeader;
use crate::wire::{PROTOCOL_UDP, UDP_LEN};

impl Udp {
    /// One turn of a mapping's datagrams.
    pub(super) fn datagrams_to_tap(&mut self, edge: &mut Edge, index: u32) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        let mut train = Train::default();
        let mut is_empty = false;
        for _ in 0..RECEIVES_A_TURN {
            let next = match receive(edge, flow, &train) {
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
            flow.last_used = edge.now;
            train.add(edge, next, flow.path_mtu);
            if edge.is_tap_full() {
                break;
            }
        }
        if train.send(edge) {
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

/// Receives behind what waits. None: not for the workspace.
fn receive(edge: &mut Edge, flow: &Mapping, train: &Train) -> rustix::io::Result<Option<Datagrams>> {
    let Some(received) = datagram::receive(&flow.socket, train.room(edge))? else { return Ok(None) };
    let source = edge.guest_view(received.source.ip()).filter(|source| source.is_ipv4() == flow.guest.0.is_ipv4());
    Ok(source.map(|source| Datagrams {
        src: (source, received.source.port()),
        dst: flow.guest,
        tos: received.tos,
        size: received.size,
        len: received.len,
    }))
}
