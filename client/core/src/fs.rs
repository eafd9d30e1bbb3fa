//! The file system of one client: what its operations share.
//!
//! The operations themselves are in `crate::ops`, one file per subject; what they ask of nodes goes through `crate::net`.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::{BTreeMap, VecDeque};
use std::rc::{Rc, Weak};

use sealfs_proto::{Claim, ClusterMap, Ino, NodeId, ShardId};
use sealfs_transport::tasks::{Spawner, Timers, Waiters};
use sealfs_transport::{Arena, Calls, Instant, Region};

use crate::Options;
use crate::file::Table;
use crate::gate::Gate;
use crate::route::Routes;
use crate::share::Shares;
use crate::unsynced::Unsynced;

/// The file system of one client; cheap to clone, all clones are one.
///
/// Every operation is a future that may be polled by any executor on the one thread. A future that has begun should be run
/// to its end, also when the program that asked no longer waits (answer the program and let the future be): dropping it
/// half way harms nobody, but what it has written may stay unsettled until the file is written again or closed.
#[derive(Clone)]
pub struct Fs(Rc<Inner>);

/// What a client holds at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsFigures {
    /// Handles that are open.
    pub handles: usize,
    /// Files that are open, dirty or locked.
    pub files: usize,
    /// Files whose size, times or space their shard has yet to be told.
    pub dirty: usize,
    /// Files of which locks are held.
    pub locked: usize,
    /// Sessions with nodes that have ended.
    pub sessions_ended: u64,
}

struct Inner {
    calls: Calls,
    spawner: Spawner,
    arena: Rc<dyn Arena>,
    routes: Routes,
    options: Options,
    now: Cell<Instant>,
    timers: Timers,
    table: RefCell<Table>,
    unsynced: RefCell<Unsynced>,
    /// Files that became dirty, oldest first, with the moment to settle them.
    due: RefCell<VecDeque<(Instant, Ino)>>,
    /// How many sessions with each node have ended.
    sessions: RefCell<BTreeMap<NodeId, u64>>,
    /// One task takes regions at a time, the others wait behind it.
    taking: Gate,
    /// What the regions of reads may be at each node.
    shares: Shares,
    /// Woken when time has passed, for somebody waits for regions.
    turns: Waiters,
}

impl Fs {
    /// The file system of the cluster whose `map` (checked) `calls` have joined; `calls` get their claims from it from now
    /// on. Background work (settling, closing, reopening) is spawned with `spawner`, bytes that are read lie in regions of
    /// `arena`. Cost: the placement of all shards.
    #[must_use]
    pub fn new(
        calls: Calls,
        spawner: Spawner,
        arena: Rc<dyn Arena>,
        map: &ClusterMap,
        options: Options,
    ) -> Self {
        let fs = Self(Rc::new(Inner {
            calls: calls.clone(),
            spawner,
            arena,
            routes: Routes::new(map),
            options,
            now: Cell::default(),
            timers: Timers::new(),
            table: RefCell::default(),
            unsynced: RefCell::default(),
            due: RefCell::default(),
            sessions: RefCell::default(),
            taking: Gate::default(),
            shares: Shares::default(),
            turns: Waiters::new(),
        }));
        // Weak, for the calls live in what they would keep alive.
        let weak = Rc::downgrade(&fs.0);
        calls.set_claims(move |node, is_new| claims(&weak, node, is_new));
        fs
    }

    /// Does what time asks for: settles what has been dirty long enough, ends short waits. Returns when it wants to be
    /// called again even if nothing happens. To be called once per turn of the loop, before the spawner's tasks are run.
    pub fn turn(&self, now: Instant) -> Option<Instant> {
        let before = self.0.now.replace(now);
        self.0.timers.fire(now);
        // Regions come back without a word; who waits for them asks again, and may go on waiting.
        let retry = (!self.0.turns.is_empty()).then(|| now.after_ms(REGIONS_RETRY_MS));
        if now > before {
            self.0.turns.wake_all();
        }
        while let Some((_, ino)) = self.next_due(now) {
            match self.file(ino) {
                Some(file) if file.is_dirty() => {
                    self.spawn(self.clone().settle_in_background(file));
                }
                _ => self.table().forget_idle(ino),
            }
        }
        self.deadline().into_iter().chain(retry).min()
    }

    /// When it wants its next turn even if nothing happens, as things stand now: tasks that have run since the last turn may
    /// have brought it nearer.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let due = self.0.due.borrow().front().map(|(due, _)| *due);
        let waits = !self.0.turns.is_empty();
        let retry = waits.then(|| self.now().after_ms(REGIONS_RETRY_MS));
        [due, retry, self.0.timers.deadline()].into_iter().flatten().min()
    }

    /// What it holds at this moment. Cost: a look at each file.
    #[must_use]
    pub fn figures(&self) -> FsFigures {
        let sessions_ended = self.0.sessions.borrow().values().sum();
        FsFigures { sessions_ended, ..self.table().figures() }
    }

    /// Takes the regions of one read, all at once, as soon as there are enough and the nodes that will fill them have room
    /// in their shares. The arena has room for the largest read.
    pub(crate) async fn regions(&self, parts: &[(NodeId, usize)]) -> Vec<Region> {
        // Nobody waits behind who waits for a share, for that may be a dead node's.
        let shares = loop {
            if let Some(shares) = self.0.shares.take(parts) {
                break shares;
            }
            self.0.turns.wait().await;
        };
        let take =
            || parts.iter().map(|(_, len)| self.0.arena.take(*len)).collect::<Option<Vec<_>>>();
        let _first = self.0.taking.exclusive().await;
        let regions = loop {
            if let Some(regions) = take() {
                break regions;
            }
            self.0.turns.wait().await;
        };
        shares.into_iter().zip(regions).map(|(share, region)| share.with(region)).collect()
    }

    /// `ino` became dirty: it is settled in a while.
    pub(crate) fn settle_later(&self, ino: Ino) {
        let due = self.now().after_ms(self.0.options.settle_ms);
        self.0.due.borrow_mut().push_back((due, ino));
    }

    fn next_due(&self, now: Instant) -> Option<(Instant, Ino)> {
        let mut due = self.0.due.borrow_mut();
        due.front().is_some_and(|(moment, _)| *moment <= now).then(|| due.pop_front()).flatten()
    }

    /// The session with `node` has ended: what it counted and locked is gone. Handles are reopened in the background, so
    /// that files stay, and at the latest when they are used.
    fn session_ended(&self, node: NodeId) {
        *self.0.sessions.borrow_mut().entry(node).or_default() += 1;
        let handles = self.table().lose_session(|ino| self.node_of(ino) == node);
        tracing::warn!(%node, handles = handles.len(), "the node has ended the session; reopening files");
        for handle in handles {
            let fs = self.clone();
            self.spawn(async move {
                // Whoever uses the handle gets the error.
                let _ = fs.ready(handle).await;
            });
        }
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.spawner.spawn(task);
    }

    pub(crate) fn calls(&self) -> &Calls {
        &self.0.calls
    }

    pub(crate) fn timers(&self) -> &Timers {
        &self.0.timers
    }

    pub(crate) fn options(&self) -> &Options {
        &self.0.options
    }

    pub(crate) fn routes(&self) -> &Routes {
        &self.0.routes
    }

    pub(crate) fn now(&self) -> Instant {
        self.0.now.get()
    }

    pub(crate) fn table(&self) -> RefMut<'_, Table> {
        self.0.table.borrow_mut()
    }

    pub(crate) fn unsynced(&self) -> RefMut<'_, Unsynced> {
        self.0.unsynced.borrow_mut()
    }

    /// The node of an inode.
    pub(crate) fn node_of(&self, ino: Ino) -> NodeId {
        self.0.routes.node(ino.shard())
    }

    /// The shard of a chunk.
    pub(crate) fn chunk_shard(&self, ino: Ino, index: u64) -> ShardId {
        self.0.routes.chunk(ino, index)
    }

    /// How many sessions with the inode's node have ended so far.
    pub(crate) fn session_of(&self, ino: Ino) -> u64 {
        self.0.sessions.borrow().get(&self.node_of(ino)).copied().unwrap_or(0)
    }
}

/// What is claimed at `node` after a reconnect; nothing of an old session in a new one.
fn claims(inner: &Weak<Inner>, node: NodeId, is_new: bool) -> Vec<Claim> {
    let Some(fs) = inner.upgrade().map(Fs) else { return Vec::new() };
    if is_new {
        fs.session_ended(node);
    }
    fs.table().claims(|ino| fs.node_of(ino) == node)
}

impl core::fmt::Debug for Fs {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Fs")
    }
}

/// How soon who waits for regions looks again, milliseconds.
const REGIONS_RETRY_MS: u64 = 1;
