//! The bytes of a journal and of a snapshot: golden.
//!
//! Data directories with these bytes exist. A line that differs means that they cannot be opened any more: add a variant at
//! the end instead, or raise the version of the format and go on reading this one.
//!
//! (Superblock and volume are known to `sealfs-server` alone: the unit tests of `server/src/datadir` have their bytes.)

use std::collections::BTreeSet;

use sealfs_meta::journal::{Entry, SegmentHeader, Tail, Writer, entries};
use sealfs_meta::{
    Answer, AttrChange, Change, KIND_VERSION, Origin, Range, Record, RootOptions, State, Times,
    apply, check, snapshot,
};
use sealfs_proto::{
    Attr, ClusterId, Ino, Kind, NodeId, Part, Prepare, Reply, Sequence, SessionId, ShardId, Time,
    TxId, Who, Xattr, decode, encode,
};
use sealfs_server_core::chunk::ChunkRecord;

use super::{attr, hex, who};

/// Kinds of entries, as FORMAT.md numbers them.
const STATE: u8 = 1;
const MARK: u8 = 2;

const NOW: Time = Time { seconds: 5, nanos: 6 };
const CLUSTER: ClusterId = ClusterId([7; 16]);

fn ino(number: u64) -> Ino {
    Ino::new(ShardId(0), number)
}

fn tx(coordinator: u16, number: u64) -> TxId {
    TxId { coordinator: ShardId(coordinator), number }
}

fn new_inode(number: u64, kind: Kind, xattrs: Vec<Xattr>) -> Part {
    let nlink = if kind == Kind::Directory { 2 } else { 1 };
    let (size, blocks) = match kind {
        Kind::File => (4_097, 16),
        Kind::Symlink => (2, 0),
        _ => (0, 0),
    };
    let attr = Attr { ino: ino(number), kind, nlink, size, blocks, ..attr() };
    let target = if kind == Kind::Symlink { b"to".to_vec() } else { Vec::new() };
    Part::NewInode { attr, parent: Ino::ROOT, target, xattrs }
}

fn add_entry(name: &str, number: u64, kind: Kind) -> Part {
    Part::AddEntry { who: who(), dir: Ino::ROOT, name: name.into(), ino: ino(number), kind }
}

fn xattr() -> Xattr {
    Xattr { name: b"user.a".to_vec(), value: b"b".to_vec() }
}

fn prepare(coordinator: u16, number: u64) -> Prepare {
    let parts = vec![Part::AddLink { ino: ino(5) }];
    Prepare { tx: tx(coordinator, number), oldest: 3, session: SessionId(8), now: NOW, parts }
}

/// Every kind of part; a new one does not compile before it has a line here.
fn part_kind(part: &Part) -> &'static str {
    match part {
        Part::NewInode { .. } => "new_inode",
        Part::AddEntry { .. } => "add_entry",
        Part::RemoveEntry { .. } => "remove_entry",
        Part::SwapEntry { .. } => "swap_entry",
        Part::AddLink { .. } => "add_link",
        Part::DropLink { .. } => "drop_link",
        Part::EndDirectory { .. } => "end_directory",
        Part::Moved { .. } => "moved",
    }
}

const PART_KINDS: usize = 8;

/// Every kind of change; a new one does not compile before it has a line here.
fn change_kind(change: &Change) -> &'static str {
    match change {
        Change::Parts { .. } => "parts",
        Change::Unnamed { .. } => "unnamed",
        Change::Attr { .. } => "attr",
        Change::Raise { .. } => "raise",
        Change::Settle { .. } => "settle",
        Change::Reserve { .. } => "reserve",
        Change::XattrSet { .. } => "xattr_set",
        Change::XattrRemove { .. } => "xattr_remove",
        Change::Prepared(_) => "prepared",
        Change::Decided { .. } => "decided",
        Change::Resolved { .. } => "resolved",
        Change::Forgotten { .. } => "forgotten",
        Change::CutDone { .. } => "cut_done",
        Change::Reclaim { .. } => "reclaim",
        Change::Reclaimed { .. } => "reclaimed",
        Change::Range(_) => "range",
        Change::Session { .. } => "session",
        Change::Chunk { .. } => "chunk",
    }
}

const CHANGE_KINDS: usize = 18;

/// A story of shard 0 in which every kind of change happens, and which leaves something in every list of its state.
fn changes() -> Vec<Change> {
    let set = AttrChange {
        mode: Some(0o4755),
        uid: Some(1),
        gid: Some(2),
        size: Some(3),
        cut: true,
        atime: Some(NOW),
        mtime: Some(NOW),
        next_generation: true,
        acl: Some(vec![1, 2]),
        drop_capability: true,
    };
    let entry = sealfs_proto::Entry { ino: ino(5), kind: Kind::File, attr: None };
    let made = vec![
        new_inode(5, Kind::File, vec![xattr()]),
        add_entry("file", 5, Kind::File),
        new_inode(6, Kind::Directory, Vec::new()),
        add_entry("directory", 6, Kind::Directory),
        new_inode(7, Kind::Symlink, Vec::new()),
        add_entry("symlink", 7, Kind::Symlink),
        new_inode(8, Kind::CharDevice, Vec::new()),
        add_entry("device", 8, Kind::CharDevice),
        new_inode(9, Kind::File, Vec::new()),
        add_entry("gone", 9, Kind::File),
        new_inode(10, Kind::Directory, Vec::new()),
        add_entry("ended", 10, Kind::Directory),
    ];
    let (dir, sticky) = (Ino::ROOT, Some(1_000));
    let remove = |name: &str, number: u64, kind| Part::RemoveEntry {
        who: Who::root(),
        dir,
        name: name.into(),
        ino: ino(number),
        kind,
    };
    let moved = vec![
        remove("gone", 9, Kind::File),
        Part::DropLink { ino: ino(9), sticky },
        remove("ended", 10, Kind::Directory),
        Part::EndDirectory { ino: ino(10), sticky: None },
        Part::AddLink { ino: ino(5) },
        Part::SwapEntry {
            who: who(),
            dir,
            name: b"device".to_vec(),
            ino: ino(8),
            kind: Kind::CharDevice,
            to: Ino::new(ShardId(3), 9),
            to_kind: Kind::Fifo,
        },
        Part::Moved { who: who(), ino: ino(6), parent: Some(dir), sticky },
    ];
    let settle = |times, answer| Change::Settle { ino: ino(5), size: 9, blocks: -8, times, answer };
    let others = vec![ShardId(4), ShardId(5)];
    vec![
        Change::Range(Range { inodes: 65_538, transactions: 65_538 }),
        Change::Session { session: SessionId(8), alive: true },
        Change::Parts { parts: made, answer: Answer::Entry(entry) },
        Change::Parts { parts: moved, answer: Answer::Done },
        Change::Unnamed { attr: Attr { ino: ino(11), nlink: 0, ..attr() }, xattrs: vec![xattr()] },
        Change::Raise { ino: ino(5), bound: 1 << 30 },
        settle(Times::Written, Answer::Written(ino(5))),
        settle(Times::MtimeSet, Answer::Written(ino(5))),
        settle(Times::None, Answer::Attr(ino(5))),
        Change::Reserve { ino: ino(5), length: 10, bound: 1 << 31 },
        Change::Attr { ino: ino(5), set: set.clone() },
        Change::CutDone { ino: ino(5), blocks: -16 },
        Change::Attr { ino: ino(5), set },
        Change::XattrSet { ino: ino(5), xattr: xattr(), mode: Some(0o640) },
        Change::XattrSet { ino: ino(6), xattr: xattr(), mode: None },
        Change::XattrRemove { ino: ino(6), name: b"user.a".to_vec(), mode: Some(0o700) },
        Change::Prepared(prepare(4, 7)),
        Change::Resolved { tx: tx(4, 7), commit: true },
        Change::Prepared(prepare(5, 6)),
        Change::Decided {
            tx: tx(0, 9),
            parts: Vec::new(),
            others: others.clone(),
            answer: Answer::Done,
        },
        Change::Decided { tx: tx(0, 10), parts: Vec::new(), others, answer: Answer::Done },
        Change::Forgotten { tx: tx(0, 9) },
        Change::Reclaim { ino: ino(9) },
        Change::Reclaimed { ino: ino(9) },
        Change::Chunk { reply: Reply::Written { blocks: 8, attr: None } },
    ]
}

/// The records of the story, numbered by their place in it.
fn records() -> Vec<Record> {
    let origin = |number| Origin {
        session: SessionId(8),
        sequence: Sequence(number),
        watermark: Sequence(number - number.min(2)),
    };
    (1..)
        .zip(changes())
        .map(|(number, change)| {
            let of_node = matches!(change, Change::Range(_) | Change::Session { .. });
            Record { origin: (!of_node).then(|| origin(number)), now: NOW, change }
        })
        .collect()
}

/// The state at the end of the story.
fn state() -> State {
    let mut state = State::with_root(RootOptions::default(), NOW);
    records().iter().for_each(|record| _ = apply(&mut state, record));
    state
}

/// A chunk with a written block, a hole, and unwritten blocks: logical and local bytes.
fn chunk() -> (Vec<u8>, Vec<u8>) {
    let logical = "0500000000000000 0600000000000000 0900000000000000 a00f0000 0300000000000000\
         0000 0100 02000000 0100 0200 00000000 0300 0200 01000000 0100000000000000 cdab0000";
    let local = "0200000000000000 0700000000000000 02000000 4600000000000000 01000000";
    (bytes(logical), bytes(local))
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

/// The lines of today: a segment's header, every entry of the story, one with a chunk, a sync mark, a snapshot.
fn lines() -> Vec<String> {
    let header = SegmentHeader { cluster: CLUSTER, node: NodeId(1), core: 2, first: 3 };
    let mut lines = vec![format!("segment {}", hex(&header.to_bytes()))];
    let mut writer = Writer::new(Tail { position: 3, chain: 4 });
    let (logical, local) = chunk();
    for (number, record) in (1..).zip(&records()) {
        let with_chunk = matches!(record.change, Change::Chunk { .. });
        let chunk = with_chunk.then(|| logical.clone());
        writer.append(&Entry {
            position: 0,
            shard: ShardId(0),
            number,
            kind: STATE,
            version: KIND_VERSION,
            logical: &[encode(record), encode(&chunk)].concat(),
            local: if with_chunk { &local } else { &[] },
        });
        let name = change_kind(&record.change);
        lines.push(format!("entry.{name} {}", hex(&writer.take_batch())));
    }
    let mark = encode(&writer.tail().position);
    let shard = ShardId(0);
    let (kind, version) = (MARK, KIND_VERSION);
    let entry = Entry { position: 0, shard, number: 0, kind, version, logical: &mark, local: &[] };
    writer.append(&entry);
    lines.push(format!("entry.mark {}", hex(&writer.take_batch())));
    let framed = |bytes: Vec<u8>| [(bytes.len() as u32).to_le_bytes().to_vec(), bytes].concat();
    let chunks = [framed(logical), framed(local)].concat();
    lines.push(format!(
        "snapshot {}",
        hex(&snapshot::encode(CLUSTER, NodeId(1), &state(), &chunks))
    ));
    lines
}

const GOLDEN: &str = include_str!("../../golden/disk-1.txt");

#[test]
fn what_lies_on_the_disk_has_its_golden_bytes() {
    let lines = lines();
    let differing: Vec<_> =
        lines.iter().zip(GOLDEN.lines()).filter(|(now, then)| now != then).collect();
    assert!(differing.is_empty(), "now, then: {differing:#?}");
    assert_eq!(lines.len(), GOLDEN.lines().count(), "all of now:\n{}", lines.join("\n"));
}

#[test]
fn the_golden_story_has_every_kind_and_leaves_a_sound_state() {
    let changes = changes();
    let kinds: BTreeSet<_> = changes.iter().map(change_kind).collect();
    assert_eq!(kinds.len(), CHANGE_KINDS);
    let parts = changes.iter().filter_map(|change| match change {
        Change::Parts { parts, .. } => Some(parts),
        _ => None,
    });
    let kinds: BTreeSet<_> = parts.flatten().map(part_kind).collect();
    assert_eq!(kinds.len(), PART_KINDS);
    let state = state();
    assert_eq!(check::check(&state), []);
    let lists = [
        state.inodes().filter(|(_, inode)| !inode.xattrs.is_empty()).count(),
        state.cuts().count(),
        state.unlinked().count(),
        state.prepared().count(),
        state.decided().count(),
        state.sessions().count(),
    ];
    assert!(lists.iter().all(|len| *len > 0), "{lists:?}");
}

#[test]
fn golden_journals_and_snapshots_are_read_and_written_again_as_they_are() {
    let line = |name: &str| {
        let found = GOLDEN.lines().filter_map(|line| line.split_once(' '));
        found.filter(|(kind, _)| kind.starts_with(name)).flat_map(|(_, hex)| bytes(hex)).collect()
    };
    let segment: Vec<u8> = line("segment");
    let header = SegmentHeader::from_bytes(&segment).unwrap();
    assert_eq!(header.to_bytes().to_vec(), segment);

    let journal: Vec<u8> = line("entry.");
    let mut writer = Writer::new(Tail { position: header.first, chain: 4 });
    let mut state = State::with_root(RootOptions::default(), NOW);
    for entry in entries(&journal) {
        let mut logical = Vec::new();
        let mut local = Vec::new();
        if entry.kind == MARK {
            logical = encode(&decode::<u64>("mark", entry.logical).unwrap());
        } else {
            let (record, chunk) =
                decode::<(Record, Option<Vec<u8>>)>("entry", entry.logical).unwrap();
            logical.extend(encode(&record));
            let chunk = chunk.map(|chunk| ChunkRecord::decode(&chunk, entry.local).unwrap());
            logical.extend(encode(&chunk.as_ref().map(ChunkRecord::logical)));
            local = chunk.map(|chunk| chunk.local()).unwrap_or_default();
            let _ = apply(&mut state, &record);
            assert_eq!(state.number(), entry.number);
        }
        writer.append(&Entry { logical: &logical, local: &local, ..entry });
    }
    assert_eq!(writer.take_batch(), journal);

    let stored: Vec<u8> = line("snapshot");
    let read = snapshot::decode(&stored).unwrap();
    let again = snapshot::encode(CLUSTER, NodeId(1), &read.state, read.chunks);
    assert_eq!(again, stored);
    assert!(snapshot::encode(CLUSTER, NodeId(1), &state, read.chunks) == stored, "replayed");
}
