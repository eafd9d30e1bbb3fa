//! The end of an inode that has no links: after its last close its chunks go everywhere, then it is forgotten.
//!
//! CRASH: unlinked inodes stand in the shard's state; after a restart (and its grace period, in which a session may claim
//! that it has one open) each is considered again. A node that is down is told when it is back: the inode waits for it. Other
//! journals are told only when the end is on the device, and the inode is forgotten only when what they did is, too: the
//! loss of power brings neither back a file without its data nor data without its file.

use std::rc::Rc;

use sealfs_meta::{Change, Effect, Record, Refused, plan_reclaim};
use sealfs_proto::Ino;

use super::data;
use super::node;
use crate::figures::Counted;
use crate::world::World;

/// Begins to reclaim the inode if it has no links and nobody has it open.
pub(crate) fn consider(world: &Rc<World>, ino: Ino) {
    if !is_over(world, ino) {
        return;
    }
    let task = Rc::clone(world);
    world.spawner.spawn(async move { begin(&task, ino).await });
}

fn is_over(world: &World, ino: Ino) -> bool {
    let shards = world.shards.borrow();
    let inode = shards.get(&ino.shard()).and_then(|shard| shard.state.inode(ino));
    let unlinked = inode.is_some_and(|inode| inode.attr.nlink == 0);
    unlinked && !world.known.borrow().grace && !world.opens.borrow().is_open(ino)
}

/// Journals the end, and in the same entry that chunk 0 is free.
async fn begin(world: &Rc<World>, ino: Ino) {
    let shard = ino.shard();
    loop {
        // Whoever still writes chunk 0 finishes first; from here to the commit there is no await.
        let guard = data::enter(world, ino, 0, 0, u32::MAX).await;
        let plan = if is_over(world, ino) {
            let now = world.now.get().wall;
            world.with(shard, |state| plan_reclaim(state, ino, now))
        } else {
            Err(Refused::Errno(sealfs_proto::Errno::ENOENT))
        };
        match plan {
            Ok(record) => {
                let applied = data::commit_whole_discard(world, &guard, ino, &record);
                data::leave(world, guard);
                for effect in applied.effects {
                    if let Effect::Reclaim { ino, chunk_size } = effect {
                        go_on(world, ino, chunk_size);
                    }
                }
                return;
            }
            Err(Refused::Busy | Refused::Numbers) => {
                data::leave(world, guard);
                world.back_off(BUSY_MS).await;
            }
            Err(Refused::Errno(_)) => return data::leave(world, guard),
        }
    }
}

/// Tells every node to drop the inode's chunks, then forgets it. Also after a restart.
pub(crate) fn go_on(world: &Rc<World>, ino: Ino, chunk_size: u32) {
    let task = Rc::clone(world);
    world.spawner.spawn(async move {
        let shard = ino.shard();
        let bound = task.with(shard, |state| state.inode(ino).map(|inode| inode.attr.bound));
        node::discard_until_done(&task, ino, chunk_size, 0, bound.unwrap_or(u64::MAX)).await;
        let (now, change) = (task.now.get().wall, Change::Reclaimed { ino });
        task.commit(shard, &Record { origin: None, now, change }, None);
        task.count(Counted::InodesReclaimed, 1);
    });
}

/// The grace period is over: considers every unlinked inode.
pub(crate) fn consider_all(world: &Rc<World>) {
    let mut inodes = Vec::new();
    for shard in world.shards.borrow().values() {
        inodes.extend(shard.state.unlinked().map(|(ino, _)| ino));
    }
    inodes.into_iter().for_each(|ino| consider(world, ino));
}

/// A transaction holds the inode: it ends soon.
const BUSY_MS: u64 = 20;
