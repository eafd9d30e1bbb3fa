//! From a request to the step or the flow that serves it.
//!
//! ```text
//! route: a shard of this core -> serve          serve: reads         -> wait for held keys, answer
//!        a sibling's          -> errand                 changes      -> once -> step, or a flow if it has several
//!        another node's       -> StaleMap               chunks       -> flow
//!        of the whole node    -> flow::node             between nodes -> flow::tx
//! ```
//! 1. A change of a session is begun at most once: a kept reply is sent again, one below the watermark is refused, one that
//!    is running is answered to whoever asked last.
//! 2. What one step can do is done at once; only what must wait for something becomes a task.

use std::rc::Rc;

use sealfs_meta::{Effect, Facts, Kept, Origin, Planned, Refused, plan, read};
use sealfs_proto::{Errno, Ino, Reply, Request, ShardId, Status};
use sealfs_transport::Peer;

use crate::figures::Counted;
use crate::flow;
use crate::locks::Ticket;
use crate::mail::{Errand, Order};
use crate::memory;
use crate::world::{Caller, Job, Waits, World, errno};

/// Sends a request to where it belongs.
pub(crate) fn route(world: &Rc<World>, job: Job) {
    if let Err(status) = admissible(world, &job.order) {
        return world.respond_after(job.caller, world.written(), Err(status).into());
    }
    if is_of_node(&job.order.request) {
        return flow::node::serve(world, job);
    }
    match world.owners.get(&job.order.shard).copied() {
        Some(core) if core == world.config.core => serve(world, job),
        Some(core) => {
            world.siblings.ask(core, Errand::Serve(job.order), Waits::Caller(job.caller));
        }
        None => world.respond_after(job.caller, world.written(), Err(Status::StaleMap).into()),
    }
}

/// Serves a request for a shard of this core.
pub(crate) fn serve(world: &Rc<World>, job: Job) {
    world.count(Counted::Served, 1);
    let shard = job.order.shard;
    if !world.owns(shard) {
        return world.respond_after(job.caller, world.written(), Err(Status::StaleMap).into());
    }
    match &job.order.request {
        Request::Lookup { .. }
        | Request::List { .. }
        | Request::Stat { .. }
        | Request::ReadLink { .. }
        | Request::XattrGet { .. }
        | Request::XattrList { .. }
        | Request::Parent { .. } => look(world, job),
        Request::Read { .. } => flow::data::serve_read(world, job),
        Request::LockTest { .. } => memory::lock_test(world, job),
        Request::Prepare(_)
        | Request::Resolve { .. }
        | Request::Decision { .. }
        | Request::RenameLock { .. } => flow::tx::serve(world, job),
        Request::Close { .. } | Request::Lock { .. } | Request::LockCancel { .. } => {
            if let Some((job, _)) = once(world, job) {
                memory::serve(world, job);
            }
        }
        Request::Write { .. } => {
            if let Some((job, origin)) = once(world, job) {
                flow::data::serve_write(world, job, origin);
            }
        }
        _ => {
            if let Some((job, origin)) = once(world, job) {
                change(world, job, origin);
            }
        }
    }
}

/// A request that reads names or attributes. Where a key is held the coordinator is asked whether it has decided.
fn look(world: &Rc<World>, job: Job) {
    let shard = job.order.shard;
    let is_walk = flow::tx::is_walk(world, &job);
    let (reply, waits) = world.with(shard, |state| {
        (read(state, &job.order.request), flow::tx::open(state, &job, is_walk))
    });
    if waits.is_empty() {
        world.respond(job.caller, shard, reply.map_err(Status::Errno));
    } else {
        flow::tx::look(world, job);
    }
}

/// Whether the change is to be executed now; answers it otherwise.
fn once(world: &Rc<World>, job: Job) -> Option<(Job, Origin)> {
    let shard = job.order.shard;
    let Some(origin) = job.order.origin else {
        world.respond(job.caller, shard, errno(Errno::EPROTO));
        return None;
    };
    if world.has_ended(origin.session) {
        world.respond(job.caller, shard, Err(Status::NoSession));
        return None;
    }
    if matches!(job.caller, Caller::Change(_)) {
        return Some((job, origin));
    }
    let ticket: Ticket = (origin.session, origin.sequence);
    let runs = world.running.borrow().contains_key(&ticket);
    if !runs {
        return first_time(world, job.order, job.caller, origin);
    }
    let displaced = world.running.borrow_mut().insert(ticket, job.caller);
    if let Some(displaced) = displaced {
        world.respond(displaced, shard, Err(Status::Busy));
    }
    None
}

fn first_time(
    world: &Rc<World>,
    order: Order,
    caller: Caller,
    origin: Origin,
) -> Option<(Job, Origin)> {
    let shard = order.shard;
    let ticket: Ticket = (origin.session, origin.sequence);
    let kept = world.with(shard, |state| match state.kept(origin.session, origin.sequence) {
        Kept::New => None,
        Kept::Reply(reply) => Some(Ok(reply.clone())),
        Kept::Answered => Some(Err(Status::Answered)),
    });
    let kept = kept.or_else(|| world.known.borrow_mut().kept(ticket, origin.watermark));
    match kept {
        None if is_far_ahead(origin) => {
            world.respond(caller, shard, Err(Status::Busy));
            None
        }
        None => Some((Job::new(caller, order), origin)),
        Some(Err(_)) if is_lock_wait(&order.request) => Some((Job::new(caller, order), origin)),
        Some(Ok(reply)) => {
            repeat(world, Job::new(caller, order), ticket, reply);
            None
        }
        Some(Err(status)) => {
            world.respond(caller, shard, Err(status));
            None
        }
    }
}

/// Whether so many replies may be kept for the change's endpoint that it must wait until its oldest change is answered.
fn is_far_ahead(Origin { sequence, watermark, .. }: Origin) -> bool {
    watermark.endpoint() == sequence.endpoint()
        && sequence.0 - watermark.0.min(sequence.0) > REPLIES_MAX
}

/// Answers a change that was executed before.
fn repeat(world: &Rc<World>, job: Job, ticket: Ticket, reply: Reply) {
    let shard = job.order.shard;
    let cut = job.order.request.inode().filter(|&ino| {
        reply_awaits_cut(&job.order.request) && world.with(shard, |state| state.cut(ino).is_some())
    });
    if cut.is_some() {
        return world.park(job);
    }
    memory::count_again(world, &job.order.request, ticket, &reply);
    world.respond(job.caller, shard, Ok(reply));
}

/// A change of names or inodes.
fn change(world: &Rc<World>, job: Job, origin: Origin) {
    let shard = job.order.shard;
    let asked = world.asked(origin, Facts::default());
    let planned = world.with(shard, |state| plan(state, &job.order.request, &asked));
    match planned {
        Ok(Planned::Reply(reply)) => {
            memory::count(world, &job.order.request, origin, &reply);
            world.respond(job.caller, shard, Ok(reply));
        }
        Ok(Planned::Record(record)) => {
            let applied = world.commit(shard, &record, None);
            memory::count(world, &job.order.request, origin, &applied.reply);
            let first = follow(world, shard, applied.effects);
            if first.is_none() {
                return world.respond(job.caller, shard, Ok(applied.reply));
            }
            let (ticket, order) = world.begin(job, origin);
            flow::cut::answer_after(world, first, ticket, order, applied.reply);
        }
        Ok(Planned::Transaction(_) | Planned::Ask(_)) => {
            let (ticket, order) = world.begin(job, origin);
            flow::change::begin(world, ticket, order, origin);
        }
        Err(Refused::Errno(error)) => world.respond(job.caller, shard, errno(error)),
        Err(Refused::Busy) => world.park(job),
        Err(Refused::Numbers) => {
            world.park(job);
            flow::numbers::reserve(world, shard);
        }
    }
}

/// A cut that was begun and must be carried out before the request is answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    pub(crate) ino: Ino,
    pub(crate) from: u64,
    pub(crate) bound: u64,
    pub(crate) chunk_size: u32,
}

/// What must be done before the request is answered.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct First {
    /// The cut is carried out.
    pub(crate) cut: Option<Cut>,
    /// The record is on the device.
    pub(crate) on_device: bool,
}

impl First {
    fn is_none(&self) -> bool {
        self.cut.is_none() && !self.on_device
    }
}

/// Begins what follows from a record; what comes before the answer is the caller's to do.
pub(crate) fn follow(world: &Rc<World>, shard: ShardId, effects: Vec<Effect>) -> First {
    let mut first = First::default();
    for effect in effects {
        match effect {
            Effect::Unlinked(ino) => flow::reclaim::consider(world, ino),
            Effect::Cut { ino, from, bound, chunk_size } => {
                first.cut = Some(Cut { ino, from, bound, chunk_size });
            }
            Effect::Durable(ino) => {
                world.raises.borrow_mut().insert(ino, world.touched(shard));
                first.on_device = true;
            }
            Effect::Reclaim { ino, chunk_size } => flow::reclaim::go_on(world, ino, chunk_size),
            Effect::Dropped(_) => {}
        }
    }
    if world.with(shard, |state| state.range().is_some()) {
        flow::numbers::reserve(world, shard);
    }
    first
}

/// Whether the request may be asked at all by this peer, at this shard.
fn admissible(world: &World, order: &Order) -> Result<(), Status> {
    let between_nodes = matches!(
        order.request,
        Request::Prepare(_)
            | Request::Resolve { .. }
            | Request::Decision { .. }
            | Request::RenameLock { .. }
    );
    if between_nodes && !matches!(order.peer, Peer::Node { .. }) {
        return Err(Status::Errno(Errno::EPERM));
    }
    if let (Some(only), Some(who)) = (world.config.only_uid, order.request.who())
        && who.uid != only
        && who.uid != 0
    {
        return Err(Status::Errno(Errno::EACCES));
    }
    match order.request.shard(world.config.map.shards()) {
        Some(shard) if shard != order.shard => Err(Status::Errno(Errno::EPROTO)),
        _ => Ok(()),
    }
}

/// Whether a request concerns all of the node's shards, or none.
fn is_of_node(request: &Request) -> bool {
    matches!(
        request,
        Request::Discard { .. }
            | Request::Allocate { .. }
            | Request::Extents { .. }
            | Request::End { .. }
            | Request::Sync
            | Request::Space
            | Request::Status
            | Request::Ping
            | Request::Claim { .. }
            | Request::Leave
            | Request::Probe { .. }
            | Request::Peers { .. }
    )
}

fn is_lock_wait(request: &Request) -> bool {
    matches!(request, Request::Lock { wait: true, .. })
}

/// Replies of an endpoint's changes, of which one is not answered: some 20 MiB at most.
const REPLIES_MAX: u64 = 1 << 16;

/// Whether the reply must not leave before the inode's cut is done.
fn reply_awaits_cut(request: &Request) -> bool {
    matches!(request, Request::SetAttr { .. } | Request::Open { .. })
}

impl World {
    /// The newest batch that is written: an answer that shows nothing leaves behind it.
    pub(crate) fn written(&self) -> crate::gate::Batch {
        self.log.borrow().gate.written()
    }

    /// Registers a change of several steps; its answer goes to whoever asked last.
    pub(crate) fn begin(&self, job: Job, origin: Origin) -> (Ticket, Order) {
        let ticket = (origin.session, origin.sequence);
        if !matches!(job.caller, Caller::Change(_)) {
            self.running.borrow_mut().insert(ticket, job.caller);
        }
        (ticket, job.order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sealfs_proto::{Sequence, SessionId};

    #[test]
    fn a_change_waits_that_is_far_ahead_of_one_which_is_not_answered() {
        let at = |endpoint, number| Sequence(Sequence::first_of(endpoint).0 + number);
        let is_far = |sequence, watermark| {
            is_far_ahead(Origin { session: SessionId(1), sequence, watermark })
        };
        assert!(!is_far(at(3, REPLIES_MAX + 7), at(3, 7)));
        assert!(is_far(at(3, REPLIES_MAX + 8), at(3, 7)));
        assert!(!is_far(at(3, 7), at(3, REPLIES_MAX + 8)), "it is refused elsewhere");
    }
}
