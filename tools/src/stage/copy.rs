//! A copying thread: takes entries and segments, makes them in DEST, and counts them when they are durable.
//!
//! ```text
//! temporary name: data, attributes -> sync -> read back, compare -> final name -> sync -> record in the manifest, counted
//! '------------- many files -------------------------------------------------' '---- with the next group's sync ----'
//! ```
//!
//! 1. Nobody sees a file under its name before its data is durable and was compared.
//! 2. A record is written, and an entry counted, when its name is durable.
//! 3. Files go in groups of at most 64 (fewer with few descriptors) and [`GROUP_BYTES_MAX`], so that a sync serves many. A known
//!    local file system gets one syncfs(2) per group. Elsewhere (FUSE passes none on) each file and folder is synced; a node of
//!    sealfs has then less to do with each one, for its first sync covers what came before.
//! 4. A source that is another one after it was read (inode, size, mtime, ctime) is copied anew.
//!
//! Files with more data than a segment are in `large.rs`; hard links in `links.rs`.

use std::ffi::{CStr, CString};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fd::OwnedFd;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, fstat, fsync, ftruncate, mknodat, openat, readlinkat,
    renameat, statat, symlinkat, syncfs, unlinkat,
};
use rustix::io::Errno;

use super::Shared;
use super::data::{Buffer, Copied, Copying, copy, read_back};
use super::large::SEGMENT;
use super::manifest::{Fingerprint, Record, WHOLE, fingerprint};
use super::marks::{self, Opened};
use super::names::Key;
use super::source::{is_settled, look, open_file};
use super::tree::{Dir, Target};
use super::trouble::{ATTEMPTS, Trouble};
use super::work::{Batch, Task};

/// An entry that is to be copied.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) dir: Arc<Dir>,
    pub(crate) name: CString,
    pub(crate) path: Vec<u8>,
    pub(crate) key: Key,
    /// How often it was tried before.
    attempt: u32,
}

/// What lies in DEST under a temporary name and is whole.
struct Written {
    place: Place,
    into: Arc<Target>,
    temporary: String,
    target: OwnedFd,
    /// The source's state, if it can be known again.
    source: Option<Fingerprint>,
    /// Of a file.
    copied: Option<Copied>,
    /// What other links to the same file find it by.
    link: Option<Fingerprint>,
}

/// What has its name, which is not durable yet.
struct Renamed {
    path: Vec<u8>,
    into: Arc<Target>,
    record: Option<Record>,
    bytes: u64,
}

/// One thread.
pub(crate) struct Copier<'a> {
    pub(crate) shared: &'a Shared,
    /// DEST, opened by this thread alone: an error of writing back is told to every descriptor once.
    root: OwnedFd,
    pub(crate) buffer: Buffer,
    written: Vec<Written>,
    written_bytes: u64,
    renamed: Vec<Renamed>,
    again: Vec<Place>,
    /// Links to files that are being copied.
    put_off: Vec<Place>,
}

impl<'a> Copier<'a> {
    pub(crate) fn new(shared: &'a Shared) -> Result<Self, Errno> {
        let root = super::tree::open_below(&shared.target, b"")?;
        Ok(Self {
            shared,
            root,
            buffer: Buffer::new(),
            written: Vec::new(),
            written_bytes: 0,
            renamed: Vec::new(),
            again: Vec::new(),
            put_off: Vec::new(),
        })
    }

    /// Copies until there is nothing left to copy.
    pub(crate) fn run(&mut self) {
        loop {
            match self.shared.work.next(self.written.is_empty() && self.renamed.is_empty()) {
                Task::Batch(batch) => self.batch(batch),
                Task::Large(large) => {
                    self.help(&large);
                }
                Task::Nothing => self.settle(),
                Task::End => break,
            }
            self.repeat();
        }
        while !self.written.is_empty() || !self.renamed.is_empty() {
            self.settle();
            self.repeat();
        }
    }

    fn batch(&mut self, batch: Batch) {
        for entry in batch.entries {
            let path = batch.dir.join(&entry);
            let key = Key::of(&path);
            let dir = Arc::clone(&batch.dir);
            self.entry(Place { dir, name: entry.name, path, key, attempt: 0 });
        }
    }

    fn repeat(&mut self) {
        while let Some(place) = self.again.pop() {
            self.entry(place);
        }
    }

    fn entry(&mut self, place: Place) {
        if self.shared.stop.load(Ordering::Relaxed) {
            self.shared.report_missing(&place.dir, &place.name, &place.path);
        } else if let Err(trouble) = self.try_entry(&place) {
            self.give_up(place, trouble);
        }
    }

    /// An attempt failed.
    pub(crate) fn give_up(&mut self, mut place: Place, trouble: Trouble) {
        place.attempt += 1;
        match trouble {
            Trouble::Stopped => {
                self.shared.report_missing(&place.dir, &place.name, &place.path);
            }
            trouble if trouble.is_passing() && place.attempt < ATTEMPTS => self.again.push(place),
            trouble => self.shared.tally.failed(&place.path, &trouble),
        }
    }

    fn try_entry(&mut self, place: &Place) -> Result<(), Trouble> {
        let stat = look(&place.dir.source, &place.name).map_err(Trouble::reading)?;
        if stat.st_nlink > 1 && FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return self.linked(place, &stat);
        }
        if self.shared.is_there(&place.dir, &place.name, place.key, &stat) {
            self.shared.tally.kept();
            return Ok(());
        }
        self.make(place, &stat, None).map(|_| ())
    }

    /// Copies an entry, whatever it is. With a `link`, other names of the same file find it by that. Tells whether it waits
    /// to be settled with the others of its group.
    pub(crate) fn make(
        &mut self,
        place: &Place,
        stat: &Stat,
        link: Option<Fingerprint>,
    ) -> Result<bool, Trouble> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.file(place, stat, link),
            FileType::Directory => Err(Trouble::Changed),
            _ => self.special(place, stat, link),
        }
    }

    fn file(
        &mut self,
        place: &Place,
        seen: &Stat,
        link: Option<Fingerprint>,
    ) -> Result<bool, Trouble> {
        let (source, stat) = open_file(&place.dir.source, &place.name, seen)?;
        let known = known(&place.dir, &stat);
        if data_len(&stat) > SEGMENT {
            return self.large(place, source, &stat, link).map(|()| false);
        }
        let into = self.target_of(place)?;
        let temporary = place.key.temporary_of(&self.shared.nonce);
        let target = create(&into, &temporary)?;
        match self.fill(&source, &target, &stat, &into) {
            Ok(copied) => {
                self.written_bytes += copied.bytes();
                let (source, place, copied) = (known, place.clone(), Some(copied));
                self.written.push(Written { place, into, temporary, target, source, copied, link });
                self.settle_full_group();
                Ok(true)
            }
            Err(trouble) => {
                remove(&into, &temporary);
                Err(trouble)
            }
        }
    }

    /// Data and everything else of a file that is copied in one go.
    fn fill(
        &mut self,
        source: &OwnedFd,
        target: &OwnedFd,
        stat: &Stat,
        into: &Target,
    ) -> Result<Copied, Trouble> {
        let len = size(stat);
        let has_holes = data_len(stat) < len || len > SMALL_LEN;
        let tally = &self.shared.tally;
        let mut copying = Copying {
            buffer: &mut self.buffer,
            checksum: self.shared.plan.checksum,
            stop: &self.shared.stop,
            tell: &|bytes| tally.moved(bytes),
        };
        let copied = copy(source, target, 0..len, has_holes, &mut copying)?;
        if has_holes {
            ftruncate(target, len).map_err(Trouble::writing)?;
        }
        self.shared.finish_file(source, target, stat, into)?;
        Ok(copied)
    }

    /// Links, fifos, sockets, devices.
    fn special(
        &mut self,
        place: &Place,
        stat: &Stat,
        link: Option<Fingerprint>,
    ) -> Result<bool, Trouble> {
        let source_dir = &place.dir.source;
        let path = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let source = openat(source_dir, place.name.as_c_str(), path, Mode::empty())
            .map_err(Trouble::reading)?;
        let known = known(&place.dir, stat);
        if !is_same(&look(&source, c"").map_err(Trouble::reading)?, stat) {
            return Err(Trouble::Changed);
        }
        let into = self.target_of(place)?;
        let temporary = place.key.temporary_of(&self.shared.nonce);
        let name = temporary.as_str();
        let kind = FileType::from_raw_mode(stat.st_mode);
        let make = || {
            if kind == FileType::Symlink {
                let text = readlinkat(&source, c"", Vec::new()).map_err(Trouble::reading)?;
                return symlinkat(text, &into.fd, name).map_err(Trouble::writing);
            }
            let own = Mode::RUSR | Mode::WUSR;
            mknodat(&into.fd, name, kind, own, stat.st_rdev).map_err(|errno| match errno {
                Errno::PERM => {
                    Trouble::Call("is a device, which only root may make in DEST", errno)
                }
                errno => Trouble::writing(errno),
            })
        };
        remove(&into, name);
        make()?;
        let finish = || {
            let target = openat(&into.fd, name, path, Mode::empty()).map_err(Trouble::writing)?;
            let now = fstat(&target).map_err(Trouble::writing)?;
            if FileType::from_raw_mode(now.st_mode) != kind || now.st_nlink != 1 {
                return Err(Trouble::Other("somebody replaced it while it was made".into()));
            }
            let attributes = marks::attributes(&source, Opened::AsPlace, &self.shared.tally)?;
            let tally = &self.shared.tally;
            marks::apply(&target, Opened::AsPlace, &now, stat, &attributes, tally)?;
            Ok(target)
        };
        let target = finish().inspect_err(|_| remove(&into, name))?;
        let (source, place) = (known, place.clone());
        self.written.push(Written { place, into, temporary, target, source, copied: None, link });
        self.settle_full_group();
        Ok(true)
    }

    pub(crate) fn target_of(&self, place: &Place) -> Result<Arc<Target>, Trouble> {
        place.dir.target(&self.shared.target).map_err(|errno| match errno {
            Errno::LOOP | Errno::NOTDIR => Trouble::Other(
                "its folder's place in DEST is taken by something that is no folder".into(),
            ),
            errno => Trouble::Call("its folder cannot be made in DEST", errno),
        })
    }

    /// Names wait for a sync, too, and keep their folders open.
    pub(crate) fn settle_many_names(&mut self) {
        if self.renamed.len() >= self.shared.group_files_max {
            self.settle();
        }
    }

    fn settle_full_group(&mut self) {
        if self.written.len() >= self.shared.group_files_max
            || self.written_bytes >= GROUP_BYTES_MAX
        {
            self.settle();
        }
    }

    /// Syncs the group, counts what the group before it had named, compares and names this one.
    pub(crate) fn settle(&mut self) {
        let synced = self.sync();
        let renamed = std::mem::take(&mut self.renamed);
        self.count(renamed, &synced);
        self.written_bytes = 0;
        for written in std::mem::take(&mut self.written) {
            let (into, temporary) = (Arc::clone(&written.into), written.temporary.clone());
            let (place, link) = (written.place.clone(), written.link);
            let result = match synced {
                Ok(()) => self.name(written),
                Err(errno) => Err(Trouble::Call("cannot be synced", errno)),
            };
            if let Err(trouble) = result {
                remove(&into, &temporary);
                self.give_up(place, trouble);
            }
            if let Some(id) = link {
                self.shared.links.end(&id);
            }
        }
        self.again.append(&mut self.put_off);
    }

    /// Whether others wait for what this thread has not settled.
    pub(crate) fn has_begun_links(&self) -> bool {
        self.written.iter().any(|written| written.link.is_some())
    }

    /// A link to a file that is being copied: its turn comes when what this thread copies itself is settled.
    pub(crate) fn put_off(&mut self, place: Place) {
        self.put_off.push(place);
        if self.put_off.len() >= self.shared.group_files_max {
            self.settle();
        }
    }

    /// Makes durable: the data and attributes of what was written, the names of what was renamed.
    fn sync(&self) -> Result<(), Errno> {
        if !self.shared.syncs_each {
            syncfs(&self.root)?;
        }
        for written in &self.written {
            // A link or a special file has no descriptor to sync; its folder's sync takes it along.
            if written.copied.is_some() && self.shared.syncs(&written.target)? {
                fsync(&written.target)?;
            }
        }
        let mut last: Option<&Arc<Target>> = None;
        for renamed in &self.renamed {
            if !last.is_some_and(|last| Arc::ptr_eq(last, &renamed.into)) {
                if self.shared.syncs(&renamed.into.fd)? {
                    fsync(&renamed.into.fd)?;
                }
                last = Some(&renamed.into);
            }
        }
        Ok(())
    }

    fn count(&self, renamed: Vec<Renamed>, synced: &Result<(), Errno>) {
        let tally = &self.shared.tally;
        if let Err(errno) = synced {
            for entry in renamed {
                tally.failed(&entry.path, &Trouble::Call("cannot be synced", *errno));
            }
            return;
        }
        let records: Vec<Record> = renamed.iter().filter_map(|entry| entry.record).collect();
        if let Err(errno) = self.shared.manifest().append(&records) {
            let cause = std::io::Error::from(errno);
            tally.note(&format!("the manifest cannot be written ({cause}): a second run repeats"));
        }
        renamed.iter().for_each(|entry| tally.done(entry.bytes));
    }

    /// Compares what was written, and gives it its name.
    fn name(&mut self, written: Written) -> Result<(), Trouble> {
        let Written { place, into, temporary, target, source, copied, link } = written;
        if let Some(copied) = &copied {
            read_back(&target, copied, &mut self.buffer, self.shared.plan.checksum)?;
        }
        let whole = match &link {
            Some(id) => self.shared.links.offer(&self.shared.stage, &into, &temporary, id)?,
            None => fstat(&target).map_err(Trouble::writing)?,
        };
        let bytes = copied.map_or(0, |copied| copied.bytes());
        // Another link changes ctime: links are known again in another way.
        let source = source.filter(|_| link.is_none());
        self.put_in_place(&place, into, (&temporary, &whole), source, bytes)
    }

    /// Gives its name to what is whole, durable and compared, and looks whether that has it then.
    pub(crate) fn put_in_place(
        &mut self,
        place: &Place,
        into: Arc<Target>,
        (temporary, whole): (&str, &Stat),
        source: Option<Fingerprint>,
        bytes: u64,
    ) -> Result<(), Trouble> {
        renameat(&into.fd, temporary, &into.fd, place.name.as_c_str()).map_err(
            |errno| match errno {
                Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY => {
                    Trouble::Other("a folder has its name in DEST; move that away".into())
                }
                errno => Trouble::Call("cannot be given its name", errno),
            },
        )?;
        let name = place.name.as_c_str();
        let now = statat(&into.fd, name, AtFlags::SYMLINK_NOFOLLOW).map_err(Trouble::writing)?;
        if (now.st_dev, now.st_ino) != (whole.st_dev, whole.st_ino) {
            return Err(Trouble::Other("somebody replaced it in DEST while it was staged".into()));
        }
        let record = source.map(|source| Record {
            key: place.key,
            index: WHOLE,
            source,
            target: fingerprint(b"", &now),
        });
        self.renamed.push(Renamed { path: place.path.clone(), into, record, bytes });
        Ok(())
    }
}

impl Shared {
    /// Everything of a file but its data; then whether the source is still what it was.
    pub(crate) fn finish_file(
        &self,
        source: &OwnedFd,
        target: &OwnedFd,
        stat: &Stat,
        into: &Target,
    ) -> Result<(), Trouble> {
        let attributes = marks::attributes(source, Opened::Itself, &self.tally)?;
        if into.gives_acl {
            marks::drop_given_acl(target, &attributes)?;
        }
        let now = fstat(target).map_err(Trouble::writing)?;
        marks::apply(target, Opened::Itself, &now, stat, &attributes, &self.tally)?;
        let after = look(source, c"").map_err(Trouble::reading)?;
        if is_same(&after, stat) { Ok(()) } else { Err(Trouble::Changed) }
    }

    /// Whether an earlier run copied the entry, and neither side has changed since.
    pub(crate) fn is_there(&self, dir: &Dir, name: &CStr, key: Key, stat: &Stat) -> bool {
        if self.manifest().is_new() {
            return false;
        }
        let Ok(Some(record)) = self.manifest().find(key, WHOLE) else { return false };
        if record.source != fingerprint(&dir.mount, stat) {
            return false;
        }
        let Ok(target) = dir.target(&self.target) else { return false };
        look(&target.fd, name).is_ok_and(|now| record.target == fingerprint(b"", &now))
    }
}

/// What a later run knows a source by, unless that may change and look the same.
pub(crate) fn known(dir: &Dir, stat: &Stat) -> Option<Fingerprint> {
    is_settled(stat).then(|| fingerprint(&dir.mount, stat))
}

/// Whether a source has not changed between two looks.
pub(crate) fn is_same(one: &Stat, other: &Stat) -> bool {
    fingerprint(b"", one) == fingerprint(b"", other)
}

/// Makes a file under a temporary name. A former one is not gone on with.
pub(crate) fn create(into: &Target, temporary: &str) -> Result<OwnedFd, Trouble> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Nobody reads it before it has its owner, group and mode.
    let mode = Mode::RUSR | Mode::WUSR;
    let open = || openat(&into.fd, temporary, flags | OFlags::NOATIME, mode);
    match open() {
        Err(Errno::EXIST) => {
            remove(into, temporary);
            open()
        }
        opened => opened,
    }
    .map_err(|errno| Trouble::Call("cannot be created", errno))
}

/// Removes what was not completed. It may be left where that fails: nothing takes it for a file.
pub(crate) fn remove(into: &Target, temporary: &str) {
    let _ = unlinkat(&into.fd, temporary, AtFlags::empty());
}

/// Bytes that a file takes on its device, at most its size.
pub(crate) fn data_len(stat: &Stat) -> u64 {
    size(stat).min(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512))
}

/// Whether DEST has the source's mtime, as exactly as its file system keeps times.
pub(crate) fn is_same_time(source: &Stat, target: &Stat) -> bool {
    let nanoseconds = source.st_mtime_nsec;
    source.st_mtime == target.st_mtime
        && GRAINS.iter().any(|grain| nanoseconds - nanoseconds % grain == target.st_mtime_nsec)
}

pub(crate) fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// Nanoseconds that file systems count in.
const GRAINS: [u64; 5] = [1, 100, 1_000, 1_000_000, 1_000_000_000];
/// Data of a group: a second of a slow disk.
const GROUP_BYTES_MAX: u64 = 64 << 20;
/// Files up to this length have no holes if they take as much space as they are long: two calls fewer for each.
const SMALL_LEN: u64 = 64 << 10;
