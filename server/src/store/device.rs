//! A store that is a block device: a disk, a partition, or anything else that the kernel shows as one.
//!
//! ```text
//! 0        first slot of the head     `head`: geometry and superblock, written alternately
//! 1 MiB    second slot
//! 2 MiB    table, both copies         `table`: which extents are what
//! ...      extents                    snapshots from the front, segments of journals from the back
//! ...      volume                     a whole number of MiB from the beginning
//! ```
//! The volume begins where 1/32 of the device ends (more on small ones), fixed at format, so that it is one range.
//!
//! | first slot | second slot | |
//! |---|---|---|
//! | valid | any | opened; the slot with the higher sequence counts |
//! | zeros | valid, the first superblock | opened |
//! | torn, nobody else's signature in it | valid | opened |
//! | anything else | valid | refused: someone has written over it |
//! | zeros | not valid | empty; a format was interrupted at most |
//! | another release's | any | refused, naming both versions; likewise if it is the second one |
//! | anything else | not valid | refused, naming what was found |
//!
//! 1. A slot or page is never written before what it names is on the device, and never while the one before it is not.
//! 2. The first superblock goes to the second slot: until a format has ended the first MiB is zeros. The first slot gets
//!    its magic, in one sector, before its first head.
//! 3. Space is given away again only after the page that no longer names it is on the device.
//!
//! A spare becomes a segment by its header alone, so that a core's thread never waits for the table. An extent of a journal
//! whose first block is zeros is a spare, and one without a whole header was damaged by a loss of power: it is listed
//! last, at a position that no journal reaches.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sealfs_meta::journal::SegmentHeader;
use sealfs_proto::ShardId;

use super::claim::{claim, identity};
use super::head::{Geometry, Head, Slot};
use super::medium::Medium;
use super::table::{End, Entry, Kind, Page, Table};
use super::{Blank, Extent, FileError, JournalId, Place, Store, Volume, ZEROS, foreign};
use crate::StartError;
use crate::datadir::random_number;

/// An open device; no other process uses it while this value lives.
#[derive(Debug)]
pub(super) struct Device {
    name: String,
    anew: String,
    medium: Medium,
    len: u64,
    identity: u64,
    /// What it holds; `None`: nothing that counts. Held while a slot or page is being written and synced.
    state: Mutex<Option<State>>,
}

/// What a formatted device holds.
#[derive(Debug)]
struct State {
    /// Geometry and superblock, which is still to come while the sequence is 0.
    head: Head,
    table: Table,
}

/// The superblock of the device at `path`, whoever uses it: of the two slots one is whole at any moment. `None`: there is
/// none, or somebody else has written over it. What was emptied from the front, and not to the end, still has it.
pub(super) fn superblock_on(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; 2 * Head::SLOT_LEN as usize];
    match File::open(path)?.read_exact(&mut bytes) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let (first, second) = bytes.split_at(Head::SLOT_LEN as usize);
    let head = match (Head::from_bytes(first), Head::from_bytes(second)) {
        (Slot::Valid(a), Slot::Valid(b)) if a.sequence < b.sequence => b,
        (Slot::Valid(head), _) => head,
        (Slot::Empty | Slot::Torn, Slot::Valid(head)) if foreign::known(first).is_none() => head,
        _ => return Ok(None),
    };
    Ok(Some(head.superblock))
}

impl Device {
    /// Opens a block device for ourselves.
    pub(super) fn open(path: &Path) -> Result<Self, StartError> {
        Self::on(claim(path)?, path, identity(path))
    }

    /// The device in `file`.
    pub(super) fn on(mut file: File, path: &Path, identity: u64) -> Result<Self, StartError> {
        let shown = path.display();
        let len = file.seek(SeekFrom::End(0));
        let len = len.map_err(|error| FileError::new("ask for the size of", &shown, &error))?;
        let mut device = Self {
            name: format!("device {shown}"),
            anew: format!(
                "start this node with an empty device; this one is emptied for good by `wipefs -a {shown} && dd \
                 if=/dev/zero of={shown} bs=1M count=2`"
            ),
            medium: Medium::new(file, path),
            len,
            identity,
            state: Mutex::default(),
        };
        if len < LEN_MIN {
            return Err(device.too_small(LEN_MIN, "a node"));
        }
        if let Some(head) = device.read_head()? {
            let table = device.read_table(&head.geometry)?;
            device.state = Mutex::new(Some(State { head, table }));
        }
        Ok(device)
    }

    /// The valid head, if the device is not empty; see the table above.
    fn read_head(&self) -> Result<Option<Head>, StartError> {
        let mut bytes = vec![0; 2 * Head::SLOT_LEN as usize];
        self.medium.read(&mut bytes, 0)?;
        let (first, second) = bytes.split_at(Head::SLOT_LEN as usize);
        let head = match (Head::from_bytes(first), Head::from_bytes(second)) {
            (Slot::Unknown(error), _) | (_, Slot::Unknown(error)) => {
                return Err(StartError(format!("device {}: {error}", self.path().display())));
            }
            (Slot::Valid(a), Slot::Valid(b)) => {
                if a.sequence > b.sequence {
                    a
                } else {
                    b
                }
            }
            (Slot::Valid(head), _) => head,
            (Slot::Empty, Slot::Valid(head)) if head.sequence == 1 => head,
            (Slot::Torn, Slot::Valid(head)) if foreign::known(first).is_none() => head,
            (Slot::Empty, Slot::Torn | Slot::Empty | Slot::Foreign) => return Ok(None),
            (Slot::Empty | Slot::Torn, _) if foreign::known(first).is_none() => {
                return Err(self.refused("its superblock is damaged".into()));
            }
            _ => {
                let what = foreign::found(first).unwrap_or_default();
                return Err(StartError(format!(
                    "device {0} is not empty: it holds {what}; give --data another device or, to lose what is on this \
                     one, run `wipefs -a {0} && dd if=/dev/zero of={0} bs=1M count=2` and start again",
                    self.path().display()
                )));
            }
        };
        let Geometry { device_len, volume_at, volume_len, pages, .. } = head.geometry;
        if device_len > self.len {
            let cause = format!("it has {} bytes, and had {device_len} at its format", self.len);
            return Err(self.refused(cause));
        }
        let fits = TABLE_AT + Table::len(pages) <= volume_at
            && volume_at.checked_add(volume_len).is_some_and(|end| end <= device_len);
        if fits { Ok(Some(head)) } else { Err(self.refused("its parts overlap".into())) }
    }

    fn read_table(&self, geometry: &Geometry) -> Result<Table, StartError> {
        let mut bytes = vec![0; Table::len(geometry.pages) as usize];
        self.medium.read(&mut bytes, TABLE_AT)?;
        let table = Table::read(geometry.format, &bytes, extents(geometry));
        table.map_err(|error| self.refused(error.cause))
    }

    /// How a device of `len` bytes is divided for `cores` cores and a volume of `wanted` bytes.
    fn divide(&self, wanted: Option<u64>, cores: u16) -> Result<Geometry, StartError> {
        let head_len_min = HEAD_LEN_MIN + HEAD_LEN_PER_CORE * u64::from(cores);
        let volume_at = (self.len / HEAD_SHARE).max(head_len_min).next_multiple_of(STEP);
        let rest = self.len.saturating_sub(volume_at) / STEP * STEP;
        let volume_len = wanted.unwrap_or(rest.max(VOLUME_LEN_MIN));
        if volume_len > rest {
            let needed = volume_at.saturating_add(volume_len);
            let what = format!(
                "{} MiB of journals and snapshots for {cores} cores and {} MiB of volume",
                volume_at >> 20,
                volume_len >> 20
            );
            return Err(self.too_small(needed, &what));
        }
        let format = random_number()?;
        Ok(Geometry { format, device_len: self.len, volume_at, volume_len, pages: PAGES })
    }

    /// Makes an empty table, in the first copy; stale pages of the second are of another format.
    fn format_to(&self, geometry: Geometry) -> Result<(), StartError> {
        self.medium.write(&Table::blank(geometry.format, geometry.pages), TABLE_AT)?;
        self.medium.sync()?;
        let table = Table::new(geometry.format, geometry.pages, extents(&geometry));
        let head = Head { sequence: 0, geometry, superblock: Vec::new() };
        *self.state() = Some(State { head, table });
        Ok(())
    }

    /// Takes space for `len` bytes that nothing names yet.
    fn allocate(&self, len: u64, end: End) -> Result<u64, FileError> {
        self.with_table(|table| {
            table.allocate(len, end).ok_or_else(|| {
                let cause = format!(
                    "{len} bytes are not free in one piece, {} are; the device's share for journals and snapshots is fixed \
                     at its format: move the node to a larger one",
                    table.largest_free()
                );
                FileError::new("find space on", self.path().display(), &cause)
            })
        })
    }

    /// Names an extent whose content is on the device; gives back the space of the one that it replaces.
    fn insert(&self, entry: Entry) -> Result<(), FileError> {
        self.with_table(|table| {
            let Some((page, before)) = table.insert(entry) else {
                table.release(entry.start, entry.len);
                let cause = "its table is full; move the node to a larger one";
                return Err(FileError::new("name an extent on", self.path().display(), &cause));
            };
            self.write_page(&page)?;
            if let Some(before) = before {
                table.release(before.start, before.len);
            }
            Ok(())
        })
    }

    /// Forgets what `remove` takes out of the table, if anything, and gives its space back.
    fn forget(
        &self,
        remove: impl FnOnce(&mut Table) -> Option<(Page, Entry)>,
    ) -> Result<(), FileError> {
        self.with_table(|table| {
            let Some((page, entry)) = remove(table) else { return Ok(()) };
            self.write_page(&page)?;
            table.release(entry.start, entry.len);
            Ok(())
        })
    }

    /// CRASH: torn, or not written, leaves the page before; the medium fails for ever if this does, so that the table in
    /// memory is never ahead of the device.
    fn write_page(&self, page: &Page) -> Result<(), FileError> {
        self.medium.write(&page.bytes, TABLE_AT + page.at)?;
        self.medium.sync()
    }

    fn extent(&self, start: u64, len: u64) -> Result<Extent, FileError> {
        // The device that is open, whatever its path means by now; a descriptor of its own, to learn of each error.
        let own = format!("/proc/self/fd/{}", self.medium.file().as_raw_fd());
        let file = File::options().read(true).write(true).open(own);
        let place = Place::Device(self.path().to_owned(), start);
        Ok(Extent { file: file.map_err(place.failed("open"))?, place, len })
    }

    fn path(&self) -> &Path {
        self.medium.path()
    }

    fn refused(&self, cause: String) -> StartError {
        StartError(format!("{}: {cause}; restore it, or {}", self.name, self.anew))
    }

    fn too_small(&self, needed: u64, what: &str) -> StartError {
        StartError(format!(
            "{} has {} MiB, which is too small for {what}: {} MiB are needed; give --data a larger one, or less --size or \
             --cores",
            self.name,
            self.len >> 20,
            needed.div_ceil(STEP)
        ))
    }

    fn with_table<R>(&self, body: impl FnOnce(&mut Table) -> R) -> R {
        body(&mut self.state().as_mut().expect(FORMAT_FIRST).table)
    }

    fn state(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for Device {
    fn name(&self) -> &str {
        &self.name
    }

    fn anew(&self) -> &str {
        &self.anew
    }

    fn superblock(&self) -> Result<Option<Vec<u8>>, FileError> {
        let state = self.state();
        let head = state.as_ref().map(|state| &state.head).filter(|head| head.sequence > 0);
        Ok(head.map(|head| head.superblock.clone()))
    }

    fn set_superblock(&self, bytes: &[u8]) -> Result<(), FileError> {
        let mut state = self.state();
        let head = &mut state.as_mut().expect(FORMAT_FIRST).head;
        if bytes.len() > Head::SUPERBLOCK_LEN_MAX {
            let cause = format!("{} bytes are more than a slot takes", bytes.len());
            return Err(FileError::new("write the superblock of", self.path().display(), &cause));
        }
        // What it names may have been written through other descriptors.
        self.medium.sync()?;
        head.sequence += 1;
        head.superblock = bytes.to_vec();
        if head.sequence == 2 {
            // CRASH in the write below may leave all but the first sector: that is told from someone else's data by this.
            self.medium.write(&Head::mark(), head.place())?;
            self.medium.sync()?;
        }
        self.medium.write(&head.to_bytes(), head.place())?;
        self.medium.sync()
    }

    fn format(&self, volume_len: Option<u64>, cores: u16) -> Result<Blank, StartError> {
        self.format_to(self.divide(volume_len, cores)?)?;
        let process = Path::new("/proc/self");
        let own = process.metadata();
        let own = own.map_err(|error| FileError::new("look at", process.display(), &error))?;
        Ok(Blank { volume: self.volume()?, owner: (own.uid(), own.gid()) })
    }

    fn volume(&self) -> Result<Volume, FileError> {
        let Geometry { volume_at, volume_len, .. } =
            self.state().as_ref().expect(FORMAT_FIRST).head.geometry;
        Ok(Volume { extent: self.extent(volume_at, volume_len)?, identity: self.identity })
    }

    fn snapshot(&self, shard: ShardId) -> Result<Option<Vec<u8>>, FileError> {
        let entry = self.with_table(|table| table.snapshot(shard));
        entry.map(|entry| self.extent(entry.start, entry.len)?.read()).transpose()
    }

    fn set_snapshot(&self, shard: ShardId, pieces: Option<&[Vec<u8>]>) -> Result<(), FileError> {
        let Some(pieces) = pieces else { return self.forget(|table| table.remove_snapshot(shard)) };
        let len = pieces.iter().map(|piece| piece.len() as u64).sum();
        let start = self.allocate(len, End::Front)?;
        let mut at = start;
        for piece in pieces {
            self.medium.write(piece, at)?;
            at += piece.len() as u64;
        }
        self.medium.sync()?;
        self.insert(Entry { kind: Kind::Snapshot(shard), start, len })
    }

    /// A journal without segments leaves no trace on a device.
    fn make_journals(&self, _generation: u32, _cores: u16) -> Result<(), FileError> {
        Ok(())
    }

    fn keep_journals(&self, generation: u32) -> Result<(), FileError> {
        let all: Vec<_> = self.with_table(|table| table.journals().collect());
        for (journal, entry) in all.into_iter().filter(|(id, _)| id.generation != generation) {
            self.forget(|table| table.remove_segment(journal, entry.start))?;
        }
        Ok(())
    }

    fn segments(&self, journal: JournalId) -> Result<Vec<(u64, Extent)>, StartError> {
        let all: Vec<_> = self.with_table(|table| table.journals().collect());
        let mut found = Vec::new();
        for (_, entry) in all.into_iter().filter(|(id, _)| *id == journal) {
            let extent = self.extent(entry.start, entry.len)?;
            let mut block = vec![0; (BLOCK as usize).min(entry.len as usize)];
            extent.read_at(&mut block, 0).map_err(extent.place().failed("read"))?;
            match SegmentHeader::from_bytes(&block) {
                Ok(header) => found.push((header.first, extent)),
                Err(_) if block.iter().all(|byte| *byte == 0) => {
                    self.forget(|table| table.remove_segment(journal, entry.start))?;
                }
                Err(_) => found.push((u64::MAX, extent)),
            }
        }
        found.sort_by_key(|(first, _)| *first);
        Ok(found)
    }

    fn spare(&self, journal: JournalId, len: u64) -> Result<Extent, FileError> {
        let start = self.allocate(len, End::Back)?;
        for at in (0..len).step_by(ZEROS.len()) {
            let rest = usize::try_from(len - at).unwrap_or(usize::MAX);
            self.medium.write(&ZEROS[..rest.min(ZEROS.len())], start + at)?;
        }
        self.medium.sync()?;
        self.insert(Entry { kind: Kind::Journal(journal), start, len })?;
        self.extent(start, len)
    }

    fn publish(
        &self,
        _journal: JournalId,
        _first: u64,
        spare: Extent,
    ) -> Result<Extent, FileError> {
        Ok(spare)
    }

    /// The header is in the segment.
    fn sync_names(&self, _journal: JournalId) -> Result<(), FileError> {
        Ok(())
    }

    fn remove(&self, segments: &[Place]) -> Result<(), FileError> {
        for segment in segments {
            let Place::Device(_, start) = segment else { continue };
            let all: Vec<_> = self.with_table(|table| table.journals().collect());
            if let Some((journal, _)) = all.into_iter().find(|(_, entry)| entry.start == *start) {
                self.forget(|table| table.remove_segment(journal, *start))?;
            }
        }
        Ok(())
    }

    fn sync_all(&self, _generation: u32) -> Result<(), FileError> {
        self.medium.sync()
    }
}

/// What lies between table and volume.
fn extents(geometry: &Geometry) -> std::ops::Range<u64> {
    TABLE_AT + Table::len(geometry.pages)..geometry.volume_at
}

/// Volume and head begin and end at multiples of this.
const STEP: u64 = 1 << 20;
const TABLE_AT: u64 = 2 * Head::SLOT_LEN;
/// Pages of 127 entries: for each shard that a node may have a snapshot, and 7,616 segments.
const PAGES: u32 = 576;
/// What 32 bytes of data need of metadata is a few bits, a small file about half a kilobyte, twice while it is replaced.
const HEAD_SHARE: u64 = 32;
/// Snapshots of an almost empty node, and what all devices need.
const HEAD_LEN_MIN: u64 = 128 << 20;
/// A core's journal before it is cut (64 MiB), as much again while snapshots are taken, and its spare.
const HEAD_LEN_PER_CORE: u64 = 160 << 20;
/// Below this a node is of no use.
const VOLUME_LEN_MIN: u64 = 64 << 20;
/// Below this not even the slots and the table can be read.
const LEN_MIN: u64 = 16 << 20;
const BLOCK: u64 = 4_096;
const FORMAT_FIRST: &str = "a store is formatted before anything but its superblock is asked for";

#[cfg(test)]
mod tests;
