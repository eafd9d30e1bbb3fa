//! The node's free blocks that no core has borrowed, and the reserve.
//!
//! Cores borrow pieces of a group (64 MiB, less in a small volume) so that each writes in a neighbourhood of its own. The
//! ledger deals in runs, not in whole groups: a block belongs to whichever core's record frees it, so that a node may
//! restart with another number of cores although their blocks lie mixed in one group.
//!
//! 1. `free + what cores owe of the reserve >= reserve`, once the volume has had that much free.
//! 2. An ordinary loan never takes `free` below the reserve.

use sealfs_proto::{Corrupt, limits};

use super::runs::Runs;
use super::{Ask, Loan, Run};

/// The node's free blocks that no core has borrowed. One per node, owned by core 0.
#[derive(Debug)]
pub struct Groups {
    free: Runs,
    total: u64,
}

impl Groups {
    /// The ledger of a volume of `total` blocks of which `used` are named by the maps of all cores. Refuses two extents on
    /// one block, and blocks beyond the volume. Cost: a sort of `used`.
    pub fn new(total: u64, mut used: Vec<Run>) -> Result<Self, Corrupt> {
        used.sort_unstable();
        let mut free = Runs::default();
        let mut at = 0;
        for run in &used {
            if run.start < at {
                let cause = format!("block {} of the volume belongs to two chunks", run.start);
                return Err(Corrupt::new("chunk map", cause));
            }
            if run.start > at {
                free.insert(at, run.start - at);
            }
            at = run.end();
        }
        if at > total {
            let cause = format!("it names block {} of a volume of {total} blocks", at - 1);
            return Err(Corrupt::new("chunk map", cause));
        }
        if at < total {
            free.insert(at, total - at);
        }
        Ok(Self { free, total })
    }

    /// Lends at least `ask.blocks` (up to a group more if there is room), or fewer or nothing when the node has no more.
    pub fn lend(&mut self, ask: Ask) -> Loan {
        let mut loan = Loan::default();
        let mut wanted = ask.blocks;
        while wanted > 0 {
            let ordinary = self.free.total().saturating_sub(self.reserve());
            let limit = match (ordinary, ask.reserve) {
                (0, false) => break,
                // From the reserve no more than is needed.
                (0, true) => wanted,
                _ => u32::try_from(ordinary).unwrap_or(u32::MAX),
            };
            let Some(run) = self.free.take_piece(limit, group_blocks(self.total)) else { break };
            if ordinary == 0 {
                loan.reserve += run.count;
            }
            wanted = wanted.saturating_sub(run.count);
            loan.runs.push(run);
        }
        loan
    }

    /// Takes back what a core does not need: what [`super::Chunks::on_synced`] and [`super::Chunks::recall`] give.
    pub fn give_back(&mut self, runs: Vec<Run>) {
        runs.iter().for_each(|run| self.free.insert(run.start, u64::from(run.count)));
    }

    /// Blocks of the volume.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Blocks that are not lent.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.free.total()
    }

    /// Blocks kept back for overwriting and discarding: 1 %, at least 64 MiB, but at most 1/16 of a small volume.
    #[must_use]
    pub fn reserve(&self) -> u64 {
        (self.total / 100).max(RESERVE_MIN).min(self.total / 16)
    }
}

/// Blocks of a group: 64 MiB, but a small volume has at least 64 groups as long as each holds a default chunk.
pub(super) fn group_blocks(total: u64) -> u32 {
    (total / 64).clamp(u64::from(limits::CHUNK_SIZE / limits::BLOCK_SIZE), GROUP_BLOCKS) as u32
}

/// 64 MiB: long enough for sequential I/O, short enough that a core which writes nothing keeps little.
const GROUP_BLOCKS: u64 = (64 << 20) / limits::BLOCK_SIZE as u64;
/// 64 MiB: several times what overwriting keeps in flight between two syncs of a full volume.
const RESERVE_MIN: u64 = (64 << 20) / limits::BLOCK_SIZE as u64;

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(loan: &Loan) -> u64 {
        loan.runs.iter().map(|run| u64::from(run.count)).sum()
    }

    #[test]
    fn free_space_is_what_the_maps_do_not_name() {
        let used = vec![Run { start: 900, count: 100 }, Run { start: 10, count: 5 }];
        assert_eq!(Groups::new(1_024, used).unwrap().free(), 1_024 - 105);
    }

    #[test]
    fn a_block_with_two_owners_or_none_is_refused() {
        let twice = vec![Run { start: 10, count: 5 }, Run { start: 14, count: 1 }];
        assert!(Groups::new(1_024, twice).is_err());
        assert!(Groups::new(1_024, vec![Run { start: 1_020, count: 5 }]).is_err());
        assert!(Groups::new(1_024, vec![Run { start: u64::MAX, count: 5 }]).is_err());
    }

    #[test]
    fn ordinary_loans_leave_the_reserve_and_reserved_ones_are_owed() {
        let mut groups = Groups::new(4_096, vec![]).unwrap();
        let reserve = groups.reserve();
        let mut lent = 0;
        loop {
            let loan = groups.lend(Ask { blocks: 300, reserve: false });
            assert_eq!(loan.reserve, 0);
            if loan.runs.is_empty() {
                break;
            }
            lent += blocks(&loan);
        }
        assert_eq!(lent, 4_096 - reserve);
        let loan = groups.lend(Ask { blocks: 3, reserve: true });
        assert_eq!((blocks(&loan), loan.reserve), (3, 3));
        assert!(groups.lend(Ask { blocks: 1, reserve: false }).runs.is_empty());
    }
}
