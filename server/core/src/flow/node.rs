//! Requests of a whole node: each core does its share of them, and the core that was asked merges.
//!
//! 1. What a client's `Discard` or `Allocate` did is kept with every chunk's record, by shard, so that one that is asked
//!    again counts what was done before.
//! 2. Of two executions of the same request the earlier one changes nothing any more once the later one has begun: what is
//!    written after the answer is not touched by one that is late ([`Passes`]).
//! 3. An execution yields after some chunks, so that others have their turns and the batch stays small.

use std::collections::BTreeMap;
use std::rc::Rc;

use sealfs_meta::{Kept, Origin, Refused};
use sealfs_proto::{
    Errno, Ino, NodeStatus, Reply, Request, ShardId, Space, Status, chunk_shard, limits,
};
use sealfs_transport::payload_of_thread;
use sealfs_transport::tasks::join_all;

use super::data::{self, ChunkChange, Failed, carry_out};
use super::session;
use crate::CoreId;
use crate::chunk::Groups;
use crate::figures::Counted;
use crate::locks::Ticket;
use crate::mail::{Answered, Errand, Order, Outcome};
use crate::world::{Job, World, errno};

/// Serves a request of the node at the core that was asked.
pub(crate) fn serve(world: &Rc<World>, job: Job) {
    world.count(Counted::Served, 1);
    let task = Rc::clone(world);
    world.spawner.spawn(async move {
        let Job { caller, order, .. } = job;
        let outcome = match &order.request {
            Request::Ping => Ok(Reply::Done).into(),
            Request::Probe { length } => Outcome {
                reply: Ok(Reply::Clock(task.now.get().wall)),
                bulk: task.chunks.borrow().zeros(*length),
            },
            Request::Claim { .. } => session::claim(&task, &order).await,
            Request::Leave => session::leave(&task, &order).await,
            Request::Peers { core, .. } => of_core(&task, CoreId(*core), &order).await,
            _ => everywhere(&task, &order).await,
        };
        task.respond_after(caller, task.written(), outcome);
    });
}

/// All cores' shares, merged.
pub(crate) async fn everywhere(world: &Rc<World>, order: &Order) -> Outcome {
    let siblings = world.other_cores().map(|core| world.errand(core, Errand::Share(copy(order))));
    let siblings = join_all(siblings);
    let own = share(world, order).await;
    let mut merged = Merged::new(own.reply);
    for answered in siblings.await {
        match answered {
            Answered::Served(outcome) => merged.add(outcome.reply),
            _ => merged.add(Err(Status::Busy)),
        }
    }
    merged.finish(world).into()
}

/// One core's share alone.
async fn of_core(world: &Rc<World>, core: CoreId, order: &Order) -> Outcome {
    if core == world.config.core {
        return share(world, order).await;
    }
    if core.0 >= world.config.cores {
        return errno(Errno::EINVAL);
    }
    match world.errand(core, Errand::Share(copy(order))).await {
        Answered::Served(outcome) => outcome,
        _ => Err(Status::Busy).into(),
    }
}

fn copy(order: &Order) -> Order {
    let Order { peer, origin, shard, ref request, .. } = *order;
    Order { peer, origin, shard, request: request.clone(), bulk: None }
}

/// This core's share. What it appended is acknowledged when it is done.
pub(crate) async fn share(world: &Rc<World>, order: &Order) -> Outcome {
    let origin = order.origin;
    match order.request {
        Request::Discard { ino, chunk_size, from, to } => {
            discard(world, ino, chunk_size, (from, to), origin).await
        }
        Request::Allocate { ino, chunk_size, from, to } => {
            allocate(world, ino, chunk_size, (from, to), origin).await
        }
        Request::Extents { ino, chunk_size, from, to } => {
            let (ranges, next) = world.chunks.borrow().extents(ino, chunk_size, from, to);
            world.acknowledged(world.appended()).await;
            Ok(Reply::Extents { ranges, next }).into()
        }
        Request::End { ino, chunk_size } => {
            let end = world.chunks.borrow().end(ino, chunk_size);
            world.acknowledged(world.appended()).await;
            Ok(Reply::Offset(end)).into()
        }
        Request::Sync => sync(world).await,
        Request::Space => Ok(Reply::Space(space_share(world))).into(),
        Request::Status => Ok(Reply::Status(world.status())).into(),
        Request::Peers { skip, .. } => {
            let (peers, left) = world.calls.figures(skip as usize, Some(order.peer));
            Ok(Reply::Peers { peers, left: left as u32 }).into()
        }
        Request::Claim { ref claims, .. } => session::claim_share(world, claims, origin),
        _ => errno(Errno::EPROTO),
    }
}

async fn sync(world: &Rc<World>) -> Outcome {
    if let Err(error) = world.disk.sync_volume().await {
        tracing::error!(%error, "the volume could not be synced");
        return errno(Errno::EIO);
    }
    world.on_device(world.appended()).await;
    Ok(Reply::Done).into()
}

/// The bytes of chunk `index` that lie in `from..to` of the file, if any.
fn within(index: u64, chunk_size: u32, (from, to): (u64, u64)) -> Option<(u32, u32)> {
    let start = index.checked_mul(u64::from(chunk_size))?;
    let size = u64::from(chunk_size);
    let first = from.saturating_sub(start).min(size) as u32;
    let last = to.saturating_sub(start).min(size) as u32;
    (first < last).then_some((first, last))
}

async fn discard(
    world: &Rc<World>,
    ino: Ino,
    chunk_size: u32,
    range: (u64, u64),
    origin: Option<Origin>,
) -> Outcome {
    if !is_chunk_size(chunk_size) {
        return errno(Errno::EINVAL);
    }
    let cut = range.1 == u64::MAX;
    let mut at = range.0 / u64::from(chunk_size);
    let mut blocks = 0;
    let mut cuts_block = false;
    let pass = Pass::begin(world, ino, origin);
    for step in 1_u64.. {
        let next = world.chunks.borrow().next_chunk(ino, at);
        let Some(index) = next else { break };
        let Some((from, to)) = within(index, chunk_size, range) else { break };
        cuts_block |= !from.is_multiple_of(limits::BLOCK_SIZE);
        let change = ChunkChange::Discard { from, to, cut };
        match one_of_many(world, ino, index, change, Some(&pass)).await {
            Ok(more) => blocks += more,
            Err(status) => return Err(status).into(),
        }
        at = index + 1;
        if step % CHUNKS_PER_TURN == 0 {
            world.sleep_ms(0).await;
        }
    }
    // The rest of a block that is cut was written anew, now or by an execution before. If the device did not have it, the block
    // as it was would come back after a loss of power, with nobody left who knows of the cut.
    if origin.is_none() && cuts_block {
        let synced = sync(world).await;
        if synced.reply.is_err() {
            return synced;
        }
    }
    done(world, origin, blocks).await
}

async fn allocate(
    world: &Rc<World>,
    ino: Ino,
    chunk_size: u32,
    range: (u64, u64),
    origin: Option<Origin>,
) -> Outcome {
    if !is_chunk_size(chunk_size) || range.1 > limits::FILE_SIZE_MAX || range.0 >= range.1 {
        return errno(Errno::EINVAL);
    }
    let share = (range.1 - range.0) / world.config.map.nodes.len() as u64;
    if share / u64::from(limits::BLOCK_SIZE) > world.config.volume_blocks {
        return errno(Errno::ENOSPC);
    }
    let shards = world.config.map.shards();
    let mut blocks = 0;
    let indexes = range.0 / u64::from(chunk_size)..=(range.1 - 1) / u64::from(chunk_size);
    let pass = Pass::begin(world, ino, origin);
    let mut work = 0;
    for index in indexes {
        let own = world.owns(chunk_shard(ino, index, shards));
        work += if own { WORK_PER_TURN / CHUNKS_PER_TURN } else { 1 };
        if work >= WORK_PER_TURN {
            work = 0;
            world.sleep_ms(0).await;
        }
        if !own {
            continue;
        }
        let Some((from, to)) = within(index, chunk_size, range) else { continue };
        let change = ChunkChange::Allocate { from, to };
        match one_of_many(world, ino, index, change, Some(&pass)).await {
            Ok(more) => blocks += more,
            Err(status) => return Err(status).into(),
        }
    }
    done(world, origin, blocks).await
}

async fn one_of_many(
    world: &Rc<World>,
    ino: Ino,
    index: u64,
    change: ChunkChange<'_>,
    pass: Option<&Pass<'_>>,
) -> Result<i64, Status> {
    let shard = chunk_shard(ino, index, world.config.map.shards());
    let origin = pass.and_then(|pass| pass.origin);
    let record = |blocks| {
        if pass.is_some_and(|pass| !pass.is_newest()) {
            return Err(Refused::Busy);
        }
        origin.map_or(Ok(()), |origin| data::still_alive(world, origin))?;
        let before = origin.map(|origin| kept_blocks(world, shard, origin));
        Ok(data::written(origin, world, blocks, before))
    };
    match carry_out(world, ino, index, change, record).await {
        Ok((_, blocks)) => Ok(blocks),
        Err(Failed::Errno(error)) => Err(Status::Errno(error)),
        // What is done so far is kept: sent again, the request goes on where it stopped.
        Err(Failed::Busy) => Err(Status::Busy),
    }
}

/// The newest execution of every request that is changing many chunks here. A repetition overtakes a first execution that
/// waits somewhere, for it finds less to do; the first one must not change then what was written in the meantime.
#[derive(Debug, Default)]
pub(crate) struct Passes {
    begun: u64,
    newest: BTreeMap<PassKey, u64>,
}

/// A client's request; or the node's own discard, of which an inode has one at a time: its cut or its end.
type PassKey = (Ino, Option<Ticket>);

/// One execution.
struct Pass<'a> {
    world: &'a World,
    key: PassKey,
    origin: Option<Origin>,
    number: u64,
}

impl<'a> Pass<'a> {
    fn begin(world: &'a World, ino: Ino, origin: Option<Origin>) -> Self {
        let key = (ino, origin.map(|origin| (origin.session, origin.sequence)));
        let mut passes = world.passes.borrow_mut();
        passes.begun += 1;
        let number = passes.begun;
        passes.newest.insert(key, number);
        Self { world, key, origin, number }
    }

    fn is_newest(&self) -> bool {
        self.world.passes.borrow().newest.get(&self.key) == Some(&self.number)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.is_newest() {
            self.world.passes.borrow_mut().newest.remove(&self.key);
        }
    }
}

/// Units that the request has changed in this shard so far.
fn kept_blocks(world: &World, shard: ShardId, origin: Origin) -> i64 {
    world.with(shard, |state| match state.kept(origin.session, origin.sequence) {
        Kept::Reply(Reply::Written { blocks, .. }) => *blocks,
        _ => 0,
    })
}

async fn done(world: &Rc<World>, origin: Option<Origin>, blocks: i64) -> Outcome {
    let blocks = match origin {
        None => blocks,
        Some(origin) => {
            let shards: Vec<ShardId> = world.shards.borrow().keys().copied().collect();
            shards.into_iter().map(|shard| kept_blocks(world, shard, origin)).sum()
        }
    };
    if origin.is_some() {
        world.acknowledged(world.appended()).await;
    } else {
        // Another shard will forget why this was done: it must not come back.
        world.on_device(world.appended()).await;
    }
    Ok(Reply::Written { blocks, attr: None }).into()
}

/// What a discard on all nodes has freed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Freed {
    /// Units changed, as far as is known.
    pub(crate) blocks: i64,
    /// Every node has answered its first question: that is all.
    pub(crate) exact: bool,
}

/// Has every node that may hold data of `from..bound` discard it, as long as that takes. The caller has journaled in the
/// inode's shard that it is to be done.
///
/// CRASH: chunk 0 shares the inode's journal, whose tail is lost from the end only. Other journals lose theirs on their own:
/// so the caller's record is on the device before they begin, and what they did before this ends.
pub(crate) async fn discard_until_done(
    world: &Rc<World>,
    ino: Ino,
    chunk_size: u32,
    from: u64,
    bound: u64,
) -> Freed {
    if bound <= u64::from(chunk_size) {
        let first = from.min(u64::from(chunk_size)) as u32;
        let change = ChunkChange::Discard { from: first, to: chunk_size, cut: true };
        loop {
            match one_of_many(world, ino, 0, change, None).await {
                Ok(blocks) => return Freed { blocks, exact: true },
                Err(error) => tracing::warn!(%ino, ?error, "chunk 0 cannot be discarded yet"),
            }
            world.back_off(RETRY_MS).await;
        }
    }
    world.on_device(world.touched(ino.shard())).await;
    let nodes = world.config.map.nodes.iter().map(|node| node.id);
    let all = nodes.map(|node| async move {
        let mut exact = true;
        loop {
            let request = Request::Discard { ino, chunk_size, from, to: u64::MAX };
            let order = world.own_order(ino.shard(), request);
            let outcome = if node == world.config.node {
                everywhere(world, &order).await
            } else {
                world.call(node, order.shard, order.request).await
            };
            match outcome.reply {
                Ok(Reply::Written { blocks, .. }) => return Freed { blocks, exact },
                other => tracing::warn!(%ino, %node, ?other, "data cannot be discarded yet"),
            }
            exact = false;
            world.back_off(RETRY_MS).await;
        }
    });
    let freed = join_all(all).await;
    Freed {
        blocks: freed.iter().map(|freed| freed.blocks).sum(),
        exact: freed.iter().all(|freed| freed.exact),
    }
}

/// The end of the last byte of this inode on any node.
pub(crate) async fn end_everywhere(
    world: &Rc<World>,
    ino: Ino,
    chunk_size: u32,
) -> Result<u64, Outcome> {
    let nodes = world.config.map.nodes.iter().map(|node| node.id);
    let all = nodes.map(|node| async move {
        let order = world.own_order(ino.shard(), Request::End { ino, chunk_size });
        if node == world.config.node {
            everywhere(world, &order).await
        } else {
            world.call(node, order.shard, order.request).await
        }
    });
    let mut end = 0;
    for outcome in join_all(all).await {
        match outcome.reply {
            Ok(Reply::Offset(one)) => end = end.max(one),
            Ok(_) => return Err(errno(Errno::EPROTO)),
            Err(status) => return Err(Err(status).into()),
        }
    }
    Ok(end)
}

fn is_chunk_size(chunk_size: u32) -> bool {
    chunk_size.is_power_of_two()
        && (limits::CHUNK_SIZE_MIN..=limits::CHUNK_SIZE_MAX).contains(&chunk_size)
}

/// A core's share of `Space`: `total` are the bytes that its chunks take, `available` the reserve, on the core that
/// keeps the ledger. [`Merged::finish`] makes the node's numbers of them.
fn space_share(world: &World) -> Space {
    let block = u64::from(limits::BLOCK_SIZE);
    let shards = world.shards.borrow();
    let inodes = shards.values().map(|shard| shard.state.inode_count() as u64).sum();
    let reserve = world.ledger.borrow().groups.as_ref().map_or(0, Groups::reserve);
    let total = world.chunks.borrow().used_blocks() * block;
    Space { total, free: 0, available: reserve * block, inodes }
}

/// Replies of several cores to the same request, as one.
struct Merged(Result<Reply, Status>);

impl Merged {
    fn new(first: Result<Reply, Status>) -> Self {
        Self(first)
    }

    fn add(&mut self, other: Result<Reply, Status>) {
        let Ok(sum) = &mut self.0 else { return };
        match (sum, other) {
            (_, Err(status)) => self.0 = Err(status),
            (Reply::Done, Ok(Reply::Done)) => {}
            (Reply::Written { blocks, .. }, Ok(Reply::Written { blocks: more, .. })) => {
                *blocks += more;
            }
            (Reply::Offset(end), Ok(Reply::Offset(other))) => *end = (*end).max(other),
            (Reply::Extents { ranges, next }, Ok(Reply::Extents { ranges: more, next: other })) => {
                ranges.extend(more);
                *next = [*next, other].into_iter().flatten().min();
            }
            (Reply::Space(sum), Ok(Reply::Space(more))) => add_space(sum, &more),
            (Reply::Status(sum), Ok(Reply::Status(more))) => add_status(sum, more),
            _ => self.0 = Err(Status::Errno(Errno::EPROTO)),
        }
    }

    fn finish(self, world: &World) -> Result<Reply, Status> {
        let mut reply = self.0?;
        match &mut reply {
            Reply::Extents { ranges, next } => join_ranges(ranges, next),
            Reply::Space(space) => *space = space_of(world, space),
            Reply::Status(status) => {
                status.space = space_of(world, &status.space);
                status.cores = u32::from(world.config.cores);
            }
            _ => {}
        }
        Ok(reply)
    }
}

fn add_space(sum: &mut Space, more: &Space) {
    sum.total += more.total;
    sum.available += more.available;
    sum.inodes += more.inodes;
}

fn add_status(sum: &mut NodeStatus, more: NodeStatus) {
    add_space(&mut sum.space, &more.space);
    sum.shards += more.shards;
    sum.sessions = sum.sessions.max(more.sessions);
    sum.up_ms = sum.up_ms.max(more.up_ms);
    for (name, value) in more.counters {
        match sum.counters.binary_search_by(|(known, _)| known.cmp(&name)) {
            Ok(at) => sum.counters[at].1 += value,
            Err(at) => sum.counters.insert(at, (name, value)),
        }
    }
}

/// The node's space from the sum of its cores' shares.
fn space_of(world: &World, shares: &Space) -> Space {
    let total = world.config.volume_blocks * u64::from(limits::BLOCK_SIZE);
    let free = total.saturating_sub(shares.total);
    Space { total, free, available: free.saturating_sub(shares.available), inodes: shares.inodes }
}

/// Sorts, joins neighbours, and keeps to the limit and to what every core has said everything about.
fn join_ranges(ranges: &mut Vec<(u64, u64)>, next: &mut Option<u64>) {
    ranges.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for &(from, to) in ranges.iter() {
        let to = next.map_or(to, |next| to.min(next));
        if from >= to {
            continue;
        }
        if let Some(last) = joined.last_mut().filter(|last| last.1 >= from) {
            last.1 = last.1.max(to);
        } else if joined.len() < limits::EXTENTS_MAX {
            joined.push((from, to));
        } else {
            *next = Some(from);
            break;
        }
    }
    *ranges = joined;
}

impl World {
    /// The batch of the newest entry of this core.
    pub(crate) fn appended(&self) -> crate::gate::Batch {
        let log = self.log.borrow();
        if log.dirty { log.gate.building() } else { log.gate.closed() }
    }

    /// This core's share of the node's status.
    pub(crate) fn status(&self) -> NodeStatus {
        let counted = self.counters.borrow();
        let counters = Counted::ALL.map(|what| (what.name(), counted.of(what)));
        // How many cores acknowledge so: a node is as durable as all of them.
        let durability = (self.config.durability.counter(), 1);
        // "On a device" is said, too: who does not hear it knows that nothing is known.
        let place = if self.config.in_memory { "data_in_memory" } else { "data_on_device" };
        // By name, as they are merged.
        let counters: BTreeMap<_, _> = counters
            .into_iter()
            .chain(payload_of_thread().named())
            .chain([durability, (place, 1)])
            .collect();
        NodeStatus {
            node: self.config.node,
            version: env!("CARGO_PKG_VERSION").into(),
            cores: 1,
            shards: self.shards.borrow().len() as u32,
            space: space_share(self),
            sessions: self.leases.borrow().count(),
            up_ms: self.now.get().mono.ms_since(self.began),
            counters: counters.into_iter().map(|(name, value)| (name.into(), value)).collect(),
        }
    }
}

/// Between two tries to reach a node.
const RETRY_MS: u64 = 500;
/// Chunks changed in one turn.
const CHUNKS_PER_TURN: u64 = 256;
/// Indexes looked at in one turn by an allocation, of which those on other cores cost nearly nothing.
const WORK_PER_TURN: u64 = 16 * CHUNKS_PER_TURN;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_several_cores_are_joined_up_to_where_all_have_answered() {
        let (mut ranges, mut next) = (vec![(20, 30), (0, 10), (10, 20), (40, 60)], Some(50));
        join_ranges(&mut ranges, &mut next);
        assert_eq!((ranges, next), (vec![(0, 30), (40, 50)], Some(50)));
    }

    #[test]
    fn a_range_of_a_file_is_cut_to_a_chunk() {
        let size = limits::CHUNK_SIZE_MIN;
        let len = u64::from(size);
        assert_eq!(within(1, size, (len + 5, 2 * len + 1)), Some((5, size)));
        assert_eq!(within(2, size, (len + 5, 2 * len + 1)), Some((0, 1)));
        assert_eq!(within(3, size, (len + 5, 2 * len + 1)), None);
        assert_eq!(within(0, size, (0, u64::MAX)), Some((0, size)));
    }
}
