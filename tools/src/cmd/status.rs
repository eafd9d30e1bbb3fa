//! `sealfs status`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sealfs_client::{ClusterStatus, MountStatus, Reached};
use sealfs_proto::PeerFigures;

use crate::Failure;
use crate::peers::{self, bytes};

/// Shows a cluster and who is connected to its nodes, or a mount and the nodes that it is connected to: by which transport
/// and device, and how healthy.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Some or all nodes (`HOST:PORT,...` or the nodes file), or the directory of a mount.
    #[arg(value_name = "NODES|MOUNTPOINT")]
    target: String,
    /// The cluster's key file; needed with NODES.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    #[command(flatten)]
    network: super::NetworkArgs,
    /// Seconds to wait for a node.
    #[arg(long, default_value_t = 5)]
    timeout: u64,
    /// The nodes without their peers.
    #[arg(long)]
    brief: bool,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if Path::new(&args.target).is_dir() {
        return of_mount(args);
    }
    let nodes = super::mount::addresses(&args.target)?;
    let key = args.key.as_ref().ok_or("to ask NODES give their key: --key FILE")?;
    let timeout = Duration::from_secs(args.timeout);
    let network = args.network.network()?;
    let status = sealfs_client::cluster_status(&nodes, key, &network, timeout, !args.brief)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&json(&status))?);
    } else {
        print!("{}", table(&status));
        status.nodes.iter().for_each(|node| print!("{}", peers_of(node)));
    }
    let missing = status.nodes.iter().filter(|node| node.status.is_err()).count();
    if missing > 0 {
        return Err(format!("{missing} of {} nodes cannot be reached", status.nodes.len()).into());
    }
    Ok(())
}

fn of_mount(args: &Args) -> Result<(), Failure> {
    let status = sealfs_client::mount_status(Path::new(&args.target))?;
    let peers: Vec<(u16, PeerFigures)> =
        status.peers.iter().map(|peer| (0, peer.clone())).collect();
    let MountStatus { version, cluster, transport, poll, memory, payload, .. } = status;
    if args.json {
        let value = serde_json::json!({
            "mountpoint": args.target,
            "version": version,
            "cluster": cluster,
            "transport": transport,
            "poll": poll,
            "memory": memory,
            "payload": serde_json::Value::Object(counters(&payload)),
            "peers": peers::json(&peers),
        });
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        println!("mount {}  cluster {cluster}  version {version}", args.target);
        println!("asked for transport {transport}, poll {poll}, memory {}", bytes(memory));
        let shown = |(name, count): &(String, u64)| {
            format!("{} {}", name.trim_start_matches("payload_").replace('_', " "), bytes(*count))
        };
        println!("payload: {}", payload.iter().map(shown).collect::<Vec<_>>().join(", "));
        print!("{}", peers::table(&peers));
    }
    Ok(())
}

fn peers_of(node: &Reached) -> String {
    if node.peers.is_empty() {
        return String::new();
    }
    format!("node {} and its peers\n{}", node.id, peers::table(&node.peers))
}

/// The table a person reads, also printed by `sealfs local`.
pub(crate) fn table(status: &ClusterStatus) -> String {
    let map = &status.map;
    let mut text = format!(
        "cluster {}  epoch {}  {} shards  {} nodes\n",
        map.cluster,
        map.epoch,
        map.shards(),
        map.nodes.len()
    );
    text.push_str("node  address                transport  version  cores  shards       size       free  sessions\n");
    for node in &status.nodes {
        text.push_str(&row(node));
    }
    text
}

fn row(node: &Reached) -> String {
    let transport = transport(node);
    let start = format!("{:4}  {:21}  {transport:9}  ", node.id.0, node.address);
    match &node.status {
        Ok(status) => format!(
            "{start}{:7}  {:5}  {:6}  {:>9}  {:>9}  {:8}\n",
            status.version,
            status.cores,
            status.shards,
            bytes(status.space.total),
            bytes(status.space.available),
            status.sessions
        ),
        Err(cause) => format!("{start}unreachable: {cause}\n"),
    }
}

/// With what it was reached; `-`: not at all.
fn transport(node: &Reached) -> String {
    node.transport.map_or_else(|| "-".into(), |kind| kind.to_string())
}

pub(crate) fn json(status: &ClusterStatus) -> serde_json::Value {
    let nodes: Vec<_> = status.nodes.iter().map(node_json).collect();
    serde_json::json!({
        "cluster": status.map.cluster.to_string(),
        "epoch": status.map.epoch.0,
        "shards": status.map.shards(),
        "chunk_size": status.map.chunk_size,
        "nodes": nodes,
    })
}

fn node_json(node: &Reached) -> serde_json::Value {
    let mut value = serde_json::json!({
        "id": node.id.0,
        "address": node.address,
        "transport": node.transport.map(|kind| kind.to_string()),
        "reachable": node.status.is_ok(),
    });
    value["peers"] = peers::json(&node.peers);
    match &node.status {
        Err(cause) => value["error"] = cause.to_string().into(),
        Ok(status) => {
            value["version"] = status.version.clone().into();
            value["cores"] = status.cores.into();
            value["shards"] = status.shards.into();
            value["sessions"] = status.sessions.into();
            value["up_ms"] = status.up_ms.into();
            value["space"] = serde_json::json!({
                "total": status.space.total,
                "free": status.space.free,
                "available": status.space.available,
                "inodes": status.space.inodes,
            });
            value["durability"] = durability(&status.counters).into();
            value["counters"] = serde_json::Value::Object(counters(&status.counters));
        }
    }
    value
}

/// What the node runs with: process, power or scratch; nothing if it is too old to say.
pub(crate) fn durability(counters: &[(String, u64)]) -> Option<&str> {
    counters.iter().find_map(|(name, _)| name.strip_prefix("durability_"))
}

fn counters(named: &[(String, u64)]) -> serde_json::Map<String, serde_json::Value> {
    named.iter().map(|(name, count)| (name.clone(), (*count).into())).collect()
}
