//! What a cluster says of itself, asked once and from outside any mount.

use std::path::Path;
use std::time::Duration;

use sealfs_proto::{ClusterMap, Node, NodeId, NodeStatus, TransportKind, nodes};

use crate::MountError;

/// A cluster as it answered.
#[derive(Clone, Debug)]
pub struct ClusterStatus {
    /// The map, from the first node that answered.
    pub map: ClusterMap,
    /// Every node of the map, in its order.
    pub nodes: Vec<Reached>,
}

/// One node, reached or not.
#[derive(Clone, Debug)]
pub struct Reached {
    /// Which.
    pub id: NodeId,
    /// The address that was tried.
    pub address: String,
    /// With what.
    pub transport: TransportKind,
    /// Its status, or why there is none.
    pub status: Result<NodeStatus, String>,
}

/// Asks the nodes at `addresses` for the map, then every node of it for its status, all at once; each within `timeout`.
/// An error only if no node answers at all: it names each and the cause.
pub fn cluster_status(
    addresses: &[String],
    key: &Path,
    timeout: Duration,
) -> Result<ClusterStatus, MountError> {
    unimplemented!("{addresses:?} {key:?} {timeout:?}")
}

/// The nodes in `text`: a list, or the path of a file that holds one.
pub fn read_nodes(text: &str) -> Result<Vec<Node>, MountError> {
    let list = if nodes::is_list(text) {
        text.to_string()
    } else {
        std::fs::read_to_string(text).map_err(|error| {
            MountError(format!(
                "nodes {text:?}: {error}; give `HOST:PORT,...` or a file with such lines"
            ))
        })?
    };
    let parsed = nodes::parse(&list);
    Ok(parsed.map_err(|error| MountError(format!("nodes {text:?}: {error}")))?.nodes)
}
