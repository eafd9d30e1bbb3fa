//! Changes over several shards: the coordinator's and the participants' side (the protocol is drawn in
//! `sealfs_meta`'s `tx`).
//!
//! 1. Every step is forced, so that all journals agree after a loss of power, too: a share is on the device before the
//!    decision is journaled, the decision before any participant hears of it, and what all participants have made of it
//!    before it is forgotten. Only the client's answer does not wait for the device: a decision that is lost was heard by
//!    nobody, and all that is prepared is given up.
//! 2. A coordinator sends a decision to commit until every participant has acknowledged it, over any number of restarts; a
//!    participant that has lost its share never does.
//! 3. A participant never gives up a prepared share by itself: it asks the coordinator again and again.
//! 4. Nobody waits holding keys: a participant whose key is held answers EAGAIN.

use std::collections::BTreeSet;
use std::rc::Rc;

use sealfs_meta::{Refused, State, Transaction, forget, prepare, read, resolve, waits, walk_waits};
use sealfs_proto::{Errno, Reply, Request, ShardId, Status, TxId};
use sealfs_transport::tasks::join_all;

use super::rename::{self, RenameLock};
use crate::figures::Counted;
use crate::mail::Outcome;
use crate::serve::follow;
use crate::world::{Job, World, errno};

/// How an attempt ended.
pub(crate) enum Ended {
    /// Decided to commit; the reply, to leave at the durability point.
    Committed(Reply),
    /// A participant's check failed.
    Refused(Errno),
    /// A key is held somewhere, a node does not answer, or the rename lock was broken.
    Busy,
    /// The range of numbers is spent.
    NoNumbers,
}

/// Runs one attempt as the coordinator. The transaction was planned on the present state of `shard`.
pub(crate) async fn run(
    world: &Rc<World>,
    shard: ShardId,
    mut transaction: Transaction,
    lock: Option<&RenameLock>,
) -> Ended {
    let drawn = world.with_mut(shard, |shard| {
        let tx = shard.state.draw_tx()?;
        shard.state.hold(tx, &transaction.own);
        Some(tx)
    });
    let Some(tx) = drawn else { return Ended::NoNumbers };
    world.count(Counted::Transactions, 1);
    transaction.oldest = transaction.oldest.min(first_forgetting(world, shard));
    let asks: Vec<_> = transaction.prepares(tx).collect();
    let asks = asks.into_iter().map(|(shard, share)| world.ask(shard, Request::Prepare(share)));
    let mut attrs = Vec::new();
    let mut refused = None;
    for outcome in join_all(asks).await {
        match outcome.reply {
            Ok(Reply::Prepared { attrs: more }) => attrs.extend(more),
            Err(Status::Errno(error)) if error != Errno::EAGAIN => {
                refused = Some(Ended::Refused(error));
            }
            _ => refused = refused.or(Some(Ended::Busy)),
        }
    }
    if let (None, Some(lock)) = (&refused, lock)
        && !rename::confirm(world, lock).await
    {
        refused = Some(Ended::Busy);
    }
    if world.has_ended(transaction.origin.session) {
        refused = Some(Ended::Busy);
    }
    if let Some(ended) = refused {
        abort(world, shard, tx, transaction);
        return ended;
    }
    // CRASH: before this record the transaction is aborted, from it on it is committed.
    let record = transaction.decide(tx, &attrs);
    let applied = world.commit(shard, &record, None);
    let _ = follow(world, shard, applied.effects);
    world.free(shard);
    spread(world, shard, tx);
    Ended::Committed(applied.reply)
}

/// The first number of a transaction that a loss of power may bring back.
fn first_forgetting(world: &Rc<World>, shard: ShardId) -> u64 {
    let synced = world.log.borrow().gate.synced();
    world.with_mut(shard, |shard| {
        shard.forgetting.retain(|_, batch| *batch > synced);
        shard.forgetting.keys().next().copied().unwrap_or(u64::MAX)
    })
}

fn abort(world: &Rc<World>, shard: ShardId, tx: TxId, transaction: Transaction) {
    world.with_mut(shard, |shard| shard.state.release(tx));
    world.free(shard);
    for (other, _) in transaction.others {
        // A participant that this does not reach asks for the decision.
        let task = Rc::clone(world);
        world.spawner.spawn(async move {
            let _ = task.ask(other, Request::Resolve { tx, commit: false }).await;
        });
    }
}

/// Tells all participants of a decision to commit until all have acknowledged it, then forgets it.
pub(crate) fn spread(world: &Rc<World>, shard: ShardId, tx: TxId) {
    let task = Rc::clone(world);
    world.spawner.spawn(async move {
        let world = &task;
        world.forced(world.touched(shard)).await;
        let others = world.with(shard, |state| {
            let decided = state.decided().find(|(decided, _)| *decided == tx);
            decided.map(|(_, others)| others.to_vec()).unwrap_or_default()
        });
        join_all(others.into_iter().map(|other| tell(world, other, tx))).await;
        let now = world.now.get().wall;
        let record = world.with(shard, |state| forget(state, tx, now));
        if let Some(record) = record {
            world.commit(shard, &record, None);
            let batch = world.touched(shard);
            world.with_mut(shard, |shard| shard.forgetting.insert(tx.number, batch));
        }
    });
}

async fn tell(world: &Rc<World>, participant: ShardId, tx: TxId) {
    let mut pause_ms = 10;
    loop {
        match world.ask(participant, Request::Resolve { tx, commit: true }).await.reply {
            Ok(_) => return,
            Err(Status::Errno(Errno::ENOENT)) => {
                tracing::error!(
                    %participant, coordinator = %tx.coordinator, number = tx.number,
                    "a shard has lost its share of a change that was decided: the change is half done, its decision is kept"
                );
                world.count(Counted::TransactionsHalfLost, 1);
                pause_ms = LOST_RETRY_MS;
            }
            Err(_) => pause_ms = (pause_ms * 2).min(RETRY_MS),
        }
        world.back_off(pause_ms).await;
    }
}

/// Serves a request between nodes.
pub(crate) fn serve(world: &Rc<World>, job: Job) {
    let shard = job.order.shard;
    match &job.order.request {
        Request::Prepare(_) => serve_prepare(world, job),
        Request::Resolve { tx, commit } => {
            let settled = settle(world, shard, *tx, *commit);
            let reply = settled.map(|()| Reply::Done).map_err(Status::Errno);
            world.respond_forced(job.caller, shard, reply.into());
        }
        Request::Decision { tx } => {
            let decision = world.with(shard, |state| state.decision(*tx));
            world.respond_forced(job.caller, shard, Ok(Reply::Decision(decision)).into());
        }
        Request::RenameLock { tx, take } => {
            let (tx, take) = (*tx, *take);
            rename::serve(world, job, tx, take);
        }
        _ => world.respond(job.caller, shard, errno(Errno::EPROTO)),
    }
}

fn serve_prepare(world: &Rc<World>, job: Job) {
    let shard = job.order.shard;
    let Request::Prepare(request) = &job.order.request else { return };
    let tx = request.tx;
    if let Some(reply) = world.with(shard, |state| state.is_prepared(tx)) {
        return world.respond_forced(job.caller, shard, Ok(reply).into());
    }
    let outcome: Outcome = match world.with(shard, |state| prepare(state, request)) {
        Ok(record) => {
            let applied = world.commit(shard, &record, None);
            watch(world, shard, tx);
            Ok(applied.reply).into()
        }
        Err(Refused::Errno(error)) => errno(error),
        Err(Refused::Busy) => errno(Errno::EAGAIN),
        Err(Refused::Numbers) => {
            world.park(job);
            return super::numbers::reserve(world, shard);
        }
    };
    world.respond_forced(job.caller, shard, outcome);
}

/// A participant learned the decision.
fn settle(world: &Rc<World>, shard: ShardId, tx: TxId, commit: bool) -> Result<(), Errno> {
    let now = world.now.get().wall;
    let record = world.with(shard, |state| resolve(state, tx, commit, now))?;
    if let Some(record) = record {
        let applied = world.commit(shard, &record, None);
        let _ = follow(world, shard, applied.effects);
        world.free(shard);
    }
    Ok(())
}

/// Whether a node walks up the tree, see [`rename::walk`].
pub(crate) fn is_walk(world: &World, job: &Job) -> bool {
    matches!(job.order.request, Request::Parent { .. }) && world.is_of_node(&job.caller)
}

/// The transactions whose decisions matter for what the request reads.
pub(crate) fn open(state: &State, job: &Job, is_walk: bool) -> BTreeSet<TxId> {
    match job.order.request {
        Request::Parent { ino } if is_walk => walk_waits(state, ino),
        _ => waits(state, &job.order.request),
    }
}

/// Answers a request that reads what prepared transactions hold. A transaction that is not decided now was not decided
/// when the answer was read: that is the truth then, and nobody waits until nobody changes anything. Only a walk up the
/// tree waits for the decision, for it goes on from what it has read.
pub(crate) fn look(world: &Rc<World>, job: Job) {
    let task = Rc::clone(world);
    world.spawner.spawn(async move {
        let (world, shard, begun) = (&task, job.order.shard, task.now.get().mono);
        let request = &job.order.request;
        let is_walk = is_walk(world, &job);
        loop {
            let (reply, holding) =
                world.with(shard, |state| (read(state, request), open(state, &job, is_walk)));
            let asks =
                holding.iter().map(|&tx| world.ask(tx.coordinator, Request::Decision { tx }));
            let mut unknown = false;
            let mut decided = false;
            for (&tx, outcome) in holding.iter().zip(join_all(asks).await) {
                match outcome.reply {
                    Ok(Reply::Decision(None)) => unknown |= is_walk,
                    Ok(Reply::Decision(Some(commit))) => {
                        decided = true;
                        let _ = settle(world, shard, tx, commit);
                    }
                    _ => unknown = true,
                }
            }
            if !unknown && !decided {
                return world.respond(job.caller, shard, reply.map_err(Status::Errno));
            }
            if unknown && world.now.get().mono.ms_since(begun) > LOOK_MS {
                return world.respond(job.caller, shard, Err(Status::Busy));
            }
            if unknown {
                world.back_off(UNKNOWN_PAUSE_MS).await;
            }
        }
    });
}

/// Asks the coordinator of a prepared transaction for its decision as long as it has not come.
pub(crate) fn watch(world: &Rc<World>, shard: ShardId, tx: TxId) {
    let task = Rc::clone(world);
    world.spawner.spawn(async move {
        loop {
            task.sleep_ms(DOUBT_MS).await;
            if task.with(shard, |state| state.is_prepared(tx).is_none()) {
                return;
            }
            let decision = task.ask(tx.coordinator, Request::Decision { tx }).await.reply;
            if let Ok(Reply::Decision(Some(commit))) = decision {
                let _ = settle(&task, shard, tx, commit);
            }
        }
    });
}

/// Who reads what a coordinator holds that is not reached is told Busy after so long, and asks again.
const LOOK_MS: u64 = 3_000;
const UNKNOWN_PAUSE_MS: u64 = 20;
/// A decision normally comes within a millisecond.
const DOUBT_MS: u64 = 500;
/// Who has lost its share will hardly find it.
const LOST_RETRY_MS: u64 = 60_000;
/// Between two tries to reach a participant.
const RETRY_MS: u64 = 1_000;
