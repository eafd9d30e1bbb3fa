//! Starts that do not wait for the disk, and losses of power.

mod support;

use sealfs_proto::{Ino, NodeId, Reply, Request, SetAttr, Who, chunk_shard};
use sealfs_transport::Ask;
use support::{Cluster, Setup};

const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);
const BLOCK: usize = 4_096;

/// A block that no other number makes.
fn block(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(BLOCK / 8)
}

#[test]
fn a_node_serves_while_what_it_found_is_not_yet_on_the_device() {
    let mut cluster = Cluster::new(Setup { cores: 2, ..Setup::default() });
    let (file, other) = (cluster.create(Ino::ROOT, "file"), cluster.create(Ino::ROOT, "other"));
    cluster.write(file, 0, 0, &block(1));
    cluster.write(file, 0, 0, &block(2));
    cluster.kill(ONE);
    cluster.hold_syncs(ONE, true);
    cluster.start(ONE);
    assert_eq!(cluster.lookup(Ino::ROOT, "file"), Some(file));
    assert_eq!(cluster.read(file, 0, 0, BLOCK as u32), block(2));
    for number in 3..20 {
        cluster.write(file, number % 3, 0, &block(number));
        cluster.write(other, 0, 0, &block(number));
        assert_eq!(cluster.read(file, number % 3, 0, BLOCK as u32), block(number));
    }
    cluster.unlink(Ino::ROOT, "other").unwrap();
    // fsync is a promise about the device, also for what the process before has written.
    let sync = Ask::read(file.shard(), Request::Sync);
    let sync = cluster.begin(0, ONE, sync);
    cluster.run_ms(40_000);
    assert!(sync.borrow().is_none());
    cluster.hold_syncs(ONE, false);
    assert_eq!(cluster.finish(&sync).unwrap().reply, Reply::Done);
    assert_eq!(cluster.servers[0].device.borrow().unsynced(), 0);
}

#[test]
fn a_sync_after_a_restart_covers_the_journal_of_before() {
    let mut cluster = Cluster::new(Setup::default());
    let file = cluster.create(Ino::ROOT, "file");
    cluster.write(file, 0, 0, &block(1));
    cluster.kill(ONE);
    cluster.start(ONE);
    assert_eq!(cluster.ask(file.shard(), Request::Sync).unwrap(), Reply::Done);
    let mut random = fastrand::Rng::with_seed(1);
    cluster.lose_power(ONE, &mut random);
    cluster.start(ONE);
    assert_eq!(cluster.lookup(Ino::ROOT, "file"), Some(file));
    assert_eq!(cluster.read(file, 0, 0, BLOCK as u32), block(1));
}

#[test]
fn a_block_freed_above_the_mark_is_not_reused_before_a_mark_covers_it() {
    for cores in [1, 3] {
        let mut cluster = Cluster::new(Setup { cores, volume_blocks: 2_048, ..Setup::default() });
        let file = cluster.create(Ino::ROOT, "file");
        let raise = Request::Raise { ino: file, bound: 1 << 40 };
        cluster.change(file.shard(), raise).unwrap();
        cluster.write(file, 0, 0, &block(1));
        cluster.run_ms(31_000);
        assert_eq!(cluster.ask(file.shard(), Request::Sync).unwrap(), Reply::Done);
        cluster.write(file, 0, 0, &block(2));
        cluster.kill(ONE);
        cluster.hold_syncs(ONE, true);
        cluster.start(ONE);
        // As much as there is place for, and more.
        let mut waiting = Vec::new();
        for number in 0..12 {
            let bytes: Vec<u8> = (0..256).flat_map(|at| block(1_000 * (number + 1) + at)).collect();
            waiting.push(cluster.begin_write(0, file, 1 + number, 0, &bytes));
            cluster.run_ms(20);
        }
        cluster.run_ms(2_000);
        let stuck = waiting.iter().filter(|pending| pending.borrow().is_none()).count();
        assert!(stuck > 0, "{cores} cores: the volume is full but for what waits for the mark");
        let holds =
            |cluster: &Cluster, number| cluster.servers[0].device.borrow().holds(&block(number));
        assert!(holds(&cluster, 1), "{cores} cores: the loss of power may bring it back");
        // It was full only until the mark: nobody was refused too early.
        cluster.hold_syncs(ONE, false);
        for pending in &waiting {
            let _ = cluster.finish(pending);
        }
        cluster.unlink(Ino::ROOT, "file").unwrap();
        cluster.run_ms(150_000);
        let other = cluster.create(Ino::ROOT, "other");
        cluster.change(other.shard(), Request::Raise { ino: other, bound: 1 << 40 }).unwrap();
        let bytes: Vec<u8> = (0..256).flat_map(|_| block(3)).collect();
        let written = (0..8).filter(|&index| {
            let pending = cluster.begin_write(0, other, index, 0, &bytes);
            cluster.finish(&pending).is_ok()
        });
        assert_eq!(written.count(), 7, "{cores} cores: all but the reserve is used");
    }
}

/// A file with chunks on two nodes, the inode's (given) and the other (given), and the index of that one; all of it synced.
fn spread_file(cluster: &mut Cluster) -> (Ino, u64, NodeId, NodeId) {
    let shards = cluster.map.shards();
    let file = cluster.create(Ino::ROOT, "file");
    let home = cluster.node_of(file.shard());
    let other = if home == ONE { TWO } else { ONE };
    let index =
        (1..).find(|&index| cluster.node_of(chunk_shard(file, index, shards)) == other).unwrap();
    cluster.change(file.shard(), Request::Raise { ino: file, bound: 1 << 40 }).unwrap();
    cluster.write(file, 0, 0, &block(1));
    cluster.write(file, index, 0, &block(2));
    for node in [ONE, TWO] {
        cluster.call(0, node, Ask::read(file.shard(), Request::Sync)).unwrap();
    }
    (file, index, home, other)
}

#[test]
fn a_file_whose_removal_is_lost_has_all_its_data() {
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..6 {
        let mut cluster = Cluster::new(Setup { nodes: 2, cores: 2, ..Setup::default() });
        let (file, index, home, _) = spread_file(&mut cluster);
        cluster.hold_syncs(home, true);
        cluster.unlink(Ino::ROOT, "file").unwrap();
        cluster.run_ms(3_000);
        cluster.lose_power(home, &mut random);
        cluster.hold_syncs(home, false);
        cluster.start(home);
        if cluster.lookup(Ino::ROOT, "file").is_some() {
            assert_eq!(cluster.read(file, 0, 0, BLOCK as u32), block(1));
            assert_eq!(cluster.read(file, index, 0, BLOCK as u32), block(2));
        }
    }
}

#[test]
fn data_that_a_removal_has_dropped_does_not_come_back() {
    let mut random = fastrand::Rng::with_seed(4);
    for _ in 0..6 {
        let mut cluster = Cluster::new(Setup { nodes: 2, cores: 2, ..Setup::default() });
        let (file, _, home, other) = spread_file(&mut cluster);
        cluster.unlink(Ino::ROOT, "file").unwrap();
        let until = cluster.now.after_ms(10_000);
        while cluster.stat(file).is_ok() {
            assert!(cluster.now < until, "the inode is forgotten in the end");
            cluster.step();
        }
        cluster.call(0, home, Ask::read(file.shard(), Request::Sync)).unwrap();
        cluster.lose_power(other, &mut random);
        cluster.start(other);
        cluster.run_ms(1_000);
        let volume = cluster.setup.volume_blocks * BLOCK as u64;
        assert_eq!(cluster.free_bytes(other), volume, "nobody would ever drop it again");
    }
}

#[test]
fn the_rest_of_a_block_that_was_cut_does_not_come_back() {
    let mut random = fastrand::Rng::with_seed(5);
    for _ in 0..6 {
        let mut cluster = Cluster::new(Setup { nodes: 2, cores: 2, ..Setup::default() });
        let (file, index, home, other) = spread_file(&mut cluster);
        let resize = |cluster: &mut Cluster, size| {
            let set = SetAttr { size: Some(size), ..SetAttr::default() };
            let request = Request::SetAttr { who: Who::root(), ino: file, set, opened: true };
            cluster.change(file.shard(), request).unwrap();
        };
        let (cut, grown) = ((index << 20) + 100, (index + 1) << 20);
        resize(&mut cluster, grown);
        resize(&mut cluster, cut);
        resize(&mut cluster, grown);
        // What the client has to sync: no other node has answered a change.
        cluster.call(0, home, Ask::read(file.shard(), Request::Sync)).unwrap();
        cluster.lose_power(other, &mut random);
        cluster.start(other);
        let expected = [&block(2)[..100], &[0; BLOCK - 100]].concat();
        let found = cluster.read(file, index, 0, BLOCK as u32);
        assert!(found == expected, "what was cut is back");
    }
}

#[test]
fn what_cannot_be_verified_keeps_no_node_from_starting_and_is_not_replaced_by_what_was_before() {
    let mut cluster = Cluster::new(Setup::default());
    let file = cluster.create(Ino::ROOT, "file");
    cluster.write(file, 0, 0, &block(1));
    assert_eq!(cluster.ask(file.shard(), Request::Sync).unwrap(), Reply::Done);
    cluster.write(file, 0, 0, &block(2));
    assert_eq!(cluster.ask(file.shard(), Request::Sync).unwrap(), Reply::Done);
    cluster.servers[0].device.borrow_mut().unreadable = true;
    cluster.lose_power(ONE, &mut fastrand::Rng::with_seed(6));
    cluster.start(ONE);
    assert!(cluster.read(file, 0, 0, BLOCK as u32) == block(2));
}
