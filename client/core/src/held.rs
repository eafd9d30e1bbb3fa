//! The locks that this client holds on one inode: what it claims again after a reconnect.
//!
//! The shard decides about locks; this list only follows what it granted, by the same rule: a new lock replaces what its
//! owner held of its range in its space, and neighbours of one kind become one (fcntl(2)).
//!
//! 1. Locks of one owner and space do not overlap, and are none of kind `Unlock`.

use sealfs_proto::{Lock, LockKind, LockOwner, LockSpace};

/// Granted locks of one inode, all owners.
#[derive(Debug, Default)]
pub(crate) struct Held(Vec<Lock>);

impl Held {
    /// `lock` was granted (or, of kind `Unlock`, given up).
    pub(crate) fn apply(&mut self, lock: Lock) {
        let mut kept = Vec::with_capacity(self.0.len() + 2);
        let mut grown = lock;
        for held in self.0.drain(..) {
            if (held.space, held.owner) != (lock.space, lock.owner) {
                kept.push(held);
            } else if held.kind == lock.kind && touch(&held, &lock) {
                grown.start = grown.start.min(held.start);
                grown.end = grown.end.max(held.end);
            } else {
                if held.start < lock.start {
                    kept.push(Lock { end: held.end.min(lock.start - 1), ..held });
                }
                if held.end > lock.end {
                    kept.push(Lock { start: held.start.max(lock.end + 1), ..held });
                }
            }
        }
        if lock.kind != LockKind::Unlock {
            kept.push(grown);
        }
        self.0 = kept;
    }

    /// `lock` is about to be asked for. What its owner has of the range counts from now on as what the shard leaves of it at
    /// least, for another may have the rest before the answer is here: less when it is given up, or shared where all of it is
    /// held (neither is ever refused), and nothing when flock(2) converts to exclusive, which gives up first. Answers what is
    /// to be [`Held::apply`]ed if the request fails all the same, with everything as it was.
    pub(crate) fn ask(&mut self, lock: Lock) -> Vec<Lock> {
        let mut held = self.within(lock);
        let is_whole = held.iter().all(|part| part.kind != LockKind::Unlock);
        held.retain(|part| match (lock.space, part.kind, lock.kind) {
            (_, LockKind::Unlock, _) => false,
            (_, _, LockKind::Unlock) | (LockSpace::Flock, LockKind::Read, LockKind::Write) => true,
            (_, LockKind::Write, LockKind::Read) => is_whole,
            _ => false,
        });
        let left = if lock.kind == LockKind::Read { LockKind::Read } else { LockKind::Unlock };
        held.iter().for_each(|part| self.apply(Lock { kind: left, ..*part }));
        held
    }

    /// Whether `owner` holds anything in `space`.
    pub(crate) fn holds(&self, space: LockSpace, owner: LockOwner) -> bool {
        self.0.iter().any(|lock| lock.space == space && lock.owner == owner)
    }

    /// Whether anybody holds anything.
    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What `lock`'s owner has of its range, as locks that together say it of all of the range: what is not held is to be
    /// unlocked.
    pub(crate) fn within(&self, lock: Lock) -> Vec<Lock> {
        let mut parts = Vec::new();
        let of_owner = |held: &&Lock| (held.space, held.owner) == (lock.space, lock.owner);
        let mut held: Vec<Lock> = self.0.iter().filter(of_owner).copied().collect();
        held.sort_unstable_by_key(|held| held.start);
        let unlock = |start, end| Lock { kind: LockKind::Unlock, start, end, ..lock };
        let mut at = lock.start;
        for held in held.iter().filter(|held| held.end >= lock.start && held.start <= lock.end) {
            if held.start > at {
                parts.push(unlock(at, held.start - 1));
            }
            parts.push(Lock { start: held.start.max(at), end: held.end.min(lock.end), ..*held });
            if held.end >= lock.end {
                return parts;
            }
            at = held.end + 1;
        }
        parts.push(unlock(at, lock.end));
        parts
    }

    /// All of them.
    pub(crate) fn all(&self) -> &[Lock] {
        &self.0
    }

    /// All are gone.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Whether two ranges overlap or lie side by side.
fn touch(a: &Lock, b: &Lock) -> bool {
    a.start <= b.end.saturating_add(1) && b.start <= a.end.saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(kind: LockKind, start: u64, end: u64, owner: u64) -> Lock {
        Lock { space: LockSpace::Posix, kind, start, end, owner: LockOwner(owner), pid: 1 }
    }

    fn ranges(held: &Held) -> Vec<(u64, u64, LockKind)> {
        let mut ranges: Vec<_> = held.0.iter().map(|l| (l.start, l.end, l.kind)).collect();
        ranges.sort_unstable();
        ranges
    }

    #[test]
    fn giving_up_the_middle_splits_a_lock() {
        let mut held = Held::default();
        held.apply(lock(LockKind::Write, 0, u64::MAX, 1));
        held.apply(lock(LockKind::Unlock, 10, 19, 1));
        assert_eq!(ranges(&held), [(0, 9, LockKind::Write), (20, u64::MAX, LockKind::Write)]);
        held.apply(lock(LockKind::Unlock, 0, u64::MAX, 1));
        assert!(held.all().is_empty());
    }

    #[test]
    fn a_conversion_replaces_and_neighbours_merge() {
        let mut held = Held::default();
        held.apply(lock(LockKind::Read, 0, 9, 1));
        held.apply(lock(LockKind::Read, 10, 19, 1));
        assert_eq!(ranges(&held), [(0, 19, LockKind::Read)]);
        held.apply(lock(LockKind::Write, 5, 14, 1));
        assert_eq!(
            ranges(&held),
            [(0, 4, LockKind::Read), (5, 14, LockKind::Write), (15, 19, LockKind::Read)]
        );
    }

    #[test]
    fn what_is_asked_for_leaves_what_the_shard_leaves_at_least() {
        let mut held = Held::default();
        held.apply(lock(LockKind::Write, 0, 29, 1));
        held.apply(lock(LockKind::Write, 0, 29, 2));
        held.ask(lock(LockKind::Read, 10, 14, 1));
        held.ask(lock(LockKind::Unlock, 20, 99, 1));
        // Only what is held is weakened; nothing is taken before it is granted, or where it may be refused.
        assert_eq!(held.ask(lock(LockKind::Read, 18, 99, 1)), []);
        held.ask(lock(LockKind::Write, 40, 50, 1));
        held.ask(lock(LockKind::Write, 12, 14, 1));
        let write = LockKind::Write;
        assert_eq!(
            ranges(&held),
            [(0, 9, write), (0, 29, write), (10, 14, LockKind::Read), (15, 19, write)]
        );
        let flock = |kind| Lock { space: LockSpace::Flock, ..lock(kind, 0, u64::MAX, 3) };
        for (from, to, left) in [
            (LockKind::Write, LockKind::Write, Some(LockKind::Write)),
            (LockKind::Write, LockKind::Read, Some(LockKind::Read)),
            (LockKind::Read, LockKind::Write, None),
        ] {
            let mut held = Held::default();
            held.apply(flock(from));
            let before = held.ask(flock(to));
            assert_eq!(held.all().first().map(|lock| lock.kind), left);
            before.into_iter().for_each(|lock| held.apply(lock));
            assert_eq!(held.all(), [flock(from)]);
        }
    }

    #[test]
    fn a_range_is_described_by_what_is_held_of_it_and_the_gaps() {
        let mut held = Held::default();
        let whole = lock(LockKind::Write, 0, u64::MAX, 1);
        assert_eq!(held.within(whole), [lock(LockKind::Unlock, 0, u64::MAX, 1)]);
        held.apply(lock(LockKind::Write, 30, u64::MAX, 1));
        held.apply(lock(LockKind::Read, 5, 9, 1));
        held.apply(lock(LockKind::Read, 0, 99, 2));
        assert_eq!(
            held.within(lock(LockKind::Write, 7, 40, 1)),
            [
                lock(LockKind::Read, 7, 9, 1),
                lock(LockKind::Unlock, 10, 29, 1),
                lock(LockKind::Write, 30, 40, 1),
            ]
        );
        assert_eq!(
            held.within(lock(LockKind::Write, 8, 12, 1)),
            [lock(LockKind::Read, 8, 9, 1), lock(LockKind::Unlock, 10, 12, 1)]
        );
    }

    #[test]
    fn owners_and_spaces_do_not_see_each_other() {
        let mut held = Held::default();
        held.apply(lock(LockKind::Read, 0, 9, 1));
        held.apply(lock(LockKind::Read, 0, 9, 2));
        held.apply(Lock { space: LockSpace::Flock, ..lock(LockKind::Write, 0, u64::MAX, 1) });
        assert_eq!(held.all().len(), 3);
        held.apply(lock(LockKind::Unlock, 0, u64::MAX, 1));
        assert!(!held.holds(LockSpace::Posix, LockOwner(1)));
        assert!(held.holds(LockSpace::Posix, LockOwner(2)));
        assert!(held.holds(LockSpace::Flock, LockOwner(1)));
    }
}
