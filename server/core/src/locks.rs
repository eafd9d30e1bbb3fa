//! Advisory locks of the inodes that a core owns: flock(2) and fcntl(2) byte ranges, by session and owner.
//!
//! A pure table: requests go in, verdicts and the tickets of waits that were granted come out. A wait is an entry of a
//! list, never a thread or a future, so that a million of them cost only their memory, and so that a lost connection
//! changes nothing: the client asks again under the same ticket and finds its wait, or its lock.
//!
//! 1. Of two held locks of one inode and space that overlap and have different holders, both are shared.
//! 2. The ranges of one holder in one space do not overlap; neighbours of one kind and process are one range.
//! 3. A wait conflicts with a held lock; every release grants, oldest first, what it made possible.
//! 4. No wait is admitted that closes a circle of waits among the inodes of this core (fcntl ranges only: flock(2)
//!    knows no EDEADLK).
//!
//! It does not know of leases and grace periods; whoever owns it asks or does not ask.

use std::collections::{BTreeMap, BTreeSet};

use sealfs_proto::{Ino, Lock, LockKind, LockOwner, LockSpace, Sequence, SessionId, limits};

/// Who holds a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Holder {
    session: SessionId,
    owner: LockOwner,
}

/// Names the request that waits: its session and sequence.
pub(crate) type Ticket = (SessionId, Sequence);

/// What became of a request for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is held (or given up).
    Granted,
    /// Another holder is in the way, and the caller did not want to wait.
    Conflict,
    /// It waits under its ticket.
    Waits,
    /// Waiting would close a circle.
    Deadlock,
    /// The inode has [`limits::LOCKS_MAX`] locks and waits.
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    holder: Holder,
    lock: Lock,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    ticket: Ticket,
    wanted: Held,
}

#[derive(Debug, Default)]
struct Table {
    held: Vec<Held>,
    waiting: Vec<Waiting>,
}

/// The locks of a core's inodes.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    tables: BTreeMap<Ino, Table>,
}

impl Locks {
    /// Takes, converts or gives up `lock` for `session`; with `wait` it may wait under that sequence. Returns the verdict
    /// and the tickets that were granted because of it.
    pub(crate) fn take(
        &mut self,
        ino: Ino,
        session: SessionId,
        lock: Lock,
        wait: Option<Sequence>,
    ) -> (Taken, Vec<Ticket>) {
        let wanted = Held { holder: Holder { session, owner: lock.owner }, lock };
        if lock.start > lock.end {
            return (Taken::Granted, Vec::new());
        }
        let table = self.tables.entry(ino).or_default();
        let mut granted = Vec::new();
        if lock.space == LockSpace::Flock && table.conflict(&wanted).is_some() {
            // flock(2): a conversion is not atomic, the existing lock is removed first.
            table.release(&wanted);
            granted = table.grant();
        }
        let taken = if table.conflict(&wanted).is_none() {
            if lock.kind != LockKind::Unlock && table.is_full() {
                Taken::Full
            } else {
                table.hold(wanted);
                granted.extend(table.grant());
                Taken::Granted
            }
        } else {
            match wait {
                None => Taken::Conflict,
                Some(sequence) => self.wait(ino, wanted, (session, sequence)),
            }
        };
        self.sweep(ino);
        (taken, granted)
    }

    /// Ends a wait; whether it still waited.
    pub(crate) fn cancel(&mut self, ino: Ino, ticket: Ticket) -> bool {
        let Some(table) = self.tables.get_mut(&ino) else { return false };
        let before = table.waiting.len();
        table.waiting.retain(|wait| wait.ticket != ticket);
        let ended = table.waiting.len() < before;
        self.sweep(ino);
        ended
    }

    /// A lock that stands in the way of `lock`.
    pub(crate) fn test(&self, ino: Ino, session: SessionId, lock: Lock) -> Option<Lock> {
        let wanted = Held { holder: Holder { session, owner: lock.owner }, lock };
        self.tables.get(&ino)?.conflict(&wanted).map(|held| held.lock)
    }

    /// The tickets under which a session waits.
    pub(crate) fn waits_of(&self, session: SessionId) -> Vec<Ticket> {
        let waiting = self.tables.values().flat_map(|table| &table.waiting);
        waiting.map(|wait| wait.ticket).filter(|ticket| ticket.0 == session).collect()
    }

    /// Ends the waits that an endpoint of a session has asked for: after a reconnect it asks again, under new numbers.
    pub(crate) fn drop_waits(&mut self, session: SessionId, endpoint: u16) -> Vec<Ticket> {
        let mut dropped = self.waits_of(session);
        dropped.retain(|ticket| ticket.1.endpoint() == endpoint);
        for table in self.tables.values_mut() {
            table.waiting.retain(|wait| !dropped.contains(&wait.ticket));
        }
        self.tables.retain(|_, table| !table.is_empty());
        dropped
    }

    /// Locks that are held, and waits for some.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let tables = self.tables.values().map(|table| (table.held.len(), table.waiting.len()));
        tables.fold((0, 0), |(held, waiting), (h, w)| (held + h, waiting + w))
    }

    /// Drops everything that a session holds or waits for; returns the tickets that were granted because of it.
    pub(crate) fn end_session(&mut self, session: SessionId) -> Vec<Ticket> {
        let mut granted = Vec::new();
        for table in self.tables.values_mut() {
            table.waiting.retain(|wait| wait.ticket.0 != session);
            let before = table.held.len();
            table.held.retain(|held| held.holder.session != session);
            if table.held.len() < before {
                granted.extend(table.grant());
            }
        }
        self.tables.retain(|_, table| !table.is_empty());
        granted
    }

    fn wait(&mut self, ino: Ino, wanted: Held, ticket: Ticket) -> Taken {
        if self.closes_circle(ino, &wanted) {
            return Taken::Deadlock;
        }
        let table = self.tables.entry(ino).or_default();
        if table.is_full() {
            return Taken::Full;
        }
        if !table.waiting.iter().any(|wait| wait.ticket == ticket) {
            table.waiting.push(Waiting { ticket, wanted });
        }
        Taken::Waits
    }

    /// Whether somebody whom `wanted` would wait for waits, over any number of others, for its holder.
    fn closes_circle(&self, ino: Ino, wanted: &Held) -> bool {
        if wanted.lock.space == LockSpace::Flock {
            return false;
        }
        let mut seen = BTreeSet::new();
        let mut open: Vec<Holder> = self.blockers(ino, wanted).collect();
        while let Some(holder) = open.pop() {
            if holder == wanted.holder {
                return true;
            }
            if !seen.insert(holder) {
                continue;
            }
            for (&ino, table) in &self.tables {
                let waits = table.waiting.iter().filter(|wait| wait.wanted.holder == holder);
                for wait in waits.filter(|wait| wait.wanted.lock.space == LockSpace::Posix) {
                    open.extend(self.blockers(ino, &wait.wanted));
                }
            }
        }
        false
    }

    fn blockers<'a>(&'a self, ino: Ino, wanted: &'a Held) -> impl Iterator<Item = Holder> + 'a {
        let held = self.tables.get(&ino).into_iter().flat_map(|table| &table.held);
        held.filter(|held| held.conflicts(wanted)).map(|held| held.holder)
    }

    fn sweep(&mut self, ino: Ino) {
        if self.tables.get(&ino).is_some_and(Table::is_empty) {
            self.tables.remove(&ino);
        }
    }
}

impl Table {
    fn is_empty(&self) -> bool {
        self.held.is_empty() && self.waiting.is_empty()
    }

    fn is_full(&self) -> bool {
        self.held.len() + self.waiting.len() >= limits::LOCKS_MAX
    }

    fn conflict(&self, wanted: &Held) -> Option<&Held> {
        self.held.iter().find(|held| held.conflicts(wanted))
    }

    /// Takes the range of `given` out of what its holder has in this space.
    fn release(&mut self, given: &Held) {
        let range = given.lock;
        let mut rest = Vec::new();
        self.held.retain(|held| {
            if !held.is_of(given) || !held.overlaps(given) {
                return true;
            }
            if held.lock.start < range.start {
                rest.push(Held { lock: Lock { end: range.start - 1, ..held.lock }, ..*held });
            }
            if held.lock.end > range.end {
                rest.push(Held { lock: Lock { start: range.end + 1, ..held.lock }, ..*held });
            }
            false
        });
        self.held.append(&mut rest);
    }

    /// Makes the range what `wanted` says, whatever its holder had there before.
    fn hold(&mut self, mut wanted: Held) {
        self.release(&wanted);
        if wanted.lock.kind == LockKind::Unlock {
            return;
        }
        self.held.retain(|held| {
            let joins = held.is_of(&wanted)
                && held.lock.kind == wanted.lock.kind
                && held.lock.pid == wanted.lock.pid
                && (held.lock.end.checked_add(1) == Some(wanted.lock.start)
                    || wanted.lock.end.checked_add(1) == Some(held.lock.start));
            if joins {
                wanted.lock.start = wanted.lock.start.min(held.lock.start);
                wanted.lock.end = wanted.lock.end.max(held.lock.end);
            }
            !joins
        });
        self.held.push(wanted);
    }

    /// Grants what can be granted, oldest first.
    fn grant(&mut self) -> Vec<Ticket> {
        let mut granted = Vec::new();
        let mut at = 0;
        while at < self.waiting.len() {
            let wait = self.waiting[at];
            if self.conflict(&wait.wanted).is_some() {
                at += 1;
                continue;
            }
            self.waiting.remove(at);
            granted.push(wait.ticket);
            // A holder that turns its own exclusive lock into a shared one lets earlier waits pass as well.
            let shrinks = self.held.iter().any(|held| {
                held.is_of(&wait.wanted)
                    && held.overlaps(&wait.wanted)
                    && held.lock.kind == LockKind::Write
            });
            self.hold(wait.wanted);
            if shrinks {
                at = 0;
            }
        }
        granted
    }
}

impl Held {
    fn is_of(&self, other: &Self) -> bool {
        self.holder == other.holder && self.lock.space == other.lock.space
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.lock.start <= other.lock.end && other.lock.start <= self.lock.end
    }

    fn conflicts(&self, wanted: &Self) -> bool {
        wanted.lock.kind != LockKind::Unlock
            && self.lock.space == wanted.lock.space
            && self.holder != wanted.holder
            && self.overlaps(wanted)
            && (self.lock.kind == LockKind::Write || wanted.lock.kind == LockKind::Write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INO: Ino = Ino(9);
    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);
    const C: SessionId = SessionId(3);

    fn range(kind: LockKind, start: u64, end: u64) -> Lock {
        Lock { space: LockSpace::Posix, kind, start, end, owner: LockOwner(7), pid: 1 }
    }

    fn flock(kind: LockKind) -> Lock {
        let owner = LockOwner(7);
        Lock { space: LockSpace::Flock, kind, start: 0, end: u64::MAX, owner, pid: 1 }
    }

    fn ranges(locks: &Locks, session: SessionId) -> Vec<(LockKind, u64, u64)> {
        let mut all: Vec<_> = locks.tables[&INO]
            .held
            .iter()
            .filter(|held| held.holder.session == session)
            .map(|held| (held.lock.kind, held.lock.start, held.lock.end))
            .collect();
        all.sort_by_key(|range| range.1);
        all
    }

    #[test]
    fn shared_locks_share_and_exclusive_ones_do_not() {
        let mut locks = Locks::default();
        assert_eq!(locks.take(INO, A, range(LockKind::Read, 0, 9), None).0, Taken::Granted);
        assert_eq!(locks.take(INO, B, range(LockKind::Read, 5, 9), None).0, Taken::Granted);
        assert_eq!(locks.take(INO, B, range(LockKind::Write, 9, 20), None).0, Taken::Conflict);
        assert_eq!(locks.take(INO, B, range(LockKind::Write, 10, 20), None).0, Taken::Granted);
        assert_eq!(locks.take(INO, A, flock(LockKind::Write), None).0, Taken::Granted);
        assert_eq!(locks.test(INO, A, range(LockKind::Read, 20, 20)).unwrap().start, 10);
        assert_eq!(locks.test(INO, A, range(LockKind::Read, 21, 21)), None);
    }

    #[test]
    fn a_range_is_split_converted_and_merged() {
        let mut locks = Locks::default();
        locks.take(INO, A, range(LockKind::Write, 0, u64::MAX), None);
        locks.take(INO, A, range(LockKind::Unlock, 10, 19), None);
        locks.take(INO, A, range(LockKind::Read, 30, 39), None);
        let expected = [
            (LockKind::Write, 0, 9),
            (LockKind::Write, 20, 29),
            (LockKind::Read, 30, 39),
            (LockKind::Write, 40, u64::MAX),
        ];
        assert_eq!(ranges(&locks, A), expected);
        locks.take(INO, A, range(LockKind::Write, 10, 39), None);
        assert_eq!(ranges(&locks, A), [(LockKind::Write, 0, u64::MAX)]);
        locks.take(INO, A, range(LockKind::Unlock, 0, u64::MAX), None);
        assert!(locks.tables.is_empty(), "an inode without locks costs nothing");
    }

    #[test]
    fn waits_are_granted_oldest_first_and_can_be_cancelled() {
        let mut locks = Locks::default();
        locks.take(INO, A, range(LockKind::Write, 0, 9), None);
        for (session, kind) in [(B, LockKind::Write), (C, LockKind::Read)] {
            let (taken, _) = locks.take(INO, session, range(kind, 0, 9), Some(Sequence(5)));
            assert_eq!(taken, Taken::Waits);
        }
        assert_eq!(locks.waits_of(B), [(B, Sequence(5))]);
        let (_, granted) = locks.take(INO, A, range(LockKind::Unlock, 0, 9), None);
        assert_eq!(granted, [(B, Sequence(5))]);
        assert!(locks.cancel(INO, (C, Sequence(5))) && !locks.cancel(INO, (C, Sequence(5))));
        assert_eq!(locks.end_session(B), []);
    }

    #[test]
    fn a_wait_asked_for_twice_is_one_wait() {
        let mut locks = Locks::default();
        locks.take(INO, A, range(LockKind::Write, 0, 9), None);
        for _ in 0..2 {
            locks.take(INO, B, range(LockKind::Write, 0, 9), Some(Sequence(5)));
        }
        assert_eq!(locks.end_session(A), [(B, Sequence(5))]);
    }

    #[test]
    fn a_circle_of_waits_over_two_inodes_is_refused() {
        let mut locks = Locks::default();
        let other = Ino(10);
        locks.take(INO, A, range(LockKind::Write, 0, 9), None);
        locks.take(other, B, range(LockKind::Write, 0, 9), None);
        let (taken, _) = locks.take(other, A, range(LockKind::Write, 0, 9), Some(Sequence(1)));
        assert_eq!(taken, Taken::Waits);
        let (taken, _) = locks.take(INO, B, range(LockKind::Read, 3, 3), Some(Sequence(1)));
        assert_eq!(taken, Taken::Deadlock);
        let (taken, _) = locks.take(INO, C, range(LockKind::Read, 3, 3), Some(Sequence(1)));
        assert_eq!(taken, Taken::Waits);
    }

    #[test]
    fn a_flock_conversion_gives_the_old_lock_up_before_it_waits() {
        let mut locks = Locks::default();
        locks.take(INO, A, flock(LockKind::Read), None);
        locks.take(INO, B, flock(LockKind::Read), None);
        assert_eq!(locks.take(INO, A, flock(LockKind::Write), Some(Sequence(1))).0, Taken::Waits);
        let (taken, granted) = locks.take(INO, B, flock(LockKind::Write), Some(Sequence(1)));
        assert_eq!((taken, granted), (Taken::Granted, vec![]), "A has nothing any more");
        assert_eq!(locks.take(INO, B, flock(LockKind::Unlock), None).1, [(A, Sequence(1))]);
    }

    #[test]
    fn random_requests_never_break_the_invariants() {
        let mut state = 88_172_645_463_325_252_u64;
        let mut draw = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let mut locks = Locks::default();
        for step in 0..20_000 {
            let kind = [LockKind::Read, LockKind::Write, LockKind::Unlock][draw(3) as usize];
            let start = draw(20);
            let lock = range(kind, start, start + draw(10));
            let wait = (draw(2) == 0).then_some(Sequence(step));
            locks.take(INO, SessionId(1 + draw(4)), lock, wait);
            let Some(table) = locks.tables.get(&INO) else { continue };
            for (at, one) in table.held.iter().enumerate() {
                for two in &table.held[at + 1..] {
                    assert!(!one.conflicts(two));
                    assert!(!one.is_of(two) || !one.overlaps(two));
                }
            }
            for wait in &table.waiting {
                assert!(table.conflict(&wait.wanted).is_some(), "nothing waits without reason");
            }
        }
    }
}
