//! Snapshots of the shards that have changed, and then the cut of the journal.
//!
//! ```text
//! end = journal's end -> a few shards: encode, one per turn -> SyncVolume -> store each -> ... -> all -> Cut(end)
//! ```
//! 1. A snapshot is stored only after a sync of the volume that began after it was encoded: recovery trusts its extents.
//! 2. The journal is cut only below what was its end when the round began, and only if every shard that had changed is
//!    stored.

use std::cell::Cell;
use std::rc::Rc;

use sealfs_meta::snapshot;
use sealfs_proto::ShardId;
use sealfs_transport::Instant;

use crate::world::World;
use crate::{DiskError, DiskOp};

/// How far the snapshots are.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Where the journal begins that no snapshot contains.
    pub(crate) from: Cell<u64>,
    running: Cell<bool>,
    not_before: Cell<Instant>,
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
                task.count("snapshot_rounds", 1);
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
    for shards in dirty.chunks(SHARDS_PER_SYNC) {
        let mut encoded = Vec::new();
        for &shard in shards {
            world.sleep_ms(0).await;
            encoded.push((shard, number(world, shard), shard_bytes(world, shard)));
        }
        world.disk.sync_volume().await?;
        for (shard, number, bytes) in encoded {
            let done = world.disk.submit(DiskOp::Snapshot { shard, bytes }).await;
            if let Ok(done) = done {
                done?;
            }
            world.with_mut(shard, |shard| shard.stored = number);
        }
    }
    Ok(())
}

fn number(world: &World, shard: ShardId) -> u64 {
    world.with(shard, sealfs_meta::State::number)
}

fn shard_bytes(world: &World, shard: ShardId) -> Option<Vec<u8>> {
    let chunks = world.chunks.borrow().encode_shard(shard);
    let (cluster, node) = (world.config.map.cluster, world.config.node);
    world.with(shard, |state| {
        (!state.is_empty()).then(|| snapshot::encode(cluster, node, state, &chunks))
    })
}

/// A few at a time share a sync of the volume and bound the memory of what is encoded.
const SHARDS_PER_SYNC: usize = 16;
/// After a failure.
const RETRY_MS: u64 = 10_000;
