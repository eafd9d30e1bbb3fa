//! Changes over several nodes, and crashes between any two of their steps.

mod support;

use sealfs_proto::{Errno, Ino, NodeId, Reply, Request, SetAttr, Who};
use sealfs_transport::{Ask, CallError};
use support::{Cluster, Setup, create, entry, rename};

const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);

fn two_nodes(seed: u64) -> Cluster {
    Cluster::new(Setup { nodes: 2, cores: 2, seed, ..Setup::default() })
}

/// A directory on each node.
fn directories(cluster: &mut Cluster) -> (Ino, Ino) {
    let (one, two) = (cluster.name_on(Ino::ROOT, ONE), cluster.name_on(Ino::ROOT, TWO));
    (cluster.mkdir(Ino::ROOT, &one), cluster.mkdir(Ino::ROOT, &two))
}

fn errno(result: Result<Reply, CallError>) -> Errno {
    match result {
        Err(CallError::Errno(errno)) => errno,
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_move_between_nodes() {
    let mut cluster = two_nodes(1);
    let (one, two) = directories(&mut cluster);
    assert_eq!(cluster.stat(Ino::ROOT).unwrap().nlink, 4);
    let file = cluster.create(one, "a");
    let other = cluster.create(two, "b");
    cluster.write(file, 0, 0, b"data");
    cluster.rename((one, "a"), (two, "b")).unwrap();
    assert_eq!((cluster.lookup(one, "a"), cluster.lookup(two, "b")), (None, Some(file)));
    assert_eq!(cluster.read(file, 0, 0, 4), b"data");
    let link = Request::Link { who: Who::root(), ino: file, dir: one, name: b"c".to_vec() };
    cluster.change(one.shard(), link).unwrap();
    assert_eq!(cluster.stat(file).unwrap().nlink, 2);
    cluster.unlink(two, "b").unwrap();
    cluster.unlink(one, "c").unwrap();
    cluster.run_ms(2_000);
    assert!(cluster.stat(file).is_err() && cluster.stat(other).is_err());
    let name = cluster.name_on(Ino::ROOT, TWO).into_bytes();
    let rmdir = Request::Rmdir { who: Who::root(), dir: Ino::ROOT, name };
    cluster.change(Ino::ROOT.shard(), rmdir).unwrap();
    assert_eq!(cluster.stat(Ino::ROOT).unwrap().nlink, 3);
}

#[test]
fn a_directory_moves_to_another_parent_but_never_below_itself() {
    let mut cluster = two_nodes(2);
    let (one, two) = directories(&mut cluster);
    let name = cluster.name_on(one, TWO);
    let inner = cluster.mkdir(one, &name);
    let deeper_name = cluster.name_on(inner, ONE);
    let deeper = cluster.mkdir(inner, &deeper_name);
    let root_name = cluster.name_on(Ino::ROOT, ONE);
    let into_itself = cluster.rename((Ino::ROOT, &root_name), (deeper, "x"));
    assert_eq!(errno(into_itself), Errno::EINVAL);
    cluster.rename((one, &name), (two, "moved")).unwrap();
    assert_eq!(cluster.lookup(two, "moved"), Some(inner));
    let parent = cluster.ask(inner.shard(), Request::Parent { ino: inner }).unwrap();
    assert_eq!(parent, Reply::Parent(two));
    assert_eq!(cluster.stat(one).unwrap().nlink, 2);
    assert_eq!(cluster.stat(two).unwrap().nlink, 3);
    // The lock is free again.
    cluster.rename((two, "moved"), (one, "back")).unwrap();
}

#[test]
fn two_moves_across_each_other_make_no_cycle() {
    for seed in 1..12 {
        let mut cluster = two_nodes(seed);
        cluster.client(77);
        let (one, two) = directories(&mut cluster);
        let (a, b) = (cluster.name_on(Ino::ROOT, ONE), cluster.name_on(Ino::ROOT, TWO));
        let moves = [rename((Ino::ROOT, &a), (two, "x")), rename((Ino::ROOT, &b), (one, "x"))];
        let node = cluster.node_of(Ino::ROOT.shard());
        let begun: Vec<_> = moves
            .into_iter()
            .enumerate()
            .map(|(client, request)| {
                cluster.begin(client, node, Ask::change(Ino::ROOT.shard(), request))
            })
            .collect();
        let ended: Vec<bool> =
            begun.iter().map(|pending| cluster.finish(pending).is_ok()).collect();
        assert_eq!(ended.iter().filter(|ok| **ok).count(), 1, "seed {seed}: {ended:?}");
    }
}

#[test]
fn many_changes_of_the_same_names_all_end() {
    let mut cluster = two_nodes(3);
    for seed in 10..14 {
        cluster.client(seed);
    }
    let (one, two) = directories(&mut cluster);
    cluster.create(one, "ball");
    let mut pending = Vec::new();
    for round in 0..6 {
        for client in 0..5 {
            let (from, to) = if (client + round) % 2 == 0 { (one, two) } else { (two, one) };
            let ask = Ask::change(from.shard(), rename((from, "ball"), (to, "ball")));
            pending.push(cluster.begin(client, cluster.node_of(from.shard()), ask));
        }
    }
    let moved = pending.iter().filter(|pending| cluster.finish(pending).is_ok()).count();
    assert!(moved > 0);
    let places = [cluster.lookup(one, "ball"), cluster.lookup(two, "ball")];
    assert_eq!(places.iter().flatten().count(), 1, "{places:?}");
}

#[test]
fn who_waits_for_a_dead_nodes_decision_leaves_room_for_others() {
    let mut cluster = Cluster::new(Setup { nodes: 2, requests_max: 2, ..Setup::default() });
    let (one, two) = directories(&mut cluster);
    cluster.create(one, "a");
    let file = cluster.create(two, "other");
    cluster.run_ms(50);
    let done = cluster.servers[1].device.borrow().done;
    let ask = Ask::change(one.shard(), rename((one, "a"), (two, "b")));
    let _renaming = cluster.begin(0, ONE, ask);
    while cluster.servers[1].device.borrow().done == done {
        cluster.step();
    }
    cluster.kill(ONE);
    for seed in 10..14 {
        let client = cluster.client(seed);
        drop(cluster.begin(client, TWO, Ask::change(two.shard(), create(two, "b", false))));
    }
    cluster.run_ms(100);
    assert_eq!(cluster.stat(file).unwrap().nlink, 1);
}

#[test]
fn a_directory_can_be_read_while_a_change_of_it_is_undecided() {
    let mut cluster = Cluster::new(Setup { nodes: 3, ..Setup::default() });
    let (one, two) = directories(&mut cluster);
    let three = cluster.name_on(Ino::ROOT, NodeId(3));
    let three = cluster.mkdir(Ino::ROOT, &three);
    cluster.create(one, "a");
    // What is to be replaced lives on the third node, which does not get to say that it agrees.
    cluster.create(three, "b");
    cluster.rename((three, "b"), (two, "b")).unwrap();
    cluster.run_ms(50);
    cluster.limit_disk(NodeId(3), 0);
    let ask = Ask::change(one.shard(), rename((one, "a"), (two, "b")));
    let _renaming = cluster.begin(0, ONE, ask);
    cluster.run_ms(200);
    let begun = cluster.now;
    assert_eq!(cluster.list(two), ["b"]);
    assert!(cluster.stat(two).is_ok() && cluster.lookup(two, "b").is_some());
    assert!(cluster.now < begun.after_ms(400), "nobody waits for the third node");
}

/// Kills `victim` after each number of its disk operations in turn, while `request` runs, and lets it come back.
fn crash_everywhere(
    victim: NodeId,
    run: impl Fn(&mut Cluster, Ino, Ino) -> (Ino, Request),
    check: impl Fn(&mut Cluster, Ino, Ino, Result<Reply, CallError>, u64),
) {
    for operations in 0..40 {
        let mut cluster = two_nodes(100 + operations);
        let (one, two) = directories(&mut cluster);
        let (at, request) = run(&mut cluster, one, two);
        cluster.run_ms(50);
        cluster.limit_disk(victim, operations);
        let node = cluster.node_of(at.shard());
        let pending = cluster.begin(0, node, Ask::change(at.shard(), request));
        let until = cluster.now.after_ms(300);
        while cluster.now < until && !cluster.disk_hangs(victim) {
            cluster.step();
        }
        let over = !cluster.disk_hangs(victim);
        cluster.run_ms(20);
        cluster.kill(victim);
        cluster.run_ms(30);
        cluster.start(victim);
        let result = cluster.finish(&pending).map(|answer| answer.reply);
        cluster.run_ms(3_000);
        check(&mut cluster, one, two, result, operations);
        if over && operations > 0 {
            return;
        }
    }
    panic!("the change takes more operations than were tried");
}

#[test]
fn a_rename_across_nodes_is_whole_whenever_a_node_dies() {
    for victim in [ONE, TWO] {
        crash_everywhere(
            victim,
            |cluster, one, two| {
                cluster.create(one, "a");
                (one, rename((one, "a"), (two, "b")))
            },
            |cluster, one, two, result, operations| {
                assert!(result.is_ok(), "victim {victim}, {operations}: {result:?}");
                assert_eq!(cluster.lookup(one, "a"), None, "victim {victim}, {operations}");
                let file = cluster.lookup(two, "b").expect("it is there");
                assert_eq!(cluster.stat(file).unwrap().nlink, 1);
            },
        );
    }
}

#[test]
fn a_directory_is_made_once_whenever_a_node_dies() {
    for victim in [ONE, TWO] {
        crash_everywhere(
            victim,
            |cluster, one, _| {
                let name = cluster.name_on(one, TWO).into_bytes();
                let who = Who::root();
                (one, Request::Mkdir { who, dir: one, name, mode: 0o755, umask: 0 })
            },
            |cluster, one, _, result, operations| {
                let made = entry(result);
                let name = cluster.name_on(one, TWO);
                assert_eq!(made, Ok(cluster.lookup(one, &name).unwrap()), "{operations}");
                assert_eq!(cluster.stat(one).unwrap().nlink, 3, "{operations}");
                assert_eq!(cluster.stat(made.unwrap()).unwrap().nlink, 2);
            },
        );
    }
}

#[test]
fn a_create_is_executed_once_whenever_the_node_dies() {
    crash_everywhere(
        ONE,
        |_, one, _| (one, create(one, "new", false)),
        |cluster, one, _, result, operations| {
            let made = entry(result);
            assert_eq!(made, Ok(cluster.lookup(one, "new").unwrap()), "{operations}");
            assert_eq!(cluster.list(one), ["new"]);
        },
    );
}

fn truncate(ino: Ino, size: u64) -> Request {
    let set = SetAttr { size: Some(size), ..SetAttr::default() };
    Request::SetAttr { who: Who::root(), ino, set, opened: true }
}

fn fill(cluster: &mut Cluster, one: Ino) -> Ino {
    let file = cluster.create(one, "big");
    let raise = Request::Raise { ino: file, bound: 8 << 20 };
    cluster.change(file.shard(), raise).unwrap();
    let mut blocks = 0;
    for index in 0..6 {
        match cluster.write(file, index, 0, &vec![index as u8 + 1; 1 << 20]) {
            Reply::Written { blocks: more, attr: None } => blocks += more,
            Reply::Written { attr: Some(_), .. } => {}
            other => panic!("{other:?}"),
        }
    }
    let generation = cluster.stat(file).unwrap().generation;
    let settle = Request::Settle { ino: file, generation, size: 6 << 20, blocks, wrote: true };
    cluster.change(file.shard(), settle).unwrap();
    assert_eq!(cluster.stat(file).unwrap().blocks, 6 * 2_048);
    file
}

#[test]
fn a_cut_is_carried_out_on_all_nodes_whenever_one_dies() {
    for victim in [ONE, TWO] {
        crash_everywhere(
            victim,
            |cluster, one, _| {
                let file = fill(cluster, one);
                (file, truncate(file, (1 << 20) + 5_000))
            },
            |cluster, one, _, result, operations| {
                assert!(result.is_ok(), "victim {victim}, {operations}: {result:?}");
                let file = cluster.lookup(one, "big").unwrap();
                cluster.change(file.shard(), truncate(file, 6 << 20)).unwrap();
                assert_eq!(cluster.read(file, 1, 4_998, 4), [2, 2, 0, 0]);
                assert_eq!(cluster.read(file, 5, 0, 2), [0, 0]);
                assert_eq!(cluster.stat(file).unwrap().size, 6 << 20);
            },
        );
    }
}

#[test]
fn all_space_comes_back_when_a_file_is_unlinked() {
    let mut cluster = two_nodes(5);
    let (one, _) = directories(&mut cluster);
    let before = [cluster.free_bytes(ONE), cluster.free_bytes(TWO)];
    let file = fill(&mut cluster, one);
    assert_ne!([cluster.free_bytes(ONE), cluster.free_bytes(TWO)], before);
    cluster.unlink(one, "big").unwrap();
    cluster.run_ms(1_000);
    assert_eq!([cluster.free_bytes(ONE), cluster.free_bytes(TWO)], before);
    assert!(cluster.stat(file).is_err());
}
