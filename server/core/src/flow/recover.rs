//! The start of a core that has recovered: it tells the ledger what it uses, and goes on with everything that the last
//! process left unfinished.
//!
//! It does not sync what it found: gigabytes of dirty pages would keep the node away for as long as the disk takes to write
//! them. Blocks that replayed records have freed wait for the first sync mark as those freed later do, and whoever waits
//! for the device waits for what was replayed, too (`Batch::REPLAYED`).
//!
//! CRASH: a stop anywhere in here repeats it: nothing is journaled but numbers' ranges and the chunk store's repairs.

use std::rc::Rc;

use sealfs_meta::{Body, Change, Record, Unlinked};
use sealfs_proto::{Ino, Reply, ShardId, TxId, chunk_shard};

use super::{cut, reclaim, space, tx};
use crate::chunk::{ChunkRecord, Run};
use crate::mail::{Answered, Errand};
use crate::serve::Cut;
use crate::world::World;

/// Starts to serve, once all cores know what they use.
pub(crate) fn start(world: &Rc<World>, repairs: Vec<ChunkRecord>) {
    for repair in &repairs {
        append_repair(world, repair);
    }
    let task = Rc::clone(world);
    world.spawner.spawn(async move {
        if !repairs.is_empty() {
            // Serving on them takes for granted that they hold. Power was lost: there is little that is dirty.
            task.on_device(task.appended()).await;
        }
        let used = task.chunks.borrow().occupied();
        let answered = if task.config.core == space::LENDER {
            tell_used(&task, space::LENDER, used).await
        } else {
            task.errand(space::LENDER, Errand::Used(used)).await
        };
        if !matches!(answered, Answered::Done(true)) {
            return task.fail("the volume's space could not be accounted for".into());
        }
        task.started.set(true);
        task.starting.wake_all();
        resume(&task);
    });
}

/// A repair changes what is journaled, not what was replayed: the chunks contain it already.
fn append_repair(world: &Rc<World>, repair: &ChunkRecord) {
    let shard = chunk_shard(repair.ino(), repair.index(), world.config.map.shards());
    let change = Change::Chunk { reply: Reply::Done };
    let record = Record { origin: None, now: world.now.get().wall, change };
    world.commit_applied_chunk(shard, &record, repair);
}

/// At the lender: a core has told what it uses; answered when all have.
pub(crate) async fn tell_used(world: &Rc<World>, core: crate::CoreId, used: Vec<Run>) -> Answered {
    let (cores, total) = (world.config.cores, world.config.volume_blocks);
    let told = world.ledger.borrow_mut().tell(core, used, cores, total);
    match told {
        Ok(true) => world.starting.wake_all(),
        Ok(false) => {}
        Err(error) => {
            world.fail(format!("the volume's space is inconsistent: {error}"));
            return Answered::Done(false);
        }
    }
    while world.ledger.borrow().groups.is_none() {
        world.starting.wait().await;
    }
    Answered::Done(true)
}

/// Goes on with what is unfinished in any shard.
fn resume(world: &Rc<World>) {
    let (mut cuts, mut ends, mut prepared, mut decided) = (vec![], vec![], vec![], vec![]);
    for (&shard, entry) in world.shards.borrow().iter() {
        let state = &entry.state;
        for (ino, inode) in state.cuts().filter_map(|(ino, _)| Some((ino, state.inode(ino)?))) {
            if let Body::File { cut: Some(from) } = inode.body {
                let (bound, chunk_size) = (u64::MAX, inode.attr.chunk_size);
                cuts.push(Cut { ino, from, bound, chunk_size });
            }
        }
        let reclaiming = state.unlinked().filter(|(_, stage)| *stage == Unlinked::Reclaiming);
        ends.extend(
            reclaiming
                .filter_map(|(ino, _)| state.inode(ino).map(|inode| (ino, inode.attr.chunk_size))),
        );
        prepared.extend(state.prepared().map(|(tx, _)| (shard, tx)));
        decided.extend(state.decided().map(|(tx, _)| (shard, tx)));
    }
    cuts.into_iter().for_each(|cut| cut::resume(world, cut));
    ends.into_iter().for_each(|(ino, size): (Ino, u32)| reclaim::go_on(world, ino, size));
    prepared.into_iter().for_each(|(shard, tx): (ShardId, TxId)| tx::watch(world, shard, tx));
    decided.into_iter().for_each(|(shard, tx): (ShardId, TxId)| tx::spread(world, shard, tx));
    if !world.known.borrow().grace {
        reclaim::consider_all(world);
    }
}
