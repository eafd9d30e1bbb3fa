//! What a run remembers for the next one: records of what is durable in DEST.
//!
//! ```text
//! DEST/.sealfs-stage/part-K-of-N.log    head, then records as they come; the newest last
//! DEST/.sealfs-stage/part-K-of-N.base   head, then records of earlier runs, sorted by (key, index)
//!
//! head    "SEALSTAG" | version u32 = 2 | origin 16 | 32 bytes 0 | CRC32C of the first 60 bytes u32
//! record  key 16 | source 16 | target 16 | index u64 | 4 bytes 0 | CRC32C of the first 60 bytes u32     (little-endian)
//! ```
//!
//! | index | says | target |
//! |---|---|---|
//! | 0 | the entry `key` is complete | fingerprint of what has the name in DEST |
//! | 1 + i | segment i of a large file is complete | nonce of its temporary name |
//! | 2^64 - 1 | a large file was begun | nonce of its temporary name |
//!
//! 1. A record is appended after what it tells of was synced: it never claims too much. Losing one means copying once more.
//! 2. A record counts only for a source and a target that have its fingerprints: (inode, size, mtime, ctime) hashed. Who
//!    changes either side, data or attributes, changes a ctime. A file of the manifest counts only for the origin in its
//!    head, a hash of SOURCE's path: what is staged from elsewhere may have the same inode numbers and times.
//! 3. A record with a wrong checksum is none. A torn tail is passed over.
//! 4. Memory does not grow with the tree: runs of at most [`RUN_LEN`] records are sorted and merged on disk, and looking
//!    one up is a binary search in the file.
//! 5. The base has the newest record alone of each (key, index). The order in the files tells which that is, and the
//!    files' times do between them: where they are wrong an entry is copied again, for its record meets no fingerprint.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Mutex;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, Stat, fdatasync, flock, ftruncate, openat, renameat,
    statat, unlinkat,
};
use rustix::io::{Errno, pread, pwrite};

use super::names::{Key, digest};

/// What both sides of a record are told apart by.
pub(crate) type Fingerprint = [u8; 16];

/// One thing that is durable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Record {
    pub(crate) key: Key,
    pub(crate) index: u64,
    pub(crate) source: Fingerprint,
    pub(crate) target: Fingerprint,
}

impl Record {
    /// What a newer record has, too.
    fn name(&self) -> (Key, u64) {
        (self.key, self.index)
    }
}

/// The index of an entry's own record.
pub(crate) const WHOLE: u64 = 0;
/// The index of the record that a large file was begun.
pub(crate) const BEGUN: u64 = u64::MAX;

/// Of what stat(2) says, for a source with its mount. Device numbers differ between nodes and are left out.
pub(crate) fn fingerprint(mount: &[u8], stat: &Stat) -> Fingerprint {
    digest(&[
        mount,
        &stat.st_ino.to_le_bytes(),
        &stat.st_mode.to_le_bytes(),
        &stat.st_size.to_le_bytes(),
        &stat.st_mtime.to_le_bytes(),
        &stat.st_mtime_nsec.to_le_bytes(),
        &stat.st_ctime.to_le_bytes(),
        &stat.st_ctime_nsec.to_le_bytes(),
    ])
}

/// The records of one part: this run's, and those of the runs before it.
pub(crate) struct Manifest {
    log: OwnedFd,
    end: Mutex<u64>,
    base: OwnedFd,
    count: u64,
}

/// Why there is no manifest.
#[derive(Debug)]
pub(crate) enum Refused {
    /// Another process has it.
    InUse,
    /// A system call failed.
    Call(Errno),
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        Self::Call(errno)
    }
}

impl Manifest {
    /// Opens the manifest of `part` of `parts` in `dir`, or makes it. What earlier runs knew, also those that shared the
    /// work differently, becomes its base.
    pub(crate) fn open(
        dir: &OwnedFd,
        part: u32,
        parts: u32,
        origin: [u8; 16],
    ) -> Result<Self, Refused> {
        let name = format!("part-{part}-of-{parts}");
        let (log_name, base_name) = (format!("{name}.log"), format!("{name}.base"));
        let log = openat(dir, log_name.as_str(), OPEN | OFlags::CREATE, FILE_MODE)?;
        lock(&log, FlockOperation::NonBlockingLockExclusive)?;
        refuse_others(dir, part, parts)?;
        let mut sorter = Sorter::new(dir, &name, head(origin));
        // Parts of one division share nothing, so that the others' records are not this one's.
        let is_wanted = |other: &Named| other.parts != parts || other.part == part;
        sorter.add_all(is_wanted, |record| record.key.part(parts) == part)?;
        let (base, count) = sorter.finish(&base_name)?;
        // CRASH before this line: the log's records are in both, and counted once by the next sorting.
        ftruncate(&log, 0)?;
        write_at(&log, &head(origin), 0)?;
        Ok(Self { log, end: Mutex::new(RECORD_LEN as u64), base, count })
    }

    /// For who finishes: knows what all parts remember of whole entries, and keeps them out while it is open.
    pub(crate) fn of_all(dir: &OwnedFd, origin: [u8; 16]) -> Result<Self, Refused> {
        let log = openat(dir, "part-0-of-0.log", OPEN | OFlags::CREATE, FILE_MODE)?;
        lock(&log, FlockOperation::NonBlockingLockExclusive)?;
        refuse_others(dir, 0, 0)?;
        let mut sorter = Sorter::new(dir, "finish", head(origin));
        sorter.add_all(|_| true, |record| record.index == WHOLE)?;
        let base = sorter.nameless()?;
        let count = sorter.merge(&base)?;
        Ok(Self { log, end: Mutex::new(0), base, count })
    }

    /// Whether there is nothing that an earlier run did.
    pub(crate) fn is_new(&self) -> bool {
        self.count == 0
    }

    /// Remembers what is durable.
    pub(crate) fn append(&self, records: &[Record]) -> Result<(), Errno> {
        let bytes: Vec<u8> = records.iter().flat_map(encode).collect();
        let mut end = self.end.lock().expect("nobody panics while he holds it");
        write_at(&self.log, &bytes, *end)?;
        *end += bytes.len() as u64;
        Ok(())
    }

    /// What earlier runs remembered under (key, index).
    pub(crate) fn find(&self, key: Key, index: u64) -> Result<Option<Record>, Errno> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.at(middle)? {
                // A record that is damaged hides others, which are then copied again.
                Some(record) if (record.key, record.index) >= (key, index) => high = middle,
                _ => low = middle + 1,
            }
        }
        if low == self.count {
            return Ok(None);
        }
        Ok(self.at(low)?.filter(|record| (record.key, record.index) == (key, index)))
    }

    fn at(&self, number: u64) -> Result<Option<Record>, Errno> {
        let mut bytes = [0; RECORD_LEN];
        let read = read_at(&self.base, &mut bytes, (number + 1) * RECORD_LEN as u64)?;
        Ok(if read == RECORD_LEN { decode(&bytes) } else { None })
    }
}

/// Only parts of one division work at a time: those of another one share entries, and so temporary names, with them. Each
/// locks its own log before it looks at the others', so that of two at least one is refused.
fn refuse_others(dir: &OwnedFd, part: u32, parts: u32) -> Result<(), Refused> {
    for other in manifests(dir)? {
        let is_sibling = other.parts == parts || (other.part, other.parts) == (part, parts);
        if is_sibling || !other.is_log() {
            continue;
        }
        let log = match openat(dir, other.name.as_str(), OPEN, Mode::empty()) {
            Err(Errno::NOENT) => continue,
            log => log?,
        };
        lock(&log, FlockOperation::NonBlockingLockShared)?;
        flock(&log, FlockOperation::Unlock)?;
    }
    Ok(())
}

/// Takes a lock. FUSE lets go of one some time after its process has ended, so one that is taken gets a moment.
fn lock(log: &OwnedFd, operation: FlockOperation) -> Result<(), Refused> {
    for _ in 0..LOCK_ATTEMPTS {
        match flock(log, operation) {
            Err(Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
            result => return Ok(result?),
        }
    }
    Err(Refused::InUse)
}

impl Drop for Manifest {
    /// Not left to the closing, which FUSE does later.
    fn drop(&mut self) {
        let _ = flock(&self.log, FlockOperation::Unlock);
    }
}

/// Sorts any number of records in bounded memory. Of those with the same key and index it keeps what was added last.
struct Sorter<'a> {
    dir: &'a OwnedFd,
    name: &'a str,
    head: [u8; RECORD_LEN],
    run: Vec<Record>,
    runs: Vec<OwnedFd>,
}

impl<'a> Sorter<'a> {
    fn new(dir: &'a OwnedFd, name: &'a str, head: [u8; RECORD_LEN]) -> Self {
        Self { dir, name, head, run: Vec::new(), runs: Vec::new() }
    }

    /// Adds records of files that are there, the oldest first.
    fn add_all(
        &mut self,
        is_file: impl Fn(&Named) -> bool,
        is_record: impl Fn(&Record) -> bool,
    ) -> Result<(), Errno> {
        let mut found = Vec::new();
        for named in manifests(self.dir)?.into_iter().filter(is_file) {
            match statat(self.dir, named.name.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => {
                    found.push((stat.st_mtime, stat.st_mtime_nsec, named.is_log(), named.name));
                }
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        found.sort_unstable();
        for (.., name) in found {
            let file = match openat(self.dir, name.as_str(), OPEN, Mode::empty()) {
                Err(Errno::NOENT) => continue,
                file => file?,
            };
            let mut first = [0; RECORD_LEN];
            if read_at(&file, &mut first, 0)? < RECORD_LEN || first != self.head {
                // Another version's, or of another origin.
                continue;
            }
            let mut reader = Reader::new(&file);
            while let Some(record) = reader.next()? {
                if is_record(&record) {
                    self.add(record)?;
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, record: Record) -> Result<(), Errno> {
        self.run.push(record);
        if self.run.len() == RUN_LEN { self.flush() } else { Ok(()) }
    }

    /// Puts what is in memory into a file of its own, which has no name any more.
    fn flush(&mut self) -> Result<(), Errno> {
        self.run.sort_by_key(Record::name);
        self.run.dedup_by(|newer, kept| {
            let is_same = newer.name() == kept.name();
            if is_same {
                *kept = *newer;
            }
            is_same
        });
        let file = self.nameless()?;
        let mut out = Appender::new(&file, self.head);
        self.run.drain(..).try_for_each(|record| out.add(&record))?;
        out.flush()?;
        drop(out);
        self.runs.push(file);
        Ok(())
    }

    /// A file that goes with its descriptor.
    fn nameless(&self) -> Result<OwnedFd, Errno> {
        let name = format!("{}.run", self.name);
        let create = OPEN | OFlags::CREATE | OFlags::TRUNC;
        let file = openat(self.dir, name.as_str(), create, FILE_MODE)?;
        unlinkat(self.dir, name.as_str(), AtFlags::empty())?;
        Ok(file)
    }

    /// Merges all into the file `base`, which appears whole or not at all.
    fn finish(mut self, base: &str) -> Result<(OwnedFd, u64), Errno> {
        let temporary = format!("{base}.tmp");
        let create = OPEN | OFlags::CREATE | OFlags::TRUNC;
        let file = openat(self.dir, temporary.as_str(), create, FILE_MODE)?;
        let count = self.merge(&file)?;
        // CRASH: the log is emptied next, so this must be on the device under its name.
        fdatasync(&file)?;
        renameat(self.dir, temporary.as_str(), self.dir, base)?;
        rustix::fs::fsync(self.dir)?;
        Ok((file, count))
    }

    /// Merges all into a file, and tells how many records that has.
    fn merge(&mut self, file: &OwnedFd) -> Result<u64, Errno> {
        self.flush()?;
        let mut out = Appender::new(file, self.head);
        let mut readers: Vec<Reader<'_>> = self.runs.iter().map(Reader::new).collect();
        let mut next = BinaryHeap::new();
        for (at, reader) in readers.iter_mut().enumerate() {
            next.extend(reader.next()?.map(|record| Reverse((record.name(), at, record))));
        }
        let mut count = 0;
        while let Some(Reverse((name, at, record))) = next.pop() {
            next.extend(readers[at].next()?.map(|record| Reverse((record.name(), at, record))));
            // A later run has a newer one.
            if next.peek().is_none_or(|Reverse((other, ..))| *other != name) {
                out.add(&record)?;
                count += 1;
            }
        }
        out.flush()?;
        Ok(count)
    }
}

/// Writes a head and records behind it, many at a time.
struct Appender<'a> {
    file: &'a OwnedFd,
    bytes: Vec<u8>,
    end: u64,
}

impl<'a> Appender<'a> {
    fn new(file: &'a OwnedFd, head: [u8; RECORD_LEN]) -> Self {
        Self { file, bytes: head.to_vec(), end: 0 }
    }

    fn add(&mut self, record: &Record) -> Result<(), Errno> {
        self.bytes.extend_from_slice(&encode(record));
        if self.bytes.len() >= IO_LEN { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Errno> {
        write_at(self.file, &self.bytes, self.end)?;
        self.end += self.bytes.len() as u64;
        self.bytes.clear();
        Ok(())
    }
}

/// Reads a file's records, many at a time.
struct Reader<'a> {
    file: &'a OwnedFd,
    bytes: Vec<u8>,
    at: usize,
    offset: u64,
}

impl<'a> Reader<'a> {
    fn new(file: &'a OwnedFd) -> Self {
        Self { file, bytes: Vec::new(), at: 0, offset: RECORD_LEN as u64 }
    }

    /// The next record that is whole.
    fn next(&mut self) -> Result<Option<Record>, Errno> {
        loop {
            if self.at == self.bytes.len() {
                self.bytes.resize(IO_LEN, 0);
                let read = read_at(self.file, &mut self.bytes, self.offset)?;
                self.bytes.truncate(read - read % RECORD_LEN);
                self.offset += self.bytes.len() as u64;
                self.at = 0;
                if self.bytes.is_empty() {
                    return Ok(None);
                }
            }
            let record = &self.bytes[self.at..self.at + RECORD_LEN];
            self.at += RECORD_LEN;
            if let Some(record) = decode(record.try_into().expect("it is sliced so")) {
                return Ok(Some(record));
            }
        }
    }
}

/// A manifest's file, by its name.
struct Named {
    name: String,
    part: u32,
    parts: u32,
}

impl Named {
    fn is_log(&self) -> bool {
        self.name.ends_with(".log")
    }
}

fn manifests(dir: &OwnedFd) -> Result<Vec<Named>, Errno> {
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        let Some((part, parts)) = part_of(name, ".log").or_else(|| part_of(name, ".base")) else {
            continue;
        };
        found.push(Named { name: name.to_owned(), part, parts });
    }
    Ok(found)
}

/// K and N of `part-K-of-N` + `ending`.
pub(crate) fn part_of(name: &str, ending: &str) -> Option<(u32, u32)> {
    let rest = name.strip_prefix("part-")?.strip_suffix(ending)?;
    let (part, parts) = rest.split_once("-of-")?;
    Some((part.parse().ok()?, parts.parse().ok()?))
}

fn head(origin: [u8; 16]) -> [u8; RECORD_LEN] {
    let mut bytes = [0; RECORD_LEN];
    bytes[..8].copy_from_slice(b"SEALSTAG");
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..28].copy_from_slice(&origin);
    seal(&mut bytes);
    bytes
}

fn encode(record: &Record) -> [u8; RECORD_LEN] {
    let mut bytes = [0; RECORD_LEN];
    bytes[..16].copy_from_slice(&record.key.0);
    bytes[16..32].copy_from_slice(&record.source);
    bytes[32..48].copy_from_slice(&record.target);
    bytes[48..56].copy_from_slice(&record.index.to_le_bytes());
    seal(&mut bytes);
    bytes
}

fn decode(bytes: &[u8; RECORD_LEN]) -> Option<Record> {
    let mut sealed = *bytes;
    seal(&mut sealed);
    let piece = |at: usize| bytes[at..at + 16].try_into().expect("16 bytes");
    (sealed == *bytes).then(|| Record {
        key: Key(piece(0)),
        source: piece(16),
        target: piece(32),
        index: u64::from_le_bytes(bytes[48..56].try_into().expect("8 bytes")),
    })
}

fn seal(bytes: &mut [u8; RECORD_LEN]) {
    let sum = crc32c::crc32c(&bytes[..RECORD_LEN - 4]);
    bytes[RECORD_LEN - 4..].copy_from_slice(&sum.to_le_bytes());
}

fn read_at(file: &OwnedFd, bytes: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut done = 0;
    while done < bytes.len() {
        match pread(file, &mut bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

fn write_at(file: &OwnedFd, bytes: &[u8], offset: u64) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes.len() {
        match pwrite(file, &bytes[done..], offset + done as u64) {
            Ok(written) => done += written,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// How many bytes a file of the manifest has.
#[cfg(test)]
fn len(file: &OwnedFd) -> u64 {
    u64::try_from(rustix::fs::fstat(file).unwrap().st_size).unwrap()
}

const OPEN: OFlags = OFlags::RDWR.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
/// Names and sizes of a user's files are nobody else's business.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// One second for a lock that its holder has already left.
const LOCK_ATTEMPTS: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(50);
const VERSION: u32 = 2;
const RECORD_LEN: usize = 64;
/// Records that are sorted in memory at a time: 7 MiB.
const RUN_LEN: usize = if cfg!(test) { 100 } else { 1 << 17 };
/// One read or write of the files.
const IO_LEN: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u64, index: u64) -> Record {
        let name = format!("file {number}");
        let both = digest(&[&number.to_le_bytes()]);
        Record { key: Key::of(name.as_bytes()), index, source: both, target: both }
    }

    const ORIGIN: [u8; 16] = [7; 16];

    fn open_dir(dir: &tempfile::TempDir) -> OwnedFd {
        rustix::fs::open(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn every_record_of_every_earlier_run_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let fd = open_dir(&dir);
        for run in 0..4 {
            let manifest = Manifest::open(&fd, 1, 1, ORIGIN).unwrap();
            assert_eq!(manifest.is_new(), run == 0);
            let numbers = (run * 333)..(run * 333 + 400);
            let records: Vec<Record> = numbers.map(|number| record(number, number % 3)).collect();
            records.chunks(7).for_each(|some| manifest.append(some).unwrap());
        }
        let manifest = Manifest::open(&fd, 1, 1, ORIGIN).unwrap();
        assert_eq!(manifest.count, 3 * 333 + 400);
        for number in 0..manifest.count {
            let wanted = record(number, number % 3);
            assert_eq!(manifest.find(wanted.key, wanted.index).unwrap(), Some(wanted));
            assert_eq!(manifest.find(wanted.key, 3).unwrap(), None);
        }
    }

    #[test]
    fn a_tail_that_is_torn_anywhere_costs_the_last_record_only() {
        let dir = tempfile::tempdir().unwrap();
        let fd = open_dir(&dir);
        for torn in 1..RECORD_LEN as u64 {
            let manifest = Manifest::open(&fd, 1, 1, ORIGIN).unwrap();
            manifest.append(&[record(torn, 0), record(1_000 + torn, 0)]).unwrap();
            ftruncate(&manifest.log, len(&manifest.log) - torn).unwrap();
            drop(manifest);
            let manifest = Manifest::open(&fd, 1, 1, ORIGIN).unwrap();
            assert!(manifest.find(record(torn, 0).key, 0).unwrap().is_some(), "{torn}");
            assert!(manifest.find(record(1_000 + torn, 0).key, 0).unwrap().is_none(), "{torn}");
        }
    }

    #[test]
    fn the_newest_record_alone_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let fd = open_dir(&dir);
        let state = |number: u64, state: u8| Record { source: [state; 16], ..record(number, 0) };
        for run in 0..4 {
            let manifest = Manifest::open(&fd, 1, 1, ORIGIN).unwrap();
            for step in 0..3 {
                let records: Vec<_> =
                    (0..150).map(|number| state(number, run * 3 + step)).collect();
                manifest.append(&records).unwrap();
            }
        }
        let manifest = Manifest::open(&fd, 1, 1, ORIGIN).unwrap();
        assert_eq!(manifest.count, 150);
        for number in 0..150 {
            assert_eq!(manifest.find(record(number, 0).key, 0).unwrap(), Some(state(number, 11)));
        }
    }

    #[test]
    fn what_was_staged_from_elsewhere_is_not_known() {
        let dir = tempfile::tempdir().unwrap();
        let fd = open_dir(&dir);
        let manifest = Manifest::open(&fd, 1, 1, ORIGIN).unwrap();
        manifest.append(&[record(1, 0)]).unwrap();
        drop(manifest);
        assert_eq!(Manifest::of_all(&fd, ORIGIN).unwrap().count, 1);
        assert_eq!(Manifest::of_all(&fd, [8; 16]).unwrap().count, 0);
        assert!(Manifest::open(&fd, 1, 1, [8; 16]).unwrap().is_new());
    }

    #[test]
    fn a_flipped_bit_makes_a_record_none() {
        let bytes = encode(&record(1, 2));
        assert_eq!(decode(&bytes), Some(record(1, 2)));
        for bit in 0..RECORD_LEN * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&flipped), None, "{bit}");
        }
    }

    #[test]
    fn work_that_is_shared_differently_is_still_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let fd = open_dir(&dir);
        let all: Vec<Record> = (0..500).map(|number| record(number, 0)).collect();
        for part in 1..=3 {
            let manifest = Manifest::open(&fd, part, 3, ORIGIN).unwrap();
            let own = all.iter().copied().filter(|record| record.key.part(3) == part);
            manifest.append(&own.collect::<Vec<_>>()).unwrap();
        }
        let parts = [
            Manifest::open(&fd, 1, 2, ORIGIN).unwrap(),
            Manifest::open(&fd, 2, 2, ORIGIN).unwrap(),
        ];
        assert_eq!(parts[0].count + parts[1].count, 500);
        for wanted in all {
            let manifest = &parts[wanted.key.part(2) as usize - 1];
            assert_eq!(manifest.find(wanted.key, 0).unwrap(), Some(wanted));
        }
    }

    #[test]
    fn two_runs_of_one_part_exclude_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let fd = open_dir(&dir);
        let first = Manifest::open(&fd, 1, 2, ORIGIN).unwrap();
        assert!(matches!(Manifest::open(&fd, 1, 2, ORIGIN), Err(Refused::InUse)));
        assert!(Manifest::open(&fd, 2, 2, ORIGIN).is_ok());
        // Another division, and who finishes, would meet its temporary files.
        assert!(matches!(Manifest::open(&fd, 1, 3, ORIGIN), Err(Refused::InUse)));
        assert!(matches!(Manifest::open(&fd, 1, 1, ORIGIN), Err(Refused::InUse)));
        assert!(matches!(Manifest::of_all(&fd, ORIGIN), Err(Refused::InUse)));
        drop(first);
        let finish = Manifest::of_all(&fd, ORIGIN).unwrap();
        assert!(matches!(Manifest::open(&fd, 1, 2, ORIGIN), Err(Refused::InUse)));
        drop(finish);
        assert!(Manifest::open(&fd, 1, 2, ORIGIN).is_ok());
    }
}
