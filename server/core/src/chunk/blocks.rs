//! One core's blocks that no chunk names: free ones, and freed ones that must not be reused yet.
//!
//! ```text
//! freed by a record -> pending --(sync mark covers the record)--> parked --(reads planned before have ended)--> free
//! ```
//!
//! 1. `pending` and `parked` are ordered by position and by epoch alike: both only grow.
//! 2. `debt` blocks of those that this core has belong to the node's reserve: an ordinary take leaves them.
//!
//! A read takes the epoch of its planning, each freeing ends an epoch: a freed block can be the target only of reads with
//! its own epoch or an older one.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use sealfs_proto::limits;
use sealfs_transport::Instant;

use super::groups::group_blocks;
use super::runs::Runs;
use super::{Ask, Loan, Refusal, Run};

/// A core's blocks that no chunk names.
#[derive(Debug)]
pub(super) struct Blocks {
    free: Runs,
    /// Where the last allocation ended: the next one goes on there.
    cursor: u64,
    debt: u64,
    pending: VecDeque<Freed>,
    pending_blocks: u64,
    parked: VecDeque<Freed>,
    epoch: u64,
    readers: Rc<RefCell<Readers>>,
    unsynced: Option<Unsynced>,
    /// The node had nothing to lend: what the next sync frees may be waited for.
    short: bool,
    /// Another core needs what the next sync frees.
    recalled: bool,
    /// The node had nothing to lend: nothing is asked for ahead of need until it has.
    dry: bool,
    group: u32,
}

#[derive(Debug)]
struct Freed {
    position: u64,
    epoch: u64,
    since: Instant,
    run: Run,
}

/// What was applied since the last sync mark.
#[derive(Debug)]
struct Unsynced {
    since: Instant,
    last: u64,
    blocks: u64,
}

/// Reads in flight, by epoch.
type Readers = BTreeMap<u64, u32>;

/// Keeps the blocks of a read from being reused, until it is dropped.
#[derive(Debug)]
pub(super) struct Pin {
    epoch: u64,
    readers: Rc<RefCell<Readers>>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut readers = self.readers.borrow_mut();
        let count = readers.get_mut(&self.epoch).expect("a pin is counted until it is dropped");
        *count -= 1;
        if *count == 0 {
            readers.remove(&self.epoch);
        }
    }
}

impl Blocks {
    /// No blocks, of a volume of `total`.
    pub(super) fn new(total: u64) -> Self {
        Self {
            free: Runs::default(),
            cursor: 0,
            debt: 0,
            pending: VecDeque::new(),
            pending_blocks: 0,
            parked: VecDeque::new(),
            epoch: 0,
            readers: Rc::default(),
            unsynced: None,
            short: false,
            recalled: false,
            dry: false,
            group: group_blocks(total),
        }
    }

    /// Takes fresh blocks, or says how many are wanted.
    pub(super) fn take(&mut self, ask: Ask) -> Result<Vec<Run>, Refusal> {
        self.unpark();
        let owned = if ask.reserve { 0 } else { self.debt };
        if self.free.total() >= owned + u64::from(ask.blocks)
            && let Some(runs) = self.free.take(ask.blocks, &mut self.cursor)
        {
            return Ok(runs);
        }
        Err(Refusal::Space(ask))
    }

    /// Takes back blocks that no record has named.
    pub(super) fn untake(&mut self, runs: &[Run]) {
        runs.iter().for_each(|run| self.free.insert(run.start, u64::from(run.count)));
    }

    /// A record at `position` has named `placed` fresh blocks and freed `runs`.
    pub(super) fn applied(&mut self, position: u64, placed: u64, runs: Vec<Run>, now: Instant) {
        let unsynced = Unsynced { since: now, last: position, blocks: 0 };
        let unsynced = self.unsynced.get_or_insert(unsynced);
        unsynced.last = position;
        unsynced.blocks += placed;
        if runs.is_empty() {
            return;
        }
        for run in runs {
            self.pending_blocks += u64::from(run.count);
            self.pending.push_back(Freed { position, epoch: self.epoch, since: now, run });
        }
        self.epoch += 1;
    }

    /// Freed blocks that wait for a sync mark.
    pub(super) fn pending(&self) -> impl Iterator<Item = Run> {
        self.pending.iter().map(|freed| freed.run)
    }

    /// A read begins.
    pub(super) fn pin(&self) -> Pin {
        *self.readers.borrow_mut().entry(self.epoch).or_default() += 1;
        Pin { epoch: self.epoch, readers: Rc::clone(&self.readers) }
    }

    pub(super) fn ask(&self) -> Option<Ask> {
        let ordinary = self.free.total().saturating_sub(self.debt);
        let enough = self.dry || ordinary >= u64::from(self.group / 2);
        (!enough).then_some(Ask { blocks: self.group, reserve: false })
    }

    pub(super) fn lend(&mut self, loan: &Loan) {
        self.dry = loan.runs.is_empty();
        self.short = self.dry;
        self.debt += u64::from(loan.reserve);
        self.untake(&loan.runs);
    }

    pub(super) fn sync_at(&self) -> Option<Instant> {
        let unsynced = self.unsynced.as_ref()?;
        let Some(oldest) = self.pending.front() else {
            let late = unsynced.since.after_ms(UNSYNCED_MS_MAX);
            return Some(if unsynced.blocks >= UNSYNCED_MAX { Instant(0) } else { late });
        };
        let at_once =
            self.short || self.pending_blocks >= PENDING_MAX || unsynced.blocks >= UNSYNCED_MAX;
        Some(if at_once { Instant(0) } else { oldest.since.after_ms(PENDING_MS_MAX) })
    }

    /// Blocks that were written since the volume was synced last.
    pub(super) fn dirty_blocks(&self) -> u64 {
        self.unsynced.as_ref().map_or(0, |unsynced| unsynced.blocks)
    }

    pub(super) fn pending_blocks(&self) -> u64 {
        self.pending_blocks
    }

    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty() || !self.parked.is_empty()
    }

    /// See [`super::Chunks::on_synced`].
    pub(super) fn on_synced(&mut self, end: u64, now: Instant) -> Vec<Run> {
        self.short = false;
        self.unsynced = self
            .unsynced
            .take()
            .filter(|unsynced| unsynced.last >= end)
            .map(|unsynced| Unsynced { since: now, blocks: 0, ..unsynced });
        let covered = self.pending.partition_point(|freed| freed.position < end);
        for freed in self.pending.drain(..covered) {
            self.pending_blocks -= u64::from(freed.run.count);
            self.parked.push_back(freed);
        }
        let freed = self.unpark();
        if std::mem::take(&mut self.recalled) {
            return self.give(self.free.total());
        }
        let group = u64::from(self.group);
        let owed = self.debt.min(freed);
        let spare = (self.free.total() - owed).saturating_sub(self.debt - owed);
        let spare = if spare > 3 * group { spare - 2 * group } else { 0 };
        self.give(owed + spare)
    }

    /// See [`super::Chunks::recall`].
    pub(super) fn recall(&mut self) -> Vec<Run> {
        self.unpark();
        self.recalled = !self.pending.is_empty();
        self.give(self.free.total())
    }

    /// Blocks that it owns, wherever they are.
    #[cfg(test)]
    pub(super) fn held(&self) -> u64 {
        let parked: u64 = self.parked.iter().map(|freed| u64::from(freed.run.count)).sum();
        self.free.total() + self.pending_blocks + parked
    }

    /// Takes `count` blocks out for the node; they pay the debt first.
    fn give(&mut self, mut count: u64) -> Vec<Run> {
        self.debt = self.debt.saturating_sub(count);
        let mut runs = Vec::new();
        while count > 0 {
            let piece = u32::try_from(count).unwrap_or(u32::MAX);
            let run = self.free.take_piece(piece, self.group).expect("no more than there is");
            count -= u64::from(run.count);
            runs.push(run);
        }
        runs
    }

    /// Frees what no read can reach any more; gives how many blocks.
    fn unpark(&mut self) -> u64 {
        let oldest = self.readers.borrow().first_key_value().map_or(u64::MAX, |(epoch, _)| *epoch);
        let passed = self.parked.partition_point(|freed| freed.epoch < oldest);
        let before = self.free.total();
        for freed in self.parked.drain(..passed) {
            self.free.insert(freed.run.start, u64::from(freed.run.count));
        }
        self.free.total() - before
    }
}

/// Freed blocks that wait for a sync: 256 MiB, as DESIGN section 6 has it.
const PENDING_MAX: u64 = (256 << 20) / limits::BLOCK_SIZE as u64;
/// And for so long.
const PENDING_MS_MAX: u64 = 5_000;
/// Data above the last sync mark is read at recovery after a loss of power: 4 GiB take some seconds.
const UNSYNCED_MAX: u64 = (4 << 30) / limits::BLOCK_SIZE as u64;
/// The kernel's own write-back interval: a mark costs little then.
const UNSYNCED_MS_MAX: u64 = 30_000;
