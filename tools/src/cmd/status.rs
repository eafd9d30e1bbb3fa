//! `sealfs status`.

use std::path::PathBuf;
use std::time::Duration;

use sealfs_client::{ClusterStatus, Reached};

use crate::Failure;

/// Shows a cluster.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Some or all nodes: `HOST:PORT,...` or the nodes file.
    nodes: String,
    /// The cluster's key file.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    network: super::NetworkArgs,
    /// Seconds to wait for a node.
    #[arg(long, default_value_t = 5)]
    timeout: u64,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let nodes = super::mount::addresses(&args.nodes)?;
    let timeout = Duration::from_secs(args.timeout);
    let status =
        sealfs_client::cluster_status(&nodes, &args.key, &args.network.network()?, timeout)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&json(&status))?);
    } else {
        print!("{}", table(&status));
    }
    let missing = status.nodes.iter().filter(|node| node.status.is_err()).count();
    if missing > 0 {
        return Err(format!("{missing} of {} nodes cannot be reached", status.nodes.len()).into());
    }
    Ok(())
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

fn json(status: &ClusterStatus) -> serde_json::Value {
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
            let counters =
                status.counters.iter().map(|(name, count)| (name.clone(), (*count).into()));
            value["counters"] = serde_json::Value::Object(counters.collect());
        }
    }
    value
}

/// `12.3 GiB`.
fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1_024.0 && unit + 1 < units.len() {
        value /= 1_024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_in_the_largest_unit_that_fits() {
        assert_eq!(
            [bytes(0), bytes(1_023), bytes(1 << 20), bytes(3 << 39)],
            ["0 B", "1023 B", "1.0 MiB", "1.5 TiB"]
        );
    }
}
