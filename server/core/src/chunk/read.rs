//! Reading a chunk: which blocks of the volume, and what the reply is made of.
//!
//! 1. A byte leaves only after the checksum of its whole block was right.
//! 2. Nothing is copied: the reply is cuts of the regions that were read, and one shared slice of zeros.

use sealfs_proto::{Ino, limits};
use sealfs_transport::{Region, Slice};

use super::blocks::Pin;
use super::map::{Chunk, Key};

/// A piece of the volume to be read into a region of `len` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeRead {
    /// Byte in the volume.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

/// A block whose bytes are not what was written. EIO to the caller, and the text to the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "inode {ino} chunk {index} block {block}: checksum {found:08x} instead of {expected:08x} at byte {offset} of the \
     volume; the device or the volume file is damaged there, restore this file"
)]
pub struct BadBlock {
    /// Whose.
    pub ino: Ino,
    /// Which chunk.
    pub index: u64,
    /// Which block of the chunk.
    pub block: u16,
    /// Byte in the volume.
    pub offset: u64,
    /// CRC32C of the bytes that were read.
    pub found: u32,
    /// CRC32C of the bytes that were written.
    pub expected: u32,
}

/// A planned read. While it lives, its blocks are not reused.
#[derive(Debug)]
#[must_use]
pub struct ReadPlan {
    old: Old,
    segments: Vec<Segment>,
    len: u32,
    zeros: Slice,
    _pin: Pin,
}

/// A part of the reply.
#[derive(Debug)]
enum Segment {
    /// The bytes `from..to` of a region.
    Data { region: usize, from: u32, to: u32 },
    /// A hole of so many bytes.
    Zeros(u32),
}

impl ReadPlan {
    pub(super) fn new(
        key: Key,
        chunk: Option<&Chunk>,
        offset: u32,
        len: u32,
        zeros: Slice,
        pin: Pin,
    ) -> Self {
        let mut plan = Self { old: Old::new(key), segments: Vec::new(), len: 0, zeros, _pin: pin };
        let Some(chunk) = chunk else { return plan };
        let end = offset.saturating_add(len).min(chunk.len);
        let mut at = offset;
        for (extent, sums) in chunk.pieces() {
            let from = at.max(u32::from(extent.start) * limits::BLOCK_SIZE);
            let to = end.min(extent.end() * limits::BLOCK_SIZE);
            if !extent.written || from >= to {
                continue;
            }
            if from > at {
                plan.segments.push(Segment::Zeros(from - at));
            }
            let first = from / limits::BLOCK_SIZE - u32::from(extent.start);
            let last = to.div_ceil(limits::BLOCK_SIZE) - u32::from(extent.start);
            let block = extent.start + first as u16;
            let sums = &sums[first as usize..last as usize];
            let (region, skipped) = plan.old.push(block, extent.place + u64::from(first), sums);
            let skipped = skipped + from % limits::BLOCK_SIZE;
            plan.segments.push(Segment::Data { region, from: skipped, to: skipped + to - from });
            at = to;
        }
        plan.len = at - offset;
        plan
    }

    /// What to read, in the order in which [`ReadPlan::finish`] takes the regions.
    #[must_use]
    pub fn reads(&self) -> &[VolumeRead] {
        &self.old.reads
    }

    /// Bytes that the reply will have; what was asked for beyond them is zeros.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there is nothing but zeros.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Verifies every block and gives the reply's bytes: cuts of the regions, and shared zeros for holes. Copies nothing.
    pub fn finish(self, regions: Vec<Region>) -> Result<Vec<Slice>, BadBlock> {
        let regions = self.old.verify(regions)?;
        let mut reply = Vec::with_capacity(self.segments.len());
        for segment in &self.segments {
            match *segment {
                Segment::Data { region, from, to } => {
                    reply.push(regions[region].cut(from as usize, to as usize));
                }
                Segment::Zeros(count) => push_zeros(&mut reply, &self.zeros, count),
            }
        }
        Ok(reply)
    }
}

/// Blocks to be read, and the checksums that they must have.
#[derive(Debug)]
pub(super) struct Old {
    key: Key,
    pub(super) reads: Vec<VolumeRead>,
    /// Block of the chunk and checksum, of each block in the order of the reads.
    blocks: Vec<(u16, u32)>,
}

impl Old {
    pub(super) fn new(key: Key) -> Self {
        Self { key, reads: Vec::new(), blocks: Vec::new() }
    }

    /// Adds neighbouring blocks of the chunk, the first of which is `block`, from `place` of the volume on. Gives the region
    /// that they will be in, and where in it. Neighbours in the volume are one read.
    pub(super) fn push(&mut self, block: u16, place: u64, sums: &[u32]) -> (usize, u32) {
        let offset = place * u64::from(limits::BLOCK_SIZE);
        let len = sums.len() as u32 * limits::BLOCK_SIZE;
        match self.reads.last_mut() {
            Some(last) if last.offset + u64::from(last.len) == offset => last.len += len,
            _ => self.reads.push(VolumeRead { offset, len }),
        }
        self.blocks.extend((block..).zip(sums.iter().copied()));
        let region = self.reads.len() - 1;
        (region, self.reads[region].len - len)
    }

    /// Adds one block as a read of its own; gives its region.
    pub(super) fn push_alone(&mut self, block: u16, place: u64, sum: u32) -> usize {
        let offset = place * u64::from(limits::BLOCK_SIZE);
        self.reads.push(VolumeRead { offset, len: limits::BLOCK_SIZE });
        self.blocks.push((block, sum));
        self.reads.len() - 1
    }

    /// The regions, frozen, if all their blocks have the right bytes. Panics if they are not those of the reads.
    pub(super) fn verify(&self, regions: Vec<Region>) -> Result<Vec<Slice>, BadBlock> {
        assert_eq!(regions.len(), self.reads.len(), "one region for each read");
        let mut blocks = self.blocks.iter();
        for (read, region) in self.reads.iter().zip(&regions) {
            let bytes = &region.bytes()[..read.len as usize];
            let offsets = (read.offset..).step_by(limits::BLOCK_SIZE as usize);
            let pieces = bytes.chunks_exact(limits::BLOCK_SIZE as usize);
            for ((offset, bytes), &(block, expected)) in offsets.zip(pieces).zip(&mut blocks) {
                let found = crc32c::crc32c(bytes);
                if found != expected {
                    let (ino, index) = self.key;
                    return Err(BadBlock { ino, index, block, offset, found, expected });
                }
            }
        }
        Ok(regions.into_iter().map(Region::freeze).collect())
    }
}

/// Adds `count` bytes of zeros to `out`, as often the shared slice as it takes.
pub(super) fn push_zeros(out: &mut Vec<Slice>, zeros: &Slice, count: u32) {
    let mut left = count as usize;
    while left > 0 {
        let piece = left.min(zeros.len());
        out.push(zeros.cut(0, piece));
        left -= piece;
    }
}
