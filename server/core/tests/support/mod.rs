//! A cluster in memory: real cores, the network in memory, disks in memory, virtual time. What is on a disk survives a
//! kill; what was submitted and not carried out does not. What was carried out and not synced survives a kill, but not for
//! certain the loss of power. The tests of this crate and the simulation share it.

#![allow(dead_code, reason = "each test file uses a part of it")]

mod wires;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use sealfs_meta::journal::{ENTRY_HEADER_LEN, entries};
use sealfs_meta::{RootOptions, State, snapshot};
use sealfs_proto::{
    ClusterId, ClusterMap, Epoch, Ino, Node, NodeId, Placement, Reply, Request, ShardId, Time, Who,
    chunk_shard,
};
use sealfs_server_core::{
    Config, Core, CoreId, Disk, DiskDone, DiskError, DiskOp, Durability, Mail, Mailbox, Ports,
    Recovery,
};
use sealfs_transport::mem::MemNetwork;
use sealfs_transport::tasks::Tasks;
use sealfs_transport::{
    Answer, Arena, Ask, Bulk, CallError, Calls, Identity, Instant, Key, MapStamp, Me, Now, Options,
    Region, Serves, Slice,
};
pub(crate) use wires::Wires;

/// Blocks of a node's volume, if a test does not ask for fewer: 256 MiB.
pub(crate) const VOLUME_BLOCKS: u64 = 65_536;

/// What survives a kill, and, once it has lost power, only that.
#[derive(Default)]
pub(crate) struct Device {
    blocks: BTreeMap<u64, Vec<u8>>,
    journals: BTreeMap<CoreId, Vec<u8>>,
    snapshots: BTreeMap<ShardId, Vec<u8>>,
    /// What each block was before writes that no sync has covered, oldest first, by the number of the write.
    unsynced_blocks: BTreeMap<u64, Vec<(u64, Vec<u8>)>>,
    /// Bytes of each journal that a sync has covered.
    synced_journals: BTreeMap<CoreId, usize>,
    /// Power was lost and nothing has been verified since.
    pub(crate) lost_power: bool,
    /// A start can verify nothing.
    pub(crate) unreadable: bool,
    losses: u64,
    /// Operations carried out.
    pub(crate) done: u64,
    /// Bytes of journal cut away.
    pub(crate) cuts: u64,
}

/// A core's disk: an operation is carried out when its completion is polled.
struct RamDisk {
    core: CoreId,
    device: Rc<RefCell<Device>>,
    queue: VecDeque<Queued>,
    limits: Rc<Limits>,
}

/// An operation, and how many were done when it was submitted.
struct Queued {
    id: u64,
    op: DiskOp,
    done: u64,
}

/// What a node's disk does not do.
struct Limits {
    /// Operations that may still be carried out.
    budget: Cell<u64>,
    /// Syncs stay under way.
    no_sync: Cell<bool>,
}

impl Disk for RamDisk {
    fn submit(&mut self, id: u64, op: DiskOp) {
        let done = self.device.borrow().done;
        self.queue.push_back(Queued { id, op, done });
    }

    fn poll(&mut self) -> Option<(u64, Result<DiskDone, DiskError>)> {
        let budget = &self.limits.budget;
        if budget.get() == 0 {
            return None;
        }
        let hangs = |queued: &Queued| {
            let sync = matches!(queued.op, DiskOp::SyncVolume | DiskOp::SyncJournal);
            sync && self.limits.no_sync.get()
        };
        let next = self.queue.iter().position(|queued| !hangs(queued))?;
        let Queued { id, op, done } = self.queue.remove(next)?;
        budget.set(budget.get() - 1);
        Some((id, Ok(self.device.borrow_mut().carry_out(self.core, op, done))))
    }
}

impl Device {
    /// `begun`: how much was done when the operation was submitted, which is what a sync of the volume covers.
    fn carry_out(&mut self, core: CoreId, op: DiskOp, begun: u64) -> DiskDone {
        self.done += 1;
        match op {
            DiskOp::Read { offset, len, mut region } => {
                self.read(offset, &mut region.bytes_mut()[..len as usize]);
                return DiskDone::Read(region);
            }
            DiskOp::Write { offset, bytes } => {
                let all: Vec<u8> = bytes.iter().flat_map(|slice| slice.bytes().to_vec()).collect();
                assert!(all.len().is_multiple_of(BLOCK) && offset.is_multiple_of(BLOCK as u64));
                for (at, block) in (offset / BLOCK as u64..).zip(all.chunks(BLOCK)) {
                    assert!(at < VOLUME_BLOCKS, "within the volume");
                    let before = self.blocks.insert(at, block.to_vec());
                    let before = before.unwrap_or_else(|| vec![0; BLOCK]);
                    self.unsynced_blocks.entry(at).or_default().push((self.done, before));
                }
            }
            DiskOp::Append { bytes } => self.journals.entry(core).or_default().extend(bytes),
            DiskOp::Snapshot { shard, bytes: Some(bytes) } => {
                self.snapshots.insert(shard, bytes.concat());
            }
            DiskOp::Snapshot { shard, bytes: None } => {
                self.snapshots.remove(&shard);
            }
            DiskOp::Cut { position } => {
                self.cuts += 1;
                self.cut(core, position);
            }
            DiskOp::SyncVolume => self.unsynced_blocks.retain(|_, versions| {
                versions.retain(|(written, _)| *written > begun);
                !versions.is_empty()
            }),
            DiskOp::SyncJournal => {
                self.synced_journals.insert(core, self.journals.entry(core).or_default().len());
            }
        }
        DiskDone::Done
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) {
        for (at, target) in (offset / BLOCK as u64..).zip(bytes.chunks_mut(BLOCK)) {
            match self.blocks.get(&at) {
                Some(bytes) => target.copy_from_slice(bytes),
                None => target.fill(0),
            }
        }
    }

    /// Has all taken back that did not reach the device.
    fn verify(&self, recovery: &mut Recovery) {
        recovery.verify(|read, bytes| {
            self.read(read.offset, bytes);
            if self.unreadable { Err("a bad sector".into()) } else { Ok(()) }
        });
    }

    /// Whether a block of the volume holds exactly this.
    pub(crate) fn holds(&self, block: &[u8]) -> bool {
        self.blocks.values().any(|bytes| bytes == block)
    }

    /// Removes the entries below `position`, but for the last one: with it a restart would forget where the journal ends.
    fn cut(&mut self, core: CoreId, position: u64) {
        let journal = self.journals.entry(core).or_default();
        let mut keep = 0;
        let mut at = 0;
        for entry in entries(journal).take_while(|entry| entry.position < position) {
            keep = at;
            at += ENTRY_HEADER_LEN + entry.logical.len() + entry.local.len();
        }
        let keep = if at < journal.len() { at } else { keep };
        journal.drain(..keep);
        if let Some(synced) = self.synced_journals.get_mut(&core) {
            *synced = synced.saturating_sub(keep);
        }
    }

    /// Writes of the volume and bytes of journals that the loss of power may take.
    pub(crate) fn unsynced(&self) -> usize {
        let synced = |core| self.synced_journals.get(core).copied().unwrap_or(0);
        let journals = self.journals.iter().map(|(core, bytes)| bytes.len() - synced(core));
        self.unsynced_blocks.len() + journals.sum::<usize>()
    }

    /// Each block that was not synced is one of what it was since the sync, or torn between two of them; each journal ends
    /// somewhere behind what was synced of it.
    pub(crate) fn lose_power(&mut self, random: &mut fastrand::Rng) {
        self.lost_power = true;
        self.losses += 1;
        for (at, versions) in std::mem::take(&mut self.unsynced_blocks) {
            let now = self.blocks.get_mut(&at).expect("it was written");
            let before = &versions[random.usize(..versions.len())].1;
            match random.u8(..4) {
                0 => {}
                1 => {
                    let torn = random.usize(..BLOCK / 512) * 512;
                    now[torn..].copy_from_slice(&before[torn..]);
                }
                _ => now.copy_from_slice(before),
            }
        }
        for (core, bytes) in &mut self.journals {
            let synced = self.synced_journals.get(core).copied().unwrap_or(0);
            bytes.truncate(random.usize(synced..=bytes.len()));
            let whole = entries(bytes)
                .map(|entry| ENTRY_HEADER_LEN + entry.logical.len() + entry.local.len());
            let whole: usize = whole.sum();
            assert!(whole >= synced, "what was synced are whole entries");
            bytes.truncate(whole);
            self.synced_journals.insert(*core, whole);
        }
    }
}

/// Bytes of a block of the volume.
const BLOCK: usize = 4_096;

/// Boxes with room for one mail, the least there is.
type Boxes = Rc<RefCell<BTreeMap<CoreId, VecDeque<(CoreId, Mail)>>>>;

struct Channel {
    core: CoreId,
    boxes: Boxes,
}

impl Mailbox<Mail> for Channel {
    fn send(&mut self, to: CoreId, mail: Mail) -> Result<(), Mail> {
        let mut boxes = self.boxes.borrow_mut();
        let queue = boxes.entry(to).or_default();
        if queue.is_empty() {
            queue.push_back((self.core, mail));
            Ok(())
        } else {
            Err(mail)
        }
    }

    fn poll(&mut self) -> Option<(CoreId, Mail)> {
        self.boxes.borrow_mut().entry(self.core).or_default().pop_front()
    }
}

/// A node: its cores while it runs, its device always.
pub(crate) struct Server {
    pub(crate) id: NodeId,
    pub(crate) cores: Vec<Core>,
    pub(crate) device: Rc<RefCell<Device>>,
    limits: Rc<Limits>,
    boxes: Boxes,
}

/// What a test sets.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) nodes: u16,
    pub(crate) cores: u16,
    pub(crate) durability: Durability,
    pub(crate) snapshot_bytes: u64,
    pub(crate) only_uid: Option<u32>,
    pub(crate) lease_ms: u64,
    pub(crate) timeout_ms: u64,
    pub(crate) chunk_size: u32,
    pub(crate) volume_blocks: u64,
    pub(crate) requests_max: usize,
    pub(crate) seed: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            nodes: 1,
            cores: 1,
            durability: Durability::Process,
            snapshot_bytes: 1 << 30,
            only_uid: None,
            lease_ms: 120_000,
            timeout_ms: 60_000,
            chunk_size: 1 << 20,
            volume_blocks: VOLUME_BLOCKS,
            requests_max: 4_096,
            seed: 1,
        }
    }
}

/// The cluster and its clients.
pub(crate) struct Cluster {
    pub(crate) setup: Setup,
    pub(crate) map: Arc<ClusterMap>,
    pub(crate) placement: Placement,
    pub(crate) network: Rc<dyn Wires>,
    pub(crate) now: Instant,
    pub(crate) servers: Vec<Server>,
    pub(crate) clients: Vec<Calls>,
    /// The memory of each client.
    pub(crate) arenas: Vec<Rc<dyn Arena>>,
    pub(crate) tasks: Tasks,
    /// What else has a turn before the tasks run, and when it wants the next one.
    pub(crate) turns: Vec<Turn>,
}

/// Told the time; answers when it wants to be told again even if nothing happens.
pub(crate) type Turn = Box<dyn Fn(Instant) -> Option<Instant>>;

fn name(node: NodeId, core: u16) -> String {
    format!("node{node}core{core}")
}

impl Cluster {
    /// A cluster over the network in memory.
    pub(crate) fn new(setup: Setup) -> Self {
        Self::over(Rc::new(MemNetwork::new(setup.seed)), setup)
    }

    pub(crate) fn over(network: Rc<dyn Wires>, setup: Setup) -> Self {
        let nodes = (1..=setup.nodes).map(|id| Node {
            id: NodeId(id),
            weight: 1,
            addresses: vec![network.address(&name(NodeId(id), 0))],
        });
        let map = Arc::new(ClusterMap {
            cluster: ClusterId([7; 16]),
            epoch: Epoch(1),
            shards_log2: 12,
            chunk_size: setup.chunk_size,
            nodes: nodes.collect(),
        });
        let mut cluster = Self {
            placement: Placement::new(&map),
            network,
            now: Instant(1_000),
            servers: Vec::new(),
            clients: Vec::new(),
            arenas: Vec::new(),
            tasks: Tasks::new(),
            turns: Vec::new(),
            setup,
            map,
        };
        for id in (1..=setup.nodes).map(NodeId) {
            let device = Rc::new(RefCell::new(Device::default()));
            if cluster.placement.node(ShardId(0)) == Some(id) {
                let options =
                    RootOptions { chunk_size: setup.chunk_size, ..RootOptions::default() };
                let root = State::with_root(options, Time::default());
                let bytes = snapshot::encode(cluster.map.cluster, id, &root, &[]);
                device.borrow_mut().snapshots.insert(ShardId(0), bytes);
            }
            let limits = Limits { budget: Cell::new(u64::MAX), no_sync: Cell::new(false) };
            let (limits, boxes) = (Rc::new(limits), Boxes::default());
            cluster.servers.push(Server { id, cores: Vec::new(), device, limits, boxes });
            cluster.start(id);
        }
        cluster.client(1);
        cluster
    }

    fn identity(&self, serves: Option<NodeId>) -> Arc<Identity> {
        let serves = serves.map(|node| Serves { node, map: Arc::clone(&self.map) });
        Arc::new(Identity { key: Key::new([5; 32]), serves })
    }

    /// One more client (process); its number.
    pub(crate) fn client(&mut self, seed: u64) -> usize {
        let name = format!("client{}", self.clients.len());
        let (transport, arena) = self.network.endpoint(&name, self.identity(None));
        let me = Me::Client { endpoint: 0, session_seed: seed };
        let options = Options {
            cluster: self.map.cluster,
            map: Some(MapStamp::of(&self.map)),
            timeout_ms: self.setup.timeout_ms,
            lease_ms: self.setup.lease_ms,
            seed,
            now: self.now,
        };
        let calls = Calls::new(transport, me, options);
        calls.set_map(&self.map);
        self.clients.push(calls);
        self.arenas.push(arena);
        self.clients.len() - 1
    }

    /// The last client is gone without a word.
    pub(crate) fn lose_client(&mut self, client: usize) {
        assert_eq!(client, self.clients.len() - 1);
        self.network.crash(self.now, &format!("client{client}"));
        self.clients.pop();
        self.arenas.pop();
    }

    fn config(&self, node: NodeId, core: u16) -> Config {
        Config {
            volume_blocks: self.setup.volume_blocks,
            losses: self.servers[usize::from(node.0 - 1)].device.borrow().losses,
            durability: self.setup.durability,
            snapshot_bytes: self.setup.snapshot_bytes,
            only_uid: self.setup.only_uid,
            lease_ms: self.setup.lease_ms,
            requests_max: self.setup.requests_max,
            ..Config::new(Arc::clone(&self.map), node, CoreId(core), self.setup.cores)
        }
    }

    /// Starts a node from what is on its device.
    pub(crate) fn start(&mut self, id: NodeId) {
        let now = self.now();
        let at = usize::from(id.0 - 1);
        self.servers[at].limits.budget.set(u64::MAX);
        self.servers[at].boxes.borrow_mut().clear();
        let found: Vec<Recovery> =
            (0..self.setup.cores).map(|core| self.recover(id, core)).collect();
        self.servers[at].device.borrow_mut().lost_power = false;
        for (core, recovery) in (0..).zip(found) {
            let device = Rc::clone(&self.servers[at].device);
            let (transport, arena) =
                self.network.endpoint(&name(id, core), self.identity(Some(id)));
            let disk = RamDisk {
                core: CoreId(core),
                device: Rc::clone(&device),
                queue: VecDeque::new(),
                limits: Rc::clone(&self.servers[at].limits),
            };
            let boxes = Rc::clone(&self.servers[at].boxes);
            let ports = Ports {
                transport,
                disk: Box::new(disk),
                mailbox: Box::new(Channel { core: CoreId(core), boxes }),
                arena,
            };
            let seed = self.setup.seed + u64::from(id.0) * 100 + u64::from(core) + now.mono.0;
            self.servers[at].cores.push(recovery.finish(ports, now, seed));
        }
    }

    /// What a core finds on its node's device.
    fn recover(&self, id: NodeId, core: u16) -> Recovery {
        let config = self.config(id, core);
        let own = config.owners();
        let mut recovery = Recovery::new(config);
        let device = self.servers[usize::from(id.0 - 1)].device.borrow();
        for (shard, bytes) in &device.snapshots {
            if own.contains(&(*shard, CoreId(core))) {
                recovery.snapshot(*shard, bytes).unwrap();
            }
        }
        if let Some(journal) = device.journals.get(&CoreId(core)) {
            recovery.journal(journal).unwrap();
        }
        if device.lost_power {
            device.verify(&mut recovery);
        }
        recovery
    }

    /// All shards that are not empty, as a start would find them.
    pub(crate) fn states(&self) -> Vec<State> {
        let nodes = (1..=self.setup.nodes).map(NodeId);
        let cores = nodes.flat_map(|id| (0..self.setup.cores).map(move |core| (id, core)));
        let found = cores.flat_map(|(id, core)| self.recover(id, core).snapshots());
        let states = found
            .filter_map(|(_, bytes)| bytes.map(|bytes| snapshot::decode(&bytes).unwrap().state));
        states.collect()
    }

    /// Turns what is on the devices into what a start with another number of cores begins with: snapshots, and no journal.
    /// All nodes are down.
    pub(crate) fn change_cores(&mut self, cores: u16) {
        for id in (1..=self.setup.nodes).map(NodeId) {
            let own = 0..self.setup.cores;
            let found: Vec<_> = own.flat_map(|core| self.recover(id, core).snapshots()).collect();
            let mut device = self.servers[usize::from(id.0 - 1)].device.borrow_mut();
            device.journals.clear();
            device.synced_journals.clear();
            device.snapshots =
                found.into_iter().filter_map(|(shard, bytes)| Some((shard, bytes?))).collect();
        }
        self.setup.cores = cores;
    }

    /// Kills a node.
    pub(crate) fn kill(&mut self, id: NodeId) {
        let at = usize::from(id.0 - 1);
        for core in 0..self.setup.cores {
            self.network.crash(self.now, &name(id, core));
        }
        self.servers[at].cores.clear();
    }

    /// Lets a node carry out so many more disk operations; then its disk hangs.
    pub(crate) fn limit_disk(&mut self, id: NodeId, operations: u64) {
        self.servers[usize::from(id.0 - 1)].limits.budget.set(operations);
    }

    /// Whether the disk has come to its limit.
    pub(crate) fn disk_hangs(&self, id: NodeId) -> bool {
        self.servers[usize::from(id.0 - 1)].limits.budget.get() == 0
    }

    /// Whether a node's syncs stay under way.
    pub(crate) fn hold_syncs(&self, id: NodeId, hold: bool) {
        self.servers[usize::from(id.0 - 1)].limits.no_sync.set(hold);
    }

    /// The node's machine loses its power, and with it a random part of what was not synced.
    pub(crate) fn lose_power(&mut self, id: NodeId, random: &mut fastrand::Rng) {
        self.kill(id);
        self.servers[usize::from(id.0 - 1)].device.borrow_mut().lose_power(random);
    }

    pub(crate) fn now(&self) -> Now {
        let nanos = self.now.0;
        let wall = Time {
            seconds: 1_000_000 + (nanos / 1_000_000_000) as i64,
            nanos: (nanos % 1_000_000_000) as u32,
        };
        Now { mono: self.now, wall }
    }

    /// Everybody's turn, then time passes until something happens.
    pub(crate) fn step(&mut self) {
        let now = self.now();
        let mut next = Instant(now.mono.0 + 50_000_000);
        for client in &self.clients {
            if let Some(at) = client.turn(now.mono) {
                next = next.min(at);
            }
        }
        for turn in &self.turns {
            if let Some(at) = turn(now.mono) {
                next = next.min(at);
            }
        }
        self.tasks.run_ready();
        for client in &self.clients {
            client.flush(now.mono);
        }
        for server in &mut self.servers {
            for core in &mut server.cores {
                if let Some(at) = core.turn(now).unwrap() {
                    next = next.min(at);
                }
            }
        }
        if let Some(at) = self.network.pass(now.mono) {
            next = next.min(at);
        }
        // A microsecond at least: disks and mailboxes have no clock of their own.
        self.now = Instant(next.0.max(now.mono.0 + 1_000));
        if next.0 > now.mono.0 + 20_000 {
            self.now = Instant(now.mono.0 + 20_000);
            if self.quiet() {
                self.now = next;
            }
        }
    }

    /// Whether no disk has anything to do, so that time may jump.
    fn quiet(&self) -> bool {
        self.servers.iter().flat_map(|server| &server.cores).all(Core::is_idle)
            && self
                .servers
                .iter()
                .all(|server| server.boxes.borrow().values().all(VecDeque::is_empty))
    }

    /// Runs for so long.
    pub(crate) fn run_ms(&mut self, ms: u64) {
        let until = self.now.after_ms(ms);
        while self.now < until {
            self.step();
        }
    }

    /// Begins a call; its result appears in the cell.
    pub(crate) fn begin(&mut self, client: usize, node: NodeId, ask: Ask) -> Pending {
        let call = self.clients[client].call(node, ask);
        let result = Pending::default();
        let sink = Rc::clone(&result);
        self.tasks.spawn(async move { *sink.borrow_mut() = Some(call.await) });
        result
    }

    /// Runs until the call has ended; two virtual minutes at most.
    pub(crate) fn finish(&mut self, pending: &Pending) -> Result<Answer, CallError> {
        let until = self.now.after_ms(120_000);
        while pending.borrow().is_none() {
            assert!(self.now < until, "a call has not ended within two minutes");
            self.step();
        }
        pending.borrow_mut().take().unwrap()
    }

    pub(crate) fn call(
        &mut self,
        client: usize,
        node: NodeId,
        ask: Ask,
    ) -> Result<Answer, CallError> {
        let pending = self.begin(client, node, ask);
        self.finish(&pending)
    }

    pub(crate) fn node_of(&self, shard: ShardId) -> NodeId {
        self.placement.node(shard).unwrap()
    }

    /// A change by the first client.
    pub(crate) fn change(&mut self, shard: ShardId, request: Request) -> Result<Reply, CallError> {
        self.change_by(0, shard, request)
    }

    pub(crate) fn change_by(
        &mut self,
        client: usize,
        shard: ShardId,
        request: Request,
    ) -> Result<Reply, CallError> {
        let node = self.node_of(shard);
        self.call(client, node, Ask::change(shard, request)).map(|answer| answer.reply)
    }

    /// A read by the first client.
    pub(crate) fn ask(&mut self, shard: ShardId, request: Request) -> Result<Reply, CallError> {
        let node = self.node_of(shard);
        self.call(0, node, Ask::read(shard, request)).map(|answer| answer.reply)
    }

    // ---- what programs do ----

    pub(crate) fn mkdir(&mut self, dir: Ino, name: &str) -> Ino {
        let request =
            Request::Mkdir { who: Who::root(), dir, name: name.into(), mode: 0o755, umask: 0 };
        entry(self.change(dir.shard(), request)).unwrap()
    }

    pub(crate) fn create(&mut self, dir: Ino, name: &str) -> Ino {
        entry(self.change(dir.shard(), create(dir, name, false))).unwrap()
    }

    pub(crate) fn lookup(&mut self, dir: Ino, name: &str) -> Option<Ino> {
        let request = Request::Lookup { who: Who::root(), dir, name: name.into() };
        match self.ask(dir.shard(), request) {
            Ok(Reply::Entry(entry)) => Some(entry.ino),
            Err(CallError::Errno(sealfs_proto::Errno::ENOENT)) => None,
            other => panic!("lookup of {name}: {other:?}"),
        }
    }

    pub(crate) fn unlink(&mut self, dir: Ino, name: &str) -> Result<Reply, CallError> {
        let request = Request::Unlink { who: Who::root(), dir, name: name.into() };
        self.change(dir.shard(), request)
    }

    pub(crate) fn rename(
        &mut self,
        (dir, name): (Ino, &str),
        (target_dir, target_name): (Ino, &str),
    ) -> Result<Reply, CallError> {
        self.change(dir.shard(), rename((dir, name), (target_dir, target_name)))
    }

    pub(crate) fn stat(&mut self, ino: Ino) -> Result<sealfs_proto::Attr, CallError> {
        match self.ask(ino.shard(), Request::Stat { ino })? {
            Reply::Attr(attr) => Ok(attr),
            other => panic!("stat: {other:?}"),
        }
    }

    pub(crate) fn list(&mut self, dir: Ino) -> Vec<String> {
        let request =
            Request::List { who: Who::root(), dir, cookie: 0, bytes: 100_000, attributes: false };
        match self.ask(dir.shard(), request) {
            Ok(Reply::List { entries, end: true }) => {
                let mut names: Vec<String> = entries
                    .into_iter()
                    .map(|listed| String::from_utf8(listed.name).unwrap())
                    .collect();
                names.sort();
                names
            }
            other => panic!("list: {other:?}"),
        }
    }

    pub(crate) fn write(&mut self, ino: Ino, index: u64, offset: u32, bytes: &[u8]) -> Reply {
        let pending = self.begin_write(0, ino, index, offset, bytes);
        self.finish(&pending).unwrap().reply
    }

    pub(crate) fn begin_write(
        &mut self,
        client: usize,
        ino: Ino,
        index: u64,
        offset: u32,
        bytes: &[u8],
    ) -> Pending {
        let shard = chunk_shard(ino, index, self.map.shards());
        let mut region = Region::zeroed(bytes.len());
        region.bytes_mut().copy_from_slice(bytes);
        let slices: Vec<Slice> = vec![region.freeze()];
        let ask =
            Ask::change(shard, Request::Write { ino, index, offset }).with_bulk(Bulk::Send(slices));
        self.begin(client, self.node_of(shard), ask)
    }

    pub(crate) fn read(&mut self, ino: Ino, index: u64, offset: u32, length: u32) -> Vec<u8> {
        let shard = chunk_shard(ino, index, self.map.shards());
        let ask = Ask::read(shard, Request::Read { ino, index, offset, length })
            .with_bulk(Bulk::Receive(Region::zeroed(length as usize)));
        let answer = self.call(0, self.node_of(shard), ask).unwrap();
        let Reply::Data { length: filled } = answer.reply else { panic!("{:?}", answer.reply) };
        let mut bytes = answer.region.unwrap().bytes()[..filled as usize].to_vec();
        bytes.resize(length as usize, 0);
        bytes
    }

    pub(crate) fn free_bytes(&mut self, node: NodeId) -> u64 {
        match self.call(0, node, Ask::read(ShardId(0), Request::Space)).unwrap().reply {
            Reply::Space(space) => space.free,
            other => panic!("space: {other:?}"),
        }
    }

    /// A name in `dir` whose new directory would live on `node`.
    pub(crate) fn name_on(&self, dir: Ino, node: NodeId) -> String {
        (0..)
            .map(|number| format!("d{number}"))
            .find(|name| {
                let shard = sealfs_proto::directory_shard(dir, name.as_bytes(), self.map.shards());
                shard != dir.shard() && self.node_of(shard) == node
            })
            .unwrap()
    }
}

/// A call's result, once it is there.
pub(crate) type Pending = Rc<RefCell<Option<Result<Answer, CallError>>>>;

pub(crate) fn create(dir: Ino, name: &str, open: bool) -> Request {
    Request::Create {
        who: Who::root(),
        dir,
        name: name.into(),
        new: sealfs_proto::New::File,
        mode: 0o644,
        umask: 0,
        open,
    }
}

pub(crate) fn rename((dir, name): (Ino, &str), (target_dir, target_name): (Ino, &str)) -> Request {
    Request::Rename {
        who: Who::root(),
        dir,
        name: name.into(),
        target_dir,
        target_name: target_name.into(),
        flag: sealfs_proto::RenameFlag::Replace,
    }
}

pub(crate) fn entry(reply: Result<Reply, CallError>) -> Result<Ino, CallError> {
    match reply? {
        Reply::Entry(entry) => Ok(entry.ino),
        other => panic!("not an entry: {other:?}"),
    }
}
