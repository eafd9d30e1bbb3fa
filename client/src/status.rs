//! What a cluster says of itself, asked once and from outside any mount.

use std::path::Path;
use std::time::Duration;

use sealfs_proto::{
    Address, ClusterMap, Node, NodeId, NodeStatus, Reply, Request, ShardId, TransportKind, nodes,
};
use sealfs_transport::tasks::join_all;
use sealfs_transport::{Answer, Ask, CallError};

use crate::MountError;
use crate::key::read_key;
use crate::link::{Link, Network, SMALL_POOL_LEN, learn_map};

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
    /// How the nodes' list names it.
    pub address: String,
    /// With what it was reached.
    pub transport: Option<TransportKind>,
    /// Its status, or why there is none.
    pub status: Result<NodeStatus, String>,
}

/// Asks the nodes at `addresses` for the map, then every node of it for its status, all at once; each within `timeout`.
/// An error only if no node answers at all: it names each and the cause.
pub fn cluster_status(
    addresses: &[Address],
    key: &Path,
    network: &Network,
    timeout: Duration,
) -> Result<ClusterStatus, MountError> {
    let key = read_key(key)?;
    // 0 would mean "for ever".
    let timeout_ms = (timeout.as_millis() as u64).max(1);
    let map = learn_map(&key, network, addresses, timeout_ms)?;
    let link = Link::new(key, network, timeout_ms, SMALL_POOL_LEN)?;
    link.calls.set_map(&map);
    let ask = |node: &Node| link.calls.call(node.id, Ask::read(ShardId(0), Request::Status));
    let all = join_all(map.nodes.iter().map(ask).collect::<Vec<_>>());
    // The calls end by their own timeout, which says more.
    let until = sealfs_ring::now().mono.after_ms(timeout_ms + GRACE_MS);
    let answers = link.block_on(until, None, all)?.unwrap_or_default();
    let answers = answers.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
    let peers = link.calls.peers();
    let transport = |id| peers.iter().find(|peer| peer.node == id)?.connected;
    let reached = |(node, answer): (&Node, _)| reached(node, transport(node.id), answer);
    let nodes = map.nodes.iter().zip(answers).map(reached).collect();
    link.leave();
    Ok(ClusterStatus { map, nodes })
}

fn reached(
    node: &Node,
    transport: Option<TransportKind>,
    answer: Option<Result<Answer, CallError>>,
) -> Reached {
    let status = match answer {
        // Ours is over when anybody reads this.
        Some(Ok(Answer { reply: Reply::Status(status), .. })) => {
            Ok(NodeStatus { sessions: status.sessions.saturating_sub(1), ..status })
        }
        Some(Ok(answer)) => Err(format!("it answered {:?}, which is no status", answer.reply)),
        Some(Err(error)) => Err(error.to_string()),
        None => Err("no answer".into()),
    };
    Reached { id: node.id, address: nodes::tcp_address(node).to_owned(), transport, status }
}

/// Beyond the calls' own timeout, milliseconds.
const GRACE_MS: u64 = 1_000;

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
