//! Reads and changes of one chunk: what the chunk store plans, carried out on the volume.
//!
//! ```text
//! enter -> plan -> [borrow space] -> [read old blocks] -> fill -> [write] -> [sync] -> finish -> commit -> leave
//! ```
//! 1. The record is journaled after the volume writes have completed (in `power`: after they are on the device).
//! 2. From `finish` to the commit there is no await.
//! 3. Every guard is left, every plan is finished or aborted, whatever fails.

use std::rc::Rc;

use sealfs_meta::{Applied, Change, Facts, Origin, Record, Refused, plan_settle_write};
use sealfs_proto::{Errno, Ino, Reply, Request, ShardId, Status, chunk_shard, limits};
use sealfs_transport::tasks::{join_all, oneshot};
use sealfs_transport::{Region, Slice};

use super::space;
use crate::Durability;
use crate::chunk::{ChunkRecord, Guard, Plan, Refusal};
use crate::figures::Counted;
use crate::mail::Outcome;
use crate::serve::follow;
use crate::world::{Caller, Job, World, errno};

/// What is to be done to a chunk. Bytes within the chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ChunkChange<'a> {
    /// These bytes at `offset`.
    Write { offset: u32, payload: &'a Slice },
    /// Reads as zeros; with `cut` nothing is left behind.
    Discard { from: u32, to: u32, cut: bool },
    /// Gets space.
    Allocate { from: u32, to: u32 },
}

impl ChunkChange<'_> {
    fn range(&self) -> (u32, u32) {
        match self {
            Self::Write { offset, payload } => {
                (*offset, offset.saturating_add(payload.len() as u32))
            }
            Self::Discard { from, cut: true, .. } => (*from, u32::MAX),
            Self::Discard { from, to, .. } | Self::Allocate { from, to } => (*from, *to),
        }
    }
}

/// Serves `Write`.
pub(crate) fn serve_write(world: &Rc<World>, job: Job, origin: Origin) {
    let (ticket, mut order) = world.begin(job, origin);
    let task = Rc::clone(world);
    world.spawner.spawn(async move {
        let shard = order.shard;
        let outcome = match (&order.request, order.bulk.take()) {
            (&Request::Write { ino, index, offset }, Some(payload)) if !payload.is_empty() => {
                write(&task, origin, ino, index, offset, payload).await
            }
            _ => errno(Errno::EINVAL),
        };
        task.respond(Caller::Change(ticket), shard, outcome);
    });
}

async fn write(
    world: &Rc<World>,
    origin: Origin,
    ino: Ino,
    index: u64,
    offset: u32,
    payload: Slice,
) -> Outcome {
    let len = payload.len() as u64;
    let end = u64::from(offset) + len;
    if end > u64::from(limits::CHUNK_SIZE_MAX) {
        return errno(Errno::EINVAL);
    }
    let change = ChunkChange::Write { offset, payload: &payload };
    let reply = if index == 0 {
        loop {
            let settle = |blocks| {
                still_alive(world, origin)?;
                let asked = world.asked(origin, Facts::default());
                world.with(ino.shard(), |state| plan_settle_write(state, ino, end, blocks, &asked))
            };
            let done = carry_out(world, ino, index, change, settle).await;
            let waits = matches!(done, Err(Failed::Busy));
            if !waits || !world.freed(ino.shard()).await {
                break done;
            }
        }
    } else {
        carry_out(world, ino, index, change, |blocks| {
            still_alive(world, origin)?;
            Ok(written(Some(origin), world, blocks, None))
        })
        .await
    };
    match reply {
        Ok((Some(applied), _)) => {
            let _ =
                follow(world, chunk_shard(ino, index, world.config.map.shards()), applied.effects);
            world.count(Counted::BytesWritten, len);
            Ok(applied.reply).into()
        }
        Ok((None, _)) => errno(Errno::EIO),
        Err(Failed::Errno(error)) => errno(error),
        Err(Failed::Busy) => Err(Status::Busy).into(),
    }
}

/// Nothing is written for a session that has ended meanwhile.
pub(crate) fn still_alive(world: &World, origin: Origin) -> Result<(), Refused> {
    if world.has_ended(origin.session) { Err(Errno::EIO.into()) } else { Ok(()) }
}

/// The record of a chunk's change beside which only the reply is kept; `so_far`: units that the same request has changed
/// in this shard before.
pub(crate) fn written(
    origin: Option<Origin>,
    world: &World,
    blocks: i64,
    so_far: Option<i64>,
) -> Record {
    let reply = Reply::Written { blocks: blocks + so_far.unwrap_or(0), attr: None };
    Record { origin, now: world.now.get().wall, change: Change::Chunk { reply } }
}

/// Why a chunk was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// The caller gets this.
    Errno(Errno),
    /// A cut is pending, or the request has come again: wait until the shard is freed, then try again.
    Busy,
}

impl From<Refused> for Failed {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Errno(error) => Self::Errno(error),
            Refused::Busy | Refused::Numbers => Self::Busy,
        }
    }
}

/// Changes a chunk of this core, and commits it with the record that `record` makes of the number of 512-byte units it has
/// allocated more. `record` is asked once before anything is written, with 0, so that what must not be is not begun. Gives
/// no `Applied` if nothing had to change.
pub(crate) async fn carry_out(
    world: &Rc<World>,
    ino: Ino,
    index: u64,
    change: ChunkChange<'_>,
    record: impl Fn(i64) -> Result<Record, Refused>,
) -> Result<(Option<Applied>, i64), Failed> {
    let (from, to) = change.range();
    let guard = enter(world, ino, index, from, to).await;
    let shard = chunk_shard(ino, index, world.config.map.shards());
    let result = guarded(world, &guard, shard, change, record).await;
    leave(world, guard);
    result
}

async fn guarded(
    world: &Rc<World>,
    guard: &Guard,
    shard: ShardId,
    change: ChunkChange<'_>,
    record: impl Fn(i64) -> Result<Record, Refused>,
) -> Result<(Option<Applied>, i64), Failed> {
    record(0)?;
    let mut plan = planned(world, guard, change).await?;
    if let Err(error) = to_volume(world, &mut plan).await {
        world.chunks.borrow_mut().abort(plan);
        return Err(Failed::Errno(error));
    }
    if plan.is_empty() {
        world.chunks.borrow_mut().abort(plan);
        return Ok((None, 0));
    }
    // The state may have changed while the volume was written.
    if let Err(refused) = record(0) {
        world.chunks.borrow_mut().abort(plan);
        return Err(refused.into());
    }
    let chunk = world.chunks.borrow_mut().finish(plan);
    let mut blocks = 0;
    let applied = world.commit_chunk(shard, &chunk, |more| {
        blocks = more;
        record(more).expect("what was admitted with no blocks is admitted with some")
    });
    Ok((Some(applied), blocks))
}

async fn planned(
    world: &Rc<World>,
    guard: &Guard,
    change: ChunkChange<'_>,
) -> Result<Plan, Failed> {
    let begun = world.now.get().mono;
    for tries in 0.. {
        let plan = {
            let mut chunks = world.chunks.borrow_mut();
            match change {
                ChunkChange::Write { offset, payload } => chunks.plan_write(guard, offset, payload),
                ChunkChange::Discard { from, to, cut } => chunks.plan_discard(guard, from, to, cut),
                ChunkChange::Allocate { from, to } => chunks.plan_allocate(guard, from, to),
            }
        };
        match plan {
            Ok(plan) => return Ok(plan),
            Err(Refusal::Errno(error)) => return Err(Failed::Errno(error)),
            Err(Refusal::Space(ask)) => {
                let lent = space::borrow(world, ask).await;
                if ask.reserve && world.now.get().mono.ms_since(begun) < RESERVE_WAIT_MS {
                    // What it replaces is as large. Others that overwrite have the blocks, and free as many.
                    if !lent || tries >= BORROW_TRIES {
                        world.back_off(RESERVE_PAUSE_MS).await;
                    }
                } else if !lent || tries >= BORROW_TRIES {
                    return Err(Failed::Errno(Errno::ENOSPC));
                }
            }
        }
    }
    Err(Failed::Errno(Errno::ENOSPC))
}

/// Reads the old blocks, merges, writes; in `power` also syncs.
async fn to_volume(world: &Rc<World>, plan: &mut Plan) -> Result<(), Errno> {
    // At most two blocks; memory of their own, for who waits for the arena here may hold what it waits for.
    let reads = plan.reads().to_vec();
    let reads = reads.iter().map(|read| {
        let region = world
            .arena
            .take(read.len as usize)
            .unwrap_or_else(|| Region::zeroed(read.len as usize));
        world.disk.read(read.offset, read.len, region)
    });
    let mut regions = Vec::new();
    for region in join_all(reads).await {
        regions.push(region.map_err(|error| disk_failed(&error))?);
    }
    let writes = plan.fill(regions).map_err(|bad| {
        tracing::error!(%bad, "a block is damaged");
        Errno::EIO
    })?;
    let none = writes.is_empty();
    let writes = writes.into_iter().map(|write| world.disk.write(write.offset, write.bytes));
    for done in join_all(writes).await {
        done.map_err(|error| disk_failed(&error))?;
    }
    if world.config.durability == Durability::Power && !none {
        world.disk.sync_volume().await.map_err(|error| disk_failed(&error))?;
    }
    Ok(())
}

fn disk_failed(error: &crate::DiskError) -> Errno {
    tracing::error!(%error, "the volume failed");
    Errno::EIO
}

/// Waits for the right to change a range of a chunk.
pub(crate) async fn enter(world: &World, ino: Ino, index: u64, from: u32, to: u32) -> Guard {
    let (guard, waits) = {
        let mut chunks = world.chunks.borrow_mut();
        let guard = chunks.enter(ino, index, from, to);
        let waits = (!chunks.ready(&guard)).then(|| {
            let (sender, receiver) = oneshot();
            world.guards.borrow_mut().insert(guard.id(), sender);
            receiver
        });
        (guard, waits)
    };
    if let Some(waits) = waits {
        let _ = waits.await;
    }
    guard
}

/// Gives the right back.
pub(crate) fn leave(world: &World, guard: Guard) {
    let next = world.chunks.borrow_mut().leave(guard);
    for id in next {
        let sender = world.guards.borrow_mut().remove(&id);
        if let Some(sender) = sender {
            let _ = sender.send(());
        }
    }
}

/// Commits `record` together with the end of chunk 0, all of which is cut away: that needs no volume.
pub(crate) fn commit_whole_discard(
    world: &Rc<World>,
    guard: &Guard,
    ino: Ino,
    record: &Record,
) -> Applied {
    let chunk: Option<ChunkRecord> = {
        let mut chunks = world.chunks.borrow_mut();
        match chunks.plan_discard(guard, 0, u32::MAX, true) {
            Ok(mut plan) => {
                let writes = plan.fill(Vec::new());
                assert!(writes.is_ok_and(|writes| writes.is_empty()), "a whole cut writes nothing");
                if plan.is_empty() {
                    chunks.abort(plan);
                    None
                } else {
                    Some(chunks.finish(plan))
                }
            }
            Err(_) => None,
        }
    };
    world.commit(ino.shard(), record, chunk.as_ref())
}

/// Serves `Read`.
pub(crate) fn serve_read(world: &Rc<World>, job: Job) {
    let task = Rc::clone(world);
    world.spawner.spawn(async move {
        let shard = job.order.shard;
        let outcome = match job.order.request {
            Request::Read { ino, index, offset, length } => {
                read(&task, ino, index, offset, length).await
            }
            _ => errno(Errno::EPROTO),
        };
        task.respond(job.caller, shard, outcome);
    });
}

async fn read(world: &Rc<World>, ino: Ino, index: u64, offset: u32, length: u32) -> Outcome {
    let end = u64::from(offset) + u64::from(length);
    if end > u64::from(limits::CHUNK_SIZE_MAX) {
        return errno(Errno::EINVAL);
    }
    let plan = world.chunks.borrow().plan_read(ino, index, offset, length);
    let reads = plan.reads().to_vec();
    let lens: Vec<u32> = reads.iter().map(|read| read.len).collect();
    let regions = world.regions(&lens).await;
    let reads = reads
        .iter()
        .zip(regions)
        .map(|(read, region)| world.disk.read(read.offset, read.len, region));
    let mut filled = Vec::new();
    for region in join_all(reads).await {
        match region {
            Ok(region) => filled.push(region),
            Err(error) => return errno(disk_failed(&error)),
        }
    }
    let length = plan.len();
    world.count(Counted::BytesRead, u64::from(length));
    match plan.finish(filled) {
        Ok(bulk) => Outcome { reply: Ok(Reply::Data { length }), bulk },
        Err(bad) => {
            world.count(Counted::BadBlocks, 1);
            tracing::error!(%bad, "a block is damaged");
            errno(Errno::EIO)
        }
    }
}

/// Space may be taken by others between a loan and its use; who still has none after so many tries gets ENOSPC.
const BORROW_TRIES: u32 = 8;
/// Who overwrites has a right to blocks: it waits so long for those that others free, several syncs of a slow device.
const RESERVE_WAIT_MS: u64 = 20_000;
const RESERVE_PAUSE_MS: u64 = 5;
