//! Claims about the whole store, and a world that tries to break them: random changes and reads in flight on several
//! cores of a simulated volume, with crashes, losses of power, snapshots and a full disk.

use sealfs_transport::Region;

use super::*;

mod world;

const SHARDS: u32 = 4_096;
const FILE: Ino = Ino(77);

/// One core with its volume, for claims about single steps.
struct One {
    chunks: Chunks,
    groups: Groups,
    volume: Vec<u8>,
    position: u64,
    records: Vec<(u64, ChunkRecord)>,
    /// The chunk of the file that is looked at.
    index: u64,
}

impl One {
    fn new(blocks: u64) -> Self {
        Self {
            chunks: Chunks::new(SHARDS, blocks, zeros()),
            groups: Groups::new(blocks, vec![]).unwrap(),
            volume: vec![0; blocks as usize * BLOCK],
            position: 0,
            records: Vec::new(),
            index: 0,
        }
    }

    fn change(
        &mut self,
        from: u32,
        to: u32,
        plan: impl Fn(&mut Chunks, &Guard) -> Result<Plan, Refusal>,
    ) -> Result<i64, Refusal> {
        let guard = self.chunks.enter(FILE, self.index, from, to);
        let planned = loop {
            match plan(&mut self.chunks, &guard) {
                Err(Refusal::Space(ask)) => {
                    let loan = self.groups.lend(ask);
                    let is_full = loan.runs.is_empty();
                    self.chunks.lend(loan);
                    if is_full {
                        break Err(Refusal::Space(ask));
                    }
                }
                planned => break planned,
            }
        };
        let result = planned.map(|mut plan| {
            let regions = plan.reads().iter().map(|read| fetch(&self.volume, *read)).collect();
            let writes = plan.fill(regions).expect("the old blocks are intact");
            writes.into_iter().for_each(|write| store(&mut self.volume, &write));
            let record = self.chunks.finish(plan);
            self.position += 1;
            let blocks = self.chunks.apply(self.position, &record, Instant(0)).blocks;
            self.records.push((self.position, record));
            blocks
        });
        assert_eq!(self.chunks.leave(guard), []);
        result
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<i64, Refusal> {
        let payload = Region::new(bytes.to_vec()).freeze();
        let end = offset + bytes.len() as u32;
        self.change(offset, end, |chunks, guard| chunks.plan_write(guard, offset, &payload))
    }

    fn discard(&mut self, from: u32, to: u32, cut: bool) -> i64 {
        let plan = |chunks: &mut Chunks, guard: &Guard| chunks.plan_discard(guard, from, to, cut);
        self.change(from, u32::MAX, plan).expect("a discard finds the space that it needs")
    }

    fn allocate(&mut self, from: u32, to: u32) -> Result<i64, Refusal> {
        self.change(from, to, |chunks, guard| chunks.plan_allocate(guard, from, to))
    }

    fn read(&self, offset: u32, len: u32) -> Result<Vec<u8>, BadBlock> {
        let plan = self.chunks.plan_read(FILE, self.index, offset, len);
        let regions = plan.reads().iter().map(|read| fetch(&self.volume, *read)).collect();
        let length = plan.len() as usize;
        let bytes: Vec<u8> =
            plan.finish(regions)?.iter().flat_map(|slice| slice.bytes().to_vec()).collect();
        assert_eq!(bytes.len(), length);
        Ok(bytes)
    }

    /// The store as it starts after a loss of power, with the last sync mark at `mark`.
    fn recovered(mut self, mark: u64) -> Self {
        let mut replay = Replay::new(SHARDS);
        for (position, record) in &self.records {
            if *position == mark {
                replay.mark(mark);
            }
            replay.record(*position, record.clone());
        }
        loop {
            let suspects = replay.suspects();
            for suspect in &suspects {
                assert!(suspect.position >= mark, "what is below the mark is trusted");
                if !suspect.holds(fetch(&self.volume, suspect.read).bytes()) {
                    replay.reject(suspect.position);
                }
            }
            if suspects.is_empty() {
                break;
            }
        }
        let (chunks, repairs) = replay.finish(self.groups.total(), zeros(), Instant(0));
        self.chunks = chunks;
        self.groups = Groups::new(self.groups.total(), self.chunks.occupied()).unwrap();
        self.records.extend(repairs.into_iter().zip(self.position + 1..).map(|(r, at)| (at, r)));
        let mut again = Replay::new(SHARDS);
        for (position, record) in &self.records {
            again.record(*position, record.clone());
        }
        assert!(
            again.encode_shard(FILE.shard()) == self.chunks.encode_shard(FILE.shard()),
            "the repairs make rejections permanent"
        );
        self
    }

    /// The block of the volume that holds the chunk's first block is lost.
    fn damage(&mut self) {
        let (place, _) = self.chunks.map.chunk((FILE, 0)).unwrap().written(0).unwrap();
        self.volume[place as usize * BLOCK..][..BLOCK].fill(0xdd);
    }

    fn synced(&mut self) {
        let runs = self.chunks.on_synced(self.position + 1, Instant(0));
        self.groups.give_back(runs);
    }
}

fn zeros() -> Slice {
    Region::zeroed(3 * BLOCK).freeze()
}

fn fetch(volume: &[u8], read: VolumeRead) -> Region {
    let from = read.offset as usize;
    Region::new(volume[from..from + read.len as usize].to_vec())
}

fn store(volume: &mut [u8], write: &VolumeWrite) {
    let mut at = write.offset as usize;
    for slice in &write.bytes {
        volume[at..at + slice.len()].copy_from_slice(slice.bytes());
        at += slice.len();
    }
    assert_eq!(at % BLOCK, 0, "whole blocks are written");
}

#[test]
fn the_delta_of_blocks_is_exact() {
    let mut one = One::new(2_048);
    assert_eq!(one.write(100, b"small"), Ok(8));
    assert_eq!(one.write(200, b"same block"), Ok(0));
    assert_eq!(one.write(4_000, &[1; 10_000]), Ok(24));
    assert_eq!(one.allocate(0, 65_536), Ok(96), "four of sixteen blocks were there");
    assert_eq!(one.write(60_000, &[2; 100]), Ok(0), "an allocated block is there already");
    assert_eq!(one.discard(4_096, 12_288, false), -16);
    assert_eq!(one.discard(0, 100, false), 0);
    assert_eq!(one.chunks.used_blocks(), 14);
    assert_eq!(one.discard(5, 0, true), -8 * 13);
    assert_eq!(one.chunks.end(FILE, 1 << 20), 5);
    assert_eq!(one.discard(0, 0, true), -8);
    assert_eq!(one.chunks.next_chunk(FILE, 0), None, "nothing is left of it");
}

#[test]
fn an_append_reads_only_the_block_that_it_continues() {
    let mut one = One::new(2_048);
    one.write(0, &[1; 5_000]).unwrap();
    let guard = one.chunks.enter(FILE, 0, 0, 65_536);
    let payload = Region::zeroed(9_000).freeze();
    let appended = one.chunks.plan_write(&guard, 5_000, &payload).unwrap();
    assert_eq!(appended.reads().len(), 1);
    let aligned = one.chunks.plan_write(&guard, 8_192, &payload).unwrap();
    assert_eq!(aligned.reads().len(), 0);
    let inside = one.chunks.plan_write(&guard, 4_100, &payload.cut(0, 100)).unwrap();
    assert_eq!(inside.reads().len(), 1, "one block is read once, although it is head and tail");
}

#[test]
fn a_whole_write_is_not_copied() {
    let mut one = One::new(2_048);
    let payload = Region::new(vec![3; 8_192]).freeze();
    one.chunks.lend(one.groups.lend(Ask { blocks: 100, reserve: false }));
    let guard = one.chunks.enter(FILE, 0, 0, 8_192);
    let mut plan = one.chunks.plan_write(&guard, 0, &payload).unwrap();
    let writes = plan.fill(vec![]).unwrap();
    let pieces: Vec<*const u8> =
        writes.iter().flat_map(|write| &write.bytes).map(|slice| slice.bytes().as_ptr()).collect();
    assert_eq!(pieces, [payload.bytes().as_ptr()]);
}

#[test]
fn a_trailing_hole_is_cut_from_the_reply() {
    let mut one = One::new(2_048);
    one.write(10_000, &[7; 100]).unwrap();
    assert_eq!(one.read(0, 65_536).unwrap().len(), 10_100);
    assert_eq!(one.read(0, 8_192).unwrap().len(), 0);
    assert_eq!(one.read(10_050, 4_096).unwrap(), [7; 50]);
    assert_eq!(one.read(20_000, 10).unwrap(), [0; 0]);
    one.discard(8_192, 16_384, false);
    assert_eq!(one.read(0, 65_536).unwrap().len(), 0);
    assert_eq!(one.chunks.end(FILE, 1 << 20), 10_100, "a punched hole leaves the end");
}

#[test]
fn a_damaged_block_is_named_and_never_read_or_merged() {
    let mut one = One::new(2_048);
    one.write(0, &[5; 12_288]).unwrap();
    let place = one.chunks.occupied()[0].start + 1;
    one.volume[place as usize * BLOCK + 9] ^= 1;
    let bad = one.read(0, 12_288).unwrap_err();
    assert_eq!((bad.ino, bad.index, bad.block), (FILE, 0, 1));
    assert_eq!(bad.offset, place * BLOCK as u64);
    assert!(one.read(0, 4_096).is_ok() && one.read(8_192, 4_096).is_ok());

    let guard = one.chunks.enter(FILE, 0, 5_000, 5_010);
    let payload = Region::zeroed(10).freeze();
    let mut plan = one.chunks.plan_write(&guard, 5_000, &payload).unwrap();
    let regions = plan.reads().iter().map(|read| fetch(&one.volume, *read)).collect();
    assert_eq!(plan.fill(regions).unwrap_err(), bad);
    one.chunks.abort(plan);
}

#[test]
fn freed_blocks_wait_for_the_mark_and_for_readers() {
    let mut one = One::new(2_048);
    one.write(0, &[1; 4_096]).unwrap();
    let unread = one.chunks.occupied()[0].start;
    one.write(0, &[1; 4_096]).unwrap();
    let old = one.chunks.occupied()[0].start;
    let reader = one.chunks.plan_read(FILE, 0, 0, 4_096);
    one.write(0, &[2; 4_096]).unwrap();
    let position = one.position;
    let is_free = |one: &mut One, block: u64| {
        let runs = one.chunks.recall();
        let found = runs.iter().any(|run| (run.start..run.end()).contains(&block));
        one.chunks.lend(Loan { runs, reserve: 0 });
        found
    };
    assert!(!is_free(&mut one, unread), "it waits for the mark");
    let runs = one.chunks.on_synced(position - 1, Instant(0));
    one.chunks.lend(Loan { runs, reserve: 0 });
    assert!(!is_free(&mut one, unread), "that mark does not cover the record");
    let runs = one.chunks.on_synced(position + 1, Instant(0));
    one.chunks.lend(Loan { runs, reserve: 0 });
    assert!(is_free(&mut one, unread), "the read began later");
    assert!(!is_free(&mut one, old), "the read needs it");
    let regions = reader.reads().iter().map(|read| fetch(&one.volume, *read)).collect();
    assert_eq!(reader.finish(regions).unwrap()[0].bytes(), [1; 4_096]);
    assert!(is_free(&mut one, old));
}

#[test]
fn a_full_volume_still_overwrites_and_discards_for_ever() {
    let mut one = One::new(1_024);
    let full = loop {
        match one.write(0, &[9; 1 << 20]) {
            Ok(_) => one.index += 1,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(full, Refusal::Space(Ask { blocks: 256, reserve: false }));
    let rest = (0..256).find(|block| one.write(block * 4_096, &[9; 4_096]).is_err());
    assert_eq!((one.index, rest), (3, Some(192)), "the reserve is kept back");
    one.index = 0;
    assert_eq!(one.allocate(0, 4_096), Ok(0), "what is there needs no space");
    let mut refused = 0;
    for round in 0..200_u32 {
        let offset = round * 7_919 % 900_000;
        match one.write(offset, &[round as u8; 30_000]) {
            Ok(blocks) => assert_eq!(blocks, 0),
            Err(_) => {
                refused += 1;
                assert_eq!(one.chunks.sync_at(), Some(Instant(0)), "space is short");
                one.synced();
                assert_eq!(one.write(offset, &[round as u8; 30_000]), Ok(0));
            }
        }
        assert_eq!(one.read(offset, 30_000).unwrap(), [round as u8; 30_000]);
    }
    assert!(refused > 10, "the space was short");
    one.synced();
    one.index = 3;
    assert!(one.write(192 * 4_096, &[9; 4_096]).is_err(), "the reserve was only lent");
    one.index = 0;
    assert_eq!(one.discard(3, 0, true), -8 * 255);
}

#[test]
fn a_rejected_record_gives_way_to_what_was_before_it() {
    let mut one = One::new(2_048);
    one.write(0, &[1; 9_000]).unwrap();
    one.write(0, &[2; 5_000]).unwrap();
    one.damage();
    one.write(0, &[3; 4_096]).unwrap();
    one.damage();
    one.write(4_096, &[4; 4_096]).unwrap();
    let one = one.recovered(2);
    assert_eq!(one.read(0, 4_096).unwrap(), [1; 4_096]);
    assert_eq!(one.read(4_096, 4_096).unwrap(), [4; 4_096]);
    assert_eq!(one.read(8_192, 4_096).unwrap(), [1; 808]);
}

#[test]
fn a_rejected_cut_hides_no_bytes() {
    let mut one = One::new(2_048);
    one.write(0, &[1; 9_000]).unwrap();
    one.discard(100, 0, true);
    one.damage();
    one.allocate(40_000, 50_000).unwrap();
    let mut one = one.recovered(2);
    assert_eq!(one.read(0, 65_536).unwrap(), [1; 9_000]);
    one.write(20_000, &[2; 1]).unwrap();
    assert_eq!(one.read(9_000, 11_000).unwrap(), [0; 11_000]);
}

#[test]
fn a_record_that_was_written_whole_is_kept() {
    let mut one = One::new(2_048);
    one.write(0, &[1; 9_000]).unwrap();
    one.write(0, &[2; 5_000]).unwrap();
    let one = one.recovered(1);
    assert_eq!(one.records.len(), 2, "nothing was repaired");
    assert_eq!(one.read(0, 5_000).unwrap(), [2; 5_000]);
}

#[test]
fn syncs_come_after_five_seconds_or_much() {
    let mut one = One::new(2_048);
    assert_eq!(one.chunks.sync_at(), None);
    one.write(0, &[1; 4_096]).unwrap();
    assert_eq!(one.chunks.sync_at(), Some(Instant(0).after_ms(30_000)));
    one.write(0, &[1; 4_096]).unwrap();
    assert_eq!(one.chunks.sync_at(), Some(Instant(0).after_ms(5_000)));
    one.synced();
    assert_eq!(one.chunks.sync_at(), None);
}

#[test]
fn extents_are_merged_clipped_and_continued() {
    let mut one = One::new(4_096);
    one.write(0, &[1; 100]).unwrap();
    one.write(8_192, &[1; 5_000]).unwrap();
    one.allocate(20_480, 40_960).unwrap();
    let all = one.chunks.extents(FILE, 1 << 20, 0, u64::MAX);
    assert_eq!(all, (vec![(0, 4_096), (8_192, 13_192)], None));
    let some = one.chunks.extents(FILE, 1 << 20, 50, 9_000);
    assert_eq!(some, (vec![(50, 4_096), (8_192, 9_000)], None));
}

#[test]
fn more_extents_than_a_reply_holds_are_asked_for_again() {
    let mut one = One::new(16_384);
    while one.index < 40 {
        for block in (0..256).step_by(2) {
            one.write(block * 4_096, &[1; 4_096]).unwrap();
        }
        one.index += 1;
    }
    let (ranges, next) = one.chunks.extents(FILE, 1 << 20, 0, u64::MAX);
    assert_eq!(ranges.len(), limits::EXTENTS_MAX);
    let (rest, end) = one.chunks.extents(FILE, 1 << 20, next.unwrap(), u64::MAX);
    assert_eq!((rest.len(), end), (40 * 128 - limits::EXTENTS_MAX, None));
    assert_eq!((rest[0].0, rest[0].1), (next.unwrap(), next.unwrap() + 4_096));
}

#[test]
fn a_snapshot_of_equal_states_has_equal_bytes_and_damage_is_refused() {
    let (mut one, mut two) = (One::new(2_048), One::new(2_048));
    for one in [&mut one, &mut two] {
        one.write(0, &[1; 9_000]).unwrap();
        one.allocate(0, 40_000).unwrap();
    }
    let bytes = one.chunks.encode_shard(FILE.shard());
    assert_eq!(two.chunks.encode_shard(FILE.shard()), bytes);
    assert!(one.chunks.encode_shard(ShardId(5)).is_empty());
    let mut replay = Replay::new(SHARDS);
    replay.snapshot(FILE.shard(), &bytes).unwrap();
    assert_eq!(replay.encode_shard(FILE.shard()), bytes);
    assert!(replay.snapshot(FILE.shard(), &bytes).is_err(), "a chunk comes once");
    assert!(Replay::new(SHARDS).snapshot(ShardId(5), &bytes).is_err());
    for len in 1..bytes.len() {
        assert!(Replay::new(SHARDS).snapshot(FILE.shard(), &bytes[..len]).is_err());
    }
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x81;
        let mut replay = Replay::new(SHARDS);
        if replay.snapshot(FILE.shard(), &damaged).is_ok() {
            let (chunks, _) = replay.finish(2_048, zeros(), Instant(0));
            let _ = Groups::new(2_048, chunks.occupied());
        }
    }
}
