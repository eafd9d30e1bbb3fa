//! Shrinking a file: the record says where the cut is, then every node that may hold data beyond it discards that, and
//! only then the request is answered and the file may grow.
//!
//! CRASH: data goes only after the record that says so can no longer be lost, see [`node::discard_until_done`]. The cut
//! stands in the inode until `CutDone`; after a restart it is carried out again. Discarding twice is
//! discarding once; only how many blocks the first try has freed is not known any more, unless nothing is left.

use std::rc::Rc;

use sealfs_meta::{Change, Record};
use sealfs_proto::{Errno, Reply, Request, Status};

use super::node;
use crate::locks::Ticket;
use crate::mail::{Order, Outcome};
use crate::serve::{Cut, First};
use crate::world::{Caller, World, errno};

/// Does what comes before the answer, then answers the change.
pub(crate) fn answer_after(
    world: &Rc<World>,
    first: First,
    ticket: Ticket,
    order: Order,
    reply: Reply,
) {
    let task = Rc::clone(world);
    world.spawner.spawn(async move {
        let outcome = before_answer(&task, first, &order, reply).await;
        task.respond(Caller::Change(ticket), order.shard, outcome);
    });
}

/// Does what comes before the answer; the answer.
pub(crate) async fn before_answer(
    world: &Rc<World>,
    first: First,
    order: &Order,
    reply: Reply,
) -> Outcome {
    if first.on_device {
        world.on_device(world.touched(order.shard)).await;
    }
    match first.cut {
        Some(cut) => carry_out(world, cut, &order.request).await,
        None => Ok(reply).into(),
    }
}

/// Goes on with a cut that was begun before a restart.
pub(crate) fn resume(world: &Rc<World>, cut: Cut) {
    let task = Rc::clone(world);
    world.spawner.spawn(async move {
        discard(&task, cut, false).await;
    });
}

/// Carries a cut out; the outcome of the request that made it.
async fn carry_out(world: &Rc<World>, cut: Cut, request: &Request) -> Outcome {
    discard(world, cut, true).await;
    let attr =
        world.with(cut.ino.shard(), |state| state.inode(cut.ino).map(|inode| inode.attr.clone()));
    match (request, attr) {
        (Request::SetAttr { .. } | Request::Open { .. }, Some(attr)) => {
            Ok(Reply::Attr(attr)).into()
        }
        (_, Some(_)) => Err(Status::Errno(Errno::EPROTO)).into(),
        (_, None) => errno(Errno::ESTALE),
    }
}

/// `first`: nobody has begun to carry the cut out before.
async fn discard(world: &Rc<World>, cut: Cut, first: bool) {
    let Cut { ino, from, bound, chunk_size } = cut;
    let shard = ino.shard();
    let freed = node::discard_until_done(world, ino, chunk_size, from, bound).await;
    // What is empty has no blocks, whatever a first try has freed already. Where all is known the sum is right, also if a
    // writer's settlement is still on its way.
    let blocks = world.with(shard, |state| match state.inode(ino) {
        Some(inode) if from == 0 && !(first && freed.exact) => inode.attr.blocks.saturating_neg(),
        _ => freed.blocks,
    });
    let (now, change) = (world.now.get().wall, Change::CutDone { ino, blocks });
    world.commit(shard, &Record { origin: None, now, change }, None);
    world.free(shard);
}
