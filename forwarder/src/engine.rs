//! The engine: one frame, one host event or one deadline in, to the protocol it belongs to.

use std::net::IpAddr;
use std::sync::atomic::AtomicU64;

use rustix::event::epoll::EventFlags;

use crate::edge::Edge;
use crate::flow::list::{Listed, Page, Place};
use crate::flow::{FlowId, Kind};
use crate::gateway::{arp, ndp, unreachable};
use crate::icmp::Icmp;
use crate::ports::{Ports, Published};
use crate::reassembly::Reassembly;
use crate::tcp::{Gather, Tcp};
use crate::timer::Time;
use crate::udp::Udp;
use crate::wire::{
    EthernetHeader, Frame, IcmpEcho, IpPacket, Malformed, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP,
    TcpSegment, UdpDatagram, VnetHeader,
};

/// Every protocol's flows.
#[derive(Debug)]
pub struct Engine {
    tcp: Tcp,
    udp: Udp,
    icmp: Icmp,
    ports: Ports,
    reassembly: Reassembly,
}

impl Engine {
    /// `memory` outlives this process: what is in it of a predecessor is ended.
    pub fn new(memory: &'static [AtomicU64]) -> Self {
        Self {
            tcp: Tcp::new(memory),
            udp: Udp::new(),
            icmp: Icmp::new(),
            ports: Ports::new(),
            reassembly: Reassembly::default(),
        }
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
        let is_mapped = |address: IpAddr| address.to_canonical() != address;
        // IPv4 addresses in IPv6 ones are for sockets, never for the wire (RFC 4038 4.2).
        if ip.src.is_multicast() || is_mapped(ip.src) || is_mapped(ip.dst) {
            edge.counters.drops.source += 1;
            return Ok(());
        }
        if let Some(fragment) = ip.fragment {
            edge.counters.drops.fragments += u64::from(ip.protocol != PROTOCOL_UDP && fragment.offset == 0);
            let whole = self.reassembly.fragment_from_tap(edge.now, ip, fragment);
            edge.counters.drops.reassembly += std::mem::take(&mut self.reassembly.given_up);
            let Some(whole) = whole else { return Ok(()) };
            let ip = whole.packet();
            if ip.protocol == PROTOCOL_UDP {
                self.datagram_from_tap(edge, &ip, &UdpDatagram::parse(&ip, false)?, None);
            }
            return Ok(());
        }
        let partial = frame.vnet.is_partial();
        match ip.protocol {
            PROTOCOL_TCP => {
                let segment = TcpSegment::parse(ip, partial)?;
                self.tcp.segment_from_tap(edge, gather, ip, &segment);
                Ok(())
            }
            PROTOCOL_UDP => {
                let datagram = UdpDatagram::parse(ip, partial)?;
                let is_uso = frame.vnet.gso_kind() == VnetHeader::GSO_UDP_L4;
                let segment = is_uso.then(|| frame.vnet.gso_size.get()).filter(|&size| size > 0);
                self.datagram_from_tap(edge, ip, &datagram, segment);
                Ok(())
            }
            PROTOCOL_ICMPV6 if ip.src.is_ipv6() && ndp::packet_from_tap(edge, ip)? => Ok(()),
            PROTOCOL_ICMP | PROTOCOL_ICMPV6 if (ip.protocol == PROTOCOL_ICMP) == ip.src.is_ipv4() => {
                match IcmpEcho::parse_request(ip)? {
                    Some(echo) => self.icmp.echo_from_tap(edge, ip, &echo),
                    None => match unreachable::parse(ip) {
                        Some(quoted) if quoted.protocol == PROTOCOL_TCP => self.tcp.unreachable_from_tap(edge, &quoted),
                        _ => edge.counters.drops.unsupported += 1,
                    },
                }
                Ok(())
            }
            _ => Err(Malformed::Protocol),
        }
    }

    /// A datagram, or several of `segment` bytes each: to a client of a published port, or to anybody else.
    fn datagram_from_tap(
        &mut self,
        edge: &mut Edge,
        ip: &IpPacket<'_>,
        datagram: &UdpDatagram<'_>,
        segment: Option<u16>,
    ) {
        if !self.ports.datagram_from_tap(edge, ip, datagram, segment) {
            self.udp.datagram_from_tap(edge, ip, datagram, segment);
        }
    }

    /// Takes in what epoll reported for one flow.
    pub fn host_event(&mut self, edge: &mut Edge, id: FlowId, events: EventFlags) {
        match id.kind {
            Kind::Tcp => self.tcp.host_event(edge, id, events),
            Kind::Udp | Kind::Dns => self.udp.host_event(edge, id, events),
            Kind::Ping => self.icmp.host_event(edge, id),
            Kind::Port | Kind::PortClient | Kind::SplicedClient | Kind::SplicedInside => {
                self.ports.host_event(edge, &mut self.tcp, id, events);
            }
        }
    }

    /// A flow's deadline has come.
    pub fn timer(&mut self, edge: &mut Edge, id: FlowId) {
        match id.kind {
            Kind::Tcp => self.tcp.timer(edge, id),
            Kind::Udp | Kind::Dns => self.udp.timer(edge, id),
            Kind::Ping => self.icmp.timer(edge, id),
            Kind::Port | Kind::PortClient => self.ports.timer(edge, &mut self.tcp, id),
            Kind::SplicedClient | Kind::SplicedInside => {}
        }
    }

    /// Serves a published port. False: there is no room, or it is served already.
    pub fn publish(&mut self, edge: &mut Edge, published: Published) -> bool {
        self.ports.add(edge, published)
    }

    /// Closes the port with this number; its clients stay connected.
    pub fn unpublish(&mut self, edge: &mut Edge, number: u64) {
        self.ports.remove(edge, number);
    }

    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// The workspace has ended: nobody else may come in.
    pub fn close_ports(&mut self, edge: &mut Edge) {
        self.ports.close(edge);
    }

    /// Takes over from a predecessor.
    pub fn recall(&self, edge: &mut Edge) {
        self.tcp.recall(edge);
    }

    /// When [`Self::probe_orphans`] has something to do.
    pub fn orphans_deadline(&self) -> Option<Time> {
        self.tcp.orphans_deadline()
    }

    /// Ends a predecessor's connections.
    pub fn probe_orphans(&mut self, edge: &mut Edge) {
        self.tcp.probe_orphans(edge);
    }

    /// Something the workspace sent, or may still send, has not been given to the host.
    pub fn is_owed_to_host(&self) -> bool {
        self.tcp.is_owed_to_host() || self.ports.is_owed_to_host()
    }

    /// One page of all flows, from where the page before it ended.
    pub fn list(&self, now: Time, from: Option<Place>) -> (Vec<Listed>, Option<Place>) {
        let mut page = Page::new(now, from);
        self.tcp.list(&mut page);
        self.udp.list(&mut page);
        self.icmp.list(&mut page);
        page.finish()
    }

    /// Flows wait for their turn to send.
    pub fn has_ready(&self) -> bool {
        self.tcp.has_ready() || self.udp.has_ready() || self.ports.has_ready()
    }

    pub fn run_ready(&mut self, edge: &mut Edge) {
        self.tcp.run_ready(edge);
        self.udp.run_ready(edge);
        self.ports.run_ready(edge, &mut self.tcp);
    }
}

#[cfg(test)]
pub mod tests;
