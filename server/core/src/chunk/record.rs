//! The record of a change of one chunk, and its bytes.
//!
//! ```text
//! logical: ino u64 | index u64 | version u64 | len u32
//!          | changes: count u64, each (start u16, count u16, state u32: 0 hole, 1 unwritten, 2 written)
//!          | sums: count u64, each u32, one per block that is written, in the order of the changes
//! local:   runs: count u64, each (start u64, count u32), together as many blocks as are unwritten or written
//!
//! a shard's chunks in its snapshot: of each, ascending by (ino, index), the record that makes the whole chunk
//!          logical_len u32 | logical | local_len u32 | local
//! ```
//!
//! The logical part is what a replica needs; the local part says where this node put it, and never leaves the node.
//!
//! 1. Changes are ascending, disjoint, not empty and within the largest chunk; sums and runs fit them exactly. Only
//!    [`ChunkRecord::decode`] makes records of foreign bytes, and it checks this: applying is total.

use sealfs_proto::{Corrupt, Ino, decode, encode, limits};
use wincode::{SchemaRead, SchemaWrite};

/// Neighbouring blocks of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, SchemaRead, SchemaWrite)]
pub struct Run {
    /// The first block.
    pub start: u64,
    /// How many.
    pub count: u32,
}

impl Run {
    /// The block behind the last one.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.start.saturating_add(self.count as u64)
    }
}

/// What a block of a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum BlockState {
    /// It has no space and reads as zeros.
    Hole,
    /// It has space and reads as zeros.
    Unwritten,
    /// It has data and a checksum.
    Written,
}

/// What a range of a chunk becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Change {
    /// The first block of the chunk.
    pub start: u16,
    /// How many.
    pub count: u16,
    /// What they become.
    pub state: BlockState,
}

/// A change of one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkRecord {
    logical: Logical,
    runs: Vec<Run>,
}

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
struct Logical {
    ino: Ino,
    index: u64,
    version: u64,
    len: u32,
    changes: Vec<Change>,
    sums: Vec<u32>,
}

impl ChunkRecord {
    pub(super) fn new(
        (ino, index): (Ino, u64),
        version: u64,
        len: u32,
        changes: Vec<Change>,
        sums: Vec<u32>,
        runs: Vec<Run>,
    ) -> Self {
        let record = Self { logical: Logical { ino, index, version, len, changes, sums }, runs };
        debug_assert_eq!(record.check(), Ok(()), "our own records are well formed");
        record
    }

    /// Whose chunk.
    #[must_use]
    pub fn ino(&self) -> Ino {
        self.logical.ino
    }

    /// Which chunk.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.logical.index
    }

    /// Grows with every change of the chunk, as long as it exists.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.logical.version
    }

    /// The end of the last byte written in the chunk, after this change.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.logical.len
    }

    /// Whether no byte of the chunk is written after this change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What becomes of which blocks.
    #[must_use]
    pub fn changes(&self) -> &[Change] {
        &self.logical.changes
    }

    /// CRC32C of each written block.
    #[must_use]
    pub fn sums(&self) -> &[u32] {
        &self.logical.sums
    }

    /// Where the blocks that have space lie in the volume.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The part that a replica needs.
    #[must_use]
    pub fn logical(&self) -> Vec<u8> {
        encode(&self.logical)
    }

    /// The part that is this node's own.
    #[must_use]
    pub fn local(&self) -> Vec<u8> {
        encode(&self.runs)
    }

    /// The record in these bytes.
    pub fn decode(logical: &[u8], local: &[u8]) -> Result<Self, Corrupt> {
        let record = Self { logical: decode(LOGICAL, logical)?, runs: decode(LOCAL, local)? };
        record.check()?;
        Ok(record)
    }

    fn check(&self) -> Result<(), Corrupt> {
        let Logical { len, changes, sums, .. } = &self.logical;
        let corrupt = |cause: String| Err(Corrupt::new(LOGICAL, cause));
        if *len > limits::CHUNK_SIZE_MAX {
            return corrupt(format!("{len} bytes of data, more than any chunk"));
        }
        let (mut at, mut written, mut placed) = (0_u32, 0_usize, 0_u64);
        for Change { start, count, state } in changes {
            let (start, count) = (u32::from(*start), u32::from(*count));
            if count == 0 || start < at || start + count > BLOCKS_MAX {
                return corrupt(format!("change of {count} blocks at {start} behind {at}"));
            }
            at = start + count;
            written += if *state == BlockState::Written { count as usize } else { 0 };
            placed += if *state == BlockState::Hole { 0 } else { u64::from(count) };
        }
        if sums.len() != written {
            return corrupt(format!("{} checksums of {written} written blocks", sums.len()));
        }
        let given: u64 = self.runs.iter().map(|run| u64::from(run.count)).sum();
        let odd = |run: &Run| run.count == 0 || run.start > VOLUME_BLOCKS_MAX;
        if given != placed || self.runs.iter().any(odd) {
            let cause = format!("{given} blocks of the volume for {placed} of the chunk");
            return Err(Corrupt::new(LOCAL, cause));
        }
        Ok(())
    }
}

/// Blocks of the largest chunk.
pub(super) const BLOCKS_MAX: u32 = limits::CHUNK_SIZE_MAX / limits::BLOCK_SIZE;

/// The last byte of a volume is one that the kernel can name.
const VOLUME_BLOCKS_MAX: u64 = limits::FILE_SIZE_MAX / limits::BLOCK_SIZE as u64;

const LOGICAL: &str = "chunk record";
const LOCAL: &str = "chunk record's places";

#[cfg(test)]
mod tests {
    use super::*;

    fn change(start: u16, count: u16, state: BlockState) -> Change {
        Change { start, count, state }
    }

    fn sample() -> ChunkRecord {
        let changes = vec![
            change(0, 1, BlockState::Written),
            change(1, 2, BlockState::Hole),
            change(3, 2, BlockState::Unwritten),
        ];
        let runs = vec![Run { start: 7, count: 2 }, Run { start: 70, count: 1 }];
        ChunkRecord::new((Ino(5), 6), 9, 4_000, changes, vec![0xabcd], runs)
    }

    #[test]
    fn a_record_survives_its_bytes() {
        let record = sample();
        assert_eq!(ChunkRecord::decode(&record.logical(), &record.local()), Ok(record));
    }

    #[test]
    fn golden_bytes() {
        let (logical, local) = (sample().logical(), sample().local());
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let golden = "0500000000000000060000000000000009000000000000 00a00f0000 0300000000000000\
             0000 0100 02000000 0100 0200 00000000 0300 0200 01000000 0100000000000000 cdab0000";
        assert_eq!(hex(&logical), golden.replace(' ', ""));
        let golden = "0200000000000000 0700000000000000 02000000 4600000000000000 01000000";
        assert_eq!(hex(&local), golden.replace(' ', ""));
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let broken: [fn(&mut ChunkRecord); 8] = [
            |record| record.logical.sums.push(1),
            |record| record.runs.truncate(1),
            |record| record.runs[0].count = 0,
            |record| record.runs[0].start = u64::MAX,
            |record| record.logical.changes[1].start = 0,
            |record| record.logical.changes[2].count = 0,
            |record| record.logical.changes[1].start = 255,
            |record| record.logical.len = u32::MAX,
        ];
        for damage in broken {
            let mut record = sample();
            damage(&mut record);
            assert!(ChunkRecord::decode(&record.logical(), &record.local()).is_err());
        }
    }
}
