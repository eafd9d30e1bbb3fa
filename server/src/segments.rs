//! The segments of one core's journal: opening them after a stop, appending, rolling over, and removing what is no longer
//! needed.
//!
//! ```text
//! first    header, entries, zeros    <- `list`, ascending
//! second   header, entries, zeros    <- the last one is appended to
//! spare    zeros, the next segment
//! ```
//! A segment is known by the position of its first entry. Its bytes are `sealfs_meta::journal`'s; where it lies is its
//! store's business.
//!
//! 1. Entries in the list's order are the journal, without gaps: a segment begins where the one before ends.
//! 2. A segment is published only after its header is written; one without a header means that power was lost.
//! 3. Nothing is appended behind bytes that are not entries: a torn tail is zeroed and synced first.
//!
//! Calls here may wait for the disk; only [`Segments::roll`] runs on a core's thread, and it touches names and the page
//! cache alone.

use std::collections::VecDeque;
use std::sync::Arc;

use sealfs_meta::journal::{self, End, Entry, SEGMENT_HEADER_LEN, SegmentHeader, Tail};
use sealfs_meta::recover::{EndStep, end_step};
use sealfs_proto::Corrupt;
use sealfs_server_core::sync_mark;

use crate::StartError;
use crate::datadir::LastRun;
use crate::store::{Extent, FileError, JournalId, Place, Store};

/// A core's journal on the disk.
#[derive(Debug)]
pub(crate) struct Segments {
    store: Arc<dyn Store>,
    journal: JournalId,
    /// Whose journal; `first` is not looked at.
    owner: SegmentHeader,
    /// Positions of the first entries, ascending, and where the segments lie.
    list: VecDeque<(u64, Place)>,
    /// The last one, open; `None`: there is none yet.
    tail: Option<Open>,
}

/// The segment that is appended to.
#[derive(Debug)]
pub(crate) struct Open {
    /// Its bytes.
    pub(crate) extent: Extent,
    /// Where the next entry goes.
    pub(crate) used: u64,
}

impl Segments {
    /// Reads a journal, gives every segment's entries to `feed` (whole entries, in order), cuts a torn tail, and makes all of
    /// it durable. Refuses damage, naming place and offset.
    pub(crate) fn recover(
        store: Arc<dyn Store>,
        journal: JournalId,
        owner: SegmentHeader,
        last: LastRun,
        mut feed: impl FnMut(&[u8]) -> Result<(), Corrupt>,
    ) -> Result<Self, StartError> {
        let mut found = VecDeque::from(store.segments(journal)?);
        let mut segments = Self { store, journal, owner, list: VecDeque::new(), tail: None };
        let mut behind = None;
        let mut entries_len = 0;
        while let Some((first, extent)) = found.pop_front() {
            if extent.len() < SEGMENT_LEN {
                let cause = format!("it was made with {SEGMENT_LEN} bytes or more");
                return Err(segments.refused(extent.len(), extent.place(), &cause));
            }
            let bytes = extent.read()?;
            let read = segments.check(first, &bytes, behind);
            if let Some(tail) = read.tail {
                let entries = &bytes[SEGMENT_HEADER_LEN..read.used as usize];
                feed(entries)
                    .map_err(|error| StartError(format!("journal {}: {error}", extent.place())))?;
                behind = Some(tail);
                entries_len += entries.len();
            }
            let position = behind.map_or(first, |tail: Tail| tail.position);
            let unsynced =
                last.lost_power() && !had_reached_device(position, read.end, &bytes, &found)?;
            match end_step(read.end, found.is_empty(), unsynced) {
                EndStep::GoOn => {}
                EndStep::Refuse(offset) => {
                    let more = match (last.lost_power(), found.is_empty()) {
                        (true, _) => ", though it had been on the device",
                        (false, true) => "",
                        (false, false) => ", and there are segments behind it",
                    };
                    let cause = format!("{}{more}", read.cause);
                    return Err(segments.refused(offset, extent.place(), &cause));
                }
                EndStep::Cut(offset) => {
                    let (journal, cause) = (extent.place(), &read.cause);
                    tracing::warn!(%journal, offset, cause, "the journal is cut here");
                    // CRASH between any two: the next start finds the same cut, and less behind it.
                    for (_, later) in found.drain(..).rev() {
                        segments.store.remove(&[later.place().clone()])?;
                    }
                    if read.used == 0 {
                        segments.store.remove(&[extent.place().clone()])?;
                        break;
                    }
                    extent.zero_from(read.used)?;
                }
            }
            if !last.clean {
                extent.sync()?;
            }
            segments.list.push_back((first, extent.place().clone()));
            segments.tail = Some(Open { extent, used: read.used });
        }
        if entries_len == 0 {
            // Nobody would know at which position to go on: begin anew.
            segments.tail = None;
            for (_, place) in segments.list.drain(..).rev() {
                segments.store.remove(&[place])?;
            }
        }
        segments.store.sync_names(journal)?;
        Ok(segments)
    }

    /// The segment that is appended to, if it has room for `len` bytes more.
    pub(crate) fn room(&mut self, len: u64) -> Option<&mut Open> {
        self.tail.as_mut().filter(|tail| tail.used + len <= tail.extent.len())
    }

    /// Makes the spare the last segment, its first entry at `first`; gives the one before, which may not be on the device
    /// yet. It is durable only after [`Store::sync_names`] and a sync of the segment.
    pub(crate) fn roll(&mut self, spare: Spare, first: u64) -> Result<Option<Open>, FileError> {
        let header = SegmentHeader { first, ..self.owner };
        spare.0.write_at(&header.to_bytes(), 0)?;
        let extent = self.store.publish(self.journal, first, spare.0)?;
        self.list.push_back((first, extent.place().clone()));
        Ok(self.tail.replace(Open { extent, used: SEGMENT_HEADER_LEN as u64 }))
    }

    /// The segments that hold nothing but entries below `position`; they leave the list, and whoever asked removes them.
    pub(crate) fn cut(&mut self, position: u64) -> Vec<Place> {
        let mut unused = Vec::new();
        while self.list.get(1).is_some_and(|(second, _)| *second <= position) {
            unused.extend(self.list.pop_front().map(|(_, place)| place));
        }
        unused
    }

    /// Whose journal it is.
    pub(crate) fn journal(&self) -> JournalId {
        self.journal
    }

    /// Reads one segment that should continue `behind`.
    fn check(&self, first: u64, bytes: &[u8], behind: Option<Tail>) -> Read {
        let none = |cause: String| {
            let end = End::Damaged { offset: 0, next: bytes.len() as u64 };
            Read { used: 0, tail: None, end, cause }
        };
        if behind.is_some_and(|tail| tail.position != first) {
            return none("entries are missing before it".into());
        }
        match SegmentHeader::from_bytes(bytes) {
            Err(error) => return none(error.to_string()),
            Ok(header) if header != (SegmentHeader { first, ..self.owner }) => {
                return none("it belongs to another cluster, node, core or place".into());
            }
            Ok(_) => {}
        }
        let scan = match journal::scan(bytes, behind) {
            Ok(scan) => scan,
            Err(error) => return none(error.to_string()),
        };
        let cause = match scan.end {
            End::Clean => String::new(),
            End::Torn { .. } => "an entry that was not written completely".into(),
            End::Damaged { next, .. } => {
                format!("damaged, with a valid entry behind at byte {next}")
            }
        };
        Read { used: scan.used, tail: Some(scan.tail), end: scan.end, cause }
    }

    fn refused(&self, offset: u64, place: &Place, cause: &str) -> StartError {
        StartError(format!(
            "journal {place} at byte {offset}: {cause}; acknowledged changes are lost: restore the {}, or {}",
            self.store.name(),
            self.store.anew()
        ))
    }
}

/// Whether a sync mark behind `end`, at `position`, says that the device once held what is missing there.
fn had_reached_device(
    position: u64,
    end: End,
    bytes: &[u8],
    later: &VecDeque<(u64, Extent)>,
) -> Result<bool, StartError> {
    let beyond = |entries: &mut dyn Iterator<Item = Entry<'_>>| {
        entries.filter_map(|entry| sync_mark(&entry)).any(|mark| mark > position)
    };
    if end == End::Clean {
        return Ok(false);
    }
    if let End::Damaged { next, .. } = end
        && bytes.get(next as usize..).is_some_and(|bytes| beyond(&mut journal::entries(bytes)))
    {
        return Ok(true);
    }
    for (_, extent) in later {
        let bytes = extent.read()?;
        let scan = journal::scan(&bytes, None);
        if scan.is_ok_and(|scan| beyond(&mut scan.entries.into_iter())) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A segment that was read.
struct Read {
    /// Bytes that count; 0: none of it.
    used: u64,
    /// What follows its entries, if it is a segment of this journal.
    tail: Option<Tail>,
    end: End,
    /// Why it ends before its bytes do.
    cause: String,
}

/// Allocated zeros that will be the next segment.
#[derive(Debug)]
pub(crate) struct Spare(Extent);

impl Spare {
    /// Makes one for a journal, with at least `len` bytes for entries. It is on the device, with its size, so that appending
    /// changes data only.
    pub(crate) fn create(
        store: &dyn Store,
        journal: JournalId,
        len: u64,
    ) -> Result<Self, FileError> {
        let len = SEGMENT_LEN.max(SEGMENT_HEADER_LEN as u64 + len);
        store.spare(journal, len).map(Self)
    }

    /// Bytes for entries.
    pub(crate) fn room(&self) -> u64 {
        self.0.len() - SEGMENT_HEADER_LEN as u64
    }
}

/// Small enough that little is kept for long, large enough that rolling over is rare.
const SEGMENT_LEN: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::both;
    use sealfs_meta::journal::Writer;
    use sealfs_proto::{ClusterId, NodeId, ShardId};

    const JOURNAL: JournalId = JournalId { generation: 1, core: 0 };
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
            let spare = spare(segments, batch.len() as u64);
            segments.roll(spare, first).unwrap();
        }
        let tail = segments.room(batch.len() as u64).unwrap();
        tail.extent.write_at(&batch, tail.used).unwrap();
        tail.used += batch.len() as u64;
    }

    fn spare(segments: &Segments, len: u64) -> Spare {
        Spare::create(&*segments.store, segments.journal, len).unwrap()
    }

    /// Entries 1 to 4, two per segment.
    fn two_segments(store: &Arc<dyn Store>) -> Segments {
        let mut segments = recover(store, KILLED).unwrap().0;
        let mut writer = Writer::new(Tail::default());
        for number in 1..=4 {
            append(&mut segments, &mut writer, number, number == 3);
        }
        segments
    }

    fn recover(store: &Arc<dyn Store>, last: LastRun) -> Result<(Segments, Vec<u64>), StartError> {
        let mut numbers = Vec::new();
        let segments = Segments::recover(Arc::clone(store), JOURNAL, OWNER, last, |bytes| {
            numbers.extend(journal::entries(bytes).map(|entry| entry.number));
            Ok(())
        })?;
        Ok((segments, numbers))
    }

    fn extents(store: &Arc<dyn Store>) -> Vec<Extent> {
        store.segments(JOURNAL).unwrap().into_iter().map(|(_, extent)| extent).collect()
    }

    /// The same claim of a directory and of a device.
    fn in_both(claim: impl Fn(&Arc<dyn Store>)) {
        for (_dir, store) in both() {
            claim(&store);
        }
    }

    #[test]
    fn entries_come_back_over_segments_and_appending_goes_on() {
        in_both(|store| {
            let mut segments = two_segments(store);
            let used = segments.room(0).unwrap().used;
            let (mut again, numbers) = recover(store, KILLED).unwrap();
            assert_eq!(numbers, [1, 2, 3, 4]);
            assert_eq!(again.room(0).unwrap().used, used);
            assert_eq!(again.room(0).unwrap().extent.len(), SEGMENT_LEN);
        });
    }

    #[test]
    fn a_torn_tail_is_cut_and_the_journal_goes_on_there() {
        in_both(|store| {
            let used = two_segments(store).room(0).unwrap().used;
            let last = extents(store).pop().unwrap();
            last.write_at(&[7; 20], used).unwrap();
            last.write_at(&[7; 20], SEGMENT_LEN - 20).unwrap();
            let (mut segments, numbers) = recover(store, KILLED).unwrap();
            assert_eq!(numbers, [1, 2, 3, 4]);
            assert_eq!(segments.room(0).unwrap().used, used);
            let bytes = extents(store).pop().unwrap().read().unwrap();
            assert_eq!(bytes.len() as u64, SEGMENT_LEN);
            assert!(bytes[used as usize..].iter().all(|byte| *byte == 0));
        });
    }

    #[test]
    fn damage_with_valid_entries_behind_is_refused_with_place_and_offset() {
        in_both(|store| {
            two_segments(store);
            let first = extents(store).remove(0);
            first.write_at(&[0xff], SEGMENT_HEADER_LEN as u64 + 45).unwrap();
            let error = recover(store, KILLED).unwrap_err().to_string();
            let name = first.place().to_string();
            assert!(error.contains(&name) && error.contains("at byte 64"), "{error}");
            assert!(error.contains(store.anew()), "{error}");
            let (_, numbers) = recover(store, POWER_LOST).unwrap();
            assert_eq!(numbers, [] as [u64; 0]);
        });
    }

    #[test]
    fn what_a_sync_mark_says_was_on_the_device_is_not_cut_even_without_power() {
        in_both(|store| {
            let mut segments = recover(store, KILLED).unwrap().0;
            let mut writer = Writer::new(Tail::default());
            append(&mut segments, &mut writer, 1, false);
            let logical = sealfs_proto::encode(&writer.tail().position);
            let mark = Entry { kind: 2, logical: &logical, ..entry(0) };
            assert_eq!(sync_mark(&mark), Some(writer.tail().position), "kind 2 is a mark");
            writer.append(&mark);
            let batch = writer.take_batch();
            let tail = segments.room(0).unwrap();
            tail.extent.write_at(&batch, tail.used).unwrap();
            tail.extent.write_at(&[0xff], SEGMENT_HEADER_LEN as u64 + 45).unwrap();
            let error = recover(store, POWER_LOST).unwrap_err().to_string();
            assert!(
                error.contains("at byte 64") && error.contains("had been on the device"),
                "{error}"
            );
        });
    }

    #[test]
    fn a_segment_that_was_shortened_is_refused() {
        let (_dir, store) = both().into_iter().next().expect("a directory comes first");
        two_segments(&store);
        let last = extents(&store).pop().unwrap();
        let path = last.place().to_string();
        std::fs::File::options().write(true).open(path).unwrap().set_len(5_000).unwrap();
        for last in [KILLED, POWER_LOST] {
            let error = recover(&store, last).unwrap_err().to_string();
            assert!(
                error.contains("at byte 5000") && error.contains("it was made with"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_torn_entry_before_another_segment_is_refused() {
        in_both(|store| {
            two_segments(store);
            let first = extents(store).remove(0);
            let bytes = first.read().unwrap();
            let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
            let entry_len = (used - SEGMENT_HEADER_LEN) as u64 / 2;
            first.write_at(&[0xff; 4], SEGMENT_HEADER_LEN as u64 + entry_len + 10).unwrap();
            let error = recover(store, KILLED).unwrap_err().to_string();
            assert!(error.contains("segments behind it"), "{error}");
            let (segments, numbers) = recover(store, POWER_LOST).unwrap();
            assert_eq!(numbers, [1]);
            assert_eq!(segments.list.len(), 1);
            assert_eq!(extents(store).len(), 1);
        });
    }

    #[test]
    fn a_missing_segment_is_refused() {
        in_both(|store| {
            let mut segments = two_segments(store);
            let mut writer = Writer::new(Tail { position: 1 << 30, chain: 0 });
            append(&mut segments, &mut writer, 9, true);
            let error = recover(store, KILLED).unwrap_err().to_string();
            assert!(error.contains("entries are missing"), "{error}");
        });
    }

    #[test]
    fn a_segment_without_entries_is_the_beginning_of_a_new_journal() {
        in_both(|store| {
            let mut segments = recover(store, KILLED).unwrap().0;
            segments.roll(spare(&segments, 0), 0).unwrap();
            assert_eq!(extents(store).len(), 1);
            assert!(recover(store, KILLED).unwrap().0.room(0).is_none());
            assert_eq!(extents(store).len(), 0);
        });
    }

    #[test]
    fn a_segment_without_a_whole_header_means_that_power_was_lost() {
        in_both(|store| {
            let mut segments = two_segments(store);
            let tail = segments.room(0).unwrap();
            let first = 2 * (tail.used - SEGMENT_HEADER_LEN as u64);
            let unwritten = spare(&segments, 0).0;
            unwritten.write_at(&[7; 10], 30).unwrap();
            store.publish(JOURNAL, first, unwritten).unwrap();
            assert!(recover(store, KILLED).is_err());
            assert_eq!(recover(store, POWER_LOST).unwrap().1, [1, 2, 3, 4]);
            assert_eq!(extents(store).len(), 2);
        });
    }

    #[test]
    fn a_spare_of_the_last_run_goes() {
        in_both(|store| {
            let segments = two_segments(store);
            spare(&segments, 0);
            assert_eq!(recover(store, KILLED).unwrap().1, [1, 2, 3, 4]);
            assert_eq!(extents(store).len(), 2);
        });
    }

    #[test]
    fn another_cores_segment_is_refused() {
        in_both(|store| {
            two_segments(store);
            let other = SegmentHeader { core: 1, ..OWNER };
            let store = Arc::clone(store);
            let error = Segments::recover(store, JOURNAL, other, KILLED, |_| Ok(())).unwrap_err();
            assert!(error.to_string().contains("another cluster, node, core"), "{error}");
        });
    }

    #[test]
    fn a_file_that_is_not_ours_is_refused() {
        let (dir, store) = both().remove(0);
        std::fs::write(dir.path().join("data/journal/1/0/notes"), "").unwrap();
        assert!(recover(&store, KILLED).unwrap_err().to_string().contains("`notes`"));
    }

    #[test]
    fn a_cut_gives_only_segments_below_and_keeps_the_last() {
        in_both(|store| {
            let mut segments = two_segments(store);
            let places: Vec<_> = segments.list.iter().cloned().collect();
            assert_eq!(segments.cut(places[1].0 - 1), [] as [Place; 0]);
            assert_eq!(segments.cut(u64::MAX), [places[0].1.clone()]);
            assert_eq!(segments.list, &places[1..]);
            store.remove(&[places[0].1.clone()]).unwrap();
            assert_eq!(extents(store).len(), 1);
        });
    }

    #[test]
    fn a_batch_larger_than_a_segment_gets_a_larger_one() {
        in_both(|store| {
            let segments = recover(store, KILLED).unwrap().0;
            assert_eq!(spare(&segments, 3 * SEGMENT_LEN).room(), 3 * SEGMENT_LEN);
        });
    }
}
