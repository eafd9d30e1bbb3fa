//! The cluster map: which nodes there are, how to reach them, and how many shards they share.

use wincode::{SchemaRead, SchemaWrite};
use xxhash_rust::xxh64::xxh64;

use crate::{ClusterId, Epoch, NodeId, encode, limits};

/// A way to reach a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub enum TransportKind {
    /// TCP.
    Tcp,
    /// RDMA over reliable-connected queue pairs.
    Rdma,
}

impl core::fmt::Display for TransportKind {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Rdma => "rdma",
        })
    }
}

/// Where a node listens.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Address {
    /// With what.
    pub transport: TransportKind,
    /// `host:port`, `1.2.3.4:port` or `[v6]:port`.
    pub text: String,
}

/// A node of the map.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its share of the shards, relative to the others'; 1..=`limits::WEIGHT_MAX`.
    pub weight: u32,
    /// How to reach it, best first.
    pub addresses: Vec<Address>,
}

impl Node {
    /// Where it listens with `kind`.
    #[must_use]
    pub fn address(&self, kind: TransportKind) -> Option<&str> {
        let found = self.addresses.iter().find(|address| address.transport == kind);
        found.map(|address| address.text.as_str())
    }
}

/// The map. Nodes are sorted by id; [`ClusterMap::check`] holds.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct ClusterMap {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Grows with every change.
    pub epoch: Epoch,
    /// log2 of the number of shards, fixed at format.
    pub shards_log2: u8,
    /// Bytes per chunk of files in directories that say nothing else.
    pub chunk_size: u32,
    /// The nodes, ascending by id.
    pub nodes: Vec<Node>,
}

/// A map that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cluster map: {0}")]
pub struct MapError(pub String);

impl ClusterMap {
    /// Number of shards.
    #[must_use]
    pub const fn shards(&self) -> u32 {
        1 << self.shards_log2
    }

    /// The node with this id.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.binary_search_by_key(&id, |node| node.id).ok().map(|at| &self.nodes[at])
    }

    /// XXH64 of all that placement follows from (cluster, shards, chunk size, ids and weights), and so not of epoch and
    /// addresses: maps with the same hash may meet.
    #[must_use]
    pub fn placement_hash(&self) -> u64 {
        let bare = |node: &Node| Node { addresses: Vec::new(), ..*node };
        let nodes = self.nodes.iter().map(bare).collect();
        xxh64(&encode(&Self { epoch: Epoch(0), nodes, ..*self }), 0)
    }

    /// Whether the map obeys its rules; a map from a file, a disk or a peer is checked before it is used.
    pub fn check(&self) -> Result<(), MapError> {
        let bad = |text: String| Err(MapError(text));
        if self.shards_log2 > 16 || self.shards() < limits::SHARDS_MIN {
            return bad(format!("2^{} shards; 2^12 to 2^16 are possible", self.shards_log2));
        }
        if !self.chunk_size.is_power_of_two()
            || !(limits::CHUNK_SIZE_MIN..=limits::CHUNK_SIZE_MAX).contains(&self.chunk_size)
        {
            return bad(format!(
                "chunk size {} is no power of two from 64 KiB to 1 MiB",
                self.chunk_size
            ));
        }
        if self.nodes.is_empty() || self.nodes.len() > limits::NODES_MAX {
            return bad(format!(
                "{} nodes; 1 to {} are possible",
                self.nodes.len(),
                limits::NODES_MAX
            ));
        }
        if let Some(pair) = self.nodes.windows(2).find(|pair| pair[0].id >= pair[1].id) {
            return bad(format!(
                "nodes {} and {}: ids must be unique and ascending",
                pair[0].id, pair[1].id
            ));
        }
        match self.nodes.iter().find(|node| node.weight == 0 || node.weight > limits::WEIGHT_MAX) {
            Some(node) => {
                bad(format!("node {}: weight {} is not 1 to 1,000,000", node.id, node.weight))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(ids: &[u16]) -> ClusterMap {
        let nodes = ids.iter().map(|&id| Node { id: NodeId(id), weight: 1, addresses: vec![] });
        ClusterMap {
            cluster: ClusterId([1; 16]),
            epoch: Epoch(1),
            shards_log2: 12,
            chunk_size: 1 << 20,
            nodes: nodes.collect(),
        }
    }

    #[test]
    fn a_map_is_refused_with_what_is_wrong() {
        assert_eq!(map(&[1, 2, 9]).check(), Ok(()));
        assert!(map(&[2, 1]).check().unwrap_err().to_string().contains("nodes 2 and 1"));
        assert!(map(&[]).check().is_err());
        let weightless = ClusterMap {
            nodes: vec![Node { id: NodeId(3), weight: 0, addresses: vec![] }],
            ..map(&[])
        };
        assert!(weightless.check().unwrap_err().to_string().contains("node 3"));
        assert!(ClusterMap { shards_log2: 3, ..map(&[1]) }.check().is_err());
        assert!(ClusterMap { chunk_size: 65_537, ..map(&[1]) }.check().is_err());
    }

    #[test]
    fn a_node_is_found_by_id() {
        let one = map(&[1, 5, 9]);
        assert_eq!(one.node(NodeId(5)).map(|node| node.id), Some(NodeId(5)));
        assert_eq!(one.node(NodeId(4)), None);
    }

    #[test]
    fn addresses_and_epochs_do_not_change_the_placement_hash_and_all_else_does() {
        let one = map(&[1, 5, 9]);
        let mut moved = ClusterMap { epoch: Epoch(2), ..one.clone() };
        moved.nodes[1].addresses =
            vec![Address { transport: TransportKind::Tcp, text: "a:1".into() }];
        assert_eq!(moved.placement_hash(), one.placement_hash());
        let mut heavier = one.clone();
        heavier.nodes[1].weight = 2;
        let others = [
            heavier,
            map(&[1, 5]),
            ClusterMap { shards_log2: 13, ..one.clone() },
            ClusterMap { chunk_size: 1 << 16, ..one.clone() },
            ClusterMap { cluster: ClusterId([2; 16]), ..one.clone() },
        ];
        assert!(others.iter().all(|other| other.placement_hash() != one.placement_hash()));
    }
}
