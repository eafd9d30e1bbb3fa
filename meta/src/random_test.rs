//! Random changes over four shards: replay gives equal states, nothing is found wrong, nothing is lost. One after the other
//! first, then many transactions interleaved, with crashes.

use std::collections::BTreeSet;

use fastrand::Rng;
use sealfs_proto::{
    Access, Attr, Ino, New, Part, Prepare, RenameFlag, Request, SetAttr, SetTime, ShardId, TxId,
    Who, Xattr, XattrFlag,
};

use crate::testing::{World, at, shard_of, user};
use crate::{Planned, Transaction, forget};

fn name(random: &mut Rng) -> Vec<u8> {
    vec![b'a' + random.u8(..6)]
}

fn who(random: &mut Rng) -> Who {
    match random.u32(..4) {
        0 => user(1),
        1 => user(2),
        _ => Who::root(),
    }
}

fn any_inode(world: &World, random: &mut Rng) -> Ino {
    let all: Vec<Ino> =
        world.states.iter().flat_map(|state| state.inodes().map(|(ino, _)| ino)).collect();
    all[random.usize(..all.len())]
}

/// A directory mostly, sometimes something else.
fn any_directory(world: &World, random: &mut Rng) -> Ino {
    let ino = any_inode(world, random);
    let is = world.inode(ino).is_some_and(|inode| inode.directory().is_some());
    if is || random.u8(..10) == 0 { ino } else { Ino::ROOT }
}

fn request(world: &World, random: &mut Rng) -> Request {
    let who = who(random);
    let (dir, ino) = (any_directory(world, random), any_inode(world, random));
    let (name, mode) = (name(random), random.u32(..0o10000) | 0o700);
    match random.u32(..20) {
        0..=2 => {
            let new = match random.u32(..3) {
                0 => New::Symlink(b"target".to_vec()),
                _ => New::File,
            };
            Request::Create { who, dir, name, new, mode, umask: 0o22, open: false }
        }
        3..=5 => Request::Mkdir { who, dir, name, mode, umask: 0o22 },
        6 => Request::CreateUnnamed { who, dir, mode, umask: 0o22 },
        7..=8 => Request::Unlink { who, dir, name },
        9..=10 => Request::Rmdir { who, dir, name },
        11..=14 => {
            let target_dir = any_directory(world, random);
            let flag = *random
                .choice(&[RenameFlag::Replace, RenameFlag::NoReplace, RenameFlag::Exchange])
                .expect("there are three");
            let target_name = self::name(random);
            Request::Rename { who, dir, name, target_dir, target_name, flag }
        }
        15 => Request::Link { who, ino, dir, name },
        16 => {
            let set = SetAttr {
                mode: random.bool().then_some(mode),
                uid: random.bool().then_some(random.u32(..3)),
                size: random.bool().then(|| random.u64(..5_000_000)),
                mtime: random.bool().then_some(SetTime::At(at(5))),
                ..SetAttr::default()
            };
            Request::SetAttr { who, ino, set, opened: false }
        }
        17 => {
            let names: [&[u8]; 2] = [b"user.x", b"security.capability"];
            let name = names[random.usize(..2)].to_vec();
            let xattr = Xattr { name, value: vec![1; random.usize(..9)] };
            Request::XattrSet { who, ino, xattr, flag: XattrFlag::Any, clear_sgid: false }
        }
        18 => Request::Open { who, ino, access: Access::default(), truncate: random.bool() },
        _ => match random.u32(..3) {
            0 => Request::Raise { ino, bound: random.u64(..1 << 30) },
            1 => {
                let (generation, size) = (random.u64(..3), random.u64(..1 << 21));
                Request::Settle { ino, generation, size, blocks: 8, wrote: random.bool() }
            }
            _ => Request::Reserve { ino, length: random.u32(..1 << 20) },
        },
    }
}

#[test]
fn random_changes_leave_a_sound_cluster_that_replays_to_itself() {
    let (mut done, mut taken) = (0_u32, 0);
    for seed in 0..60 {
        let mut random = Rng::with_seed(seed);
        let mut world = World::new();
        world.reclaims = seed % 2 == 0;
        for step in 0..300 {
            let request = request(&world, &mut random);
            done += u32::from(world.run(&request).is_ok());
            if step % 50 == 0 {
                world.assert_sound();
            }
        }
        world.assert_sound();
        taken += world.taken;
    }
    assert!(done > 4_000, "the changes are meant to succeed now and then: {done}");
    assert!(taken > 1_000, "snapshots are taken while records come: {taken}");
}

/// A transaction on its way.
struct Flight {
    coordinator: ShardId,
    tx: TxId,
    transaction: Transaction,
    shares: Vec<(ShardId, Prepare)>,
    /// How many shares are prepared, and what their replies brought.
    prepared: usize,
    attrs: Vec<Attr>,
    decision: Option<bool>,
}

impl Flight {
    /// Moves a directory to another parent: only one may at a time.
    fn needs_rename_lock(transaction: &Transaction) -> bool {
        let others = transaction.others.iter().flat_map(|(_, parts)| parts);
        let mut parts = transaction.own.iter().chain(others);
        parts.any(|part| matches!(part, Part::Moved { parent: Some(_), .. }))
    }

    /// One step on; true when everybody knows the end.
    fn step(&mut self, world: &mut World) -> bool {
        let coordinator = self.coordinator;
        match self.decision {
            None if self.prepared < self.shares.len() => {
                let (to, share) = &self.shares[self.prepared];
                match world.prepare(*to, share) {
                    Ok(more) => {
                        self.attrs.extend(more);
                        self.prepared += 1;
                    }
                    Err(_) => {
                        world.state(coordinator).release(self.tx);
                        self.decision = Some(false);
                    }
                }
                false
            }
            None => {
                let record = self.transaction.clone().decide(self.tx, &self.attrs);
                world.append(coordinator, record);
                self.decision = Some(true);
                false
            }
            Some(commit) => match self.shares.pop() {
                Some((to, _)) => {
                    world.resolve(to, self.tx, commit);
                    false
                }
                None => {
                    if let Some(record) = forget(world.state(coordinator), self.tx, at(0)) {
                        world.append(coordinator, record);
                    }
                    true
                }
            },
        }
    }

    /// The coordinator's process has begun anew: what was not decided is aborted.
    fn restarted(&mut self, world: &mut World) {
        self.decision = world.state(self.coordinator).decision(self.tx);
        assert!(self.decision.is_some(), "nothing is open after a restart");
    }
}

/// A request of the interleaved test: what is planned as one record is done, a transaction sets off.
fn begin(world: &mut World, request: &Request, flights: &mut Vec<Flight>) {
    let (coordinator, mut asked) = (shard_of(request), world.asked());
    let in_flight = flights.iter().map(|flight| flight.transaction.origin.sequence);
    asked.origin.watermark = in_flight.min().unwrap_or(asked.origin.sequence);
    match world.planned(coordinator, request, &mut asked) {
        Ok(Planned::Record(record)) => _ = world.append(coordinator, record),
        Ok(Planned::Transaction(transaction)) => {
            let locked = flights.iter().any(|other| Flight::needs_rename_lock(&other.transaction));
            if locked && Flight::needs_rename_lock(&transaction) {
                return;
            }
            let tx = world.open(coordinator, &transaction);
            let shares = transaction.prepares(tx).collect();
            let (prepared, attrs, decision) = (0, Vec::new(), None);
            let flight = Flight { coordinator, tx, transaction, shares, prepared, attrs, decision };
            flights.push(flight);
        }
        _ => {}
    }
}

fn restart(world: &mut World, shard: ShardId, flights: &mut [Flight]) {
    let mut state = world.replayed(usize::from(shard.0));
    state.recovered();
    *world.state(shard) = state;
    world.reserve(shard);
    let concerned = flights.iter_mut().filter(|flight| flight.coordinator == shard);
    concerned.for_each(|flight| flight.restarted(world));
}

#[test]
fn interleaved_transactions_with_crashes_leave_a_sound_cluster() {
    let (mut begun, mut committed, mut together, mut taken) = (0, 0, 0, 0);
    for seed in 0..60 {
        let mut random = Rng::with_seed(1_000 + seed);
        let mut world = World::new();
        world.reclaims = seed % 2 == 0;
        let mut flights: Vec<Flight> = Vec::new();
        for _ in 0..1_500 {
            match random.u32(..100) {
                0 => {
                    let shard = ShardId(random.u16(..4));
                    restart(&mut world, shard, &mut flights);
                }
                1..=70 if flights.len() < 8 => {
                    let request = request(&world, &mut random);
                    let before = flights.len();
                    begin(&mut world, &request, &mut flights);
                    begun += flights.len() - before;
                }
                _ if flights.is_empty() => {}
                _ => {
                    let at = random.usize(..flights.len());
                    if flights[at].step(&mut world) {
                        committed += usize::from(flights.remove(at).decision == Some(true));
                    }
                }
            }
            together = together.max(flights.len());
        }
        while let Some(flight) = flights.last_mut() {
            if flight.step(&mut world) {
                flights.pop();
            }
        }
        let prepared: BTreeSet<TxId> =
            world.states.iter().flat_map(|state| state.prepared().map(|(tx, _)| tx)).collect();
        assert!(prepared.is_empty(), "seed {seed}: {prepared:?}");
        world.assert_sound();
        taken += world.taken;
    }
    assert!(taken > 1_000, "snapshots are taken while records come: {taken}");
    assert!(together > 4 && begun > 2_000 && committed > 1_000, "{together} {begun} {committed}");
}
