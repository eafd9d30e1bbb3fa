//! What a request is: whether it changes something, and where it goes. Whoever asks, serves or checks asks here, so that no
//! two of them can differ.
//!
//! 1. [`Request::is_change`] and [`Request::who`] are total: a new request does not compile before it is decided.

use crate::{Ino, Request, ShardId, Who, chunk_shard};

impl Request {
    /// Whether it changes something: then it carries (session, sequence) and is executed exactly once.
    #[must_use]
    pub const fn is_change(&self) -> bool {
        match self {
            Self::Create { .. }
            | Self::CreateUnnamed { .. }
            | Self::Mkdir { .. }
            | Self::Unlink { .. }
            | Self::Rmdir { .. }
            | Self::Rename { .. }
            | Self::Link { .. }
            | Self::SetAttr { .. }
            | Self::Open { .. }
            | Self::Close { .. }
            | Self::Raise { .. }
            | Self::Settle { .. }
            | Self::Reserve { .. }
            | Self::XattrSet { .. }
            | Self::XattrRemove { .. }
            | Self::Lock { .. }
            | Self::LockCancel { .. }
            | Self::Write { .. }
            | Self::Discard { .. }
            | Self::Allocate { .. } => true,
            Self::Lookup { .. }
            | Self::List { .. }
            | Self::Stat { .. }
            | Self::ReadLink { .. }
            | Self::XattrGet { .. }
            | Self::XattrList { .. }
            | Self::LockTest { .. }
            | Self::Parent { .. }
            | Self::Read { .. }
            | Self::Extents { .. }
            | Self::End { .. }
            | Self::Sync
            | Self::Space
            | Self::Status
            | Self::Ping
            | Self::Probe { .. }
            | Self::Peers { .. }
            | Self::Claim { .. }
            | Self::Leave
            | Self::Prepare(_)
            | Self::Resolve { .. }
            | Self::Decision { .. }
            | Self::RenameLock { .. } => false,
        }
    }

    /// The program that asks; `None` where an earlier open has authorised the request, or none is needed.
    #[must_use]
    pub const fn who(&self) -> Option<&Who> {
        match self {
            Self::Lookup { who, .. }
            | Self::Create { who, .. }
            | Self::CreateUnnamed { who, .. }
            | Self::Mkdir { who, .. }
            | Self::Unlink { who, .. }
            | Self::Rmdir { who, .. }
            | Self::Rename { who, .. }
            | Self::Link { who, .. }
            | Self::List { who, .. }
            | Self::SetAttr { who, .. }
            | Self::Open { who, .. }
            | Self::XattrGet { who, .. }
            | Self::XattrList { who, .. }
            | Self::XattrSet { who, .. }
            | Self::XattrRemove { who, .. } => Some(who),
            Self::Stat { .. }
            | Self::ReadLink { .. }
            | Self::Close { .. }
            | Self::Raise { .. }
            | Self::Settle { .. }
            | Self::Reserve { .. }
            | Self::Lock { .. }
            | Self::LockTest { .. }
            | Self::LockCancel { .. }
            | Self::Parent { .. }
            | Self::Read { .. }
            | Self::Write { .. }
            | Self::Discard { .. }
            | Self::Allocate { .. }
            | Self::Extents { .. }
            | Self::End { .. }
            | Self::Sync
            | Self::Space
            | Self::Status
            | Self::Ping
            | Self::Claim { .. }
            | Self::Leave
            | Self::Prepare(_)
            | Self::Resolve { .. }
            | Self::Decision { .. }
            | Self::RenameLock { .. }
            | Self::Probe { .. }
            | Self::Peers { .. } => None,
        }
    }

    /// The inode whose attributes, locks or bytes it is about; `None` for names in a directory.
    #[must_use]
    pub const fn inode(&self) -> Option<Ino> {
        match self {
            Self::Stat { ino }
            | Self::SetAttr { ino, .. }
            | Self::ReadLink { ino }
            | Self::Open { ino, .. }
            | Self::Close { ino, .. }
            | Self::Raise { ino, .. }
            | Self::Settle { ino, .. }
            | Self::Reserve { ino, .. }
            | Self::XattrGet { ino, .. }
            | Self::XattrList { ino, .. }
            | Self::XattrSet { ino, .. }
            | Self::XattrRemove { ino, .. }
            | Self::Lock { ino, .. }
            | Self::LockTest { ino, .. }
            | Self::LockCancel { ino, .. }
            | Self::Parent { ino }
            | Self::Read { ino, .. }
            | Self::Write { ino, .. }
            | Self::Discard { ino, .. }
            | Self::Allocate { ino, .. }
            | Self::Extents { ino, .. }
            | Self::End { ino, .. } => Some(*ino),
            _ => None,
        }
    }

    /// The shard that it belongs to in a cluster of `shards`, where the request itself says so; `None` for requests of a
    /// node, and for those between nodes that any shard may get.
    #[must_use]
    pub fn shard(&self, shards: u32) -> Option<ShardId> {
        match self {
            Self::Lookup { dir, .. }
            | Self::Create { dir, .. }
            | Self::CreateUnnamed { dir, .. }
            | Self::Mkdir { dir, .. }
            | Self::Unlink { dir, .. }
            | Self::Rmdir { dir, .. }
            | Self::Rename { dir, .. }
            | Self::Link { dir, .. }
            | Self::List { dir, .. } => Some(dir.shard()),
            Self::Read { ino, index, .. } | Self::Write { ino, index, .. } => {
                Some(chunk_shard(*ino, *index, shards))
            }
            Self::Discard { .. }
            | Self::Allocate { .. }
            | Self::Extents { .. }
            | Self::End { .. } => None,
            Self::Decision { tx } => Some(tx.coordinator),
            Self::RenameLock { .. } => Some(Ino::ROOT.shard()),
            other => other.inode().map(Ino::shard),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_to_their_chunks_shard_and_everything_else_of_a_file_to_its_own() {
        let (ino, shards) = (Ino::new(ShardId(5), 77), 4_096);
        assert_eq!(Request::Stat { ino }.shard(shards), Some(ShardId(5)));
        let write = |index| Request::Write { ino, index, offset: 0 };
        assert_eq!(write(0).shard(shards), Some(ShardId(5)));
        assert_eq!(write(9).shard(shards), Some(chunk_shard(ino, 9, shards)));
        assert_ne!(write(9).shard(shards), Some(ShardId(5)));
        let end = Request::End { ino, chunk_size: 1 << 20 };
        assert_eq!((end.shard(shards), end.inode()), (None, Some(ino)), "all of a node's shards");
        assert_eq!((Request::Sync.shard(shards), Request::Sync.inode()), (None, None));
        assert!(write(0).is_change() && !Request::Stat { ino }.is_change());
    }
}
