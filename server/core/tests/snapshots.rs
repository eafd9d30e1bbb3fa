//! Snapshots over and over, while files come and go, nodes are killed, and the number of cores changes.

mod support;

use std::collections::BTreeMap;

use fastrand::Rng;
use sealfs_meta::check::check_all;
use sealfs_proto::{Ino, NodeId, Request, Who};
use sealfs_server_core::Durability;
use sealfs_transport::Ask;
use support::{Cluster, Pending, Setup, create, entry, rename};

const NODES: [NodeId; 2] = [NodeId(1), NodeId(2)];
/// Files of the directory whose shard takes several slices.
const FILES: usize = 600;

/// What was acknowledged: by directory and name, the inode and the byte that fills its first 5,000.
type Model = BTreeMap<(usize, String), (Ino, u8)>;

/// A change on its way, and what it makes of the model.
enum Flight {
    Create(usize, String),
    Unlink,
    Rename((usize, String), (Ino, u8)),
    Write((usize, String), Ino, u8),
    Mkdir(String),
}

struct World {
    random: Rng,
    cluster: Cluster,
    dirs: Vec<Ino>,
    model: Model,
    /// Names of directories that were made and not removed.
    empty: Vec<String>,
    next: u32,
    /// A node that dies loses power, too.
    power: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let snapshot_bytes = [1, 3_000, 60_000][random.usize(..3)];
        let cores = random.u16(1..4);
        let power = random.bool();
        let durability = if power { Durability::Power } else { Durability::Process };
        let setup = Setup { nodes: 2, cores, durability, snapshot_bytes, seed, ..Setup::default() };
        let mut cluster = Cluster::new(setup);
        let names = NODES.map(|node| cluster.name_on(Ino::ROOT, node));
        let dirs = names.iter().map(|name| cluster.mkdir(Ino::ROOT, name)).collect();
        let (model, empty) = (Model::new(), Vec::new());
        let mut world = Self { random, cluster, dirs, model, empty, next: 0, power };
        for _ in 0..FILES / 20 {
            let flights = (0..20).map(|_| world.begin_create(0)).collect();
            world.finish(flights);
        }
        world
    }

    fn name(&mut self) -> String {
        self.next += 1;
        format!("a-name-of-some-length-{:09}", self.next)
    }

    fn begin_change(&mut self, shard_of: Ino, request: Request) -> Pending {
        let node = self.cluster.node_of(shard_of.shard());
        self.cluster.begin(0, node, Ask::change(shard_of.shard(), request))
    }

    fn begin_create(&mut self, dir: usize) -> (Pending, Flight) {
        let name = self.name();
        let at = self.dirs[dir];
        (self.begin_change(at, create(at, &name, false)), Flight::Create(dir, name))
    }

    /// One change of something that no other one in flight concerns: it is taken out of the model until it has ended.
    fn begin(&mut self) -> (Pending, Flight) {
        let dir = self.random.usize(..2);
        let kind = self.random.u32(..10);
        if kind < 3 || self.model.is_empty() {
            return self.begin_create(dir);
        }
        if kind == 3 {
            let name = self.name();
            let request = Request::Mkdir {
                who: Who::root(),
                dir: Ino::ROOT,
                name: name.clone().into(),
                mode: 0o755,
                umask: 0,
            };
            return (self.begin_change(Ino::ROOT, request), Flight::Mkdir(name));
        }
        let at = self.random.usize(..self.model.len());
        let key = self.model.keys().nth(at).expect("there are so many").clone();
        let (ino, fill) = self.model[&key];
        let source = self.dirs[key.0];
        match kind {
            4..6 => {
                self.model.remove(&key);
                let name = key.1.clone().into();
                let request = Request::Unlink { who: Who::root(), dir: source, name };
                (self.begin_change(source, request), Flight::Unlink)
            }
            6..8 => {
                self.model.remove(&key);
                let name = self.name();
                let request = rename((source, &key.1), (self.dirs[dir], &name));
                let pending = self.begin_change(source, request);
                (pending, Flight::Rename((dir, name), (ino, fill)))
            }
            _ => {
                self.model.remove(&key);
                let fill = self.random.u8(1..);
                let pending = self.cluster.begin_write(0, ino, 0, 0, &[fill; 5_000]);
                (pending, Flight::Write(key, ino, fill))
            }
        }
    }

    fn finish(&mut self, flights: Vec<(Pending, Flight)>) {
        for (pending, flight) in flights {
            let reply = self.cluster.finish(&pending).map(|answer| answer.reply);
            match flight {
                Flight::Create(dir, name) => {
                    let ino = entry(reply).unwrap();
                    self.model.insert((dir, name), (ino, 0));
                }
                Flight::Unlink => _ = reply.unwrap(),
                Flight::Rename(target, moved) => {
                    reply.unwrap();
                    self.model.insert(target, moved);
                }
                Flight::Write(key, ino, fill) => {
                    reply.unwrap();
                    self.model.insert(key, (ino, fill));
                }
                Flight::Mkdir(name) => {
                    entry(reply).unwrap();
                    self.empty.push(name);
                }
            }
        }
    }

    /// Some changes at once; in the middle of them a node may die.
    fn work(&mut self) {
        let flights = (0..self.random.usize(1..8)).map(|_| self.begin()).collect();
        if self.random.u32(..4) == 0 {
            let node = NODES[self.random.usize(..2)];
            if self.random.bool() {
                let operations = self.random.u64(..40);
                self.cluster.limit_disk(node, operations);
            }
            for _ in 0..self.random.usize(..60) {
                self.cluster.step();
            }
            match self.power {
                true => self.cluster.lose_power(node, &mut self.random),
                false => self.cluster.kill(node),
            }
            self.cluster.start(node);
        }
        self.finish(flights);
    }

    /// All nodes die and start with another number of cores.
    fn change_cores(&mut self) {
        let cores = self.random.u16(1..4);
        NODES.iter().for_each(|node| self.cluster.kill(*node));
        self.cluster.change_cores(cores);
        NODES.iter().for_each(|node| self.cluster.start(*node));
    }

    /// Everything acknowledged is there, and nothing else.
    fn compare(&mut self) {
        for (dir, ino) in self.dirs.clone().into_iter().enumerate() {
            let names = self.model.range((dir, String::new())..(dir + 1, String::new()));
            let names: Vec<String> = names.map(|((_, name), _)| name.clone()).collect();
            assert_eq!(self.cluster.list(ino), names, "directory {dir}");
        }
        let written: Vec<(Ino, u8)> = self.model.values().copied().collect();
        for (ino, fill) in written.into_iter().filter(|(_, fill)| *fill != 0) {
            assert_eq!(self.cluster.read(ino, 0, 4_998, 4), [fill, fill, 0, 0]);
        }
        let found = self.cluster.list(Ino::ROOT).len();
        assert_eq!(found, self.empty.len() + self.dirs.len());
    }
}

#[test]
fn constant_snapshots_with_kills_and_other_numbers_of_cores_lose_nothing() {
    let mut cuts = 0;
    for seed in 0..8 {
        let mut world = World::new(seed);
        for round in 0..8 {
            for _ in 0..12 {
                world.work();
            }
            if round % 2 == 1 {
                world.change_cores();
            }
            world.compare();
        }
        world.cluster.run_ms(30_000);
        assert_eq!(check_all(&world.cluster.states()), [], "seed {seed}");
        let servers = &world.cluster.servers;
        cuts += servers.iter().map(|server| server.device.borrow().cuts).sum::<u64>();
    }
    assert!(cuts > 500, "journals were cut {cuts} times");
}
