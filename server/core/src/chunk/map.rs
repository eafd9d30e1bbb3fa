//! What every chunk is made of: its extents, their places in the volume, and their checksums.
//!
//! A chunk in memory is two boxed lists, so that a full 1 MiB chunk in one extent costs about 1.1 KiB, nearly all of it
//! checksums, and a small file's only chunk about 150 bytes. A change spreads the chunk out into one cell per block,
//! sets cells, and packs it again: at most 256 cells, and nothing to get wrong at the edges.
//!
//! 1. Extents are ascending, disjoint, and as long as they can be: the same cells always pack into the same chunk.
//! 2. `sums` holds one checksum per written block, in the order of the extents.
//! 3. A chunk without extents and without length is not kept.
//! 4. No written byte at or behind `len` is other than zero.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use sealfs_meta::snapshot::Before;
use sealfs_proto::{Corrupt, Ino, ShardId, chunk_shard, limits};

use super::record::{BLOCKS_MAX, BlockState, Change, ChunkRecord, Run};

/// The chunks of one core's shards.
#[derive(Debug)]
pub(super) struct Map {
    shards: u32,
    chunks: BTreeMap<Key, Chunk>,
    /// Which chunks a shard has: its snapshot costs what it holds.
    by_shard: BTreeMap<ShardId, BTreeSet<Key>>,
    used: u64,
    /// The shard whose snapshot is being taken, and what the snapshot needs of what changes meanwhile.
    taking: Option<(ShardId, Before<Key>)>,
}

/// A chunk's inode and index.
pub(super) type Key = (Ino, u64);

/// A chunk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chunk {
    /// Grows with every change.
    pub(super) version: u64,
    /// The end of the last byte written.
    pub(super) len: u32,
    extents: Box<[Extent]>,
    sums: Box<[u32]>,
}

/// Neighbouring blocks of the chunk that are neighbours in the volume too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// The first block of the chunk.
    pub(super) start: u16,
    /// How many.
    pub(super) count: u16,
    /// Whether they have data; else they read as zeros.
    pub(super) written: bool,
    /// The first block in the volume.
    pub(super) place: u64,
}

impl Extent {
    /// Its blocks in the volume.
    pub(super) fn run(&self) -> Run {
        Run { start: self.place, count: u32::from(self.count) }
    }

    /// The block of the chunk behind the last one.
    pub(super) fn end(&self) -> u32 {
        u32::from(self.start) + u32::from(self.count)
    }
}

/// What applying a record did.
#[derive(Debug, Default)]
pub(super) struct Effect {
    /// Blocks that the chunk named before and does not name now.
    pub(super) freed: Vec<Run>,
    /// Blocks that the record names.
    pub(super) placed: u64,
}

impl Map {
    pub(super) fn new(shards: u32) -> Self {
        Self { shards, chunks: BTreeMap::new(), by_shard: BTreeMap::new(), used: 0, taking: None }
    }

    pub(super) fn chunk(&self, key: Key) -> Option<&Chunk> {
        self.chunks.get(&key)
    }

    /// Blocks that the chunks name.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// All chunks in order, from `key` on.
    pub(super) fn from(&self, key: Key) -> impl DoubleEndedIterator<Item = (Key, &Chunk)> {
        self.chunks.range(key..).map(|(key, chunk)| (*key, chunk))
    }

    /// The chunks of an inode, from index `from` on.
    pub(super) fn of(&self, ino: Ino, from: u64) -> impl DoubleEndedIterator<Item = (u64, &Chunk)> {
        let range = (Bound::Included((ino, from)), Bound::Included((ino, u64::MAX)));
        self.chunks.range(range).map(|((_, index), chunk)| (*index, chunk))
    }

    /// The chunks of a shard behind one.
    fn shard(&self, shard: ShardId, walked: Option<Key>) -> impl Iterator<Item = (Key, &Chunk)> {
        let behind = (walked.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let keys = self.by_shard.get(&shard).into_iter().flat_map(move |keys| keys.range(behind));
        keys.map(|key| (*key, &self.chunks[key]))
    }

    /// Carries a record out. Total.
    pub(super) fn apply(&mut self, record: &ChunkRecord) -> Effect {
        let key = (record.ino(), record.index());
        self.keep(key);
        let mut chunk = self.chunks.get_mut(&key).map(std::mem::take).unwrap_or_default();
        let effect = chunk.apply(record);
        let freed: u64 = effect.freed.iter().map(|run| u64::from(run.count)).sum();
        self.used = self.used + effect.placed - freed;
        self.put(key, chunk);
        effect
    }

    /// Makes `key` be `chunk`, whatever it was before.
    pub(super) fn replace(&mut self, key: Key, chunk: Chunk) {
        self.keep(key);
        let before = self.chunks.get(&key).map_or(0, Chunk::blocks);
        self.used = self.used + chunk.blocks() - before;
        self.put(key, chunk);
    }

    fn put(&mut self, key: Key, chunk: Chunk) {
        let shard = chunk_shard(key.0, key.1, self.shards);
        if chunk.extents.is_empty() && chunk.len == 0 {
            self.chunks.remove(&key);
            if let Some(keys) = self.by_shard.get_mut(&shard) {
                keys.remove(&key);
                if keys.is_empty() {
                    self.by_shard.remove(&shard);
                }
            }
        } else if self.chunks.insert(key, chunk).is_none() {
            self.by_shard.entry(shard).or_default().insert(key);
        }
    }

    /// The shard's chunks as records, see [`super::record`]; nothing if it has none.
    pub(super) fn encode_shard(&self, shard: ShardId) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.shard(shard, None).for_each(|(key, chunk)| put_chunk(&mut bytes, key, chunk));
        bytes
    }

    /// Begins a snapshot of the shard's chunks as they are now; one that was begun before is given up.
    pub(super) fn begin_snapshot(&mut self, shard: ShardId) {
        self.taking = Some((shard, Before::new(Vec::new())));
    }

    /// Appends the next chunks to `out`, until `room` is used up; true when the shard's are whole.
    pub(super) fn snapshot_slice(&mut self, out: &mut Vec<u8>, room: &mut usize) -> bool {
        let (shard, mut before) = self.taking.take().expect("a snapshot was begun");
        let whole = before.slice(out, room, |walked| self.shard(shard, walked), put_chunk);
        if !whole {
            self.taking = Some((shard, before));
        }
        whole
    }

    /// To be called before a chunk changes.
    fn keep(&mut self, key: Key) {
        if let Some((shard, before)) = &mut self.taking
            && chunk_shard(key.0, key.1, self.shards) == *shard
        {
            let chunk = self.chunks.get(&key);
            before.keep(key, || {
                chunk.map(|chunk| {
                    let mut bytes = Vec::new();
                    put_chunk(&mut bytes, key, chunk);
                    bytes
                })
            });
        }
    }

    /// Adds the chunks of a shard that has none yet.
    pub(super) fn decode_shard(&mut self, shard: ShardId, mut bytes: &[u8]) -> Result<(), Corrupt> {
        while !bytes.is_empty() {
            let (logical, local) = (cut_framed(&mut bytes)?, cut_framed(&mut bytes)?);
            let record = ChunkRecord::decode(logical, local)?;
            let key = (record.ino(), record.index());
            if chunk_shard(key.0, key.1, self.shards) != shard || self.chunks.contains_key(&key) {
                let cause = format!("inode {} chunk {} is not shard {shard}'s", key.0, key.1);
                return Err(Corrupt::new(SNAPSHOT, cause));
            }
            self.apply(&record);
        }
        Ok(())
    }
}

impl Chunk {
    /// Its extents, ascending.
    pub(super) fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Its extents with their checksums (none of unwritten ones).
    pub(super) fn pieces(&self) -> impl Iterator<Item = (Extent, &[u32])> {
        let mut sums = &self.sums[..];
        self.extents.iter().map(move |extent| {
            let (own, rest) =
                sums.split_at(if extent.written { usize::from(extent.count) } else { 0 });
            sums = rest;
            (*extent, own)
        })
    }

    /// A written block's place in the volume and checksum.
    pub(super) fn written(&self, block: u32) -> Option<(u64, u32)> {
        let (extent, sums) = self.pieces().find(|(extent, _)| block < extent.end())?;
        let at = block.checked_sub(u32::from(extent.start))?;
        extent.written.then(|| (extent.place + u64::from(at), sums[at as usize]))
    }

    /// Those of the blocks `from..to` that have no space, as runs `(start, end)`.
    pub(super) fn holes(&self, from: u32, to: u32) -> Vec<(u32, u32)> {
        let mut holes = Vec::new();
        let mut at = from;
        for extent in &self.extents {
            let start = u32::from(extent.start).min(to);
            if start > at {
                holes.push((at, start));
            }
            at = at.max(extent.end());
        }
        if at < to {
            holes.push((at, to));
        }
        holes
    }

    /// Blocks that it names.
    pub(super) fn blocks(&self) -> u64 {
        self.extents.iter().map(|extent| u64::from(extent.count)).sum()
    }

    /// The end of its last written block, bytes.
    pub(super) fn written_end(&self) -> u32 {
        let last = self.extents.iter().rev().find(|extent| extent.written);
        last.map_or(0, |extent| extent.end() * limits::BLOCK_SIZE)
    }

    /// The whole chunk as one record: applied to any state of it, this state results.
    pub(super) fn record(&self, (ino, index): Key) -> ChunkRecord {
        let mut changes = Vec::new();
        let mut at = 0;
        for extent in &self.extents {
            push_hole(&mut changes, at, u32::from(extent.start));
            at = extent.end();
            let state = if extent.written { BlockState::Written } else { BlockState::Unwritten };
            changes.push(Change { start: extent.start, count: extent.count, state });
        }
        push_hole(&mut changes, at, BLOCKS_MAX);
        let runs = self.extents.iter().map(Extent::run);
        ChunkRecord::new(
            (ino, index),
            self.version,
            self.len,
            changes,
            self.sums.to_vec(),
            runs.collect(),
        )
    }

    /// Carries a record out.
    pub(super) fn apply(&mut self, record: &ChunkRecord) -> Effect {
        let mut cells = self.unpack();
        let mut sums = record.sums().iter();
        let mut places = record.runs().iter().flat_map(|run| run.start..run.end());
        let mut effect = Effect::default();
        for change in record.changes() {
            let blocks = usize::from(change.start)..usize::from(change.start + change.count);
            for cell in &mut cells[blocks] {
                if let Some(place) = cell.place {
                    push_block(&mut effect.freed, place);
                }
                let written = change.state == BlockState::Written;
                let place = if change.state == BlockState::Hole { None } else { places.next() };
                let sum = if written { sums.next().copied() } else { None };
                effect.placed += u64::from(place.is_some());
                *cell = Cell { place, written, sum: sum.unwrap_or(0) };
            }
        }
        self.pack(&cells);
        self.version = record.version();
        self.len = record.len();
        effect
    }

    fn unpack(&self) -> [Cell; BLOCKS_MAX as usize] {
        let mut cells = [Cell::default(); BLOCKS_MAX as usize];
        for (extent, sums) in self.pieces() {
            for at in 0..usize::from(extent.count) {
                cells[usize::from(extent.start) + at] = Cell {
                    place: Some(extent.place + at as u64),
                    written: extent.written,
                    sum: sums.get(at).copied().unwrap_or(0),
                };
            }
        }
        cells
    }

    fn pack(&mut self, cells: &[Cell]) {
        let mut extents: Vec<Extent> = Vec::new();
        let mut sums = Vec::new();
        for (block, cell) in (0_u32..).zip(cells) {
            let Some(place) = cell.place else { continue };
            if cell.written {
                sums.push(cell.sum);
            }
            match extents.last_mut() {
                Some(last)
                    if last.end() == block
                        && last.place + u64::from(last.count) == place
                        && last.written == cell.written =>
                {
                    last.count += 1;
                }
                _ => extents.push(Extent {
                    start: block as u16,
                    count: 1,
                    written: cell.written,
                    place,
                }),
            }
        }
        self.extents = extents.into_boxed_slice();
        self.sums = sums.into_boxed_slice();
    }
}

/// One block of a chunk that is being changed.
#[derive(Clone, Copy, Default)]
struct Cell {
    place: Option<u64>,
    written: bool,
    sum: u32,
}

/// Adds a block behind others, to the last run if it is its neighbour.
pub(super) fn push_block(runs: &mut Vec<Run>, block: u64) {
    match runs.last_mut() {
        Some(last) if last.end() == block => last.count += 1,
        _ => runs.push(Run { start: block, count: 1 }),
    }
}

fn push_hole(changes: &mut Vec<Change>, from: u32, to: u32) {
    if from < to {
        let (start, count) = (from as u16, (to - from) as u16);
        changes.push(Change { start, count, state: BlockState::Hole });
    }
}

/// A chunk in a snapshot: the record that makes all of it.
fn put_chunk(out: &mut Vec<u8>, key: Key, chunk: &Chunk) {
    let record = chunk.record(key);
    put_framed(out, &record.logical());
    put_framed(out, &record.local());
}

fn put_framed(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn cut_framed<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], Corrupt> {
    let short = || Corrupt::new(SNAPSHOT, "it ends within a chunk");
    let (len, rest) = bytes.split_first_chunk().ok_or_else(short)?;
    let (own, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or_else(short)?;
    *bytes = rest;
    Ok(own)
}

const SNAPSHOT: &str = "snapshot of chunks";
