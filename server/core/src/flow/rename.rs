//! The cluster-wide lock under which a directory moves to another parent, and the walk that excludes a cycle.
//!
//! ```text
//! take -> walk up both parents -> prepare everywhere -> confirm: the same grant still? -> decide -> give back
//! ```
//! The lock is memory of the root's shard: every grant has a number, and a restart of that node begins with other
//! numbers. A coordinator decides only if its grant is unbroken after everything is prepared. So a walk either sees
//! the tree before a move, or meets the moved directory's held key and waits for the decision; two moves never walk and
//! decide across each other.
//!
//! A grant ends when it is given back, or when its transaction's coordinator says that it is over (a crash there): the
//! next who asks finds out.

use std::cell::RefCell;
use std::rc::Rc;

use sealfs_proto::{Errno, Ino, Reply, Request, ShardId, Status, TxId};

use crate::mail::Outcome;
use crate::world::{Job, World, errno};

/// The lock as its holder knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RenameLock {
    tx: TxId,
    grant: u64,
}

/// The lock at the root's shard.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    held: Option<RenameLock>,
    asking: bool,
    next: u64,
}

/// The lock's state of the core that owns the root.
pub(crate) type GrantsCell = RefCell<Grants>;

/// Takes the lock, waiting as long as another has it.
pub(crate) async fn take(world: &Rc<World>, shard: ShardId) -> Result<RenameLock, Outcome> {
    let tx = loop {
        let drawn = world.with_mut(shard, |shard| shard.state.draw_tx());
        match drawn {
            Some(tx) => break tx,
            None => super::numbers::reserved(world, shard).await,
        }
    };
    // The lock's own number is open until it is given back, so that `Decision` tells whoever asks that it is in use.
    world.with_mut(shard, |shard| shard.state.hold(tx, &[]));
    for _ in 0..TRIES_MAX {
        match ask(world, tx, true).await {
            Ok(Reply::Offset(grant)) => return Ok(RenameLock { tx, grant }),
            Ok(_) => return Err(give_up(world, tx, errno(Errno::EPROTO))),
            Err(Status::Errno(Errno::EAGAIN) | Status::Busy) => world.back_off(5).await,
            Err(status) => return Err(give_up(world, tx, Err(status).into())),
        }
    }
    Err(give_up(world, tx, Err(Status::Busy).into()))
}

fn give_up(world: &Rc<World>, tx: TxId, outcome: Outcome) -> Outcome {
    give_back(world, RenameLock { tx, grant: 0 });
    outcome
}

/// Whether the lock was held without a break since it was taken.
pub(crate) async fn confirm(world: &Rc<World>, lock: &RenameLock) -> bool {
    matches!(ask(world, lock.tx, true).await, Ok(Reply::Offset(grant)) if grant == lock.grant)
}

/// Gives the lock back.
pub(crate) fn give_back(world: &Rc<World>, lock: RenameLock) {
    world.with_mut(lock.tx.coordinator, |shard| shard.state.release(lock.tx));
    let task = Rc::clone(world);
    world.spawner.spawn(async move {
        // If this is lost, the next who asks for the lock learns from `Decision` that it is over.
        let _ = ask(&task, lock.tx, false).await;
    });
}

async fn ask(world: &Rc<World>, tx: TxId, take: bool) -> Result<Reply, Status> {
    world.ask(Ino::ROOT.shard(), Request::RenameLock { tx, take }).await.reply
}

/// Walks up from each `.0`; meeting `.1` is EINVAL.
pub(crate) async fn walk(world: &Rc<World>, walks: &[(Ino, Ino)]) -> Result<(), Outcome> {
    for &(from, forbidden) in walks {
        let mut at = from;
        for depth in 0.. {
            if at == forbidden {
                return Err(errno(Errno::EINVAL));
            }
            if at == Ino::ROOT {
                break;
            }
            if depth == DEPTH_MAX {
                return Err(errno(Errno::ELOOP));
            }
            at = match world.ask(at.shard(), Request::Parent { ino: at }).await.reply {
                Ok(Reply::Parent(parent)) => parent,
                Ok(_) => return Err(errno(Errno::EPROTO)),
                Err(status) => return Err(Err(status).into()),
            };
        }
    }
    Ok(())
}

/// Serves `RenameLock` at the root's shard.
pub(crate) fn serve(world: &Rc<World>, job: Job, tx: TxId, take: bool) {
    let shard = job.order.shard;
    let mut grants = world.grants.borrow_mut();
    if !take {
        grants.held = grants.held.filter(|held| held.tx != tx);
        drop(grants);
        return world.respond(job.caller, shard, Ok(Reply::Done));
    }
    match grants.held {
        Some(held) if held.tx == tx => {
            drop(grants);
            world.respond(job.caller, shard, Ok(Reply::Offset(held.grant)));
        }
        Some(held) => {
            let asks = !std::mem::replace(&mut grants.asking, true);
            drop(grants);
            if asks {
                find_out_whether_over(world, held.tx);
            }
            world.respond(job.caller, shard, errno(Errno::EAGAIN));
        }
        None => {
            if grants.next == 0 {
                grants.next = world.random.borrow_mut().next() >> 1;
            }
            grants.next += 1;
            let grant = grants.next;
            grants.held = Some(RenameLock { tx, grant });
            drop(grants);
            world.respond(job.caller, shard, Ok(Reply::Offset(grant)));
        }
    }
}

fn find_out_whether_over(world: &Rc<World>, tx: TxId) {
    let task = Rc::clone(world);
    world.spawner.spawn(async move {
        task.sleep_ms(ASK_AFTER_MS).await;
        let decision = task.ask(tx.coordinator, Request::Decision { tx }).await.reply;
        let mut grants = task.grants.borrow_mut();
        grants.asking = false;
        if let Ok(Reply::Decision(Some(_))) = decision {
            grants.held = grants.held.filter(|held| held.tx != tx);
        }
    });
}

/// A path has at most 4,095 bytes, but a tree may be made deeper with relative names.
const DEPTH_MAX: u32 = 1 << 20;
/// Some ten seconds; then the client asks again.
const TRIES_MAX: u32 = 1_000;
/// A move takes some milliseconds; only one that takes longer is asked after.
const ASK_AFTER_MS: u64 = 200;
