//! The disk over a real ring, in a directory and on a device.

use std::sync::Arc;
use std::time::Duration;

use sealfs_meta::journal::{Entry, SegmentHeader, Tail, Writer, entries};
use sealfs_proto::{ClusterId, NodeId, ShardId};
use sealfs_ring::Config;
use sealfs_transport::Region;

use super::*;
use crate::datadir::LastRun;
use crate::store::JournalId;
use crate::store::testing::both;

const OWNER: SegmentHeader =
    SegmentHeader { cluster: ClusterId([1; 16]), node: NodeId(1), core: 0, first: 0 };
const JOURNAL: JournalId = JournalId { generation: 1, core: 0 };

struct World {
    dir: tempfile::TempDir,
    store: Arc<dyn Store>,
    ring: Ring,
    disk: RingDisk,
}

fn recovered(store: &Arc<dyn Store>) -> (Segments, Vec<u64>) {
    let last = LastRun { clean: false, same_boot: true };
    let mut numbers = Vec::new();
    let segments = Segments::recover(Arc::clone(store), JOURNAL, OWNER, last, |bytes| {
        numbers.extend(entries(bytes).map(|entry| entry.number));
        Ok(())
    });
    (segments.unwrap(), numbers)
}

/// One in a directory, one on a device. The volume has 8 MiB.
fn worlds() -> Vec<World> {
    let world = |(dir, store): (tempfile::TempDir, Arc<dyn Store>)| {
        let ring = Ring::new(Config::default()).unwrap();
        let volume = store.volume().unwrap().extent;
        let segments = recovered(&store).0;
        let own = Arc::clone(&store);
        let disk = RingDisk::new(ring.clone(), 0, own, &volume, segments).unwrap();
        World { dir, store, ring, disk }
    };
    both().into_iter().map(world).collect()
}

impl World {
    /// Completions until there are `count`.
    fn wait(&mut self, count: usize) -> Vec<(u64, Result<DiskDone, DiskError>)> {
        let mut done = Vec::new();
        loop {
            done.extend(std::iter::from_fn(|| self.disk.poll()));
            if done.len() >= count {
                return done;
            }
            self.ring.enter(Some(Duration::from_secs(20))).unwrap();
            while let Some(completion) = self.ring.next() {
                self.disk.on_completion(completion);
            }
        }
    }

    fn run(&mut self, op: DiskOp) -> Result<DiskDone, DiskError> {
        self.disk.submit(1, op);
        self.wait(1).remove(0).1
    }
}

fn batch(writer: &mut Writer, number: u64, len: usize) -> Vec<u8> {
    let logical = vec![7; len];
    let entry = Entry {
        position: 0,
        shard: ShardId(0),
        number,
        kind: 1,
        version: 1,
        logical: &logical,
        local: &[],
    };
    writer.append(&entry);
    writer.take_batch()
}

fn filled(len: usize, byte: u8) -> sealfs_transport::Slice {
    let mut region = Region::zeroed(len);
    region.bytes_mut().fill(byte);
    region.freeze()
}

#[test]
fn slices_are_written_one_behind_the_other_and_read_back() {
    for mut world in worlds() {
        let bytes = vec![filled(4_096, 1), filled(1_000, 2), filled(3_096, 3)];
        world.run(DiskOp::Write { offset: 8_192, bytes }).unwrap();
        world.run(DiskOp::SyncVolume).unwrap();
        let read = DiskOp::Read { offset: 8_192, len: 8_192, region: Region::zeroed(8_192) };
        let Ok(DiskDone::Read(region)) = world.run(read) else { panic!("a read gives its region") };
        let bytes = region.bytes();
        assert!(bytes[..4_096].iter().all(|byte| *byte == 1));
        assert!(bytes[4_096..5_096].iter().all(|byte| *byte == 2));
        assert!(bytes[5_096..].iter().all(|byte| *byte == 3));
    }
}

#[test]
fn more_slices_than_one_call_takes_are_all_written() {
    for mut world in worlds() {
        let bytes: Vec<_> = (0..2_500).map(|index| filled(16, index as u8)).collect();
        world.run(DiskOp::Write { offset: 0, bytes }).unwrap();
        let read = DiskOp::Read { offset: 0, len: 40_000, region: Region::zeroed(40_000) };
        let Ok(DiskDone::Read(region)) = world.run(read) else { panic!("a read gives its region") };
        for (index, piece) in region.bytes().chunks(16).enumerate() {
            assert!(piece.iter().all(|byte| *byte == index as u8), "slice {index}");
        }
    }
}

#[test]
fn a_read_behind_the_volume_names_its_bytes() {
    let mut world = worlds().remove(0);
    let read = DiskOp::Read { offset: 8 << 20, len: 4_096, region: Region::zeroed(4_096) };
    let error = world.run(read).unwrap_err();
    assert_eq!(error.what, "read of volume bytes 8388608..8392704");
}

#[test]
fn appends_complete_in_order_and_are_there_after_a_restart() {
    for mut world in worlds() {
        let mut writer = Writer::new(Tail::default());
        for number in 1..=50 {
            let bytes = batch(&mut writer, number, 100);
            world.disk.submit(number, DiskOp::Append { bytes });
        }
        world.disk.submit(51, DiskOp::SyncJournal);
        let ids: Vec<u64> = world.wait(51).iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, (1..=51).collect::<Vec<_>>());
        assert_eq!(recovered(&world.store).1, (1..=50).collect::<Vec<_>>());
    }
}

#[test]
fn a_full_segment_is_followed_by_the_next_and_a_cut_removes_it() {
    for mut world in worlds() {
        let mut writer = Writer::new(Tail::default());
        // 40 MiB: three segments.
        for number in 1..=40 {
            let bytes = batch(&mut writer, number, 1 << 20);
            world.disk.submit(number, DiskOp::Append { bytes });
        }
        let done = world.wait(40);
        assert!(done.iter().all(|(_, result)| result.is_ok()));
        world.run(DiskOp::SyncJournal).unwrap();
        let store = Arc::clone(&world.store);
        let segments = || store.segments(JOURNAL).unwrap().len();
        assert_eq!(segments(), 3);
        assert_eq!(recovered(&world.store).1, (1..=40).collect::<Vec<_>>());
        world.run(DiskOp::Cut { position: writer.tail().position }).unwrap();
        assert_eq!(segments(), 1);
    }
}

#[test]
fn a_batch_larger_than_a_segment_is_written_whole() {
    for mut world in worlds() {
        let mut writer = Writer::new(Tail::default());
        let small = batch(&mut writer, 1, 100);
        let large = (2..=21).flat_map(|number| batch(&mut writer, number, 1 << 20)).collect();
        let last = batch(&mut writer, 22, 100);
        for bytes in [small, large, last] {
            world.run(DiskOp::Append { bytes }).unwrap();
        }
        assert_eq!(recovered(&world.store).1, (1..=22).collect::<Vec<_>>());
    }
}

#[test]
fn after_a_failed_append_everything_fails_with_the_file() {
    let mut world = worlds().remove(0);
    let journal = world.dir.path().join("data/journal/1/0");
    std::fs::remove_dir(&journal).unwrap();
    let mut writer = Writer::new(Tail::default());
    for number in 1..=2 {
        let bytes = batch(&mut writer, number, 100);
        let error = world.run(DiskOp::Append { bytes }).unwrap_err();
        assert!(error.what.contains("journal/1/0/spare.new"), "{error}");
    }
    assert!(world.run(DiskOp::SyncJournal).is_err());
}

#[test]
fn a_spare_that_cannot_be_made_fails_nothing_that_has_room() {
    let mut world = worlds().remove(0);
    let in_the_way = world.dir.path().join("data/journal/1/0/spare.new");
    let mut writer = Writer::new(Tail::default());
    let mut append = |numbers: std::ops::Range<u64>| {
        numbers
            .map(|number| {
                let bytes = batch(&mut writer, number, 1 << 20);
                world.run(DiskOp::Append { bytes }).is_ok()
            })
            .collect::<Vec<_>>()
    };
    assert!(append(1..2)[0]);
    std::fs::create_dir(&in_the_way).unwrap();
    assert!(!append(2..15).contains(&false), "they have room");
    std::fs::remove_dir(&in_the_way).unwrap();
    assert!(!append(15..20).contains(&false), "there is room again");
    std::fs::create_dir(&in_the_way).unwrap();
    assert!(append(20..60).contains(&false), "not for ever");
    std::fs::remove_dir(&in_the_way).unwrap();
    assert_eq!(recovered(&world.store).1[..19], (1..20).collect::<Vec<_>>());
}

#[test]
fn a_device_without_space_for_a_segment_says_so() {
    let mut world = worlds().remove(1);
    let mut writer = Writer::new(Tail::default());
    let mut number = 0;
    let error = loop {
        number += 1;
        assert!(number < 500, "the journal's share of a device has an end");
        let bytes = batch(&mut writer, number, 3 << 20);
        if let Err(error) = world.run(DiskOp::Append { bytes }) {
            break error;
        }
    };
    assert!(error.what.contains("find space") && error.cause.contains("larger one"), "{error}");
    assert!(world.run(DiskOp::SyncJournal).is_err());
}

#[test]
fn snapshots_are_replaced_and_removed() {
    for mut world in worlds() {
        for bytes in
            [Some(vec![vec![1; 100], vec![], vec![3]]), Some(vec![vec![2; 50]]), None, None]
        {
            let shard = ShardId(10);
            world.run(DiskOp::Snapshot { shard, bytes: bytes.clone() }).unwrap();
            let stored = world.store.snapshot(shard).unwrap();
            assert_eq!(stored, bytes.map(|pieces| pieces.concat()));
        }
    }
    let mut world = worlds().remove(0);
    std::fs::remove_dir(world.dir.path().join("data/snapshots")).unwrap();
    let error = world.run(DiskOp::Snapshot { shard: ShardId(1), bytes: Some(vec![vec![1]]) });
    assert!(error.unwrap_err().what.contains("cannot create"));
}
