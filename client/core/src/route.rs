//! Which node serves what: pure arithmetic over the cluster map.
//!
//! 1. The pieces of a range are ascending, do not overlap, and together are the range.
//! 2. [`Routes::holders`] names every node that may hold a chunk of the range, perhaps more, never fewer.

use std::collections::BTreeSet;

use sealfs_proto::{ClusterMap, Ino, NodeId, Placement, ShardId, chunk_shard};

/// The map and the placement that follows from it.
#[derive(Debug)]
pub(crate) struct Routes {
    placement: Placement,
    nodes: Vec<NodeId>,
}

/// The part of a byte range that lies in one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Which chunk.
    pub(crate) index: u64,
    /// First byte within the chunk.
    pub(crate) offset: u32,
    /// Bytes.
    pub(crate) len: u32,
    /// Where the part begins within the range.
    pub(crate) at: usize,
}

impl Routes {
    /// Places the shards of `map`, which has been checked.
    pub(crate) fn new(map: &ClusterMap) -> Self {
        let nodes = map.nodes.iter().map(|node| node.id).collect();
        Self { placement: Placement::new(map), nodes }
    }

    /// All nodes, ascending.
    pub(crate) fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// Number of shards.
    pub(crate) fn shards(&self) -> u32 {
        self.placement.shards()
    }

    /// The node of a shard. An inode number from elsewhere may name a shard that is none: it is taken modulo, and the
    /// node refuses it.
    pub(crate) fn node(&self, shard: ShardId) -> NodeId {
        let shard = ShardId((u32::from(shard.0) % self.placement.shards()) as u16);
        self.placement.node(shard).expect("every shard below the number of shards has a node")
    }

    /// The shard of a chunk.
    pub(crate) fn chunk(&self, ino: Ino, index: u64) -> ShardId {
        chunk_shard(ino, index, self.placement.shards())
    }

    /// The nodes that may hold chunks of the bytes `from..to` of a file. Cost: a hash per chunk, up to a few per node;
    /// a longer range is on all nodes.
    pub(crate) fn holders(&self, ino: Ino, chunk_size: u32, from: u64, to: u64) -> Vec<NodeId> {
        if from >= to {
            return Vec::new();
        }
        let chunk_size = u64::from(chunk_size);
        let (first, last) = (from / chunk_size, (to - 1) / chunk_size);
        if last - first >= 4 * self.nodes.len() as u64 {
            return self.nodes.clone();
        }
        let holders: BTreeSet<NodeId> =
            (first..=last).map(|index| self.node(self.chunk(ino, index))).collect();
        holders.into_iter().collect()
    }
}

/// Cuts the `len` bytes at `offset` of a file at its chunks' borders. `offset + len` does not overflow.
pub(crate) fn parts(chunk_size: u32, offset: u64, len: usize) -> Vec<Part> {
    let chunk = u64::from(chunk_size);
    let mut parts = Vec::with_capacity(len / chunk_size as usize + 2);
    let mut at = 0;
    while at < len {
        let position = offset + at as u64;
        let within = position % chunk;
        let room = (chunk - within).min((len - at) as u64);
        parts.push(Part { index: position / chunk, offset: within as u32, len: room as u32, at });
        at += room as usize;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use sealfs_proto::{ClusterId, Epoch, Node};

    fn routes(nodes: u16) -> Routes {
        let nodes = (1..=nodes).map(|id| Node { id: NodeId(id), weight: 1, addresses: vec![] });
        Routes::new(&ClusterMap {
            cluster: ClusterId([1; 16]),
            epoch: Epoch(1),
            shards_log2: 12,
            chunk_size: 65_536,
            nodes: nodes.collect(),
        })
    }

    #[test]
    fn parts_are_cut_at_chunk_borders_and_make_up_the_range() {
        assert!(parts(100, 7, 0).is_empty());
        assert_eq!(parts(100, 150, 50), [Part { index: 1, offset: 50, len: 50, at: 0 }]);
        for (offset, len) in [(0, 1), (0, 100), (0, 101), (99, 2), (99, 202), (1_000, 350)] {
            let mut position = offset;
            for part in parts(100, offset, len) {
                assert_eq!(part.index * 100 + u64::from(part.offset), position);
                assert_eq!(offset + part.at as u64, position);
                assert!(part.len > 0 && part.offset + part.len <= 100);
                position += u64::from(part.len);
            }
            assert_eq!(position, offset + len as u64);
        }
    }

    #[test]
    fn the_largest_file_can_be_cut() {
        let end = sealfs_proto::limits::FILE_SIZE_MAX;
        let last = parts(1 << 20, end - 3, 3);
        assert_eq!((last.len(), last[0].len), (1, 3));
    }

    #[test]
    fn holders_are_all_nodes_with_a_chunk_in_the_range() {
        let routes = routes(5);
        let ino = Ino::new(ShardId(77), 9);
        assert!(routes.holders(ino, 65_536, 5, 5).is_empty());
        assert_eq!(routes.holders(ino, 65_536, 0, 65_536), [routes.node(ino.shard())]);
        for (from, to) in [(0, 65_537), (65_535, 200_000), (1 << 20, 9 << 20), (0, u64::MAX)] {
            let holders = routes.holders(ino, 65_536, from, to);
            for index in (from / 65_536..=(to - 1) / 65_536).take(1_000) {
                assert!(holders.contains(&routes.node(routes.chunk(ino, index))));
            }
        }
    }

    #[test]
    fn a_shard_that_is_none_is_still_some_nodes_to_refuse() {
        let routes = routes(3);
        assert_eq!(routes.node(ShardId(65_535)), routes.node(ShardId(4_095)));
    }
}
