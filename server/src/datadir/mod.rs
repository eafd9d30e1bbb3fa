//! The data directory: format, open, and who may use it.
//!
//! ```text
//! lock                                 flock(2) of the running node; holds its process id
//! superblock                           whose directory this is and what in it is valid, see `superblock`
//! formatting                           only while it is being formatted
//! volume                               1 MiB header, then the node's blocks
//! journal/<generation>/<core>/<position>.seg    one journal per core
//! snapshots/<shard>.snap               one per shard that is not empty
//! ```
//! Numbers in names are hexadecimal with leading zeros, but for core and generation. Names that end in `.new` are files
//! being written; they are never read.
//!
//! Which state a directory is in, and what a start does (`lock` and `lost+found` are not looked at):
//!
//! | superblock | formatting | other files | |
//! |---|---|---|---|
//! | no | no | no | format |
//! | no | yes | any | a format was interrupted: remove the files of this list, format |
//! | no | no | yes | refused: someone else's directory |
//! | yes | any | any | open; `formatting` is a left-over of the last step of a format |
//!
//! 1. A superblock exists only if everything that it names exists and is on the device.
//! 2. Nothing is removed from a directory that had neither a superblock nor `formatting`.
//! 3. One process at a time uses a directory.

mod header;
mod superblock;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use sealfs_meta::journal::SegmentHeader;
use sealfs_meta::{RootOptions, State, snapshot};
use sealfs_proto::{ClusterMap, Epoch, Ino, NodeId, Placement, ShardId};

use crate::files::{FileError, NEW, failed, list, remove_file_if_there, replace, sync_directory};
use crate::{StartError, sys};

use header::VolumeHeader;
pub(crate) use superblock::Superblock;

/// An open data directory; no other process uses it while this value lives.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    superblock: Superblock,
    /// What the superblock said of the last run, before this one began.
    last: LastRun,
    /// Holds the flock.
    _lock: File,
}

/// How the last run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LastRun {
    /// In order, everything on the device.
    pub(crate) clean: bool,
    /// In this boot of the machine: what was written is still there, synced or not.
    pub(crate) same_boot: bool,
}

/// What a directory must be for, or is formatted for.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    /// The nodes' list as a map, its cluster derived from the key.
    pub(crate) map: &'a ClusterMap,
    /// Which of its nodes.
    pub(crate) node: NodeId,
    /// Bytes of the volume, at format.
    pub(crate) volume_len: Option<u64>,
    /// Cores, at format.
    pub(crate) cores: u16,
    /// A directory that was copied is used from now on; its original is not.
    pub(crate) adopt: bool,
}

impl LastRun {
    /// What was not synced may be missing, in any order.
    pub(crate) fn lost_power(self) -> bool {
        !self.clean && !self.same_boot
    }
}

impl DataDir {
    /// Opens the directory, or formats it if it is empty or absent; refuses what is not `wanted`'s.
    pub(crate) fn open(path: &Path, wanted: &Wanted<'_>) -> Result<Self, StartError> {
        prepare_directory(path)?;
        let lock = lock(path)?;
        let superblock_path = path.join(SUPERBLOCK);
        if !superblock_path.exists() {
            format(path, wanted)?;
        }
        remove_file_if_there(&path.join(FORMATTING))?;
        let bytes = fs::read(&superblock_path).map_err(failed("read", &superblock_path))?;
        let superblock = Superblock::from_bytes(&bytes).map_err(|error| {
            StartError(format!(
                "data directory {}: {error}; it cannot be used: restore it, or start this node with an empty one",
                path.display()
            ))
        })?;
        let boot = boot_id()?;
        let last = LastRun { clean: superblock.clean, same_boot: superblock.boot == boot };
        let mut dir = Self { path: path.to_owned(), superblock, last, _lock: lock };
        dir.check_owner(wanted)?;
        dir.check_volume(wanted.adopt)?;
        dir.superblock.boot = boot;
        dir.superblock.clean = false;
        dir.write_superblock()?;
        dir.remove_leftovers()?;
        Ok(dir)
    }

    /// The superblock.
    pub(crate) fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// How the last run ended.
    pub(crate) fn last_run(&self) -> LastRun {
        self.last
    }

    /// Opens the volume for reading and writing.
    pub(crate) fn open_volume(&self) -> Result<File, FileError> {
        let path = self.path.join(VOLUME);
        OpenOptions::new().read(true).write(true).open(&path).map_err(failed("open", &path))
    }

    /// Where the valid journal of `core` lies. The directory exists.
    pub(crate) fn journal(&self, core: u16) -> PathBuf {
        self.generation(self.superblock.journal_generation).join(core.to_string())
    }

    /// Where snapshots lie.
    pub(crate) fn snapshots(&self) -> PathBuf {
        self.path.join(SNAPSHOTS)
    }

    /// The header of `core`'s segments, without their position.
    pub(crate) fn segment_header(&self, core: u16) -> SegmentHeader {
        let Superblock { map, node, .. } = &self.superblock;
        SegmentHeader { cluster: map.cluster, node: *node, core, first: 0 }
    }

    /// Goes over to an empty journal for `cores` cores. All shards must be in snapshots, on the device.
    pub(crate) fn renew_journal(&mut self, cores: u16) -> Result<(), FileError> {
        let generation = self.superblock.journal_generation + 1;
        make_journal(&self.generation(generation), cores)?;
        self.superblock.journal_generation = generation;
        self.superblock.journal_cores = cores;
        // CRASH before this: the old journal is valid and the new one a left-over. After it: the other way round.
        self.write_superblock()?;
        self.remove_leftovers()
    }

    /// Makes everything durable and notes that the node has stopped in order. Nobody writes any more.
    pub(crate) fn set_clean(&mut self) -> Result<(), FileError> {
        let volume = self.open_volume()?;
        volume.sync_all().map_err(failed("sync", &self.path.join(VOLUME)))?;
        for core in 0..self.superblock.journal_cores {
            let journal = self.journal(core);
            for name in list(&journal)? {
                let path = journal.join(name);
                let synced = File::open(&path).and_then(|file| file.sync_all());
                synced.map_err(failed("sync", &path))?;
            }
            sync_directory(&journal)?;
        }
        self.superblock.clean = true;
        self.write_superblock()
    }

    fn generation(&self, generation: u32) -> PathBuf {
        self.path.join(JOURNAL).join(generation.to_string())
    }

    fn write_superblock(&self) -> Result<(), FileError> {
        replace(&self.path, SUPERBLOCK, &self.superblock.to_bytes())
    }

    /// Refuses another cluster's or node's directory, and a list that differs in more than addresses; takes new addresses.
    fn check_owner(&mut self, wanted: &Wanted<'_>) -> Result<(), StartError> {
        let shown = self.path.display();
        let (stored, list) = (&self.superblock.map, wanted.map);
        let differs = differences(stored, list);
        if stored.cluster != list.cluster {
            let cause = if differs.is_empty() {
                "the key is another one".to_owned()
            } else {
                format!("the nodes' list differs: {}", differs.join("; "))
            };
            return Err(StartError(format!(
                "data directory {shown} belongs to cluster {}, this node is to join cluster {}: {cause}; give the key \
                 and the list that it was formatted with, or another --data",
                stored.cluster, list.cluster
            )));
        }
        if !differs.is_empty() {
            return Err(StartError(format!(
                "data directory {shown}: the nodes' list differs from the one that it was formatted with: {}; only \
                 addresses may change, give the list of then",
                differs.join("; ")
            )));
        }
        if self.superblock.node != wanted.node {
            return Err(StartError(format!(
                "data directory {shown} belongs to node {}, this is node {}; give the right --id or another --data",
                self.superblock.node, wanted.node
            )));
        }
        if stored.nodes != list.nodes {
            let epoch = Epoch(stored.epoch.0 + 1);
            tracing::info!(%epoch, "addresses of nodes have changed");
            self.superblock.map = ClusterMap { epoch, ..list.clone() };
        }
        Ok(())
    }

    /// Refuses a volume that is missing, cut, another directory's, or a copy.
    fn check_volume(&mut self, adopt: bool) -> Result<(), StartError> {
        let path = self.path.join(VOLUME);
        let wrong = |cause: String| {
            StartError(format!(
                "volume {}: {cause}; restore the data directory, or start this node with an empty one",
                path.display()
            ))
        };
        let file = self.open_volume()?;
        let metadata = file.metadata().map_err(failed("look at", &path))?;
        let mut header = [0; VolumeHeader::LEN];
        file.read_exact_at(&mut header, 0).map_err(|error| wrong(error.to_string()))?;
        let header = VolumeHeader::from_bytes(&header).map_err(|error| wrong(error.cause))?;
        if header != volume_header(&self.superblock) {
            return Err(wrong("it belongs to another data directory".into()));
        }
        if metadata.len() < VOLUME_AT + header.len {
            return Err(wrong(format!(
                "it has {} bytes where {} belong",
                metadata.len(),
                VOLUME_AT + self.superblock.volume_len
            )));
        }
        if metadata.ino() != self.superblock.volume_ino {
            if !adopt {
                return Err(StartError(format!(
                    "data directory {} is a copy; two nodes with one identity would destroy each other's data: start the \
                     original, or, if it is gone for good, start this one once with --adopt",
                    self.path.display()
                )));
            }
            self.superblock.volume_ino = metadata.ino();
        }
        Ok(())
    }

    /// Removes files that were being written and journals that are no longer valid.
    fn remove_leftovers(&self) -> Result<(), FileError> {
        let valid = self.superblock.journal_generation.to_string();
        let journal = self.path.join(JOURNAL);
        for entry in list(&journal)? {
            if entry != valid.as_str() {
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
        remove_file_if_there(&self.path.join(SUPERBLOCK.to_owned() + NEW))
    }
}

/// The name of a shard's snapshot.
pub(crate) fn snapshot_name(shard: ShardId) -> String {
    format!("{:04x}.snap", shard.0)
}

/// The directory exists afterwards, if only its last part was missing.
fn prepare_directory(path: &Path) -> Result<(), StartError> {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(metadata) if metadata.file_type().is_block_device() => Err(StartError(format!(
            "data {shown}: is a block device, which this version cannot use directly; put a file system on it and give \
             a directory there"
        ))),
        Ok(_) => Err(StartError(format!("data {shown}: is no directory; give --data a directory"))),
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

/// Formats an empty directory, or one in which a format was interrupted.
fn format(path: &Path, wanted: &Wanted<'_>) -> Result<(), StartError> {
    let shown = path.display();
    let entries = list(path)?;
    if !entries.iter().any(|name| name == FORMATTING) {
        let foreign = entries.iter().find(|name| ![LOCK, LOST_AND_FOUND].contains(&name.as_str()));
        if let Some(name) = foreign {
            return Err(StartError(format!(
                "data directory {shown} holds files (`{name}`) but no superblock: it is not sealfs's, or it is damaged; \
                 give --data an empty directory"
            )));
        }
    }
    File::create(path.join(FORMATTING))
        .map_err(|error| {
            StartError(format!(
                "cannot format data directory {shown}: {error}; give --data a directory that you may write to"
            ))
        })?
        .sync_all()
        .map_err(failed("sync", path))?;
    sync_directory(path)?;
    // CRASH from here on until the superblock is there: `formatting` makes the next start come here again.
    remove_file_if_there(&path.join(VOLUME))?;
    for dir in [JOURNAL, SNAPSHOTS] {
        let dir = path.join(dir);
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &dir)(error).into());
            }
            _ => {}
        }
        fs::create_dir(&dir).map_err(failed("create", &dir))?;
    }
    make_journal(&path.join(JOURNAL).join("1"), wanted.cores)?;
    let mut superblock = Superblock {
        map: wanted.map.clone(),
        node: wanted.node,
        instance: random_number()?,
        volume_len: volume_len(path, wanted.volume_len)?,
        volume_ino: 0,
        journal_generation: 1,
        journal_cores: wanted.cores,
        boot: boot_id()?,
        clean: true,
    };
    superblock.volume_ino = make_volume(path, &superblock)?;
    if Placement::new(wanted.map).node(Ino::ROOT.shard()) == Some(wanted.node) {
        make_root(path, &superblock)?;
    }
    sync_directory(path)?;
    replace(path, SUPERBLOCK, &superblock.to_bytes())?;
    tracing::info!(data = %shown, cluster = %superblock.map.cluster, node = %superblock.node,
        volume_mib = superblock.volume_len >> 20, "formatted");
    Ok(())
}

/// A journal's directories, durable.
fn make_journal(path: &Path, cores: u16) -> Result<(), FileError> {
    fs::create_dir(path).map_err(failed("create", path))?;
    for core in 0..cores {
        let core = path.join(core.to_string());
        fs::create_dir(&core).map_err(failed("create", &core))?;
    }
    sync_directory(path)?;
    path.parent().map_or(Ok(()), sync_directory)
}

/// The volume's length: what was asked for, or half of what is free.
fn volume_len(path: &Path, wanted: Option<u64>) -> Result<u64, StartError> {
    let free = sys::free_space(path).map_err(failed("ask for free space of", path))?;
    let len = wanted.unwrap_or(free / 2) / VOLUME_STEP * VOLUME_STEP;
    if len < VOLUME_STEP || len.saturating_add(VOLUME_AT + SPACE_BESIDE) > free {
        return Err(StartError(format!(
            "no space for a volume of {} MiB in {}: {} MiB are free, and journal and snapshots need {} of them; free \
             some, or give a smaller --size",
            len >> 20,
            path.display(),
            free >> 20,
            SPACE_BESIDE >> 20
        )));
    }
    Ok(len)
}

/// Writes the snapshot that the file system begins with: the root directory, which belongs to the owner of the data
/// directory.
fn make_root(dir: &Path, superblock: &Superblock) -> Result<(), StartError> {
    let owner = fs::metadata(dir).map_err(failed("look at", dir))?;
    let options = RootOptions {
        uid: owner.uid(),
        gid: owner.gid(),
        chunk_size: superblock.map.chunk_size,
        ..RootOptions::default()
    };
    let root = State::with_root(options, sealfs_ring::now().wall);
    let bytes = snapshot::encode(superblock.map.cluster, superblock.node, &root, &[]);
    Ok(replace(&dir.join(SNAPSHOTS), &snapshot_name(root.shard()), &bytes)?)
}

/// Creates the volume, with its space; gives its inode number.
fn make_volume(dir: &Path, superblock: &Superblock) -> Result<u64, FileError> {
    let path = dir.join(VOLUME);
    let file = File::create(&path).map_err(failed("create", &path))?;
    sys::preallocate(&file, VOLUME_AT + superblock.volume_len)
        .map_err(failed("reserve space for", &path))?;
    let header = volume_header(superblock).to_bytes();
    file.write_all_at(&header, 0).map_err(failed("write", &path))?;
    file.sync_all().map_err(failed("sync", &path))?;
    Ok(file.metadata().map_err(failed("look at", &path))?.ino())
}

/// The header that the volume of this directory has.
fn volume_header(superblock: &Superblock) -> VolumeHeader {
    VolumeHeader {
        cluster: superblock.map.cluster,
        node: superblock.node,
        instance: superblock.instance,
        len: superblock.volume_len,
    }
}

/// In what a nodes' list differs from the stored map, addresses aside.
fn differences(stored: &ClusterMap, list: &ClusterMap) -> Vec<String> {
    let mut found = Vec::new();
    for node in &stored.nodes {
        match list.node(node.id) {
            None => found.push(format!("node {} is missing in the list", node.id)),
            Some(other) if other.weight != node.weight => found.push(format!(
                "node {} has weight {} and {} in the list",
                node.id, node.weight, other.weight
            )),
            Some(_) => {}
        }
    }
    let new = list.nodes.iter().filter(|node| stored.node(node.id).is_none());
    found.extend(new.map(|node| format!("node {} is new in the list", node.id)));
    if stored.shards_log2 != list.shards_log2 {
        found.push(format!("{} shards and {} in the list", stored.shards(), list.shards()));
    }
    if stored.chunk_size != list.chunk_size {
        found.push(format!("chunk={} and {} in the list", stored.chunk_size, list.chunk_size));
    }
    found
}

/// Which boot of the machine this is (random(4)): a UUID as text.
fn boot_id() -> Result<[u8; 16], StartError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(path).map_err(failed("read", path))?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let id = u128::from_str_radix(&digits, 16)
        .map_err(|_| StartError(format!("{} holds no UUID but `{text}`", path.display())))?;
    Ok(id.to_be_bytes())
}

pub(crate) fn random_number() -> Result<u64, StartError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| StartError(format!("the kernel gives no random numbers: {error}")))?;
    Ok(u64::from_le_bytes(bytes))
}

/// Where blocks begin in the volume: a round number for every device's stripes.
pub(crate) const VOLUME_AT: u64 = 1 << 20;
/// The volume's length is a multiple of this.
const VOLUME_STEP: u64 = 1 << 20;
/// What must stay free beside the volume at format: journals and snapshots of an almost empty node.
const SPACE_BESIDE: u64 = 64 << 20;
const LOCK: &str = "lock";
const SUPERBLOCK: &str = "superblock";
const FORMATTING: &str = "formatting";
const VOLUME: &str = "volume";
const JOURNAL: &str = "journal";
const SNAPSHOTS: &str = "snapshots";
const LOST_AND_FOUND: &str = "lost+found";

#[cfg(test)]
mod tests {
    use super::*;
    use sealfs_proto::{ClusterId, nodes};

    fn map(list: &str) -> ClusterMap {
        nodes::parse(list).unwrap().map(ClusterId([4; 16]))
    }

    fn wanted(map: &ClusterMap) -> Wanted<'_> {
        Wanted { map, node: NodeId(1), volume_len: Some(1 << 20), cores: 2, adopt: false }
    }

    fn refusal(path: &Path, wanted: &Wanted<'_>) -> String {
        DataDir::open(path, wanted).unwrap_err().to_string()
    }

    #[test]
    fn an_absent_directory_is_formatted_and_opens_again() {
        let temp = tempfile::tempdir().unwrap();
        let (path, map) = (temp.path().join("data"), map("a:1,b:2"));
        let mut first = DataDir::open(&path, &wanted(&map)).unwrap();
        assert_eq!(first.last_run(), LastRun { clean: true, same_boot: true });
        assert!(first.journal(0).is_dir() && first.journal(1).is_dir());
        let before = first.superblock().clone();
        drop(first);
        let second = DataDir::open(&path, &wanted(&map)).unwrap();
        assert_eq!(second.superblock(), &before);
        assert_eq!(second.last_run(), LastRun { clean: false, same_boot: true });
        first = second;
        first.set_clean().unwrap();
        drop(first);
        assert!(DataDir::open(&path, &wanted(&map)).unwrap().last_run().clean);
    }

    #[test]
    fn the_node_of_shard_0_begins_with_the_root_directory_and_no_other_does() {
        let map = map("a:1,b:2");
        let primary = Placement::new(&map).node(ShardId(0)).unwrap();
        for node in [NodeId(1), NodeId(2)] {
            let temp = tempfile::tempdir().unwrap();
            let dir = DataDir::open(temp.path(), &Wanted { node, ..wanted(&map) }).unwrap();
            let root = fs::read(dir.snapshots().join("0000.snap")).ok();
            assert_eq!(root.is_some(), node == primary);
            if let Some(root) = root {
                let state = snapshot::decode(&root).unwrap().state;
                let attr = &state.inode(Ino::ROOT).unwrap().attr;
                assert_eq!(attr.uid, fs::metadata(temp.path()).unwrap().uid());
            }
        }
    }

    #[test]
    fn someone_elses_directory_is_refused_and_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("volume"), "mine").unwrap();
        let error = refusal(temp.path(), &wanted(&map("a:1")));
        assert!(error.contains("holds files (`volume`)") && error.contains("--data"), "{error}");
        assert_eq!(fs::read(temp.path().join("volume")).unwrap(), b"mine");
    }

    #[test]
    fn a_lost_superblock_is_not_taken_for_an_empty_directory() {
        let temp = tempfile::tempdir().unwrap();
        drop(DataDir::open(temp.path(), &wanted(&map("a:1"))).unwrap());
        fs::remove_file(temp.path().join(SUPERBLOCK)).unwrap();
        assert!(refusal(temp.path(), &wanted(&map("a:1"))).contains("no superblock"));
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
        let dir = DataDir::open(path, &wanted(&map("a:1"))).unwrap();
        assert_eq!(list(path).unwrap(), ["journal", "lock", "snapshots", "superblock", "volume"]);
        assert_eq!(dir.superblock().volume_len, 1 << 20);
    }

    #[test]
    fn a_second_server_is_refused_with_the_first_ones_process() {
        let temp = tempfile::tempdir().unwrap();
        let map = map("a:1");
        let _first = DataDir::open(temp.path(), &wanted(&map)).unwrap();
        let error = refusal(temp.path(), &wanted(&map));
        assert!(error.contains(&format!("in use by process {};", std::process::id())), "{error}");
    }

    #[test]
    fn a_copy_is_refused_until_it_is_adopted() {
        let temp = tempfile::tempdir().unwrap();
        let map = map("a:1");
        drop(DataDir::open(temp.path(), &wanted(&map)).unwrap());
        let volume = temp.path().join(VOLUME);
        let copy = temp.path().join("copy");
        fs::copy(&volume, &copy).unwrap();
        fs::rename(&copy, &volume).unwrap();
        assert!(refusal(temp.path(), &wanted(&map)).contains("is a copy"));
        drop(DataDir::open(temp.path(), &Wanted { adopt: true, ..wanted(&map) }).unwrap());
        drop(DataDir::open(temp.path(), &wanted(&map)).unwrap());
    }

    #[test]
    fn another_node_key_or_list_is_refused_with_what_differs() {
        let temp = tempfile::tempdir().unwrap();
        let first = map("a:1,b:2");
        drop(DataDir::open(temp.path(), &wanted(&first)).unwrap());
        let node = refusal(temp.path(), &Wanted { node: NodeId(2), ..wanted(&first) });
        assert!(node.contains("belongs to node 1, this is node 2"), "{node}");
        let other_key = ClusterMap { cluster: ClusterId([5; 16]), ..first.clone() };
        assert!(refusal(temp.path(), &wanted(&other_key)).contains("the key is another one"));
        for (list, part) in [
            ("a:1", "node 2 is missing"),
            ("a:1,b:2,c:3", "node 3 is new"),
            ("a:1,b:2 weight=7", "node 2 has weight 100 and 7"),
            ("a:1,b:2,shards=8192", "4096 shards and 8192"),
            ("a:1,b:2,chunk=64K", "chunk=1048576 and 65536"),
        ] {
            let error = refusal(temp.path(), &wanted(&map(list)));
            assert!(error.contains(part), "{list}: {error}");
            let derived = ClusterMap { cluster: ClusterId([6; 16]), ..map(list) };
            assert!(refusal(temp.path(), &wanted(&derived)).contains(part));
        }
    }

    #[test]
    fn changed_addresses_are_taken_under_the_next_epoch() {
        let temp = tempfile::tempdir().unwrap();
        drop(DataDir::open(temp.path(), &wanted(&map("a:1,b:2"))).unwrap());
        let moved = map("a:1,c:2");
        drop(DataDir::open(temp.path(), &wanted(&moved)).unwrap());
        let dir = DataDir::open(temp.path(), &wanted(&moved)).unwrap();
        let expected = ClusterMap { epoch: Epoch(2), ..moved };
        assert_eq!(dir.superblock().map, expected);
    }

    #[test]
    fn a_renewed_journal_replaces_the_old_one() {
        let temp = tempfile::tempdir().unwrap();
        let map = map("a:1");
        let mut dir = DataDir::open(temp.path(), &wanted(&map)).unwrap();
        let old = dir.journal(1);
        dir.renew_journal(1).unwrap();
        assert!(dir.journal(0).is_dir() && !dir.journal(1).exists() && !old.exists());
        drop(dir);
        let dir = DataDir::open(temp.path(), &wanted(&map)).unwrap();
        assert_eq!((dir.superblock().journal_generation, dir.superblock().journal_cores), (2, 1));
    }

    #[test]
    fn what_a_crash_leaves_behind_goes_at_the_next_start() {
        let temp = tempfile::tempdir().unwrap();
        let map = map("a:1");
        let dir = DataDir::open(temp.path(), &wanted(&map)).unwrap();
        let snapshot = dir.snapshots().join("0001.snap.new");
        let journal = temp.path().join(JOURNAL).join("2");
        drop(dir);
        fs::write(&snapshot, "half").unwrap();
        fs::create_dir(&journal).unwrap();
        fs::write(temp.path().join(FORMATTING), "").unwrap();
        drop(DataDir::open(temp.path(), &wanted(&map)).unwrap());
        assert!(!snapshot.exists() && !journal.exists());
        assert!(!temp.path().join(FORMATTING).exists());
    }

    #[test]
    fn a_volume_that_was_cut_or_swapped_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let map = map("a:1");
        drop(DataDir::open(temp.path(), &wanted(&map)).unwrap());
        let volume = OpenOptions::new().write(true).open(temp.path().join(VOLUME)).unwrap();
        volume.set_len(VOLUME_AT).unwrap();
        assert!(refusal(temp.path(), &wanted(&map)).contains("it has 1048576 bytes where 2097152"));
        volume.set_len(VOLUME_AT * 2).unwrap();
        volume.write_all_at(b"x", 50).unwrap();
        assert!(refusal(temp.path(), &wanted(&map)).contains("checksum of its header"));
    }

    #[test]
    fn places_that_cannot_be_a_data_directory_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let map = map("a:1");
        let file = temp.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(refusal(&file, &wanted(&map)).contains("is no directory"));
        let deep = temp.path().join("no/such/data");
        assert!(refusal(&deep, &wanted(&map)).contains("create the directory above it"));
        let huge = Wanted { volume_len: Some(1 << 60), ..wanted(&map) };
        let error = refusal(&temp.path().join("data"), &huge);
        assert!(error.contains("smaller --size"), "{error}");
    }
}
