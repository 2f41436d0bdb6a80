//! Bounds and times of the TCP translation, with their reasons.

/// Host connect of TCP to the virtual resolver, while there is another one to try: the workspace waits 5 s.
pub const RESOLVER_DIAL_MS: u64 = 2_000;
/// Connections to the virtual resolver at once. Behind it is one of the host's, of which everybody there takes a share:
/// systemd-resolved serves 128. A SYN beyond these is not heard, and comes again.
pub const MAX_TO_RESOLVER: usize = 32;
/// How long such a connection may be silent (RFC 7766 6.2.3).
pub const RESOLVER_IDLE_MS: u64 = 30_000;
/// Connections at once: each costs a host descriptor, and the usual hard limit of those is 2^19 or more.
pub const MAX_FLOWS: usize = 32_768;
/// A host connect gives up by itself after about 130 s (tcp_syn_retries 6); this is for the kernel that does not.
pub const DIAL_MS: u64 = 150_000;
/// First retransmission of a SYN or SYN-ACK (RFC 6298 2.1).
pub const SYN_RTO_MS: u64 = 1_000;
/// How often they are sent again before giving up: Linux's tcp_synack_retries; 63 s.
pub const SYN_TRIES: u8 = 5;
/// Connections from the host at once: the workspace's own always find room.
pub const MAX_INBOUND: usize = MAX_FLOWS / 2;
/// Those of them that the workspace has not answered yet: somaxconn, for more would wait there just as well.
pub const MAX_OPENING: usize = 4096;
/// Other ports tried for a client whose own is taken by another connection to the same port of the workspace.
pub const PORT_TRIES: u64 = 16;
/// Retransmission of data at the earliest: above Linux's longest delayed acknowledgement, 200 ms, or idle ends would be
/// resent.
pub const RTO_MS: u64 = 300;
/// Retransmissions and window probes before giving up, with doubling about 6 minutes; only when nothing at all was
/// heard for [`SILENCE_MS`]. A program that does not read keeps its window closed for as long as it likes.
pub const DATA_TRIES: u8 = 12;
pub const SILENCE_MS: u64 = 2 * MAX_BACKOFF_MS;
/// First window probe, doubling like a retransmission.
pub const PERSIST_MS: u64 = 300;
/// The longest wait between two retransmissions or window probes.
pub const MAX_BACKOFF_MS: u64 = 60_000;
/// Silence after which the workspace's end is probed: Linux's tcp_keepalive_time.
pub const KEEPALIVE_IDLE_MS: u64 = 7_200_000;
/// The same for a connection that holds a ring: an empty one is given back.
pub const MEMORY_IDLE_MS: u64 = 10_000;
/// The same once one direction is closed: the workspace's socket may be an orphan that its kernel dropped after 60 s.
pub const HALF_CLOSED_IDLE_MS: u64 = 90_000;
/// Between two keepalive probes, and their number: Linux's defaults.
pub const KEEPALIVE_INTERVAL_MS: u64 = 75_000;
pub const KEEPALIVE_TRIES: u8 = 9;
/// Probes of a dead forwarder's connections, and the time between two: an answer takes the workspace no time, only the
/// TAP may be down for a while.
pub const ORPHAN_PROBES: u8 = 5;
pub const ORPHAN_PROBE_MS: u64 = 1_000;
/// How soon a full TAP is tried again with them.
pub const ORPHAN_RETRY_MS: u64 = 10;
/// Frames sent for one connection before others have their turn.
pub const FRAMES_A_TURN: usize = 16;
/// Bytes all connections together may be promised beyond their first 64 KB: what a workspace can make us keep.
pub const MAX_GROWN_WINDOWS: usize = 256 << 20;
/// Payload slices given to the host's socket in one call: a whole batch of frames.
pub const GATHERED: usize = 16;
/// No MSS below this one is believed: Linux's TCP_MIN_MSS.
pub const MIN_MSS: u16 = 88;
/// The MSS of a SYN that names none (RFC 9293 3.7.1).
pub const DEFAULT_MSS_V4: u16 = 536;
pub const DEFAULT_MSS_V6: u16 = 1220;
