//! Which keys are held by which transaction.
//!
//! There are two kinds of key. An *entry* (directory, name) is held by whoever adds, removes or swaps it. An *inode* is
//! held by whoever changes its links, its place or its life (`AddLink`, `DropLink`, `EndDirectory`, `Moved`). So
//!
//! - two changes of one name meet at the entry (rename against rename, create against unlink);
//! - link against the last unlink of the same inode meet at the inode;
//! - rmdir against a change inside the directory: an ending directory refuses changes of its entries, and a directory
//!   with a held entry cannot end (they meet here, for a new entry does not hold its directory: many may be added at once).
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
    /// The directory ends: its entries may not change.
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

/// The keys that parts hold, and whether each ends a directory.
fn keys(parts: &[Part]) -> Vec<(Key, bool)> {
    let key = |part: &Part| match part {
        Part::NewInode { .. } => None,
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
