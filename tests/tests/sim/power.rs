//! Worlds whose machines lose power: of what a node had written and not synced a random part is gone, blocks torn, journals
//! cut. Nodes are killed, too, and syncs hang for a while, so that what one process left unsynced is the next one's to lose.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use sealfs_client_core::{Fs, Options};
use sealfs_meta::check::check_all;
use sealfs_proto::NodeId;
use sealfs_server_core::Durability;
use sealfs_tests::sim::{PowerProgram, Trace};
use sealfs_transport::Instant;

use super::support::{Cluster, Setup};

const NODES: u16 = 3;
const CLIENTS: usize = 2;
/// Operations of each client.
const OPERATIONS: usize = 250;
const SEEDS: std::ops::RangeInclusive<u64> = 1..=50;
/// From one fault to the next at most.
const STEPS_MAX: u32 = 2_000;
/// Faults in a row; then there are none for a while, so that what is in doubt can be asked for.
const ROW: u32 = 16;
const QUIET_MS: u64 = 2_000;

struct World {
    cluster: Cluster,
    random: fastrand::Rng,
    losses: Rc<Cell<u64>>,
    trace: Trace,
    countdown: u32,
    faults: u32,
    quiet: Instant,
    dead: Vec<(Instant, NodeId)>,
}

impl World {
    fn new(seed: u64, trace: Trace) -> (Self, Vec<Fs>) {
        let mut random = fastrand::Rng::with_seed(seed);
        let setup = Setup {
            nodes: NODES,
            cores: random.u16(1..=2),
            durability: if random.u8(..4) == 0 { Durability::Power } else { Durability::Process },
            snapshot_bytes: if random.bool() { 1 << 14 } else { 1 << 30 },
            chunk_size: 64 << 10,
            timeout_ms: 3_000_000,
            only_uid: None,
            lease_ms: 3_600_000,
            // Now and then little enough that blocks are soon reused.
            volume_blocks: if random.bool() { 2_048 } else { 65_536 },
            seed,
            ..Setup::default()
        };
        let mut cluster = Cluster::new(setup);
        while cluster.clients.len() < CLIENTS {
            cluster.client(seed + cluster.clients.len() as u64 + 1);
        }
        let calls = cluster.clients.iter().zip(&cluster.arenas);
        let files: Vec<Fs> = calls
            .map(|(calls, arena)| {
                let (spawner, arena) = (cluster.tasks.spawner(), Rc::clone(arena));
                Fs::new(calls.clone(), spawner, arena, &cluster.map, Options::default())
            })
            .collect();
        for fs in files.clone() {
            cluster.turns.push(Box::new(move |now| fs.turn(now)));
        }
        let clock = trace.clone();
        cluster.turns.push(Box::new(move |now| {
            clock.set_now(now);
            None
        }));
        let losses = Rc::default();
        let (countdown, faults, quiet, dead) = (0, 0, Instant(0), Vec::new());
        (Self { cluster, random, losses, trace, countdown, faults, quiet, dead }, files)
    }

    /// Has every program do what `work` says, with or without faults.
    fn run<W, F>(&mut self, programs: Vec<PowerProgram>, faults: bool, work: W) -> Vec<PowerProgram>
    where
        W: Fn(PowerProgram) -> F,
        F: Future<Output = PowerProgram> + 'static,
    {
        let ended = Rc::new(std::cell::RefCell::new(Vec::new()));
        let count = programs.len();
        for program in programs {
            let (ended, work) = (Rc::clone(&ended), work(program));
            self.cluster.tasks.spawn(async move {
                let program = work.await;
                ended.borrow_mut().push(program);
            });
        }
        let until = self.cluster.now.after_ms(3_600_000);
        while ended.borrow().len() < count {
            assert!(self.cluster.now < until, "the programs have not ended within an hour");
            self.cluster.step();
            self.revive(false);
            if faults {
                self.fault();
            }
        }
        self.revive(true);
        ended.take()
    }

    fn revive(&mut self, all: bool) {
        while let Some(at) =
            self.dead.iter().position(|(until, _)| all || *until <= self.cluster.now)
        {
            let (_, id) = self.dead.remove(at);
            self.trace.event(&format!("node {id} starts"));
            self.cluster.hold_syncs(id, false);
            self.cluster.start(id);
        }
    }

    fn fault(&mut self) {
        if self.countdown > 0 || self.cluster.now < self.quiet {
            self.countdown = self.countdown.saturating_sub(1);
            return;
        }
        self.countdown = self.random.u32(..STEPS_MAX);
        self.faults += 1;
        if self.faults.is_multiple_of(ROW) {
            (1..=NODES).for_each(|id| self.cluster.hold_syncs(NodeId(id), false));
            self.quiet = self.cluster.now.after_ms(QUIET_MS);
            return;
        }
        let alive: Vec<NodeId> = (1..=NODES)
            .map(NodeId)
            .filter(|id| self.dead.iter().all(|(_, dead)| dead != id))
            .collect();
        if alive.is_empty() {
            return;
        }
        let one = alive[self.random.usize(..alive.len())];
        match self.random.u32(..8) {
            0 => alive.into_iter().for_each(|id| self.lose_power(id)),
            1..4 => self.lose_power(one),
            4 => {
                self.trace.event(&format!("syncs of node {one} hang"));
                self.cluster.hold_syncs(one, true);
            }
            5 => (1..=NODES).for_each(|id| self.cluster.hold_syncs(NodeId(id), false)),
            _ => {
                self.trace.event(&format!("node {one} dies"));
                self.cluster.kill(one);
                self.stay_away(one);
            }
        }
    }

    fn lose_power(&mut self, id: NodeId) {
        self.trace.event(&format!("node {id} loses power"));
        self.losses.set(self.losses.get() + 1);
        self.cluster.lose_power(id, &mut self.random);
        self.stay_away(id);
    }

    fn stay_away(&mut self, id: NodeId) {
        self.dead.push((self.cluster.now.after_ms(self.random.u64(1..=100)), id));
    }
}

#[allow(clippy::print_stderr, reason = "a seed that fails shows what led to it")]
fn run(seed: u64) {
    let trace = Trace::default();
    let result = catch_unwind(AssertUnwindSafe(|| {
        let (mut world, files) = World::new(seed, trace.clone());
        let programs = files.into_iter().enumerate().map(|(client, fs)| {
            let losses = Rc::clone(&world.losses);
            PowerProgram::new(client, fs, losses, trace.clone(), world.random.fork())
        });
        let programs = programs.collect();
        let programs = world.run(programs, false, |mut program| async move {
            assert_eq!(program.prepare().await, Ok(()), "before anything fails");
            program
        });
        let programs = world.run(programs, true, |mut program| async move {
            program.run(OPERATIONS).await;
            program
        });
        (1..=NODES).for_each(|id| world.cluster.hold_syncs(NodeId(id), false));
        world.run(programs, false, |mut program| async move {
            program.look().await;
            program
        });
        world.cluster.run_ms(10_000);
        (1..=NODES).for_each(|id| world.cluster.kill(NodeId(id)));
        let states = world.cluster.states();
        assert_eq!(check_all(&states), [], "the shards on the disks");
        let open =
            states.iter().any(|state| state.decided().count() + state.prepared().count() > 0);
        assert!(!open, "a change over several shards has not come to its end");
    }));
    if let Err(panic) = result {
        eprintln!("seed {seed} has failed; the last that happened:\n{}", trace.last());
        resume_unwind(panic);
    }
}

#[test]
fn what_was_synced_survives_the_loss_of_power_and_nothing_is_mixed_up() {
    if let Some(seed) = std::env::var("SEALFS_SEED").ok().and_then(|seed| seed.parse().ok()) {
        return run(seed);
    }
    SEEDS.for_each(run);
}
