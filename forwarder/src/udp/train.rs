//! Datagrams on their way to the workspace. Those of one sender and size that wait in a host's socket are received one
//! behind the other into the frame buffer and go in as one frame for the workspace's kernel to cut (USO); some of them the
//! host's kernel hands over together to begin with (UDP_GRO).

use crate::edge::Edge;
use crate::path_mtu::PathMtu;
use crate::wire::build::Datagrams;

/// Calls for one socket before others have their turn.
pub const RECEIVES_A_TURN: usize = 64;
/// Datagrams in one frame, which no kernel has trouble with.
const MAX_SEGMENTS: usize = 64;
/// Bytes in one frame: its kernel takes no packet above 64 KB, headers included.
const MAX_BYTES: usize = 65_000;

/// What has been received in one turn and not been sent yet: its payload is in the frame buffer.
#[derive(Debug, Default)]
pub struct Train {
    waiting: Option<(Datagrams, PathMtu)>,
}

impl Train {
    /// Where to receive what may follow.
    pub fn room<'e>(&self, edge: &'e mut Edge) -> &'e mut [u8] {
        edge.frame.after_payload_mut(self.len())
    }

    /// Takes in what has been received there. Where it cannot follow, what waits leaves first.
    pub fn add(&mut self, edge: &mut Edge, next: Datagrams, path: PathMtu) {
        let len = self.len();
        self.waiting = match self.waiting {
            Some((waiting, path)) if follows(&waiting, &next) => {
                Some((Datagrams { len: len + next.len, ..waiting }, path))
            }
            Some((waiting, its)) => {
                edge.datagrams_to_tap(&waiting, its);
                edge.frame.move_payload(len, next.len);
                Some((next, path))
            }
            None => Some((next, path)),
        };
    }

    /// Sends what waits; false: nothing does.
    pub fn send(self, edge: &mut Edge) -> bool {
        if let Some((waiting, path)) = self.waiting {
            edge.datagrams_to_tap(&waiting, path);
        }
        self.waiting.is_some()
    }

    fn len(&self) -> usize {
        self.waiting.map_or(0, |(waiting, _)| waiting.len)
    }
}

/// Whether `next` can go into one frame with what waits: nothing may follow a shorter datagram.
fn follows(waiting: &Datagrams, next: &Datagrams) -> bool {
    let len = waiting.len + next.len;
    let fits = next.len > 0 && (next.size == waiting.size || next.len < waiting.size && next.size == next.len);
    fits && (waiting.src, waiting.dst, waiting.tos) == (next.src, next.dst, next.tos)
        && waiting.len.is_multiple_of(waiting.size.max(1))
        && len <= MAX_BYTES
        && len <= waiting.size * MAX_SEGMENTS
}
