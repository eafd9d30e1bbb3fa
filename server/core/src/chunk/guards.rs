//! Who may change which blocks of which chunk: a queue per chunk, first come, first served.
//!
//! 1. Of two guards that touch a common block, the one that entered first is ready first, and the other only after it left.
//! 2. Guards of one chunk that touch no common block never wait for each other.

use std::collections::BTreeMap;

use sealfs_proto::{Ino, limits};

use super::record::BLOCKS_MAX;

/// Names a guard while it is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuardId(u64);

/// The right to change a range of one chunk, or a place in the queue for it. Changes of one chunk that touch a common block
/// are serialised in the order in which they entered. Given back by [`super::Chunks::leave`]; a guard that is only dropped
/// blocks its range for ever.
#[derive(Debug)]
#[must_use]
pub struct Guard {
    pub(super) key: (Ino, u64),
    place: Place,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    id: GuardId,
    /// Blocks of the chunk.
    from: u32,
    to: u32,
}

impl Place {
    fn touches(&self, other: &Self) -> bool {
        self.from < other.to && other.from < self.to
    }
}

impl Guard {
    /// Its name.
    #[must_use]
    pub fn id(&self) -> GuardId {
        self.place.id
    }

    /// Whether it covers the bytes `from..to`.
    pub(super) fn covers(&self, from: u32, to: u32) -> bool {
        let (from, to) = blocks_of(from, to);
        from >= to || (self.place.from <= from && to <= self.place.to)
    }
}

/// The queues of all chunks that are being changed.
#[derive(Debug, Default)]
pub(super) struct Guards {
    queues: BTreeMap<(Ino, u64), Vec<Place>>,
    next: u64,
}

impl Guards {
    pub(super) fn enter(&mut self, key: (Ino, u64), from: u32, to: u32) -> Guard {
        let (from, to) = blocks_of(from, to);
        let place = Place { id: GuardId(self.next), from, to };
        self.next += 1;
        self.queues.entry(key).or_default().push(place);
        Guard { key, place }
    }

    pub(super) fn ready(&self, guard: &Guard) -> bool {
        is_first(&self.queues[&guard.key], &guard.place)
    }

    pub(super) fn leave(&mut self, guard: Guard) -> Vec<GuardId> {
        let queue = self.queues.get_mut(&guard.key).expect("a guard is queued until it leaves");
        let Guard { key, place: left } = guard;
        let at = queue.iter().position(|place| place.id == left.id);
        let at = at.expect("a guard is queued until it leaves");
        queue.remove(at);
        let freed = queue[at..].iter().filter(|place| place.touches(&left));
        let freed = freed.filter(|place| is_first(queue, place)).map(|place| place.id).collect();
        if queue.is_empty() {
            self.queues.remove(&key);
        }
        freed
    }
}

/// Whether nobody in front of `place` touches it.
fn is_first(queue: &[Place], place: &Place) -> bool {
    !queue.iter().take_while(|other| other.id != place.id).any(|other| other.touches(place))
}

/// The blocks that the bytes `from..to` touch, cut to the largest chunk.
fn blocks_of(from: u32, to: u32) -> (u32, u32) {
    let block = limits::BLOCK_SIZE;
    ((from / block).min(BLOCKS_MAX), to.div_ceil(block).min(BLOCKS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: (Ino, u64) = (Ino(9), 0);

    #[test]
    fn changes_of_a_common_block_wait_in_order() {
        let mut guards = Guards::default();
        let first = guards.enter(KEY, 0, 4_097);
        let second = guards.enter(KEY, 4_100, 4_200);
        let third = guards.enter(KEY, 0, u32::MAX);
        let apart = guards.enter(KEY, 100 * 4_096, 101 * 4_096);
        assert!(guards.ready(&first) && !guards.ready(&second) && !guards.ready(&third));
        assert!(!guards.ready(&apart), "the third came before and covers everything");
        assert_eq!(guards.leave(first), [second.id()]);
        assert_eq!(guards.leave(second), [third.id()]);
        assert_eq!(guards.leave(third), [apart.id()]);
        assert_eq!(guards.leave(apart), []);
        assert!(guards.queues.is_empty());
    }

    #[test]
    fn one_that_gives_up_waiting_wakes_those_behind_it() {
        let mut guards = Guards::default();
        let first = guards.enter(KEY, 0, 10);
        let everything = guards.enter(KEY, 0, u32::MAX);
        let last = guards.enter(KEY, 8_192, 8_193);
        assert_eq!(guards.leave(everything), [last.id()]);
        assert!(guards.ready(&first) && guards.ready(&last));
    }

    #[test]
    fn chunks_do_not_wait_for_each_other() {
        let mut guards = Guards::default();
        let one = guards.enter(KEY, 0, 10);
        let other = guards.enter((KEY.0, 1), 0, 10);
        assert!(guards.ready(&one) && guards.ready(&other));
    }
}
