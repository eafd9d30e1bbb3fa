//! The bytes of every message: golden, and the same that bincode writes.
//!
//! A released message never changes its bytes. A line that differs means that old and new software do not understand
//! each other: add a variant at the end instead, or raise the protocol's version.

mod disk;

use sealfs_proto::{
    Access, Address, Attr, Claim, ClusterId, ClusterMap, Entry, Epoch, Errno, Header, HeaderKind,
    Ino, Kind, Listed, Lock, LockKind, LockOwner, LockSpace, New, Node, NodeId, NodeStatus, Path,
    Peer, PeerFigures, RdmaPath, RenameFlag, Reply, Request, Sequence, SessionId, SetAttr, SetTime,
    ShardId, Space, Status, Time, Traffic, TransportKind, TxId, Who, Xattr, XattrFlag, decode,
    encode,
};
use wincode::{SchemaRead, SchemaWrite};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attr() -> Attr {
    let time = |seconds| Time { seconds, nanos: 7 };
    Attr {
        ino: Ino::new(ShardId(3), 5),
        kind: Kind::File,
        mode: 0o644,
        nlink: 1,
        uid: 1_000,
        gid: 100,
        rdev: 0,
        size: 4_097,
        blocks: 16,
        chunk_size: 1 << 20,
        atime: time(1),
        mtime: time(2),
        ctime: time(-3),
        change: 9,
        generation: 2,
        bound: 1 << 20,
    }
}

fn who() -> Who {
    Who { uid: 1_000, gid: 100, groups: vec![4, 24] }
}

fn lock() -> Lock {
    Lock {
        space: LockSpace::Posix,
        kind: LockKind::Write,
        start: 1,
        end: u64::MAX,
        owner: LockOwner(8),
        pid: 42,
    }
}

fn requests() -> Vec<(&'static str, Request)> {
    let (dir, ino, name) = (Ino::ROOT, Ino::new(ShardId(3), 5), b"name".to_vec());
    let tx = TxId { coordinator: ShardId(7), number: 11 };
    vec![
        ("lookup", Request::Lookup { who: who(), dir, name: name.clone() }),
        (
            "create",
            Request::Create {
                who: who(),
                dir,
                name: name.clone(),
                new: New::Special(Kind::CharDevice, 0x105),
                mode: 0o666,
                umask: 0o022,
                open: true,
            },
        ),
        (
            "symlink",
            Request::Create {
                who: Who::root(),
                dir,
                name: name.clone(),
                new: New::Symlink(b"to".to_vec()),
                mode: 0o777,
                umask: 0,
                open: false,
            },
        ),
        ("create_unnamed", Request::CreateUnnamed { who: who(), dir, mode: 0o600, umask: 0o22 }),
        ("mkdir", Request::Mkdir { who: who(), dir, name: name.clone(), mode: 0o755, umask: 0 }),
        ("unlink", Request::Unlink { who: who(), dir, name: name.clone() }),
        ("rmdir", Request::Rmdir { who: who(), dir, name: name.clone() }),
        (
            "rename",
            Request::Rename {
                who: who(),
                dir,
                name: name.clone(),
                target_dir: ino,
                target_name: b"new".to_vec(),
                flag: RenameFlag::Exchange,
            },
        ),
        ("link", Request::Link { who: who(), ino, dir, name }),
        ("list", Request::List { who: who(), dir, cookie: 1, bytes: 4_096, attributes: true }),
        ("stat", Request::Stat { ino }),
        (
            "setattr",
            Request::SetAttr {
                who: who(),
                ino,
                set: SetAttr {
                    mode: Some(0o4755),
                    size: Some(3),
                    atime: Some(SetTime::Now),
                    mtime: Some(SetTime::At(Time { seconds: 1, nanos: 2 })),
                    ..SetAttr::default()
                },
                opened: false,
            },
        ),
        ("readlink", Request::ReadLink { ino }),
        (
            "open",
            Request::Open {
                who: who(),
                ino,
                access: Access { read: true, write: false, execute: false },
                truncate: true,
            },
        ),
        ("close", Request::Close { ino, opens: 1 }),
        ("raise", Request::Raise { ino, bound: 1 << 30 }),
        ("settle", Request::Settle { ino, generation: 1, size: 5, blocks: -8, wrote: true }),
        ("reserve", Request::Reserve { ino, length: 10 }),
        ("xattr_get", Request::XattrGet { who: who(), ino, name: b"user.a".to_vec() }),
        ("xattr_list", Request::XattrList { who: who(), ino }),
        (
            "xattr_set",
            Request::XattrSet {
                who: who(),
                ino,
                xattr: Xattr { name: b"user.a".to_vec(), value: b"b".to_vec() },
                flag: XattrFlag::Create,
                clear_sgid: false,
            },
        ),
        ("xattr_remove", Request::XattrRemove { who: who(), ino, name: b"user.a".to_vec() }),
        ("lock", Request::Lock { ino, lock: lock(), wait: true }),
        ("lock_test", Request::LockTest { ino, lock: lock() }),
        ("lock_cancel", Request::LockCancel { ino, waiting: Sequence(4) }),
        ("parent", Request::Parent { ino }),
        ("read", Request::Read { ino, index: 1, offset: 2, length: 3 }),
        ("write", Request::Write { ino, index: 1, offset: 2 }),
        ("discard", Request::Discard { ino, chunk_size: 1 << 20, from: 1, to: 2 }),
        ("allocate", Request::Allocate { ino, chunk_size: 1 << 20, from: 1, to: 2 }),
        ("extents", Request::Extents { ino, chunk_size: 1 << 20, from: 1, to: 2 }),
        ("end", Request::End { ino, chunk_size: 1 << 20 }),
        ("sync", Request::Sync),
        ("space", Request::Space),
        ("status", Request::Status),
        ("ping", Request::Ping),
        (
            "claim",
            Request::Claim {
                claims: vec![Claim { ino, opens: 1, locks: vec![lock()] }],
                last: true,
            },
        ),
        ("leave", Request::Leave),
        ("resolve", Request::Resolve { tx, commit: true }),
        ("decision", Request::Decision { tx }),
        ("rename_lock", Request::RenameLock { tx, take: true }),
        ("probe", Request::Probe { length: 4_096 }),
        ("peers", Request::Peers { core: 3, skip: 64 }),
    ]
}

fn replies() -> Vec<(&'static str, Reply)> {
    let entry = Entry { ino: attr().ino, kind: Kind::File, attr: Some(attr()) };
    let bare = Entry { attr: None, ..entry.clone() };
    let status = NodeStatus {
        node: NodeId(1),
        version: "0.1.0".into(),
        cores: 1,
        shards: 4_096,
        space: Space { total: 4, free: 3, available: 2, inodes: 1 },
        sessions: 1,
        up_ms: 5,
        counters: vec![("requests".into(), 6)],
    };
    vec![
        ("done", Reply::Done),
        ("entry", Reply::Entry(entry)),
        ("attr", Reply::Attr(attr())),
        ("bytes", Reply::Bytes(b"abc".to_vec())),
        ("names", Reply::Names(vec![b"user.a".to_vec()])),
        (
            "list",
            Reply::List {
                entries: vec![Listed { cookie: 3, name: b"n".to_vec(), entry: bare }],
                end: true,
            },
        ),
        ("offset", Reply::Offset(1)),
        ("data", Reply::Data { length: 2 }),
        ("written", Reply::Written { blocks: -1, attr: None }),
        ("extents", Reply::Extents { ranges: vec![(1, 2)], next: Some(3) }),
        ("conflict", Reply::Conflict(Some(lock()))),
        ("parent", Reply::Parent(Ino::ROOT)),
        ("space", Reply::Space(status.space)),
        ("status", Reply::Status(status)),
        ("prepared", Reply::Prepared { attrs: vec![attr()] }),
        ("decision", Reply::Decision(Some(false))),
        ("clock", Reply::Clock(Time { seconds: 1, nanos: 7 })),
        ("peers", Reply::Peers { peers: vec![peer()], left: 2 }),
    ]
}

fn peer() -> PeerFigures {
    let traffic = Traffic {
        frames_sent: 1,
        frames_received: 2,
        bytes_sent: 3,
        bytes_received: 4,
        rdma_sent: 5,
        rdma_received: 6,
    };
    let rdma = RdmaPath {
        device: "rxe0".into(),
        port: 1,
        gid_index: 2,
        gid_kind: "RoCE v2".into(),
        mtu: 4_096,
        send_depth: 128,
        receive_depth: 32,
    };
    let transport = TransportKind::Rdma;
    PeerFigures {
        peer: Peer::Client { session: SessionId(7), endpoint: 1 },
        accepted: true,
        address: "n1:7000".into(),
        path: Some(Path { transport, credits: 31, credits_max: 32, rdma: Some(rdma) }),
        connections: 8,
        failures: 9,
        resent: 10,
        in_flight: 11,
        traffic,
        last_error: "x".into(),
    }
}

fn map() -> ClusterMap {
    let addresses = vec![Address { transport: TransportKind::Tcp, text: "n1:7000".into() }];
    ClusterMap {
        cluster: ClusterId([7; 16]),
        epoch: Epoch(1),
        shards_log2: 12,
        chunk_size: 1 << 20,
        nodes: vec![Node { id: NodeId(1), weight: 100, addresses }],
    }
}

fn header() -> Header {
    Header {
        status: Status::Errno(Errno::ENOSPC),
        bulk_len: 4_096,
        sequence: Sequence(9),
        watermark: Sequence(3),
        remote_address: 0x0102_0304_0506_0708,
        remote_key: 5,
        epoch: Epoch(2),
        shard: ShardId(4_095),
        ..Header::new(HeaderKind::Reply, 77)
    }
}

#[test]
fn every_message_has_its_golden_bytes() {
    let mut lines = vec![
        format!("header {}", hex(&header().to_bytes(b"body"))),
        format!("map {}", hex(&encode(&map()))),
    ];
    for (name, request) in requests() {
        let bytes = encode(&request);
        assert_eq!(decode::<Request>("request", &bytes).as_ref(), Ok(&request), "{name}");
        lines.push(format!("request.{name} {}", hex(&bytes)));
    }
    for (name, reply) in replies() {
        let bytes = encode(&reply);
        assert_eq!(decode::<Reply>("reply", &bytes).as_ref(), Ok(&reply), "{name}");
        lines.push(format!("reply.{name} {}", hex(&bytes)));
    }
    let golden = include_str!("../../golden/messages-1.txt");
    let differing: Vec<_> =
        lines.iter().zip(golden.lines()).filter(|(now, then)| now != then).collect();
    assert!(differing.is_empty(), "now, then: {differing:#?}");
    assert_eq!(lines.len(), golden.lines().count(), "all that was made now:\n{}", lines.join("\n"));
}

/// Every shape that messages and records are made of.
#[derive(Clone, Debug, PartialEq, SchemaRead, SchemaWrite, serde::Serialize)]
enum Shape {
    Unit,
    New(u64),
    Tuple(u8, i64),
    Fields {
        a: bool,
        b: u16,
        c: u32,
        d: Option<Box<Shape>>,
        e: Vec<u8>,
        f: String,
        g: [u8; 16],
        h: Vec<(u64, u64)>,
    },
}

#[test]
fn wincode_writes_what_bincode_writes() {
    let fields = Shape::Fields {
        a: true,
        b: 2,
        c: 3,
        d: Some(Box::new(Shape::Tuple(4, -5))),
        e: vec![6, 7],
        f: "eight".into(),
        g: [9; 16],
        h: vec![(10, 11)],
    };
    for shape in [Shape::Unit, Shape::New(u64::MAX), Shape::Tuple(1, i64::MIN), fields] {
        let bytes = encode(&shape);
        assert_eq!(bytes, bincode::serialize(&shape).unwrap());
        assert_eq!(decode::<Shape>("shape", &bytes), Ok(shape));
    }
}
