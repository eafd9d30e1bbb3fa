//! The core before it is recovered: a type of its own, so that nothing can be asked of it too early.
//!
//! ```text
//! Recovery::new(config) -> snapshot(shard, bytes)* -> journal(bytes)* [-> verify] -> finish -> Core
//! ```
//! 1. A shard's entries are applied in the order of its own numbers, each exactly once: what a snapshot contains is
//!    skipped, a gap is refused.
//! 2. State and chunk of one entry are applied together or not at all.

use std::collections::BTreeMap;

use sealfs_meta::journal::{ENTRY_HEADER_LEN, Entry, Tail, entries};
use sealfs_meta::recover::{Step, step};
use sealfs_meta::{KIND_VERSION, Record, State, apply, snapshot};
use sealfs_proto::{Corrupt, ShardId, decode, limits};
use sealfs_transport::{Arena, Now, Region, Slice};

use crate::chunk::{ChunkRecord, Replay, VolumeRead};
use crate::core::Recovered;
use crate::world::{Shard, kind};
use crate::{Config, Core, Ports};

/// What a core is made of: snapshots, then the journal behind them.
pub struct Recovery {
    config: Config,
    states: BTreeMap<ShardId, (State, u64)>,
    chunks: Replay,
    first: Option<u64>,
    tail: Tail,
}

impl Recovery {
    /// Nothing yet: the state of an empty data directory.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let core = config.core;
        let own = config.owners().into_iter().filter(|(_, owner)| *owner == core);
        let states = own.map(|(shard, _)| (shard, (State::new(shard), 0))).collect();
        let chunks = Replay::new(config.map.shards());
        Self { config, states, chunks, first: None, tail: Tail::default() }
    }

    /// The snapshot of one shard, as [`crate::DiskOp::Snapshot`] gave it. All snapshots come before the journal.
    pub fn snapshot(&mut self, shard: ShardId, bytes: &[u8]) -> Result<(), Corrupt> {
        let read = snapshot::decode(bytes)?;
        let header = &read.header;
        let expected = (self.config.map.cluster, self.config.node, shard);
        if (header.cluster, header.node, header.shard) != expected {
            return Err(Corrupt::new(
                "snapshot",
                format!(
                    "of shard {} of node {} of cluster {}, not of shard {shard} of node {} of {}",
                    header.shard,
                    header.node,
                    header.cluster,
                    self.config.node,
                    self.config.map.cluster
                ),
            ));
        }
        self.chunks.snapshot(shard, read.chunks)?;
        let number = read.state.number();
        match self.states.get_mut(&shard) {
            Some(state) => *state = (read.state, number),
            None => return Err(Corrupt::new("snapshot", format!("shard {shard} is not here"))),
        }
        Ok(())
    }

    /// The next bytes of this core's journal, whole entries only: what the reader of `sealfs_meta::journal` has accepted.
    /// Entries that a snapshot contains already are skipped.
    pub fn journal(&mut self, bytes: &[u8]) -> Result<(), Corrupt> {
        let mut at = 0;
        for entry in entries(bytes) {
            let length = ENTRY_HEADER_LEN + entry.logical.len() + entry.local.len();
            self.entry(&entry)?;
            let chain: [u8; 4] = bytes[at + CRC_AT..at + CRC_AT + 4].try_into().unwrap_or_default();
            let chain = u32::from_le_bytes(chain);
            self.first.get_or_insert(entry.position);
            self.tail = Tail { position: entry.position + length as u64, chain };
            at += length;
        }
        if at < bytes.len() {
            return Err(Corrupt::new("journal", format!("no entry at byte {at} of a segment")));
        }
        Ok(())
    }

    fn entry(&mut self, entry: &Entry<'_>) -> Result<(), Corrupt> {
        match entry.kind {
            kind::MARK => {
                self.chunks.mark(decode("sync mark", entry.logical)?);
                Ok(())
            }
            kind::STATE if entry.version == KIND_VERSION => self.state_entry(entry),
            kind => Err(at(
                entry,
                format!("kind {kind} in version {}; a newer sealfs has written it", entry.version),
            )),
        }
    }

    fn state_entry(&mut self, entry: &Entry<'_>) -> Result<(), Corrupt> {
        let shard = entry.shard;
        let Some((state, _)) = self.states.get_mut(&shard) else {
            return Err(at(entry, format!("shard {shard} belongs to another core or node")));
        };
        match step(state.number(), entry.number) {
            Step::Skip => return Ok(()),
            Step::Apply => {}
            Step::Invalid => return Err(at(entry, "a record's number is at least 1".into())),
            Step::Gap { have, next } => {
                return Err(at(
                    entry,
                    format!("shard {shard} is at record {have}, and the next one is {next}"),
                ));
            }
        }
        let (record, chunk): (Record, Option<Vec<u8>>) = decode("journal entry", entry.logical)?;
        if let Some(logical) = chunk {
            let chunk = ChunkRecord::decode(&logical, entry.local)?;
            let _ = self.chunks.record(entry.position, chunk);
        }
        let _ = apply(state, &record);
        Ok(())
    }

    /// If the machine has lost power since the last run: reads what may not have reached the device and takes back what did
    /// not, see [`Replay::verify`].
    pub fn verify(&mut self, read: impl FnMut(VolumeRead, &mut [u8]) -> Result<(), String>) {
        self.chunks.verify(read);
    }

    /// All shards as snapshots, so that the journal can be dropped and the node started with another number of cores:
    /// what [`crate::DiskOp::Snapshot`] would carry.
    #[must_use]
    pub fn snapshots(&self) -> Vec<(ShardId, Option<Vec<u8>>)> {
        let (cluster, node) = (self.config.map.cluster, self.config.node);
        let shards = self.states.iter().map(|(&shard, (state, _))| {
            let chunks = self.chunks.encode_shard(shard);
            let bytes =
                (!state.is_empty()).then(|| snapshot::encode(cluster, node, state, &chunks));
            (shard, bytes)
        });
        shards.collect()
    }

    /// The core. It serves once it and its siblings have told each other what space they use, some turns later. `seed` feeds
    /// the jitter of back-offs.
    #[must_use]
    pub fn finish(self, ports: Ports, now: Now, seed: u64) -> Core {
        let zeros = zeros(&*ports.arena);
        let (chunks, repairs) = self.chunks.finish(self.config.volume_blocks, zeros, now.mono);
        let mut shards = BTreeMap::new();
        for (shard, (mut state, stored)) in self.states {
            state.recovered();
            shards.insert(shard, Shard::new(state, stored));
        }
        let recovered = Recovered {
            journal_from: self.first.unwrap_or(self.tail.position),
            config: self.config,
            shards,
            chunks,
            repairs,
            tail: self.tail,
        };
        Core::new(recovered, ports, now, seed)
    }
}

/// If the entry is a sync mark: the position below which it says that journal and data are on the device.
#[must_use]
pub fn sync_mark(entry: &Entry<'_>) -> Option<u64> {
    if entry.kind == kind::MARK { decode("sync mark", entry.logical).ok() } else { None }
}

/// From the arena where it has memory: zeros travel like every other payload.
fn zeros(arena: &dyn Arena) -> Slice {
    let mut region = arena.take(ZEROS_LEN).unwrap_or_else(|| Region::zeroed(ZEROS_LEN));
    region.bytes_mut().fill(0);
    region.freeze()
}

fn at(entry: &Entry<'_>, cause: String) -> Corrupt {
    Corrupt::new("journal", format!("entry at position {}: {cause}", entry.position))
}

/// Offset of an entry's checksum, which the next entry is chained to.
const CRC_AT: usize = 4;
/// Zeros for holes: large enough that a mebibyte of them is a few slices.
const ZEROS_LEN: usize = 64 * 1024;
const _: () = assert!(ZEROS_LEN.is_multiple_of(limits::BLOCK_SIZE as usize));
