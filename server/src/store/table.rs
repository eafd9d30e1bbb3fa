//! Which extents of a device are what: the table's bytes, and the space between them.
//!
//! ```text
//! page (4 KiB)                                    entry (32 bytes)
//!  0  magic "SEALFSTB"                             0  kind u8: 0 free, 1 snapshot, 2 journal    1  reserved u8 (0)
//!  8  format u64: as in the head                   2  shard or core u16
//! 16  sequence u64                                 4  generation u32 of a journal, else 0
//! 24  page u32: its number                         8  start u64: byte of the device
//! 28  crc u32 of everything else of the page      16  space u64: bytes that are allocated
//! 32  127 entries                                 24  length u64: bytes of content
//! ```
//! All little-endian. Each page has two places, written alternately: even sequences in the first copy of the table, odd
//! ones in the second. Of two whole pages the one with the higher sequence is valid. A format writes all pages of the
//! first copy with sequence 0; a page with no whole copy is damage.
//!
//! 1. Entries do not overlap, and lie in the table's range; what no entry names is free.
//! 2. A change is one page, and one entry of it: no change needs two pages to be written.
//! 3. Space that an entry named is free only after the page without it is on the device.
//!
//! Snapshots are allocated from the front and segments from the back: segments, all of one size, leave no gaps in which
//! nothing else fits.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use sealfs_proto::{Corrupt, ShardId};

use super::JournalId;

/// What an extent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The snapshot of a shard.
    Snapshot(ShardId),
    /// A segment of a journal, or a spare: its header tells.
    Journal(JournalId),
}

/// An extent that the table names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// What it is.
    pub(super) kind: Kind,
    /// The byte of the device at which it begins.
    pub(super) start: u64,
    /// Bytes of content; its space is this, rounded up to blocks.
    pub(super) len: u64,
}

/// The table of one device, as it is in memory.
#[derive(Debug)]
pub(super) struct Table {
    format: u64,
    sequences: Vec<u64>,
    entries: Vec<Option<Entry>>,
    vacant: BTreeSet<usize>,
    snapshots: BTreeMap<ShardId, usize>,
    journals: BTreeMap<(JournalId, u64), usize>,
    free: Free,
}

/// A page that is to be written.
#[derive(Debug)]
pub(super) struct Page {
    /// Its place, in bytes from the table's beginning.
    pub(super) at: u64,
    /// Its bytes.
    pub(super) bytes: Vec<u8>,
}

/// Which end of the free space an extent comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    Front,
    Back,
}

impl Table {
    /// A table of `pages` pages without entries; `range` is what it may give away.
    pub(super) fn new(format: u64, pages: u32, range: Range<u64>) -> Self {
        let slots = pages as usize * ENTRIES;
        Self {
            format,
            sequences: vec![0; pages as usize],
            entries: vec![None; slots],
            vacant: (0..slots).collect(),
            snapshots: BTreeMap::new(),
            journals: BTreeMap::new(),
            free: Free(BTreeMap::from([(range.start, range.end - range.start)])),
        }
    }

    /// Bytes of both copies of a table of `pages` pages.
    pub(super) fn len(pages: u32) -> u64 {
        2 * u64::from(pages) * PAGE
    }

    /// The pages of a table without entries: the first copy's bytes.
    pub(super) fn blank(format: u64, pages: u32) -> Vec<u8> {
        let table = Self::new(format, pages, 0..0);
        (0..pages as usize).flat_map(|page| table.page_bytes(page)).collect()
    }

    /// Reads both copies.
    pub(super) fn read(format: u64, bytes: &[u8], range: Range<u64>) -> Result<Self, Corrupt> {
        let copy_len = bytes.len() / 2;
        let pages = copy_len / PAGE as usize;
        let mut table = Self::new(format, pages as u32, range);
        for page in 0..pages {
            let at = page * PAGE as usize;
            let copies = [at, copy_len + at].map(|at| &bytes[at..at + PAGE as usize]);
            let whole = copies.map(|copy| Some((sequence(copy, format, page)?, copy)));
            let newest = whole.into_iter().flatten().max_by_key(|(sequence, _)| *sequence);
            let (sequence, newest) = newest.ok_or_else(|| {
                Corrupt::new("device", format!("neither copy of page {page} of its table is whole"))
            })?;
            table.sequences[page] = sequence;
            for (index, bytes) in newest[HEADER..].chunks_exact(ENTRY).enumerate() {
                table.take_entry(page * ENTRIES + index, bytes)?;
            }
        }
        Ok(table)
    }

    /// The snapshot of a shard.
    pub(super) fn snapshot(&self, shard: ShardId) -> Option<Entry> {
        self.entries[*self.snapshots.get(&shard)?]
    }

    /// The extents of all journals.
    pub(super) fn journals(&self) -> impl Iterator<Item = (JournalId, Entry)> {
        let entry = |slot: &usize| self.entries[*slot];
        self.journals.iter().filter_map(move |((id, _), slot)| Some((*id, entry(slot)?)))
    }

    /// Takes space for `len` bytes out of what is free; nothing names it yet. `None`: there is none in one piece.
    pub(super) fn allocate(&mut self, len: u64, end: End) -> Option<u64> {
        self.free.take(space(len), end)
    }

    /// Gives back what [`Table::allocate`] gave, or what an entry named that is no longer on the device.
    pub(super) fn release(&mut self, start: u64, len: u64) {
        self.free.give(start, space(len));
    }

    /// Free bytes in the largest piece.
    pub(super) fn largest_free(&self) -> u64 {
        self.free.0.values().copied().max().unwrap_or(0)
    }

    /// Names an extent: a snapshot in place of the one before, which comes with the page; a further extent of a journal.
    /// `None`: no entry is left.
    pub(super) fn insert(&mut self, entry: Entry) -> Option<(Page, Option<Entry>)> {
        let present = match entry.kind {
            Kind::Snapshot(shard) => self.snapshots.get(&shard).copied(),
            Kind::Journal(_) => None,
        };
        let slot = present.or_else(|| self.vacant.first().copied())?;
        let before = self.set(slot, Some(entry));
        Some((self.next_page(slot), before))
    }

    /// Forgets a shard's snapshot; `None`: there is none.
    pub(super) fn remove_snapshot(&mut self, shard: ShardId) -> Option<(Page, Entry)> {
        let slot = *self.snapshots.get(&shard)?;
        let before = self.set(slot, None)?;
        Some((self.next_page(slot), before))
    }

    /// Forgets the extent of a journal that begins at `start`; `None`: there is none.
    pub(super) fn remove_segment(
        &mut self,
        journal: JournalId,
        start: u64,
    ) -> Option<(Page, Entry)> {
        let slot = *self.journals.get(&(journal, start))?;
        let before = self.set(slot, None)?;
        Some((self.next_page(slot), before))
    }

    fn set(&mut self, slot: usize, entry: Option<Entry>) -> Option<Entry> {
        let before = std::mem::replace(&mut self.entries[slot], entry);
        match before {
            Some(Entry { kind: Kind::Snapshot(shard), .. }) => drop(self.snapshots.remove(&shard)),
            Some(Entry { kind: Kind::Journal(id), start, .. }) => {
                self.journals.remove(&(id, start));
            }
            None => drop(self.vacant.remove(&slot)),
        }
        match entry {
            Some(Entry { kind: Kind::Snapshot(shard), .. }) => {
                self.snapshots.insert(shard, slot);
            }
            Some(Entry { kind: Kind::Journal(id), start, .. }) => {
                self.journals.insert((id, start), slot);
            }
            None => drop(self.vacant.insert(slot)),
        }
        before
    }

    /// The page of `slot` under the next sequence.
    fn next_page(&mut self, slot: usize) -> Page {
        let page = slot / ENTRIES;
        self.sequences[page] += 1;
        let copy = self.sequences[page] % 2 * self.sequences.len() as u64;
        Page { at: (copy + page as u64) * PAGE, bytes: self.page_bytes(page) }
    }

    fn page_bytes(&self, page: usize) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.format.to_le_bytes());
        bytes.extend(self.sequences[page].to_le_bytes());
        bytes.extend((page as u32).to_le_bytes());
        bytes.extend([0; 4]);
        for entry in &self.entries[page * ENTRIES..][..ENTRIES] {
            bytes.extend(entry.map_or([0; ENTRY], Entry::to_bytes));
        }
        let crc = crc(&bytes);
        bytes[CRC_AT..HEADER].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn take_entry(&mut self, slot: usize, bytes: &[u8]) -> Result<(), Corrupt> {
        let bad =
            |cause: &str| Corrupt::new("device", format!("entry {slot} of its table {cause}"));
        if bytes[0] == FREE {
            return Ok(());
        }
        let entry = Entry::from_bytes(bytes).ok_or_else(|| bad("is of an unknown kind"))?;
        let again = match entry.kind {
            Kind::Snapshot(shard) => self.snapshots.contains_key(&shard),
            Kind::Journal(_) => false,
        };
        if again {
            return Err(bad("names a snapshot that another one names, too"));
        }
        if !self.free.take_at(entry.start, space(entry.len)) {
            return Err(bad("names space that is not there or another's"));
        }
        self.set(slot, Some(entry));
        Ok(())
    }
}

impl Entry {
    fn to_bytes(self) -> [u8; ENTRY] {
        let (kind, number, generation) = match self.kind {
            Kind::Snapshot(shard) => (SNAPSHOT, shard.0, 0),
            Kind::Journal(id) => (JOURNAL, id.core, id.generation),
        };
        let mut bytes = [0; ENTRY];
        bytes[0] = kind;
        bytes[2..4].copy_from_slice(&number.to_le_bytes());
        bytes[4..8].copy_from_slice(&generation.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.start.to_le_bytes());
        bytes[16..24].copy_from_slice(&space(self.len).to_le_bytes());
        bytes[24..].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let number = u16::from_le_bytes(bytes[2..4].try_into().ok()?);
        let generation = u32::from_le_bytes(bytes[4..8].try_into().ok()?);
        let word = |at: usize| Some(u64::from_le_bytes(bytes[at..at + 8].try_into().ok()?));
        let kind = match bytes[0] {
            SNAPSHOT => Kind::Snapshot(ShardId(number)),
            JOURNAL => Kind::Journal(JournalId { generation, core: number }),
            _ => return None,
        };
        let entry = Self { kind, start: word(8)?, len: word(24)? };
        (entry.len <= word(16)? && word(16)? == space(entry.len)).then_some(entry)
    }
}

/// The sequence of a page, if it is whole and number `page` of this format's table.
fn sequence(bytes: &[u8], format: u64, page: usize) -> Option<u64> {
    let stored = u32::from_le_bytes(bytes[CRC_AT..HEADER].try_into().ok()?);
    let whole = bytes[..8] == *MAGIC
        && bytes[8..16] == format.to_le_bytes()
        && bytes[24..CRC_AT] == (page as u32).to_le_bytes()
        && stored == crc(bytes);
    whole.then(|| u64::from_le_bytes(bytes[16..24].try_into().expect("it takes eight bytes")))
}

fn crc(page: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&page[..CRC_AT]), &page[HEADER..])
}

/// What `len` bytes take; a damaged number takes what is nowhere free.
fn space(len: u64) -> u64 {
    len.max(1).checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX)
}

/// What is free: start and length of each piece, none of which touches the next.
#[derive(Debug)]
struct Free(BTreeMap<u64, u64>);

impl Free {
    fn take(&mut self, len: u64, end: End) -> Option<u64> {
        let fits = |(_, free): &(&u64, &u64)| **free >= len;
        let (&start, &free) = match end {
            End::Front => self.0.iter().find(fits)?,
            End::Back => self.0.iter().rev().find(fits)?,
        };
        let at = match end {
            End::Front => start,
            End::Back => start + free - len,
        };
        self.take_at(at, len).then_some(at)
    }

    /// Takes exactly this, if it is free.
    fn take_at(&mut self, at: u64, len: u64) -> bool {
        let Some((&start, &free)) = self.0.range(..=at).next_back() else { return false };
        let Some(end) = at.checked_add(len).filter(|end| *end <= start + free) else {
            return false;
        };
        self.0.remove(&start);
        if start < at {
            self.0.insert(start, at - start);
        }
        if end < start + free {
            self.0.insert(end, start + free - end);
        }
        true
    }

    fn give(&mut self, mut at: u64, mut len: u64) {
        if let Some((&start, &free)) = self.0.range(..at).next_back()
            && start + free == at
        {
            self.0.remove(&start);
            (at, len) = (start, free + len);
        }
        if let Some(behind) = self.0.remove(&(at + len)) {
            len += behind;
        }
        self.0.insert(at, len);
    }
}

const MAGIC: &[u8; 8] = b"SEALFSTB";
const PAGE: u64 = 4_096;
const HEADER: usize = 32;
const CRC_AT: usize = 28;
const ENTRY: usize = 32;
const ENTRIES: usize = (PAGE as usize - HEADER) / ENTRY;
const FREE: u8 = 0;
const SNAPSHOT: u8 = 1;
const JOURNAL: u8 = 2;
/// Extents begin at multiples of this, and take multiples of it.
const BLOCK: u64 = 4_096;

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: Range<u64> = 8_192..110_592;

    fn snapshot(shard: u16, start: u64, len: u64) -> Entry {
        Entry { kind: Kind::Snapshot(ShardId(shard)), start, len }
    }

    fn journal(core: u16, start: u64) -> Entry {
        Entry { kind: Kind::Journal(JournalId { generation: 3, core }), start, len: 8_192 }
    }

    fn write(bytes: &mut [u8], page: &Page) {
        bytes[page.at as usize..][..page.bytes.len()].copy_from_slice(&page.bytes);
    }

    fn blank(pages: u32) -> Vec<u8> {
        let mut bytes = Table::blank(7, pages);
        bytes.resize(Table::len(pages) as usize, 0xee);
        bytes
    }

    #[test]
    fn space_is_taken_from_both_ends_and_pieces_grow_together_again() {
        let mut free = Free(BTreeMap::from([(0, 10)]));
        assert_eq!(free.take(3, End::Front), Some(0));
        assert_eq!(free.take(3, End::Back), Some(7));
        assert_eq!(free.take(5, End::Front), None);
        assert_eq!(free.take(4, End::Back), Some(3));
        free.give(0, 3);
        free.give(7, 3);
        assert_eq!(free.take(3, End::Back), Some(7));
        free.give(7, 3);
        free.give(3, 4);
        assert_eq!(free.0, BTreeMap::from([(0, 10)]));
        assert!(!free.take_at(5, 6) && !free.take_at(u64::MAX, 2) && free.take_at(5, 5));
        assert!(!free.take_at(5, 1));
    }

    #[test]
    fn golden_bytes_of_a_page() {
        let mut table = Table::new(7, 2, RANGE);
        table.insert(snapshot(0x102, 8_192, 5_000)).unwrap();
        let (page, _) = table.insert(journal(4, 16_384)).unwrap();
        let hex: String = page.bytes[..96].iter().map(|byte| format!("{byte:02x}")).collect();
        let golden = [
            "5345414c465354420700000000000000020000000000000000000000abd196cf",
            "0100020100000000002000000000000000200000000000008813000000000000",
            "0200040003000000004000000000000000200000000000000020000000000000",
        ];
        assert_eq!(hex, golden.concat());
        assert_eq!((page.at, page.bytes.len()), (0, 4_096));
        assert!(page.bytes[96..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_was_written_is_read_and_the_copies_take_turns() {
        let mut bytes = blank(1);
        let mut table = Table::read(7, &bytes, RANGE).unwrap();
        let at = table.allocate(5_000, End::Front).unwrap();
        let (page, before) = table.insert(snapshot(1, at, 5_000)).unwrap();
        assert_eq!((page.at, before, at), (4_096, None, RANGE.start));
        write(&mut bytes, &page);
        let back = table.allocate(8_192, End::Back).unwrap();
        let (page, _) = table.insert(journal(0, back)).unwrap();
        assert_eq!((page.at, back), (0, RANGE.end - 8_192));
        write(&mut bytes, &page);
        let mut again = Table::read(7, &bytes, RANGE).unwrap();
        assert_eq!(again.snapshot(ShardId(1)), Some(snapshot(1, at, 5_000)));
        assert_eq!(
            again.journals().map(|(_, entry)| entry).collect::<Vec<_>>(),
            [journal(0, back)]
        );
        assert_eq!(again.free.0, table.free.0);
        let new = again.allocate(1, End::Front).unwrap();
        assert_eq!(new, at + 8_192);
        let (_, before) = again.insert(snapshot(1, new, 1)).unwrap();
        assert_eq!(before, Some(snapshot(1, at, 5_000)));
        let journal = JournalId { generation: 3, core: 0 };
        assert!(again.remove_segment(journal, back).is_some());
        assert!(again.remove_segment(journal, back).is_none());
        assert!(again.remove_snapshot(ShardId(1)).is_some());
        assert!(again.remove_snapshot(ShardId(1)).is_none());
    }

    #[test]
    fn a_torn_page_leaves_the_one_before_and_two_torn_ones_are_damage() {
        let mut bytes = blank(1);
        let mut table = Table::read(7, &bytes, RANGE).unwrap();
        let (page, _) = table.insert(snapshot(1, RANGE.start, 1)).unwrap();
        write(&mut bytes, &page);
        bytes[page.at as usize + 2_000] ^= 1;
        assert_eq!(Table::read(7, &bytes, RANGE).unwrap().snapshot(ShardId(1)), None);
        bytes[2_000] ^= 1;
        let error = Table::read(7, &bytes, RANGE).unwrap_err().to_string();
        assert!(error.contains("neither copy of page 0"), "{error}");
    }

    #[test]
    fn pages_of_another_format_or_place_do_not_count() {
        let bytes = blank(2);
        assert!(Table::read(8, &bytes, RANGE).is_err());
        let mut swapped = bytes.clone();
        swapped[..4_096].copy_from_slice(&bytes[4_096..8_192]);
        assert!(Table::read(7, &swapped, RANGE).is_err());
    }

    #[test]
    fn entries_that_cannot_be_are_damage() {
        let cases = [
            (snapshot(1, RANGE.end, 1), "not there"),
            (snapshot(1, RANGE.start, u64::MAX), "not there"),
            (snapshot(2, RANGE.start + 4_096, 1), "another's"),
            (snapshot(9, RANGE.start, 1), "another one names"),
        ];
        for (entry, part) in cases {
            let mut bytes = blank(1);
            let mut table = Table::read(7, &bytes, RANGE).unwrap();
            table.insert(snapshot(9, RANGE.start + 4_096, 1)).unwrap();
            // Past what the table itself would allow.
            table.entries[50] = Some(entry);
            write(&mut bytes, &table.next_page(0));
            let error = Table::read(7, &bytes, RANGE).unwrap_err().to_string();
            assert!(error.contains(part), "{entry:?}: {error}");
        }
    }

    #[test]
    fn damage_under_a_right_checksum_is_a_table_without_overlaps_or_an_error() {
        let mut bytes = blank(1);
        let mut table = Table::read(7, &bytes, RANGE).unwrap();
        for entry in [snapshot(9, RANGE.start, 5_000), journal(0, RANGE.end - 8_192)] {
            assert!(table.free.take_at(entry.start, space(entry.len)));
            write(&mut bytes, &table.insert(entry).unwrap().0);
        }
        let page = table.next_page(0);
        for at in HEADER..HEADER + 3 * ENTRY {
            for value in [0, 1, 2, 0x10, 0x7f, 0x80, 0xff] {
                let (mut bytes, mut page) = (bytes.clone(), page.bytes.clone());
                page[at] = value;
                let crc = crc(&page).to_le_bytes();
                page[CRC_AT..HEADER].copy_from_slice(&crc);
                bytes[..PAGE as usize].copy_from_slice(&page);
                bytes[PAGE as usize..].fill(0);
                let Ok(table) = Table::read(7, &bytes, RANGE) else { continue };
                let named = table.entries.iter().flatten().map(|entry| space(entry.len));
                let free = table.free.0.values();
                assert_eq!(named.chain(free.copied()).sum::<u64>(), RANGE.end - RANGE.start);
            }
        }
    }

    #[test]
    fn a_full_table_takes_nothing_more() {
        let mut table = Table::new(7, 1, RANGE);
        for shard in 0..ENTRIES as u16 {
            assert!(table.insert(snapshot(shard, RANGE.start, 1)).is_some());
        }
        assert!(table.insert(snapshot(1_000, RANGE.start, 1)).is_none());
        assert!(table.insert(snapshot(5, RANGE.start, 1)).is_some(), "replacing needs no entry");
    }
}
