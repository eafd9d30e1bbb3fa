//! A round trip and bulk both ways with every node of a cluster.

use std::time::Duration;

use sealfs_client::{BULK_LEN, Measured, Probed};

use super::Finding;

/// One finding per node; a second one if its clock is off.
pub(crate) fn findings(probed: &[Probed]) -> Vec<Finding> {
    probed.iter().flat_map(of_node).collect()
}

/// Why no node could be probed. `cause`: as the client says it, which sends whoever lacks RDMA here.
pub(crate) fn unreached(cause: &str) -> Finding {
    match cause.strip_prefix("transport rdma: ") {
        Some(cause) => {
            let cause = cause.split("; `sealfs doctor").next().unwrap_or(cause);
            let next =
                "see what the findings of rdma say, and `dmesg`; --transport tcp works without";
            Finding::unusable("cluster", format!("RDMA does not work here: {cause}"), next)
        }
        None => Finding::unusable("cluster", cause, NEXT),
    }
}

fn of_node(node: &Probed) -> Vec<Finding> {
    let what = format!("node {} at {}", node.id, node.address);
    let measured = match &node.result {
        Ok(measured) => measured,
        Err(cause) => {
            return vec![Finding::unusable(&what, cause, NEXT)];
        }
    };
    let transport = node.transport.map_or_else(|| "?".into(), |kind| kind.to_string());
    let mut found = vec![Finding::fine(&what, described(&transport, measured))];
    let ahead_ms = measured.clock_ahead_ns / 1_000_000;
    if ahead_ms.unsigned_abs() > CLOCKS_APART_MS {
        found.push(Finding::degraded(
            &format!("clock of node {}", node.id),
            format!("{ahead_ms} ms ahead of this machine's"),
            "run chrony or ntpd on both: file times would jump",
        ));
    }
    found
}

fn described(transport: &str, measured: &Measured) -> String {
    format!(
        "{transport}, round trip {:.1} us, {} MiB there in {} and back in {}",
        measured.round_trip.as_secs_f64() * 1e6,
        BULK_LEN >> 20,
        rate(measured.sent_in),
        rate(measured.received_in)
    )
}

/// `12.3 ms (1300 MiB/s)`.
fn rate(time: Duration) -> String {
    let seconds = time.as_secs_f64().max(1e-9);
    format!("{:.1} ms ({:.0} MiB/s)", seconds * 1e3, (BULK_LEN >> 20) as f64 / seconds)
}

/// What to do about a node that does not answer.
const NEXT: &str = "see that `sealfs serve` runs there with the transport that is used here, and that no firewall stands between";
/// Programs like make compare times of files that different clients wrote.
const CLOCKS_APART_MS: u64 = 500;

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use sealfs_client::{Choice, Network, probe_nodes};
    use sealfs_proto::{NodeId, TransportKind};

    fn node(result: Result<Measured, String>) -> Probed {
        let transport = Some(TransportKind::Tcp);
        Probed { id: NodeId(1), address: "a:1".into(), transport, result }
    }

    #[test]
    fn a_node_is_described_and_its_clock_compared() {
        let mut measured = Measured {
            round_trip: Duration::from_micros(12),
            sent_in: Duration::from_millis(16),
            received_in: Duration::from_millis(8),
            clock_ahead_ns: 0,
        };
        let found = findings(&[node(Ok(measured))]);
        assert_eq!(found.len(), 1);
        let text = "tcp, round trip 12.0 us, 16 MiB there in 16.0 ms (1000 MiB/s) and back in 8.0 ms (2000 MiB/s)";
        assert_eq!(found[0].text, text);
        measured.clock_ahead_ns = -3_000_000_000;
        assert_eq!(findings(&[node(Ok(measured))])[1].verdict, Verdict::Degraded);
        let found = findings(&[node(Err("connection refused".into()))]);
        assert_eq!(found[0].verdict, Verdict::Unusable);
    }

    #[test]
    fn rdma_that_is_missing_here_is_not_blamed_on_the_nodes() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        std::fs::write(&key, [b'7'; 64]).unwrap();
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        let rdma_device = Some("none9".to_owned());
        let network = Network { choice: Choice::Rdma, rdma_device, ..Network::default() };
        let addresses = crate::cmd::mount::addresses("127.0.0.1:1").unwrap();
        let error = probe_nodes(&addresses, &key, &network, Duration::from_secs(1)).unwrap_err();
        let found = unreached(&error.to_string());
        assert!(found.text.starts_with("RDMA does not work here: "), "{found:?}");
        assert!(
            !found.text.contains("sealfs doctor") && !found.next.contains("serve"),
            "{found:?}"
        );
        assert!(unreached("a:1: connection refused").next.contains("sealfs serve"));
    }
}
