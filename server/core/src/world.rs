//! What a core's steps and tasks share: its shards, its journal, its ports.
//!
//! Everything lies in cells of their own, borrowed within one call and never across an await: a task that has awaited
//! looks again.
//!
//! 1. [`World::commit`] is the only way to change a shard or a chunk: the entry joins this turn's batch and is applied at
//!    once, and the shard remembers the batch.
//! 2. [`World::respond`] is the only way out for an answer: it passes the gate of the shard's newest batch, and one that shows
//!    a file's bound, whoever has raised it, leaves when that bound is on the device.
//! 3. A change of a session that was begun is finished once: who asks again meanwhile takes over the answer.
//! 4. No request waits for keys or a cut longer than [`PARK_MS`]: it is told Busy and comes again, so that what it occupies
//!    here (a slot, credits, its payload) serves others in between.
//! 5. Nothing is executed any more for a session that has ended here, whatever of it still waits somewhere.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use sealfs_meta::journal::{Entry, Writer};
use sealfs_meta::{Applied, Asked, Facts, KIND_VERSION, Origin, Record, State};
use sealfs_proto::{Attr, Errno, Ino, Reply, Request, SessionId, ShardId, Status, encode, limits};
use sealfs_transport::tasks::{Sender, Spawner, Timers, Waiters, oneshot};
use sealfs_transport::{Arena, Ask, Calls, Conn, Instant, Now, Peer, Random, Region};

use crate::chunk::{ChunkRecord, Chunks, GuardId};
use crate::connections::Connections;
use crate::disk::DiskCalls;
use crate::figures::{Counted, Counters, RequestKind};
use crate::flow::node::Passes;
use crate::flow::{rename, snapshot, space};
use crate::gate::{Batch, Gate};
use crate::locks::{Locks, Ticket};
use crate::mail::{Answered, Errand, Order, Outcome};
use crate::opens::Opens;
use crate::sessions::Leases;
use crate::siblings::Siblings;
use crate::{Config, CoreId};

/// Journal entry kinds.
pub(crate) mod kind {
    /// A record of a shard's state, and perhaps of one of its chunks: logical `encode((record, chunk's logical bytes))`,
    /// local: the chunk's local bytes.
    pub(crate) const STATE: u8 = 1;
    /// A sync mark: logical `encode(end: u64)`. Of no shard; its number is 0.
    pub(crate) const MARK: u8 = 2;
}

/// One shard of this core.
pub(crate) struct Shard {
    pub(crate) state: State,
    /// The batch of its newest record.
    pub(crate) touched: Batch,
    /// The number of the newest record in its stored snapshot.
    pub(crate) stored: u64,
    /// Requests that wait until a key is given up or a cut is done.
    pub(crate) parked: VecDeque<Job>,
    /// Tasks that wait for the same.
    pub(crate) freed: Waiters,
    /// A range of numbers is being reserved.
    pub(crate) reserving: bool,
    /// Transactions that it has forgotten, by number, and the batches that say so: a loss of power may bring them back.
    pub(crate) forgetting: BTreeMap<u64, Batch>,
}

impl Shard {
    /// A shard with this state, which was replayed.
    pub(crate) fn new(state: State, stored: u64) -> Self {
        Self {
            state,
            touched: Batch::REPLAYED,
            stored,
            parked: VecDeque::new(),
            freed: Waiters::new(),
            reserving: false,
            forgetting: BTreeMap::new(),
        }
    }
}

/// A request being served here.
pub(crate) struct Job {
    pub(crate) caller: Caller,
    pub(crate) order: Order,
    /// When it has waited for long enough, once it waits.
    pub(crate) until: Option<Instant>,
}

impl Job {
    /// A request that has just arrived.
    pub(crate) fn new(caller: Caller, order: Order) -> Self {
        Self { caller, order, until: None }
    }
}

/// Where an answer goes.
pub(crate) enum Caller {
    /// To a connection of this core.
    Peer(Guest),
    /// To the core that has the connection. `of_node`: it goes on to another journal.
    Sibling { core: CoreId, token: u64, of_node: bool },
    /// To a task of this core.
    Task(Sender<Outcome>),
    /// To whoever asked last for this change, see [`World::running`].
    Change(Ticket),
}

/// Who asks over a connection of this core.
pub(crate) struct Guest {
    pub(crate) conn: Conn,
    pub(crate) token: u64,
    pub(crate) kind: RequestKind,
    pub(crate) arrived: Instant,
}

impl Guest {
    /// Whether it waits for a lock, so that it takes none of the slots of `in_service`.
    pub(crate) fn waits(&self) -> bool {
        self.kind == RequestKind::LockWait
    }
}

/// What waits for the result of an errand.
pub(crate) enum Waits {
    /// The answer to a request is handed on.
    Caller(Caller),
    /// A task looks at it.
    Task(Sender<Answered>),
}

/// What leaves through the gate.
pub(crate) enum Leaving {
    /// An answer.
    Answer(Caller, Outcome),
    /// A task goes on.
    Wake(Sender<()>),
}

/// The journal being written.
pub(crate) struct Log {
    pub(crate) writer: Writer,
    pub(crate) gate: Gate<Leaving>,
    /// Whether this turn has appended anything.
    pub(crate) dirty: bool,
    /// Appends and syncs in flight, by the disk's number.
    pub(crate) appending: BTreeMap<u64, Appending>,
    pub(crate) syncing: Option<(u64, Appending)>,
}

/// A batch on its way to the journal or to the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Appending {
    pub(crate) batch: Batch,
    pub(crate) since: Instant,
}

/// The sessions as this core knows them.
#[derive(Default)]
pub(crate) struct Known {
    /// Alive, and heard of since the keeper was last told.
    pub(crate) alive: BTreeMap<SessionId, bool>,
    /// Alive since before the restart, and have not claimed all they hold.
    pub(crate) owing: BTreeSet<SessionId>,
    /// Highest watermark seen, by session and endpoint.
    pub(crate) watermarks: BTreeMap<(SessionId, u16), u64>,
    /// Replies of changes of memory, kept as the shards keep theirs.
    pub(crate) replies: BTreeMap<Ticket, Option<Reply>>,
    /// Sessions of before the restart may hold what they have not claimed yet.
    pub(crate) grace: bool,
    /// Ended since the start, the last [`ENDED_MAX`].
    pub(crate) ended: BTreeSet<SessionId>,
    pub(crate) ended_first: VecDeque<SessionId>,
}

/// The shared state of one core.
pub(crate) struct World {
    pub(crate) config: Config,
    /// The core of each of the node's shards.
    pub(crate) owners: BTreeMap<ShardId, CoreId>,
    pub(crate) now: Cell<Now>,
    pub(crate) shards: RefCell<BTreeMap<ShardId, Shard>>,
    pub(crate) chunks: RefCell<Chunks>,
    pub(crate) guards: RefCell<BTreeMap<GuardId, Sender<()>>>,
    pub(crate) log: RefCell<Log>,
    pub(crate) disk: DiskCalls,
    pub(crate) siblings: Siblings<Waits>,
    pub(crate) calls: Calls,
    pub(crate) arena: Rc<dyn Arena>,
    pub(crate) memory_waits: Waiters,
    pub(crate) spawner: Spawner,
    pub(crate) timers: Timers,
    pub(crate) random: RefCell<Random>,
    pub(crate) known: RefCell<Known>,
    pub(crate) opens: RefCell<Opens>,
    pub(crate) locks: RefCell<Locks>,
    /// Changes that were begun and not answered, and who gets the answer.
    pub(crate) running: RefCell<BTreeMap<Ticket, Caller>>,
    /// Files whose bound grew in a batch that is not on the device yet.
    pub(crate) raises: RefCell<BTreeMap<Ino, Batch>>,
    /// When requests and tasks have waited for long enough for something of a shard.
    pub(crate) late: RefCell<BTreeSet<(Instant, ShardId)>>,
    /// Requests to be looked at again in this turn.
    pub(crate) again: RefCell<VecDeque<Job>>,
    pub(crate) counters: RefCell<Counters>,
    /// Requests of connections of this core that are not answered, waits for locks left out: it may take the request of
    /// another client to end them.
    pub(crate) in_service: Cell<usize>,
    pub(crate) fatal: RefCell<Option<String>>,
    pub(crate) connections: RefCell<Connections>,
    pub(crate) grants: rename::GrantsCell,
    pub(crate) ledger: RefCell<space::Ledger>,
    /// The leases, on the keeper.
    pub(crate) leases: RefCell<Leases>,
    /// Sessions that are being ended, on the keeper.
    pub(crate) ending: RefCell<BTreeSet<SessionId>>,
    /// The core has recovered, its space is known, and it serves.
    pub(crate) started: Cell<bool>,
    /// The node is to stop: no client is let in, and none is asked for more.
    pub(crate) stopping: Cell<bool>,
    /// Woken when it has started, and when the ledger is complete.
    pub(crate) starting: Waiters,
    pub(crate) began: Instant,
    /// When the keeper is next told of whom was heard.
    pub(crate) hear_at: Cell<Instant>,
    /// Blocks are being borrowed ahead of need.
    pub(crate) borrowing: Cell<bool>,
    /// A sync mark is being made, and who waits to make the next one.
    pub(crate) marking: Cell<bool>,
    pub(crate) marked: Waiters,
    pub(crate) snapshots: snapshot::Progress,
    /// Executions of requests that change many chunks.
    pub(crate) passes: RefCell<Passes>,
}

impl World {
    /// Adds to a count.
    pub(crate) fn count(&self, what: Counted, more: u64) {
        self.counters.borrow_mut().add(what, more);
    }

    /// The core cannot go on; the first reason is kept.
    pub(crate) fn fail(&self, why: String) {
        self.fatal.borrow_mut().get_or_insert(why);
    }

    /// Whether `shard` is one of this core's.
    pub(crate) fn owns(&self, shard: ShardId) -> bool {
        self.owners.get(&shard) == Some(&self.config.core)
    }

    /// The other cores of the node.
    pub(crate) fn other_cores(&self) -> impl Iterator<Item = CoreId> + use<> {
        let own = self.config.core;
        (0..self.config.cores).map(CoreId).filter(move |core| *core != own)
    }

    /// The core that keeps the sessions: the owner of the node's first shard, where they are journaled.
    pub(crate) fn keeper(&self) -> CoreId {
        self.owners.values().next().copied().expect("a node has at least one shard")
    }

    /// The shard where the sessions are journaled.
    pub(crate) fn session_shard(&self) -> ShardId {
        self.owners.keys().next().copied().expect("a node has at least one shard")
    }

    /// What `look` sees of a state of this core.
    pub(crate) fn with<R>(&self, shard: ShardId, look: impl FnOnce(&State) -> R) -> R {
        look(&self.shards.borrow()[&shard].state)
    }

    /// Changes what is not journaled of a shard of this core.
    pub(crate) fn with_mut<R>(&self, shard: ShardId, change: impl FnOnce(&mut Shard) -> R) -> R {
        change(self.shards.borrow_mut().get_mut(&shard).expect("the shard is one of this core's"))
    }

    /// What a plan asks with.
    pub(crate) fn asked(&self, origin: Origin, facts: Facts) -> Asked {
        let (now, shards) = (self.now.get().wall, self.config.map.shards());
        Asked { origin, now, shards, facts }
    }

    // ---- the journal ----

    /// Appends and applies `record`, with the change of a chunk that belongs to it.
    pub(crate) fn commit(
        &self,
        shard: ShardId,
        record: &Record,
        chunk: Option<&ChunkRecord>,
    ) -> Applied {
        let applied = self.commit_with_chunk_applied(shard, record, chunk);
        if let Some((chunk, position)) = chunk.map(|chunk| (chunk, applied.1)) {
            let _ = self.chunks.borrow_mut().apply(position, chunk, self.now.get().mono);
        }
        applied.0
    }

    /// Appends and applies a change of a chunk; `record` makes the state's record from the number of 512-byte units that
    /// are allocated more than before.
    pub(crate) fn commit_chunk(
        &self,
        shard: ShardId,
        chunk: &ChunkRecord,
        record: impl FnOnce(i64) -> Record,
    ) -> Applied {
        let position = self.log.borrow().writer.tail().position;
        let now = self.now.get().mono;
        let blocks = self.chunks.borrow_mut().apply(position, chunk, now).blocks;
        let (applied, at) = self.commit_with_chunk_applied(shard, &record(blocks), Some(chunk));
        assert!(at == position, "an entry begins where the one before has ended");
        applied
    }

    /// Appends and applies a record that stands beside a change of a chunk that the chunks contain already.
    pub(crate) fn commit_applied_chunk(
        &self,
        shard: ShardId,
        record: &Record,
        chunk: &ChunkRecord,
    ) {
        let _ = self.commit_with_chunk_applied(shard, record, Some(chunk));
    }

    fn commit_with_chunk_applied(
        &self,
        shard: ShardId,
        record: &Record,
        chunk: Option<&ChunkRecord>,
    ) -> (Applied, u64) {
        // The bytes of the pair, without a copy of the record.
        let mut logical = encode(record);
        logical.extend(encode(&chunk.map(ChunkRecord::logical)));
        let local = chunk.map(ChunkRecord::local).unwrap_or_default();
        let mut shards = self.shards.borrow_mut();
        let entry_of = shards.get_mut(&shard).expect("the shard is one of this core's");
        let number = entry_of.state.number() + 1;
        let mut log = self.log.borrow_mut();
        let position = log.append(&Entry {
            position: 0,
            shard,
            number,
            kind: kind::STATE,
            version: KIND_VERSION,
            logical: &logical,
            local: &local,
        });
        entry_of.touched = log.gate.building();
        let applied = sealfs_meta::apply(&mut entry_of.state, record);
        assert!(entry_of.state.number() == number, "every record counts once");
        (applied, position)
    }

    /// The batch of the newest record of a shard.
    pub(crate) fn touched(&self, shard: ShardId) -> Batch {
        self.shards.borrow().get(&shard).map_or(Batch(0), |shard| shard.touched)
    }

    /// Waits until `batch` is acknowledged as the durability asks of a step: what depends on it may leave the core.
    pub(crate) async fn acknowledged(&self, batch: Batch) {
        let (sender, receiver) = oneshot();
        let open = self.log.borrow_mut().gate.hold_step(batch, Leaving::Wake(sender));
        if open.is_none() {
            let _ = receiver.await;
        }
    }

    /// Waits until `batch` is acknowledged as a forced step.
    pub(crate) async fn forced(&self, batch: Batch) {
        let (sender, receiver) = oneshot();
        let open = self.log.borrow_mut().gate.hold_forced(batch, Leaving::Wake(sender));
        if open.is_none() {
            let _ = receiver.await;
        }
    }

    /// Waits until `batch` is on the device.
    pub(crate) async fn on_device(&self, batch: Batch) {
        let (sender, receiver) = oneshot();
        let open = self.log.borrow_mut().gate.hold_for_device(batch, Leaving::Wake(sender));
        if open.is_none() {
            let _ = receiver.await;
        }
    }

    // ---- answers ----

    /// Answers once everything that `shard` has appended so far is acknowledged. A task of this core is told at once: what it
    /// causes passes the gate itself.
    pub(crate) fn respond(&self, caller: Caller, shard: ShardId, outcome: impl Into<Outcome>) {
        let batch = self.touched(shard);
        self.respond_after(caller, batch, outcome.into());
    }

    /// Whether a node asks, this one or another, and not a client.
    pub(crate) fn is_of_node(&self, caller: &Caller) -> bool {
        match caller {
            Caller::Sibling { of_node, .. } => *of_node,
            Caller::Peer(Guest { conn, .. }) => {
                matches!(self.connections.borrow().peer(*conn), Some(Peer::Node { .. }))
            }
            Caller::Task(_) => true,
            Caller::Change(_) => false,
        }
    }

    /// As [`World::respond`], for a forced step.
    pub(crate) fn respond_forced(&self, caller: Caller, shard: ShardId, outcome: Outcome) {
        if let Caller::Task(_) = caller {
            return self.deliver(Leaving::Answer(caller, outcome));
        }
        let (batch, answer) = (self.touched(shard), Leaving::Answer(caller, outcome));
        let open = self.log.borrow_mut().gate.hold_forced(batch, answer);
        if let Some(leaving) = open {
            self.deliver(leaving);
        }
    }

    /// As [`World::respond`], after a batch.
    pub(crate) fn respond_after(&self, caller: Caller, batch: Batch, outcome: Outcome) {
        let caller = match caller {
            Caller::Change(ticket) => match self.running.borrow_mut().remove(&ticket) {
                Some(caller) => caller,
                None => return,
            },
            other => other,
        };
        if let Caller::Task(_) = caller {
            return self.deliver(Leaving::Answer(caller, outcome));
        }
        let is_step = self.is_of_node(&caller);
        let raised = self.raise_shown(&outcome);
        let answer = Leaving::Answer(caller, outcome);
        let open = {
            let gate = &mut self.log.borrow_mut().gate;
            match raised {
                Some(raised) => gate.hold_for_device(raised.max(batch), answer),
                None if is_step => gate.hold_step(batch, answer),
                None => gate.hold(batch, answer),
            }
        };
        if let Some(leaving) = open {
            self.deliver(leaving);
        }
    }

    /// The newest batch that raised a bound which the answer shows, if that is not on the device: who has seen a bound writes
    /// below it.
    fn raise_shown(&self, outcome: &Outcome) -> Option<Batch> {
        let raises = self.raises.borrow();
        if raises.is_empty() {
            return None;
        }
        let raised = |attr: &Attr| raises.get(&attr.ino).copied();
        match outcome.reply.as_ref().ok()? {
            Reply::Attr(attr) | Reply::Written { attr: Some(attr), .. } => raised(attr),
            Reply::Entry(entry) => entry.attr.as_ref().and_then(raised),
            Reply::List { entries, .. } => entries
                .iter()
                .filter_map(|listed| listed.entry.attr.as_ref().and_then(raised))
                .max(),
            _ => None,
        }
    }

    /// Hands on what has passed the gate.
    pub(crate) fn deliver(&self, leaving: Leaving) {
        match leaving {
            Leaving::Wake(sender) => drop(sender.send(())),
            Leaving::Answer(Caller::Task(sender), outcome) => drop(sender.send(outcome)),
            Leaving::Answer(Caller::Sibling { core, token, .. }, outcome) => {
                self.siblings.answer(core, token, Answered::Served(outcome));
            }
            Leaving::Answer(Caller::Peer(guest), outcome) => self.reply(&guest, outcome),
            Leaving::Answer(Caller::Change(ticket), outcome) => {
                let caller = self.running.borrow_mut().remove(&ticket);
                if let Some(caller) = caller {
                    self.deliver(Leaving::Answer(caller, outcome));
                }
            }
        }
    }

    /// Sends an answer over a connection of this core.
    fn reply(&self, guest: &Guest, Outcome { reply, mut bulk }: Outcome) {
        if !guest.waits() {
            self.in_service.set(self.in_service.get().saturating_sub(1));
        }
        let (mut status, mut body) = match reply {
            Ok(reply) => (Status::Ok, encode(&reply)),
            Err(status) => (status, Vec::new()),
        };
        if body.len() > limits::BODY_LEN_MAX as usize {
            tracing::error!(bytes = body.len(), "a reply is longer than a frame can be");
            (status, body, bulk) = (Status::Errno(Errno::E2BIG), Vec::new(), Vec::new());
        }
        let took_ns = self.now.get().mono.0.saturating_sub(guest.arrived.0);
        self.counters.borrow_mut().answer(guest.kind, status, took_ns);
        self.calls.reply(guest.conn, guest.token, status, body, bulk);
    }

    // ---- waiting for keys ----

    /// Keeps a request until something of the shard is given up.
    pub(crate) fn park(&self, mut job: Job) {
        let (now, shard) = (self.now.get().mono, job.order.shard);
        let until = *job.until.get_or_insert(now.after_ms(PARK_MS));
        if until <= now {
            return self.respond(job.caller, shard, Err(Status::Busy));
        }
        self.late.borrow_mut().insert((until, shard));
        job.caller = match (job.caller, job.order.origin) {
            (Caller::Change(ticket), _) => Caller::Change(ticket),
            (caller, Some(origin)) => {
                let ticket = (origin.session, origin.sequence);
                self.running.borrow_mut().insert(ticket, caller);
                Caller::Change(ticket)
            }
            (caller, None) => caller,
        };
        self.with_mut(shard, |shard| shard.parked.push_back(job));
    }

    /// Waits until something of the shard is given up; `false`: not within [`PARK_MS`].
    pub(crate) async fn freed(&self, shard: ShardId) -> bool {
        let until = self.now.get().mono.after_ms(PARK_MS);
        self.late.borrow_mut().insert((until, shard));
        let freed = self.with_mut(shard, |shard| shard.freed.wait());
        freed.await;
        self.now.get().mono < until
    }

    /// Who has waited for long enough is told; called once a turn.
    pub(crate) fn tell_late(&self) {
        let now = self.now.get().mono;
        loop {
            let first = self.late.borrow().first().copied();
            let Some((until, shard)) = first.filter(|(until, _)| *until <= now) else { return };
            self.late.borrow_mut().remove(&(until, shard));
            let parked = self.with_mut(shard, |shard| {
                shard.freed.wake_all();
                std::mem::take(&mut shard.parked)
            });
            for job in parked {
                if job.until.is_some_and(|until| until <= now) {
                    self.respond(job.caller, shard, Err(Status::Busy));
                } else {
                    self.with_mut(shard, |shard| shard.parked.push_back(job));
                }
            }
        }
    }

    /// Whether the session has ended here: nothing may be executed for it any more.
    pub(crate) fn has_ended(&self, session: SessionId) -> bool {
        self.known.borrow().ended.contains(&session)
    }

    /// Keys were given up or a cut is done: who waits tries again.
    pub(crate) fn free(&self, shard: ShardId) {
        let parked = self.with_mut(shard, |shard| {
            shard.freed.wake_all();
            std::mem::take(&mut shard.parked)
        });
        self.again.borrow_mut().extend(parked);
    }

    // ---- asking ----

    /// Asks the owner of `shard`, wherever it is.
    pub(crate) async fn ask(self: &Rc<Self>, shard: ShardId, request: Request) -> Outcome {
        let Some(node) = self.config.placement.node(shard) else {
            return Err(Status::StaleMap).into();
        };
        if node != self.config.node {
            return self.call(node, shard, request).await;
        }
        let (sender, receiver) = oneshot();
        let order = self.own_order(shard, request);
        let owner = self.owners[&shard];
        if owner == self.config.core {
            crate::serve::serve(self, Job::new(Caller::Task(sender), order));
        } else {
            self.siblings.ask(owner, Errand::Serve(order), Waits::Caller(Caller::Task(sender)));
        }
        receiver.await.unwrap_or_else(|_| Err(Status::Busy).into())
    }

    /// Asks another node.
    pub(crate) async fn call(
        &self,
        node: sealfs_proto::NodeId,
        shard: ShardId,
        request: Request,
    ) -> Outcome {
        use sealfs_transport::CallError;
        let reply = match self.calls.call(node, Ask::read(shard, request)).await {
            Ok(answer) => Ok(answer.reply),
            Err(CallError::Errno(errno)) => Err(Status::Errno(errno)),
            Err(error) => {
                tracing::warn!(%error, "a call to another node failed");
                Err(Status::Busy)
            }
        };
        reply.into()
    }

    /// An order of this node itself.
    pub(crate) fn own_order(&self, shard: ShardId, request: Request) -> Order {
        let peer = Peer::Node { node: self.config.node, endpoint: self.config.core.0 };
        Order { peer, origin: None, shard, request, bulk: None }
    }

    /// Sends an errand to a sibling and waits for its result.
    pub(crate) async fn errand(&self, to: CoreId, errand: Errand) -> Answered {
        let (sender, receiver) = oneshot();
        self.siblings.ask(to, errand, Waits::Task(sender));
        receiver.await.unwrap_or(Answered::Done(false))
    }

    /// Waits `ms` milliseconds.
    pub(crate) async fn sleep_ms(&self, ms: u64) {
        self.timers.sleep_until(self.now.get().mono.after_ms(ms)).await;
    }

    /// Waits about `ms` milliseconds: up to half as long again, so that two that collided do not collide again.
    pub(crate) async fn back_off(&self, ms: u64) {
        let jitter = self.random.borrow_mut().below(ms / 2 + 1);
        self.sleep_ms(ms + jitter).await;
    }

    /// Regions of these lengths, all at once; waits in order while the arena is exhausted.
    pub(crate) async fn regions(&self, lens: &[u32]) -> Vec<Region> {
        loop {
            let taken: Option<Vec<Region>> =
                lens.iter().map(|&len| self.arena.take(len as usize)).collect();
            match taken {
                Some(regions) => return regions,
                None => self.memory_waits.wait().await,
            }
        }
    }
}

impl Log {
    /// Adds an entry to this turn's batch; its position.
    pub(crate) fn append(&mut self, entry: &Entry<'_>) -> u64 {
        self.dirty = true;
        self.writer.append(entry)
    }
}

/// Keys are held for a few round trips, cuts for a few syncs.
const PARK_MS: u64 = 3_000;
/// Late mail of a session arrives within moments of its end.
pub(crate) const ENDED_MAX: usize = 4_096;

/// The status that an errno makes.
pub(crate) fn errno(errno: Errno) -> Outcome {
    Err(Status::Errno(errno)).into()
}
