//! A store that is a directory.
//!
//! ```text
//! lock                                 flock(2) of the running node; holds its process id
//! superblock                           replaced as a whole
//! formatting                           only while it is being formatted
//! volume                               the node's volume
//! journal/<generation>/<core>/<position>.seg    one journal per core
//! journal/<generation>/<core>/spare.new         zeros, the next segment
//! snapshots/<shard>.snap               one per shard that is not empty
//! ```
//! Numbers in names are hexadecimal with leading zeros, but for core and generation. Names that end in `.new` are files
//! being written; they are never read.
//!
//! Which state a directory is in, and what a start does (`lock` and `lost+found` are not looked at):
//!
//! | superblock | formatting | other files | |
//! |---|---|---|---|
//! | no | no | no | empty |
//! | no | yes | any | a format was interrupted: empty, once the files of this list are removed |
//! | no | no | yes | refused: someone else's directory |
//! | yes | any | any | opened; `formatting` is a left-over of the last step of a format |
//!
//! 1. A superblock exists only if everything that it names exists and is on the device.
//! 2. Nothing is removed from a directory that had neither a superblock nor `formatting`.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sealfs_proto::ShardId;

use super::files::{
    NEW, list, read_if_there, remove, remove_file_if_there, replace, sync_directory,
};
use super::{Blank, Extent, FIRST_GENERATION, FileError, JournalId, Place, Store, Volume, failed};
use crate::{StartError, sys};

/// An open directory; no other process uses it while this value lives.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    name: String,
    /// Holds the flock.
    _lock: File,
}

impl Directory {
    /// Opens a directory, or creates it if only its last part is missing.
    pub(super) fn open(path: &Path) -> Result<Self, StartError> {
        prepare(path)?;
        let lock = lock(path)?;
        let name = format!("data directory {}", path.display());
        let directory = Self { path: path.to_owned(), name, _lock: lock };
        if directory.path.join(SUPERBLOCK).exists() {
            remove_file_if_there(&directory.path.join(FORMATTING))?;
            remove_file_if_there(&directory.path.join(SUPERBLOCK.to_owned() + NEW))?;
        }
        Ok(directory)
    }

    fn generation(&self, generation: u32) -> PathBuf {
        self.path.join(JOURNAL).join(generation.to_string())
    }

    fn journal(&self, journal: JournalId) -> PathBuf {
        self.generation(journal.generation).join(journal.core.to_string())
    }

    fn snapshots(&self) -> PathBuf {
        self.path.join(SNAPSHOTS)
    }

    /// Marks the directory as being formatted, if it is empty or is so already.
    fn begin(&self) -> Result<(), StartError> {
        let entries = list(&self.path)?;
        let ours = entries.iter().any(|name| name == FORMATTING);
        let foreign = |name: &&String| ![LOCK, LOST_AND_FOUND].contains(&name.as_str());
        if let Some(name) = entries.iter().find(foreign).filter(|_| !ours) {
            return Err(StartError(format!(
                "{} holds files (`{name}`) but no superblock: it is not sealfs's, or it is damaged; give --data an empty \
                 directory",
                self.name
            )));
        }
        let mark = File::create(self.path.join(FORMATTING)).map_err(|error| {
            StartError(format!(
                "cannot format {}: {error}; give --data a directory that you may write to",
                self.name
            ))
        })?;
        mark.sync_all().map_err(failed("sync", &self.path))?;
        Ok(sync_directory(&self.path)?)
    }

    /// The space for a volume: what was asked for, or half of what is free.
    fn volume_len(&self, wanted: Option<u64>) -> Result<u64, StartError> {
        let free = sys::free_space(&self.path).map_err(failed("ask for free space of", &self.path));
        let free = free?;
        let len = wanted.unwrap_or(free / 2) / VOLUME_STEP * VOLUME_STEP;
        if len < 2 * VOLUME_STEP || len.saturating_add(SPACE_BESIDE) > free {
            return Err(StartError(format!(
                "no space for a volume of {} MiB in {}: {} MiB are free, and journal and snapshots need {} of them; free \
                 some, or give a smaller --size",
                len >> 20,
                self.path.display(),
                free >> 20,
                SPACE_BESIDE >> 20
            )));
        }
        Ok(len)
    }

    fn extent(path: PathBuf) -> Result<(Extent, fs::Metadata), FileError> {
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.map_err(failed("open", &path))?;
        let metadata = file.metadata().map_err(failed("look at", &path))?;
        Ok((Extent { file, len: metadata.len(), place: Place::File(path) }, metadata))
    }
}

impl Store for Directory {
    fn name(&self) -> &str {
        &self.name
    }

    fn anew(&self) -> &str {
        "start this node with an empty directory"
    }

    fn superblock(&self) -> Result<Option<Vec<u8>>, FileError> {
        read_if_there(&self.path.join(SUPERBLOCK))
    }

    fn set_superblock(&self, bytes: &[u8]) -> Result<(), FileError> {
        replace(&self.path, SUPERBLOCK, &[bytes])?;
        remove_file_if_there(&self.path.join(FORMATTING))
    }

    fn format(&self, volume_len: Option<u64>, cores: u16) -> Result<Blank, StartError> {
        self.begin()?;
        // CRASH from here on until the superblock is there: `formatting` makes the next start come here again.
        remove_file_if_there(&self.path.join(VOLUME))?;
        for dir in [JOURNAL, SNAPSHOTS] {
            let dir = self.path.join(dir);
            match fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", &dir)(error).into());
                }
                _ => {}
            }
            fs::create_dir(&dir).map_err(failed("create", &dir))?;
        }
        self.make_journals(FIRST_GENERATION, cores)?;
        let len = self.volume_len(volume_len)?;
        let path = self.path.join(VOLUME);
        let file = File::create(&path).map_err(failed("create", &path))?;
        sys::preallocate(&file, len).map_err(failed("reserve space for", &path))?;
        file.sync_all().map_err(failed("sync", &path))?;
        sync_directory(&self.path)?;
        let owner = fs::metadata(&self.path).map_err(failed("look at", &self.path))?;
        Ok(Blank { volume: self.volume()?, owner: (owner.uid(), owner.gid()) })
    }

    fn volume(&self) -> Result<Volume, FileError> {
        let (extent, metadata) = Self::extent(self.path.join(VOLUME))?;
        Ok(Volume { extent, identity: metadata.ino() })
    }

    fn snapshot(&self, shard: ShardId) -> Result<Option<Vec<u8>>, FileError> {
        read_if_there(&self.snapshots().join(snapshot_name(shard)))
    }

    fn set_snapshot(&self, shard: ShardId, pieces: Option<&[Vec<u8>]>) -> Result<(), FileError> {
        let name = snapshot_name(shard);
        match pieces {
            Some(pieces) => replace(&self.snapshots(), &name, pieces),
            None => remove(&self.snapshots(), &name),
        }
    }

    fn make_journals(&self, generation: u32, cores: u16) -> Result<(), FileError> {
        let path = self.generation(generation);
        fs::create_dir(&path).map_err(failed("create", &path))?;
        for core in 0..cores {
            let core = path.join(core.to_string());
            fs::create_dir(&core).map_err(failed("create", &core))?;
        }
        sync_directory(&path)?;
        sync_directory(&self.path.join(JOURNAL))
    }

    fn keep_journals(&self, generation: u32) -> Result<(), FileError> {
        let valid = generation.to_string();
        let journal = self.path.join(JOURNAL);
        for entry in list(&journal)? {
            if entry != valid {
                let path = journal.join(entry);
                fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
            }
        }
        let snapshots = self.snapshots();
        for entry in list(&snapshots)? {
            if entry.ends_with(NEW) {
                remove_file_if_there(&snapshots.join(entry))?;
            }
        }
        Ok(())
    }

    fn segments(&self, journal: JournalId) -> Result<Vec<(u64, Extent)>, StartError> {
        let dir = self.journal(journal);
        let mut found = Vec::new();
        for name in list(&dir)? {
            let first = name.strip_suffix(SUFFIX).and_then(|hex| u64::from_str_radix(hex, 16).ok());
            match first {
                Some(first) if name == segment_name(first) => {
                    found.push((first, Self::extent(dir.join(&name))?.0));
                }
                _ if name.ends_with(NEW) => remove_file_if_there(&dir.join(&name))?,
                _ => {
                    return Err(StartError(format!(
                        "journal {} holds a file `{name}` that is not sealfs's; move it away",
                        dir.display()
                    )));
                }
            }
        }
        found.sort_unstable_by_key(|(first, _)| *first);
        Ok(found)
    }

    fn spare(&self, journal: JournalId, len: u64) -> Result<Extent, FileError> {
        let path = self.journal(journal).join(SPARE);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(true);
        let file = options.open(&path).map_err(failed("create", &path))?;
        sys::preallocate(&file, len).map_err(failed("reserve space for", &path))?;
        file.sync_all().map_err(failed("sync", &path))?;
        Ok(Extent { file, len, place: Place::File(path) })
    }

    fn publish(&self, journal: JournalId, first: u64, spare: Extent) -> Result<Extent, FileError> {
        let from = self.journal(journal).join(SPARE);
        let path = self.journal(journal).join(segment_name(first));
        fs::rename(&from, &path).map_err(failed("rename to its place", &from))?;
        Ok(Extent { place: Place::File(path), ..spare })
    }

    fn sync_names(&self, journal: JournalId) -> Result<(), FileError> {
        sync_directory(&self.journal(journal))
    }

    fn remove(&self, segments: &[Place]) -> Result<(), FileError> {
        for segment in segments {
            if let Place::File(path) = segment {
                remove_file_if_there(path)?;
            }
        }
        Ok(())
    }

    fn sync_all(&self, generation: u32) -> Result<(), FileError> {
        self.volume()?.extent.sync()?;
        let generation = self.generation(generation);
        for core in list(&generation)? {
            let journal = generation.join(core);
            for name in list(&journal)? {
                Self::extent(journal.join(name))?.0.sync()?;
            }
            sync_directory(&journal)?;
        }
        Ok(())
    }
}

/// The directory exists afterwards, if only its last part was missing.
fn prepare(path: &Path) -> Result<(), StartError> {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(StartError(format!(
            "data {shown}: is no directory and no block device; give --data one of these"
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound && names_device(path) => {
            Err(StartError(format!(
                "cannot open device {shown}: {error}; give --data a device that is there, as `lsblk` lists them"
            )))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir(path).map_err(|error| {
                StartError(format!(
                    "cannot create data directory {shown}: {error}; create the directory above it, or give --data one \
                     that you may write to"
                ))
            })
        }
        Err(error) => Err(StartError(format!(
            "cannot look at data directory {shown}: {error}; give --data a directory that you may write to"
        ))),
    }
}

/// A name that only a device would have: a directory there would be in memory, and gone with the next boot.
fn names_device(path: &Path) -> bool {
    path.starts_with("/dev") && !path.starts_with("/dev/shm")
}

fn lock(path: &Path) -> Result<File, StartError> {
    let lock_path = path.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&lock_path)
        .map_err(|error| {
            StartError(format!(
                "cannot open {}: {error}; give --data a directory that you may write to",
                lock_path.display()
            ))
        })?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            return Err(StartError(format!(
                "data directory {} is in use by process {}; stop it first, or give another --data",
                path.display(),
                holder.trim()
            )));
        }
        Err(TryLockError::Error(error)) => return Err(failed("lock", &lock_path)(error).into()),
    }
    // For people only: the lock is the flock, whatever the file says.
    let note = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    note.map_err(failed("write", &lock_path))?;
    Ok(file)
}

fn snapshot_name(shard: ShardId) -> String {
    format!("{:04x}.snap", shard.0)
}

fn segment_name(first: u64) -> String {
    format!("{first:016x}{SUFFIX}")
}

/// The volume's length is a multiple of this; its header takes one.
const VOLUME_STEP: u64 = 1 << 20;
/// What must stay free beside the volume at format: journals and snapshots of an almost empty node.
const SPACE_BESIDE: u64 = 64 << 20;
const LOCK: &str = "lock";
const SUPERBLOCK: &str = "superblock";
const FORMATTING: &str = "formatting";
const VOLUME: &str = "volume";
const JOURNAL: &str = "journal";
const SNAPSHOTS: &str = "snapshots";
const SUFFIX: &str = ".seg";
const SPARE: &str = "spare.new";
const LOST_AND_FOUND: &str = "lost+found";

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(path: &Path) -> String {
        let opened = Directory::open(path).and_then(|store| store.format(Some(2 << 20), 1));
        opened.unwrap_err().to_string()
    }

    fn formatted(path: &Path) -> Directory {
        let store = Directory::open(path).unwrap();
        store.format(Some(2 << 20), 1).unwrap();
        store.set_superblock(b"superblock").unwrap();
        store
    }

    #[test]
    fn someone_elses_directory_is_refused_and_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("volume"), "mine").unwrap();
        let error = refusal(temp.path());
        assert!(error.contains("holds files (`volume`)") && error.contains("--data"), "{error}");
        assert_eq!(fs::read(temp.path().join("volume")).unwrap(), b"mine");
    }

    #[test]
    fn a_lost_superblock_is_not_taken_for_an_empty_directory() {
        let temp = tempfile::tempdir().unwrap();
        drop(formatted(temp.path()));
        fs::remove_file(temp.path().join(SUPERBLOCK)).unwrap();
        assert!(refusal(temp.path()).contains("no superblock"));
        assert!(temp.path().join(VOLUME).exists());
    }

    #[test]
    fn an_interrupted_format_is_done_again() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path();
        fs::write(path.join(FORMATTING), "").unwrap();
        fs::write(path.join(VOLUME), "half").unwrap();
        fs::create_dir_all(path.join(JOURNAL).join("1").join("0")).unwrap();
        fs::write(path.join("superblock.new"), "half").unwrap();
        let store = formatted(path);
        assert_eq!(list(path).unwrap(), ["journal", "lock", "snapshots", "superblock", "volume"]);
        assert_eq!(store.volume().unwrap().extent.len(), 2 << 20);
    }

    #[test]
    fn what_a_crash_leaves_behind_goes_at_the_next_start() {
        let temp = tempfile::tempdir().unwrap();
        drop(formatted(temp.path()));
        let left = ["snapshots/0001.snap.new", "journal/2", "formatting", "superblock.new"];
        let left = left.map(|name| temp.path().join(name));
        fs::create_dir(&left[1]).unwrap();
        for at in [0, 2, 3] {
            fs::write(&left[at], "half").unwrap();
        }
        let store = Directory::open(temp.path()).unwrap();
        store.keep_journals(1).unwrap();
        assert!(left.iter().all(|path| !path.exists()), "{left:?}");
        assert_eq!(store.superblock().unwrap().unwrap(), b"superblock");
    }

    #[test]
    fn a_second_server_is_refused_with_the_first_ones_process() {
        let temp = tempfile::tempdir().unwrap();
        let _first = formatted(temp.path());
        let error = refusal(temp.path());
        assert!(error.contains(&format!("in use by process {};", std::process::id())), "{error}");
    }

    #[test]
    fn places_that_cannot_be_a_data_directory_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(refusal(&file).contains("is no directory and no block device"));
        assert!(refusal(&temp.path().join("no/such/data")).contains("create the directory above"));
        let device = Path::new("/dev/no-such-device");
        assert!(refusal(device).contains("as `lsblk` lists them") && !device.exists());
        let store = Directory::open(&temp.path().join("data")).unwrap();
        let error = store.format(Some(1 << 60), 1).unwrap_err().to_string();
        assert!(error.contains("smaller --size"), "{error}");
    }
}
