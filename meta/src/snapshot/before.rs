//! One list of a state, written in slices as it was when its snapshot began.
//!
//! ```text
//! keys, ascending:   written | walked | not yet: the live item, unless one is kept here
//! ```
//! The walk goes up by keys. What changes ahead of it is kept first, as the bytes that it had; what comes new ahead of it
//! is noted as absent. What changes behind it is no concern of this snapshot's.
//!
//! 1. A key is kept at most once, before its first change.
//! 2. Items that are kept have not been written: together they never take more bytes than the list itself did at the
//!    beginning. What came new costs its key.
//!
//! It does not know what changes: whoever changes the list says so before, by [`Before::keep`].

use std::collections::BTreeMap;

/// The walk through one list, and what it needs of what has changed ahead of it.
#[derive(Clone, Debug)]
pub struct Before<K> {
    /// What stands before the first item.
    head: Vec<u8>,
    walked: Option<K>,
    ended: bool,
    kept: BTreeMap<K, Option<Vec<u8>>>,
}

impl<K: Copy + Ord> Before<K> {
    /// Begins a walk. `head` is written before the first item.
    #[must_use]
    pub const fn new(head: Vec<u8>) -> Self {
        Self { head, walked: None, ended: false, kept: BTreeMap::new() }
    }

    /// To be called before the item of `key` changes, comes or goes; `item` gives its present bytes, `None` if there is none.
    /// Cost: O(log kept), and the item's bytes once.
    pub fn keep(&mut self, key: K, item: impl FnOnce() -> Option<Vec<u8>>) {
        if !self.ended && Some(key) > self.walked {
            self.kept.entry(key).or_insert_with(item);
        }
    }

    /// Appends items to `out` until `room` bytes are used up (an item may exceed them; one of few bytes counts as
    /// `ITEM_COST_MIN`); true when all are written. `live` gives the present items behind a key, ascending; `put` writes
    /// one.
    pub fn slice<T, I: Iterator<Item = (K, T)>>(
        &mut self,
        out: &mut Vec<u8>,
        room: &mut usize,
        live: impl FnOnce(Option<K>) -> I,
        put: impl Fn(&mut Vec<u8>, K, T),
    ) -> bool {
        if self.ended {
            return true;
        }
        out.append(&mut self.head);
        let mut live = live(self.walked).peekable();
        while *room > 0 {
            let ahead = live.peek().map(|(key, _)| *key);
            let kept = self.kept.first_key_value().map(|(key, _)| *key);
            let Some(key) = ahead.into_iter().chain(kept).min() else {
                self.ended = true;
                return true;
            };
            let start = out.len();
            let item = live.next_if(|(at, _)| *at == key);
            match (self.kept.remove(&key), item) {
                (Some(before), _) => out.extend(before.into_iter().flatten()),
                (None, Some((_, item))) => put(out, key, item),
                (None, None) => unreachable!("the key is one of the two"),
            }
            self.walked = Some(key);
            *room = room.saturating_sub((out.len() - start).max(ITEM_COST_MIN));
        }
        false
    }
}

/// What an item counts at least, so that a slice that skips many new ones ends, too.
const ITEM_COST_MIN: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    type List = BTreeMap<u8, u8>;

    fn slice(before: &mut Before<u8>, list: &List, out: &mut Vec<u8>, mut room: usize) -> bool {
        let live = |walked: Option<u8>| {
            let behind = walked.map_or(0, |walked| u16::from(walked) + 1);
            list.iter().filter(move |(key, _)| u16::from(**key) >= behind).map(|(k, v)| (*k, *v))
        };
        before.slice(out, &mut room, live, |out, key, value| out.extend([key, value]))
    }

    #[test]
    fn whatever_changes_between_slices_the_list_is_written_as_it_was() {
        for seed in 0..300 {
            let mut random = Rng::with_seed(seed);
            let mut list: List = (0..random.u8(..40)).map(|_| (random.u8(..), 1)).collect();
            let head = vec![list.len() as u8];
            let mut expected = head.clone();
            list.iter().for_each(|(key, value)| expected.extend([*key, *value]));
            let (mut before, mut out) = (Before::new(head), Vec::new());
            while !slice(&mut before, &list, &mut out, random.usize(1..100)) {
                for _ in 0..random.usize(..10) {
                    let key = random.u8(..);
                    before.keep(key, || list.get(&key).map(|value| vec![key, *value]));
                    match random.bool() {
                        true => _ = list.insert(key, random.u8(..)),
                        false => _ = list.remove(&key),
                    }
                }
                let kept: usize = before.kept.values().flatten().map(Vec::len).sum();
                assert!(out.len() + kept <= expected.len(), "invariant 2");
            }
            assert_eq!(out, expected, "seed {seed}");
            assert!(slice(&mut before, &list, &mut out, 1) && out == expected, "it has ended");
        }
    }

    #[test]
    fn a_slice_ends_although_all_that_it_meets_is_new() {
        let (mut before, mut list) = (Before::new(Vec::new()), List::new());
        for key in 0..100 {
            before.keep(key, || None);
            list.insert(key, 1);
        }
        let mut out = Vec::new();
        let mut slices = 1;
        while !slice(&mut before, &list, &mut out, 10 * ITEM_COST_MIN) {
            slices += 1;
        }
        assert!(out.is_empty() && slices >= 10, "{slices}");
    }
}
