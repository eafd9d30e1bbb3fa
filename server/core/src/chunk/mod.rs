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
//! start:  Replay::{snapshot, record, mark}* -> [verify] -> finish -> Groups::new over all cores' Chunks::occupied
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
//! A read or write that fails at a checksum is EIO and touches nothing else.
//!
//! It keeps no cache of data, it does not order changes of different chunks, and it does not know sessions.

mod blocks;
mod groups;
mod guards;
mod map;
mod plan;
mod read;
mod record;
mod replay;
mod runs;
#[cfg(test)]
mod tests;

pub use groups::Groups;
pub use guards::{Guard, GuardId};
pub use plan::{Plan, VolumeWrite};
pub use read::{BadBlock, ReadPlan, VolumeRead};
pub use record::{BlockState, Change, ChunkRecord, Run};
pub use replay::Replay;

use std::fmt;

use sealfs_proto::{Errno, Ino, ShardId, limits};
use sealfs_transport::{Instant, Slice};

use blocks::Blocks;
use guards::Guards;
use map::{Chunk, Map};

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

/// What applying a record did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Allocated 512-byte units, more (or, negative, fewer) than before: st_blocks' delta.
    pub blocks: i64,
}

/// The chunks of one core's shards, and the blocks that it has borrowed.
pub struct Chunks {
    map: Map,
    blocks: Blocks,
    guards: Guards,
    zeros: Slice,
}

impl Chunks {
    /// No chunks, no blocks. `shards` of the cluster; `total` blocks of the volume; `zeros`: at least one block of zeros,
    /// from the arena, from which holes are served.
    #[must_use]
    pub fn new(shards: u32, total: u64, zeros: Slice) -> Self {
        Self::with_map(Map::new(shards), total, zeros)
    }

    /// `count` zeros, without memory of their own.
    pub(crate) fn zeros(&self, count: u32) -> Vec<Slice> {
        let mut zeros = Vec::new();
        read::push_zeros(&mut zeros, &self.zeros, count);
        zeros
    }

    fn with_map(map: Map, total: u64, zeros: Slice) -> Self {
        assert!(
            zeros.len() >= BLOCK && zeros.bytes().iter().all(|byte| *byte == 0),
            "holes are served from at least one block of zeros"
        );
        Self { map, blocks: Blocks::new(total), guards: Guards::default(), zeros }
    }

    // ---- order of changes ----

    /// Queues for the bytes `from..to` of the chunk (a cut of the file: to the chunk's end, `u32::MAX`). At once
    /// [`Chunks::ready`] unless a change that touches a common block entered before.
    pub fn enter(&mut self, ino: Ino, index: u64, from: u32, to: u32) -> Guard {
        self.guards.enter((ino, index), from, to)
    }

    /// Whether it is this guard's turn.
    #[must_use]
    pub fn ready(&self, guard: &Guard) -> bool {
        self.guards.ready(guard)
    }

    /// Ends a guard (also one that was never ready); gives those whose turn it has become, to be woken.
    #[must_use]
    pub fn leave(&mut self, guard: Guard) -> Vec<GuardId> {
        self.guards.leave(guard)
    }

    // ---- changes ----

    /// Plans to replace the bytes at `offset` by `payload`. EINVAL if it is empty or ends beyond `limits::CHUNK_SIZE_MAX`.
    /// Panics unless the guard is ready and covers the bytes.
    pub fn plan_write(
        &mut self,
        guard: &Guard,
        offset: u32,
        payload: &Slice,
    ) -> Result<Plan, Refusal> {
        let end = offset.saturating_add(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        self.check(guard, offset, end);
        let absent = Chunk::default();
        let chunk = self.map.chunk(guard.key).unwrap_or(&absent);
        let plan = Plan::write(guard.key, chunk, offset, payload, &self.zeros);
        let plan = plan.map_err(Refusal::Errno)?;
        let ask = plan.ask(chunk);
        self.place(plan, ask)
    }

    /// Plans that the bytes `from..to` read as zeros and their whole blocks are free. `cut`: nothing is left behind `from`,
    /// whatever `to` says, and the end of the data moves there (truncate, removal); else it stays (punch). `to` may lie
    /// beyond the chunk. Panics unless the guard is ready and covers the bytes.
    pub fn plan_discard(
        &mut self,
        guard: &Guard,
        from: u32,
        to: u32,
        cut: bool,
    ) -> Result<Plan, Refusal> {
        self.check(guard, from, if cut { u32::MAX } else { to });
        let absent = Chunk::default();
        let chunk = self.map.chunk(guard.key).unwrap_or(&absent);
        let plan = Plan::discard(guard.key, chunk, from, to, cut, &self.zeros);
        let ask = plan.ask(chunk);
        self.place(plan, ask)
    }

    /// Plans that the blocks of the bytes `from..to` that have none get space, which reads as zeros. EINVAL beyond
    /// `limits::CHUNK_SIZE_MAX`. Panics unless the guard is ready and covers the bytes.
    pub fn plan_allocate(&mut self, guard: &Guard, from: u32, to: u32) -> Result<Plan, Refusal> {
        self.check(guard, from, to);
        let absent = Chunk::default();
        let chunk = self.map.chunk(guard.key).unwrap_or(&absent);
        let plan = Plan::allocate(guard.key, chunk, from, to, &self.zeros);
        let plan = plan.map_err(Refusal::Errno)?;
        let ask = plan.ask(chunk);
        self.place(plan, ask)
    }

    fn check(&self, guard: &Guard, from: u32, to: u32) {
        assert!(
            guard.covers(from, to) && self.guards.ready(guard),
            "a change of {from}..{to} has its turn on all its blocks"
        );
    }

    fn place(&mut self, mut plan: Plan, ask: Ask) -> Result<Plan, Refusal> {
        if ask.blocks > 0 {
            plan.place(self.blocks.take(ask)?);
        }
        Ok(plan)
    }

    /// The record of a plan whose volume writes have completed, to be journaled and applied without delay: nothing may
    /// change this chunk in between. Panics if the plan was never filled.
    pub fn finish(&mut self, plan: Plan) -> ChunkRecord {
        let absent = Chunk::default();
        let chunk = self.map.chunk(plan.key()).unwrap_or(&absent);
        plan.into_record(chunk)
    }

    /// Gives up a plan none of whose volume writes is in flight any more; its blocks are free again.
    pub fn abort(&mut self, plan: Plan) {
        self.blocks.untake(&plan.into_runs());
    }

    /// Carries out a record whose journal entry begins at `position`. Total.
    pub fn apply(&mut self, position: u64, record: &ChunkRecord, now: Instant) -> Applied {
        let before = self.map.used();
        let effect = self.map.apply(record);
        self.blocks.applied(position, effect.placed, effect.freed, now);
        applied(before, self.map.used())
    }

    // ---- queries ----

    /// Plans to read `len` bytes at `offset` of the chunk. A trailing hole is cut.
    pub fn plan_read(&self, ino: Ino, index: u64, offset: u32, len: u32) -> ReadPlan {
        let (chunk, pin) = (self.map.chunk((ino, index)), self.blocks.pin());
        ReadPlan::new((ino, index), chunk, offset, len, self.zeros.clone(), pin)
    }

    /// The first chunk of `ino` with an index of at least `from` that this core has. Cost: O(log chunks).
    #[must_use]
    pub fn next_chunk(&self, ino: Ino, from: u64) -> Option<u64> {
        self.map.of(ino, from).next().map(|(index, _)| index)
    }

    /// The first inode from `from` on of which this core has a chunk: the scrub's way through them all.
    #[must_use]
    pub fn next_inode(&self, from: Ino) -> Option<Ino> {
        self.map.from((from, 0)).next().map(|((ino, _), _)| ino)
    }

    /// Ranges of the file with data within `from..to`, ascending, at most `limits::EXTENTS_MAX`, and where to ask on if
    /// there may be more. `chunk_size` is not 0.
    #[must_use]
    pub fn extents(
        &self,
        ino: Ino,
        chunk_size: u32,
        from: u64,
        to: u64,
    ) -> (Vec<(u64, u64)>, Option<u64>) {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (index, chunk) in self.map.of(ino, from / u64::from(chunk_size)) {
            let base = index.saturating_mul(u64::from(chunk_size));
            if base >= to {
                break;
            }
            for extent in chunk.extents().iter().filter(|extent| extent.written) {
                let start = u32::from(extent.start) * limits::BLOCK_SIZE;
                let end = (extent.end() * limits::BLOCK_SIZE).min(chunk.len);
                let start = base.saturating_add(u64::from(start)).max(from);
                let end = base.saturating_add(u64::from(end)).min(to);
                if start >= end {
                    continue;
                }
                let full = ranges.len() == limits::EXTENTS_MAX;
                match ranges.last_mut() {
                    Some(last) if last.1 == start => last.1 = end,
                    Some(_) if full => return (ranges, Some(start)),
                    _ => ranges.push((start, end)),
                }
            }
        }
        (ranges, None)
    }

    /// The end of the last byte written of this inode in this core's chunks, 0 if there is none.
    #[must_use]
    pub fn end(&self, ino: Ino, chunk_size: u32) -> u64 {
        let last = self.map.of(ino, 0).rev().find(|(_, chunk)| chunk.len > 0);
        last.map_or(0, |(index, chunk)| {
            index.saturating_mul(u64::from(chunk_size)).saturating_add(u64::from(chunk.len))
        })
    }

    // ---- space ----

    /// Blocks that the map names.
    #[must_use]
    pub fn used_blocks(&self) -> u64 {
        self.map.used()
    }

    /// Blocks that were written since the volume was synced last.
    #[must_use]
    pub fn dirty_blocks(&self) -> u64 {
        self.blocks.dirty_blocks()
    }

    /// Blocks that were freed and are not free before the next sync mark.
    #[must_use]
    pub fn pending_blocks(&self) -> u64 {
        self.blocks.pending_blocks()
    }

    /// Every extent of the map, and every freed block that waits for a sync mark: what [`Groups::new`] must not lend.
    #[must_use]
    pub fn occupied(&self) -> Vec<Run> {
        let chunks = self.map.from((Ino(0), 0));
        let extents = chunks.flat_map(|(_, chunk)| chunk.extents());
        extents.map(|extent| extent.run()).chain(self.blocks.pending()).collect()
    }

    /// What to ask [`Groups`] for before anybody has to wait. `None`: there is enough, or the node had nothing the last time
    /// and nobody has got a loan since. The caller keeps one question in flight at a time.
    #[must_use]
    pub fn ask(&self) -> Option<Ask> {
        self.blocks.ask()
    }

    /// Takes a loan, also an empty one: it says that the node has no more, so that what waits for a sync is synced at once,
    /// and nothing is asked for ahead of need.
    pub fn lend(&mut self, loan: Loan) {
        self.blocks.lend(&loan);
    }

    /// When the volume and the journal are to be synced because blocks wait for it or much is unsynced; `Instant(0)`: at
    /// once. The caller keeps one sync in flight at a time.
    #[must_use]
    pub fn sync_at(&self) -> Option<Instant> {
        self.blocks.sync_at()
    }

    /// Whether freed blocks wait for a sync: a refused plan may find space after it.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        self.blocks.has_pending()
    }

    /// The journal below `end`, and what the volume held before it was synced, is on the device, and a mark says so. Frees
    /// blocks; gives what goes back to [`Groups`].
    #[must_use]
    pub fn on_synced(&mut self, end: u64, now: Instant) -> Vec<Run> {
        self.blocks.on_synced(end, now)
    }

    /// Gives all free blocks back to [`Groups`], because another core has none; those that wait for a sync follow with the
    /// next [`Chunks::on_synced`], and [`Chunks::sync_at`] wants it at once.
    #[must_use]
    pub fn recall(&mut self) -> Vec<Run> {
        self.blocks.recall()
    }

    // ---- snapshot ----

    /// The chunks of a shard, for its snapshot; no bytes if it has none. Equal states give equal bytes. The snapshot may be
    /// stored only after a SyncVolume that began later than this call: its extents are not verified at recovery.
    #[must_use]
    pub fn encode_shard(&self, shard: ShardId) -> Vec<u8> {
        self.map.encode_shard(shard)
    }

    /// Begins to encode the chunks of a shard as they are now, in slices; one that was begun before is given up.
    pub fn begin_snapshot(&mut self, shard: ShardId) {
        self.map.begin_snapshot(shard);
    }

    /// Appends the next of the chunks to `out` until `room` bytes are used up, one chunk more at most; true when all are
    /// there: the bytes that [`Chunks::encode_shard`] would have given when it was begun. Memory: what changes meanwhile is
    /// copied once, before it changes.
    pub fn snapshot_slice(&mut self, out: &mut Vec<u8>, room: &mut usize) -> bool {
        self.map.snapshot_slice(out, room)
    }
}

impl fmt::Debug for Chunks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Chunks");
        out.field("used", &self.map.used()).field("blocks", &self.blocks).finish_non_exhaustive()
    }
}

/// The change of allocation in units of st_blocks.
fn applied(before: u64, after: u64) -> Applied {
    const UNITS: i64 = limits::BLOCK_SIZE as i64 / 512;
    Applied { blocks: (after as i64 - before as i64) * UNITS }
}

const BLOCK: usize = limits::BLOCK_SIZE as usize;
