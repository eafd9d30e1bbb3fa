//! What a cluster says of itself, asked from outside any mount, and what a mount says of itself.
//!
//! A mount is asked through an extended attribute of its root, [`STATUS_XATTR`], which the client answers itself: whoever finds
//! the mount finds the answer, there is no file to lose or to guard, and the kernel tells who asks. Pages are names:
//! `user.sealfs.status.64` is what comes behind the first 64 peers.
//!
//! 1. Only root and the user who has mounted get an answer.
//! 2. A page fits into an extended attribute, however many nodes there are (`sealfs_proto::PeerFigures`).

use std::path::Path;
use std::time::Duration;

use sealfs_net::read_key;
use sealfs_proto::{
    Address, ClusterMap, Node, NodeId, NodeStatus, PeerFigures, Reply, Request, ShardId,
    TransportKind, decode, encode, limits, nodes,
};
use sealfs_transport::tasks::join_all;
use sealfs_transport::{Answer, Ask, CallError, Calls, payload_of_process};
use wincode::{SchemaRead, SchemaWrite};

use crate::link::{Link, Network, SMALL_POOL_LEN, learn_map};
use crate::{MountError, point};

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
    /// Its peers, each with the core that it is connected to; none if they were not asked for.
    pub peers: Vec<(u16, PeerFigures)>,
}

/// A mount as it answered.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct MountStatus {
    /// The version of its program.
    pub version: String,
    /// The cluster.
    pub cluster: String,
    /// `--transport`.
    pub transport: String,
    /// `--poll`.
    pub poll: String,
    /// `--memory`, bytes.
    pub memory: u64,
    /// Bytes of payload by what was done to them, by name.
    pub payload: Vec<(String, u64)>,
    /// The nodes.
    pub peers: Vec<PeerFigures>,
    /// Nodes behind these.
    left: u32,
}

/// Asks the nodes at `addresses` for the map, then every node of it for its status and, `with_peers`, its peers, all at once;
/// each within `timeout`. An error only if no node answers at all: it names each and the cause.
pub fn cluster_status(
    addresses: &[Address],
    key: &Path,
    network: &Network,
    timeout: Duration,
    with_peers: bool,
) -> Result<ClusterStatus, MountError> {
    let key = read_key(key)?;
    // 0 would mean "for ever".
    let timeout_ms = (timeout.as_millis() as u64).max(1);
    let map = learn_map(&key, network, addresses, timeout_ms)?;
    let link = Link::new(key, network, timeout_ms, SMALL_POOL_LEN)?;
    link.calls.set_map(&map);
    let ask = |node: &Node| ask(link.calls.clone(), node.id, with_peers);
    let all = join_all(map.nodes.iter().map(ask).collect::<Vec<_>>());
    // The calls end by their own timeout, which says more.
    let until = sealfs_ring::now().mono.after_ms(PAGES_IN_TIME * timeout_ms + GRACE_MS);
    let answers = link.block_on(until, None, all)?.unwrap_or_default();
    let unanswered = std::iter::repeat_with(|| (Err("no answer".to_owned()), Vec::new()));
    let peers = link.calls.peers();
    let transport = |id| peers.iter().find(|peer| peer.node == id)?.connected;
    let reached = |(node, (status, peers)): (&Node, _)| {
        let address = nodes::tcp_address(node).to_owned();
        Reached { id: node.id, address, transport: transport(node.id), status, peers }
    };
    let nodes = map.nodes.iter().zip(answers.into_iter().chain(unanswered)).map(reached).collect();
    link.leave();
    Ok(ClusterStatus { map, nodes })
}

type Told = (Result<NodeStatus, String>, Vec<(u16, PeerFigures)>);

async fn ask(calls: Calls, node: NodeId, with_peers: bool) -> Told {
    let answer = calls.call(node, Ask::read(ShardId(0), Request::Status)).await;
    let status = match answer {
        // Ours is over when anybody reads this.
        Ok(Answer { reply: Reply::Status(status), .. }) => {
            NodeStatus { sessions: status.sessions.saturating_sub(1), ..status }
        }
        Ok(answer) => {
            let what = format!("it answered {:?}, which is no status", answer.reply);
            return (Err(what), Vec::new());
        }
        Err(error) => return (Err(error.to_string()), Vec::new()),
    };
    let cores = if with_peers { status.cores.min(u32::from(u16::MAX)) as u16 } else { 0 };
    let mut all = Vec::new();
    for core in 0..cores {
        match peers_of(&calls, node, core).await {
            Ok(peers) => all.extend(peers.into_iter().map(|peer| (core, peer))),
            Err(error) => return (Err(format!("its peers: {error}")), all),
        }
    }
    (Ok(status), all)
}

async fn peers_of(calls: &Calls, node: NodeId, core: u16) -> Result<Vec<PeerFigures>, CallError> {
    let mut all = Vec::new();
    for page in 0..PAGES_MAX {
        let request = Request::Peers { core, skip: page * limits::PEERS_PAGE as u32 };
        match calls.call(node, Ask::read(ShardId(0), request)).await?.reply {
            Reply::Peers { peers, left } => {
                all.extend(peers);
                if left == 0 {
                    break;
                }
            }
            other => {
                let cause = format!("it answered {other:?}, which are no peers");
                return Err(CallError::Corrupt { node, cause });
            }
        }
    }
    Ok(all)
}

/// What the sealfs that is mounted at `mountpoint` says of itself. Asks no node.
pub fn mount_status(mountpoint: &Path) -> Result<MountStatus, MountError> {
    let shown = mountpoint.display();
    let path = std::fs::canonicalize(mountpoint)
        .map_err(|error| MountError(format!("{shown}: {error}")))?;
    if !point::is_mounted(&path) {
        return Err(MountError(format!(
            "no sealfs is mounted at {shown}; /proc/mounts shows where. To ask nodes name them: HOST:PORT"
        )));
    }
    let mut status = page(&path, 0)?;
    while status.left > 0 {
        let next = page(&path, status.peers.len())?;
        if next.peers.is_empty() {
            break;
        }
        status.peers.extend(next.peers);
        status.left = next.left;
    }
    Ok(status)
}

fn page(mountpoint: &Path, skip: usize) -> Result<MountStatus, MountError> {
    let failed = |cause: String| {
        let shown = mountpoint.display();
        MountError(format!("the mount at {shown} does not tell its status: {cause}"))
    };
    let mut value = vec![0; limits::XATTR_VALUE_LEN_MAX];
    let name = format!("{STATUS_XATTR}.{skip}");
    let len = rustix::fs::getxattr(mountpoint, name, &mut value).map_err(|error| {
        failed(match error {
            rustix::io::Errno::ACCESS => "ask as root or as the user who has mounted it".into(),
            other => other.to_string(),
        })
    })?;
    decode::<MountStatus>("status", &value[..len])
        .map_err(|_| failed("it is served by another version of sealfs".into()))
}

/// The root's extended attribute with a mount's status, see the module's text.
const STATUS_XATTR: &str = "user.sealfs.status";

/// Whether `name` is that of a page of the status, and how many peers come before it.
pub(crate) fn status_page(name: &[u8]) -> Option<usize> {
    match name.strip_prefix(STATUS_XATTR.as_bytes())? {
        b"" => Some(0),
        rest => std::str::from_utf8(rest.strip_prefix(b".")?).ok()?.parse().ok(),
    }
}

/// That page, as a mount tells it.
pub(crate) fn encode_page(calls: &Calls, network: &Network, memory: u64, skip: usize) -> Vec<u8> {
    let (peers, left) = calls.figures(skip, None);
    encode(&MountStatus {
        version: env!("CARGO_PKG_VERSION").into(),
        cluster: calls.map().map(|map| map.cluster.to_string()).unwrap_or_default(),
        transport: network.choice.to_string(),
        poll: network.poll.to_string(),
        memory,
        payload: payload_of_process().named().map(|(name, bytes)| (name.to_owned(), bytes)).into(),
        peers,
        left: left as u32,
    })
}

/// Beyond the calls' own timeout, milliseconds.
const GRACE_MS: u64 = 1_000;
/// What a status takes at most, in timeouts of one call.
const PAGES_IN_TIME: u64 = 4;
/// Pages of one core's peers: connected ones and those that are gone.
const PAGES_MAX: u32 = (2 * limits::CONNECTIONS_MAX / limits::PEERS_PAGE) as u32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_status_own_names_are_taken_for_it() {
        assert_eq!(status_page(b"user.sealfs.status"), Some(0));
        assert_eq!(status_page(b"user.sealfs.status.128"), Some(128));
        for other in [&b"user.sealfs.statusx"[..], b"user.sealfs.status.x", b"user.sealfs", b""] {
            assert_eq!(status_page(other), None);
        }
    }
}
