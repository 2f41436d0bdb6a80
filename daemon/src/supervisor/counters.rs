//! What the supervisor has done, by reason: atomics that any thread adds to, without a lock.
//!
//! They begin at nothing with each supervisor, as Prometheus expects of a process that was started again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use sidestep_seccomp_profile::syscalls::Stopped;

use super::facts::Kind;
use super::options;
use super::reason::Reason;

#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One counter for each reason.
#[derive(Debug)]
pub struct ByReason([Counter; Reason::ALL.len()]);

impl ByReason {
    pub fn count(&self, reason: Reason) {
        if let Some(counter) = self.0.get(reason as usize) {
            counter.count();
        }
    }

    fn get(&self) -> BTreeMap<String, u64> {
        Reason::ALL.iter().zip(&self.0).map(|(reason, counter)| (reason.name().to_owned(), counter.get())).collect()
    }
}

impl Default for ByReason {
    fn default() -> Self {
        Self([const { Counter(AtomicU64::new(0)) }; Reason::ALL.len()])
    }
}

#[derive(Debug, Default)]
pub struct Counters {
    connect: Counter,
    bind: Counter,
    listen: Counter,
    epoll_create: Counter,
    setsockopt: Counter,
    bypassed_tcp: Counter,
    bypassed_udp: Counter,
    pub listening: Counter,
    pub in_place: ByReason,
    pub denied: ByReason,
    pub continued: ByReason,
    pub on_host_socket: Counter,
    /// Made again after a signal, or after a failure the program had not been told of.
    pub repeated: Counter,
    pub caller_left: Counter,
    pub invalid: Counter,
    pub not_permitted: Counter,
    pub busy: Counter,
    pub given_up: Counter,
    pub stuck: Counter,
}

impl Counters {
    pub fn call(&self, call: Option<Stopped>) {
        match call {
            Some(Stopped::Connect) => self.connect.count(),
            Some(Stopped::Bind) => self.bind.count(),
            Some(Stopped::Listen) => self.listen.count(),
            Some(Stopped::Setsockopt) => self.setsockopt.count(),
            Some(_) => self.epoll_create.count(),
            None => {}
        }
    }

    pub fn bypassed(&self, kind: Kind) {
        let counter = if kind == Kind::Udp { &self.bypassed_udp } else { &self.bypassed_tcp };
        counter.count();
    }

    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            calls: Calls {
                connect: self.connect.get(),
                bind: self.bind.get(),
                listen: self.listen.get(),
                epoll_create: self.epoll_create.get(),
                setsockopt: self.setsockopt.get(),
            },
            verdicts: Verdicts {
                bypass: Bypassed {
                    tcp: self.bypassed_tcp.get(),
                    udp: self.bypassed_udp.get(),
                    listening: self.listening.get(),
                },
                in_place: self.in_place.get(),
                denied: self.denied.get(),
                continued: self.continued.get(),
                on_host_socket: self.on_host_socket.get(),
            },
            without_verdict: WithoutVerdict {
                repeated: self.repeated.get(),
                caller_left: self.caller_left.get(),
                invalid: self.invalid.get(),
                not_permitted: self.not_permitted.get(),
                busy: self.busy.get(),
                given_up: self.given_up.get(),
            },
            stuck: self.stuck.get(),
            options_not_carried: options::NOT_CARRIED.load(Ordering::Relaxed),
        }
    }
}

/// Everything counted, as `GET /v1/counters` gives it.
#[derive(Debug, Serialize, Deserialize)]
pub struct All {
    pub supervisor: Snapshot,
    /// None: the forwarder does not answer.
    pub forwarder: Option<sidestep_forwarder::counters::Counters>,
    pub restarts: Restarts,
}

/// How often a worker has died and was started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarts {
    pub supervisor: u64,
    pub forwarder: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// Stopped calls received.
    pub calls: Calls,
    pub verdicts: Verdicts,
    pub without_verdict: WithoutVerdict,
    /// Calls that held their thread until they were given up.
    pub stuck: u64,
    pub options_not_carried: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Calls {
    pub connect: u64,
    pub bind: u64,
    pub listen: u64,
    pub epoll_create: u64,
    /// Of rare options only.
    pub setsockopt: u64,
}

/// What was done about calls.
#[derive(Debug, Serialize, Deserialize)]
pub struct Verdicts {
    pub bypass: Bypassed,
    pub in_place: BTreeMap<String, u64>,
    pub denied: BTreeMap<String, u64>,
    pub continued: BTreeMap<String, u64>,
    pub on_host_socket: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Bypassed {
    pub tcp: u64,
    pub udp: u64,
    /// Sockets that came to listen on the host.
    pub listening: u64,
}

/// Calls that came to no verdict, or were answered without it.
#[derive(Debug, Serialize, Deserialize)]
pub struct WithoutVerdict {
    pub repeated: u64,
    pub caller_left: u64,
    /// A number that is no socket, an address that is none.
    pub invalid: u64,
    /// The caller cannot be looked at.
    pub not_permitted: u64,
    /// Too many of one process, or of all, at work.
    pub busy: u64,
    /// Taken up by supervisors that died, again and again.
    pub given_up: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_place_and_a_name_of_its_own() {
        let counters = Counters::default();
        for (at, &reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason as usize, at);
            counters.in_place.count(reason);
        }
        let counted = counters.snapshot().verdicts.in_place;
        assert_eq!(counted.len(), Reason::ALL.len());
        assert!(counted.values().all(|&count| count == 1));
    }
}
