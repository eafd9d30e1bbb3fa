//! Which keys are held by which transaction.
//!
//! There are two kinds of key. An *entry* (directory, name) is held by whoever adds, removes or swaps it. An *inode* is
//! held by whoever changes its links, its place or its life (`NewInode`, `AddLink`, `DropLink`, `EndDirectory`, `Moved`).
//! So
//!
//! - two changes of one name meet at the entry (rename against rename, create against unlink);
//! - link against the last unlink of the same inode meet at the inode;
//! - rmdir against a change inside the directory: an ending directory refuses changes of its entries, and a directory
//!   with a held entry cannot end (they meet here, for a new entry does not hold its directory: many may be added at once);
//! - whoever heard of a new directory meets its making here: the coordinator's answer may be faster than its decision.
//!
//! Attributes (mode, size, xattrs) are no keys: parts change links and times by difference and commute with them.
//!
//! 1. A key has at most one holder.
//! 2. Keys of prepared transactions are derived from `State::prepared` and rebuilt with it; a coordinator's own keys are
//!    in memory only: after a crash its undecided transactions are aborted anyway.

use std::collections::BTreeMap;

use sealfs_proto::{Ino, Part, ShardId, TxId};

/// What can be held. Sorts an inode before its entries.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) ino: Ino,
    /// `None`: the inode itself.
    pub(crate) name: Option<Vec<u8>>,
}

impl Key {
    pub(crate) const fn inode(ino: Ino) -> Self {
        Self { ino, name: None }
    }

    pub(crate) fn entry(dir: Ino, name: &[u8]) -> Self {
        Self { ino: dir, name: Some(name.to_vec()) }
    }
}

/// Who holds a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) tx: TxId,
    /// A coordinator's own key: its present value is still the truth, so reads need not wait.
    pub(crate) own: bool,
    /// The directory begins or ends: its entries may not change.
    pub(crate) ends: bool,
}

/// The held keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Holds {
    keys: BTreeMap<Key, Hold>,
    /// The keys of each transaction, and whether this process coordinates it.
    by_tx: BTreeMap<TxId, (bool, Vec<Key>)>,
}

impl Holds {
    /// Holds the keys of `parts` for `tx`. Nobody holds them: the parts were checked on this state.
    pub(crate) fn hold(&mut self, tx: TxId, parts: &[Part], own: bool) {
        let keys = keys(parts);
        for (key, ends) in &keys {
            let hold = self.keys.entry(key.clone()).or_insert(Hold { tx, own, ends: *ends });
            hold.ends |= *ends;
        }
        self.by_tx.insert(tx, (own, keys.into_iter().map(|(key, _)| key).collect()));
    }

    /// Gives up every key of `tx`.
    pub(crate) fn release(&mut self, tx: TxId) {
        let (_, keys) = self.by_tx.remove(&tx).unwrap_or_default();
        for key in keys {
            if self.keys.get(&key).is_some_and(|hold| hold.tx == tx) {
                self.keys.remove(&key);
            }
        }
    }

    /// Whether `tx` holds all keys of `parts`.
    pub(crate) fn all_held(&self, tx: TxId, parts: &[Part]) -> bool {
        keys(parts).iter().all(|(key, _)| self.of(key).is_some_and(|hold| hold.tx == tx))
    }

    /// Whether this process coordinates `tx` and has not decided it.
    pub(crate) fn is_open(&self, tx: TxId) -> bool {
        self.by_tx.get(&tx).is_some_and(|(own, _)| *own)
    }

    /// The first open transaction that `shard`, whose state this is, coordinates.
    pub(crate) fn oldest_open(&self, shard: ShardId) -> Option<TxId> {
        let from = TxId { coordinator: shard, number: 0 };
        self.by_tx.range(from..).next().map(|(tx, _)| *tx).filter(|tx| tx.coordinator == shard)
    }

    /// Who holds the key.
    pub(crate) fn of(&self, key: &Key) -> Option<Hold> {
        if self.keys.is_empty() { None } else { self.keys.get(key).copied() }
    }

    /// Who holds entries of the directory.
    pub(crate) fn entries_of(&self, dir: Ino) -> impl Iterator<Item = Hold> + '_ {
        let from = Key { ino: dir, name: Some(Vec::new()) };
        self.keys.range(from..).take_while(move |(key, _)| key.ino == dir).map(|(_, hold)| *hold)
    }

    /// Whether parts must wait for somebody: one of their keys is held, an entry's directory ends, or a directory that
    /// ends has a held entry.
    pub(crate) fn hinder(&self, parts: &[Part]) -> bool {
        !self.keys.is_empty()
            && keys(parts).iter().any(|(key, ends)| {
                self.keys.contains_key(key)
                    || (*ends && self.entries_of(key.ino).next().is_some())
                    || (key.name.is_some()
                        && self.of(&Key::inode(key.ino)).is_some_and(|hold| hold.ends))
            })
    }
}

/// The keys that parts hold, and whether each begins or ends a directory. A new inode has none until its number is drawn.
fn keys(parts: &[Part]) -> Vec<(Key, bool)> {
    let key = |part: &Part| match part {
        Part::NewInode { attr, .. } => (attr.ino != Ino(0)).then(|| (Key::inode(attr.ino), true)),
        Part::AddEntry { dir, name, .. }
        | Part::RemoveEntry { dir, name, .. }
        | Part::SwapEntry { dir, name, .. } => Some((Key::entry(*dir, name), false)),
        Part::AddLink { ino } | Part::DropLink { ino, .. } | Part::Moved { ino, .. } => {
            Some((Key::inode(*ino), false))
        }
        Part::EndDirectory { ino, .. } => Some((Key::inode(*ino), true)),
    };
    parts.iter().filter_map(key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sealfs_proto::{Kind, Who};

    fn add(dir: u64, name: &str) -> Part {
        let (who, name) = (Who::root(), name.into());
        Part::AddEntry { who, dir: Ino(dir), name, ino: Ino(9), kind: Kind::File }
    }

    fn end(ino: u64) -> Part {
        Part::EndDirectory { ino: Ino(ino), sticky: None }
    }

    const TX: TxId = TxId { coordinator: ShardId(0), number: 1 };

    #[test]
    fn only_what_would_meet_is_hindered() {
        let drop = Part::DropLink { ino: Ino(7), sticky: None };
        let link = Part::AddLink { ino: Ino(7) };
        let moved = Part::Moved { who: Who::root(), ino: Ino(5), parent: None, sticky: None };
        let cases = [
            (add(5, "a"), add(5, "a"), true),
            (add(5, "a"), add(5, "b"), false),
            (add(5, "a"), end(5), true),
            (end(5), add(5, "a"), true),
            (end(5), add(6, "a"), false),
            (moved.clone(), add(5, "a"), false),
            (moved, end(5), true),
            (drop, link, true),
        ];
        for (held, wanted, hindered) in cases {
            let mut holds = Holds::default();
            holds.hold(TX, std::slice::from_ref(&held), false);
            assert_eq!(
                holds.hinder(std::slice::from_ref(&wanted)),
                hindered,
                "{held:?}, {wanted:?}"
            );
            holds.release(TX);
            assert!(!holds.hinder(&[wanted]) && holds.keys.is_empty());
        }
    }
}
