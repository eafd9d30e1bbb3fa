//! What tests of this crate share: inodes, and a small cluster whose shards are driven by hand.

use sealfs_proto::{Attr, Ino, Kind, Sequence, SessionId, Time};

use crate::{Asked, Facts, Inode, Origin};

/// A time for tests.
pub(crate) const fn at(seconds: i64) -> Time {
    Time { seconds, nanos: 7 }
}

/// A file whose attributes `change` has changed.
pub(crate) fn file(change: impl FnOnce(&mut Attr)) -> Inode {
    let mut attr = Attr {
        ino: Ino(9),
        kind: Kind::File,
        mode: 0o644,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        chunk_size: 1 << 20,
        atime: at(1),
        mtime: at(1),
        ctime: at(1),
        change: 1,
        generation: 1,
        bound: 1 << 20,
    };
    change(&mut attr);
    Inode::new(attr, Ino(0), Vec::new(), Vec::new())
}

/// Request `sequence` of session 1, at second `sequence`, in a cluster of 4 shards.
pub(crate) fn asked(sequence: u64) -> Asked {
    let session = SessionId(1);
    let origin = Origin { session, sequence: Sequence(sequence), watermark: Sequence(sequence) };
    Asked { origin, now: at(sequence as i64), shards: 4, facts: Facts::default() }
}
