//! One turn at a listening socket: those who wait in its queue, up to a number, as long as there is room for them.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};

use crate::edge::Edge;
use crate::timer::TimerId;

/// Clients accepted before others have their turn.
const ACCEPTS_A_TURN: usize = 16;
/// How soon a socket is tried again for whose clients there was no room, or no descriptor.
const PAUSE_MS: u64 = 100;

/// Who arrives at one socket in one turn.
pub(super) struct Arrivals<'s> {
    socket: &'s OwnedFd,
    timer: TimerId,
    left: usize,
    is_over: bool,
}

impl<'s> Arrivals<'s> {
    /// `timer` is the socket's own, and brings its next turn where this one ends early.
    pub fn new(socket: &'s OwnedFd, timer: TimerId) -> Self {
        Self { socket, timer, left: ACCEPTS_A_TURN, is_over: false }
    }

    /// Accepts one more. None: the turn has ended.
    pub fn next(&mut self, edge: &mut Edge, has_room: bool) -> Option<(OwnedFd, SocketAddr)> {
        while !self.is_over && self.left > 0 {
            self.left -= 1;
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let accepted = if has_room { acceptfrom_with(self.socket, flags) } else { Err(Errno::NFILE) };
            match accepted {
                Ok((client, address)) => {
                    if let Some(address) = address.and_then(|address| SocketAddr::try_from(address).ok()) {
                        return Some((client, address));
                    }
                }
                Err(Errno::AGAIN) => self.is_over = true,
                // It has left again.
                Err(Errno::CONNABORTED | Errno::INTR) => {}
                Err(_) => {
                    edge.counters.ports.exhausted += 1;
                    edge.timers.set(self.timer, edge.now.after(PAUSE_MS));
                    self.is_over = true;
                }
            }
        }
        None
    }

    /// There is nobody more, or nobody more can be served for now.
    pub fn is_over(&self) -> bool {
        self.is_over
    }
}
