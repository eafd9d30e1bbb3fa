//! Random changes over four shards: replay gives equal states, nothing is found wrong, nothing is lost.

use fastrand::Rng;
use sealfs_proto::{
    Access, Ino, New, RenameFlag, Request, SetAttr, SetTime, Who, Xattr, XattrFlag,
};

use crate::testing::{World, at, user};

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
        6 => Request::CreateUnnamed { who, dir, mode },
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
    let mut done = 0_u32;
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
    }
    assert!(done > 4_000, "the changes are meant to succeed now and then: {done}");
}
