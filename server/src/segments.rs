//! The files of one core's journal: opening them after a stop, appending, rolling over, and removing what is no longer needed.
//!
//! ```text
//! journal/<generation>/<core>/
//!     0000000000000000.seg   header, entries, zeros    <- `list`, ascending
//!     0000000000f3a2c8.seg   header, entries, zeros    <- the last one is appended to
//!     spare.new              zeros, the next segment
//! ```
//! A segment is named after the position of its first entry. Its bytes are `sealfs_meta::journal`'s.
//!
//! 1. Entries in the list's order are the journal, without gaps: a segment begins where the one before ends.
//! 2. A segment gets its name only after its header; a name without a header means that power was lost.
//! 3. Nothing is appended behind bytes that are not entries: a torn tail is zeroed and synced first.
//!
//! Calls here may wait for the disk; only [`Segments::roll`] runs on a core's thread, and it touches names and the page
//! cache alone.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sealfs_meta::journal::{self, End, Entry, SEGMENT_HEADER_LEN, SegmentHeader, Tail};
use sealfs_proto::Corrupt;
use sealfs_server_core::sync_mark;

use crate::datadir::LastRun;
use crate::files::{FileError, NEW, failed, list, remove_file_if_there, sync_directory};
use crate::{StartError, sys};

/// A core's journal on the disk.
#[derive(Debug)]
pub(crate) struct Segments {
    dir: PathBuf,
    /// Whose journal; `first` is not looked at.
    owner: SegmentHeader,
    /// Positions of the first entries, ascending.
    firsts: VecDeque<u64>,
    /// The last one, open; `None`: there is none yet.
    tail: Option<Open>,
}

/// The segment that is appended to.
#[derive(Debug)]
pub(crate) struct Open {
    /// Its file.
    pub(crate) file: File,
    /// Its path, for errors.
    pub(crate) path: PathBuf,
    /// Where the next entry goes.
    pub(crate) used: u64,
    /// Bytes that are allocated.
    pub(crate) len: u64,
}

impl Segments {
    /// Reads the journal in `dir`, gives every segment's entries to `feed` (whole entries, in order), cuts a torn tail, and
    /// makes all of it durable. Refuses damage, naming file and offset.
    pub(crate) fn recover(
        dir: &Path,
        owner: SegmentHeader,
        last: LastRun,
        mut feed: impl FnMut(&[u8]) -> Result<(), Corrupt>,
    ) -> Result<Self, StartError> {
        let mut segments = Self { dir: dir.to_owned(), owner, firsts: VecDeque::new(), tail: None };
        let found = segments.found()?;
        let mut behind = None;
        let mut entries_len = 0;
        for (at, &first) in found.iter().enumerate() {
            let path = segments.path(first);
            let bytes = fs::read(&path).map_err(failed("read", &path))?;
            let read = segments.check(first, &bytes, behind);
            let cut = match read {
                Ok(scan) => {
                    feed(&bytes[SEGMENT_HEADER_LEN..scan.used as usize]).map_err(|error| {
                        StartError(format!("journal {}: {error}", path.display()))
                    })?;
                    behind = Some(scan.tail);
                    entries_len += scan.used - SEGMENT_HEADER_LEN as u64;
                    segments.keep(first, &scan)?;
                    scan.cut
                }
                Err(cause) => Some(Cut { offset: 0, next: None, cause }),
            };
            if let Some(cut) = cut {
                let later = &found[at + 1..];
                segments.check_cut(&cut, &path, last, later)?;
                if last.lost_power() {
                    let end = behind.map_or(first, |tail: Tail| tail.position);
                    segments.check_marks(end, &cut, &bytes, &path, later)?;
                }
                segments.end_at(&cut, &path)?;
                segments.remove_from(if cut.offset == 0 { first } else { first + 1 }, &found)?;
                break;
            }
        }
        if entries_len == 0 {
            // Nobody would know at which position to go on: begin anew.
            segments.remove_from(0, &found)?;
            (segments.firsts, segments.tail) = (VecDeque::new(), None);
        } else if !last.clean {
            segments.sync()?;
        }
        Ok(segments)
    }

    /// The segment that is appended to, if it has room for `len` bytes more.
    pub(crate) fn room(&mut self, len: u64) -> Option<&mut Open> {
        self.tail.as_mut().filter(|tail| tail.used + len <= tail.len)
    }

    /// Makes the spare file the last segment, its first entry at `first`; gives the one before, which may not be on the
    /// device yet. The new name is durable only after [`sync_directory`].
    pub(crate) fn roll(&mut self, spare: Spare, first: u64) -> Result<Option<Open>, FileError> {
        let path = self.path(first);
        let header = SegmentHeader { first, ..self.owner };
        spare.file.write_all_at(&header.to_bytes(), 0).map_err(failed("write", &spare.path))?;
        fs::rename(&spare.path, &path).map_err(failed("rename to its place", &spare.path))?;
        self.firsts.push_back(first);
        let used = SEGMENT_HEADER_LEN as u64;
        Ok(self.tail.replace(Open { file: spare.file, path, used, len: spare.len }))
    }

    /// The files that hold nothing but entries below `position`; they leave the list, and whoever asked removes them.
    pub(crate) fn cut(&mut self, position: u64) -> Vec<PathBuf> {
        let mut unused = Vec::new();
        while self.firsts.get(1).is_some_and(|second| *second <= position) {
            unused.extend(self.firsts.pop_front().map(|first| self.path(first)));
        }
        unused
    }

    /// The journal's directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// First positions of the segments in the directory, ascending; a spare of the last run is removed.
    fn found(&self) -> Result<Vec<u64>, StartError> {
        let mut found = Vec::new();
        for name in list(&self.dir)? {
            let first = name.strip_suffix(SUFFIX).and_then(|hex| u64::from_str_radix(hex, 16).ok());
            match first {
                Some(first) if self.path(first).ends_with(&name) => found.push(first),
                _ if name.ends_with(NEW) => {
                    remove_file_if_there(&self.dir.join(&name))?;
                }
                _ => {
                    return Err(StartError(format!(
                        "journal {} holds a file `{name}` that is not sealfs's; move it away",
                        self.dir.display()
                    )));
                }
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Reads one segment; the error says why it is none that continues `behind`.
    fn check(&self, first: u64, bytes: &[u8], behind: Option<Tail>) -> Result<Read, String> {
        if behind.is_some_and(|tail| tail.position != first) {
            return Err("entries are missing before it".into());
        }
        let header = SegmentHeader::from_bytes(bytes).map_err(|error| error.to_string())?;
        if header != (SegmentHeader { first, ..self.owner }) {
            return Err("it belongs to another cluster, node, core or place".into());
        }
        let scan = journal::scan(bytes, behind).map_err(|error| error.to_string())?;
        let cut = match scan.end {
            End::Clean => None,
            End::Torn { offset } => Some(Cut { offset, next: None, cause: TORN.into() }),
            End::Damaged { offset, next } => {
                let cause = format!("damaged, with a valid entry behind at byte {next}");
                Some(Cut { offset, next: Some(next), cause })
            }
        };
        Ok(Read { used: scan.used, len: bytes.len() as u64, tail: scan.tail, cut })
    }

    fn keep(&mut self, first: u64, read: &Read) -> Result<(), FileError> {
        let path = self.path(first);
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.map_err(failed("open", &path))?;
        self.firsts.push_back(first);
        self.tail = Some(Open { file, path, used: read.used, len: read.len });
        Ok(())
    }

    /// Refuses a cut that would lose what was acknowledged: anything but a torn entry at the journal's very end, unless power
    /// was lost.
    fn check_cut(
        &self,
        cut: &Cut,
        path: &Path,
        last: LastRun,
        later: &[u64],
    ) -> Result<(), StartError> {
        if last.lost_power() || (cut.cause == TORN && later.is_empty()) {
            return Ok(());
        }
        let behind = if later.is_empty() { "" } else { ", and there are segments behind it" };
        Err(refused(cut, path, &format!("{}{behind}", cut.cause)))
    }

    /// Refuses a cut at position `end` that a sync mark behind it contradicts: it says that the device held what is now
    /// damaged.
    fn check_marks(
        &self,
        end: u64,
        cut: &Cut,
        bytes: &[u8],
        path: &Path,
        later: &[u64],
    ) -> Result<(), StartError> {
        let beyond = |entries: &mut dyn Iterator<Item = Entry<'_>>| {
            entries.filter_map(|entry| sync_mark(&entry)).any(|mark| mark > end)
        };
        let mut contradicted = cut.next.is_some_and(|next| {
            bytes.get(next as usize..).is_some_and(|bytes| beyond(&mut journal::entries(bytes)))
        });
        for &first in later {
            let path = self.path(first);
            let bytes = fs::read(&path).map_err(failed("read", &path))?;
            let scan = journal::scan(&bytes, None);
            contradicted |= scan.is_ok_and(|scan| beyond(&mut scan.entries.into_iter()));
        }
        if contradicted {
            let cause = format!("{}, though it had been on the device", cut.cause);
            return Err(refused(cut, path, &cause));
        }
        Ok(())
    }

    /// Ends the journal where entries end.
    fn end_at(&self, cut: &Cut, path: &Path) -> Result<(), StartError> {
        let shown = path.display();
        tracing::warn!(journal = %shown, offset = cut.offset, cause = cut.cause, "the journal is cut here");
        let Some(tail) = self.tail.as_ref().filter(|_| cut.offset > 0) else { return Ok(()) };
        // CRASH between the two: a segment shorter than it should be is read the same way.
        tail.file.set_len(tail.used).map_err(failed("cut", path))?;
        sys::preallocate(&tail.file, tail.len).map_err(failed("reserve space for", path))?;
        Ok(tail.file.sync_all().map_err(failed("sync", path))?)
    }

    /// Removes the segments from position `first` on.
    fn remove_from(&self, first: u64, found: &[u64]) -> Result<(), FileError> {
        for first in found.iter().rev().take_while(|found| **found >= first) {
            remove_file_if_there(&self.path(*first))?;
        }
        sync_directory(&self.dir)
    }

    /// Makes everything that is there durable.
    fn sync(&self) -> Result<(), FileError> {
        for first in &self.firsts {
            let path = self.path(*first);
            File::open(&path).and_then(|file| file.sync_data()).map_err(failed("sync", &path))?;
        }
        sync_directory(&self.dir)
    }

    fn path(&self, first: u64) -> PathBuf {
        self.dir.join(format!("{first:016x}{SUFFIX}"))
    }
}

fn refused(cut: &Cut, path: &Path, cause: &str) -> StartError {
    StartError(format!(
        "journal {} at byte {}: {cause}; acknowledged changes are lost: restore the data directory, or start this node \
         with an empty one",
        path.display(),
        cut.offset
    ))
}

/// A segment that was read.
struct Read {
    used: u64,
    len: u64,
    tail: Tail,
    cut: Option<Cut>,
}

/// Where and why the journal ends before its files do.
struct Cut {
    /// Byte of the segment; 0: nothing of it counts.
    offset: u64,
    /// Byte of the segment where a valid entry lies behind.
    next: Option<u64>,
    cause: String,
}

/// An allocated file of zeros that will be the next segment.
#[derive(Debug)]
pub(crate) struct Spare {
    file: File,
    path: PathBuf,
    len: u64,
}

impl Spare {
    /// Makes one in the journal `dir`, with at least `len` bytes for entries. It is on the device, with its size, so that
    /// appending changes data only.
    pub(crate) fn create(dir: &Path, len: u64) -> Result<Self, FileError> {
        let path = dir.join(SPARE);
        let len = SEGMENT_LEN.max(SEGMENT_HEADER_LEN as u64 + len);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(failed("create", &path))?;
        sys::preallocate(&file, len).map_err(failed("reserve space for", &path))?;
        file.sync_all().map_err(failed("sync", &path))?;
        Ok(Self { file, path, len })
    }

    /// Bytes for entries.
    pub(crate) fn room(&self) -> u64 {
        self.len - SEGMENT_HEADER_LEN as u64
    }
}

/// Small enough that little is kept for long, large enough that rolling over is rare.
const SEGMENT_LEN: u64 = 16 << 20;
const SUFFIX: &str = ".seg";
const SPARE: &str = "spare.new";
const TORN: &str = "an entry that was not written completely";

#[cfg(test)]
mod tests {
    use super::*;
    use sealfs_meta::journal::Writer;
    use sealfs_proto::{ClusterId, NodeId, ShardId};

    const OWNER: SegmentHeader =
        SegmentHeader { cluster: ClusterId([1; 16]), node: NodeId(1), core: 0, first: 0 };
    const KILLED: LastRun = LastRun { clean: false, same_boot: true };
    const POWER_LOST: LastRun = LastRun { clean: false, same_boot: false };

    fn entry(number: u64) -> Entry<'static> {
        Entry {
            position: 0,
            shard: ShardId(3),
            number,
            kind: 1,
            version: 1,
            logical: b"what happened",
            local: b"",
        }
    }

    /// Appends one batch, in a new segment if `roll`.
    fn append(segments: &mut Segments, writer: &mut Writer, number: u64, roll: bool) {
        let first = writer.append(&entry(number));
        let batch = writer.take_batch();
        if roll || segments.room(batch.len() as u64).is_none() {
            let spare = Spare::create(segments.dir(), batch.len() as u64).unwrap();
            segments.roll(spare, first).unwrap();
        }
        let tail = segments.room(batch.len() as u64).unwrap();
        tail.file.write_all_at(&batch, tail.used).unwrap();
        tail.used += batch.len() as u64;
    }

    /// Entries 1 to 4, two per segment.
    fn two_segments(dir: &Path) -> Segments {
        let mut segments = recover(dir, KILLED).unwrap().0;
        let mut writer = Writer::new(Tail::default());
        for number in 1..=4 {
            append(&mut segments, &mut writer, number, number == 3);
        }
        segments
    }

    fn recover(dir: &Path, last: LastRun) -> Result<(Segments, Vec<u64>), StartError> {
        let mut numbers = Vec::new();
        let segments = Segments::recover(dir, OWNER, last, |bytes| {
            numbers.extend(journal::entries(bytes).map(|entry| entry.number));
            Ok(())
        })?;
        Ok((segments, numbers))
    }

    fn paths(dir: &Path) -> Vec<PathBuf> {
        list(dir).unwrap().into_iter().map(|name| dir.join(name)).collect()
    }

    fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
        OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
    }

    #[test]
    fn entries_come_back_over_segments_and_appending_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = two_segments(dir.path());
        let used = segments.room(0).unwrap().used;
        let (mut again, numbers) = recover(dir.path(), KILLED).unwrap();
        assert_eq!(numbers, [1, 2, 3, 4]);
        assert_eq!(again.room(0).unwrap().used, used);
        assert_eq!(again.room(0).unwrap().len, SEGMENT_LEN);
    }

    #[test]
    fn a_torn_tail_is_cut_and_the_journal_goes_on_there() {
        let dir = tempfile::tempdir().unwrap();
        let used = two_segments(dir.path()).room(0).unwrap().used;
        let last = paths(dir.path()).pop().unwrap();
        overwrite(&last, used, &[7; 20]);
        let (mut segments, numbers) = recover(dir.path(), KILLED).unwrap();
        assert_eq!(numbers, [1, 2, 3, 4]);
        assert_eq!(segments.room(0).unwrap().used, used);
        let bytes = fs::read(&last).unwrap();
        assert_eq!(bytes.len() as u64, SEGMENT_LEN);
        assert!(bytes[used as usize..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn damage_with_valid_entries_behind_is_refused_with_file_and_offset() {
        let dir = tempfile::tempdir().unwrap();
        two_segments(dir.path());
        let first = paths(dir.path()).remove(0);
        overwrite(&first, SEGMENT_HEADER_LEN as u64 + 45, &[0xff]);
        let error = recover(dir.path(), KILLED).unwrap_err().to_string();
        let name = first.display().to_string();
        assert!(error.contains(&name) && error.contains("at byte 64"), "{error}");
        let (_, numbers) = recover(dir.path(), POWER_LOST).unwrap();
        assert_eq!(numbers, [] as [u64; 0]);
    }

    #[test]
    fn what_a_sync_mark_says_was_on_the_device_is_not_cut_even_without_power() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = recover(dir.path(), KILLED).unwrap().0;
        let mut writer = Writer::new(Tail::default());
        append(&mut segments, &mut writer, 1, false);
        let logical = sealfs_proto::encode(&writer.tail().position);
        let mark = Entry { kind: 2, logical: &logical, ..entry(0) };
        assert_eq!(sync_mark(&mark), Some(writer.tail().position), "kind 2 is a mark");
        writer.append(&mark);
        let batch = writer.take_batch();
        let tail = segments.room(0).unwrap();
        tail.file.write_all_at(&batch, tail.used).unwrap();
        overwrite(&tail.path.clone(), SEGMENT_HEADER_LEN as u64 + 45, &[0xff]);
        let error = recover(dir.path(), POWER_LOST).unwrap_err().to_string();
        assert!(
            error.contains("at byte 64") && error.contains("had been on the device"),
            "{error}"
        );
    }

    #[test]
    fn a_torn_entry_before_another_segment_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        two_segments(dir.path());
        let first = paths(dir.path()).remove(0);
        let entry_len = (fs::read(&first).unwrap().iter().rposition(|byte| *byte != 0).unwrap() + 1
            - SEGMENT_HEADER_LEN) as u64
            / 2;
        overwrite(&first, SEGMENT_HEADER_LEN as u64 + entry_len + 10, &[0xff; 4]);
        let error = recover(dir.path(), KILLED).unwrap_err().to_string();
        assert!(error.contains("segments behind it"), "{error}");
        let (segments, numbers) = recover(dir.path(), POWER_LOST).unwrap();
        assert_eq!(numbers, [1]);
        assert_eq!(segments.firsts.len(), 1);
        assert_eq!(paths(dir.path()).len(), 1);
    }

    #[test]
    fn a_missing_segment_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = two_segments(dir.path());
        let mut writer = Writer::new(Tail { position: 1 << 30, chain: 0 });
        append(&mut segments, &mut writer, 9, true);
        let error = recover(dir.path(), KILLED).unwrap_err().to_string();
        assert!(error.contains("entries are missing"), "{error}");
    }

    #[test]
    fn a_segment_without_entries_is_the_beginning_of_a_new_journal() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = recover(dir.path(), KILLED).unwrap().0;
        segments.roll(Spare::create(dir.path(), 0).unwrap(), 0).unwrap();
        assert!(recover(dir.path(), KILLED).unwrap().0.room(0).is_none());
        assert_eq!(paths(dir.path()), [] as [PathBuf; 0]);
    }

    #[test]
    fn a_name_without_a_header_means_that_power_was_lost() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = two_segments(dir.path());
        let tail = segments.room(0).unwrap();
        let first = 2 * (tail.used - SEGMENT_HEADER_LEN as u64);
        fs::rename(Spare::create(dir.path(), 0).unwrap().path, segments.path(first)).unwrap();
        assert!(recover(dir.path(), KILLED).is_err());
        assert_eq!(recover(dir.path(), POWER_LOST).unwrap().1, [1, 2, 3, 4]);
        assert_eq!(paths(dir.path()).len(), 2);
    }

    #[test]
    fn another_cores_segment_and_foreign_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        two_segments(dir.path());
        let other = SegmentHeader { core: 1, ..OWNER };
        let error = Segments::recover(dir.path(), other, KILLED, |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("another cluster, node, core"), "{error}");
        fs::write(dir.path().join("notes"), "").unwrap();
        assert!(recover(dir.path(), KILLED).unwrap_err().to_string().contains("`notes`"));
    }

    #[test]
    fn a_cut_gives_only_segments_below_and_keeps_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = two_segments(dir.path());
        let second = segments.firsts[1];
        assert_eq!(segments.cut(second - 1), [] as [PathBuf; 0]);
        assert_eq!(segments.cut(u64::MAX), [segments.path(0)]);
        assert_eq!(segments.firsts, [second]);
    }

    #[test]
    fn a_batch_larger_than_a_segment_gets_a_larger_one() {
        let dir = tempfile::tempdir().unwrap();
        let spare = Spare::create(dir.path(), 3 * SEGMENT_LEN).unwrap();
        assert_eq!(spare.room(), 3 * SEGMENT_LEN);
    }
}
