//! Snapshots of the shards that have changed, and then the cut of the journal.
//!
//! ```text
//! end = journal's end -> a few shards: state and chunks, a slice per turn -> SyncVolume, SyncJournal -> store each
//!                     -> ... -> all -> Cut(end)
//! ```
//! 1. State and chunks of a shard are those of one moment, that of its number: both walks begin in one step, and a record
//!    and the chunk that belongs to it are applied in one step.
//! 2. A snapshot is stored only after a sync of the volume that began after it was taken: recovery trusts its extents.
//! 3. It is stored only after the journal up to its number is on the device: no shard is ahead of another one of its core
//!    when the core starts again, as a coordinator would be that has decided what a participant lost.
//! 4. The journal is cut only below what was its end when the round began, and only if every shard that had changed is
//!    stored.
//!
//! Memory: the bytes of [`SHARDS_PER_SYNC`] shards or [`BYTES_PER_SYNC`], and of one shard more.

use std::cell::Cell;
use std::rc::Rc;

use sealfs_meta::snapshot::Encoder;
use sealfs_proto::ShardId;
use sealfs_transport::Instant;

use crate::figures::Counted;
use crate::world::{Shard, World};
use crate::{DiskError, DiskOp};

/// How far the snapshots are.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Where the journal begins that no snapshot contains.
    pub(crate) from: Cell<u64>,
    running: Cell<bool>,
    not_before: Cell<Instant>,
}

/// A snapshot that is to be stored.
struct Taken {
    shard: ShardId,
    number: u64,
    /// `None`: the shard is empty.
    bytes: Option<Vec<Vec<u8>>>,
    len: usize,
}

/// Begins a round when the journal has become long; called once a turn.
pub(crate) fn tend(world: &Rc<World>) {
    let end = world.log.borrow().writer.tail().position;
    let progress = &world.snapshots;
    let due = end.saturating_sub(progress.from.get()) > world.config.snapshot_bytes
        && progress.not_before.get() <= world.now.get().mono;
    if !due || progress.running.replace(true) {
        return;
    }
    let task = Rc::clone(world);
    world.spawner.spawn(async move {
        match round(&task).await {
            Ok(()) => {
                task.snapshots.from.set(end);
                let _ = task.disk.submit(DiskOp::Cut { position: end }).await;
                task.count(Counted::SnapshotRounds, 1);
            }
            Err(error) => {
                tracing::error!(%error, "a snapshot could not be stored; the journal is kept");
                let later = task.now.get().mono.after_ms(RETRY_MS);
                task.snapshots.not_before.set(later);
            }
        }
        task.snapshots.running.set(false);
    });
}

async fn round(world: &Rc<World>) -> Result<(), DiskError> {
    let mut dirty = Vec::new();
    for (&shard, entry) in world.shards.borrow().iter() {
        if entry.state.number() > entry.stored {
            dirty.push(shard);
        }
    }
    let (mut taken, mut len) = (Vec::new(), 0);
    for shard in dirty {
        let one = take(world, shard).await;
        len += one.len;
        taken.push(one);
        if taken.len() == SHARDS_PER_SYNC || len > BYTES_PER_SYNC {
            store(world, std::mem::take(&mut taken)).await?;
            len = 0;
        }
    }
    store(world, taken).await
}

/// Takes the snapshot of a shard as it is in the next turn, a slice in each turn from then on.
async fn take(world: &World, shard: ShardId) -> Taken {
    world.sleep_ms(0).await;
    let (cluster, node) = (world.config.map.cluster, world.config.node);
    let (number, begun) = world.with_mut(shard, |Shard { state, .. }| {
        let begun = (!state.is_empty()).then(|| Encoder::begin(cluster, node, state));
        (state.number(), begun)
    });
    let Some(mut encoder) = begun else {
        return Taken { shard, number, bytes: None, len: 0 };
    };
    world.chunks.borrow_mut().begin_snapshot(shard);
    while !world.with_mut(shard, |shard| encoder.state_slice(&mut shard.state)) {
        world.sleep_ms(0).await;
    }
    let chunks = &world.chunks;
    while !encoder.chunk_slice(|out, room| chunks.borrow_mut().snapshot_slice(out, room)) {
        world.sleep_ms(0).await;
    }
    let len = encoder.len();
    Taken { shard, number, bytes: Some(encoder.finish()), len }
}

async fn store(world: &World, taken: Vec<Taken>) -> Result<(), DiskError> {
    if taken.is_empty() {
        return Ok(());
    }
    world.disk.sync_volume().await?;
    world.on_device(world.appended()).await;
    for Taken { shard, number, bytes, .. } in taken {
        let done = world.disk.submit(DiskOp::Snapshot { shard, bytes }).await;
        if let Ok(done) = done {
            done?;
        }
        world.with_mut(shard, |shard| shard.stored = number);
    }
    Ok(())
}

/// A few at a time share the syncs.
const SHARDS_PER_SYNC: usize = 16;
/// Large shards do not wait for others, so that memory is bounded by the largest.
const BYTES_PER_SYNC: usize = 4 << 20;
/// After a failure.
const RETRY_MS: u64 = 10_000;
