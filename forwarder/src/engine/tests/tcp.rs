//! TCP as RFC 9293 has it, where it matters and where it is easy to get wrong.

use std::io::{Read, Write};

use super::*;

mod ends;
mod loss;
mod urgent;
mod window;

const ACK: TcpFlags = TcpFlags::ACK;
/// The workspace's first sequence number after its SYN.
const FIRST: u32 = 1001;

/// One open connection.
struct Open {
    lab: Lab,
    host: TcpStream,
    ports: (u16, u16),
    /// Our first sequence number after the SYN.
    first: u32,
    /// For a second connection.
    _listener: TcpListener,
}

impl Open {
    fn new() -> Self {
        let listener = listener();
        let ports = (4000, listener.local_addr().unwrap().port());
        let mut lab = Lab::new();
        let syn = lab.tcp(ports, FIRST - 1, 0, TcpFlags::SYN, &[]);
        lab.feed(&[syn]);
        lab.turn(1);
        let first = segments(&lab.received())[0].1.wrapping_add(1);
        let mut open = Self { lab, host: accept(&listener), ports, first, _listener: listener };
        open.send(0, 0, ACK, &[]);
        open
    }

    /// The workspace sends a segment, at offsets of both streams, with a wide window.
    fn send(&mut self, at: u32, acked: u32, flags: TcpFlags, payload: &[u8]) -> Vec<Segment> {
        let frame = self.lab.tcp(self.ports, FIRST.wrapping_add(at), self.first.wrapping_add(acked), flags, payload);
        self.lab.feed(&[frame]);
        self.received()
    }

    /// The same with a window of its own.
    fn send_window(&mut self, at: u32, acked: u32, window: u16) -> Vec<Segment> {
        let mut frame = self.lab.tcp(self.ports, FIRST.wrapping_add(at), self.first.wrapping_add(acked), ACK, &[]);
        let field = usize::from(VNET_LEN) + ETHERNET_LEN + IPV4_LEN + 14;
        frame[field..field + 2].copy_from_slice(&window.to_be_bytes());
        self.lab.feed(&[frame]);
        self.received()
    }

    fn received(&mut self) -> Vec<Segment> {
        segments(&self.lab.received())
    }

    /// Lets time pass; what the workspace was sent meanwhile.
    fn wait(&mut self, millis: u64) -> Vec<Segment> {
        self.lab.turn(millis);
        self.received()
    }

    fn closed(&self) -> u64 {
        self.lab.edge.counters.tcp.flows.closed
    }
}
