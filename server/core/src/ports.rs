//! What a core needs of the world besides the network: a disk and its sibling cores.

use sealfs_proto::ShardId;
use sealfs_transport::{Region, Slice};

/// One of a node's pinned threads, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreId(pub u16);

/// What a core asks of its disk. Volume offsets and lengths are multiples of the block size.
#[derive(Debug)]
pub enum DiskOp {
    /// Fills the region's first `len` bytes from the volume.
    Read {
        /// Byte in the volume.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Comes back with the completion.
        region: Region,
    },
    /// Writes the slices, one behind the other, to the volume.
    Write {
        /// Byte in the volume.
        offset: u64,
        /// The bytes; dropped with the completion.
        bytes: Vec<Slice>,
    },
    /// Completed writes to the volume become durable on the device.
    SyncVolume,
    /// Appends whole entries to this core's journal. Appends are carried out in order.
    Append {
        /// As `sealfs_meta::journal` has encoded them.
        bytes: Vec<u8>,
    },
    /// Completed appends become durable on the device.
    SyncJournal,
    /// Replaces the snapshot of a shard: temporary file, sync, rename, sync of the directory. `None`: the shard is empty
    /// and needs no file.
    Snapshot {
        /// Whose.
        shard: ShardId,
        /// As `sealfs_meta::snapshot` has encoded it, in pieces that follow each other.
        bytes: Option<Vec<Vec<u8>>>,
    },
    /// Entries of this core's journal below `position` are in snapshots: segments that hold nothing else may go.
    Cut {
        /// Position in the journal, see `sealfs_meta::journal`.
        position: u64,
    },
}

/// A completed operation.
#[derive(Debug)]
pub enum DiskDone {
    /// The region of a read, filled.
    Read(Region),
    /// Anything else.
    Done,
}

/// An operation that failed. A failed read or volume write concerns its caller; a failed append or sync of the journal
/// ends the process (DESIGN section 5).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {cause}")]
pub struct DiskError {
    /// What was tried, with the file and offset.
    pub what: String,
    /// What the system said.
    pub cause: String,
}

/// The disk as one core sees it: the node's volume and its own journal.
pub trait Disk {
    /// Begins `op`; its completion carries `id`.
    fn submit(&mut self, id: u64, op: DiskOp);
    /// The next completion.
    fn poll(&mut self) -> Option<(u64, Result<DiskDone, DiskError>)>;
}

/// Bounded messages between the cores of a node. `M` is the core's own mail type.
pub trait Mailbox<M> {
    /// Sends to a sibling; gives the mail back when its box is full (the core keeps it and takes no new client requests
    /// until it could be delivered).
    fn send(&mut self, to: CoreId, mail: M) -> Result<(), M>;
    /// The next mail for this core, and who sent it.
    fn poll(&mut self) -> Option<(CoreId, M)>;
}
