//! Whether the workspace's netfilter could touch a connection: rule 1 says that only one it would leave alone is taken
//! out, and routes do not tell.
//!
//! The rules of the namespace's nftables (iptables-nft included) are read into a [`ruleset`] when they are first asked
//! for, and again when a notification says that they changed. The kernel queues a notification before the system call
//! that changed the rules returns, so looking for one before each use leaves no gap; that look is all a connect costs
//! where there are no rules. Where there are, three [`packet`]s that stand for the connection [`walk`] through them:
//!
//! | file       | what it does                                                              |
//! |------------|---------------------------------------------------------------------------|
//! | `sources`  | the sockets and files to ask with, made in the namespace                  |
//! | `dump`     | chains, rules, sets and elements out of the kernel, put together in `tables` |
//! | `lower`    | an expression of a rule made a step; `xt` for matches of iptables         |
//! | `ruleset`  | the chains and their steps                                                |
//! | `packet`   | what is known of a connection's packets: first out, later out, replies in |
//! | `register` | the registers of nftables' machine, bit by bit known or not               |
//! | `walk`     | the three packets through the chains                                      |
//!
//! Legacy iptables sends no notification: a namespace that has any of its tables keeps everything in place; their names
//! are read before each use (/proc/net/ip_tables_names, kept open).
//!
//! What could touch a connection: whatever may match and does anything but accept, count or masquerade (it leaves with
//! the TAP's address anyhow), and a policy of drop. Everything not understood may match or does something; whatever
//! goes wrong in reading is an answer, too: it could.
//!
//! A client of a published port is asked about as a packet that comes in, from anywhere; one that stays on the loopback is
//! at every hook with each of its packets.
//!
//! A connection of a nested namespace is asked about twice: in that one, on its way out, and in the workspace, on its way
//! through. Whether the workspace masquerades it must then be certain, for that decides which address later hooks see.
//!
//! Limits: ebtables-legacy, tc and BPF programs are not asked; neither are hooks of kernel modules; what counters count lacks
//! connections taken out; a connection taken out earlier stays so when rules change.

mod dump;
mod lower;
mod packet;
mod register;
mod ruleset;
mod sources;
mod tables;
#[cfg(test)]
mod tests;
mod walk;
mod xt;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::net::netdevice;
use sidestep_forwarder::policy::{Request, Transport};

use crate::sys::socket;

use super::notices::Notices;

use self::dump::Reader;
pub use self::packet::Way;
use self::packet::{Connection, Device};
use self::ruleset::Ruleset;
pub use self::sources::{Sources, Unseen};

/// linux/netfilter/nfnetlink.h
const NFNLGRP_NFTABLES: u32 = 7;
/// Rules that change while they are read are read again, this often.
const ATTEMPTS: u32 = 3;
/// More than this of a workspace's rules and sets is not read. 50,000 rules of k3s have some 20 MB.
pub const MAX_BYTES: usize = 64 << 20;

/// What the workspace's netfilter would do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Netfilter {
    Untouched,
    CouldTouch,
}

pub struct Oracle {
    rules: Option<Mutex<Rules>>,
    legacy: [Option<OwnedFd>; 2],
    complained: AtomicBool,
}

struct Rules {
    notices: Notices,
    reader: Reader,
    /// None: to be read.
    current: Option<Arc<Ruleset>>,
}

impl Oracle {
    /// Reads at most `max_bytes` of rules: where there are more, all connections stay in place.
    pub fn new(sources: Sources, max_bytes: usize) -> io::Result<Self> {
        let rules = match sources.netlink {
            Some((notices, dumps)) => {
                let notices = Notices::join(notices, &[NFNLGRP_NFTABLES])?;
                socket::answers_soon(dumps.as_fd())?;
                Some(Mutex::new(Rules { notices, reader: Reader::new(dumps, max_bytes), current: None }))
            }
            None => None,
        };
        Ok(Self { rules, legacy: sources.legacy, complained: AtomicBool::new(false) })
    }

    /// About a connection that the routes lead that way, from `source` where they say it.
    pub fn ask(&self, source: Option<IpAddr>, request: Request, way: Way<u32>) -> Netfilter {
        match self.could_touch(source, request, way) {
            Ok(false) => Netfilter::Untouched,
            Ok(true) => Netfilter::CouldTouch,
            Err(error) => {
                if !self.complained.swap(true, Ordering::Relaxed) {
                    tracing::debug!(%error, "netfilter rules cannot be read: in place");
                }
                Netfilter::CouldTouch
            }
        }
    }

    /// Whether there are no rules at all.
    pub fn is_empty(&self) -> bool {
        let legacy =
            self.legacy.iter().flatten().any(|names| !matches!(rustix::io::pread(names, &mut [0; 1], 0), Ok(0)));
        let any = |rules: &Mutex<Rules>| {
            let mut rules = rules.lock().ok()?;
            Some(!rules.current().ok()?.is_empty())
        };
        !legacy && !self.rules.as_ref().is_some_and(|rules| any(rules).unwrap_or(true))
    }

    fn could_touch(&self, source: Option<IpAddr>, request: Request, way: Way<u32>) -> io::Result<bool> {
        let destination = SocketAddr::new(request.destination.ip().to_canonical(), request.destination.port());
        let l4proto = match request.transport {
            Transport::Tcp => packet::TCP,
            Transport::Udp => packet::UDP,
            // Never taken out.
            Transport::Icmp => return Ok(true),
        };
        if let Some(names) = &self.legacy[usize::from(destination.is_ipv6())]
            && rustix::io::pread(names, &mut [0; 1], 0)? != 0
        {
            return Ok(true);
        }
        let Some(rules) = &self.rules else { return Ok(false) };
        let (current, way) = {
            let mut rules = rules.lock().map_err(|_| io::Error::other("a thread died while reading rules"))?;
            let current = rules.current()?;
            if current.is_empty() {
                return Ok(false);
            }
            // Asked each time: a device may be renamed.
            let named = |index| {
                let name = netdevice::index_to_name_inlined(&rules.notices, index)?;
                Ok::<_, io::Error>(Device::new(index, name.as_bytes()))
            };
            (current, way.try_map(named)?)
        };
        let source = source.map(|ip| ip.to_canonical());
        Ok(current.could_touch(&Connection { source, destination, l4proto, way }))
    }
}

impl Rules {
    fn current(&mut self) -> io::Result<Arc<Ruleset>> {
        if self.notices.any()? {
            self.current = None;
        }
        if let Some(current) = &self.current {
            return Ok(Arc::clone(current));
        }
        for _ in 0..ATTEMPTS {
            match self.reader.read() {
                // The dumps are of one state if nothing changed around them.
                Ok(read) if !self.notices.any()? => return Ok(Arc::clone(self.current.insert(Arc::new(read)))),
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("the rules change faster than they can be read"))
    }
}
