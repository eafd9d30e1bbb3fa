//! One node: the common path, and what must be there after a kill.

mod support;

use std::rc::Rc;

use sealfs_proto::{
    Access, Entry, Errno, Header, HeaderKind, Ino, NodeId, Reply, Request, ShardId, Who,
};
use sealfs_server_core::{Counted, Durability, VolumeOp};
use sealfs_transport::mem::MemNetwork;
use sealfs_transport::{Ask, CallError, payload_bytes_copied};
use support::{Cluster, Setup};

const NODE: NodeId = NodeId(1);

#[test]
fn what_was_acknowledged_is_there_after_a_kill() {
    for (cores, durability) in [
        (1, Durability::Process),
        (3, Durability::Process),
        (2, Durability::Power),
        (1, Durability::Scratch),
    ] {
        let mut cluster = Cluster::new(Setup { cores, durability, ..Setup::default() });
        let dir = cluster.mkdir(Ino::ROOT, "home");
        let file = cluster.create(dir, "file");
        cluster.write(file, 0, 0, b"hello");
        cluster.write(file, 0, 3, b"p!");
        cluster.write(file, 1, 4_000, &[7; 5_000]);
        // What `scratch` owes.
        cluster.run_ms(10);
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

/// Not even where a sibling core owns the chunk, and where old blocks are merged: the counted copies are the network's, which
/// in memory copies everything once.
#[test]
fn a_core_copies_no_payload() {
    const LEN: usize = 300_000;
    for cores in [1, 3] {
        let mut cluster = Cluster::new(Setup { cores, ..Setup::default() });
        let files: Vec<Ino> = (0..4).map(|n| cluster.create(Ino::ROOT, &format!("f{n}"))).collect();
        let before = payload_bytes_copied();
        for (file, index) in files.iter().flat_map(|&file| [(file, 0), (file, 1), (file, 2)]) {
            cluster.write(file, index, 100, &[5; LEN]);
            let bytes = cluster.read(file, index, 99, LEN as u32 + 1);
            assert_eq!((bytes[0], bytes[1], bytes[LEN]), (0, 5, 5));
        }
        assert_eq!(payload_bytes_copied() - before, 12 * (2 * LEN as u64 + 1), "{cores} cores");
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

#[test]
fn an_answer_in_power_mode_is_on_the_device() {
    let mut cluster = Cluster::new(Setup { durability: Durability::Power, ..Setup::default() });
    let file = cluster.create(Ino::ROOT, "f");
    cluster.write(file, 0, 0, &[1; 4_096]);
    assert_eq!(cluster.servers[0].device.borrow().unsynced(), 0);
}

#[test]
fn nobody_sees_a_raised_bound_before_it_is_on_the_device() {
    let requests: [fn(Ino) -> Ask; 4] = [
        |ino| Ask::read(ino.shard(), Request::Stat { ino }),
        |ino| Ask::change(ino.shard(), Request::Raise { ino, bound: 1 << 30 }),
        |ino| {
            let (who, name) = (Who::root(), b"f".to_vec());
            let _ = ino;
            Ask::read(Ino::ROOT.shard(), Request::Lookup { who, dir: Ino::ROOT, name })
        },
        |ino| {
            let access = Access { read: true, write: true, execute: false };
            let open = Request::Open { who: Who::root(), ino, access, truncate: false };
            Ask::change(ino.shard(), open)
        },
    ];
    for request in requests {
        let mut cluster = Cluster::new(Setup::default());
        let file = cluster.create(Ino::ROOT, "f");
        let other = cluster.client(9);
        cluster.call(other, NODE, Ask::read(file.shard(), Request::Stat { ino: file })).unwrap();
        let raise = Ask::change(file.shard(), Request::Raise { ino: file, bound: 1 << 30 });
        let raised = cluster.begin(0, NODE, raise);
        let bound = |reply: &Reply| match reply {
            Reply::Attr(attr) | Reply::Entry(Entry { attr: Some(attr), .. }) => attr.bound,
            other => panic!("{other:?}"),
        };
        // At every moment there is one who asks.
        let mut asked = Vec::new();
        let shows = |asked: &support::Pending| match &*asked.borrow() {
            Some(Ok(answer)) => bound(&answer.reply) >= 1 << 30,
            Some(Err(error)) => panic!("{error}"),
            None => false,
        };
        while !asked.iter().any(shows) {
            asked.push(cluster.begin(other, NODE, request(file)));
            cluster.step();
        }
        assert_eq!(cluster.servers[0].device.borrow().unsynced(), 0);
        cluster.finish(&raised).unwrap();
    }
}

#[test]
fn bad_requests_are_refused_and_bad_bytes_close_their_connection_only() {
    let network = MemNetwork::new(1);
    let mut cluster = Cluster::over(Rc::new(network.clone()), Setup::default());
    let file = cluster.create(Ino::ROOT, "f");
    let wrong_shard = cluster.call(0, NODE, Ask::read(ShardId(9), Request::Stat { ino: file }));
    assert!(matches!(wrong_shard, Err(CallError::Errno(Errno::EPROTO))), "{wrong_shard:?}");
    let tx = sealfs_proto::TxId { coordinator: ShardId(0), number: 1 };
    let of_nodes = Request::Resolve { tx, commit: true };
    let of_nodes = cluster.call(0, NODE, Ask::read(ShardId(0), of_nodes));
    assert!(matches!(of_nodes, Err(CallError::Errno(Errno::EPERM))), "{of_nodes:?}");
    let mut raw = network.raw("node1core0");
    let junk = Header::new(HeaderKind::Request, 1).to_bytes(b"junk");
    raw.write(cluster.now, &[&junk[..], b"junk"].concat());
    cluster.run_ms(5);
    raw.read(cluster.now);
    assert!(raw.is_closed());
    assert_eq!(cluster.lookup(Ino::ROOT, "f"), Some(file));
}

#[test]
fn a_full_node_says_so_and_unlink_makes_room() {
    let mut cluster = Cluster::new(Setup { cores: 2, ..Setup::default() });
    let file = cluster.create(Ino::ROOT, "f");
    let raise = Request::Raise { ino: file, bound: 1 << 40 };
    cluster.change(file.shard(), raise).unwrap();
    let (mut refused, mut stored) = (0, 0);
    let mut index = 1;
    while refused < 20 {
        let pending = cluster.begin_write(0, file, index, 0, &vec![index as u8; 1 << 20]);
        match cluster.finish(&pending) {
            Ok(_) => stored += 1 << 20,
            Err(CallError::Errno(Errno::ENOSPC)) => refused += 1,
            other => panic!("{other:?}"),
        }
        index += 1;
        assert!(index < 300, "256 MiB are full at some time");
    }
    assert!(index > 150, "most of the volume is used: {index}");
    let figures = cluster.servers[0].cores.iter().map(|core| core.figures().counters);
    let (counted, writes) = figures.fold((0, 0), |(bytes, writes), counters| {
        let writes = writes + counters.volume(VolumeOp::Write).count();
        (bytes + counters.of(Counted::BytesWritten), writes)
    });
    assert_eq!(counted, stored, "what was refused is not counted");
    assert!(writes > 150, "the volume was written {writes} times");
    assert_eq!(cluster.read(file, 20, 9, 2), [20, 20]);
    cluster.write(file, 20, 0, &[1; 1 << 20]);
    cluster.unlink(Ino::ROOT, "f").unwrap();
    cluster.run_ms(2_000);
    let other = cluster.create(Ino::ROOT, "g");
    for index in 0..100 {
        cluster.write(other, index, 0, &[5; 1 << 20]);
    }
}

#[test]
fn a_change_whose_reply_was_lost_is_not_executed_again() {
    let mut cluster = Cluster::new(Setup { cores: 2, ..Setup::default() });
    cluster.create(Ino::ROOT, "first");
    let ask = Ask::change(ShardId(0), support::create(Ino::ROOT, "f", true));
    let pending = cluster.begin(0, NODE, ask);
    let done = cluster.servers[0].device.borrow().done;
    while cluster.servers[0].device.borrow().done == done {
        cluster.step();
    }
    cluster.network.cut("client0", "node1core0");
    cluster.run_ms(25_000);
    assert!(pending.borrow().is_none(), "the reply is lost");
    cluster.network.heal(cluster.now, "client0", "node1core0");
    let file = support::entry(cluster.finish(&pending).map(|answer| answer.reply)).unwrap();
    assert_eq!(cluster.lookup(Ino::ROOT, "f"), Some(file));
    // It was opened once: one close ends it.
    cluster.unlink(Ino::ROOT, "f").unwrap();
    cluster.change(file.shard(), Request::Close { ino: file, opens: 1 }).unwrap();
    cluster.run_ms(500);
    assert!(cluster.stat(file).is_err());
}

#[test]
fn writes_in_flight_at_once_to_one_block_lose_nothing() {
    let mut cluster = Cluster::new(Setup::default());
    let file = cluster.create(Ino::ROOT, "f");
    let pending: Vec<_> = (0..64_u32)
        .map(|at| cluster.begin_write(0, file, 0, at * 100, &[at as u8 + 1; 100]))
        .collect();
    for pending in &pending {
        cluster.finish(pending).unwrap();
    }
    let bytes = cluster.read(file, 0, 0, 6_400);
    assert!(bytes.iter().enumerate().all(|(at, byte)| usize::from(*byte) == at / 100 + 1));
    assert_eq!(cluster.stat(file).unwrap().size, 6_400);
    assert_eq!(cluster.stat(file).unwrap().blocks, 16);
}
