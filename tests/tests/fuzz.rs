//! Every decoder against random and mutated bytes: it answers with a value or an error, never a panic. A value that was
//! read is written and read again, and must be the same.
//!
//! Each decoder gets a fixed seed, then fresh ones (printed) for some seconds; SEALFS_FUZZ_SECONDS says how many. What only its
//! own crate can name is tried there, byte by byte. A decoder that is not in this table has no target:
//!
//! | decoder | target |
//! |---|---|
//! | frame: `proto::Header` | `frames_and_their_bodies` |
//! | every `proto::Request` | `frames_and_their_bodies`, from the golden bytes of each |
//! | every `proto::Reply` (with `NodeStatus`, what `sealfs status` shows) | `frames_and_their_bodies`, from the golden bytes of each |
//! | `proto::ClusterMap` | `maps_lists_and_keys` |
//! | list of nodes: `proto::nodes` | `maps_lists_and_keys` |
//! | key file: `transport::Key` | `maps_lists_and_keys` |
//! | handshake: greeting, challenge, introduction, verdict | `messages_of_the_handshake` |
//! | streams of bytes (TCP), messages (RDMA) instead of frames | `transport::suite::meeting`: garbage at any moment |
//! | RDMA: messages, private data | `rdma/message.rs`: `any_bytes_are_a_message_that_comes_back_or_none` |
//! | journal: segment's header, entries | `journals_records_and_snapshots` |
//! | journal: records, chunks' changes, sync marks | `journals_records_and_snapshots`, `what_a_node_recovers` |
//! | snapshot: state, chunks | `journals_records_and_snapshots`, `what_a_node_recovers` |
//! | superblock | `server/datadir`: `damage_under_a_right_checksum_is_a_value_or_an_error`, `a_directory_whose_superblock_is_damaged_is_refused_by_name`, `a_device_with_a_damaged_superblock_has_the_one_before_or_is_refused_by_name` |
//! | volume's header | `server/datadir/header.rs`: `any_damage_is_refused` |
//! | device: head | `server/store/head.rs`: `any_damage_is_noticed` |
//! | device: table | `server/store/table.rs`: `damage_under_a_right_checksum_is_a_table_without_overlaps_or_an_error` |
//! | configuration file | `server/config.rs`: `any_file_is_settings_or_refused_by_name` |
//! | access control lists | `meta/access/acl.rs`: `any_bytes_are_a_list_that_comes_back_or_an_error` |
//! | messages of the kernel (FUSE) | `messages_of_the_kernel` |
//! | Slurm's host lists | `tools/job/hostlist.rs`: `any_bytes_are_names_within_the_limits_or_an_error_within_the_text` |
//! | messages between a job's nodes | `tools/job/wire.rs`: `any_bytes_are_a_message_that_comes_back_or_an_error` |
//! | `/proc` of a program | none: the kernel's own text, whose parsers (`client/fuse/fate.rs`, `groups.rs`) index nothing |

use std::cell::Cell;
use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sealfs_meta::journal::{Entry, SEGMENT_HEADER_LEN, SegmentHeader, Tail, Writer};
use sealfs_meta::{
    Answer, AttrChange, Change, KIND_VERSION, Origin, Record, RootOptions, State, Times, journal,
    snapshot,
};
use sealfs_proto::{
    Attr, ClusterId, ClusterMap, Header, HeaderKind, Ino, Kind, NodeId, Part, Prepare, Reply,
    Request, Sequence, SessionId, ShardId, Time, TxId, Who, Xattr, decode, encode, nodes,
};
use sealfs_server_core::chunk::ChunkRecord;
use sealfs_server_core::{Config, CoreId, Recovery};
use sealfs_transport::handshake::{Accepting, Greeted};
use sealfs_transport::{Hello, Identity, Key, Peer, Serves};

/// Feeds `check` with bytes made from `samples`: mutated, cut, glued, and purely random ones.
#[allow(clippy::print_stdout, reason = "a failing run must name its seed")]
fn fuzz(samples: &[Vec<u8>], check: impl Fn(&[u8])) {
    let seconds =
        std::env::var("SEALFS_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(6);
    let end = Instant::now() + Duration::from_secs(seconds);
    samples.iter().for_each(|sample| check(sample));
    let mut seed = 1;
    while Instant::now() < end {
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..2_000 {
            check(&mutate(samples, &mut random));
        }
        seed = fastrand::u64(..);
    }
}

fn mutate(samples: &[Vec<u8>], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = samples[random.usize(..samples.len())].clone();
    if random.u8(..8) == 0 {
        bytes = vec![0; random.usize(..300)];
        random.fill(&mut bytes);
    }
    for _ in 0..random.usize(1..6) {
        let at = random.usize(..=bytes.len());
        match random.u8(..6) {
            0 => bytes.truncate(at),
            1 => bytes.extend_from_slice(&samples[random.usize(..samples.len())]),
            2 => bytes.insert(at, random.u8(..)),
            // Lengths and counts are where decoders go wrong: extreme words at any place.
            3 => {
                let word =
                    [0, 1, u64::MAX, u64::from(u32::MAX), 1 << 31, 1 << 63][random.usize(..6)];
                for (target, byte) in bytes[at..].iter_mut().zip(word.to_le_bytes()) {
                    *target = byte;
                }
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.u8(..8);
                }
            }
        }
    }
    bytes
}

/// The golden bytes of each message of this kind.
fn golden(kind: &str) -> Vec<Vec<u8>> {
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    let lines = include_str!("../golden/messages-1.txt").lines();
    let of_kind = lines.filter(|line| line.starts_with(kind));
    let samples: Vec<Vec<u8>> = of_kind
        .map(|line| line.rsplit(' ').next().unwrap().as_bytes().chunks(2).map(byte).collect())
        .collect();
    assert!(samples.len() > 10, "the messages of kind {kind}");
    samples
}

/// Every part of a change.
fn parts() -> Vec<Part> {
    let (who, dir, ino, kind) = (Who::root(), Ino::ROOT, Ino(5), Kind::File);
    let (attr, name) = (attr(), b"name".to_vec());
    let xattrs = vec![Xattr { name: b"user.a".to_vec(), value: b"b".to_vec() }];
    vec![
        Part::NewInode { attr, parent: dir, target: b"to".to_vec(), xattrs },
        Part::AddEntry { who: who.clone(), dir, name: name.clone(), ino, kind },
        Part::RemoveEntry { who: who.clone(), dir, name: name.clone(), ino, kind },
        Part::SwapEntry { who: who.clone(), dir, name, ino, kind, to: Ino(6), to_kind: kind },
        Part::AddLink { ino },
        Part::DropLink { ino, sticky: Some(1) },
        Part::EndDirectory { ino, sticky: None },
        Part::Moved { who, ino, parent: Some(dir), sticky: None },
    ]
}

fn attr() -> Attr {
    Attr {
        ino: Ino(5),
        kind: Kind::File,
        mode: 0o644,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 5,
        blocks: 8,
        chunk_size: 1 << 20,
        atime: Time::default(),
        mtime: Time::default(),
        ctime: Time::default(),
        change: 1,
        generation: 1,
        bound: 1 << 20,
    }
}

fn prepare() -> Prepare {
    let tx = TxId { coordinator: ShardId(7), number: 11 };
    Prepare { tx, oldest: 1, session: SessionId(3), now: Time::default(), parts: parts() }
}

fn requests() -> Vec<Vec<u8>> {
    let mut requests = golden("request.");
    requests.push(encode(&Request::Prepare(prepare())));
    requests
}

#[test]
fn frames_and_their_bodies() {
    let header = Header::new(HeaderKind::Request, 7).to_bytes(b"body").to_vec();
    fuzz(&[header], |bytes| {
        let Some(first) = bytes.first_chunk::<{ Header::LEN }>() else { return };
        if let Ok(header) = Header::from_bytes(first) {
            let again = Header { body_len: 0, ..header }.to_bytes(&[]);
            assert_eq!(Header::from_bytes(&again), Ok(Header { body_len: 0, ..header }));
        }
        let _ = Header::check(first, &bytes[Header::LEN..]);
    });
    fuzz(&requests(), |bytes| {
        if let Ok(request) = decode::<Request>("request", bytes) {
            assert_eq!(decode::<Request>("request", &encode(&request)), Ok(request));
        }
    });
    fuzz(&golden("reply."), |bytes| {
        if let Ok(reply) = decode::<Reply>("reply", bytes) {
            assert_eq!(decode::<Reply>("reply", &encode(&reply)), Ok(reply));
        }
    });
}

#[test]
fn maps_lists_and_keys() {
    let list = "1@host:7000 weight=2\n[::1]:80, b:9 # comment\n";
    fuzz(&[list.as_bytes().to_vec(), b"shards=4096 a:1".to_vec()], |bytes| {
        let _ = nodes::parse(&String::from_utf8_lossy(bytes));
    });
    let map = nodes::parse("a:1,b:2").unwrap().map(ClusterId([1; 16]));
    fuzz(&[encode(&map)], |bytes| {
        if let Ok(map) = decode::<ClusterMap>("map", bytes)
            && map.check().is_ok()
        {
            assert_eq!(decode::<ClusterMap>("map", &encode(&map)), Ok(map));
        }
    });
    fuzz(&[[b'a'; 64].to_vec(), b" 0123456789abcdefABCDEF\n".to_vec()], |bytes| {
        let digits = bytes.trim_ascii();
        let is_key = digits.len() == 64 && digits.iter().all(u8::is_ascii_hexdigit);
        assert_eq!(Key::from_hex(bytes).is_some(), is_key);
    });
}

fn segment() -> Vec<u8> {
    let header = SegmentHeader { cluster: ClusterId([2; 16]), node: NodeId(1), core: 0, first: 0 };
    let mut bytes = header.to_bytes().to_vec();
    let mut writer = Writer::new(Tail::default());
    for number in 1..20_u64 {
        let logical = vec![number as u8; number as usize * 3];
        let entry = Entry {
            position: 0,
            shard: ShardId(4),
            number,
            kind: 1,
            version: 1,
            logical: &logical,
            local: b"local",
        };
        writer.append(&entry);
    }
    bytes.extend(writer.take_batch());
    bytes.resize(4_096, 0);
    bytes
}

#[test]
fn journals_records_and_snapshots() {
    fuzz(&[segment()], |bytes| {
        if let Ok(scan) = journal::scan(bytes, None) {
            // Whatever was accepted lies inside the segment, in order.
            assert!(scan.used as usize <= bytes.len().max(SEGMENT_HEADER_LEN));
            assert!(scan.entries.windows(2).all(|pair| pair[0].position < pair[1].position));
        }
        let _ = journal::position_of(bytes);
        let _ = journal::entries(bytes).count();
    });
    let state = State::with_root(RootOptions::default(), Time::default());
    let sample = snapshot::encode(ClusterId([3; 16]), NodeId(1), &state, b"chunks");
    fuzz(&[sample], |bytes| {
        if let Ok(read) = snapshot::decode(bytes) {
            let header = read.header;
            assert_eq!(
                snapshot::encode(header.cluster, header.node, &read.state, read.chunks),
                bytes
            );
        }
    });
    let records: Vec<Vec<u8>> = records().iter().map(encode).collect();
    fuzz(&records, |bytes| {
        if let Ok(record) = decode::<Record>("record", bytes) {
            assert_eq!(decode::<Record>("record", &encode(&record)), Ok(record));
        }
    });
    let (logical, local) = chunk();
    fuzz(&[logical, local.clone()], |bytes| {
        if let Ok(record) = ChunkRecord::decode(bytes, &local) {
            assert_eq!(ChunkRecord::decode(&record.logical(), &record.local()), Ok(record));
        }
        let (logical, _) = chunk();
        let _ = ChunkRecord::decode(&logical, bytes);
    });
}

/// A record of every kind of change.
fn records() -> Vec<Record> {
    let (ino, tx, answer) = (Ino(5), prepare().tx, Answer::Attr(Ino(5)));
    let xattr = Xattr { name: b"user.a".to_vec(), value: b"b".to_vec() };
    let changes = [
        Change::Parts { parts: parts(), answer: Answer::Done },
        Change::Unnamed { attr: attr(), xattrs: vec![xattr.clone()] },
        Change::Attr { ino, set: AttrChange { size: Some(1), cut: true, ..AttrChange::default() } },
        Change::Raise { ino, bound: 1 << 20 },
        Change::Settle { ino, size: 5, blocks: -8, times: Times::Written, answer },
        Change::Reserve { ino, length: 9, bound: 1 << 20 },
        Change::XattrSet { ino, xattr, mode: None },
        Change::XattrRemove { ino, name: b"user.a".to_vec(), mode: Some(0o600) },
        Change::Prepared(prepare()),
        Change::Decided { tx, parts: parts(), others: vec![ShardId(1)], answer: Answer::Done },
    ];
    let (session, sequence) = (SessionId(3), Sequence(4));
    let origin = Origin { session, sequence, watermark: Sequence(2) };
    let record = |change| Record { origin: Some(origin), now: Time::default(), change };
    changes.map(record).to_vec()
}

/// A change of a chunk: two blocks written, one of them a hole again, and where they are.
fn chunk() -> (Vec<u8>, Vec<u8>) {
    let mut logical = [Ino(5).0, 0, 1].map(u64::to_le_bytes).concat();
    logical.extend(4_096_u32.to_le_bytes());
    logical.extend(2_u64.to_le_bytes());
    for (start, count, state) in [(0_u16, 2_u16, 2_u32), (2, 1, 0)] {
        logical.extend([start.to_le_bytes(), count.to_le_bytes()].concat());
        logical.extend(state.to_le_bytes());
    }
    logical.extend(2_u64.to_le_bytes());
    logical.extend([7_u32, 8].map(u32::to_le_bytes).concat());
    let local = [&1_u64.to_le_bytes()[..], &9_u64.to_le_bytes(), &2_u32.to_le_bytes()].concat();
    assert!(ChunkRecord::decode(&logical, &local).is_ok());
    (logical, local)
}

/// What stands under right checksums may still be anything: a node that reads it refuses it, or starts.
#[test]
fn what_a_node_recovers() {
    let map = Arc::new(nodes::parse("a:1").unwrap().map(ClusterId([1; 16])));
    let config = Config::new(map, NodeId(1), CoreId(0), 1);
    let journal = |kind: u8, logical: &[u8], local: &[u8]| {
        let mut writer = Writer::new(Tail::default());
        let (shard, version) = (ShardId(0), if kind == 1 { KIND_VERSION } else { 1 });
        let entry = Entry { position: 0, shard, number: 1, kind, version, logical, local };
        writer.append(&entry);
        writer.take_batch()
    };
    let (of_chunk, local) = chunk();
    let of_record = |record: &Record| encode(&(record.clone(), Some(of_chunk.clone())));
    let samples: Vec<Vec<u8>> = records().iter().map(of_record).collect();
    let accepted = Cell::new(0);
    fuzz(&samples, |bytes| {
        for kind in [1, 2] {
            let mut recovery = Recovery::new(config.clone());
            if recovery.journal(&journal(kind, bytes, &local)).is_ok() {
                accepted.set(accepted.get() + 1);
                recovery.verify(|_, _| Ok(()));
                let _ = recovery.snapshots();
            }
        }
    });
    assert!(accepted.get() > 0);
    let state = State::with_root(RootOptions::default(), Time::default());
    let framed = |bytes: &[u8]| [&(bytes.len() as u32).to_le_bytes()[..], bytes].concat();
    let sample = [framed(&of_chunk), framed(&local)].concat();
    let cluster = config.map.cluster;
    let restored = |chunks: &[u8]| {
        let mut recovery = Recovery::new(config.clone());
        let bytes = snapshot::encode(cluster, NodeId(1), &state, chunks);
        recovery.snapshot(ShardId(0), &bytes).map(|()| recovery)
    };
    assert!(restored(&sample).is_ok());
    fuzz(&[sample], |bytes| {
        if let Ok(mut recovery) = restored(bytes) {
            recovery.verify(|_, _| Ok(()));
        }
    });
}

#[test]
fn messages_of_the_kernel() {
    let message = |opcode: u32, body: &[u8]| {
        let mut bytes = Vec::new();
        bytes.extend((40 + body.len() as u32).to_le_bytes());
        bytes.extend(opcode.to_le_bytes());
        bytes.extend([7, 1_u64].map(u64::to_le_bytes).as_flattened());
        bytes.resize(40, 0);
        bytes.extend(body);
        bytes
    };
    // Every operation that there may be, with a body of names, of numbers, and of nothing.
    let samples: Vec<Vec<u8>> = (1..=60)
        .flat_map(|opcode| {
            let numbers = [2_u64, 5, 1, 9, 0, 3, 0, 8].map(u64::to_le_bytes);
            let bodies = [&b"name\0target\0"[..], numbers.as_flattened(), &[]];
            let both = [numbers.as_flattened(), b"name\0other\0"].concat();
            let of_both = message(opcode, &both);
            bodies.map(|body| message(opcode, body)).into_iter().chain([of_both])
        })
        .collect();
    assert!(samples.iter().any(|sample| sealfs_client::is_fuse_message(sample, 0)));
    fuzz(&samples, |bytes| {
        let _ = sealfs_client::is_fuse_message(bytes, 0);
        let _ = sealfs_client::is_fuse_message(bytes, 3);
        // With the right length the body is looked at, too.
        if bytes.len() >= 4 {
            let mut bytes = bytes.to_vec();
            let len = (bytes.len() as u32).to_le_bytes();
            bytes[..4].copy_from_slice(&len);
            let _ = sealfs_client::is_fuse_message(&bytes, 0);
        }
    });
}

#[test]
fn messages_of_the_handshake() {
    let map = Arc::new(nodes::parse("a:1,b:2").unwrap().map(ClusterId([1; 16])));
    let serves = Serves { node: map.nodes[0].id, map: Arc::clone(&map) };
    let identity = Arc::new(Identity { key: Key::new([9; 32]), serves: Some(serves) });
    let hello = Hello {
        cluster: map.cluster,
        node: None,
        peer: Peer::Client { session: SessionId(7), endpoint: 0 },
        resume: false,
        map: None,
    };
    let key = Key::new([9; 32]);
    let greeted = || Greeted::new(&key, hello, [1; 32]);
    let accepting = || Accepting::new(Arc::clone(&identity), [2; 32]);
    let (_, one) = greeted();
    let (_, two) = accepting().on_greeting(&one).unwrap();
    let (_, three) = greeted().0.on_challenge(&two).unwrap();
    let challenged = || accepting().on_greeting(&one).unwrap().0;
    let (_, four) = challenged().on_introduction(&three).unwrap().admit();
    let introduced = || greeted().0.on_challenge(&two).unwrap().0;
    fuzz(slice::from_ref(&one), |bytes| {
        let _ = accepting().on_greeting(bytes);
    });
    fuzz(slice::from_ref(&two), |bytes| {
        let _ = greeted().0.on_challenge(bytes);
    });
    fuzz(slice::from_ref(&three), |bytes| {
        let _ = challenged().on_introduction(bytes);
    });
    fuzz(slice::from_ref(&four), |bytes| {
        let _ = introduced().on_verdict(bytes);
    });
}
