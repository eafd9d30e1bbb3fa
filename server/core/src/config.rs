//! What a core is told at its start and never changes: the cluster, its own place in it, and its limits.

use std::sync::Arc;

use sealfs_proto::{ClusterMap, NodeId, Placement, ShardId, limits, spread};

use crate::CoreId;

/// When a change is acknowledged. fsync(2) and its kin are durable to the device in every mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// When it is written: it survives the death of the process.
    #[default]
    Process,
    /// When it is on the device: it survives the loss of power.
    Power,
    /// At once; it is written within 10 ms.
    Scratch,
}

impl Durability {
    /// The name under which a node's status counts the cores that have it.
    pub(crate) fn counter(self) -> &'static str {
        match self {
            Self::Process => "durability_process",
            Self::Power => "durability_power",
            Self::Scratch => "durability_scratch",
        }
    }
}

/// A core's place and limits.
#[derive(Clone, Debug)]
pub struct Config {
    /// The map, checked.
    pub map: Arc<ClusterMap>,
    /// Its placement.
    pub placement: Arc<Placement>,
    /// This node.
    pub node: NodeId,
    /// This core.
    pub core: CoreId,
    /// How many cores the node has.
    pub cores: u16,
    /// Blocks of the node's volume, `limits::BLOCK_SIZE` bytes each.
    pub volume_blocks: u64,
    /// How often the node's machine has lost power: clients are told, for it may have taken what was not synced.
    pub losses: u64,
    /// When a change is acknowledged.
    pub durability: Durability,
    /// What the node keeps lies in memory, and is gone with the machine's power in every durability.
    pub in_memory: bool,
    /// The one user, beside root, whose programs are served; `None`: everybody's.
    pub only_uid: Option<u32>,
    /// A session that has sent nothing for so long has ended, milliseconds.
    pub lease_ms: u64,
    /// Journal since the oldest snapshot, bytes, above which snapshots are taken and the journal is cut.
    pub snapshot_bytes: u64,
    /// Requests being served by this core at a time; above it no client frames are taken.
    pub requests_max: usize,
}

impl Config {
    /// The usual limits for core `core` of `cores` of `node`. The volume's size is still to be set.
    #[must_use]
    pub fn new(map: Arc<ClusterMap>, node: NodeId, core: CoreId, cores: u16) -> Self {
        let placement = Arc::new(Placement::new(&map));
        Self {
            map,
            placement,
            node,
            core,
            cores,
            volume_blocks: 0,
            losses: 0,
            durability: Durability::Process,
            in_memory: false,
            only_uid: None,
            lease_ms: limits::LEASE_MS,
            snapshot_bytes: SNAPSHOT_BYTES,
            requests_max: REQUESTS_MAX,
        }
    }

    /// The core of each of this node's shards, ascending by shard: the same list on every core.
    #[must_use]
    pub fn owners(&self) -> Vec<(ShardId, CoreId)> {
        let shards: Vec<ShardId> = self.placement.shards_of(self.node).collect();
        let items: Vec<u64> = shards.iter().map(|shard| u64::from(shard.0)).collect();
        let bins: Vec<(u64, u32)> = (0..u64::from(self.cores)).map(|core| (core, 1)).collect();
        let cores = spread(&items, &bins);
        shards.into_iter().zip(cores).map(|(shard, core)| (shard, CoreId(core as u16))).collect()
    }
}

/// Replaying 64 MiB of journal takes about a second.
const SNAPSHOT_BYTES: u64 = 64 << 20;
/// Enough to keep an NVMe drive busy; each holds at most one bulk region, so that the arena bounds the memory first.
const REQUESTS_MAX: usize = 4_096;
