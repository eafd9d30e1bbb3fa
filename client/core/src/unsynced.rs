//! Which nodes have acknowledged changes of this client that may not be on their devices yet: what fsync must ask.
//!
//! A node's `Sync` makes everything durable that it acknowledged before, whatever file it belongs to. So every change
//! gets a number when it is acknowledged, a successful Sync covers all numbers drawn before it was sent, and an fsync
//! asks only the nodes that have an uncovered change of its inode. What is remembered outlives the close, for the next
//! program that opens the file may rely on its own fsync.
//!
//! 1. Bounded: at most [`INODES_MAX`] inodes; those that do not fit count for every inode.
//! 2. A change that was acknowledged before `Sync` was sent, and only that, is covered by it.

use std::collections::BTreeMap;

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
