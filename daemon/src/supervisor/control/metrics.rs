//! The counters in the text format that Prometheus reads (version 0.0.4 of its exposition format).
//!
//! Written by hand: the client libraries keep counters of their own, and these are somebody else's, read once. Names of
//! labels' values are fields of the counters or names of reasons, which need no escaping.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::supervisor::counters::{All, Snapshot};

/// What is written to.
struct Text(String);

impl Text {
    /// A counter without labels.
    fn one(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, help, "counter");
        self.line(format_args!("{name} {value}"));
    }

    /// One counter for each value of a label.
    fn each<'a>(&mut self, name: &str, help: &str, label: &str, values: impl IntoIterator<Item = (&'a str, u64)>) {
        self.head(name, help, "counter");
        for (of, value) in values {
            self.line(format_args!("{name}{{{label}=\"{of}\"}} {value}"));
        }
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{line}");
    }
}

pub fn text(all: &All) -> String {
    let mut text = Text(String::new());
    supervisor(&mut text, &all.supervisor);
    let restarts = [("supervisor", all.restarts.supervisor), ("forwarder", all.restarts.forwarder)];
    text.each("sidestep_restarts_total", "Workers started again after they died.", "worker", restarts);
    let up = "sidestep_forwarder_up";
    text.head(up, "1 where the forwarder answers; without that its counters are missing.", "gauge");
    text.line(format_args!("{up} {}", u8::from(all.forwarder.is_some())));
    if let Some(counters) = &all.forwarder {
        forwarder(&mut text, counters);
    }
    text.0
}

fn supervisor(text: &mut Text, counted: &Snapshot) {
    let Snapshot { calls, verdicts, without_verdict, stuck, options_not_carried } = counted;
    text.each("sidestep_calls_total", "Stopped system calls received.", "call", pairs(&fields(calls)));
    let bypass = fields(&verdicts.bypass);
    text.each(
        "sidestep_bypassed_total",
        "Connects taken out to a host socket, and sockets that listen on the host.",
        "transport",
        pairs(&bypass),
    );
    let by_reason = [
        ("sidestep_in_place_total", "Calls carried out on the process's own socket.", &verdicts.in_place),
        ("sidestep_denied_total", "Calls on host sockets that were denied.", &verdicts.denied),
        ("sidestep_continued_total", "Calls left to the kernel.", &verdicts.continued),
    ];
    for (name, help, values) in by_reason {
        text.each(name, help, "reason", pairs(values));
    }
    text.one("sidestep_on_host_socket_total", "Calls on connected host sockets.", verdicts.on_host_socket);
    let without = fields(without_verdict);
    text.each("sidestep_without_verdict_total", "Calls answered without a verdict.", "reason", pairs(&without));
    text.one("sidestep_stuck_total", "Calls that held a thread until they were given up.", *stuck);
    let help = "Socket options that the socket in place did not take.";
    text.one("sidestep_options_not_carried_total", help, *options_not_carried);
}

fn forwarder(text: &mut Text, counters: &sidestep_forwarder::counters::Counters) {
    let sidestep_forwarder::counters::Counters { from_tap, to_tap, drops, denied, tcp, udp, ping, dns, ports } =
        counters;
    let frames = [("from_tap", from_tap.frames), ("to_tap", to_tap.frames)];
    text.each("sidestep_frames_total", "Frames on the TAP.", "direction", frames);
    let bytes = [("from_tap", from_tap.bytes), ("to_tap", to_tap.bytes)];
    text.each("sidestep_frame_bytes_total", "Bytes of these frames, headers included.", "direction", bytes);
    text.each("sidestep_drops_total", "Frames and datagrams dropped.", "reason", pairs(&fields(drops)));
    let rules = fields(denied);
    text.each("sidestep_egress_denied_total", "What the egress policy refused on the TAP.", "rule", pairs(&rules));
    let protocols = [("tcp", fields(&tcp.flows)), ("udp", fields(&udp.flows)), ("ping", fields(ping))];
    for (field, help) in [
        ("opened", "Flows that began."),
        ("closed", "Flows that ended."),
        ("denied", "Flows and datagrams refused by the egress policy."),
        ("exhausted", "Flows refused for want of descriptors, ports or room."),
        ("failed", "Flows that failed at the host."),
        ("timed_out", "Flows given up after a timeout."),
    ] {
        let values = protocols.iter().map(|(protocol, of)| (*protocol, of.get(field).copied().unwrap_or_default()));
        text.each(&format!("sidestep_flows_{field}_total"), help, "protocol", values);
    }
    let resets = [("from_tap", tcp.resets_from_tap), ("to_tap", tcp.resets_to_tap)];
    text.each("sidestep_tcp_resets_total", "TCP resets on the TAP.", "direction", resets);
    text.one("sidestep_tcp_retransmits_total", "Segments sent to the workspace again.", tcp.retransmits_to_tap);
    text.one("sidestep_tcp_window_probes_total", "Probes of a closed window inside.", tcp.window_probes);
    text.one("sidestep_udp_evicted_total", "UDP mappings that gave way to others.", udp.evicted);
    text.one("sidestep_udp_errors_relayed_total", "ICMP errors handed on to the workspace.", udp.errors_relayed);
    text.one("sidestep_dns_queries_total", "Queries to the virtual resolver.", dns.queries);
    text.one("sidestep_dns_answers_total", "Answers to them.", dns.answers);
    text.one("sidestep_dns_failovers_total", "Queries sent to another resolver.", dns.failovers);
    text.one("sidestep_dns_unanswered_total", "Queries without an answer.", dns.unanswered);
    text.each("sidestep_ports_total", "Clients of published ports.", "what", pairs(&fields(ports)));
}

fn pairs(values: &BTreeMap<String, u64>) -> impl Iterator<Item = (&str, u64)> {
    values.iter().map(|(name, value)| (name.as_str(), *value))
}

/// The numbers of a struct by their names.
fn fields(of: &impl Serialize) -> BTreeMap<String, u64> {
    let value = serde_json::to_value(of).unwrap_or_default();
    serde_json::from_value(value).unwrap_or_default()
}
