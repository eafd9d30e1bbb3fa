//! Peers of a mount or of a node, as text and as JSON.

use sealfs_proto::{Path, Peer, PeerFigures};

/// What is known of peers, a line each and a second one for what needs words.
pub(crate) fn table(peers: &[(u16, PeerFigures)]) -> String {
    let mut text = format!(
        "  {:21}  {:21}  {:9}  {:>7}  {:>9}  {:>10}  {:>8}  {:>7}  {:>21}  {:>21}\n",
        "peer",
        "address",
        "transport",
        "credits",
        "in flight",
        "reconnects",
        "failures",
        "retries",
        "by RDMA out/in",
        "by frames out/in"
    );
    for (_, peer) in peers {
        text.push_str(&row(peer));
    }
    text
}

fn row(peer: &PeerFigures) -> String {
    let path = peer.path.as_ref();
    let transport = path.map_or_else(|| "-".into(), |path| path.transport.to_string());
    let credits = path.map_or_else(
        || "-".into(),
        |Path { credits, credits_max, .. }| format!("{credits}/{credits_max}"),
    );
    let traffic = &peer.traffic;
    let mut text = format!(
        "  {:21}  {:21}  {transport:9}  {credits:>7}  {:9}  {:10}  {:8}  {:7}  {:>21}  {:>21}\n",
        name(&peer.peer),
        peer.address,
        peer.in_flight,
        peer.reconnects(),
        peer.failures,
        peer.resent,
        format!("{} / {}", bytes(traffic.rdma_sent), bytes(traffic.rdma_received)),
        format!("{} / {}", bytes(traffic.bytes_sent), bytes(traffic.bytes_received)),
    );
    if let Some(rdma) = path.and_then(|path| path.rdma.as_ref()) {
        text.push_str(&format!(
            "      device {}, port {}, GID index {} ({}), MTU {}, queues of {} to send and {} to receive\n",
            rdma.device,
            rdma.port,
            rdma.gid_index,
            rdma.gid_kind,
            rdma.mtu,
            rdma.send_depth,
            rdma.receive_depth
        ));
    }
    match path {
        None if peer.connections == 0 && peer.failures == 0 => {
            text.push_str("      not connected: nothing was asked of it yet\n");
        }
        None => text.push_str(&format!("      not connected: {}\n", peer.last_error)),
        Some(_) => {}
    }
    text
}

fn name(peer: &Peer) -> String {
    match peer {
        Peer::Client { session, .. } => format!("client {:.12}", format!("{:016x}", session.0)),
        Peer::Node { node, .. } => format!("node {node}"),
    }
}

/// Every figure, under names that stay.
pub(crate) fn json(peers: &[(u16, PeerFigures)]) -> serde_json::Value {
    peers.iter().map(|(core, peer)| one(*core, peer)).collect()
}

fn one(core: u16, figures: &PeerFigures) -> serde_json::Value {
    let (kind, id, endpoint) = match figures.peer {
        Peer::Client { session, endpoint } => ("client", format!("{:016x}", session.0), endpoint),
        Peer::Node { node, endpoint } => ("node", node.to_string(), endpoint),
    };
    let traffic = &figures.traffic;
    let mut value = serde_json::json!({
        "peer": kind,
        "id": id,
        "endpoint": endpoint,
        "core": core,
        "accepted": figures.accepted,
        "address": figures.address,
        "connected": figures.path.is_some(),
        "in_flight": figures.in_flight,
        "connections": figures.connections,
        "reconnects": figures.reconnects(),
        "failures": figures.failures,
        "retries": figures.resent,
        "frames_sent": traffic.frames_sent,
        "frames_received": traffic.frames_received,
        "frame_bytes_sent": traffic.bytes_sent,
        "frame_bytes_received": traffic.bytes_received,
        "rdma_bytes_sent": traffic.rdma_sent,
        "rdma_bytes_received": traffic.rdma_received,
    });
    if !figures.last_error.is_empty() {
        value["last_error"] = figures.last_error.clone().into();
    }
    if let Some(path) = &figures.path {
        value["transport"] = path.transport.to_string().into();
        value["credits"] = path.credits.into();
        value["credits_max"] = path.credits_max.into();
        if let Some(rdma) = &path.rdma {
            value["device"] = rdma.device.clone().into();
            value["port"] = rdma.port.into();
            value["gid_index"] = rdma.gid_index.into();
            value["gid_type"] = rdma.gid_kind.clone().into();
            value["mtu"] = rdma.mtu.into();
            value["send_queue_depth"] = rdma.send_depth.into();
            value["receive_queue_depth"] = rdma.receive_depth.into();
        }
    }
    value
}

/// `12.3 GiB`.
pub(crate) fn bytes(count: u64) -> String {
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
    use sealfs_proto::{NodeId, RdmaPath, Traffic, TransportKind};

    fn peer() -> PeerFigures {
        let rdma = RdmaPath {
            device: "mlx5_0".into(),
            port: 1,
            gid_index: 3,
            gid_kind: "RoCE v2".into(),
            mtu: 4_096,
            send_depth: 128,
            receive_depth: 32,
        };
        let transport = TransportKind::Rdma;
        PeerFigures {
            peer: Peer::Node { node: NodeId(2), endpoint: 0 },
            accepted: false,
            address: "10.0.0.2:7000".into(),
            path: Some(Path { transport, credits: 31, credits_max: 32, rdma: Some(rdma) }),
            connections: 3,
            failures: 2,
            resent: 5,
            in_flight: 1,
            traffic: Traffic { rdma_sent: 1 << 30, bytes_sent: 1 << 20, ..Traffic::default() },
            last_error: String::new(),
        }
    }

    #[test]
    fn all_that_an_administrator_asks_for_is_in_text_and_json() {
        let text = table(&[(0, peer())]);
        let wanted = [
            "node 2",
            "10.0.0.2:7000",
            "rdma",
            "31/32",
            "device mlx5_0",
            "port 1",
            "GID index 3 (RoCE v2)",
            "MTU 4096",
            "128 to send",
            "32 to receive",
            "1.0 GiB / 0 B",
            "1.0 MiB / 0 B",
        ];
        wanted.iter().for_each(|wanted| assert!(text.contains(wanted), "{wanted}: {text}"));
        let value = json(&[(7, peer())]);
        for (name, expected) in [
            ("core", 7),
            ("port", 1),
            ("gid_index", 3),
            ("mtu", 4_096),
            ("send_queue_depth", 128),
            ("receive_queue_depth", 32),
            ("credits", 31),
            ("credits_max", 32),
            ("retries", 5),
            ("reconnects", 2),
            ("failures", 2),
            ("rdma_bytes_sent", 1 << 30),
            ("frame_bytes_sent", 1 << 20),
        ] {
            assert_eq!(value[0][name], expected, "{name}");
        }
        assert_eq!(
            (&value[0]["device"], &value[0]["gid_type"]),
            (&"mlx5_0".into(), &"RoCE v2".into())
        );
    }

    #[test]
    fn a_peer_that_is_not_connected_says_why() {
        let gone =
            PeerFigures { path: None, last_error: "10.0.0.2:7000: refused".into(), ..peer() };
        assert!(table(&[(0, gone.clone())]).contains("not connected: 10.0.0.2:7000: refused"));
        let value = json(&[(0, gone.clone())]);
        assert_eq!(value[0]["connected"], false);
        assert_eq!(value[0]["last_error"], "10.0.0.2:7000: refused");
        let unused = PeerFigures { connections: 0, failures: 0, ..gone };
        assert!(table(&[(0, unused)]).contains("nothing was asked of it yet"));
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit_that_fits() {
        assert_eq!(
            [bytes(0), bytes(1_023), bytes(1 << 20), bytes(3 << 39)],
            ["0 B", "1023 B", "1.0 MiB", "1.5 TiB"]
        );
    }
}
