//! Which nodes have acknowledged changes of this client that may not be on their devices yet: what fsync must ask.
//!
//! A node's `Sync` makes everything durable that it acknowledged before, whatever file it belongs to. So every change
//! gets a number when it is acknowledged, a successful Sync covers all numbers drawn before it was sent, and an fsync
//! asks only the nodes that have an uncovered change of its inode. What is remembered outlives the close, for the next
//! program that opens the file may rely on its own fsync.
//!
//! A node that has lost power may have lost what it had acknowledged and not synced; it counts its losses, and every reply
//! says how many there were. What was uncovered when the number changes may be lost: whoever has the file open is told, and
//! else the next fsync, once. What has survived is not synced, and so the next loss may take it.
//!
//! 1. Bounded: at most [`INODES_MAX`] inodes; those that do not fit count for every inode that is open.
//! 2. A change that was acknowledged before `Sync` was sent, and only that, is covered by it.

use std::collections::{BTreeMap, BTreeSet};

use sealfs_proto::{Ino, NodeId};

type Stamps = BTreeMap<NodeId, u64>;

/// The changes that no Sync has covered.
#[derive(Debug, Default)]
pub(crate) struct Unsynced {
    /// The last number drawn.
    last: u64,
    /// Up to which number each node is synced.
    covered: Stamps,
    /// The newest change of each inode at each node.
    inodes: BTreeMap<Ino, Stamps>,
    /// The newest changes of inodes that did not fit.
    others: Stamps,
    /// How often each node had lost power when it was last heard.
    losses: BTreeMap<NodeId, u64>,
    /// Inodes of which changes were lost, and no writer was told.
    lost: BTreeSet<Ino>,
    /// Something was lost since `take_loss`.
    loss: bool,
}

/// What a loss of power may have taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    /// Changes of these.
    inodes: BTreeSet<Ino>,
    /// Changes of others, too, nobody knows which.
    others: bool,
}

impl Lost {
    /// Whether changes of `ino` may be among it.
    pub(crate) fn may_concern(&self, ino: Ino) -> bool {
        self.others || self.inodes.contains(&ino)
    }
}

impl Unsynced {
    /// A change of `ino` (a file's data, a directory's names) was acknowledged by `node`.
    pub(crate) fn mark(&mut self, ino: Ino, node: NodeId) {
        self.last += 1;
        if !self.inodes.contains_key(&ino) && self.inodes.len() >= INODES_MAX {
            self.make_room();
        }
        self.inodes.entry(ino).or_default().insert(node, self.last);
    }

    /// `node` says that it has lost power so often. What it may have lost, if that is news.
    pub(crate) fn on_losses(&mut self, node: NodeId, losses: u64) -> Option<Lost> {
        self.losses.insert(node, losses).filter(|before| *before != losses)?;
        // What has survived is not synced either: it stays uncovered.
        let is_lost =
            |stamps: &Stamps| stamps.get(&node).is_some_and(|stamp| !self.is_covered(node, *stamp));
        let inodes = self.inodes.iter().filter(|(_, stamps)| is_lost(stamps));
        let inodes: BTreeSet<Ino> = inodes.map(|(ino, _)| *ino).collect();
        let lost = Lost { inodes, others: is_lost(&self.others) };
        self.loss |= lost.others || !lost.inodes.is_empty();
        self.lost.extend(&lost.inodes);
        while self.lost.len() > INODES_MAX {
            self.lost.pop_first();
        }
        Some(lost)
    }

    /// Whether a change of `ino` was lost that no writer was told of; it counts as told from now on.
    pub(crate) fn take_lost(&mut self, ino: Ino) -> bool {
        self.lost.remove(&ino)
    }

    /// Whether anything was lost since this was last asked.
    pub(crate) fn take_loss(&mut self) -> bool {
        std::mem::take(&mut self.loss)
    }

    /// The nodes with uncovered changes of `ino`.
    pub(crate) fn nodes(&self, ino: Ino) -> Vec<NodeId> {
        let own = self.inodes.get(&ino).into_iter().flatten();
        let mut nodes: Vec<NodeId> = own
            .chain(&self.others)
            .filter(|&(node, stamp)| !self.is_covered(*node, *stamp))
            .map(|(node, _)| *node)
            .collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// The number to remember while a Sync is under way.
    pub(crate) fn stamp(&self) -> u64 {
        self.last
    }

    /// A Sync of `node` that was sent when `stamp` was the last number has succeeded.
    pub(crate) fn covered(&mut self, node: NodeId, stamp: u64) {
        let covered = self.covered.entry(node).or_default();
        *covered = stamp.max(*covered);
    }

    fn is_covered(&self, node: NodeId, stamp: u64) -> bool {
        self.covered.get(&node).is_some_and(|covered| stamp <= *covered)
    }

    /// Forgets what is covered; if that is too little, half of the inodes count for all from now on.
    fn make_room(&mut self) {
        let covered = std::mem::take(&mut self.covered);
        let open = |stamps: &mut Stamps| {
            stamps.retain(|node, stamp| covered.get(node).is_none_or(|upto| *stamp > *upto));
            !stamps.is_empty()
        };
        self.inodes.retain(|_, stamps| open(stamps));
        open(&mut self.others);
        while self.inodes.len() > INODES_MAX / 2 {
            let (_, stamps) = self.inodes.pop_first().expect("it is not empty");
            for (node, stamp) in stamps {
                let newest = self.others.entry(node).or_default();
                *newest = stamp.max(*newest);
            }
        }
        self.covered = covered;
    }
}

/// Some MiB of memory; a client that has more files written and none synced gives up precision only.
const INODES_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    #[test]
    fn a_sync_covers_what_was_acknowledged_before_it_was_sent() {
        let mut unsynced = Unsynced::default();
        unsynced.mark(Ino(5), A);
        unsynced.mark(Ino(5), B);
        let stamp = unsynced.stamp();
        unsynced.mark(Ino(6), A);
        unsynced.covered(A, stamp);
        assert_eq!(unsynced.nodes(Ino(5)), [B]);
        assert_eq!(unsynced.nodes(Ino(6)), [A], "it came while the sync was under way");
        assert!(unsynced.nodes(Ino(7)).is_empty());
    }

    #[test]
    fn an_older_sync_that_ends_late_uncovers_nothing() {
        let mut unsynced = Unsynced::default();
        let early = unsynced.stamp();
        unsynced.mark(Ino(5), A);
        unsynced.covered(A, unsynced.stamp());
        unsynced.covered(A, early);
        assert!(unsynced.nodes(Ino(5)).is_empty());
    }

    #[test]
    fn a_loss_of_power_takes_what_was_not_covered_and_is_told_once() {
        let mut unsynced = Unsynced::default();
        assert_eq!(unsynced.on_losses(A, 3), None, "that was before");
        unsynced.on_losses(B, 0);
        unsynced.mark(Ino(5), A);
        unsynced.covered(A, unsynced.stamp());
        unsynced.mark(Ino(6), A);
        unsynced.mark(Ino(7), B);
        assert_eq!(unsynced.on_losses(A, 3), None);
        let six = Lost { inodes: BTreeSet::from([Ino(6)]), others: false };
        // Twice at once is once.
        assert_eq!(unsynced.on_losses(A, 5), Some(six));
        assert_eq!(unsynced.on_losses(A, 5), None);
        assert!(unsynced.take_lost(Ino(6)) && !unsynced.take_lost(Ino(6)));
        assert!(!unsynced.take_lost(Ino(5)) && !unsynced.take_lost(Ino(7)));
        assert!(unsynced.take_loss() && !unsynced.take_loss());
    }

    #[test]
    fn what_survived_a_loss_of_power_may_be_lost_by_the_next() {
        let mut unsynced = Unsynced::default();
        unsynced.on_losses(A, 0);
        unsynced.mark(Ino(6), A);
        unsynced.on_losses(A, 1);
        assert_eq!(unsynced.nodes(Ino(6)), [A], "what is still there has to be synced");
        assert!(unsynced.take_lost(Ino(6)));
        unsynced.on_losses(A, 2);
        assert!(unsynced.take_lost(Ino(6)));
        unsynced.covered(A, unsynced.stamp());
        unsynced.on_losses(A, 3);
        assert!(!unsynced.take_lost(Ino(6)));
    }

    #[test]
    fn what_did_not_fit_counts_for_every_inode_when_power_is_lost() {
        let mut unsynced = Unsynced::default();
        unsynced.on_losses(A, 0);
        (0..=INODES_MAX as u64).for_each(|number| unsynced.mark(Ino(number), A));
        let lost = unsynced.on_losses(A, 1).unwrap();
        assert!(lost.may_concern(Ino(0)) && lost.may_concern(Ino(u64::MAX)));
        assert!(unsynced.lost.len() <= INODES_MAX);
    }

    #[test]
    fn memory_is_bounded_and_nothing_is_forgotten() {
        let mut unsynced = Unsynced::default();
        let count = INODES_MAX as u64 + 10;
        for number in 0..count {
            unsynced.mark(Ino(number), if number == 3 { B } else { A });
        }
        assert!(unsynced.inodes.len() <= INODES_MAX);
        assert!(unsynced.nodes(Ino(3)).contains(&B));
        assert!(unsynced.nodes(Ino(count - 1)).contains(&A));
        let stamp = unsynced.stamp();
        unsynced.covered(A, stamp);
        unsynced.covered(B, stamp);
        assert!((0..count).all(|number| unsynced.nodes(Ino(number)).is_empty()));
    }
}
