//! Every decoder against random and mutated bytes: it answers with a value or an error, never a panic. A value that was
//! read is written and read again, and must be the same.
//!
//! The superblock's and the volume's headers are tested so where they are.
//!
//! Each decoder gets a fixed seed, then fresh ones (printed) for some seconds; SEALFS_FUZZ_SECONDS says how many.

use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sealfs_meta::journal::{Entry, SEGMENT_HEADER_LEN, SegmentHeader, Tail, Writer};
use sealfs_meta::{Record, RootOptions, State, journal, snapshot};
use sealfs_proto::{
    Access, ClusterId, ClusterMap, Header, HeaderKind, Ino, NodeId, Reply, Request, SessionId,
    ShardId, Space, Time, Who, decode, encode, nodes,
};
use sealfs_transport::handshake::{Accepting, Greeted};
use sealfs_transport::{Hello, Identity, Key, Peer, Serves};

/// Feeds `check` with bytes made from `samples`: mutated, cut, glued, and purely random ones.
#[allow(clippy::print_stdout, reason = "a failing run must name its seed")]
fn fuzz(samples: &[Vec<u8>], check: impl Fn(&[u8])) {
    let seconds =
        std::env::var("SEALFS_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
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

fn requests() -> Vec<Vec<u8>> {
    let who = Who { uid: 1, gid: 2, groups: vec![3, 4] };
    [
        Request::Lookup { who: who.clone(), dir: Ino::ROOT, name: b"name".to_vec() },
        Request::Open { who: who.clone(), ino: Ino(5), access: Access::default(), truncate: true },
        Request::List { who, dir: Ino::ROOT, cookie: 9, bytes: 4_096, attributes: true },
        Request::Write { ino: Ino(5), index: 1, offset: 2 },
        Request::Claim { claims: Vec::new(), last: true },
    ]
    .map(|request| encode(&request))
    .to_vec()
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
    let replies =
        [Reply::Space(Space::default()), Reply::Names(vec![b"a".to_vec()]), Reply::Decision(None)];
    fuzz(&replies.map(|reply| encode(&reply)), |bytes| {
        if let Ok(reply) = decode::<Reply>("reply", bytes) {
            assert_eq!(decode::<Reply>("reply", &encode(&reply)), Ok(reply));
        }
    });
}

#[test]
fn maps_and_lists_of_nodes() {
    let list = "1@host:7000 weight=2\n[::1]:80, b:9 # comment\n";
    fuzz(&[list.as_bytes().to_vec(), b"shards=4096 a:1".to_vec()], |bytes| {
        let _ = nodes::parse(&String::from_utf8_lossy(bytes));
    });
    let map = nodes::parse("a:1,b:2").unwrap().map(ClusterId([1; 16]));
    fuzz(&[encode(&map)], |bytes| {
        if let Ok(map) = decode::<ClusterMap>("map", bytes) {
            let _ = map.check();
        }
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
    fuzz(&requests(), |bytes| {
        if let Ok(record) = decode::<Record>("record", bytes) {
            assert_eq!(decode::<Record>("record", &encode(&record)), Ok(record));
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
