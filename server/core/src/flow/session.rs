//! Sessions: who may connect, what a session claims after a restart, and how it ends.
//!
//! ```text
//! Proven -> fence the endpoint on all cores -> keeper: Admit -> journaled -> admit the connection
//! expired or Leave -> keeper: End to all cores (opens, locks, replies go) -> journaled as ended
//! ```
//! The keeper is the core that owns the node's first shard; the sessions are journaled there.
//!
//! 1. A connection is served only after its endpoint's earlier one is closed on every core and all mail about it has
//!    arrived: nothing late of it runs.
//! 2. A session is journaled before its first connection is served, and as ended only after every core has dropped it.

use std::rc::Rc;

use sealfs_meta::{Change, Origin, Record};
use sealfs_proto::{Claim, Errno, Reply, Request, SessionId, Status};
use sealfs_transport::tasks::join_all;
use sealfs_transport::{CloseReason, Conn, Hello, Peer};

use super::{node, reclaim};
use crate::figures::Counted;
use crate::locks::Taken;
use crate::mail::{Answered, Errand, Order, Outcome};
use crate::memory;
use crate::world::{Caller, World, errno};

/// Somebody has proven the key: decides whether the connection is admitted.
pub(crate) fn greet(world: &Rc<World>, conn: Conn, hello: Hello) {
    let task = Rc::clone(world);
    world.spawner.spawn(async move {
        while !task.started.get() {
            task.starting.wait().await;
        }
        let verdict = match hello.peer {
            Peer::Node { .. } => {
                fence(&task, hello.peer).await;
                Ok(())
            }
            // A refusal would be the end for a client that has never been here. It finds the connection closed, and comes again.
            Peer::Client { .. } if task.stopping.get() => return,
            Peer::Client { session, .. } => {
                fence(&task, hello.peer).await;
                admit_client(&task, session, hello.resume).await
            }
        };
        task.calls.admit(conn, verdict);
    });
}

async fn admit_client(
    world: &Rc<World>,
    session: SessionId,
    resume: bool,
) -> Result<(), CloseReason> {
    if session == SessionId(0) {
        return Err(CloseReason::Refused("a session has a number other than 0".into()));
    }
    let keeper = world.keeper();
    let answered = if keeper == world.config.core {
        admit(world, session, resume).await
    } else {
        world.errand(keeper, Errand::Admit { session, resume }).await
    };
    let Answered::Admitted { owes_claim } = answered else { return Err(CloseReason::NoSession) };
    let mut known = world.known.borrow_mut();
    known.alive.entry(session).or_insert(false);
    if owes_claim {
        known.owing.insert(session);
    }
    Ok(())
}

/// At the keeper: whether the session may be served.
pub(crate) async fn admit(world: &Rc<World>, session: SessionId, resume: bool) -> Answered {
    let now = world.now.get();
    if let Some(owes_claim) = world.leases.borrow_mut().greet(session, now.mono) {
        return Answered::Admitted { owes_claim };
    }
    if resume || world.ending.borrow().contains(&session) {
        return Answered::Done(false);
    }
    world.leases.borrow_mut().begin(session, now.mono);
    let shard = world.session_shard();
    let change = Change::Session { session, alive: true };
    world.commit(shard, &Record { origin: None, now: now.wall, change }, None);
    world.acknowledged(world.touched(shard)).await;
    Answered::Admitted { owes_claim: false }
}

/// Drops or finishes everything of the endpoint's earlier connections, on all cores.
async fn fence(world: &Rc<World>, peer: Peer) {
    let siblings = world.other_cores().map(|core| world.errand(core, Errand::Fence(peer)));
    let siblings = join_all(siblings);
    fence_here(world, peer).await;
    siblings.await;
}

/// The same on this core: closes them, and has all that came over them arrive at the other cores.
pub(crate) async fn fence_here(world: &Rc<World>, peer: Peer) {
    let earlier = world.connections.borrow().of(peer);
    for &conn in &earlier {
        world.calls.close(conn);
    }
    drop_waits(world, peer);
    if !earlier.is_empty() {
        let flushes = world.other_cores().map(|core| world.errand(core, Errand::Flush));
        join_all(flushes).await;
        drop_waits(world, peer);
    }
}

/// Ends an endpoint's waits for locks: it asks for them again.
fn drop_waits(world: &World, peer: Peer) {
    let Peer::Client { session, endpoint } = peer else { return };
    let dropped = world.locks.borrow_mut().drop_waits(session, endpoint);
    for ticket in dropped {
        world.respond_after(Caller::Change(ticket), world.written(), errno(Errno::EINTR));
    }
}

/// Serves `Claim` at the core that was asked: all cores take what is theirs.
pub(crate) async fn claim(world: &Rc<World>, order: &Order) -> Outcome {
    let (Request::Claim { last, .. }, Peer::Client { session, .. }) = (&order.request, order.peer)
    else {
        return errno(Errno::EPROTO);
    };
    let owing = world.known.borrow().owing.contains(&session);
    if owing {
        let mut order = Order { bulk: None, request: order.request.clone(), ..*order };
        // Claims carry no sequence of their own; their session stands where a change has its origin.
        order.origin = Some(claimant(session));
        let outcome = node::everywhere(world, &order).await;
        if outcome.reply == Err(Status::NoSession) {
            to_keeper(world, Errand::Leave(session)).await;
        }
        if outcome.reply.is_err() {
            return outcome;
        }
    }
    if *last {
        // Every core hears of it: what another endpoint of the session would claim later may have been given back by then.
        let siblings = world.other_cores().map(|core| world.errand(core, Errand::Claimed(session)));
        let siblings = join_all(siblings);
        keep(world, Errand::Claimed(session)).await;
        siblings.await;
    }
    Ok(Reply::Done).into()
}

fn claimant(session: SessionId) -> Origin {
    let none = sealfs_proto::Sequence(0);
    Origin { session, sequence: none, watermark: none }
}

/// What of the claims lies in this core's shards. A client claims no lock that it may have lost. If a lock is another's all the
/// same the session is over, so that the program is told: one that goes on without its lock mixes up data.
pub(crate) fn claim_share(world: &Rc<World>, claims: &[Claim], origin: Option<Origin>) -> Outcome {
    let Some(Origin { session, .. }) = origin else { return errno(Errno::EPROTO) };
    for claim in claims.iter().filter(|claim| world.owns(claim.ino.shard())) {
        let exists = world.with(claim.ino.shard(), |state| state.inode(claim.ino).is_some());
        if !exists {
            continue;
        }
        world.opens.borrow_mut().claim(claim.ino, session, claim.opens);
        for &lock in &claim.locks {
            let (taken, _) = world.locks.borrow_mut().take(claim.ino, session, lock, None);
            if taken != Taken::Granted {
                tracing::warn!(ino = %claim.ino, session = session.0, "a claimed lock is another's");
                return Err(Status::NoSession).into();
            }
        }
    }
    Ok(Reply::Done).into()
}

/// Serves `Leave`.
pub(crate) async fn leave(world: &Rc<World>, order: &Order) -> Outcome {
    let Peer::Client { session, .. } = order.peer else { return errno(Errno::EPROTO) };
    to_keeper(world, Errand::Leave(session)).await;
    Ok(Reply::Done).into()
}

async fn to_keeper(world: &Rc<World>, errand: Errand) {
    let keeper = world.keeper();
    if keeper == world.config.core {
        keep(world, errand).await;
    } else {
        world.errand(keeper, errand).await;
    }
}

/// An errand to the keeper, at the keeper; `Claimed` at every core.
pub(crate) async fn keep(world: &Rc<World>, errand: Errand) {
    let now = world.now.get().mono;
    match errand {
        Errand::Claimed(session) => {
            world.known.borrow_mut().owing.remove(&session);
            world.leases.borrow_mut().claimed(session);
        }
        Errand::Leave(session) => end(world, session).await,
        Errand::Heard(sessions) => {
            let mut leases = world.leases.borrow_mut();
            sessions.into_iter().for_each(|session| leases.hear(session, now));
        }
        _ => {}
    }
}

/// Ends a session everywhere, then says so in the journal.
async fn end(world: &Rc<World>, session: SessionId) {
    if !world.ending.borrow_mut().insert(session) {
        return;
    }
    world.leases.borrow_mut().end(session);
    let siblings = world.other_cores().map(|core| world.errand(core, Errand::End(session)));
    let siblings = join_all(siblings);
    end_here(world, session).await;
    siblings.await;
    let change = Change::Session { session, alive: false };
    let record = Record { origin: None, now: world.now.get().wall, change };
    world.commit(world.session_shard(), &record, None);
    world.ending.borrow_mut().remove(&session);
    world.count(Counted::SessionsEnded, 1);
}

/// Drops what this core has of a session; done when the journal says so.
pub(crate) async fn end_here(world: &Rc<World>, session: SessionId) {
    let conns = world.connections.borrow().of_session(session);
    conns.into_iter().for_each(|conn| world.calls.close(conn));
    world.known.borrow_mut().forget(session);
    let waiting = world.locks.borrow_mut().waits_of(session);
    for ticket in waiting {
        world.respond_after(Caller::Change(ticket), world.written(), Err(Status::NoSession).into());
    }
    let granted = world.locks.borrow_mut().end_session(session);
    memory::grant(world, world.session_shard(), granted);
    let closed = world.opens.borrow_mut().end_session(session);
    closed.into_iter().for_each(|ino| reclaim::consider(world, ino));
    let mut knowing = Vec::new();
    for (&shard, entry) in world.shards.borrow().iter() {
        if shard != world.session_shard() && entry.state.knows(session) {
            knowing.push(shard);
        }
    }
    for shard in knowing {
        let change = Change::Session { session, alive: false };
        world.commit(shard, &Record { origin: None, now: world.now.get().wall, change }, None);
    }
    world.acknowledged(world.appended()).await;
}

/// Ends expired sessions and the grace period, and tells the keeper who was heard of; called once a turn.
pub(crate) fn tend(world: &Rc<World>) {
    let now = world.now.get().mono;
    if !world.started.get() {
        return;
    }
    if world.hear_at.get() <= now {
        world.hear_at.set(now.after_ms(world.config.lease_ms / 8));
        hear_paused(world);
        let heard = world.known.borrow_mut().take_heard();
        if !heard.is_empty() {
            let task = Rc::clone(world);
            world.spawner.spawn(async move { to_keeper(&task, Errand::Heard(heard)).await });
        }
    }
    if world.keeper() != world.config.core {
        return;
    }
    world.leases.borrow_mut().look(now);
    for session in world.leases.borrow().expired(now) {
        let task = Rc::clone(world);
        world.spawner.spawn(async move { end(&task, session).await });
    }
    let over = world.known.borrow().grace && !world.leases.borrow().in_grace(now);
    if over {
        grace_over(world);
        let task = Rc::clone(world);
        world.spawner.spawn(async move {
            let all = task.other_cores().map(|core| task.errand(core, Errand::GraceOver));
            join_all(all).await;
        });
    }
}

/// Who is not listened to is not silent: the sessions of paused connections count as heard.
fn hear_paused(world: &World) {
    let connections = world.connections.borrow();
    if !connections.paused {
        return;
    }
    let mut known = world.known.borrow_mut();
    for conn in connections.clients() {
        if let Some(Peer::Client { session, .. }) = connections.peer(conn)
            && let Some(heard) = known.alive.get_mut(&session)
        {
            *heard = true;
        }
    }
}

/// No session of before the restart holds anything that it has not claimed.
pub(crate) fn grace_over(world: &Rc<World>) {
    world.known.borrow_mut().grace = false;
    reclaim::consider_all(world);
}
