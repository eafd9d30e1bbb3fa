//! One node: the common path, and what must be there after a kill.

mod support;

use sealfs_proto::{Ino, NodeId, Reply, Request};
use support::{Cluster, Setup};

const NODE: NodeId = NodeId(1);

#[test]
fn what_was_acknowledged_is_there_after_a_kill() {
    for cores in [1, 3] {
        let mut cluster = Cluster::new(Setup { cores, ..Setup::default() });
        let dir = cluster.mkdir(Ino::ROOT, "home");
        let file = cluster.create(dir, "file");
        cluster.write(file, 0, 0, b"hello");
        cluster.write(file, 0, 3, b"p!");
        cluster.write(file, 1, 4_000, &[7; 5_000]);
        cluster.kill(NODE);
        cluster.start(NODE);
        assert_eq!(cluster.list(Ino::ROOT), ["home"]);
        assert_eq!(cluster.lookup(dir, "file"), Some(file));
        assert_eq!(cluster.read(file, 0, 0, 5), b"help!");
        assert_eq!(cluster.read(file, 1, 3_998, 4), [0, 0, 7, 7]);
        let attr = cluster.stat(file).unwrap();
        assert_eq!((attr.size, attr.nlink), (5, 1));
        // Numbers go on above those of before.
        assert_ne!(cluster.create(dir, "other"), file);
    }
}

#[test]
fn a_small_snapshot_limit_cuts_the_journal_and_loses_nothing() {
    let mut cluster = Cluster::new(Setup { snapshot_bytes: 4_096, ..Setup::default() });
    let dir = cluster.mkdir(Ino::ROOT, "home");
    let files: Vec<Ino> = (0..60).map(|n| cluster.create(dir, &format!("f{n}"))).collect();
    cluster.write(files[7], 0, 0, &[9; 10_000]);
    cluster.run_ms(1_000);
    assert!(cluster.servers[0].device.borrow().cuts > 0);
    cluster.kill(NODE);
    cluster.start(NODE);
    assert_eq!(cluster.list(dir).len(), 60);
    assert_eq!(cluster.read(files[7], 0, 9_998, 4), [9, 9, 0, 0]);
    cluster.write(files[8], 0, 0, b"x");
    assert_eq!(cluster.read(files[8], 0, 0, 1), b"x");
}

#[test]
fn sync_space_and_status_are_answered() {
    let mut cluster = Cluster::new(Setup { cores: 2, ..Setup::default() });
    let file = cluster.create(Ino::ROOT, "f");
    let before = cluster.free_bytes(NODE);
    cluster.write(file, 0, 0, &[1; 8_192]);
    assert_eq!(cluster.free_bytes(NODE), before - 8_192);
    assert_eq!(cluster.ask(file.shard(), Request::Sync).unwrap(), Reply::Done);
    match cluster.ask(file.shard(), Request::Status).unwrap() {
        Reply::Status(status) => {
            assert_eq!((status.cores, status.shards, status.sessions), (2, 4_096, 1));
            assert!(status.counters.iter().any(|(name, value)| name == "requests" && *value > 2));
        }
        other => panic!("{other:?}"),
    }
}
