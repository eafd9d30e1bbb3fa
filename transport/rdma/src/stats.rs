//! What an endpoint's connections are made of and have done, for `sealfs status`.

use crate::verbs::Facts;

/// What a connection has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages that carried them.
    pub messages_sent: u64,
    /// Messages that have come, those that only give credits back included.
    pub messages_received: u64,
    /// Chains of work that were posted: doorbells.
    pub chains: u64,
    /// Payload fetched by RDMA READ, bytes.
    pub bytes_read: u64,
    /// Payload placed by RDMA WRITE, bytes.
    pub bytes_written: u64,
    /// Questions whether the peer is alive.
    pub probes: u64,
}

/// One connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionStats {
    /// The peer's address.
    pub peer: String,
    /// Whether the peer has begun it.
    pub accepted: bool,
    /// Device, port, GID, MTU, queue depth.
    pub facts: Facts,
    /// Messages that may be sent at this moment.
    pub credits: u16,
    /// Calls that are not answered.
    pub calls: usize,
    /// What it has done.
    pub counters: Counters,
}

/// An endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections that are set up, or being set up by this end.
    pub connections: Vec<ConnectionStats>,
    /// Connections that have ended because of an error, since the start.
    pub failed: u64,
    /// The last of these errors.
    pub last_error: Option<String>,
}
