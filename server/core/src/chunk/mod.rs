//! The chunk store: where the bytes of files lie in the volume, and what they must read as.
//!
//! One [`Chunks`] per core holds the chunks of all the core's shards. It does no I/O: it plans reads and writes of the
//! volume, and its callers carry them out. A write goes to fresh blocks; when the volume write has completed its
//! [`ChunkRecord`] is journaled and applied, and the blocks that it replaces wait until the record is on the device.
//! So a crash between any two steps leaves either the old data or the new.
//!
//! ```text
//! change: enter -> ready -> plan_* -> [read old blocks] -> Plan::fill -> [volume writes] -> finish -> [append] -> apply -> leave
//! read:   plan_read -> [volume reads] -> ReadPlan::finish
//! sync:   end = journal's end; SyncVolume; SyncJournal; append a mark that names `end`; on_synced(end)
//! space:  Refusal::Space(ask) -> Groups::lend -> Chunks::lend -> plan again
//! start:  Replay::{snapshot, record, mark}* -> suspects/reject -> finish -> Groups::new over all cores' Chunks::used
//! ```
//!
//! 1. A block is in exactly one place: the map (one extent), a plan, the pending list, a core's free runs, or the node's
//!    [`Groups`].
//! 2. A freed block is reused only after a sync mark covers the record that freed it, and after every read planned before
//!    it was freed has ended.
//! 3. [`Chunks::apply`] is total, is the only change of the map, and is the same at replay.
//! 4. A written block has a CRC32C over its 4 KiB, checked whenever it comes from the device. Bytes of a written block that
//!    nobody wrote are zeros.
//! 5. Free space is what the maps of all the node's cores do not name.
//!
//! It keeps no cache of data, it does not order changes of different chunks, and it does not know sessions.

mod record;

pub use record::{BlockState, Change, ChunkRecord, Run};

use sealfs_proto::{Corrupt, Errno, Ino, ShardId};
use sealfs_transport::{Instant, Region, Slice};

/// Names a guard while it is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuardId(u64);

/// The right to change a range of one chunk, or a place in the queue for it. Changes of one chunk that touch a common block
/// are serialised in the order in which they entered. Given back by [`Chunks::leave`]; a guard that is only dropped
/// blocks its range for ever.
#[derive(Debug)]
#[must_use]
pub struct Guard {
    id: GuardId,
}

impl Guard {
    /// Its name.
    #[must_use]
    pub fn id(&self) -> GuardId {
        self.id
    }
}

/// Why something was not planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It can never be done.
    Errno(Errno),
    /// This core has too few free blocks. Ask [`Groups::lend`]; if that has none either, sync (freed blocks may be waiting
    /// for it, here or on other cores) and recall the free blocks of other cores; if that helps nothing, it is ENOSPC.
    Space(Ask),
}

/// How many blocks a core needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// At least so many.
    pub blocks: u32,
    /// For overwriting and discarding: the reserve may be used.
    pub reserve: bool,
}

/// Blocks that [`Groups`] lends to a core.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Loan {
    /// The blocks; none: there are none.
    pub runs: Vec<Run>,
    /// How many of them are taken from the reserve.
    pub reserve: u32,
}

/// The node's free blocks that no core has borrowed. One per node, owned by core 0.
#[derive(Debug)]
pub struct Groups {}

impl Groups {
    /// The ledger of a volume of `total` blocks of which `used` are named by the maps of all cores. Refuses two extents on
    /// one block, and blocks beyond the volume. Cost: a sort of `used`.
    pub fn new(total: u64, used: Vec<Run>) -> Result<Self, Corrupt> {
        let _ = (total, used);
        unimplemented!()
    }

    /// Lends at least `ask.blocks` (a whole group if there is one), or fewer or nothing when the node has no more.
    pub fn lend(&mut self, ask: Ask) -> Loan {
        let _ = ask;
        unimplemented!()
    }

    /// Takes back what a core does not need: what [`Chunks::on_synced`] and [`Chunks::recall`] give.
    pub fn give_back(&mut self, runs: Vec<Run>) {
        let _ = runs;
        unimplemented!()
    }

    /// Blocks of the volume.
    #[must_use]
    pub fn total(&self) -> u64 {
        unimplemented!()
    }

    /// Blocks kept back for overwriting and discarding: 1 %, at least 64 MiB, less in a volume below 1 GiB.
    #[must_use]
    pub fn reserve(&self) -> u64 {
        unimplemented!()
    }
}

/// A piece of the volume to be read into a region of `len` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeRead {
    /// Byte in the volume.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

/// Bytes to be written to the volume.
#[derive(Clone, Debug)]
pub struct VolumeWrite {
    /// Byte in the volume.
    pub offset: u64,
    /// The bytes, one slice behind the other; together whole blocks. Single slices may have any length.
    pub bytes: Vec<Slice>,
}

/// A block whose bytes are not what was written. EIO to the caller, and the text to the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "inode {ino} chunk {index} block {block}: checksum {found:08x} instead of {expected:08x} at byte {offset} of the \
     volume; the device or the volume file is damaged there, restore this file"
)]
pub struct BadBlock {
    /// Whose.
    pub ino: Ino,
    /// Which chunk.
    pub index: u64,
    /// Which block of the chunk.
    pub block: u16,
    /// Byte in the volume.
    pub offset: u64,
    /// CRC32C of the bytes that were read.
    pub found: u32,
    /// CRC32C of the bytes that were written.
    pub expected: u32,
}

/// A planned change of one chunk. Its blocks are taken; it ends in [`Chunks::finish`] or [`Chunks::abort`]. One that is
/// only dropped loses its blocks until the next start, but damages nothing.
#[derive(Debug)]
#[must_use]
pub struct Plan {}

impl Plan {
    /// The old blocks to be read first (at most two: a partial head and tail), in the order in which [`Plan::fill`] takes
    /// their regions.
    #[must_use]
    pub fn reads(&self) -> &[VolumeRead] {
        unimplemented!()
    }

    /// Takes the old blocks, verifies and merges them, and gives what is to be written. Called once, also with no regions.
    pub fn fill(&mut self, regions: Vec<Region>) -> Result<Vec<VolumeWrite>, BadBlock> {
        let _ = regions;
        unimplemented!()
    }

    /// Nothing would change: no record is needed, and [`Chunks::abort`] ends it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        unimplemented!()
    }
}

/// A planned read. While it lives, its blocks are not reused.
#[derive(Debug)]
#[must_use]
pub struct ReadPlan {}

impl ReadPlan {
    /// What to read, in the order in which [`ReadPlan::finish`] takes the regions.
    #[must_use]
    pub fn reads(&self) -> &[VolumeRead] {
        unimplemented!()
    }

    /// Bytes that the reply will have; what was asked for beyond them is zeros.
    #[must_use]
    pub fn len(&self) -> u32 {
        unimplemented!()
    }

    /// Whether there is nothing but zeros.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Verifies every block and gives the reply's bytes: cuts of the regions, and shared zeros for holes. Copies nothing.
    pub fn finish(self, regions: Vec<Region>) -> Result<Vec<Slice>, BadBlock> {
        let _ = regions;
        unimplemented!()
    }
}

/// What applying a record did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Allocated 512-byte units, more (or, negative, fewer) than before: st_blocks' delta.
    pub blocks: i64,
}

/// The chunks of one core's shards, and the blocks that it has borrowed.
#[derive(Debug)]
pub struct Chunks {}

impl Chunks {
    /// No chunks, no blocks. `shards` of the cluster; `zeros`: at least one block of zeros from the arena, from which holes
    /// are served; `total` blocks of the volume.
    #[must_use]
    pub fn new(shards: u32, total: u64, zeros: Slice) -> Self {
        let _ = (shards, total, zeros);
        unimplemented!()
    }

    // ---- order of changes ----

    /// Queues for the bytes `from..to` of the chunk (a cut of the file: to the chunk's end, `u32::MAX`). At once
    /// [`Chunks::ready`] unless a change that touches a common block entered before.
    pub fn enter(&mut self, ino: Ino, index: u64, from: u32, to: u32) -> Guard {
        let _ = (ino, index, from, to);
        unimplemented!()
    }

    /// Whether it is this guard's turn.
    #[must_use]
    pub fn ready(&self, guard: &Guard) -> bool {
        let _ = guard;
        unimplemented!()
    }

    /// Ends a guard (also one that was never ready); gives those whose turn it has become, to be woken.
    #[must_use]
    pub fn leave(&mut self, guard: Guard) -> Vec<GuardId> {
        let _ = guard;
        unimplemented!()
    }

    // ---- changes ----

    /// Plans to replace the bytes at `offset` by `payload` (not empty). EINVAL beyond `limits::CHUNK_SIZE_MAX`.
    pub fn plan_write(
        &mut self,
        guard: &Guard,
        offset: u32,
        payload: &Slice,
    ) -> Result<Plan, Refusal> {
        let _ = (guard, offset, payload);
        unimplemented!()
    }

    /// Plans that the bytes `from..to` read as zeros and their whole blocks are free. `cut`: nothing is left behind `from`,
    /// so that the end of the data moves there (truncate, removal); else it stays (punch). `to` may lie beyond the chunk.
    pub fn plan_discard(
        &mut self,
        guard: &Guard,
        from: u32,
        to: u32,
        cut: bool,
    ) -> Result<Plan, Refusal> {
        let _ = (guard, from, to, cut);
        unimplemented!()
    }

    /// Plans that the blocks of the bytes `from..to` that have none get space, which reads as zeros.
    pub fn plan_allocate(&mut self, guard: &Guard, from: u32, to: u32) -> Result<Plan, Refusal> {
        let _ = (guard, from, to);
        unimplemented!()
    }

    /// The record of a plan whose volume writes have completed, to be journaled and applied without delay: nothing may
    /// change this chunk in between.
    pub fn finish(&mut self, plan: Plan) -> ChunkRecord {
        let _ = plan;
        unimplemented!()
    }

    /// Gives up a plan none of whose volume writes is in flight any more; its blocks are free again.
    pub fn abort(&mut self, plan: Plan) {
        let _ = plan;
        unimplemented!()
    }

    /// Carries out a record whose journal entry begins at `position`. Total.
    pub fn apply(&mut self, position: u64, record: &ChunkRecord, now: Instant) -> Applied {
        let _ = (position, record, now);
        unimplemented!()
    }

    // ---- queries ----

    /// Plans to read `len` bytes at `offset` of the chunk. A trailing hole is cut.
    pub fn plan_read(&self, ino: Ino, index: u64, offset: u32, len: u32) -> ReadPlan {
        let _ = (ino, index, offset, len);
        unimplemented!()
    }

    /// The first chunk of `ino` with an index of at least `from` that this core has. Cost: O(log chunks).
    #[must_use]
    pub fn next_chunk(&self, ino: Ino, from: u64) -> Option<u64> {
        let _ = (ino, from);
        unimplemented!()
    }

    /// The first inode from `from` on of which this core has a chunk: the scrub's way through them all.
    #[must_use]
    pub fn next_inode(&self, from: Ino) -> Option<Ino> {
        let _ = from;
        unimplemented!()
    }

    /// Ranges of the file with data within `from..to`, ascending, at most `limits::EXTENTS_MAX`, and where to ask on if
    /// there were more.
    #[must_use]
    pub fn extents(
        &self,
        ino: Ino,
        chunk_size: u32,
        from: u64,
        to: u64,
    ) -> (Vec<(u64, u64)>, Option<u64>) {
        let _ = (ino, chunk_size, from, to);
        unimplemented!()
    }

    /// The end of the last byte written of this inode in this core's chunks, 0 if there is none.
    #[must_use]
    pub fn end(&self, ino: Ino, chunk_size: u32) -> u64 {
        let _ = (ino, chunk_size);
        unimplemented!()
    }

    // ---- space ----

    /// Blocks that the map names.
    #[must_use]
    pub fn used_blocks(&self) -> u64 {
        unimplemented!()
    }

    /// Every extent of the map, for [`Groups::new`].
    #[must_use]
    pub fn used(&self) -> Vec<Run> {
        unimplemented!()
    }

    /// What to ask [`Groups`] for before anybody has to wait; `None`: there is enough. One request at a time suffices.
    #[must_use]
    pub fn ask(&self) -> Option<Ask> {
        unimplemented!()
    }

    /// Takes a loan.
    pub fn lend(&mut self, loan: Loan) {
        let _ = loan;
        unimplemented!()
    }

    /// When the volume and the journal are to be synced because blocks wait for it or much is unsynced; a moment in the
    /// past: at once.
    #[must_use]
    pub fn sync_at(&self) -> Option<Instant> {
        unimplemented!()
    }

    /// The journal below `end`, and what the volume held before it was synced, is on the device, and a mark says so. Frees
    /// blocks; gives what goes back to [`Groups`].
    #[must_use]
    pub fn on_synced(&mut self, end: u64, now: Instant) -> Vec<Run> {
        let _ = (end, now);
        unimplemented!()
    }

    /// Gives all free blocks back to [`Groups`], because another core has none.
    #[must_use]
    pub fn recall(&mut self) -> Vec<Run> {
        unimplemented!()
    }

    // ---- snapshot ----

    /// The chunks of a shard: logical bytes (what a replica would have) and local bytes (where the blocks lie). `None`: it
    /// has none. Equal states give equal bytes. The snapshot may be stored only after a SyncVolume that began later than this
    /// call: its extents are not verified at recovery.
    #[must_use]
    pub fn encode_shard(&self, shard: ShardId) -> Option<(Vec<u8>, Vec<u8>)> {
        let _ = shard;
        unimplemented!()
    }
}

/// The chunk store before it has recovered.
///
/// CRASH: blocks that the replayed records freed may be reused as soon as this ends; so volume and journal must be synced,
/// and the repairs be journaled and synced, before any core of the node serves.
#[derive(Debug)]
pub struct Replay {}

/// Blocks named above the last sync mark: after a loss of power they may not have reached the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// What to read.
    pub read: VolumeRead,
    /// Position of the record that names them.
    pub position: u64,
    sums: Vec<u32>,
}

impl Suspect {
    /// Whether these are the bytes that were written.
    #[must_use]
    pub fn holds(&self, bytes: &[u8]) -> bool {
        let _ = (bytes, &self.sums);
        unimplemented!()
    }
}

impl Replay {
    /// As [`Chunks::new`].
    #[must_use]
    pub fn new(shards: u32, total: u64, zeros: Slice) -> Self {
        let _ = (shards, total, zeros);
        unimplemented!()
    }

    /// The chunks of a shard, as [`Chunks::encode_shard`] gave them.
    pub fn snapshot(
        &mut self,
        shard: ShardId,
        logical: &[u8],
        local: &[u8],
    ) -> Result<(), Corrupt> {
        let _ = (shard, logical, local);
        unimplemented!()
    }

    /// The next record, whose entry begins at `position`.
    pub fn record(&mut self, position: u64, record: ChunkRecord) -> Result<Applied, Corrupt> {
        let _ = (position, record);
        unimplemented!()
    }

    /// A sync mark: the journal below `end` and its data are on the device.
    pub fn mark(&mut self, end: u64) {
        let _ = end;
        unimplemented!()
    }

    /// All blocks that records above the last mark name. To be verified when the boot id has changed.
    #[must_use]
    pub fn suspects(&self) -> Vec<Suspect> {
        unimplemented!()
    }

    /// The record at `position` did not reach the device whole: its chunk becomes what it is without it.
    pub fn reject(&mut self, position: u64) {
        let _ = position;
        unimplemented!()
    }

    /// The chunks, without any free blocks yet, and the records that make rejections permanent: to be journaled (not
    /// applied) and synced before serving.
    #[must_use]
    pub fn finish(self) -> (Chunks, Vec<ChunkRecord>) {
        unimplemented!()
    }

    /// The state so far, for snapshots of a data directory that is only being converted.
    #[must_use]
    pub fn encode_shard(&self, shard: ShardId) -> Option<(Vec<u8>, Vec<u8>)> {
        let _ = shard;
        unimplemented!()
    }
}
