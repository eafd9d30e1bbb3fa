//! Changes of what a core keeps in memory only: opens, locks, and the replies to their requests.
//!
//! 1. A reply is kept until its session's endpoint says that it has arrived, like those that the shards keep.
//! 2. An open that a shard's record brought about is counted once in the life of this process; if its request comes again
//!    after a restart, the kept reply counts it anew, for the session could not claim what it had not heard of.

use std::rc::Rc;

use sealfs_meta::Origin;
use sealfs_proto::{
    Errno, Ino, Kind, LockKind, Reply, Request, Sequence, SessionId, ShardId, Status,
};
use sealfs_transport::Peer;

use crate::flow;
use crate::locks::{Taken, Ticket};
use crate::world::{ENDED_MAX, Job, Known, World, errno};

/// Serves a change of memory.
pub(crate) fn serve(world: &Rc<World>, job: Job) {
    let Some(origin) = job.order.origin else { return };
    let session = origin.session;
    match job.order.request {
        Request::Close { ino, opens } => {
            if world.opens.borrow_mut().close(ino, session, opens) {
                flow::reclaim::consider(world, ino);
            }
            answer(world, job, origin, Ok(Reply::Done));
        }
        Request::LockCancel { ino, waiting } => {
            if world.locks.borrow_mut().cancel(ino, (session, waiting)) {
                let outcome = errno(Errno::EINTR);
                world.respond(
                    crate::world::Caller::Change((session, waiting)),
                    ino.shard(),
                    outcome,
                );
            }
            answer(world, job, origin, Ok(Reply::Done));
        }
        Request::Lock { ino, lock, wait } => {
            let knows = world.with(ino.shard(), |state| state.inode(ino).is_some());
            let asks = lock.kind != LockKind::Unlock;
            if !knows {
                return answer(world, job, origin, Err(Status::Errno(Errno::ESTALE)));
            }
            if asks && world.known.borrow().grace {
                return world.respond(job.caller, ino.shard(), Err(Status::Busy));
            }
            let waits = wait.then_some(origin.sequence);
            let (taken, granted) = world.locks.borrow_mut().take(ino, session, lock, waits);
            match taken {
                Taken::Granted => answer(world, job, origin, Ok(Reply::Done)),
                Taken::Conflict => answer(world, job, origin, Err(Status::Errno(Errno::EAGAIN))),
                Taken::Deadlock => answer(world, job, origin, Err(Status::Errno(Errno::EDEADLK))),
                Taken::Full => answer(world, job, origin, Err(Status::Errno(Errno::ENOLCK))),
                Taken::Waits => drop(world.begin(job, origin)),
            }
            grant(world, ino.shard(), granted);
        }
        _ => world.respond(job.caller, job.order.shard, errno(Errno::EPROTO)),
    }
}

/// Answers `LockTest`.
pub(crate) fn lock_test(world: &Rc<World>, job: Job) {
    let Request::LockTest { ino, lock } = job.order.request else { return };
    let Peer::Client { session, .. } = job.order.peer else {
        return world.respond(job.caller, job.order.shard, errno(Errno::EPROTO));
    };
    let conflict = world.locks.borrow().test(ino, session, lock);
    world.respond(job.caller, job.order.shard, Ok(Reply::Conflict(conflict)));
}

/// Answers the waits that were granted.
pub(crate) fn grant(world: &Rc<World>, shard: ShardId, granted: Vec<Ticket>) {
    for ticket in granted {
        world.known.borrow_mut().replies.insert(ticket, Some(Reply::Done));
        world.respond(crate::world::Caller::Change(ticket), shard, Ok(Reply::Done));
    }
}

fn answer(world: &Rc<World>, job: Job, origin: Origin, reply: Result<Reply, Status>) {
    if let Ok(reply) = &reply {
        let ticket = (origin.session, origin.sequence);
        world.known.borrow_mut().replies.insert(ticket, Some(reply.clone()));
    }
    world.respond(job.caller, job.order.shard, reply);
}

/// Counts the open that a request has brought about, if it has, and keeps the reply if nothing durable does.
pub(crate) fn count(world: &World, request: &Request, origin: Origin, reply: &Reply) {
    let ticket = (origin.session, origin.sequence);
    if let Some(ino) = opened(request, reply) {
        world.opens.borrow_mut().open(ino, origin.session);
        let keeps = matches!(request, Request::Open { .. }).then(|| reply.clone());
        world.known.borrow_mut().replies.insert(ticket, keeps);
    }
}

/// A kept reply is sent again: counts its open if that was in an earlier life of this node.
pub(crate) fn count_again(world: &World, request: &Request, ticket: Ticket, reply: &Reply) {
    let Some(ino) = opened(request, reply) else { return };
    let mut known = world.known.borrow_mut();
    if let std::collections::btree_map::Entry::Vacant(entry) = known.replies.entry(ticket) {
        entry.insert(None);
        world.opens.borrow_mut().open(ino, ticket.0);
    }
}

/// The inode of which the request has opened one more.
fn opened(request: &Request, reply: &Reply) -> Option<Ino> {
    match (request, reply) {
        (
            Request::Create { open: true, .. } | Request::CreateUnnamed { .. },
            Reply::Entry(entry),
        ) => (entry.kind == Kind::File).then_some(entry.ino),
        (Request::Open { .. }, Reply::Attr(attr)) => Some(attr.ino),
        _ => None,
    }
}

impl Known {
    /// What is kept of a change of memory; `Answered` if it lies below its endpoint's watermark. Takes the watermark of the
    /// request, which only grows.
    pub(crate) fn kept(
        &mut self,
        ticket: Ticket,
        watermark: Sequence,
    ) -> Option<Result<Reply, Status>> {
        let (session, sequence) = ticket;
        let endpoint = sequence.endpoint();
        let seen = self.watermarks.entry((session, endpoint)).or_insert(0);
        if watermark.endpoint() == endpoint && watermark.0 > *seen {
            let from = Sequence::first_of(endpoint).max(Sequence(*seen));
            let gone = (session, from)..(session, watermark);
            *seen = watermark.0;
            let gone: Vec<Ticket> = self.replies.range(gone).map(|(ticket, _)| *ticket).collect();
            for ticket in gone.into_iter().filter(|ticket| ticket.1.endpoint() == endpoint) {
                self.replies.remove(&ticket);
            }
        }
        if sequence.0 < *seen {
            return Some(Err(Status::Answered));
        }
        match self.replies.get(&ticket) {
            Some(Some(reply)) => Some(Ok(reply.clone())),
            _ => None,
        }
    }

    /// The sessions heard of since the last call.
    pub(crate) fn take_heard(&mut self) -> Vec<SessionId> {
        let mut sessions = Vec::new();
        for (&session, heard) in &mut self.alive {
            if std::mem::take(heard) {
                sessions.push(session);
            }
        }
        sessions
    }

    /// The session is no more.
    pub(crate) fn forget(&mut self, session: SessionId) {
        if self.ended.insert(session) {
            self.ended_first.push_back(session);
        }
        if self.ended.len() > ENDED_MAX {
            let first = self.ended_first.pop_front();
            first.into_iter().for_each(|first| _ = self.ended.remove(&first));
        }
        self.alive.remove(&session);
        self.owing.remove(&session);
        self.watermarks.retain(|(of, _), _| *of != session);
        self.replies.retain(|(of, _), _| *of != session);
    }
}
