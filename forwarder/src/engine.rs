//! The engine: one frame, one host event or one deadline in, to the protocol it belongs to.

use rustix::event::epoll::EventFlags;

use crate::edge::Edge;
use crate::flow::{FlowId, Kind};
use crate::gateway::arp;
use crate::tcp::{Gather, Tcp};
use crate::wire::{EthernetHeader, Frame, IpPacket, Malformed, PROTOCOL_TCP, TcpSegment};

/// Every protocol's flows.
#[derive(Debug)]
pub struct Engine {
    tcp: Tcp,
}

impl Engine {
    pub fn new() -> Self {
        Self { tcp: Tcp::new() }
    }

    /// Takes in the frames of one wake.
    pub fn batch_from_tap<'b>(&mut self, edge: &mut Edge, frames: impl Iterator<Item = &'b [u8]>) {
        let mut gather = Gather::new();
        for bytes in frames {
            edge.counters.from_tap.count(bytes.len());
            match self.frame_from_tap(edge, &mut gather, bytes) {
                Ok(()) => {}
                Err(Malformed::Protocol) => edge.counters.drops.unsupported += 1,
                Err(_) => edge.counters.drops.malformed += 1,
            }
        }
        self.tcp.flush(edge, &mut gather);
        self.tcp.settle_batch(edge);
    }

    fn frame_from_tap<'b>(
        &mut self,
        edge: &mut Edge,
        gather: &mut Gather<'b>,
        bytes: &'b [u8],
    ) -> Result<(), Malformed> {
        let frame = Frame::parse(bytes)?;
        edge.learn_guest_mac(frame.ethernet.src);
        match frame.ethernet.ethertype.get() {
            EthernetHeader::ARP => arp::frame_from_tap(edge, frame.body),
            ethertype => {
                let ip = IpPacket::parse(ethertype, frame.body)?;
                self.packet_from_tap(edge, gather, &frame, &ip)
            }
        }
    }

    fn packet_from_tap<'b>(
        &mut self,
        edge: &mut Edge,
        gather: &mut Gather<'b>,
        frame: &Frame<'b>,
        ip: &IpPacket<'b>,
    ) -> Result<(), Malformed> {
        if ip.src.is_multicast() {
            edge.counters.drops.source += 1;
            return Ok(());
        }
        if ip.fragment.is_some() {
            edge.counters.drops.fragments += 1;
            return Ok(());
        }
        let partial = frame.vnet.is_partial();
        match ip.protocol {
            PROTOCOL_TCP => {
                let segment = TcpSegment::parse(ip, partial)?;
                self.tcp.segment_from_tap(edge, gather, ip, &segment);
                Ok(())
            }
            _ => Err(Malformed::Protocol),
        }
    }

    /// Takes in what epoll reported for one flow.
    pub fn host_event(&mut self, edge: &mut Edge, id: FlowId, events: EventFlags) {
        match id.kind {
            Kind::Tcp => self.tcp.host_event(edge, id, events),
            Kind::Udp | Kind::Ping | Kind::Dns => {}
        }
    }

    /// A flow's deadline has come.
    pub fn timer(&mut self, edge: &mut Edge, id: FlowId) {
        match id.kind {
            Kind::Tcp => self.tcp.timer(edge, id),
            Kind::Udp | Kind::Ping | Kind::Dns => {}
        }
    }

    /// Flows wait for their turn to send.
    pub fn has_ready(&self) -> bool {
        self.tcp.has_ready()
    }

    pub fn run_ready(&mut self, edge: &mut Edge) {
        self.tcp.run_ready(edge);
    }
}
