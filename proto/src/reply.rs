//! What a node answers when the header's status is `Ok`.

#![allow(missing_docs, reason = "the fields of a variant are described by the variant's text")]

use wincode::{SchemaRead, SchemaWrite};

use crate::{Attr, Ino, Kind, Lock, NodeId, PeerFigures, Time};

/// An entry that was found or made.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Entry {
    /// The inode.
    pub ino: Ino,
    /// Its kind.
    pub kind: Kind,
    /// Its attributes, when it lives in the shard that answers.
    pub attr: Option<Attr>,
}

/// An entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Listed {
    /// Where to go on behind this entry.
    pub cookie: u64,
    /// Its name.
    pub name: Vec<u8>,
    /// What it names.
    pub entry: Entry,
}

/// A node's space, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Space {
    /// Size of the volume.
    pub total: u64,
    /// Blocks that no chunk names.
    pub free: u64,
    /// Of these, what a new write may take (the reserve is kept back).
    pub available: u64,
    /// Inodes that exist.
    pub inodes: u64,
}

/// What `sealfs status` shows of a node.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct NodeStatus {
    /// The node.
    pub node: NodeId,
    /// Its software's version.
    pub version: String,
    /// Pinned threads.
    pub cores: u32,
    /// Shards it is the primary of.
    pub shards: u32,
    /// Its space.
    pub space: Space,
    /// Sessions that are alive.
    pub sessions: u32,
    /// Milliseconds since it began to serve.
    pub up_ms: u64,
    /// Named counters ("requests", "journal_bytes", ...), sorted by name.
    pub counters: Vec<(String, u64)>,
}

/// One reply.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Reply {
    /// It is done.
    Done,
    /// An entry.
    Entry(Entry),
    /// Attributes.
    Attr(Attr),
    /// Bytes (a link's target, an attribute's value).
    Bytes(Vec<u8>),
    /// Names of extended attributes.
    Names(Vec<Vec<u8>>),
    /// Entries of a directory; `end`: there is nothing behind them.
    List { entries: Vec<Listed>, end: bool },
    /// A place in a file, bytes.
    Offset(u64),
    /// The bulk holds this many bytes; whatever was asked for beyond them is zeros.
    Data { length: u32 },
    /// The bytes are stored; `blocks` more 512-byte units are allocated than before (may be negative). `attr` when the
    /// inode lives in the chunk's shard: the shard has then settled size, times and blocks itself.
    Written { blocks: i64, attr: Option<Attr> },
    /// Ranges with data, `(from, to)`; `next`: where to ask on, if there were too many.
    Extents { ranges: Vec<(u64, u64)>, next: Option<u64> },
    /// The lock that stands in the way, if there is one.
    Conflict(Option<Lock>),
    /// The directory above.
    Parent(Ino),
    /// Space.
    Space(Space),
    /// Status.
    Status(NodeStatus),
    /// Prepared; the attributes of inodes that the parts made or changed, as they will be after a commit.
    Prepared { attrs: Vec<Attr> },
    /// Committed, aborted (or never heard of), or not yet decided.
    Decision(Option<bool>),
    /// The node's wall clock.
    Clock(Time),
    /// Peers, at most `limits::PEERS_PAGE`, and how many there are behind them.
    Peers { peers: Vec<PeerFigures>, left: u32 },
}
