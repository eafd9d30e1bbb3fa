//! A node's data, in whichever store: format, open, and for whom.
//!
//! 1. A superblock exists only if everything that it names exists and is on the device.
//! 2. One process at a time uses a store, and only the node, the cluster and the place that it was formatted for.
//! 3. Until [`DataDir::settle`] the superblock tells of the last run's boot: a start that is interrupted is repeated under
//!    the same assumptions.

mod header;
mod superblock;

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use sealfs_meta::journal::SegmentHeader;
use sealfs_meta::{RootOptions, State, snapshot};
use sealfs_proto::{ClusterId, ClusterMap, Epoch, Ino, NodeId, Placement};

use crate::StartError;
use crate::store::{self, FIRST_GENERATION, FileError, JournalId, Store, Volume, failed};

use header::VolumeHeader;
pub(crate) use superblock::Superblock;

/// A node's open store; no other process uses it while this value lives.
#[derive(Debug)]
pub(crate) struct DataDir {
    store: Arc<dyn Store>,
    superblock: Superblock,
    /// What the superblock said of the last run, before this one began.
    last: LastRun,
    /// How often power had been lost before the last run ended.
    losses_before: u64,
}

/// How the last run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LastRun {
    /// In order, everything on the device.
    pub(crate) clean: bool,
    /// In this boot of the machine: what was written is still there, synced or not.
    pub(crate) same_boot: bool,
}

/// What a store must be for, or is formatted for.
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
    /// A store that was copied is used from now on; its original is not.
    pub(crate) adopt: bool,
}

/// The cluster that a block device holds, whoever uses it; `None`: none that can be told. Reads 2 MiB.
pub fn cluster_on(device: &Path) -> io::Result<Option<ClusterId>> {
    let superblock = store::superblock_on(device)?;
    let superblock = superblock.and_then(|bytes| Superblock::from_bytes(&bytes).ok());
    Ok(superblock.map(|superblock| superblock.map.cluster))
}

impl LastRun {
    /// What was not synced may be missing, in any order.
    pub(crate) fn lost_power(self) -> bool {
        !self.clean && !self.same_boot
    }
}

impl DataDir {
    /// Opens the store at `path`, or formats it if it is empty or absent; refuses what is not `wanted`'s.
    pub(crate) fn open(path: &Path, wanted: &Wanted<'_>) -> Result<Self, StartError> {
        Self::in_store(store::open(path)?, wanted)
    }

    fn in_store(store: Arc<dyn Store>, wanted: &Wanted<'_>) -> Result<Self, StartError> {
        let bytes = match store.superblock()? {
            Some(bytes) => bytes,
            None => format(&*store, wanted)?,
        };
        let superblock = Superblock::from_bytes(&bytes).map_err(|error| {
            StartError(format!(
                "{}: {error}; it cannot be used: restore it, or {}",
                store.name(),
                store.anew()
            ))
        })?;
        let same_boot = superblock.boot == boot_id()?;
        let last = LastRun { clean: superblock.clean, same_boot };
        let losses_before = superblock.losses;
        let mut dir = Self { store, superblock, last, losses_before };
        dir.check_owner(wanted)?;
        dir.check_volume(wanted.adopt)?;
        dir.write_superblock()?;
        dir.store.keep_journals(dir.superblock.journal_generation)?;
        Ok(dir)
    }

    /// Notes that the node is about to change things: all journals have been read. A loss of power is counted before anybody
    /// is served, for clients compare the numbers.
    pub(crate) fn begin(&mut self) -> Result<(), StartError> {
        self.superblock.clean = false;
        self.superblock.losses = self.losses();
        Ok(self.write_superblock()?)
    }

    /// Notes that what the last run left in doubt is settled, and the device holds the outcome: from now on the journals
    /// are whole as long as this boot of the machine lasts.
    pub(crate) fn settle(&mut self) -> Result<(), StartError> {
        self.superblock.boot = boot_id()?;
        Ok(self.write_superblock()?)
    }

    /// Where everything lies.
    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The superblock.
    pub(crate) fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// How the last run ended.
    pub(crate) fn last_run(&self) -> LastRun {
        self.last
    }

    /// How often power was lost, the last run's end included.
    pub(crate) fn losses(&self) -> u64 {
        self.losses_before + u64::from(self.last.lost_power())
    }

    /// The valid journal of `core`.
    pub(crate) fn journal(&self, core: u16) -> JournalId {
        JournalId { generation: self.superblock.journal_generation, core }
    }

    /// The header of `core`'s segments, without their position.
    pub(crate) fn segment_header(&self, core: u16) -> SegmentHeader {
        let Superblock { map, node, .. } = &self.superblock;
        SegmentHeader { cluster: map.cluster, node: *node, core, first: 0 }
    }

    /// Goes over to an empty journal for `cores` cores. All shards must be in snapshots, on the device.
    pub(crate) fn renew_journal(&mut self, cores: u16) -> Result<(), FileError> {
        let generation = self.superblock.journal_generation + 1;
        self.store.make_journals(generation, cores)?;
        self.superblock.journal_generation = generation;
        self.superblock.journal_cores = cores;
        // CRASH before this: the old journal is valid and the new one a left-over. After it: the other way round.
        self.write_superblock()?;
        self.store.keep_journals(generation)
    }

    /// Makes everything durable and notes that the node has stopped in order. Nobody writes any more.
    pub(crate) fn set_clean(&mut self) -> Result<(), FileError> {
        self.store.sync_all(self.superblock.journal_generation)?;
        self.superblock.clean = true;
        self.write_superblock()
    }

    fn write_superblock(&self) -> Result<(), FileError> {
        self.store.set_superblock(&self.superblock.to_bytes())
    }

    /// Refuses another cluster's or node's store, and a list that differs in more than addresses; takes new addresses.
    fn check_owner(&mut self, wanted: &Wanted<'_>) -> Result<(), StartError> {
        let (name, anew) = (self.store.name(), self.store.anew());
        let (stored, list) = (&self.superblock.map, wanted.map);
        let differs = differences(stored, list);
        if stored.cluster != list.cluster {
            let cause = if differs.is_empty() {
                "the key is another one".to_owned()
            } else {
                format!("the nodes' list differs: {}", differs.join("; "))
            };
            return Err(StartError(format!(
                "{name} belongs to cluster {}, this node is to join cluster {}: {cause}; give the key and the list that \
                 it was formatted with, or {anew}",
                stored.cluster, list.cluster
            )));
        }
        if !differs.is_empty() {
            return Err(StartError(format!(
                "{name}: the nodes' list differs from the one that it was formatted with: {}; only \
                 addresses may change, give the list of then",
                differs.join("; ")
            )));
        }
        if self.superblock.node != wanted.node {
            return Err(StartError(format!(
                "{name} belongs to node {}, this is node {}; give the right --id or another --data",
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

    /// Refuses a volume that is missing, cut, another store's, or a copy.
    fn check_volume(&mut self, adopt: bool) -> Result<(), StartError> {
        let Volume { extent, identity } = self.store.volume()?;
        let wrong = |cause: String| {
            let (name, anew) = (self.store.name(), self.store.anew());
            StartError(format!("volume {}: {cause}; restore the {name}, or {anew}", extent.place()))
        };
        let mut header = [0; VolumeHeader::LEN];
        extent.read_at(&mut header, 0).map_err(|error| wrong(error.to_string()))?;
        let header = VolumeHeader::from_bytes(&header).map_err(|error| wrong(error.cause))?;
        if header != volume_header(&self.superblock) {
            return Err(wrong("it belongs to another format".into()));
        }
        let expected = VOLUME_AT + header.len;
        if extent.len() < expected {
            return Err(wrong(format!("it has {} bytes where {expected} belong", extent.len())));
        }
        let stored = self.superblock.volume_identity;
        if identity != stored && identity != 0 && stored != 0 && !adopt {
            return Err(StartError(format!(
                "{} is a copy; two nodes with one identity would destroy each other's data: start the original, or, if it \
                 is gone for good, start this one once with --adopt",
                self.store.name()
            )));
        }
        self.superblock.volume_identity = identity;
        Ok(())
    }
}

/// Formats an empty store; gives the superblock's bytes.
fn format(store: &dyn Store, wanted: &Wanted<'_>) -> Result<Vec<u8>, StartError> {
    let len =
        wanted.volume_len.map(|len| (len / VOLUME_STEP * VOLUME_STEP).saturating_add(VOLUME_AT));
    let blank = store.format(len, wanted.cores)?;
    let Volume { extent, identity } = blank.volume;
    let superblock = Superblock {
        map: wanted.map.clone(),
        node: wanted.node,
        instance: random_number()?,
        volume_len: extent.len() - VOLUME_AT,
        volume_identity: identity,
        journal_generation: FIRST_GENERATION,
        journal_cores: wanted.cores,
        boot: boot_id()?,
        clean: true,
        losses: 0,
    };
    extent.write_at(&volume_header(&superblock).to_bytes(), 0)?;
    extent.sync()?;
    if Placement::new(wanted.map).node(Ino::ROOT.shard()) == Some(wanted.node) {
        make_root(store, &superblock, blank.owner)?;
    }
    let bytes = superblock.to_bytes();
    store.set_superblock(&bytes)?;
    tracing::info!(data = store.name(), cluster = %superblock.map.cluster, node = %superblock.node,
        volume_mib = superblock.volume_len >> 20, "formatted");
    Ok(bytes)
}

/// Writes the snapshot that the file system begins with: the root directory.
fn make_root(
    store: &dyn Store,
    superblock: &Superblock,
    (uid, gid): (u32, u32),
) -> Result<(), StartError> {
    let chunk_size = superblock.map.chunk_size;
    let options = RootOptions { uid, gid, chunk_size, ..RootOptions::default() };
    let root = State::with_root(options, sealfs_ring::now().wall);
    let bytes = snapshot::encode(superblock.map.cluster, superblock.node, &root, &[]);
    Ok(store.set_snapshot(root.shard(), Some(&[bytes]))?)
}

/// The header that the volume of this store has.
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;
    use sealfs_proto::{ClusterId, ShardId, nodes};

    fn map(list: &str) -> ClusterMap {
        nodes::parse(list).unwrap().map(ClusterId([4; 16]))
    }

    fn wanted(map: &ClusterMap) -> Wanted<'_> {
        Wanted { map, node: NodeId(1), volume_len: Some(1 << 20), cores: 2, adopt: false }
    }

    /// A place for a store: a directory that does not exist yet, or a device.
    struct Home {
        dir: tempfile::TempDir,
        is_device: bool,
    }

    impl Home {
        fn both() -> [Self; 2] {
            [false, true].map(|is_device| {
                let dir = tempfile::tempdir().unwrap();
                let home = Self { dir, is_device };
                if is_device {
                    fs::File::create_new(home.path()).unwrap().set_len(1 << 30).unwrap();
                }
                home
            })
        }

        fn path(&self) -> std::path::PathBuf {
            self.dir.path().join("data")
        }

        fn open(&self, wanted: &Wanted<'_>) -> Result<DataDir, StartError> {
            if self.is_device {
                return DataDir::in_store(store::testing::device(&self.path(), 7)?, wanted);
            }
            DataDir::open(&self.path(), wanted)
        }

        fn refusal(&self, wanted: &Wanted<'_>) -> String {
            self.open(wanted).unwrap_err().to_string()
        }
    }

    #[test]
    fn an_empty_place_is_formatted_and_opens_again() {
        for home in Home::both() {
            let map = map("a:1,b:2");
            let mut dir = home.open(&wanted(&map)).unwrap();
            assert_eq!(dir.last_run(), LastRun { clean: true, same_boot: true });
            assert_eq!(dir.superblock().volume_len, 1 << 20);
            dir.begin().unwrap();
            dir.settle().unwrap();
            let before = dir.superblock().clone();
            drop(dir);
            let mut dir = home.open(&wanted(&map)).unwrap();
            assert_eq!(dir.superblock(), &before);
            assert_eq!(dir.last_run(), LastRun { clean: false, same_boot: true });
            dir.set_clean().unwrap();
            drop(dir);
            assert!(home.open(&wanted(&map)).unwrap().last_run().clean);
        }
    }

    #[test]
    fn a_start_that_ends_before_it_is_settled_is_repeated_under_the_same_assumptions() {
        for home in Home::both() {
            let map = map("a:1");
            let mut dir = home.open(&wanted(&map)).unwrap();
            dir.begin().unwrap();
            dir.superblock.boot = [9; 16];
            dir.write_superblock().unwrap();
            drop(dir);
            for times in 1..=2 {
                let mut dir = home.open(&wanted(&map)).unwrap();
                assert!(dir.last_run().lost_power());
                assert_eq!(dir.losses(), times, "known before it is written");
                dir.begin().unwrap();
                assert_eq!(dir.superblock().losses, times);
                assert_eq!(dir.losses(), times);
            }
            home.open(&wanted(&map)).unwrap().settle().unwrap();
            let mut dir = home.open(&wanted(&map)).unwrap();
            assert!(!dir.last_run().lost_power());
            dir.begin().unwrap();
            assert_eq!((dir.losses(), dir.superblock().losses), (2, 2));
        }
    }

    /// Calls `look` once for each of the bytes of `path`, with a bit of it flipped.
    fn damage(path: &Path, bytes: std::ops::Range<u64>, look: impl Fn(u64)) {
        let file = fs::File::options().read(true).write(true).open(path).unwrap();
        for at in bytes {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1 << (at % 8)], at).unwrap();
            look(at);
            file.write_all_at(&byte, at).unwrap();
        }
    }

    #[test]
    fn a_directory_whose_superblock_is_damaged_is_refused_by_name() {
        let map = map("a:1,b:2");
        let [home, _] = Home::both();
        let before = home.open(&wanted(&map)).unwrap().superblock().clone();
        let path = home.path().join("superblock");
        let name = format!("data directory {}: superblock: ", home.path().display());
        damage(&path, 0..fs::metadata(&path).unwrap().len(), |at| {
            let error = home.refusal(&wanted(&map));
            assert!(error.starts_with(&name), "byte {at}: {error}");
        });
        assert_eq!(home.open(&wanted(&map)).unwrap().superblock(), &before);
    }

    #[test]
    fn a_device_with_a_damaged_superblock_has_the_one_before_or_is_refused_by_name() {
        let map = map("a:1,b:2");
        let [_, home] = Home::both();
        let mut dir = home.open(&wanted(&map)).unwrap();
        dir.begin().unwrap();
        let mut stored = vec![dir.superblock().clone()];
        dir.settle().unwrap();
        stored.push(dir.superblock().clone());
        // In each slot a superblock follows 96 bytes that say how the device is divided.
        let len = 96 + dir.superblock().to_bytes().len() as u64;
        drop(dir);
        let read = || {
            let store = store::testing::device(&home.path(), 7)?;
            let bytes = store.superblock()?.expect("it is not taken for an empty one");
            Ok::<_, StartError>(Superblock::from_bytes(&bytes).unwrap())
        };
        for slot in [0..len, (1 << 20)..(1 << 20) + len] {
            damage(&home.path(), slot, |at| match read() {
                Ok(found) => assert!(stored.contains(&found), "byte {at}: {found:?}"),
                Err(error) => {
                    let name = format!("device {} ", home.path().display());
                    assert!(error.to_string().starts_with(&name), "byte {at}: {error}");
                }
            });
        }
        assert_eq!(read().unwrap(), stored[1]);
    }

    #[test]
    fn the_node_of_shard_0_begins_with_the_root_directory_and_no_other_does() {
        let map = map("a:1,b:2");
        let primary = Placement::new(&map).node(ShardId(0)).unwrap();
        for node in [NodeId(1), NodeId(2)] {
            for home in Home::both() {
                let dir = home.open(&Wanted { node, ..wanted(&map) }).unwrap();
                let root = dir.store().snapshot(ShardId(0)).unwrap();
                assert_eq!(root.is_some(), node == primary);
                if let Some(root) = root {
                    let state = snapshot::decode(&root).unwrap().state;
                    let attr = &state.inode(Ino::ROOT).unwrap().attr;
                    assert_eq!(attr.uid, fs::metadata(home.path()).unwrap().uid());
                }
            }
        }
    }

    #[test]
    fn a_copy_is_refused_until_it_is_adopted() {
        let map = map("a:1");
        let [home, _] = Home::both();
        drop(home.open(&wanted(&map)).unwrap());
        let volume = home.path().join("volume");
        let copy = home.path().join("copy");
        fs::copy(&volume, &copy).unwrap();
        fs::rename(&copy, &volume).unwrap();
        assert!(home.refusal(&wanted(&map)).contains("is a copy"));
        drop(home.open(&Wanted { adopt: true, ..wanted(&map) }).unwrap());
        drop(home.open(&wanted(&map)).unwrap());
    }

    #[test]
    fn a_device_with_another_identity_is_a_copy_and_one_without_cannot_be_told() {
        let map = map("a:1");
        let [_, home] = Home::both();
        let open = |identity, adopt| {
            let store = store::testing::device(&home.path(), identity).unwrap();
            DataDir::in_store(store, &Wanted { adopt, ..wanted(&map) }).map(drop)
        };
        open(7, false).unwrap();
        assert!(open(8, false).unwrap_err().to_string().contains("is a copy"));
        open(7, false).unwrap();
        open(8, true).unwrap();
        assert!(open(7, false).is_err());
        open(0, false).unwrap();
        open(9, false).unwrap();
        assert!(open(8, false).is_err());
    }

    #[test]
    fn another_node_key_or_list_is_refused_with_what_differs() {
        for home in Home::both() {
            let first = map("a:1,b:2");
            drop(home.open(&wanted(&first)).unwrap());
            let node = home.refusal(&Wanted { node: NodeId(2), ..wanted(&first) });
            assert!(node.contains("belongs to node 1, this is node 2"), "{node}");
            let other_key = ClusterMap { cluster: ClusterId([5; 16]), ..first.clone() };
            assert!(home.refusal(&wanted(&other_key)).contains("the key is another one"));
            for (list, part) in [
                ("a:1", "node 2 is missing"),
                ("a:1,b:2,c:3", "node 3 is new"),
                ("a:1,b:2 weight=7", "node 2 has weight 100 and 7"),
                ("a:1,b:2,shards=8192", "4096 shards and 8192"),
                ("a:1,b:2,chunk=64K", "chunk=1048576 and 65536"),
            ] {
                let error = home.refusal(&wanted(&map(list)));
                assert!(error.contains(part), "{list}: {error}");
                let derived = ClusterMap { cluster: ClusterId([6; 16]), ..map(list) };
                assert!(home.refusal(&wanted(&derived)).contains(part));
            }
        }
    }

    #[test]
    fn changed_addresses_are_taken_under_the_next_epoch() {
        for home in Home::both() {
            drop(home.open(&wanted(&map("a:1,b:2"))).unwrap());
            let moved = map("a:1,c:2");
            drop(home.open(&wanted(&moved)).unwrap());
            let dir = home.open(&wanted(&moved)).unwrap();
            let expected = ClusterMap { epoch: Epoch(2), ..moved };
            assert_eq!(dir.superblock().map, expected);
        }
    }

    #[test]
    fn a_renewed_journal_replaces_the_old_one() {
        for home in Home::both() {
            let map = map("a:1");
            let mut dir = home.open(&wanted(&map)).unwrap();
            let old = dir.journal(1);
            let segment = |dir: &DataDir, core| {
                let header = SegmentHeader { first: 64, ..dir.segment_header(core) }.to_bytes();
                let spare = dir.store().spare(dir.journal(core), 1 << 20).unwrap();
                spare.write_at(&header, 0).unwrap();
                dir.store().publish(dir.journal(core), 64, spare).unwrap();
            };
            segment(&dir, 1);
            dir.renew_journal(1).unwrap();
            segment(&dir, 0);
            drop(dir);
            let dir = home.open(&wanted(&map)).unwrap();
            let of = |journal| dir.store().segments(journal).map_or(0, |found| found.len());
            assert_eq!((of(old), of(dir.journal(0))), (0, 1));
            assert_eq!(
                (dir.superblock().journal_generation, dir.superblock().journal_cores),
                (2, 1)
            );
        }
    }

    #[test]
    fn a_volume_that_was_cut_or_swapped_is_refused() {
        let map = map("a:1");
        let [home, device] = Home::both();
        drop(home.open(&wanted(&map)).unwrap());
        let volume = fs::OpenOptions::new().write(true).open(home.path().join("volume")).unwrap();
        volume.set_len(VOLUME_AT).unwrap();
        assert!(home.refusal(&wanted(&map)).contains("it has 1048576 bytes where 2097152"));
        volume.set_len(VOLUME_AT * 2).unwrap();
        volume.write_all_at(b"x", 50).unwrap();
        assert!(home.refusal(&wanted(&map)).contains("checksum of its header"));
        let dir = device.open(&wanted(&map)).unwrap();
        dir.store().volume().unwrap().extent.write_at(b"x", 50).unwrap();
        drop(dir);
        assert!(device.refusal(&wanted(&map)).contains("checksum of its header"));
        let file = fs::OpenOptions::new().write(true).open(device.path()).unwrap();
        file.set_len(1 << 29).unwrap();
        assert!(device.refusal(&wanted(&map)).contains("and had 1073741824 at its format"));
    }
}
