//! The journal's bytes.
//!
//! ```text
//! segment:  header (64 bytes), entries one behind the other, zeros up to the preallocated length
//!
//! segment header                                  entry header (40 bytes), then logical, then local bytes
//!  0  magic "SEALjrnl"                             0  length u32: header and both bodies
//!  8  format u32 (1)                               4  crc u32: CRC32C of everything else of the entry
//! 12  compatible features u32                      8  previous u32: crc of the entry before, 0 for the very first
//! 16  incompatible features u32                   12  shard u16
//! 20  node u16   22  core u16                     14  kind u8
//! 24  cluster [16]                                15  version u8 of the kind
//! 40  first u64: position of the first entry      16  position u64
//! 48  reserved [12] (0)                           24  number u64: the shard's own
//! 60  crc u32: CRC32C of these 60 bytes           32  logical_len u32   36  reserved u32 (0)
//! ```
//! All little-endian. A *position* counts the bytes of all entries since the journal began, headers of segments not
//! counted: an entry at position p of length n is followed by one at p + n, in the same segment or as the first of the
//! next. An entry never spans segments.
//!
//! 1. An entry is whole or it is not there: its checksum covers its header and both bodies.
//! 2. Entries are chained: a stale one that happens to lie behind a fresh one does not continue it.
//! 3. The first bytes that are no entry end the journal. Zeros: a clean end. Else, if no valid entry lies behind: a torn
//!    one, to be cut. Else damage.

use sealfs_proto::{ClusterId, NodeId, ShardId};

/// Bytes of a segment's header.
pub const SEGMENT_HEADER_LEN: usize = 64;
/// Bytes of an entry's header.
pub const ENTRY_HEADER_LEN: usize = 40;

/// Whose journal a segment belongs to, and where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// The core, from 0.
    pub core: u16,
    /// Position of the first entry.
    pub first: u64,
}

/// What is wrong with a segment. The caller adds the file's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// Not a segment, or its header is damaged.
    #[error("not a journal segment: {0}")]
    NotASegment(String),
    /// Written by a newer version.
    #[error(
        "format {format}, incompatible features {features:#x}; this version knows format 1 and no features"
    )]
    Unknown {
        /// Its format.
        format: u32,
        /// Its incompatible features.
        features: u32,
    },
}

impl SegmentHeader {
    /// The bytes that begin the segment.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; SEGMENT_HEADER_LEN] {
        unimplemented!()
    }

    /// Reads the header of a segment (its first [`SEGMENT_HEADER_LEN`] bytes; more may follow).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SegmentError> {
        let _ = bytes;
        unimplemented!()
    }
}

/// An entry as it lies in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Where it begins.
    pub position: u64,
    /// Whose state it changes.
    pub shard: ShardId,
    /// The shard's own number of it, from 1 without gaps.
    pub number: u64,
    /// What the logical bytes are; the writer's choice.
    pub kind: u8,
    /// Version of that kind.
    pub version: u8,
    /// What every replica of the shard would need.
    pub logical: &'a [u8],
    /// What concerns this node's disk only.
    pub local: &'a [u8],
}

/// The place behind the last entry: where the next one goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// Its position.
    pub position: u64,
    /// The last entry's checksum.
    pub chain: u32,
}

/// Encodes entries into the batch of this turn.
#[derive(Debug)]
pub struct Writer {
    tail: Tail,
    batch: Vec<u8>,
}

impl Writer {
    /// Goes on behind `tail`; a new journal has the default one.
    #[must_use]
    pub const fn new(tail: Tail) -> Self {
        Self { tail, batch: Vec::new() }
    }

    /// Appends an entry to the batch; gives its position. `entry.position` is not looked at.
    pub fn append(&mut self, entry: &Entry<'_>) -> u64 {
        let _ = entry;
        unimplemented!()
    }

    /// Where the next entry goes.
    #[must_use]
    pub const fn tail(&self) -> Tail {
        self.tail
    }

    /// The entries since the last call, to be written together; empty if there are none.
    pub fn take_batch(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.batch)
    }
}

/// The position of the first entry of a batch: `first` of the header of a segment that begins with it. `None` if the
/// bytes are no batch.
#[must_use]
pub fn position_of(batch: &[u8]) -> Option<u64> {
    let _ = batch;
    unimplemented!()
}

/// How a segment's entries end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With the segment or with zeros.
    Clean,
    /// With an entry that was not written completely; zero the segment from this byte on.
    Torn {
        /// Offset in the segment.
        offset: u64,
    },
    /// With bytes that are no entry although valid entries lie behind them: at `offset` in the segment, the next valid one
    /// at `next`. Only acceptable above the last sync mark after the machine has lost power (then it is cut like a torn
    /// one); else the node must not start.
    Damaged {
        /// Offset in the segment.
        offset: u64,
        /// Offset of a valid entry behind it.
        next: u64,
    },
}

/// A segment's entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan<'a> {
    /// In their order.
    pub entries: Vec<Entry<'a>>,
    /// Bytes of the segment that hold header and entries: where the next entry goes.
    pub used: u64,
    /// Behind the last entry.
    pub tail: Tail,
    /// How they end.
    pub end: End,
}

/// Reads a whole segment, header included. `behind`: the tail of the segment before, `None` for the first one kept (its
/// first entry's chain is taken as it is). A segment that does not continue `behind` has no entries and is `Damaged` or
/// `Torn` at its first.
pub fn scan<'a>(segment: &'a [u8], behind: Option<Tail>) -> Result<Scan<'a>, SegmentError> {
    let _ = (segment, behind);
    unimplemented!()
}

/// The entries of whole batches without a segment header, as a recovery hands them on after [`scan`].
pub fn entries(bytes: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    let _ = bytes;
    std::iter::from_fn(|| unimplemented!())
}
