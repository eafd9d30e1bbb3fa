//! The core: one pinned thread's worth of shards, and the turn of its loop.
//!
//! ```text
//! turn: network, disk, mail -> serve -> tasks -> ... until nothing is left -> one append -> flush
//! ```

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use sealfs_meta::journal::{Tail, Writer};
use sealfs_proto::{NodeStatus, ShardId};
use sealfs_transport::tasks::{Tasks, Timers, Waiters};
use sealfs_transport::{
    Arena, Calls, Instant, MapStamp, Me, Now, Options, Peer, Random, Transport,
};

use crate::chunk::{ChunkRecord, Chunks};
use crate::connections::Connections;
use crate::disk::{DiskCalls, Done, Polled};
use crate::figures::Counted;
use crate::flow;
use crate::gate::{Batch, Gate};
use crate::mail::{Answered, Errand};
use crate::net;
use crate::sessions::Leases;
use crate::siblings::{Received, Siblings};
use crate::world::{Appending, Caller, Job, Known, Log, Shard, Waits, World};
use crate::{Config, CoreFigures, CoreId, Disk, DiskOp, Mail, Mailbox, serve};

/// What a core needs of the world.
pub struct Ports {
    /// Its endpoint: it accepts clients and other nodes, and connects to nodes.
    pub transport: Box<dyn Transport>,
    /// The node's volume and this core's journal.
    pub disk: Box<dyn Disk>,
    /// To and from the node's other cores.
    pub mailbox: Box<dyn Mailbox<Mail>>,
    /// Where bulk lies.
    pub arena: Rc<dyn Arena>,
}

/// The core cannot go on: its journal or a sync failed. The shell ends the process with this text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fatal(pub String);

/// One pinned thread's worth of shards. Made by [`crate::Recovery::finish`].
pub struct Core {
    world: Rc<World>,
    tasks: Tasks,
    shards: Vec<ShardId>,
}

/// What a recovery hands over.
pub(crate) struct Recovered {
    pub(crate) config: Config,
    pub(crate) shards: BTreeMap<ShardId, Shard>,
    pub(crate) chunks: Chunks,
    pub(crate) repairs: Vec<ChunkRecord>,
    pub(crate) tail: Tail,
    pub(crate) journal_from: u64,
}

impl Core {
    pub(crate) fn new(recovered: Recovered, ports: Ports, now: Now, seed: u64) -> Self {
        let Recovered { config, shards, chunks, repairs, tail, journal_from } = recovered;
        let tasks = Tasks::new();
        let me = Me::Node { node: config.node, endpoint: config.core.0 };
        let options = Options {
            cluster: config.map.cluster,
            map: Some(MapStamp::of(&config.map)),
            timeout_ms: CALL_TIMEOUT_MS,
            lease_ms: config.lease_ms,
            seed,
            now: now.mono,
        };
        let calls = Calls::new(ports.transport, me, options);
        calls.set_map(&config.map);
        calls.set_losses(config.losses);
        let owners: BTreeMap<ShardId, CoreId> = config.owners().into_iter().collect();
        let first = owners.keys().next().and_then(|shard| shards.get(shard));
        let sessions = first.into_iter().flat_map(|shard| shard.state.sessions());
        let leases = Leases::new(sessions, config.lease_ms, now.mono);
        let log = Log {
            writer: Writer::new(tail),
            gate: Gate::new(config.durability),
            dirty: false,
            appending: BTreeMap::new(),
            syncing: None,
        };
        let world = Rc::new(World {
            hear_at: Cell::new(now.mono.after_ms(config.lease_ms / 8)),
            owners,
            now: Cell::new(now),
            chunks: RefCell::new(chunks),
            guards: RefCell::default(),
            log: RefCell::new(log),
            disk: DiskCalls::new(ports.disk),
            siblings: Siblings::new(ports.mailbox),
            calls,
            arena: ports.arena,
            memory_waits: Waiters::new(),
            spawner: tasks.spawner(),
            timers: Timers::new(),
            random: RefCell::new(Random::new(seed)),
            known: RefCell::new(Known { grace: true, ..Known::default() }),
            opens: RefCell::default(),
            locks: RefCell::default(),
            running: RefCell::default(),
            raises: RefCell::default(),
            late: RefCell::default(),
            again: RefCell::new(VecDeque::new()),
            counters: RefCell::default(),
            in_service: Cell::new(0),
            fatal: RefCell::new(None),
            connections: RefCell::new(Connections::default()),
            grants: RefCell::default(),
            ledger: RefCell::default(),
            leases: RefCell::new(leases),
            ending: RefCell::new(BTreeSet::new()),
            started: Cell::new(false),
            stopping: Cell::new(false),
            starting: Waiters::new(),
            began: now.mono,
            borrowing: Cell::new(false),
            marking: Cell::new(false),
            marked: Waiters::new(),
            snapshots: flow::snapshot::Progress::default(),
            passes: RefCell::default(),
            shards: RefCell::new(shards),
            config,
        });
        world.snapshots.from.set(journal_from);
        let shards = world.shards.borrow().keys().copied().collect();
        flow::recover::start(&world, repairs);
        Self { world, tasks, shards }
    }

    /// Takes what the ports report, decides, leaves effects in the ports (the transport is flushed). Returns when it wants to
    /// be called again even if no port reports anything; `Some(now.mono)` or earlier: at once, there is work left.
    pub fn turn(&mut self, now: Now) -> Result<Option<Instant>, Fatal> {
        let world = &self.world;
        world.now.set(now);
        world.disk.set_now(now.mono);
        world.timers.fire(now.mono);
        world.calls.turn(now.mono);
        world.memory_waits.wake_one();
        world.tell_late();
        let mut rounds = 0;
        while rounds < ROUNDS_MAX && self.round()? {
            rounds += 1;
        }
        let world = &self.world;
        flow::space::tend(world);
        flow::session::tend(world);
        flow::snapshot::tend(world);
        self.tasks.run_ready();
        self.append();
        let stuck = !world.siblings.flush();
        net::feed(world);
        net::balance(world, stuck || world.stopping.get());
        // A reply or a pull may have made the transport report what had already arrived.
        let mut wanted = world.calls.flush(now.mono);
        if let Some(why) = world.fatal.borrow().clone() {
            return Err(Fatal(why));
        }
        let mut at = |moment: Option<Instant>| {
            wanted = match (wanted, moment) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        };
        at(world.timers.deadline());
        at(world.late.borrow().first().map(|(until, _)| *until));
        at((!self.tasks.is_idle() || rounds == ROUNDS_MAX).then_some(now.mono));
        at((stuck || !world.memory_waits.is_empty()).then_some(now.mono.after_ms(POLL_MS)));
        if world.started.get() {
            at(world.chunks.borrow().sync_at().filter(|_| !world.marking.get()));
            at(Some(world.hear_at.get()));
            at(world.leases.borrow().deadline(now.mono));
        }
        Ok(wanted)
    }

    /// Takes all that is there and runs what it wakes; whether there was anything.
    fn round(&mut self) -> Result<bool, Fatal> {
        let world = &self.world;
        let mut any = false;
        while let Some(event) = world.calls.next_served() {
            any = true;
            net::take(world, event);
        }
        while let Some(polled) = world.disk.poll() {
            any = true;
            match polled {
                Polled::Woken => {}
                Polled::Named(id, done) => self.on_journal(id, done)?,
                // The turn goes on, so that who waits for the sync hears of it.
                Polled::SyncFailed(error) => world.fail(format!(
                    "the volume cannot be synced: {error}; what was synced before is intact, repair the device and start \
                     again"
                )),
            }
        }
        while let Some(received) = world.siblings.poll() {
            any = true;
            self.on_mail(received);
        }
        loop {
            let job = world.again.borrow_mut().pop_front();
            let Some(job) = job else { break };
            any = true;
            serve::serve(world, job);
        }
        Ok(self.tasks.run_ready() > 0 || any)
    }

    /// Hands this turn's batch to the disk, and asks for a sync if anything waits for one.
    fn append(&self) {
        let world = &self.world;
        let mut log = world.log.borrow_mut();
        if std::mem::take(&mut log.dirty) {
            let bytes = log.writer.take_batch();
            let batch = log.gate.close();
            world.count(Counted::JournalBytes, bytes.len() as u64);
            let id = world.disk.submit_named(DiskOp::Append { bytes });
            log.appending.insert(id, Appending { batch, since: world.now.get().mono });
        }
        let (written, synced) = (log.gate.written(), log.gate.synced());
        if log.syncing.is_none() && log.gate.wants_sync() && written > synced {
            let id = world.disk.submit_named(DiskOp::SyncJournal);
            let since = world.now.get().mono;
            log.syncing = Some((id, Appending { batch: written, since }));
        }
    }

    /// An append or a sync of the journal has completed.
    fn on_journal(&self, id: u64, done: Done) -> Result<(), Fatal> {
        if let Err(error) = done {
            let text = format!(
                "the journal cannot be written: {error}; what was acknowledged is intact, repair the device and start again"
            );
            return Err(Fatal(text));
        }
        let now = self.world.now.get().mono;
        let leaving = {
            let mut log = self.world.log.borrow_mut();
            match (log.appending.remove(&id), log.syncing) {
                (Some(Appending { batch, since }), _) => {
                    self.world.counters.borrow_mut().appends.add(now.0.saturating_sub(since.0));
                    log.gate.on_written(batch)
                }
                (None, Some((sync, Appending { batch, since }))) if sync == id => {
                    log.syncing = None;
                    self.world.counters.borrow_mut().syncs.add(now.0.saturating_sub(since.0));
                    self.world.raises.borrow_mut().retain(|_, raised| *raised > batch);
                    log.gate.on_synced(batch)
                }
                _ => Vec::new(),
            }
        };
        leaving.into_iter().for_each(|leaving| self.world.deliver(leaving));
        Ok(())
    }

    fn on_mail(&self, received: Received<Waits>) {
        let world = &self.world;
        match received {
            Received::Answer { waits: Waits::Task(sender), result } => drop(sender.send(result)),
            Received::Answer { waits: Waits::Caller(caller), result } => {
                let outcome = match result {
                    Answered::Served(outcome) => outcome,
                    _ => Err(sealfs_proto::Status::Busy).into(),
                };
                // It has passed the gate of the core that made it.
                world.respond_after(caller, Batch(0), outcome);
            }
            Received::Errand { from, token, errand } => self.on_errand(from, token, errand),
        }
    }

    fn on_errand(&self, from: CoreId, token: u64, errand: Errand) {
        let world = Rc::clone(&self.world);
        if let Errand::Serve(order) = errand {
            let of_node = matches!(order.peer, Peer::Node { .. });
            let caller = Caller::Sibling { core: from, token, of_node };
            return serve::serve(&world, Job::new(caller, order));
        }
        self.tasks.spawn(async move {
            let answered = match errand {
                Errand::Share(order) => {
                    let share = flow::node::share(&world, &order);
                    Answered::Served(share.await)
                }
                Errand::Fence(peer) => {
                    flow::session::fence_here(&world, peer).await;
                    Answered::Done(true)
                }
                Errand::Admit { session, resume } => {
                    flow::session::admit(&world, session, resume).await
                }
                Errand::End(session) => {
                    flow::session::end_here(&world, session).await;
                    Answered::Done(true)
                }
                Errand::GraceOver => {
                    flow::session::grace_over(&world);
                    Answered::Done(true)
                }
                Errand::Used(used) => flow::recover::tell_used(&world, from, used).await,
                Errand::Lend(ask) => Answered::Loan(flow::space::lend(&world, ask)),
                Errand::GiveBack(runs) => {
                    flow::space::give_back(&world, runs).await;
                    Answered::Done(true)
                }
                Errand::Recall => {
                    flow::space::recall(&world).await;
                    Answered::Done(true)
                }
                Errand::Flush | Errand::Serve(_) => Answered::Done(true),
                keeper @ (Errand::Claimed(_) | Errand::Heard(_) | Errand::Leave(_)) => {
                    flow::session::keep(&world, keeper).await;
                    Answered::Done(true)
                }
            };
            world.siblings.answer(from, token, answered);
        });
    }

    /// This core's share of the node's status: `shards`, `sessions` and the counters are of this core alone; of `space`,
    /// `total` is what its chunks take.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        self.world.status()
    }

    /// What it has counted, and what it holds at this moment. Cost: a look at each of its shards.
    #[must_use]
    pub fn figures(&self) -> CoreFigures {
        self.world.figures()
    }

    /// The shards that it owns, ascending.
    #[must_use]
    pub fn shards(&self) -> &[ShardId] {
        &self.shards
    }

    /// Whether it serves: it has recovered and knows its space.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.world.started.get()
    }

    /// Everything acknowledged is in the journal and no request is being served: a good moment to end the process. The
    /// shell calls [`Core::turn`] until this holds after [`Core::stop`], or loses patience.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let log = self.world.log.borrow();
        let written = !log.dirty && log.appending.is_empty() && log.gate.is_empty();
        written && self.world.disk.len() == 0 && self.world.in_service.get() == 0
    }

    /// Takes no further requests of clients from now on, and lets no client in (an orderly stop). Other nodes are served on:
    /// changes that this node has begun with them end sooner.
    pub fn stop(&mut self) {
        self.world.stopping.set(true);
    }
}

/// A call to another node that has had no answer for so long is given up, and begun again by its flow.
const CALL_TIMEOUT_MS: u64 = 20_000;
/// Rounds of one turn before the batch is appended all the same: bounds the wait of those served first.
const ROUNDS_MAX: u32 = 16;
/// Until a full mailbox or an exhausted arena is looked at again.
const POLL_MS: u64 = 1;
