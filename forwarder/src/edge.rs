//! What every protocol engine works with: the TAP on one side, the host's sockets with their events and deadlines on
//! the other, and the configuration between them. What is sent to the workspace is in [`to_tap`].
#![forbid(unsafe_code)]

mod to_tap;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::counters::Counters;
use crate::flow::FlowId;
use crate::neighbours::sought::Sought;
use crate::neighbours::{Neighbours, is_unicast};
use crate::network::{MacAddr, VirtualNetwork};
use crate::outbound::Outbound;
use crate::policy::{self, Egress, Policy, Request, Transport};
use crate::ports::{Guest, Stock, Whereabouts};
use crate::tap::Tap;
use crate::timer::{Time, Wheel};
use crate::wire::{FrameBuffer, VNET_LEN};

/// Where a frame's destination is, behind the virtio-net header.
const DST_MAC: Range<usize> = VNET_LEN as usize..VNET_LEN as usize + size_of::<MacAddr>();

/// What the forwarder needs to know; the TAP comes beside it, as a descriptor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    pub network: VirtualNetwork,
    pub policy: Policy,
    pub outbound: Outbound,
    /// The host's resolvers, in order; DNS to the virtual resolver goes to them.
    pub resolvers: Vec<SocketAddr>,
    /// The host's search list, which DHCP and router advertisements pass on.
    pub search: Vec<String>,
}

/// The forwarder between its two sides.
#[derive(Debug)]
pub struct Edge {
    pub config: Config,
    tap: Tap,
    /// The frame being built; payloads are received straight into it.
    pub frame: FrameBuffer,
    neighbours: Neighbours,
    /// Those that are asked for.
    pub sought: Sought,
    /// Who spoke last.
    speaker: MacAddr,
    /// Where published ports lead.
    pub guest: Guest,
    epoll: OwnedFd,
    pub timers: Wheel,
    pub counters: Counters,
    /// Sockets of the workspace's network namespace.
    pub stock: Stock,
    /// The time of the wake being handled.
    pub now: Time,
    /// The TAP was full: nothing is sent before it can be written again.
    tap_full: bool,
    /// The next datagram's identification.
    next_id: u32,
    /// Which of the host's resolvers answered last, by its place among them: it is asked first.
    preferred_resolver: usize,
}

impl Edge {
    pub fn new(mut config: Config, tap: Tap, epoll: OwnedFd, now: Time) -> Self {
        let (speaker, guest) = (config.network.guest_mac, Guest::new(config.network.v4));
        let resolvers = std::mem::take(&mut config.resolvers);
        let mut edge = Self {
            config,
            tap,
            frame: FrameBuffer::default(),
            neighbours: Neighbours::new(),
            sought: Sought::default(),
            speaker,
            guest,
            epoll,
            timers: Wheel::new(now),
            counters: Counters::default(),
            stock: Stock::default(),
            now,
            tap_full: false,
            next_id: 0,
            preferred_resolver: 0,
        };
        edge.set_resolvers(resolvers);
        edge
    }

    pub fn tap(&mut self) -> &mut Tap {
        &mut self.tap
    }

    pub fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    /// A frame has come from `mac`.
    pub fn speaks(&mut self, mac: MacAddr) {
        if is_unicast(mac) {
            self.speaker = mac;
            self.guest.speaks(mac);
        }
    }

    /// Whether a frame to `mac` is meant for the gateway, if not for everybody. What a bridge floods, for it has not heard of
    /// the machine in question for some minutes, is not: an answer would end that one's connection.
    pub fn is_for_gateway(&self, mac: MacAddr) -> bool {
        mac == self.config.network.gateway_mac || !is_unicast(mac)
    }

    /// Who spoke last.
    pub fn speaker(&self) -> MacAddr {
        self.speaker
    }

    /// It was one of `address`.
    pub fn heard(&mut self, address: IpAddr, mac: MacAddr) {
        if self.neighbours.learn(address, mac) {
            if let IpAddr::V4(address) = address {
                self.guest.heard(address, mac);
            }
            self.found(address);
        }
    }

    /// A predecessor knew where the workspace is.
    pub fn recall(&mut self, whereabouts: Whereabouts) {
        self.guest.recall(whereabouts);
        if let Whereabouts { mac: Some(mac), address: Some(address) } = whereabouts {
            self.neighbours.learn(address.into(), mac);
        }
    }

    /// What was kept for an address goes there.
    fn found(&mut self, address: IpAddr) {
        for mut frame in self.sought.found(address) {
            if let (Some(dst), Some(mac)) = (frame.get_mut(DST_MAC), self.neighbours.find(address)) {
                dst.copy_from_slice(&mac);
            }
            self.kept_to_tap(&frame);
        }
    }

    /// DHCP offers `address` to whoever has just spoken, or has given it.
    pub fn leases(&mut self, address: Ipv4Addr, is_given: bool) {
        self.neighbours.learn(address.into(), self.speaker);
        if is_given {
            self.guest.leased(address, self.speaker);
        }
        self.found(address.into());
    }

    /// The address under which the workspace knows a host-side sender; None when it must not hear from it.
    pub fn guest_view(&self, source: IpAddr) -> Option<IpAddr> {
        if !source.is_loopback() {
            return Some(source);
        }
        let network = &self.config.network;
        match source {
            _ if !self.config.policy.host_loopback => None,
            IpAddr::V4(_) => Some(IpAddr::V4(network.v4.gateway())),
            IpAddr::V6(_) => network.v6.map(|v6| IpAddr::V6(v6.gateway())),
        }
    }

    /// What the policy says about a destination of the workspace.
    pub fn egress(&self, destination: SocketAddr, transport: Transport) -> Egress {
        self.config.policy.egress(&self.config.network, Request { destination, transport }, policy::is_own)
    }

    /// The host's resolver to ask after `step` others, beginning with the one that answered last; None after all.
    pub fn resolver(&self, step: usize) -> Option<SocketAddr> {
        let count = self.config.resolvers.len();
        if step >= count {
            return None;
        }
        self.config.resolvers.get((self.preferred_resolver + step) % count).copied()
    }

    /// The resolver that follows `last` in the configuration; None where there is no other.
    pub fn resolver_after(&self, last: SocketAddr) -> Option<SocketAddr> {
        let resolvers = &self.config.resolvers;
        let next = resolvers.iter().position(|&resolver| resolver == last).map_or(0, |at| (at + 1) % resolvers.len());
        resolvers.get(next).copied().filter(|&resolver| resolver != last)
    }

    /// `resolver` has answered.
    pub fn prefer_resolver(&mut self, resolver: SocketAddr) {
        let place = self.config.resolvers.iter().position(|&configured| configured == resolver);
        self.preferred_resolver = place.unwrap_or(self.preferred_resolver);
    }

    /// The host's resolvers from now on, each once; the preferred one stays so where it is still among them.
    pub fn set_resolvers(&mut self, resolvers: Vec<SocketAddr>) {
        let preferred = self.resolver(0);
        self.config.resolvers.clear();
        for resolver in resolvers {
            if !self.config.resolvers.contains(&resolver) {
                self.config.resolvers.push(resolver);
            }
        }
        self.preferred_resolver = 0;
        if let Some(preferred) = preferred {
            self.prefer_resolver(preferred);
        }
    }

    pub fn is_tap_full(&self) -> bool {
        self.tap_full
    }

    pub fn tap_writable(&mut self) {
        self.tap_full = false;
    }

    /// Has epoll report on a flow's socket, edge-triggered, everything it can report, urgent data included; of one that is
    /// watched already, once more what is so now.
    pub fn watch(&self, socket: impl AsFd, id: FlowId) -> io::Result<()> {
        let events = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        let events = events | epoll::EventFlags::PRI;
        let data = epoll::EventData::new_u64(id.to_bits());
        match epoll::add(&self.epoll, &socket, data, events) {
            // Another flow may have had it before.
            Err(Errno::EXIST) => epoll::modify(&self.epoll, socket, data, events)?,
            added => added?,
        }
        Ok(())
    }

    /// Ends that for a socket of which others hold copies, whose closing does not.
    pub fn unwatch(&self, socket: impl AsFd) {
        // It was never watched, else.
        let _ = epoll::delete(&self.epoll, socket);
    }
}
