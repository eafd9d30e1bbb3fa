//! Where a node keeps what is its own: one interface, and two layouts behind it, files in a directory or a block device.
//!
//! What lies in a store, and what may be relied on after a crash at any moment:
//!
//! | what | change | after a crash |
//! |---|---|---|
//! | superblock | replaced | the old or the new one |
//! | snapshot of a shard | replaced, removed | the old or the new one |
//! | segment of a journal | a spare of zeros is made, becomes a segment, is removed | it is there or not |
//! | volume | written in place | whatever its owner makes of it |
//!
//! 1. A change that has returned is on the device, but for two: a spare that became a segment is so after
//!    [`Store::sync_names`] and a sync of the segment; a segment that was removed may come back.
//! 2. One process at a time uses a store.
//! 3. Nothing is changed in a place that is not ours or empty.
//!
//! A store does not know what the bytes mean, but for the position in a segment's header. Calls wait for the device, all
//! but [`Store::publish`], which a core's thread makes.

mod claim;
mod device;
mod directory;
mod files;
mod foreign;
mod head;
mod medium;
mod table;
mod volatile;

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sealfs_proto::ShardId;

use crate::StartError;
use device::Device;
use directory::Directory;
pub(crate) use files::{FileError, failed};
pub(crate) use volatile::is_in_memory;

/// Opens the store at `path`: a block device, or a directory, which is created if only its last part is missing. Refuses
/// what is in use, and what holds anything that is not sealfs's.
pub(crate) fn open(path: &Path) -> Result<Arc<dyn Store>, StartError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.file_type().is_block_device() => Ok(Arc::new(Device::open(path)?)),
        _ => Ok(Arc::new(Directory::open(path)?)),
    }
}

/// The superblock of a block device, whoever uses it; see [`device::superblock_on`].
pub(crate) fn superblock_on(path: &Path) -> io::Result<Option<Vec<u8>>> {
    device::superblock_on(path)
}

/// One core's journal in one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct JournalId {
    /// All journals of a node change over together, see [`Store::keep_journals`].
    pub(crate) generation: u32,
    /// Whose.
    pub(crate) core: u16,
}

/// What a format begins with.
#[derive(Debug)]
pub(crate) struct Blank {
    /// The volume, its content undefined.
    pub(crate) volume: Volume,
    /// Owner and group of the root directory.
    pub(crate) owner: (u32, u32),
}

/// The node's volume, header included.
#[derive(Debug)]
pub(crate) struct Volume {
    /// Its bytes.
    pub(crate) extent: Extent,
    /// Differs in a copy of the store; 0: this place has none.
    pub(crate) identity: u64,
}

/// Where a node keeps what is its own.
pub(crate) trait Store: fmt::Debug + Send + Sync {
    /// For people: `data directory /x`, `device /dev/x`.
    fn name(&self) -> &str;

    /// For people: how to start a node with an empty store in this one's place.
    fn anew(&self) -> &str;

    /// The superblock; `None`: the store is empty, or a format was interrupted.
    fn superblock(&self) -> Result<Option<Vec<u8>>, FileError>;

    /// Replaces the superblock. The first one ends a format.
    fn set_superblock(&self, bytes: &[u8]) -> Result<(), FileError>;

    /// Begins to format a store without superblock: removes what an interrupted format has left and makes room for a
    /// volume of `volume_len` bytes (`None`: as large as is right), its header included. The journals of `cores` cores are
    /// empty in generation [`FIRST_GENERATION`]. The format counts when there is a superblock.
    fn format(&self, volume_len: Option<u64>, cores: u16) -> Result<Blank, StartError>;

    /// The volume, opened anew: each opening learns of every error in writing it back.
    fn volume(&self) -> Result<Volume, FileError>;

    /// The snapshot of a shard, if there is one.
    fn snapshot(&self, shard: ShardId) -> Result<Option<Vec<u8>>, FileError>;

    /// Replaces a shard's snapshot by these pieces, one behind the other; `None` removes it.
    fn set_snapshot(&self, shard: ShardId, pieces: Option<&[Vec<u8>]>) -> Result<(), FileError>;

    /// Begins an empty journal for each of `cores` cores.
    fn make_journals(&self, generation: u32, cores: u16) -> Result<(), FileError>;

    /// Removes the journals of all other generations, and what was being written when the last run ended.
    fn keep_journals(&self, generation: u32) -> Result<(), FileError>;

    /// The segments of a journal with the positions of their first entries, ascending. Spares of the last run are removed.
    fn segments(&self, journal: JournalId) -> Result<Vec<(u64, Extent)>, StartError>;

    /// Makes an extent of `len` zeros, on the device, that nobody sees until it is published.
    fn spare(&self, journal: JournalId, len: u64) -> Result<Extent, FileError>;

    /// Makes a spare, into which its header has been written, the segment whose first entry is at `first`.
    fn publish(&self, journal: JournalId, first: u64, spare: Extent) -> Result<Extent, FileError>;

    /// Makes what was published durable, together with a sync of the segment.
    fn sync_names(&self, journal: JournalId) -> Result<(), FileError>;

    /// Removes segments, those that are there.
    fn remove(&self, segments: &[Place]) -> Result<(), FileError>;

    /// Makes the volume and the journals of `generation` durable. Nobody writes meanwhile.
    fn sync_all(&self, generation: u32) -> Result<(), FileError>;
}

/// The generation of the journals that a format makes.
pub(crate) const FIRST_GENERATION: u32 = 1;

/// Bytes with a fixed place on the device: a file, or a stretch of a block device.
#[derive(Debug)]
pub(crate) struct Extent {
    file: File,
    place: Place,
    len: u64,
}

/// Where an extent lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It is this file.
    File(PathBuf),
    /// It begins at this byte of a block device.
    Device(PathBuf, u64),
}

impl Extent {
    /// Where it lies.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Its bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Where its first byte lies in [`Extent::file`].
    pub(crate) fn start(&self) -> u64 {
        match self.place {
            Place::File(_) => 0,
            Place::Device(_, start) => start,
        }
    }

    /// Another descriptor of the file that it lies in.
    pub(crate) fn file(&self) -> Result<File, FileError> {
        self.file.try_clone().map_err(self.place.failed("open"))
    }

    /// All of it.
    pub(crate) fn read(&self) -> Result<Vec<u8>, FileError> {
        let len = usize::try_from(self.len).expect("memory holds what is read as a whole");
        let mut bytes = vec![0; len];
        self.read_at(&mut bytes, 0).map_err(self.place.failed("read"))?;
        Ok(bytes)
    }

    /// Fills `bytes` from `offset` on.
    pub(crate) fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, self.start() + offset)
    }

    /// Writes `bytes` at `offset`.
    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), FileError> {
        let written = self.file.write_all_at(bytes, self.start() + offset);
        written.map_err(self.place.failed("write"))
    }

    /// Makes its bytes durable.
    pub(crate) fn sync(&self) -> Result<(), FileError> {
        self.file.sync_data().map_err(self.place.failed("sync"))
    }

    /// Zeroes it from `offset` on, durably. After a crash some of these bytes may be as they were.
    pub(crate) fn zero_from(&self, offset: u64) -> Result<(), FileError> {
        // A file is not cut and made longer again: after a crash between the two, or on a full disk, it would stay short.
        for at in (offset..self.len).step_by(ZEROS.len()) {
            let rest = usize::try_from(self.len - at).unwrap_or(usize::MAX);
            self.write_at(&ZEROS[..rest.min(ZEROS.len())], at)?;
        }
        self.file.sync_all().map_err(self.place.failed("sync"))
    }
}

impl Place {
    /// Turns a failed system call into an error that names what was done where.
    pub(crate) fn failed<'a>(&'a self, what: &'a str) -> impl Fn(io::Error) -> FileError + 'a {
        move |error| FileError::new(what, self, &error)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Device(path, start) => write!(f, "{} from byte {start} on", path.display()),
        }
    }
}

/// What is written where zeros belong.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// Stores of both layouts, for the tests of those who use one.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A formatted store of each layout, with the empty journals of one core; it lives in the directory beside it.
    pub(crate) fn both() -> Vec<(tempfile::TempDir, Arc<dyn Store>)> {
        let mut stores: Vec<(tempfile::TempDir, Arc<dyn Store>)> = Vec::new();
        for is_device in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("data");
            let store: Arc<dyn Store> = if is_device {
                File::create_new(&path).unwrap().set_len(1 << 30).unwrap();
                device(&path, 0).unwrap()
            } else {
                Arc::new(Directory::open(&path).unwrap())
            };
            let blank = store.format(Some(9 << 20), 1).unwrap();
            assert_eq!(blank.volume.extent.len(), 9 << 20);
            store.set_superblock(b"superblock").unwrap();
            stores.push((dir, store));
        }
        stores
    }

    /// The file at `path` as if it were a block device.
    pub(crate) fn device(path: &Path, identity: u64) -> Result<Arc<dyn Store>, StartError> {
        let file = File::options().read(true).write(true).open(path).unwrap();
        Ok(Arc::new(Device::on(file, path, identity)?))
    }
}
