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

use crc32c::{crc32c, crc32c_append};
use sealfs_proto::{ClusterId, NodeId, ShardId};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a segment's header.
pub const SEGMENT_HEADER_LEN: usize = 64;
/// Bytes of an entry's header.
pub const ENTRY_HEADER_LEN: usize = 40;
/// Longest entry: a record with all of an inode's extended attributes is 1/8 of it.
pub const ENTRY_LEN_MAX: usize = 4 << 20;

const MAGIC: [u8; 8] = *b"SEALjrnl";
const FORMAT: u32 = 1;
const SEGMENT_CRC_AT: usize = 60;
const ENTRY_CRC_AT: usize = 4;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSegment {
    magic: [u8; 8],
    format: U32,
    compatible: U32,
    incompatible: U32,
    node: U16,
    core: U16,
    cluster: [u8; 16],
    first: U64,
    reserved: [u8; 12],
    crc: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    length: U32,
    crc: U32,
    previous: U32,
    shard: U16,
    kind: u8,
    version: u8,
    position: U64,
    number: U64,
    logical_len: U32,
    reserved: U32,
}

const _: () = assert!(size_of::<RawSegment>() == SEGMENT_HEADER_LEN);
const _: () = assert!(size_of::<RawEntry>() == ENTRY_HEADER_LEN);
const _: () = assert!(sealfs_proto::limits::BODY_LEN_MAX as usize * 8 <= ENTRY_LEN_MAX);

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
        "format {format} with incompatible features {features:#x}; this version knows format 1 and no features: \
         start the version that wrote it, or a newer one"
    )]
    Unknown {
        /// Its format.
        format: u32,
        /// Its incompatible features.
        features: u32,
    },
    /// Does not begin where the segment before ended.
    #[error(
        "begins at position {first}, but the segment before ends at {expected}: a segment is missing"
    )]
    Gap {
        /// Where the one before ended.
        expected: u64,
        /// Where this one begins.
        first: u64,
    },
}

impl SegmentHeader {
    /// The bytes that begin the segment.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; SEGMENT_HEADER_LEN] {
        let mut bytes = RawSegment {
            magic: MAGIC,
            format: FORMAT.into(),
            compatible: 0.into(),
            incompatible: 0.into(),
            node: self.node.0.into(),
            core: self.core.into(),
            cluster: self.cluster.0,
            first: self.first.into(),
            reserved: [0; 12],
            crc: 0.into(),
        };
        bytes.crc = crc32c(&bytes.as_bytes()[..SEGMENT_CRC_AT]).into();
        let mut array = [0; SEGMENT_HEADER_LEN];
        array.copy_from_slice(bytes.as_bytes());
        array
    }

    /// Reads the header of a segment (its first [`SEGMENT_HEADER_LEN`] bytes; more may follow).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SegmentError> {
        let bad = |cause: &str| SegmentError::NotASegment(cause.to_owned());
        let (raw, _) = RawSegment::ref_from_prefix(bytes).map_err(|_| bad("too short"))?;
        if raw.magic != MAGIC {
            return Err(bad("wrong magic number"));
        }
        if raw.crc.get() != crc32c(&bytes[..SEGMENT_CRC_AT]) {
            return Err(bad("the header's checksum does not match"));
        }
        let (format, features) = (raw.format.get(), raw.incompatible.get());
        if format != FORMAT || features != 0 {
            return Err(SegmentError::Unknown { format, features });
        }
        Ok(Self {
            cluster: ClusterId(raw.cluster),
            node: NodeId(raw.node.get()),
            core: raw.core.get(),
            first: raw.first.get(),
        })
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

    /// Appends an entry to the batch; gives its position. `entry.position` is not looked at. Panics if the entry is longer
    /// than [`ENTRY_LEN_MAX`], which the limits of what goes into one exclude.
    pub fn append(&mut self, entry: &Entry<'_>) -> u64 {
        let position = self.tail.position;
        let length = ENTRY_HEADER_LEN + entry.logical.len() + entry.local.len();
        assert!(length <= ENTRY_LEN_MAX, "an entry of {length} bytes exceeds the limit");
        let header = RawEntry {
            length: (length as u32).into(),
            crc: 0.into(),
            previous: self.tail.chain.into(),
            shard: entry.shard.0.into(),
            kind: entry.kind,
            version: entry.version,
            position: position.into(),
            number: entry.number.into(),
            logical_len: (entry.logical.len() as u32).into(),
            reserved: 0.into(),
        };
        let start = self.batch.len();
        self.batch.reserve(length);
        self.batch.extend_from_slice(header.as_bytes());
        self.batch.extend_from_slice(entry.logical);
        self.batch.extend_from_slice(entry.local);
        let crc = entry_crc(&self.batch[start..]);
        let at = start + ENTRY_CRC_AT;
        self.batch[at..at + 4].copy_from_slice(&crc.to_le_bytes());
        self.tail = Tail { position: position + length as u64, chain: crc };
        position
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
    RawEntry::ref_from_prefix(batch).ok().map(|(header, _)| header.position.get())
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
    /// With bytes that do not continue the journal although valid entries lie behind them: at `offset` in the segment, the next valid one
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
/// first entry's chain is taken as it is).
pub fn scan<'a>(segment: &'a [u8], behind: Option<Tail>) -> Result<Scan<'a>, SegmentError> {
    let header = SegmentHeader::from_bytes(segment)?;
    if let Some(Tail { position: expected, .. }) =
        behind.filter(|tail| tail.position != header.first)
    {
        return Err(SegmentError::Gap { expected, first: header.first });
    }
    let mut offset = SEGMENT_HEADER_LEN;
    let mut tail = Tail { position: header.first, chain: 0 };
    let mut chain = behind.map(|tail| tail.chain);
    let mut entries = Vec::new();
    while let Some(found) = parse(&segment[offset..], tail.position, chain) {
        entries.push(found.entry);
        offset += found.length;
        tail = Tail { position: tail.position + found.length as u64, chain: found.crc };
        chain = Some(found.crc);
    }
    tail.chain = chain.unwrap_or(0);
    let end = end_of(segment, offset, header.first);
    Ok(Scan { entries, used: offset as u64, tail, end })
}

/// The entries of whole batches without a segment header, as a recovery hands them on after [`scan`]. Ends at the first
/// bytes that are no entry.
pub fn entries(bytes: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let found = parse(rest, position_of(rest)?, None)?;
        rest = &rest[found.length..];
        Some(found.entry)
    })
}

struct Found<'a> {
    entry: Entry<'a>,
    length: usize,
    crc: u32,
}

/// The entry that begins `bytes`, if it is whole and stands at `position` (behind the entry with checksum `chain`).
fn parse(bytes: &[u8], position: u64, chain: Option<u32>) -> Option<Found<'_>> {
    let (header, _) = RawEntry::ref_from_prefix(bytes).ok()?;
    let length = header.length.get() as usize;
    let logical_end = ENTRY_HEADER_LEN.checked_add(header.logical_len.get() as usize)?;
    let crc = header.crc.get();
    let fits = header.position.get() == position
        && chain.is_none_or(|chain| header.previous.get() == chain)
        && length <= ENTRY_LEN_MAX.min(bytes.len())
        && logical_end <= length
        && header.reserved.get() == 0;
    if !fits || entry_crc(&bytes[..length]) != crc {
        return None;
    }
    let entry = Entry {
        position,
        shard: ShardId(header.shard.get()),
        number: header.number.get(),
        kind: header.kind,
        version: header.version,
        logical: &bytes[ENTRY_HEADER_LEN..logical_end],
        local: &bytes[logical_end..length],
    };
    Some(Found { entry, length, crc })
}

/// What the bytes from `offset` on, which begin with no entry, say about the end. A valid entry behind them is known by
/// its position, which follows from its offset.
fn end_of(segment: &[u8], offset: usize, first: u64) -> End {
    let rest = &segment[offset..];
    if rest.iter().all(|byte| *byte == 0) {
        return End::Clean;
    }
    let position = |at: usize| first + (at - SEGMENT_HEADER_LEN) as u64;
    let valid = |at: &usize| parse(&segment[*at..], position(*at), None).is_some();
    match (offset..segment.len()).find(valid) {
        Some(next) => End::Damaged { offset: offset as u64, next: next as u64 },
        None => End::Torn { offset: offset as u64 },
    }
}

/// CRC32C of an entry without its own checksum field.
fn entry_crc(entry: &[u8]) -> u32 {
    crc32c_append(crc32c(&entry[..ENTRY_CRC_AT]), &entry[ENTRY_CRC_AT + 4..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: SegmentHeader =
        SegmentHeader { cluster: ClusterId([3; 16]), node: NodeId(2), core: 1, first: 0 };

    fn entry(number: u64) -> Entry<'static> {
        Entry {
            position: 0,
            shard: ShardId(4_095),
            number,
            kind: 1,
            version: 2,
            logical: b"logical",
            local: b"loc",
        }
    }

    const LENGTH: usize = ENTRY_HEADER_LEN + 10;

    /// A segment of three entries and 100 zeros.
    fn sample() -> Vec<u8> {
        let mut writer = Writer::new(Tail::default());
        (1..=3).for_each(|number| _ = writer.append(&entry(number)));
        let batch = writer.take_batch();
        assert_eq!(position_of(&batch), Some(0));
        [&HEADER.to_bytes()[..], &batch, &[0; 100]].concat()
    }

    #[test]
    fn entries_come_back_as_they_went() {
        let bytes = sample();
        assert_eq!(SegmentHeader::from_bytes(&bytes), Ok(HEADER));
        let scan = scan(&bytes, None).unwrap();
        assert_eq!((scan.end, scan.used), (End::Clean, 64 + 150));
        assert_eq!(scan.entries[1], Entry { position: LENGTH as u64, ..entry(2) });
        assert_eq!(entries(&bytes[64..]).collect::<Vec<_>>(), scan.entries);
    }

    #[test]
    fn a_segment_continues_the_one_before() {
        let bytes = sample();
        let tail = scan(&bytes, None).unwrap().tail;
        let mut writer = Writer::new(tail);
        writer.append(&entry(4));
        let header = SegmentHeader { first: tail.position, ..HEADER };
        let next = [&header.to_bytes()[..], &writer.take_batch()].concat();
        assert_eq!(scan(&next, Some(tail)).unwrap().entries.len(), 1);
        assert_eq!(scan(&next, Some(tail)).unwrap().tail, writer.tail());
        let other = Tail { chain: tail.chain ^ 1, ..tail };
        let foreign = scan(&next, Some(other)).unwrap();
        assert_eq!(
            (foreign.entries.len(), foreign.end),
            (0, End::Damaged { offset: 64, next: 64 })
        );
        let later = Tail { position: tail.position + 1, ..tail };
        assert!(matches!(scan(&next, Some(later)), Err(SegmentError::Gap { .. })));
    }

    #[test]
    fn a_torn_tail_is_cut_wherever_it_tears() {
        let whole = sample();
        let third = 64 + 2 * LENGTH;
        for keep in third + 1..third + LENGTH {
            let mut bytes = whole.clone();
            bytes[keep..].fill(0);
            let scan = scan(&bytes, None).unwrap();
            assert_eq!(scan.entries.len(), 2, "kept {keep}");
            assert_eq!((scan.used, scan.end), (third as u64, End::Torn { offset: third as u64 }));
            assert_eq!(super::scan(&whole[..keep], None).unwrap().entries.len(), 2);
        }
    }

    #[test]
    fn every_damaged_byte_is_noticed_with_what_lies_behind() {
        let whole = sample();
        let (second, third) = ((64 + LENGTH) as u64, (64 + 2 * LENGTH) as u64);
        for at in 64 + LENGTH..64 + 2 * LENGTH {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            let scan = scan(&bytes, None).unwrap();
            assert_eq!(scan.entries.len(), 1);
            assert_eq!(scan.end, End::Damaged { offset: second, next: third }, "byte {at}");
        }
    }

    #[test]
    fn every_damaged_byte_of_the_header_is_noticed() {
        let whole = sample();
        for at in 0..64 {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            assert!(scan(&bytes, None).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let mut bytes = HEADER.to_bytes();
        bytes[16] = 4;
        let crc = crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        let error = SegmentHeader::from_bytes(&bytes).unwrap_err();
        assert_eq!(error, SegmentError::Unknown { format: 1, features: 4 });
    }

    #[test]
    fn random_bytes_are_never_an_entry_nor_a_panic() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..200 {
            let mut bytes = HEADER.to_bytes().to_vec();
            let len = random.usize(..300);
            bytes.extend(std::iter::repeat_with(|| random.u8(..)).take(len));
            assert!(scan(&bytes, None).unwrap().entries.is_empty());
            assert_eq!(entries(&bytes[64..]).count(), 0);
        }
    }
}
