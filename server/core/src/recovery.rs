//! The core before it is recovered: a type of its own, so that nothing can be asked of it too early.
//!
//! ```text
//! Recovery::new(config) -> snapshot(shard, bytes)* -> journal(bytes)* -> finish(ports, now, seed) -> Core
//! ```

use sealfs_proto::{Corrupt, ShardId};
use sealfs_transport::Now;

use crate::{Config, Core, Ports};

/// What a core is made of: snapshots, then the journal behind them.
pub struct Recovery {}

impl Recovery {
    /// Nothing yet: the state of an empty data directory.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let _ = config;
        unimplemented!()
    }

    /// The snapshot of one shard, as [`crate::DiskOp::Snapshot`] gave it. All snapshots come before the journal.
    pub fn snapshot(&mut self, shard: ShardId, bytes: &[u8]) -> Result<(), Corrupt> {
        let _ = (shard, bytes);
        unimplemented!()
    }

    /// The next bytes of this core's journal, whole entries only: what the reader of `sealfs_meta::journal` has accepted.
    /// Entries that a snapshot contains already are skipped.
    pub fn journal(&mut self, bytes: &[u8]) -> Result<(), Corrupt> {
        let _ = bytes;
        unimplemented!()
    }

    /// All shards as snapshots, so that the journal can be dropped and the node started with another number of cores:
    /// what [`crate::DiskOp::Snapshot`] would carry.
    pub fn snapshots(&self) -> Vec<(ShardId, Option<Vec<u8>>)> {
        unimplemented!()
    }

    /// The core, ready to serve. `seed` feeds the jitter of back-offs. `clean`: the last process ended in order and the
    /// device did not lose anything since (same boot id, or everything was synced).
    #[must_use]
    pub fn finish(self, ports: Ports, now: Now, seed: u64) -> Core {
        let _ = (ports, now, seed);
        unimplemented!()
    }
}
