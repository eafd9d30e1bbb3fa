//! Where things live: shard -> node by weighted, bounded rendezvous hashing; inode, entry and chunk -> shard by XXH64.
//!
//! A shard goes to the node with the highest score `-weight / log2(hash)` (Schindelhauer and Schomaker, "Weighted
//! distributed hash tables", 2005) whose load is still below 1.1 times its weighted share (Mirrokni, Thorup and
//! Zadimoghaddam, "Consistent hashing with bounded loads", 2016). log2 is computed in integers, so that every platform
//! finds the same node.
//!
//! 1. No node holds more than `ceil(1.1 x share)` shards.
//! 2. Adding one node to N moves at most `1.3 / (N + 1)` of the shards (measured by a test, not proven).
//! 3. The result does not depend on the order of a list: nodes are ordered by id.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use xxhash_rust::xxh64::xxh64;

use crate::{ClusterMap, Ino, NodeId, ShardId};

/// Every shard's node, computed once per map. Memory: two bytes per shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    nodes: Vec<NodeId>,
}

impl Placement {
    /// Places the shards of `map`, which must have passed [`ClusterMap::check`]. Cost: shards x nodes hashes.
    #[must_use]
    pub fn new(map: &ClusterMap) -> Self {
        let bins: Vec<(u64, u32)> =
            map.nodes.iter().map(|node| (u64::from(node.id.0), node.weight)).collect();
        let shards: Vec<u64> = (0..u64::from(map.shards())).collect();
        let nodes = spread(&shards, &bins).into_iter().map(|bin| map.nodes[bin].id).collect();
        Self { nodes }
    }

    /// The primary of `shard`; `None` if the cluster has no such shard.
    #[must_use]
    pub fn node(&self, shard: ShardId) -> Option<NodeId> {
        self.nodes.get(usize::from(shard.0)).copied()
    }

    /// Number of shards.
    #[must_use]
    pub fn shards(&self) -> u32 {
        self.nodes.len() as u32
    }

    /// The shards whose primary is `node`, ascending.
    pub fn shards_of(&self, node: NodeId) -> impl Iterator<Item = ShardId> + '_ {
        (0_u32..)
            .zip(&self.nodes)
            .filter(move |(_, owner)| **owner == node)
            .map(|(shard, _)| ShardId(shard as u16))
    }
}

/// For each item the index of its bin, where a bin is (stable id, weight >= 1): bounded by 1.1 times the weighted share.
/// Also spreads a node's shards over its cores. Panics if `bins` is empty.
#[must_use]
pub fn spread(items: &[u64], bins: &[(u64, u32)]) -> Vec<usize> {
    assert!(!bins.is_empty(), "there is at least one bin");
    let total: u128 = bins.iter().map(|(_, weight)| u128::from(*weight)).sum();
    let caps: Vec<usize> = bins
        .iter()
        .map(|(_, weight)| {
            ((items.len() as u128 * u128::from(*weight) * 11).div_ceil(total * 10)) as usize
        })
        .collect();
    // Deferred acceptance: every item proposes to its bins from the best down, a full bin keeps those that want it most.
    // Unlike first come, first served, the result depends on no order and little moves when a bin is added.
    let mut held: Vec<BinaryHeap<Reverse<(u128, usize)>>> = vec![BinaryHeap::new(); bins.len()];
    for first in 0..items.len() {
        let mut proposer = first;
        let mut below = None;
        loop {
            let (wish, bin) = best_below(items[proposer], bins, below);
            held[bin].push(Reverse((wish, proposer)));
            if held[bin].len() <= caps[bin] {
                break;
            }
            let Reverse((wish, refused)) = held[bin].pop().expect("it was just filled");
            proposer = refused;
            below = Some((wish, bin));
        }
    }
    let mut placed = vec![0; items.len()];
    for (bin, items) in held.iter().enumerate() {
        items.iter().for_each(|Reverse((_, item))| placed[*item] = bin);
    }
    placed
}

/// The bin with the highest score for `item` among those ranked below `below`.
fn best_below(item: u64, bins: &[(u64, u32)], below: Option<(u128, usize)>) -> (u128, usize) {
    let scores = bins.iter().enumerate().map(|(at, bin)| (score(item, *bin), at));
    scores
        .filter(|candidate| below.is_none_or(|limit| *candidate < limit))
        .max()
        .expect("the caps add up to more than the items, so that some bin accepts")
}

/// The shard of a new directory: by its parent's inode and its name, so that paths are hashed to servers.
#[must_use]
pub fn directory_shard(parent: Ino, name: &[u8], shards: u32) -> ShardId {
    ShardId((xxh64(name, parent.0 ^ SEED) % u64::from(shards)) as u16)
}

/// The shard of a chunk: the inode's own for chunk 0, so that a small file is one node; hashed for the others.
#[must_use]
pub fn chunk_shard(ino: Ino, index: u64, shards: u32) -> ShardId {
    if index == 0 { ino.shard() } else { ShardId((pair(ino.0, index) % u64::from(shards)) as u16) }
}

/// A directory's order: XXH64(name) >> 1, so that the readdir cookie is a positive off_t.
#[must_use]
pub fn name_hash(name: &[u8]) -> u64 {
    xxh64(name, 0) >> 1
}

/// Higher wins: `weight / -log2(hash / 2^64)` in fixed point.
fn score(item: u64, (id, weight): (u64, u32)) -> u128 {
    (u128::from(weight) << 96) / u128::from(minus_log2(pair(item, id)))
}

/// `-log2((hash + 1) / 2^64)` with 40 fractional bits, at least 1.
fn minus_log2(hash: u64) -> u64 {
    const FRACTION_BITS: u32 = 40;
    let value = hash.max(1);
    let integer = 63 - value.leading_zeros();
    // The mantissa in [1, 2) with 63 fractional bits; squaring it yields log2's next bit each time.
    let mut mantissa = u128::from(value) << (63 - integer);
    let mut fraction = 0_u64;
    for _ in 0..FRACTION_BITS {
        mantissa = (mantissa * mantissa) >> 63;
        fraction <<= 1;
        if mantissa >> 64 != 0 {
            mantissa >>= 1;
            fraction |= 1;
        }
    }
    let log2 = (u64::from(integer) << FRACTION_BITS) | fraction;
    ((64 << FRACTION_BITS) - log2).max(1)
}

fn pair(a: u64, b: u64) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&a.to_le_bytes());
    bytes[8..].copy_from_slice(&b.to_le_bytes());
    xxh64(&bytes, SEED)
}

/// "sealfs" and a version: changing it moves everything.
const SEED: u64 = u64::from_le_bytes(*b"sealfs01");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ClusterId, Epoch, Node};

    fn map(weights: &[(u16, u32)]) -> ClusterMap {
        let nodes =
            weights.iter().map(|&(id, weight)| Node { id: NodeId(id), weight, addresses: vec![] });
        ClusterMap {
            cluster: ClusterId([0; 16]),
            epoch: Epoch(1),
            shards_log2: 12,
            chunk_size: 1 << 20,
            nodes: nodes.collect(),
        }
    }

    /// As many shards as the rule asks for at 16 cores a node.
    fn even(count: u16) -> Placement {
        let shards_log2 =
            (64 * 16 * u32::from(count)).next_power_of_two().clamp(4_096, 65_536).ilog2();
        let map = map(&(1..=count).map(|id| (id, 100)).collect::<Vec<_>>());
        Placement::new(&ClusterMap { shards_log2: shards_log2 as u8, ..map })
    }

    fn checksum(placement: &Placement) -> u64 {
        let bytes: Vec<u8> = placement.nodes.iter().flat_map(|node| node.0.to_le_bytes()).collect();
        xxh64(&bytes, 0)
    }

    #[test]
    fn no_node_holds_more_than_its_bounded_share() {
        for weights in [
            vec![(1, 1), (2, 1), (3, 1)],
            vec![(1, 1), (2, 2), (7, 5)],
            (1..=100).map(|id| (id, 3)).collect(),
        ] {
            let map = map(&weights);
            let placement = Placement::new(&map);
            let total: u64 = weights.iter().map(|&(_, weight)| u64::from(weight)).sum();
            for &(id, weight) in &weights {
                let held = placement.shards_of(NodeId(id)).count() as u64;
                let share = 4_096 * u64::from(weight) * 11;
                assert!(held * total * 10 <= share + total * 10, "node {id} holds {held}");
                assert!(held > 0, "node {id} holds nothing");
            }
        }
    }

    #[test]
    fn one_more_node_moves_little_more_than_its_share() {
        for count in [3_u16, 10, 100] {
            let (before, after) = (even(count), even(count + 1));
            assert_eq!(
                before.shards(),
                after.shards(),
                "the counts are chosen so that the shards stay"
            );
            let moved = before.nodes.iter().zip(&after.nodes).filter(|(a, b)| a != b).count();
            let limit = 1.3 / f64::from(count + 1) * f64::from(before.shards());
            assert!((moved as f64) <= limit, "{count} nodes: {moved} moved, limit {limit}");
        }
    }

    #[test]
    fn golden_placement_of_3_10_and_100_nodes() {
        let golden = [3, 10, 100].map(|count| format!("{:016x}", checksum(&even(count))));
        assert_eq!(golden, ["c9ed5a22aa432c19", "910522f0898227e5", "05aa65334b9567a6"]);
    }

    #[test]
    fn golden_hashes_of_directory_chunk_and_name() {
        let dir = directory_shard(Ino::ROOT, b"home", 4_096);
        let chunk = chunk_shard(Ino(0x0007_0000_0000_0009), 3, 4_096);
        assert_eq!((dir.0, chunk.0, name_hash(b"home")), (3_646, 1_603, 4_000_102_322_333_307_399));
        assert_eq!(chunk_shard(Ino::new(ShardId(5), 9), 0, 4_096), ShardId(5));
    }

    #[test]
    fn cores_are_bins_too() {
        let items: Vec<u64> = (0..4_096).collect();
        let cores: Vec<(u64, u32)> = (0..8).map(|core| (core, 1)).collect();
        let placed = spread(&items, &cores);
        for core in 0..8 {
            let held = placed.iter().filter(|&&bin| bin == core).count();
            assert!((1..=564).contains(&held), "core {core} holds {held}");
        }
    }
}
