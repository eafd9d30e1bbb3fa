//! Reserving ranges of inode and transaction numbers: the record is on the device before the first number is drawn.
//!
//! A shard reserves when less than half a range is left, so that only its very first create waits for a sync. The syncs
//! of many shards are one.

use std::rc::Rc;

use sealfs_meta::{Change, Record};
use sealfs_proto::ShardId;

use crate::world::World;

/// Begins to reserve, unless that is under way or there are enough.
pub(crate) fn reserve(world: &Rc<World>, shard: ShardId) {
    let range = world.with_mut(shard, |shard| {
        let range = shard.state.range().filter(|_| !shard.reserving);
        shard.reserving |= range.is_some();
        range
    });
    let Some(range) = range else { return };
    let record = Record { origin: None, now: world.now.get().wall, change: Change::Range(range) };
    world.commit(shard, &record, None);
    let (task, batch) = (Rc::clone(world), world.touched(shard));
    world.spawner.spawn(async move {
        task.on_device(batch).await;
        task.with_mut(shard, |shard| {
            shard.reserving = false;
            shard.state.range_synced();
        });
        task.free(shard);
    });
}

/// Waits for numbers.
pub(crate) async fn reserved(world: &Rc<World>, shard: ShardId) {
    let freed = world.with_mut(shard, |shard| shard.freed.wait());
    reserve(world, shard);
    let waits = world.with_mut(shard, |shard| shard.reserving);
    if waits {
        freed.await;
    }
}
