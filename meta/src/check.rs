//! What must not be: findings of one shard, and of all shards together.

use sealfs_proto::ShardId;

use crate::State;

/// Something that contradicts an invariant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Where.
    pub shard: ShardId,
    /// What, with the numbers of the inodes concerned.
    pub text: String,
}

/// Findings that one shard shows by itself.
#[must_use]
pub fn check(state: &State) -> Vec<Finding> {
    let _ = state;
    unimplemented!()
}

/// Findings of a whole cluster at rest (no open transaction): entries without inode, inodes without entry, link counts,
/// parents, cycles.
pub fn check_all<'a>(states: impl IntoIterator<Item = &'a State>) -> Vec<Finding> {
    let _ = states.into_iter().count();
    unimplemented!()
}
