//! The engine: one frame, one host event or one deadline in, to the protocol it belongs to.
#![forbid(unsafe_code)]

use std::io::IoSlice;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;

use rustix::event::epoll::EventFlags;

use crate::edge::Edge;
use crate::flow::list::{Listed, Page, Place};
use crate::flow::{FlowId, Kind};
use crate::gateway::dhcp::Dhcp;
use crate::gateway::unreachable::Said;
use crate::gateway::{arp, ndp, unreachable};
use crate::icmp::Icmp;
use crate::path_mtu;
use crate::ports::{Ports, Published, Shadow};
use crate::reassembly::Reassembly;
use crate::tcp::{self, Tcp};
use crate::timer::Time;
use crate::udp::{self, Udp};
use crate::wire::{
    EthernetHeader, Frame, IcmpEcho, IpPacket, Malformed, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP,
    TcpSegment, UdpDatagram, VnetHeader,
};

/// What the frames of one batch bring together before it leaves.
struct Gather<'b> {
    tcp: tcp::Gather<'b>,
    udp: udp::Gather<'b>,
}

/// Every protocol's flows.
#[derive(Debug)]
pub struct Engine {
    tcp: Tcp,
    udp: Udp,
    icmp: Icmp,
    ports: Ports,
    dhcp: Dhcp,
    reassembly: Reassembly,
    /// When the gateway next says unasked what holds on its link.
    advertisement: Time,
}

impl Engine {
    /// `memory` outlives this process: what is in it of a predecessor is ended.
    pub fn new(memory: &'static [AtomicU64]) -> Self {
        Self {
            tcp: Tcp::new(memory),
            udp: Udp::new(udp::MAX_FLOWS),
            icmp: Icmp::new(),
            ports: Ports::new(),
            dhcp: Dhcp::default(),
            reassembly: Reassembly::default(),
            advertisement: Time(0),
        }
    }

    /// Takes in the frames of one wake.
    pub fn batch_from_tap<'b>(&mut self, edge: &mut Edge, frames: impl Iterator<Item = &'b [u8]>) {
        let mut gather = Gather { tcp: tcp::Gather::new(), udp: udp::Gather::new() };
        for bytes in frames {
            edge.counters.from_tap.count(bytes.len());
            match self.frame_from_tap(edge, &mut gather, bytes) {
                Ok(()) => {}
                Err(Malformed::Protocol) => edge.counters.drops.unsupported += 1,
                Err(_) => edge.counters.drops.malformed += 1,
            }
        }
        self.flush_datagrams(edge, &mut gather.udp);
        self.tcp.flush(edge, &mut gather.tcp);
        self.tcp.settle_batch(edge);
        self.tcp.note_whereabouts(edge);
    }

    fn frame_from_tap<'b>(
        &mut self,
        edge: &mut Edge,
        gather: &mut Gather<'b>,
        bytes: &'b [u8],
    ) -> Result<(), Malformed> {
        let frame = Frame::parse(bytes)?;
        edge.speaks(frame.ethernet.src);
        if !edge.is_for_gateway(frame.ethernet.dst) {
            edge.counters.drops.flooded += 1;
            return Ok(());
        }
        match frame.ethernet.ethertype.get() {
            EthernetHeader::ARP => arp::frame_from_tap(edge, &frame),
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
        edge.heard(ip.src, frame.ethernet.src);
        if let Some(fragment) = ip.fragment {
            if ip.protocol == PROTOCOL_UDP {
                // What came before it goes before it.
                self.flush_datagrams(edge, &mut gather.udp);
            }
            if !matches!(ip.protocol, PROTOCOL_UDP | PROTOCOL_ICMP | PROTOCOL_ICMPV6) {
                edge.counters.drops.fragments += u64::from(fragment.offset == 0);
                return Ok(());
            }
            let whole = self.reassembly.fragment_from_tap(edge.now, ip, fragment);
            edge.counters.drops.reassembly += std::mem::take(&mut self.reassembly.given_up);
            return match whole {
                Some(whole) => self.whole_from_tap(edge, &whole.packet()),
                None => Ok(()),
            };
        }
        let partial = frame.vnet.is_partial();
        match ip.protocol {
            PROTOCOL_TCP => {
                let segment = TcpSegment::parse(ip, partial)?;
                self.tcp.segment_from_tap(edge, &mut gather.tcp, ip, &segment);
                Ok(())
            }
            PROTOCOL_UDP => {
                let datagram = UdpDatagram::parse(ip, partial)?;
                if self.dhcp.datagram_from_tap(edge, ip, &datagram)? {
                    return Ok(());
                }
                let is_uso = frame.vnet.gso_kind() == VnetHeader::GSO_UDP_L4;
                let segment = is_uso.then(|| frame.vnet.gso_size.get()).filter(|&size| size > 0);
                if segment.is_some_and(|size| datagram.payload.len() > usize::from(size) * udp::MAX_UNCUT) {
                    return Err(Malformed::Header);
                }
                self.datagram_from_tap(edge, &mut gather.udp, ip, &datagram, segment);
                Ok(())
            }
            PROTOCOL_ICMPV6 if ip.src.is_ipv6() && ndp::packet_from_tap(edge, ip)? => Ok(()),
            PROTOCOL_ICMP | PROTOCOL_ICMPV6 => self.icmp_from_tap(edge, ip),
            _ => Err(Malformed::Protocol),
        }
    }

    /// A datagram, or several of `segment` bytes each: to a client of a published port, or to anybody else.
    fn datagram_from_tap<'b>(
        &mut self,
        edge: &mut Edge,
        gather: &mut udp::Gather<'b>,
        ip: &IpPacket<'b>,
        datagram: &UdpDatagram<'b>,
        segment: Option<u16>,
    ) {
        if segment.is_none() && gather.follow(ip, datagram) {
            return;
        }
        self.flush_datagrams(edge, gather);
        match (self.ports.answered(edge, ip, datagram), segment) {
            (Some(client), Some(size)) => {
                let size = usize::from(size);
                for part in datagram.payload.chunks(size * udp::MAX_SEGMENTS) {
                    self.ports.answer(edge, client, &[IoSlice::new(part)], size);
                }
            }
            (Some(client), None) => gather.begin(udp::Way::Client(client), ip, datagram),
            (None, _) => self.udp.datagram_from_tap(edge, gather, ip, datagram, segment),
        }
    }

    /// Sends the datagrams that have been gathered.
    fn flush_datagrams(&mut self, edge: &mut Edge, gather: &mut udp::Gather<'_>) {
        match gather.take_way() {
            Some(udp::Way::Mapping(index)) => self.udp.flush(edge, index, gather),
            Some(udp::Way::Client(client)) => self.ports.answer(edge, client, gather.payloads(), gather.size()),
            None => {}
        }
    }

    /// A packet that came in fragments.
    fn whole_from_tap(&mut self, edge: &mut Edge, ip: &IpPacket<'_>) -> Result<(), Malformed> {
        if ip.protocol != PROTOCOL_UDP {
            return self.icmp_from_tap(edge, ip);
        }
        let datagram = UdpDatagram::parse(ip, false)?;
        match self.ports.answered(edge, ip, &datagram) {
            Some(client) => {
                let whole = datagram.payload;
                self.ports.answer(edge, client, &[IoSlice::new(whole)], whole.len());
            }
            None => self.udp.whole_from_tap(edge, ip, &datagram),
        }
        Ok(())
    }

    fn icmp_from_tap(&mut self, edge: &mut Edge, ip: &IpPacket<'_>) -> Result<(), Malformed> {
        if (ip.protocol == PROTOCOL_ICMP) != ip.src.is_ipv4() {
            return Err(Malformed::Protocol);
        }
        match IcmpEcho::parse_request(ip)? {
            Some(echo) => self.icmp.echo_from_tap(edge, ip, &echo),
            None => self.error_from_tap(edge, ip),
        }
        Ok(())
    }

    /// What the workspace says about a packet of ours: for the flow that sent it.
    fn error_from_tap(&mut self, edge: &mut Edge, ip: &IpPacket<'_>) {
        let is_supported = match unreachable::parse(ip) {
            Some((said, quote)) if quote.protocol == PROTOCOL_TCP => {
                self.tcp.error_from_tap(edge, said, &quote);
                true
            }
            Some((Said::TooBig(mtu), quote)) => {
                let mtu = path_mtu::believed(mtu, quote.dst.0);
                match quote.protocol {
                    PROTOCOL_UDP => {
                        self.ports.too_big(edge.now, &quote, mtu) || self.udp.too_big(edge.now, &quote, mtu)
                    }
                    _ => self.icmp.too_big(edge, &quote, mtu),
                }
            }
            _ => false,
        };
        edge.counters.drops.unsupported += u64::from(!is_supported);
    }

    /// Takes in what epoll reported for one flow.
    pub fn host_event(&mut self, edge: &mut Edge, id: FlowId, events: EventFlags) {
        match id.kind {
            Kind::Tcp => self.tcp.host_event(edge, id, events),
            Kind::Udp | Kind::Dns => self.udp.host_event(edge, id, events),
            Kind::Ping => self.icmp.host_event(edge, id, events),
            Kind::Port | Kind::PortClient | Kind::SplicedClient | Kind::SplicedInside | Kind::Shadow => {
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
            Kind::Port | Kind::PortClient | Kind::Shadow => self.ports.timer(edge, &mut self.tcp, id),
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

    /// Relays what comes to a program's shadow. False: there is no room, or it is served already.
    pub fn add_shadow(&mut self, edge: &mut Edge, shadow: Shadow, socket: OwnedFd) -> bool {
        self.ports.add_shadow(edge, shadow, socket)
    }

    /// Closes the shadow of this program's socket; what it relays stays connected.
    pub fn remove_shadow(&mut self, edge: &mut Edge, program: u64) {
        self.ports.remove_shadow(edge, program);
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

    /// When [`Self::advertise`] has something to do.
    pub fn advertisement_deadline(&self, edge: &Edge) -> Option<Time> {
        edge.config.network.v6.map(|_| self.advertisement)
    }

    /// Sends the router advertisement that is due.
    pub fn advertise(&mut self, edge: &mut Edge) {
        if edge.now >= self.advertisement {
            self.advertisement = edge.now.after(ndp::INTERVAL_MS);
            ndp::advertise(edge);
        }
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
        self.ports.list_clients(&mut page);
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
