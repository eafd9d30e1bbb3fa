//! The chunk store before it has recovered: a type of its own, so that nothing can be planned too early.
//!
//! ```text
//! snapshot* -> (record | mark)* -> [verify] -> finish
//! ```
//!
//! What may be trusted: everything below the last sync mark, and every snapshot. Records above the mark are in the
//! journal, but after a loss of power their blocks may not be on the device. Freed blocks are not reused before a mark
//! covers the record that freed them, so what such a chunk was at the mark is intact: it is kept here, with the records
//! since, and a rejected record is one that the chunk is rebuilt without.
//!
//! Only blocks that a chunk names now are verified: those that a record above the mark freed may have been reused, if a
//! mark was written but lost.
//!
//! 1. `histories` holds exactly the chunks that records above the last mark change.
//! 2. A chunk is its base with the records of its history applied, but for rejected ones.

use std::collections::{BTreeMap, BTreeSet};

use sealfs_proto::{Corrupt, ShardId, limits};
use sealfs_transport::{Instant, Slice};

use super::map::{Chunk, Extent, Key, Map, push_block};
use super::record::{BLOCKS_MAX, BlockState, ChunkRecord, Run};
use super::{Applied, Chunks, VolumeRead, applied};

/// The chunk store before it has recovered.
///
/// CRASH: a loss of power may still take back any record above the mark. So what those records replaced stays out of use
/// after this, too, until a mark covers them. Repairs must be journaled and synced before the core serves: a record that
/// the next recovery rejects once more may have given its blocks to another chunk.
#[derive(Debug)]
pub struct Replay {
    map: Map,
    histories: BTreeMap<Key, History>,
    /// Whose chunk a record above the mark changes.
    positions: BTreeMap<u64, Key>,
    /// Chunks whose blocks are to be verified.
    unverified: BTreeSet<Key>,
    /// Chunks of which a record was rejected.
    repaired: BTreeSet<Key>,
}

/// A chunk since the last sync mark.
#[derive(Debug, Default)]
struct History {
    base: Chunk,
    records: Vec<Above>,
}

/// A record above the mark.
#[derive(Debug)]
struct Above {
    position: u64,
    record: ChunkRecord,
    rejected: bool,
}

/// Blocks named above the last sync mark: after a loss of power they may not have reached the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Suspect {
    /// What to read.
    pub(super) read: VolumeRead,
    /// Position of the record that names them.
    pub(super) position: u64,
    sums: Vec<u32>,
}

impl Suspect {
    /// Whether these are the bytes that were written.
    pub(super) fn holds(&self, bytes: &[u8]) -> bool {
        bytes.len() == self.read.len as usize
            && bytes.chunks_exact(super::BLOCK).map(crc32c::crc32c).eq(self.sums.iter().copied())
    }
}

impl Replay {
    /// An empty store of a cluster of `shards`.
    #[must_use]
    pub fn new(shards: u32) -> Self {
        Self {
            map: Map::new(shards),
            histories: BTreeMap::new(),
            positions: BTreeMap::new(),
            unverified: BTreeSet::new(),
            repaired: BTreeSet::new(),
        }
    }

    /// The chunks of a shard, as [`Chunks::encode_shard`] gave them.
    pub fn snapshot(&mut self, shard: ShardId, bytes: &[u8]) -> Result<(), Corrupt> {
        self.map.decode_shard(shard, bytes)
    }

    /// The next record, whose entry begins at `position`.
    pub fn record(&mut self, position: u64, record: ChunkRecord) -> Applied {
        let key = (record.ino(), record.index());
        let base = || History {
            base: self.map.chunk(key).cloned().unwrap_or_default(),
            records: Vec::new(),
        };
        let history = self.histories.entry(key).or_insert_with(base);
        let before = self.map.used();
        self.map.apply(&record);
        history.records.push(Above { position, record, rejected: false });
        self.positions.insert(position, key);
        self.unverified.insert(key);
        applied(before, self.map.used())
    }

    /// A sync mark: the journal below `end` and its data are on the device.
    pub fn mark(&mut self, end: u64) {
        self.positions = self.positions.split_off(&end);
        self.histories.retain(|_, history| {
            let covered = history.records.partition_point(|above| above.position < end);
            for above in history.records.drain(..covered) {
                history.base.apply(&above.record);
            }
            !history.records.is_empty()
        });
    }

    /// Reads, with `read`, the blocks that chunks name because of records above the last mark, and takes back the records whose
    /// blocks did not reach the device: under one another doubtful one may lie, so until there are none. Needed when the machine
    /// has lost power since the last run, and only then. Answers how many records were taken back.
    ///
    /// What cannot be read is kept: it may be what was synced, and the block as it was before would be taken for it. Reading
    /// the file says EIO there.
    pub fn verify(
        &mut self,
        mut read: impl FnMut(VolumeRead, &mut [u8]) -> Result<(), String>,
    ) -> u32 {
        let mut rejected = 0;
        let mut bytes = Vec::new();
        loop {
            let suspects = self.suspects();
            if suspects.is_empty() {
                return rejected;
            }
            for suspect in suspects {
                let VolumeRead { offset, len } = suspect.read;
                bytes.resize(len as usize, 0);
                match read(suspect.read, &mut bytes) {
                    Err(cause) => {
                        tracing::error!(
                            offset,
                            len,
                            cause,
                            "blocks cannot be read: EIO to readers"
                        );
                    }
                    Ok(()) if suspect.holds(&bytes) => {}
                    Ok(()) => {
                        tracing::warn!(
                            offset,
                            len,
                            "a write had not reached the device: taken back"
                        );
                        self.reject(suspect.position);
                        rejected += 1;
                    }
                }
            }
        }
    }

    /// What is to be verified: each is given once, and those of a chunk again after one of its records was rejected.
    pub(super) fn suspects(&mut self) -> Vec<Suspect> {
        let mut suspects = Vec::new();
        for key in std::mem::take(&mut self.unverified) {
            if let Some(history) = self.histories.get(&key) {
                history.push_suspects(&mut suspects);
            }
        }
        suspects
    }

    /// The record at `position`, one of the suspects', did not reach the device whole: its chunk becomes what it is without
    /// it.
    pub(super) fn reject(&mut self, position: u64) {
        let Some(&key) = self.positions.get(&position) else { return };
        let history = self.histories.get_mut(&key).expect("a position above the mark has one");
        let mut chunk = history.base.clone();
        let mut len_max = chunk.len;
        for above in &mut history.records {
            above.rejected |= above.position == position;
            if !above.rejected {
                chunk.apply(&above.record);
            }
            len_max = len_max.max(above.record.len());
        }
        // Without a rejected cut there may be data behind the length of the records after it.
        chunk.len = chunk.len.max(chunk.written_end().min(len_max));
        self.map.replace(key, chunk);
        self.repaired.insert(key);
        self.unverified.insert(key);
    }

    /// The chunks, without any free blocks yet, and the records that make rejections permanent: to be journaled (not
    /// applied) and synced before serving. `total` and `zeros` as in [`Chunks::new`]. What records above the last mark
    /// replaced, and what rejected ones had named, waits for the next mark.
    #[must_use]
    pub fn finish(self, total: u64, zeros: Slice, now: Instant) -> (Chunks, Vec<ChunkRecord>) {
        let absent = Chunk::default();
        let chunk = |key: &Key| self.map.chunk(*key).unwrap_or(&absent);
        let repairs = self.repaired.iter().map(|key| chunk(key).record(*key)).collect();
        let above = self.positions.last_key_value().map(|(&last, _)| {
            let histories = self.histories.values();
            let placed = histories.map(History::placed).sum();
            let histories = self.histories.iter();
            let freed = histories.flat_map(|(key, history)| history.replaced(chunk(key)));
            (last, placed, freed.collect())
        });
        let mut chunks = Chunks::with_map(self.map, total, zeros);
        if let Some((last, placed, freed)) = above {
            chunks.blocks.applied(last, placed, freed, now);
        }
        (chunks, repairs)
    }

    /// The state so far, for snapshots of a data directory that is only being converted.
    #[must_use]
    pub fn encode_shard(&self, shard: ShardId) -> Vec<u8> {
        self.map.encode_shard(shard)
    }
}

impl History {
    /// Blocks that its records have named.
    fn placed(&self) -> u64 {
        let runs = self.records.iter().flat_map(|above| above.record.runs());
        runs.map(|run| u64::from(run.count)).sum()
    }

    /// Blocks that the chunk has named since the mark, or would have, and does not name as `now`.
    fn replaced(&self, now: &Chunk) -> Vec<Run> {
        let blocks = |run: Run| run.start..run.end();
        let base = self.base.extents().iter().map(Extent::run);
        let since = self.records.iter().flat_map(|above| above.record.runs().iter().copied());
        let mut named: Vec<u64> = base.chain(since).flat_map(blocks).collect();
        named.sort_unstable();
        named.dedup();
        let kept: BTreeSet<u64> = now.extents().iter().map(Extent::run).flat_map(blocks).collect();
        let mut replaced = Vec::new();
        for block in named.into_iter().filter(|block| !kept.contains(block)) {
            push_block(&mut replaced, block);
        }
        replaced
    }

    /// Adds the written blocks that are there because of its records.
    fn push_suspects(&self, suspects: &mut Vec<Suspect>) {
        let first = suspects.len();
        for (position, place, sum) in self.named().into_iter().flatten() {
            let offset = place * u64::from(limits::BLOCK_SIZE);
            match suspects[first..].last_mut() {
                Some(last)
                    if last.position == position
                        && last.read.offset + u64::from(last.read.len) == offset
                        && last.read.len < limits::BULK_LEN_MAX =>
                {
                    last.read.len += limits::BLOCK_SIZE;
                    last.sums.push(sum);
                }
                _ => suspects.push(Suspect {
                    read: VolumeRead { offset, len: limits::BLOCK_SIZE },
                    position,
                    sums: vec![sum],
                }),
            }
        }
    }

    /// For each block of the chunk that a record of this history has written last: its position, place and checksum.
    fn named(&self) -> [Option<(u64, u64, u32)>; BLOCKS_MAX as usize] {
        let mut named = [None; BLOCKS_MAX as usize];
        for Above { position, record, .. } in self.records.iter().filter(|above| !above.rejected) {
            let mut sums = record.sums().iter();
            let mut places = record.runs().iter().flat_map(|run| run.start..run.end());
            for change in record.changes() {
                let blocks = usize::from(change.start)..usize::from(change.start + change.count);
                for block in &mut named[blocks] {
                    let place = if change.state == BlockState::Hole { None } else { places.next() };
                    let sum = if change.state == BlockState::Written { sums.next() } else { None };
                    *block = place.zip(sum).map(|(place, sum)| (*position, place, *sum));
                }
            }
        }
        named
    }
}
