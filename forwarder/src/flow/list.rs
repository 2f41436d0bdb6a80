//! Flows as they are shown to people: on pages, so that a message holds one and the packet path waits for no more.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{Kind, Table};
use crate::timer::Time;

/// Flows on a page: with the longest addresses some 300 bytes each, in a message of 16 KB.
const PAGE: usize = 48;
/// Slots looked at for a page: some 10 µs where all of them are free.
const LOOKED_AT: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Ping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Opening,
    Open,
    /// At least one side has sent its last byte.
    Closing,
}

/// One flow as it is shown: bytes of payload, times in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    pub protocol: Protocol,
    pub guest: SocketAddr,
    /// Where the last datagram went, for what goes anywhere.
    pub remote: Option<SocketAddr>,
    pub state: State,
    pub from_tap: u64,
    pub to_tap: u64,
    pub age_ms: u64,
    /// Since the workspace was last heard of, in either direction for datagrams.
    pub idle_ms: u64,
}

/// Where a page begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    kind: Kind,
    index: u32,
}

/// A page being filled, by one table after the other in the order of [`Kind`].
pub struct Page {
    now: Time,
    from: Option<Place>,
    flows: Vec<Listed>,
    looked_at: usize,
    next: Option<Place>,
}

impl Page {
    pub fn new(now: Time, from: Option<Place>) -> Self {
        Self { now, from, flows: Vec::new(), looked_at: 0, next: None }
    }

    pub fn list<K: Copy + Eq + std::hash::Hash, V>(&mut self, table: &Table<K, V>, row: impl Fn(&V, Time) -> Listed) {
        let kind = table.kind();
        let begin = match self.from {
            Some(from) if from.kind > kind => return,
            Some(from) if from.kind == kind => from.index,
            _ => 0,
        };
        for index in begin..table.slots() {
            if self.next.is_some() {
                return;
            }
            if self.flows.len() == PAGE || self.looked_at == LOOKED_AT {
                self.next = Some(Place { kind, index });
                return;
            }
            self.looked_at += 1;
            if let Some(value) = table.get(index) {
                self.flows.push(row(value, self.now));
            }
        }
    }

    pub fn finish(self) -> (Vec<Listed>, Option<Place>) {
        (self.flows, self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(to_tap: u64, now: Time) -> Listed {
        let end: SocketAddr = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%4294967295]:65535".parse().unwrap();
        Listed {
            protocol: Protocol::Ping,
            guest: end,
            remote: Some(end),
            state: State::Opening,
            from_tap: u64::MAX,
            to_tap,
            age_ms: now.0,
            idle_ms: now.0,
        }
    }

    #[test]
    fn pages_show_each_flow_once_and_fit_a_message() {
        let mut tcp = Table::new(Kind::Tcp, 10_000);
        let mut ping = Table::new(Kind::Ping, 100);
        for key in 0..3000_u64 {
            tcp.insert(key, |_| Some(key));
        }
        for key in 0..2900 {
            tcp.remove(key);
        }
        for key in 5000..5050_u64 {
            ping.insert(key, |_| Some(key));
        }
        let (mut seen, mut from, mut pages) = (Vec::new(), None, 0);
        loop {
            let mut page = Page::new(Time(u64::MAX), from);
            page.list(&tcp, |&value, now| row(value, now));
            page.list(&ping, |&value, now| row(value, now));
            let (flows, next) = page.finish();
            let message = crate::link::ToSupervisor::Flows { id: u64::MAX, flows: flows.clone(), next };
            let (a, b) = crate::channel::Channel::pair().unwrap();
            assert!(a.try_send(&message, &[]).unwrap());
            drop(b);
            seen.extend(flows.iter().map(|flow| flow.to_tap));
            pages += 1;
            if next.is_none() {
                break;
            }
            from = next;
        }
        seen.sort_unstable();
        assert!(seen.into_iter().eq((2900..3000).chain(5000..5050)));
        assert!((5..=8).contains(&pages), "{pages}");
    }
}
