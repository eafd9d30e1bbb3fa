//! A world in virtual time: three nodes, two clients, and nodes that die and links that hang at random moments.
//!
//! ```text
//!     Program 0 -> Fs -> Calls --+                       +-- Core, Core -> disk   node 1   killed, started again
//!                                +-- network in memory --+-- Core, Core -> disk   node 2   ...
//!     Program 1 -> Fs -> Calls --+                       +-- Core, Core -> disk   node 3
//! ```
//! Everything but network, disks and time is what runs in `sealfs serve` and `sealfs mount`. A seed decides everything, so
//! a seed that fails fails again: `SEALFS_SEED=<n> cargo nextest run -p sealfs-tests --test sim every`.
//!
//! 1. No operation fails because a node died: it waits, and its outcome is the model's.
//! 2. A node that dies loses its memory, and what its disk was given and had not carried out.
//! 3. At the end both clients see the model's tree, and the shards on the disks contradict neither themselves nor each
//!    other.
//!
//! Some seeds run over RDMA's queue pairs instead of the network in memory (`sim/rdma.rs`). In these worlds a machine never
//! loses power; in those of `sim/power.rs` it does, and less is promised.
#![allow(missing_docs, reason = "tests are named after what they claim")]

#[path = "sim/rdma.rs"]
mod rdma;
#[path = "../../server/core/tests/support/mod.rs"]
mod support;

#[path = "sim/power.rs"]
mod power;

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use sealfs_client_core::{Fs, Options};
use sealfs_meta::check::check_all;
use sealfs_proto::NodeId;
use sealfs_server_core::Durability;
use sealfs_tests::sim::{Program, Races, Trace, Tree, walk};
use sealfs_transport::Instant;
use sealfs_transport::mem::MemNetwork;
use sealfs_transport::tasks::Timers;
use support::{Cluster, Setup, Wires};

const NODES: u16 = 3;
const CLIENTS: usize = 2;
/// Operations of each client.
const OPERATIONS: usize = 400;
const SEEDS: std::ops::RangeInclusive<u64> = 1..=50;
const SEEDS_OVER_RDMA: std::ops::RangeInclusive<u64> = 1..=20;

/// The cluster and its clients' file systems.
struct World {
    cluster: Cluster,
    files: Vec<Fs>,
    trees: Vec<Rc<RefCell<Tree>>>,
    races: Races,
    trace: Trace,
    timers: Timers,
    random: fastrand::Rng,
}

impl World {
    fn new(network: Rc<dyn Wires>, seed: u64, trace: Trace) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let setup = Setup {
            nodes: NODES,
            cores: random.u16(1..=2),
            durability: if random.bool() { Durability::Process } else { Durability::Power },
            // Some seeds write snapshots all the time.
            snapshot_bytes: if random.bool() { 1 << 14 } else { 1 << 30 },
            chunk_size: 64 << 10,
            volume_blocks: support::VOLUME_BLOCKS,
            requests_max: 4_096,
            // Longer than nodes go on dying.
            timeout_ms: 3_000_000,
            only_uid: None,
            lease_ms: 3_600_000,
            seed,
        };
        trace.event(&format!("seed {seed}: {} cores, {:?}", setup.cores, setup.durability));
        let mut cluster = Cluster::over(network, setup);
        while cluster.clients.len() < CLIENTS {
            cluster.client(seed + cluster.clients.len() as u64 + 1);
        }
        let timers = Timers::new();
        let files: Vec<Fs> = cluster
            .clients
            .iter()
            .zip(&cluster.arenas)
            .map(|(calls, arena)| {
                let spawner = cluster.tasks.spawner();
                let arena = Rc::clone(arena);
                Fs::new(calls.clone(), spawner, arena, &cluster.map, Options::default())
            })
            .collect();
        for fs in files.clone() {
            cluster.turns.push(Box::new(move |now| fs.turn(now)));
        }
        let (clock, sleeps) = (trace.clone(), timers.clone());
        cluster.turns.push(Box::new(move |now| {
            clock.set_now(now);
            sleeps.fire(now);
            sleeps.deadline()
        }));
        let trees = (0..CLIENTS).map(|_| Rc::default()).collect();
        Self { cluster, files, trees, races: Races::default(), trace, timers, random }
    }

    fn program(&mut self, client: usize) -> Program {
        Program {
            client,
            fs: self.files[client].clone(),
            tree: Rc::clone(&self.trees[client]),
            races: Rc::clone(&self.races),
            trace: self.trace.clone(),
            timers: self.timers.clone(),
            random: self.random.fork(),
        }
    }

    /// Runs until the future has ended; ten virtual minutes at most.
    fn block_on<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(Cell::new(None));
        let slot = Rc::clone(&result);
        self.cluster.tasks.spawn(async move { slot.set(Some(future.await)) });
        let until = self.cluster.now.after_ms(600_000);
        loop {
            if let Some(value) = result.take() {
                return value;
            }
            assert!(self.cluster.now < until, "it has not ended within ten minutes");
            self.cluster.step();
        }
    }

    /// Both programs at once, while nodes die.
    fn run_programs(&mut self) {
        let programs: Vec<Program> = (0..CLIENTS).map(|client| self.program(client)).collect();
        let running = Rc::new(Cell::new(programs.len()));
        for program in programs {
            let running = Rc::clone(&running);
            self.cluster.tasks.spawn(async move {
                program.run(OPERATIONS).await;
                running.set(running.get() - 1);
            });
        }
        let mut faults = Faults::new(self.random.fork());
        let until = self.cluster.now.after_ms(3_600_000);
        while running.get() > 0 {
            assert!(self.cluster.now < until, "the programs have not ended within an hour");
            self.cluster.step();
            faults.step(&mut self.cluster, &self.trace);
        }
        faults.end(&mut self.cluster);
    }

    /// What clients and disks must show once everything is at rest.
    fn check(&mut self) {
        let mut expected: Vec<String> =
            self.trees.iter().flat_map(|tree| tree.borrow().lines()).collect();
        expected.extend(["own0", "own1", "shared"].map(|dir| format!("{dir}: directory")));
        for (number, (tried, won)) in &*self.races.borrow() {
            assert_eq!(*won, 1, "race {number}: one of {tried} succeeds");
            expected.push(format!("race{number}: directory"));
        }
        expected.sort();
        for (client, fs) in self.files.clone().into_iter().enumerate() {
            let seen = self.block_on(async move { walk(&fs).await });
            assert_eq!(seen.as_ref(), Ok(&expected), "what client {client} sees at the end");
        }
        self.cluster.run_ms(10_000);
        (1..=NODES).for_each(|id| self.cluster.kill(NodeId(id)));
        let states = self.cluster.states();
        assert_eq!(check_all(&states), [], "the shards on the disks");
        for state in &states {
            assert_eq!(state.prepared().count(), 0, "open transactions in {}", state.shard());
            assert_eq!(state.unlinked().count(), 0, "unlinked inodes in {}", state.shard());
            assert_eq!(state.cuts().count(), 0, "pending cuts in {}", state.shard());
        }
    }
}

/// Kills and starts nodes, cuts and heals links.
struct Faults {
    random: fastrand::Rng,
    /// Steps until the next fault.
    countdown: u32,
    /// The node whose disk hangs, which is to die when the countdown ends.
    hanging: Option<NodeId>,
    /// The link that is cut, until the countdown ends.
    cut: Option<(String, String)>,
    /// Who is dead, and when it starts again.
    dead: Vec<(Instant, NodeId)>,
}

impl Faults {
    fn new(mut random: fastrand::Rng) -> Self {
        let countdown = random.u32(..STEPS_MAX);
        Self { random, countdown, hanging: None, cut: None, dead: Vec::new() }
    }

    fn step(&mut self, cluster: &mut Cluster, trace: &Trace) {
        while let Some(at) = self.dead.iter().position(|(until, _)| *until <= cluster.now) {
            let (_, id) = self.dead.remove(at);
            trace.event(&format!("node {id} starts"));
            cluster.start(id);
        }
        if self.countdown > 0 {
            self.countdown -= 1;
            return;
        }
        self.countdown = self.random.u32(..STEPS_MAX);
        if let Some(id) = self.hanging.take() {
            return self.kill(cluster, trace, id);
        }
        if let Some((one, other)) = self.cut.take() {
            trace.event(&format!("{one} reaches {other} again"));
            return cluster.network.heal(cluster.now, &one, &other);
        }
        let alive = |id: &NodeId| self.dead.iter().all(|(_, dead)| dead != id);
        let mut nodes: Vec<NodeId> = (1..=NODES).map(NodeId).filter(alive).collect();
        self.random.shuffle(&mut nodes);
        match self.random.u32(..9) {
            // All at once.
            0 => nodes.into_iter().for_each(|id| self.kill(cluster, trace, id)),
            1..5 => nodes.first().into_iter().for_each(|id| self.kill(cluster, trace, *id)),
            5 => self.cut(cluster, trace),
            // In the middle of what the disk was given.
            _ => {
                if let Some(id) = nodes.first() {
                    cluster.limit_disk(*id, self.random.u64(..20));
                    self.hanging = Some(*id);
                    self.countdown = self.random.u32(..300);
                }
            }
        }
    }

    /// A core of a node does not reach a client or another node for a while.
    fn cut(&mut self, cluster: &mut Cluster, trace: &Trace) {
        let core = self.random.u16(..cluster.setup.cores);
        let node = self.random.u16(1..=NODES);
        let other = match self.random.usize(..=CLIENTS) {
            CLIENTS => format!("node{}core0", node % NODES + 1),
            client => format!("client{client}"),
        };
        let one = format!("node{node}core{core}");
        trace.event(&format!("{one} does not reach {other}"));
        cluster.network.cut(&one, &other);
        self.cut = Some((one, other));
    }

    fn kill(&mut self, cluster: &mut Cluster, trace: &Trace, id: NodeId) {
        trace.event(&format!("node {id} dies"));
        cluster.kill(id);
        let away_ms = if self.random.u32(..4) == 0 { 1_500 } else { 100 };
        self.dead.push((cluster.now.after_ms(self.random.u64(1..=away_ms)), id));
    }

    /// No more faults: everybody lives, with a disk that works, and reaches everybody.
    fn end(self, cluster: &mut Cluster) {
        if let Some((one, other)) = self.cut {
            cluster.network.heal(cluster.now, &one, &other);
        }
        if let Some(id) = self.hanging {
            cluster.kill(id);
            cluster.start(id);
        }
        self.dead.into_iter().for_each(|(_, id)| cluster.start(id));
    }
}

/// From one fault to the next at most.
const STEPS_MAX: u32 = 1_000;

/// Runs a seed over the network in memory; the hash of everything that happened.
fn run(seed: u64) -> u64 {
    run_over(|seed| Rc::new(MemNetwork::new(seed)), seed)
}

#[allow(clippy::print_stderr, reason = "a seed that fails shows what led to it")]
fn run_over(network: fn(u64) -> Rc<dyn Wires>, seed: u64) -> u64 {
    let trace = Trace::default();
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(network(seed), seed, trace.clone());
        let first = world.program(0);
        world.block_on(async move { first.prepare(CLIENTS).await });
        world.run_programs();
        world.check();
    }));
    if let Err(panic) = result {
        eprintln!("seed {seed} has failed; the last that happened:\n{}", trace.last());
        resume_unwind(panic);
    }
    trace.hash()
}

fn run_all(part: u64) {
    if let Some(seed) = std::env::var("SEALFS_SEED").ok().and_then(|seed| seed.parse().ok()) {
        if seed % 2 == part {
            run(seed);
        }
        return;
    }
    SEEDS.filter(|seed| seed % 2 == part).for_each(|seed| {
        run(seed);
    });
}

#[test]
fn every_change_is_executed_exactly_once() {
    run_all(0);
}

#[test]
fn every_change_is_executed_exactly_once_in_other_worlds() {
    run_all(1);
}

#[test]
fn the_same_seed_gives_the_same_events() {
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
