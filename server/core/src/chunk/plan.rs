//! A change of one chunk on its way: fresh blocks, what goes into them, and the record that will name them.
//!
//! ```text
//! write:     [zeros or old bytes | payload | old bytes or zeros]   whole blocks, all of them fresh
//! discard:   [old bytes | zeros (| old bytes)] of a partial block; whole blocks become holes
//! allocate:  fresh blocks for holes, nothing written
//! ```
//!
//! 1. What is written lies in blocks that no record names: until the record is applied, reads see the old state.
//! 2. A partial block is merged from verified bytes only, by reference: the volume write is a list of slices.
//! 3. An old block is read only if bytes of it survive: not when nothing was ever written behind the new bytes.
//! 4. The record's length and version are those of its finish, for other changes of the chunk may have come between.

use sealfs_proto::{Errno, limits};
use sealfs_transport::{Region, Slice};

use super::map::{Chunk, Key};
use super::read::{Old, push_zeros};
use super::record::{BlockState, Change, ChunkRecord};
use super::{Ask, BadBlock, Run, VolumeRead};

/// Bytes to be written to the volume.
#[derive(Clone, Debug)]
pub struct VolumeWrite {
    /// Byte in the volume.
    pub offset: u64,
    /// The bytes, one slice behind the other; together whole blocks. Single slices may have any length.
    pub bytes: Vec<Slice>,
}

/// A planned change of one chunk. Its blocks are taken; it ends in [`super::Chunks::finish`] or [`super::Chunks::abort`].
/// One that is only dropped loses its blocks until the next start, but damages nothing.
#[derive(Debug)]
#[must_use]
pub struct Plan {
    key: Key,
    old: Old,
    changes: Vec<Change>,
    /// The bytes of the written blocks, one piece behind the other; given up by `fill`.
    content: Option<Vec<Source>>,
    sums: Vec<u32>,
    runs: Vec<Run>,
    end: End,
    zeros: Slice,
}

/// A piece of what is written.
#[derive(Debug)]
enum Source {
    /// The bytes `from..to` of an old block.
    Old { region: usize, from: u32, to: u32 },
    /// The payload.
    New(Slice),
    /// So many zeros.
    Zeros(u32),
}

/// What becomes of the chunk's length.
#[derive(Clone, Copy, Debug)]
enum End {
    Stays,
    AtLeast(u32),
    AtMost(u32),
}

impl Plan {
    /// A write that still lacks its blocks. EINVAL if it is empty or beyond the largest chunk.
    pub(super) fn write(
        key: Key,
        chunk: &Chunk,
        offset: u32,
        payload: &Slice,
        zeros: &Slice,
    ) -> Result<Self, Errno> {
        let end = u64::from(offset) + payload.len() as u64;
        if payload.is_empty() || end > u64::from(limits::CHUNK_SIZE_MAX) {
            return Err(Errno::EINVAL);
        }
        let end = end as u32;
        let mut plan = Self::new(key, zeros, End::AtLeast(end));
        let (first, last) = (offset / BLOCK, (end - 1) / BLOCK);
        let head = plan.read_if(chunk, first, first * BLOCK, offset);
        // One block may be head and tail: it is read once.
        let tail = match head {
            Some(region) if first == last => Some(region),
            _ => plan.read_if(chunk, last, end, (last + 1) * BLOCK),
        };
        let mut content = Vec::with_capacity(3);
        push_old(&mut content, head, 0, offset - first * BLOCK);
        content.push(Source::New(payload.clone()));
        push_old(&mut content, tail, end - last * BLOCK, BLOCK);
        plan.content = Some(content);
        plan.push_change(first, last + 1, BlockState::Written);
        Ok(plan)
    }

    /// A discard that still lacks its blocks. `to` may be beyond the chunk.
    pub(super) fn discard(
        key: Key,
        chunk: &Chunk,
        from: u32,
        to: u32,
        cut: bool,
        zeros: &Slice,
    ) -> Self {
        let from = from.min(limits::CHUNK_SIZE_MAX);
        let to = if cut { u32::MAX } else { to }.clamp(from, limits::CHUNK_SIZE_MAX);
        let shrinks = cut && from < chunk.len;
        let mut plan = Self::new(key, zeros, if shrinks { End::AtMost(from) } else { End::Stays });
        let (whole_from, whole_to) = (from.div_ceil(BLOCK), to / BLOCK);
        if !from.is_multiple_of(BLOCK) {
            plan.zero_in_block(chunk, from / BLOCK, from, to);
        }
        if whole_from < whole_to && chunk.holes(whole_from, whole_to) != [(whole_from, whole_to)] {
            plan.push_change(whole_from, whole_to, BlockState::Hole);
        }
        // Unless the partial block at the end is the one at the start.
        if !to.is_multiple_of(BLOCK) && to / BLOCK >= whole_from {
            plan.zero_in_block(chunk, to / BLOCK, to / BLOCK * BLOCK, to);
        }
        plan
    }

    /// An allocation that still lacks its blocks. EINVAL beyond the largest chunk.
    pub(super) fn allocate(
        key: Key,
        chunk: &Chunk,
        from: u32,
        to: u32,
        zeros: &Slice,
    ) -> Result<Self, Errno> {
        if to > limits::CHUNK_SIZE_MAX {
            return Err(Errno::EINVAL);
        }
        let mut plan = Self::new(key, zeros, End::Stays);
        for (from, to) in chunk.holes(from / BLOCK, to.div_ceil(BLOCK)) {
            plan.push_change(from, to, BlockState::Unwritten);
        }
        Ok(plan)
    }

    fn new(key: Key, zeros: &Slice, end: End) -> Self {
        Self {
            key,
            old: Old::new(key),
            changes: Vec::new(),
            content: Some(Vec::new()),
            sums: Vec::new(),
            runs: Vec::new(),
            end,
            zeros: zeros.clone(),
        }
    }

    /// The bytes `from..to` of the chunk, cut to its block `block`, become zeros.
    fn zero_in_block(&mut self, chunk: &Chunk, block: u32, from: u32, to: u32) {
        let (start, end) = (block * BLOCK, (block + 1) * BLOCK);
        let to = to.min(end);
        // Bytes behind the chunk's length are zeros already.
        if chunk.written(block).is_none() || from >= chunk.len || from >= to {
            return;
        }
        if from == start && to >= chunk.len {
            self.push_change(block, block + 1, BlockState::Hole);
            return;
        }
        let region = self.read_if(chunk, block, start, end);
        let content = self.content.get_or_insert_default();
        push_old(content, region, 0, from - start);
        content.push(Source::Zeros(to - from));
        push_old(content, region, to - start, BLOCK);
        self.push_change(block, block + 1, BlockState::Written);
    }

    /// Has the old block read if any of the chunk's bytes `from..to`, which lie in it, may be other than zero.
    fn read_if(&mut self, chunk: &Chunk, block: u32, from: u32, to: u32) -> Option<usize> {
        let (place, sum) = chunk.written(block)?;
        (from < to.min(chunk.len)).then(|| self.old.push_alone(block as u16, place, sum))
    }

    fn push_change(&mut self, from: u32, to: u32, state: BlockState) {
        if from < to {
            let (start, count) = (from as u16, (to - from) as u16);
            self.changes.push(Change { start, count, state });
        }
    }

    /// How many fresh blocks it needs; those of the reserve only if `chunk` does not grow.
    pub(super) fn ask(&self, chunk: &Chunk) -> Ask {
        let placed = self.changes.iter().filter(|change| change.state != BlockState::Hole);
        let mut ask = Ask { blocks: 0, reserve: true };
        for change in placed {
            let (start, count) = (u32::from(change.start), u32::from(change.count));
            ask.blocks += count;
            ask.reserve &= chunk.holes(start, start + count).is_empty();
        }
        ask
    }

    /// Gives it the blocks that it asked for.
    pub(super) fn place(&mut self, runs: Vec<Run>) {
        self.runs = runs;
    }

    /// Its blocks, when it is given up.
    pub(super) fn into_runs(self) -> Vec<Run> {
        self.runs
    }

    /// How many fresh blocks it has.
    #[cfg(test)]
    pub(super) fn blocks(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.count)).sum()
    }

    /// Whose.
    pub(super) fn key(&self) -> Key {
        self.key
    }

    /// The old blocks to be read first (at most two: a partial head and tail), in the order in which [`Plan::fill`] takes
    /// their regions.
    #[must_use]
    pub fn reads(&self) -> &[VolumeRead] {
        &self.old.reads
    }

    /// Nothing would change: no record is needed, and [`super::Chunks::abort`] ends it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && matches!(self.end, End::Stays)
    }

    /// Takes the old blocks, verifies and merges them, and gives what is to be written. Called once, also with no regions.
    /// Cost: a checksum of all that is written; no copy.
    pub fn fill(&mut self, regions: Vec<Region>) -> Result<Vec<VolumeWrite>, BadBlock> {
        let old = self.old.verify(regions)?;
        let content = self.content.take().expect("a plan is filled once");
        let mut bytes = Vec::with_capacity(content.len());
        for source in content {
            match source {
                Source::Old { region, from, to } => {
                    bytes.push(old[region].cut(from as usize, to as usize));
                }
                Source::New(payload) => bytes.push(payload),
                Source::Zeros(count) => push_zeros(&mut bytes, &self.zeros, count),
            }
        }
        self.sums = block_sums(&bytes);
        if bytes.is_empty() {
            return Ok(Vec::new());
        }
        let mut bytes = Bytes { slices: bytes.into_iter(), rest: None };
        let writes = self.runs.iter().map(|run| VolumeWrite {
            offset: run.start * u64::from(BLOCK),
            bytes: bytes.take(run.count as usize * BLOCK as usize),
        });
        Ok(writes.collect())
    }

    /// The record that makes it so. `chunk` is the chunk as it is now.
    pub(super) fn into_record(self, chunk: &Chunk) -> ChunkRecord {
        assert!(self.content.is_none(), "a plan is filled before it is finished");
        let len = match self.end {
            End::Stays => chunk.len,
            End::AtLeast(end) => chunk.len.max(end),
            End::AtMost(end) => chunk.len.min(end),
        };
        let version = chunk.version + 1;
        ChunkRecord::new(self.key, version, len, self.changes, self.sums, self.runs)
    }
}

/// The bytes `from..to` of a partial block: of the old one if it is read, else zeros.
fn push_old(content: &mut Vec<Source>, region: Option<usize>, from: u32, to: u32) {
    match region {
        _ if from == to => {}
        Some(region) => content.push(Source::Old { region, from, to }),
        None => content.push(Source::Zeros(to - from)),
    }
}

/// The checksum of each block of a stream of bytes.
fn block_sums(bytes: &[Slice]) -> Vec<u32> {
    let block = BLOCK as usize;
    let mut sums = Vec::new();
    let (mut sum, mut filled) = (0, 0);
    for slice in bytes {
        let mut rest = slice.bytes();
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(rest.len().min(block - filled));
            sum = crc32c::crc32c_append(sum, piece);
            filled += piece.len();
            rest = behind;
            if filled == block {
                sums.push(sum);
                (sum, filled) = (0, 0);
            }
        }
    }
    assert_eq!(filled, 0, "what is written is whole blocks");
    sums
}

/// A stream of slices that is cut anew.
struct Bytes {
    slices: std::vec::IntoIter<Slice>,
    rest: Option<Slice>,
}

impl Bytes {
    /// The next `count` bytes.
    fn take(&mut self, count: usize) -> Vec<Slice> {
        let mut taken = Vec::new();
        let mut left = count;
        while left > 0 {
            let slice = self.rest.take().or_else(|| self.slices.next());
            let slice = slice.expect("there are as many bytes as blocks were taken for them");
            if slice.len() > left {
                self.rest = Some(slice.cut(left, slice.len()));
                taken.push(slice.cut(0, left));
                left = 0;
            } else {
                left -= slice.len();
                taken.push(slice);
            }
        }
        taken
    }
}

const BLOCK: u32 = limits::BLOCK_SIZE;
