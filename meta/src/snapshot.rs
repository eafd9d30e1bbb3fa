//! A shard's state as bytes. Equal states give equal bytes.

use sealfs_proto::{ClusterId, Corrupt, NodeId, ShardId};

use crate::State;

/// Whose snapshot it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// The shard.
    pub shard: ShardId,
    /// Records the state contains.
    pub number: u64,
}

/// A snapshot that was read.
#[derive(Clone, Debug)]
pub struct Snapshot<'a> {
    /// Whose.
    pub header: SnapshotHeader,
    /// The namespace.
    pub state: State,
    /// The chunk store's part, as it was given to [`encode`].
    pub chunks: &'a [u8],
}

/// The bytes of `state`, with the chunk store's own bytes beside it.
#[must_use]
pub fn encode(cluster: ClusterId, node: NodeId, state: &State, chunks: &[u8]) -> Vec<u8> {
    let _ = (cluster, node, state, chunks);
    unimplemented!()
}

/// Reads a snapshot, all of it.
pub fn decode(bytes: &[u8]) -> Result<Snapshot<'_>, Corrupt> {
    let _ = bytes;
    unimplemented!()
}
