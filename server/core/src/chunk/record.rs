//! The record of a change of one chunk, and its bytes.
//!
//! ```text
//! logical: ino u64 | index u64 | version u64 | len u32
//!          | changes: count u64, each (start u16, count u16, state u32: 0 hole, 1 unwritten, 2 written)
//!          | sums: count u64, each u32, one per block that is written, in the order of the changes
//! local:   runs: count u64, each (start u64, count u32), together as many blocks as are unwritten or written
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
        if given != placed || self.runs.iter().any(|run| run.count == 0) {
            let cause = format!("{given} blocks of the volume for {placed} of the chunk");
            return Err(Corrupt::new(LOCAL, cause));
        }
        Ok(())
    }
}

/// Blocks of the largest chunk.
pub(super) const BLOCKS_MAX: u32 = limits::CHUNK_SIZE_MAX / limits::BLOCK_SIZE;

const LOGICAL: &str = "chunk record";
const LOCAL: &str = "chunk record's places";
