//! What can be asked of a node.
//!
//! The shard that a request is for travels in the header; a request that names a directory goes to the directory's
//! shard, one that names an inode to the inode's, one for a chunk to the chunk's, and requests "of a node" concern all
//! shards of the node (the header's shard is not looked at).

#![allow(missing_docs, reason = "the fields of a variant are described by the variant's text")]

use wincode::{SchemaRead, SchemaWrite};

use crate::{
    Access, Attr, Ino, Kind, Lock, Sequence, SessionId, SetAttr, Time, TxId, Who, Xattr, XattrFlag,
};

/// What a new inode is, beyond a directory.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum New {
    /// An empty file.
    File,
    /// A link to this target.
    Symlink(Vec<u8>),
    /// A pipe, socket or device: its kind and device number.
    Special(Kind, u32),
}

/// renameat2(2)'s flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum RenameFlag {
    /// Replaces what is there.
    Replace,
    /// EEXIST if the target exists.
    NoReplace,
    /// Swaps the two.
    Exchange,
}

/// One request. "Change" means: carries (session, sequence), is executed exactly once, and is answered after its
/// durability point.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Request {
    // ---- names: to the directory's shard ----
    /// Finds `name`. Reply `Entry`; attributes only when the inode lives in the same shard.
    Lookup { who: Who, dir: Ino, name: Vec<u8> },
    /// Change: a new inode in the directory's shard and its entry; `open` counts one open of the session. Reply `Entry`
    /// with attributes. EEXIST if there is one.
    Create { who: Who, dir: Ino, name: Vec<u8>, new: New, mode: u32, umask: u32, open: bool },
    /// Change: a file with no name, opened once by the session. Reply `Entry`.
    CreateUnnamed { who: Who, dir: Ino, mode: u32, umask: u32 },
    /// Change: a directory; its inode lives in shard `directory_shard(dir, name)`. Reply `Entry` with attributes.
    Mkdir { who: Who, dir: Ino, name: Vec<u8>, mode: u32, umask: u32 },
    /// Change: removes an entry that is no directory. Reply `Done`.
    Unlink { who: Who, dir: Ino, name: Vec<u8> },
    /// Change: removes an empty directory. Reply `Done`.
    Rmdir { who: Who, dir: Ino, name: Vec<u8> },
    /// Change: renames; to the source directory's shard. Reply `Done`.
    Rename {
        who: Who,
        dir: Ino,
        name: Vec<u8>,
        target_dir: Ino,
        target_name: Vec<u8>,
        flag: RenameFlag,
    },
    /// Change: one more name for an inode that is no directory; to the new name's directory's shard. Reply `Entry`.
    Link { who: Who, ino: Ino, dir: Ino, name: Vec<u8> },
    /// Entries behind `cookie` (0: from the start), at most `bytes` of them as encoded; `attributes`: with those of
    /// inodes in this shard. Reply `List`.
    List { who: Who, dir: Ino, cookie: u64, bytes: u32, attributes: bool },

    // ---- an inode: to its shard ----
    /// Reply `Attr`.
    Stat { ino: Ino },
    /// Change. `opened`: the caller holds the file open for writing, so that a size needs no further permission. A
    /// shrinking size is answered after every node has discarded what lies beyond it. Reply `Attr`.
    SetAttr { who: Who, ino: Ino, set: SetAttr, opened: bool },
    /// Reply `Bytes`.
    ReadLink { ino: Ino },
    /// Change: counts one open of the session after checking `access`; `truncate` also cuts the file to 0 (O_TRUNC).
    /// Reply `Attr`.
    Open { who: Who, ino: Ino, access: Access, truncate: bool },
    /// Change: gives `opens` opens of the session back. Reply `Done`.
    Close { ino: Ino, opens: u32 },
    /// Change: `bound` becomes at least this; durable to the device when answered. Reply `Attr`.
    Raise { ino: Ino, bound: u64 },
    /// Change: what writes to chunks 1.. did: data ends at least at `size`, `blocks` more 512-byte units are allocated;
    /// `wrote`: the data changed, so that times move. Made under `generation`; if the inode's is newer, an mtime that was
    /// set stays, and the shard asks the chunk holders for the end of the data. Reply `Attr`.
    Settle { ino: Ino, generation: u64, size: u64, blocks: i64, wrote: bool },
    /// Change: appends: reserves `length` bytes at the end of the file. Reply `Offset`.
    Reserve { ino: Ino, length: u32 },
    /// Reply `Bytes`, or ENODATA.
    XattrGet { who: Who, ino: Ino, name: Vec<u8> },
    /// Reply `Names`.
    XattrList { who: Who, ino: Ino },
    /// Change. Reply `Done`. Setting system.posix_acl_access also sets the mode's group bits (`clear_sgid`: and clears
    /// S_ISGID, FUSE_SETXATTR_ACL_KILL_SGID).
    XattrSet { who: Who, ino: Ino, xattr: Xattr, flag: XattrFlag, clear_sgid: bool },
    /// Change. Reply `Done`, or ENODATA.
    XattrRemove { who: Who, ino: Ino, name: Vec<u8> },
    /// Change (of memory only): takes, converts or gives up a lock. With `wait` the answer comes when it is granted.
    /// Reply `Done`, EAGAIN without `wait`, EINTR after `LockCancel`, EDEADLK when it would close a circle of waits
    /// that this shard can see.
    Lock { ino: Ino, lock: Lock, wait: bool },
    /// What stands in the way of `lock`. Reply `Conflict`.
    LockTest { ino: Ino, lock: Lock },
    /// Change (of memory only): ends the wait of this session's `Lock` request `waiting`. Reply `Done` whether or not it
    /// still waited.
    LockCancel { ino: Ino, waiting: Sequence },
    /// The directory that holds this directory. Reply `Parent`.
    Parent { ino: Ino },

    // ---- a chunk: to its shard ----
    /// `length` bytes at `offset` within the chunk. Reply `Data`.
    Read { ino: Ino, index: u64, offset: u32, length: u32 },
    /// Change: the frame's bulk replaces the bytes at `offset` within the chunk. For index 0 this also settles size and
    /// times. Reply `Written`.
    Write { ino: Ino, index: u64, offset: u32 },

    // ---- of a node: all its shards' chunks of one inode ----
    /// Change: the bytes `from..to` of the file read as zeros from now on, and whole blocks of them are free; with `to` =
    /// `u64::MAX` the data ends at `from`. Reply `Written`.
    Discard { ino: Ino, chunk_size: u32, from: u64, to: u64 },
    /// Change: space for `from..to`; what has none yet reads as zeros. Reply `Written`.
    Allocate { ino: Ino, chunk_size: u32, from: u64, to: u64 },
    /// Ranges with data within `from..to`, ascending, at most `limits::EXTENTS_MAX`. Reply `Extents`.
    Extents { ino: Ino, chunk_size: u32, from: u64, to: u64 },
    /// The end of the last byte written of this inode, 0 if there is none. Reply `Offset`.
    End { ino: Ino, chunk_size: u32 },

    // ---- of a node ----
    /// Everything that this node acknowledged before is on the device when answered. Reply `Done`.
    Sync,
    /// Reply `Space`.
    Space,
    /// Reply `Status`.
    Status,
    /// Keeps the session's lease. Reply `Done`.
    Ping,
    /// After a reconnect: what the session still holds on this node. The last one says `last`. Reply `Done`; ESTALE per
    /// inode is found by using it.
    Claim { claims: Vec<Claim>, last: bool },
    /// The session ends now: its opens and locks go. Reply `Done`.
    Leave,

    // ---- between nodes ----
    /// A part of a change over several shards: checks it, journals *prepared*, holds its keys. Reply `Prepared`, EAGAIN
    /// if a key is held.
    Prepare(Prepare),
    /// The decision. Reply `Done`, also if it was known already.
    Resolve { tx: TxId, commit: bool },
    /// What became of `tx`; to the coordinator's shard. Reply `Decision`.
    Decision { tx: TxId },
    /// Takes (or gives back) the cluster-wide lock under which a directory moves to another parent; to the root's shard.
    /// Reply to taking it: `Offset`, the grant's number, the same as long as the grant is unbroken (the lock is memory only);
    /// EAGAIN if another has it. Reply to giving it back: `Done`.
    RenameLock { tx: TxId, take: bool },

    // ---- of a node ----
    /// Moves bytes and touches no file: takes the frame's bulk, and sends `length` zeros (at most `limits::BULK_LEN_MAX`) into
    /// the room that the frame offers. Reply `Clock`.
    Probe { length: u32 },
    /// The figures of core `core`'s peers, behind the first `skip` of them. Reply `Peers`, without the peer that asks.
    Peers { core: u16, skip: u32 },
}

/// What a session holds of one inode.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Claim {
    /// The inode.
    pub ino: Ino,
    /// How many opens.
    pub opens: u32,
    /// Locks that are held (not those waited for; they are asked for again).
    pub locks: Vec<Lock>,
}

/// One shard's share of a change over several shards.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Prepare {
    /// The change.
    pub tx: TxId,
    /// The coordinator has forgotten all its changes below this number: a participant need not remember that it
    /// carried them out.
    pub oldest: u64,
    /// The client whose change it is, for the logs.
    pub session: SessionId,
    /// The coordinator's present, which all parts use.
    pub now: Time,
    /// What to do, in this order.
    pub parts: Vec<Part>,
}

/// The elementary changes of a namespace. A change of names is a list of parts; parts of one shard are applied in one
/// record, parts of several shards by a transaction.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Part {
    /// Makes the inode `attr` describes (its number is drawn by the shard when prepared); `parent` for a directory.
    NewInode { attr: Attr, parent: Ino, target: Vec<u8>, xattrs: Vec<Xattr> },
    /// Adds the entry; EEXIST if the name is taken. `who` must be able to write and pass the directory. In a coordinator's
    /// own parts inode 0 is the one that another shard's `NewInode` makes.
    AddEntry { who: Who, dir: Ino, name: Vec<u8>, ino: Ino, kind: Kind },
    /// Removes the entry, which must be `ino`; ENOENT else. `who` must be able to write and pass the directory.
    RemoveEntry { who: Who, dir: Ino, name: Vec<u8>, ino: Ino, kind: Kind },
    /// Makes the entry, which is `ino`, name `to` instead (a rename that replaces, or one side of an exchange).
    SwapEntry { who: Who, dir: Ino, name: Vec<u8>, ino: Ino, kind: Kind, to: Ino, to_kind: Kind },
    /// One link more (EMLINK at the limit, ENOENT if it has none left).
    AddLink { ino: Ino },
    /// One link less; the last one leaves the inode to reclaim after its last close. `sticky`: the directory has the
    /// sticky bit and is not the caller's: EPERM unless this uid owns the inode.
    DropLink { ino: Ino, sticky: Option<u32> },
    /// The directory must be empty (ENOTEMPTY) and ends. `sticky` as above.
    EndDirectory { ino: Ino, sticky: Option<u32> },
    /// The inode was renamed: ctime moves; a directory gets the new parent. `sticky` as above; `who` must be able to
    /// write a directory whose parent changes.
    Moved { who: Who, ino: Ino, parent: Option<Ino>, sticky: Option<u32> },
}
