//! A record: one change of a shard's state, with everything that replay needs.
//!
//! A record is logical: names, inodes, sizes; never a block, a pointer or a clock of this node. What a change of a chunk
//! does to the chunk store stands beside the record in the same journal entry, not in it.
//!
//! 1. Applying a record needs nothing but the state before it.
//! 2. [`KIND_VERSION`] changes with the layout of [`Record`]; the journal stores it with every entry.

use sealfs_proto::{
    Attr, Entry, Ino, Part, Prepare, Reply, Sequence, SessionId, ShardId, Time, TxId, Xattr,
};
use wincode::{SchemaRead, SchemaWrite};

/// Version of the layout of [`Record`], stored with every journal entry.
pub const KIND_VERSION: u8 = 2;

/// Whose change it is. Applying a record with an origin keeps the reply until a later record's watermark passes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Origin {
    /// The session.
    pub session: SessionId,
    /// The change's number in its session.
    pub sequence: Sequence,
    /// Replies of this session below it have arrived and are forgotten.
    pub watermark: Sequence,
}

/// One change of a shard's state.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Record {
    /// Whose change; `None` for the node's own.
    pub origin: Option<Origin>,
    /// Wall time that the change uses.
    pub now: Time,
    /// What changes.
    pub change: Change,
}

/// What the reply to a record's request is made of, once applied.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Answer {
    /// `Reply::Done`.
    Done,
    /// `Reply::Entry` of this entry; attributes if the inode is in this shard.
    Entry(Entry),
    /// `Reply::Attr` of this inode.
    Attr(Ino),
    /// `Reply::Written`, with the inode's attributes.
    Written(Ino),
}

impl Answer {
    /// An entry of inode 0 becomes that of the inode that the change made; one of an inode that `attrs` tells of gets its
    /// kind. Attributes are those of a new inode only: others may change before the reply is read.
    pub(crate) fn filled_in(self, attrs: &[Attr]) -> Self {
        let Self::Entry(entry) = &self else { return self };
        let new = entry.ino == Ino(0);
        match attrs.iter().find(|attr| new || attr.ino == entry.ino) {
            Some(attr) => Self::Entry(Entry {
                ino: attr.ino,
                kind: attr.kind,
                attr: new.then(|| attr.clone()),
            }),
            None => self,
        }
    }
}

/// New values of attributes; what is `None` stays. ctime and the change counter always move.
#[derive(Clone, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct AttrChange {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size. With `cut`, what lies at and beyond it must be discarded before it may grow again.
    pub size: Option<u64>,
    /// Whether data may lie beyond the new size.
    pub cut: bool,
    /// Access time.
    pub atime: Option<Time>,
    /// Modification time.
    pub mtime: Option<Time>,
    /// Settlements made under an older generation no longer set the size, or an mtime that was set.
    pub next_generation: bool,
    /// The access ACL that the new mode brings along.
    pub acl: Option<Vec<u8>>,
    /// File capabilities are lost (the owner or the data changed).
    pub drop_capability: bool,
}

/// Which times a settlement moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Times {
    /// None: no data changed.
    None,
    /// mtime and ctime.
    Written,
    /// ctime: data changed, but mtime is what somebody has set it to.
    MtimeSet,
}

/// What changes. Numbers of variants are stored: new ones go to the end.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Change {
    /// A change of names within this shard; inode numbers are filled in.
    Parts {
        /// In this order.
        parts: Vec<Part>,
        /// What is answered.
        answer: Answer,
    },
    /// A file without a name, held by one open.
    Unnamed {
        /// The inode.
        attr: Attr,
        /// Its extended attributes.
        xattrs: Vec<Xattr>,
    },
    /// New attributes.
    Attr {
        /// Whose.
        ino: Ino,
        /// Which.
        set: AttrChange,
    },
    /// The durable upper limit of offsets that may hold data grows.
    Raise {
        /// Of which file.
        ino: Ino,
        /// To this; it never falls.
        bound: u64,
    },
    /// What writes did to a file's size, times and blocks. For a write of chunk 0 it stands in the entry of that write.
    Settle {
        /// Which file.
        ino: Ino,
        /// The data ends at least here.
        size: u64,
        /// More 512-byte units are allocated.
        blocks: i64,
        /// Which times move.
        times: Times,
        /// What is answered.
        answer: Answer,
    },
    /// An append took the file's end.
    Reserve {
        /// Which file.
        ino: Ino,
        /// So many bytes.
        length: u32,
        /// The bound that this needs.
        bound: u64,
    },
    /// An extended attribute is set.
    XattrSet {
        /// Of which inode.
        ino: Ino,
        /// The attribute.
        xattr: Xattr,
        /// The mode that an access ACL brings along.
        mode: Option<u32>,
    },
    /// An extended attribute is removed.
    XattrRemove {
        /// Of which inode.
        ino: Ino,
        /// Its name.
        name: Vec<u8>,
        /// The mode that an access ACL brings along which mode bits alone can say.
        mode: Option<u32>,
    },
    /// A share of a transaction is prepared: its keys are held. Inode numbers are filled in.
    Prepared(Prepare),
    /// The coordinator's decision to commit, with its own parts. Kept until forgotten.
    Decided {
        /// The transaction.
        tx: TxId,
        /// The coordinator's own share.
        parts: Vec<Part>,
        /// Who must hear of it.
        others: Vec<ShardId>,
        /// What is answered.
        answer: Answer,
    },
    /// A participant learned the decision.
    Resolved {
        /// The transaction.
        tx: TxId,
        /// Whether its parts are carried out.
        commit: bool,
    },
    /// All participants have learned the decision.
    Forgotten {
        /// The transaction.
        tx: TxId,
    },
    /// Everything beyond a file's cut is discarded on all nodes.
    CutDone {
        /// Which file.
        ino: Ino,
        /// 512-byte units allocated more than before (usually negative).
        blocks: i64,
    },
    /// An inode without links and opens goes: at once if nothing of it lies in other shards, else when `Reclaimed`.
    Reclaim {
        /// Which.
        ino: Ino,
    },
    /// All nodes have dropped the chunks of the inode.
    Reclaimed {
        /// Which.
        ino: Ino,
    },
    /// Numbers up to here may be drawn, once this record is on the device.
    Range(crate::Range),
    /// A session began (`alive`) or ended; an ended one's replies are forgotten.
    Session {
        /// Which.
        session: SessionId,
        /// Whether it lives.
        alive: bool,
    },
    /// The shard's chunks changed as the entry says beside this record; only the reply is kept here.
    Chunk {
        /// What was answered.
        reply: Reply,
    },
}
