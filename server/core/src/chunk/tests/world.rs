//! A node with a simulated volume and several cores, whose files are compared with plain bytes.
//!
//! Changes advance one step at a time (turn, old blocks read, each volume write, record), so that every crash comes
//! between any two steps of several changes. Three kinds of end: the process dies (all that was written stays), the power
//! goes (any unsynced block and any tail of a journal may be lost), the node restarts with another number of cores.

use std::collections::{BTreeMap, VecDeque};

use fastrand::Rng;
use sealfs_proto::chunk_shard;
use sealfs_transport::Region;

use super::super::*;
use super::{SHARDS, fetch, store, zeros};

const CHUNK: usize = 64 * 1024;
const FILES: u64 = 3;
const CHUNKS: u64 = 4;

type Key = (Ino, u64);

/// What a chunk must read as.
#[derive(Clone, PartialEq, Eq)]
struct Model {
    bytes: Vec<u8>,
    end: u32,
}

struct World {
    rng: Rng,
    volume: Vec<u8>,
    /// What of the volume would survive a loss of power for certain.
    device: Vec<u8>,
    groups: Groups,
    cores: Vec<Core>,
    model: BTreeMap<Key, Model>,
    /// What each chunk was since its core's last sync, the present included.
    history: BTreeMap<Key, Vec<Model>>,
    changes: Vec<Op>,
    reads: Vec<Read>,
    /// A snapshot that is being taken: of which core, what it must become, what it is so far.
    taking: Option<(usize, Vec<u8>, Vec<u8>)>,
    now: Instant,
    position: u64,
    tally: Tally,
}

struct Core {
    chunks: Chunks,
    journal: Vec<(u64, Entry)>,
    /// Entries that are on the device.
    durable: usize,
    snapshots: BTreeMap<ShardId, (u64, Vec<u8>)>,
    /// Syncs that are done but have no mark yet.
    syncs: VecDeque<u64>,
}

enum Entry {
    Record(Vec<u8>, Vec<u8>),
    Mark(u64),
}

struct Op {
    guard: Guard,
    key: Key,
    kind: Kind,
    stage: Stage,
}

#[derive(Clone)]
enum Kind {
    Write { offset: u32, payload: Slice },
    Discard { from: u32, to: u32, cut: bool },
    Allocate { from: u32, to: u32 },
}

enum Stage {
    Waiting,
    Planned(Plan),
    Writing(Plan, Vec<VolumeWrite>),
}

struct Read {
    plan: ReadPlan,
    offset: usize,
    expected: Vec<u8>,
}

/// What the runs have exercised, so that a test that became empty is noticed.
#[derive(Debug, Default)]
struct Tally {
    applied: u32,
    full: u32,
    rejected: u32,
    busy: u32,
    slices: u32,
}

impl World {
    fn new(seed: u64, cores: usize) -> Self {
        let total = [400, 150][seed as usize / 3 % 2];
        let volume = vec![0xee; total as usize * BLOCK];
        let mut world = Self {
            rng: Rng::with_seed(seed),
            device: volume.clone(),
            volume,
            groups: Groups::new(total, vec![]).unwrap(),
            cores: Vec::new(),
            model: BTreeMap::new(),
            history: BTreeMap::new(),
            changes: Vec::new(),
            reads: Vec::new(),
            taking: None,
            now: Instant(1),
            position: 1,
            tally: Tally::default(),
        };
        let replays = (0..cores).map(|_| Replay::new(SHARDS)).collect();
        world.start(replays);
        world
    }

    fn core_of(&self, key: Key) -> usize {
        usize::from(chunk_shard(key.0, key.1, SHARDS).0) % self.cores.len()
    }

    /// The chunks of a core that were ever written.
    fn keys_of(&self, core: usize) -> Vec<Key> {
        self.model.keys().copied().filter(|key| self.core_of(*key) == core).collect()
    }

    fn step(&mut self) {
        self.now.0 += 1 + self.rng.u64(..50_000_000);
        match self.rng.u32(..100) {
            0..30 if self.changes.len() < 12 => self.begin(),
            30..40 if self.reads.len() < 6 => self.begin_read(),
            40..50 => self.end_read(),
            50..52 => self.sync(),
            52..57 => self.mark(),
            57 => self.snapshot(),
            58 => self.abort(),
            _ => self.advance(),
        }
        self.take_slice();
        for core in 0..self.cores.len() {
            if let Some(ask) = self.cores[core].chunks.ask() {
                let loan = self.groups.lend(ask);
                self.cores[core].chunks.lend(loan);
            }
            let due = self.cores[core].chunks.sync_at().is_some_and(|at| at <= self.now);
            if due && self.cores[core].syncs.is_empty() {
                self.sync_core(core);
            }
        }
    }

    /// Changes without a sync, but for those that a full volume needs.
    fn change_much(&mut self) {
        for _ in 0..200 {
            match self.changes.len() {
                0..8 => self.begin(),
                _ => self.advance(),
            }
        }
    }

    fn begin(&mut self) {
        let key = (Ino(1 + self.rng.u64(..FILES)), self.rng.u64(..CHUNKS));
        let size = [60, 5_000, CHUNK as u32][self.rng.usize(..3)];
        let from = self.rng.u32(..CHUNK as u32);
        let aligned = self.rng.bool();
        let from = if aligned { from / 4_096 * 4_096 } else { from };
        let to = (from + 1 + self.rng.u32(..size)).min(CHUNK as u32);
        let to = if aligned { to.next_multiple_of(4_096) } else { to };
        let (kind, end) = match self.rng.u32(..10) {
            0..6 => {
                let bytes: Vec<u8> = (from..to).map(|_| self.rng.u8(..)).collect();
                (Kind::Write { offset: from, payload: Region::new(bytes).freeze() }, to)
            }
            6 => (Kind::Discard { from, to, cut: false }, to),
            7 => (Kind::Discard { from: 0, to: u32::MAX, cut: true }, u32::MAX),
            8 => (Kind::Discard { from, to: u32::MAX, cut: true }, u32::MAX),
            _ => (Kind::Allocate { from, to }, to),
        };
        let from = if let Kind::Discard { from, .. } = kind { from } else { from };
        let core = self.core_of(key);
        let guard = self.cores[core].chunks.enter(key.0, key.1, from, end);
        self.changes.push(Op { guard, key, kind, stage: Stage::Waiting });
    }

    /// One step of one change.
    fn advance(&mut self) {
        if self.changes.is_empty() {
            return;
        }
        let op = self.changes.swap_remove(self.rng.usize(..self.changes.len()));
        let core = self.core_of(op.key);
        let Op { guard, key, kind, stage } = op;
        let stage = match stage {
            Stage::Waiting if !self.cores[core].chunks.ready(&guard) => {
                self.tally.busy += 1;
                Stage::Waiting
            }
            Stage::Waiting => match self.plan(core, &guard, &kind) {
                Some(plan) => Stage::Planned(plan),
                None => return self.leave(core, guard),
            },
            Stage::Planned(mut plan) => {
                let regions = plan.reads().iter().map(|read| fetch(&self.volume, *read)).collect();
                let writes = plan.fill(regions).expect("old blocks are intact");
                if plan.is_empty() {
                    self.cores[core].chunks.abort(plan);
                    return self.leave(core, guard);
                }
                Stage::Writing(plan, writes)
            }
            Stage::Writing(plan, mut writes) => match writes.pop() {
                Some(write) => {
                    store(&mut self.volume, &write);
                    Stage::Writing(plan, writes)
                }
                None => {
                    self.record(core, key, &kind, plan);
                    return self.leave(core, guard);
                }
            },
        };
        self.changes.push(Op { guard, key, kind, stage });
    }

    /// `None`: the node is full.
    fn plan(&mut self, core: usize, guard: &Guard, kind: &Kind) -> Option<Plan> {
        for attempt in 0.. {
            let chunks = &mut self.cores[core].chunks;
            let planned = match kind {
                Kind::Write { offset, payload } => chunks.plan_write(guard, *offset, payload),
                Kind::Discard { from, to, cut } => chunks.plan_discard(guard, *from, *to, *cut),
                Kind::Allocate { from, to } => chunks.plan_allocate(guard, *from, *to),
            };
            let ask = match planned {
                Ok(plan) => return Some(plan),
                Err(Refusal::Space(ask)) => ask,
                Err(Refusal::Errno(errno)) => panic!("a valid change is refused with {errno}"),
            };
            let loan = self.groups.lend(ask);
            let is_empty = loan.runs.is_empty();
            self.cores[core].chunks.lend(loan);
            if is_empty {
                if attempt > 8 {
                    self.tally.full += 1;
                    let idle = self.changes.is_empty() && self.reads.is_empty();
                    assert!(!(idle && ask.reserve), "overwriting never fails for space");
                    let spare = self.groups.total() - self.used() - self.groups.reserve();
                    assert!(!idle || spare < u64::from(ask.blocks), "{spare} blocks are spare");
                    return None;
                }
                for core in 0..self.cores.len() {
                    let runs = self.cores[core].chunks.recall();
                    self.groups.give_back(runs);
                    if !self.mark_core(core) {
                        self.sync_core(core);
                    }
                }
            }
        }
        None
    }

    fn record(&mut self, core: usize, key: Key, kind: &Kind, plan: Plan) {
        let position = self.next_position();
        let owner = &mut self.cores[core];
        let record = owner.chunks.finish(plan);
        let entry = Entry::Record(record.logical(), record.local());
        owner.journal.push((position, entry));
        let before = owner.chunks.used_blocks() as i64;
        let applied = owner.chunks.apply(position, &record, self.now);
        assert_eq!(applied.blocks, (owner.chunks.used_blocks() as i64 - before) * 8);
        let empty = || Model { bytes: vec![0; CHUNK], end: 0 };
        let model = self.model.entry(key).or_insert_with(empty);
        match kind {
            Kind::Write { offset, payload } => {
                let from = *offset as usize;
                model.bytes[from..from + payload.len()].copy_from_slice(payload.bytes());
                model.end = model.end.max(offset + payload.len() as u32);
            }
            Kind::Discard { from, to, cut } => {
                let to = if *cut { CHUNK } else { (*to as usize).min(CHUNK) };
                model.bytes[*from as usize..to].fill(0);
                model.end = if *cut { model.end.min(*from) } else { model.end };
            }
            Kind::Allocate { .. } => {}
        }
        self.history.entry(key).or_insert_with(|| vec![empty()]).push(model.clone());
        self.tally.applied += 1;
    }

    fn leave(&mut self, core: usize, guard: Guard) {
        for woken in self.cores[core].chunks.leave(guard) {
            let next = self
                .changes
                .iter()
                .find(|op| op.guard.id() == woken && { self.core_of(op.key) == core });
            let next = next.expect("those in the queue are changes in flight");
            assert!(self.cores[core].chunks.ready(&next.guard));
        }
    }

    /// Gives up a change before its record.
    fn abort(&mut self) {
        let Some(op) = self.changes.pop() else { return };
        let core = self.core_of(op.key);
        match op.stage {
            Stage::Waiting => {}
            Stage::Planned(plan) | Stage::Writing(plan, _) => self.cores[core].chunks.abort(plan),
        }
        self.leave(core, op.guard);
    }

    fn begin_read(&mut self) {
        let key = (Ino(1 + self.rng.u64(..FILES)), self.rng.u64(..CHUNKS));
        let offset = self.rng.u32(..CHUNK as u32);
        let len = 1 + self.rng.u32(..CHUNK as u32 - offset);
        let plan = self.cores[self.core_of(key)].chunks.plan_read(key.0, key.1, offset, len);
        let (from, to) = (offset as usize, (offset + len) as usize);
        let expected =
            self.model.get(&key).map_or(vec![0; to - from], |m| m.bytes[from..to].to_vec());
        self.reads.push(Read { plan, offset: from, expected });
    }

    fn end_read(&mut self) {
        if self.reads.is_empty() {
            return;
        }
        let Read { plan, offset, mut expected } =
            self.reads.swap_remove(self.rng.usize(..self.reads.len()));
        let regions = plan.reads().iter().map(|read| fetch(&self.volume, *read)).collect();
        let len = plan.len() as usize;
        let bytes: Vec<u8> = plan
            .finish(regions)
            .expect("a read sees what was written before it was planned")
            .iter()
            .flat_map(|slice| slice.bytes().to_vec())
            .collect();
        assert_eq!(bytes.len(), len);
        assert!(expected.split_off(len).iter().all(|byte| *byte == 0), "only zeros are cut");
        assert!(bytes == expected, "the read at {offset} sees the state of its planning");
    }

    fn sync(&mut self) {
        let core = self.rng.usize(..self.cores.len());
        self.sync_core(core);
    }

    fn sync_core(&mut self, core: usize) {
        self.device.copy_from_slice(&self.volume);
        let end = self.position;
        let owner = &mut self.cores[core];
        owner.durable = owner.journal.len();
        owner.syncs.push_back(end);
        for key in self.keys_of(core) {
            self.history.insert(key, vec![self.model[&key].clone()]);
        }
    }

    fn mark(&mut self) {
        let core = self.rng.usize(..self.cores.len());
        self.mark_core(core);
    }

    fn mark_core(&mut self, core: usize) -> bool {
        let Some(end) = self.cores[core].syncs.pop_front() else { return false };
        let position = self.next_position();
        let owner = &mut self.cores[core];
        owner.journal.push((position, Entry::Mark(end)));
        // Nothing is reused before the mark is on the device, too, and with it the records before it.
        owner.durable = owner.journal.len();
        let runs = owner.chunks.on_synced(end, self.now);
        self.groups.give_back(runs);
        self.conserve();
        true
    }

    /// A snapshot of all shards of a core; the volume is synced between its encoding and its storing.
    fn snapshot(&mut self) {
        let core = self.rng.usize(..self.cores.len());
        let position = self.position;
        for key in self.keys_of(core) {
            let shard = chunk_shard(key.0, key.1, SHARDS);
            let owner = &mut self.cores[core];
            owner.snapshots.insert(shard, (position, owner.chunks.encode_shard(shard)));
            self.history.insert(key, vec![self.model[&key].clone()]);
        }
        self.device.copy_from_slice(&self.volume);
    }

    /// Goes on with a snapshot in slices: whatever changes meanwhile, it is what it was at its beginning.
    fn take_slice(&mut self) {
        let Some((core, whole, out)) = &mut self.taking else {
            let core = self.rng.usize(..self.cores.len());
            let Some(key) = self.rng.choice(self.keys_of(core)) else { return };
            let shard = chunk_shard(key.0, key.1, SHARDS);
            let chunks = &mut self.cores[core].chunks;
            chunks.begin_snapshot(shard);
            self.taking = Some((core, chunks.encode_shard(shard), Vec::new()));
            return;
        };
        let mut room = self.rng.usize(1..600);
        if self.cores[*core].chunks.snapshot_slice(out, &mut room) {
            assert!(out == whole, "a snapshot in slices is that of its beginning");
            self.tally.slices += u32::from(!out.is_empty());
            self.taking = None;
        }
    }

    fn next_position(&mut self) -> u64 {
        self.position += 1;
        self.position - 1
    }

    fn used(&self) -> u64 {
        self.cores.iter().map(|core| core.chunks.used_blocks()).sum()
    }

    /// Every block is in exactly one place.
    fn conserve(&self) {
        let occupied = self.cores.iter().flat_map(|core| core.chunks.occupied()).collect();
        Groups::new(self.groups.total(), occupied).expect("no block has two owners");
        let free = self.groups.total() - self.used();
        let planned: u64 = self
            .changes
            .iter()
            .map(|op| match &op.stage {
                Stage::Waiting => 0,
                Stage::Planned(plan) | Stage::Writing(plan, _) => plan.blocks(),
            })
            .sum();
        let held: u64 = self.cores.iter().map(|core| core.chunks.blocks.held()).sum();
        assert_eq!(self.groups.free() + held + planned, free, "no block is lost");
    }

    /// Every chunk reads as `check` wants.
    fn compare(&mut self, check: impl Fn(&Key, &Model)) {
        for key in (1..=FILES).flat_map(|ino| (0..CHUNKS).map(move |index| (Ino(ino), index))) {
            let chunks = &self.cores[self.core_of(key)].chunks;
            let plan = chunks.plan_read(key.0, key.1, 0, CHUNK as u32);
            let regions = plan.reads().iter().map(|read| fetch(&self.volume, *read)).collect();
            let slices = plan.finish(regions).expect("every block has its checksum");
            let mut bytes: Vec<u8> =
                slices.iter().flat_map(|slice| slice.bytes().to_vec()).collect();
            bytes.resize(CHUNK, 0);
            let (ranges, next) = chunks.extents(key.0, CHUNK as u32, 0, u64::MAX);
            let base = key.1 as usize * CHUNK;
            let is_data = |at: usize| {
                let at = (base + at) as u64;
                ranges.iter().any(|(from, to)| (*from..*to).contains(&at))
            };
            let data = bytes.iter().enumerate().filter(|(_, byte)| **byte != 0);
            assert!(data.step_by(97).all(|(at, _)| is_data(at)), "data lies in extents");
            assert_eq!(next, None);
            let end = chunks.map.chunk(key).map_or(0, |chunk| chunk.len);
            check(&key, &Model { bytes, end });
        }
    }

    /// Replays the journals. `durable`: only so many entries of each are there.
    fn replay(&self, durable: &[usize], process: bool) -> Vec<Replay> {
        let replays = self.cores.iter().zip(durable).map(|(core, durable)| {
            let mut replay = Replay::new(SHARDS);
            for (shard, (_, bytes)) in &core.snapshots {
                replay.snapshot(*shard, bytes).unwrap();
            }
            for (position, entry) in &core.journal[..*durable] {
                match entry {
                    Entry::Mark(end) => replay.mark(*end),
                    Entry::Record(logical, local) => {
                        let record = ChunkRecord::decode(logical, local).unwrap();
                        let shard = chunk_shard(record.ino(), record.index(), SHARDS);
                        if core.snapshots.get(&shard).is_none_or(|(at, _)| position >= at) {
                            replay.record(*position, record);
                        }
                    }
                }
            }
            if process {
                for shard in (0..SHARDS).map(|shard| ShardId(shard as u16)) {
                    assert!(replay.encode_shard(shard) == core.chunks.encode_shard(shard));
                }
            }
            replay
        });
        replays.collect()
    }

    /// The cores begin with what they replayed, which nobody syncs; only repairs are on the device before they serve.
    fn start(&mut self, replays: Vec<Replay>) {
        let mut old = std::mem::take(&mut self.cores).into_iter();
        self.changes.clear();
        self.reads.clear();
        self.taking = None;
        for replay in replays {
            let (chunks, repairs) = replay.finish(self.groups.total(), zeros(), self.now);
            let (mut journal, mut durable, snapshots) = old
                .next()
                .map_or_else(Default::default, |core| (core.journal, core.durable, core.snapshots));
            for record in repairs {
                journal.push((self.position, Entry::Record(record.logical(), record.local())));
                self.position += 1;
                durable = journal.len();
            }
            let syncs = VecDeque::new();
            self.cores.push(Core { chunks, journal, durable, snapshots, syncs });
        }
        let occupied = self.cores.iter().flat_map(|core| core.chunks.occupied()).collect();
        self.groups = Groups::new(self.groups.total(), occupied).expect("no block has two owners");
        self.conserve();
    }

    /// What there is is all that may be found from now on.
    fn on_device(&mut self) {
        self.device.copy_from_slice(&self.volume);
        self.history = self.model.iter().map(|(key, model)| (*key, vec![model.clone()])).collect();
    }

    fn kill(&mut self) {
        let durable: Vec<usize> = self.cores.iter().map(|core| core.journal.len()).collect();
        let replays = self.replay(&durable, true);
        self.start(replays);
        let model = self.model.clone();
        self.compare(|key, found| {
            let empty = Model { bytes: vec![0; CHUNK], end: 0 };
            assert!(found == model.get(key).unwrap_or(&empty), "{key:?} is what was acknowledged");
        });
    }

    fn lose_power(&mut self) {
        for block in 0..self.groups.total() as usize {
            if self.rng.bool() {
                let bytes = block * BLOCK..(block + 1) * BLOCK;
                self.volume[bytes.clone()].copy_from_slice(&self.device[bytes]);
            }
        }
        let mut durable = Vec::new();
        for core in &mut self.cores {
            let keep = self.rng.usize(core.durable..=core.journal.len());
            core.journal.truncate(keep);
            core.durable = keep;
            durable.push(keep);
        }
        let mut replays = self.replay(&durable, false);
        for replay in &mut replays {
            self.tally.rejected += replay.verify(|read, bytes| {
                bytes.copy_from_slice(fetch(&self.volume, read).bytes());
                Ok(())
            });
        }
        let history = std::mem::take(&mut self.history);
        self.start(replays);
        let found = std::cell::RefCell::new(BTreeMap::new());
        self.compare(|key, model| {
            let empty = [Model { bytes: vec![0; CHUNK], end: 0 }];
            let states = history.get(key).map_or(&empty[..], |states| &states[..]);
            for from in (0..CHUNK).step_by(BLOCK) {
                let block = &model.bytes[from..from + BLOCK];
                let known = states.iter().any(|state| state.bytes[from..from + BLOCK] == *block);
                assert!(known, "{key:?} at {from} is something that it was since the last sync");
            }
            found.borrow_mut().insert(*key, model.clone());
        });
        self.model = found.into_inner();
        self.on_device();
    }

    /// An orderly stop and a start with another number of cores: by snapshots, journals dropped.
    fn restart(&mut self, cores: usize) {
        let mut replays: Vec<Replay> = (0..cores).map(|_| Replay::new(SHARDS)).collect();
        let mut snapshots: Vec<BTreeMap<_, _>> = vec![BTreeMap::new(); cores];
        for shard in (0..SHARDS).map(|shard| ShardId(shard as u16)) {
            let target = usize::from(shard.0) % cores;
            for core in &self.cores {
                let bytes = core.chunks.encode_shard(shard);
                if !bytes.is_empty() {
                    replays[target].snapshot(shard, &bytes).unwrap();
                    snapshots[target].insert(shard, (self.position, bytes));
                }
            }
        }
        self.cores.clear();
        self.start(replays);
        self.on_device();
        for (core, snapshots) in self.cores.iter_mut().zip(snapshots) {
            core.snapshots = snapshots;
        }
    }
}

fn run(seeds: std::ops::Range<u64>, end: fn(&mut World)) -> Tally {
    let mut total = Tally::default();
    for seed in seeds {
        let mut world = World::new(seed, 1 + seed as usize % 3);
        for _ in 0..4 {
            for _ in 0..world.rng.u32(100..500) {
                world.step();
            }
            end(&mut world);
        }
        total.applied += world.tally.applied;
        total.full += world.tally.full;
        total.rejected += world.tally.rejected;
        total.busy += world.tally.busy;
        total.slices += world.tally.slices;
    }
    total
}

#[test]
fn files_are_what_was_written_after_any_kill() {
    let tally = run(0..60, World::kill);
    assert!(tally.applied > 1_000 && tally.full > 10 && tally.busy > 100, "{tally:?}");
    assert!(tally.slices > 100, "{tally:?}");
}

#[test]
fn files_are_old_or_new_after_a_loss_of_power() {
    let tally = run(100..160, World::lose_power);
    assert!(tally.applied > 1_000 && tally.rejected > 50, "{tally:?}");
}

#[test]
fn what_a_kill_left_unsynced_is_old_or_new_after_a_loss_of_power() {
    let tally = run(300..330, |world| {
        world.change_much();
        world.kill();
        world.change_much();
        world.lose_power();
    });
    assert!(tally.applied > 1_000 && tally.rejected > 50, "{tally:?}");
}

#[test]
fn kills_and_losses_of_power_mix_and_the_number_of_cores_changes() {
    let tally = run(200..260, |world| match world.rng.u32(..3) {
        0 => world.kill(),
        1 => world.lose_power(),
        _ => {
            let cores = world.rng.usize(1..4);
            world.restart(cores);
            let model = world.model.clone();
            world.compare(|key, found| {
                let empty = Model { bytes: vec![0; CHUNK], end: 0 };
                assert!(found == model.get(key).unwrap_or(&empty), "{key:?} moved unchanged");
            });
        }
    });
    assert!(tally.applied > 1_000, "{tally:?}");
}
