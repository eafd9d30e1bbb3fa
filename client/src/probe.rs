//! Round trips and bulk with every node of a cluster, for `sealfs doctor`. Touches no file.
//!
//! 1. Nodes are probed one after the other, so that one does not slow another down.
//! 2. What comes is checked: bytes that a node did not send are an error, not a rate.

use std::path::Path;
use std::time::Duration;

use sealfs_net::read_key;
use sealfs_proto::{
    Address, Node, NodeId, Reply, Request, ShardId, Time, TransportKind, limits, nodes,
};
use sealfs_ring::Pool;
use sealfs_transport::tasks::join_all;
use sealfs_transport::{Answer, Arena, Ask, Bulk, CallError, Calls, Instant};

use crate::MountError;
use crate::link::{Link, Network, learn_map};

/// A node and how it was to reach.
#[derive(Clone, Debug)]
pub struct Probed {
    /// Which.
    pub id: NodeId,
    /// How the nodes' list names it.
    pub address: String,
    /// With what it was reached.
    pub transport: Option<TransportKind>,
    /// What was measured, or why nothing was.
    pub result: Result<Measured, String>,
}

/// What was measured with one node.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// The median of [`ROUND_TRIPS`] round trips.
    pub round_trip: Duration,
    /// [`BULK_LEN`] bytes to the node.
    pub sent_in: Duration,
    /// [`BULK_LEN`] bytes from the node.
    pub received_in: Duration,
    /// Nanoseconds by which the node's clock is ahead of this machine's; off by half a round trip at most.
    pub clock_ahead_ns: i64,
}

/// Round trips per node.
pub const ROUND_TRIPS: usize = 64;
/// Bytes moved each way, in requests of 1 MiB that are under way at once.
pub const BULK_LEN: usize = 16 << 20;

/// Asks the nodes at `addresses` for the map, then probes every node of it; each step within `timeout`. An error only if no
/// node answers at all: it names each and the cause.
pub fn probe_nodes(
    addresses: &[Address],
    key: &Path,
    network: &Network,
    timeout: Duration,
) -> Result<Vec<Probed>, MountError> {
    let key = read_key(key)?;
    // 0 would mean "for ever".
    let timeout_ms = (timeout.as_millis() as u64).max(1);
    let map = learn_map(&key, network, addresses, timeout_ms)?;
    let link = Link::new(key, network, timeout_ms, POOL_LEN)?;
    link.calls.set_map(&map);
    let probed = map.nodes.iter().map(|node| probe(&link, node, timeout_ms)).collect();
    link.leave();
    probed
}

fn probe(link: &Link, node: &Node, timeout_ms: u64) -> Result<Probed, MountError> {
    // Each step ends by its own timeout, which says more.
    let until = sealfs_ring::now().mono.after_ms(STEPS * (timeout_ms + GRACE_MS));
    let measured =
        link.block_on(until, None, measure(link.calls.clone(), link.pool.clone(), node.id))?;
    let peers = link.calls.peers();
    let peer = peers.iter().find(|peer| peer.node == node.id);
    Ok(Probed {
        id: node.id,
        address: nodes::tcp_address(node).to_owned(),
        transport: peer.and_then(|peer| peer.connected),
        result: measured.unwrap_or_else(|| Err("no answer".into())),
    })
}

async fn measure(calls: Calls, pool: Pool, node: NodeId) -> Result<Measured, String> {
    let text = |error: CallError| error.to_string();
    // The first one connects.
    calls.call(node, Ask::read(ShardId(0), Request::Ping)).await.map_err(text)?;
    let mut trips = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let start = sealfs_ring::now().mono;
        calls.call(node, Ask::read(ShardId(0), Request::Ping)).await.map_err(text)?;
        trips.push(since(start));
    }
    trips.sort_unstable();

    let before = sealfs_ring::now();
    let answer = calls.call(node, probe_of(0)).await.map_err(text)?;
    let half = since(before.mono).as_nanos() as i64 / 2;
    let clock_ahead_ns = match answer.reply {
        Reply::Clock(clock) => nanos(clock) - nanos(before.wall) - half,
        other => return Err(format!("it answered {other:?} to a probe; is its version the same?")),
    };

    let mut slices = Vec::new();
    for _ in 0..CALLS {
        let mut region = pool.take(STEP_LEN).ok_or("no memory for 16 MiB of buffers")?;
        region.bytes_mut().fill(PATTERN);
        slices.push(region.freeze());
    }
    let start = sealfs_ring::now().mono;
    let sent = slices
        .into_iter()
        .map(|slice| calls.call(node, probe_of(0).with_bulk(Bulk::Send(vec![slice]))));
    for answer in join_all(sent.collect::<Vec<_>>()).await {
        answer.map_err(text)?;
    }
    let sent_in = since(start);

    let mut rooms = Vec::new();
    for _ in 0..CALLS {
        let mut region = pool.take(STEP_LEN).ok_or("no memory for 16 MiB of buffers")?;
        region.bytes_mut().fill(PATTERN);
        rooms.push(region);
    }
    let start = sealfs_ring::now().mono;
    let received = rooms.into_iter().map(|room| {
        let ask = probe_of(STEP_LEN as u32).with_bulk(Bulk::Receive(room));
        calls.call(node, ask)
    });
    let answers = join_all(received.collect::<Vec<_>>()).await;
    let received_in = since(start);
    for answer in answers {
        check(&answer.map_err(text)?)?;
    }
    let round_trip = trips[trips.len() / 2];
    Ok(Measured { round_trip, sent_in, received_in, clock_ahead_ns })
}

/// All of the room must have been filled with zeros.
fn check(answer: &Answer) -> Result<(), String> {
    let bytes = answer.region.as_ref().map_or(&[][..], |region| region.bytes());
    if answer.bulk_len as usize != STEP_LEN || bytes.len() != STEP_LEN {
        return Err(format!("{} of {STEP_LEN} bytes have come", answer.bulk_len));
    }
    match bytes.iter().position(|byte| *byte != 0) {
        None => Ok(()),
        Some(at) => Err(format!("byte {at} of a transfer is wrong: the network damages data")),
    }
}

fn probe_of(length: u32) -> Ask {
    Ask::read(ShardId(0), Request::Probe { length })
}

fn since(start: Instant) -> Duration {
    Duration::from_nanos(sealfs_ring::now().mono.0.saturating_sub(start.0))
}

fn nanos(time: Time) -> i64 {
    time.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(time.nanos))
}

/// One request's bulk.
const STEP_LEN: usize = limits::BULK_LEN_MAX as usize;
const CALLS: usize = BULK_LEN / STEP_LEN;
/// What a node cannot have sent.
const PATTERN: u8 = 0x5e;
/// Both ways' buffers, and what pools round down.
const POOL_LEN: usize = 3 * BULK_LEN;
/// Timeouts that a probe may need in a row: to connect, the round trips, each way.
const STEPS: u64 = 4;
/// Beyond the calls' own timeouts, milliseconds.
const GRACE_MS: u64 = 1_000;
