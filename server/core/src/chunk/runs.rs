//! A set of free blocks, kept as runs: found by place and by size in O(log n).
//!
//! 1. Runs are not empty, disjoint, and never adjacent: neighbours are one run.
//! 2. `by_size` holds exactly the runs of `by_start`; `total` is the sum of their counts.
//!
//! Counts are 64 bits here, for one run may span a volume of more than 16 TiB.

use std::collections::{BTreeMap, BTreeSet};

use super::Run;

/// The set.
#[derive(Debug, Default)]
pub(super) struct Runs {
    by_start: BTreeMap<u64, u64>,
    by_size: BTreeSet<(u64, u64)>,
    total: u64,
}

impl Runs {
    /// Number of blocks.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Adds blocks. Panics if one of them is in the set already: two owners of a block are a bug that must not go on.
    pub(super) fn insert(&mut self, start: u64, count: u64) {
        assert!(count > 0, "a run of free blocks is not empty");
        let (mut from, mut to) = (start, start + count);
        if let Some((&before, &len)) = self.by_start.range(..=start).next_back() {
            assert!(before + len <= start, "block {start} is freed only once");
            if before + len == start {
                from = before;
                self.remove(before, len);
            }
        }
        if let Some((&after, &len)) = self.by_start.range(start..).next() {
            assert!(to <= after, "block {after} is freed only once");
            if after == to {
                to = after + len;
                self.remove(after, len);
            }
        }
        self.add(from, to - from);
    }

    /// Takes `count` blocks in as few runs as are easily had: from the run at or behind `cursor` (which moves behind what was
    /// taken), else from the smallest run that is large enough, else from the largest ones. `None`, and nothing taken, if
    /// there are fewer.
    pub(super) fn take(&mut self, count: u32, cursor: &mut u64) -> Option<Vec<Run>> {
        if self.total < u64::from(count) {
            return None;
        }
        let mut taken = Vec::new();
        let mut left = count;
        while left > 0 {
            let wanted = u64::from(left);
            let next = self.by_start.range(*cursor..).next().map(|(start, len)| (*len, *start));
            let (len, start) = next
                .filter(|(len, _)| *len >= wanted)
                .or_else(|| self.by_size.range((wanted, 0)..).next().copied())
                .or_else(|| self.by_size.last().copied())
                .expect("the total says that there are enough");
            let piece = left.min(u32::try_from(len).unwrap_or(u32::MAX));
            self.take_front(start, piece);
            taken.push(Run { start, count: piece });
            *cursor = start + u64::from(piece);
            left -= piece;
        }
        Some(taken)
    }

    /// Takes at most `count` blocks (not 0) from the front of the largest run, and not beyond the next multiple of `group`.
    pub(super) fn take_piece(&mut self, count: u32, group: u32) -> Option<Run> {
        let (len, start) = *self.by_size.last()?;
        let boundary = u64::from(group) - start % u64::from(group);
        let piece = len.min(boundary).min(u64::from(count)) as u32;
        self.take_front(start, piece);
        Some(Run { start, count: piece })
    }

    fn take_front(&mut self, start: u64, count: u32) {
        let len = self.by_start[&start];
        self.remove(start, len);
        let count = u64::from(count);
        if len > count {
            self.add(start + count, len - count);
        }
    }

    fn add(&mut self, start: u64, count: u64) {
        self.by_start.insert(start, count);
        self.by_size.insert((count, start));
        self.total += count;
    }

    fn remove(&mut self, start: u64, count: u64) {
        self.by_start.remove(&start);
        self.by_size.remove(&(count, start));
        self.total -= count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_neighbours_become_one_run() {
        let mut runs = Runs::default();
        for start in [0, 20, 10, 30] {
            runs.insert(start, 10);
        }
        assert_eq!((runs.by_start.len(), runs.total()), (1, 40));
    }

    #[test]
    #[should_panic(expected = "freed only once")]
    fn a_block_cannot_be_freed_twice() {
        let mut runs = Runs::default();
        runs.insert(5, 10);
        runs.insert(14, 1);
    }

    #[test]
    fn sequential_takes_are_contiguous_and_the_last_blocks_are_found_in_pieces() {
        let mut runs = Runs::default();
        runs.insert(0, 4);
        runs.insert(100, 10);
        let mut cursor = 50;
        assert_eq!(runs.take(3, &mut cursor), Some(vec![Run { start: 100, count: 3 }]));
        assert_eq!(runs.take(3, &mut cursor), Some(vec![Run { start: 103, count: 3 }]));
        assert_eq!(runs.take(9, &mut cursor), None);
        let pieces = vec![Run { start: 106, count: 4 }, Run { start: 0, count: 4 }];
        assert_eq!(runs.take(8, &mut cursor), Some(pieces));
        assert_eq!(runs.total(), 0);
    }

    #[test]
    fn pieces_end_at_group_boundaries() {
        let mut runs = Runs::default();
        runs.insert(60, 100);
        assert_eq!(runs.take_piece(1_000, 64), Some(Run { start: 60, count: 4 }));
        assert_eq!(runs.take_piece(1_000, 64), Some(Run { start: 64, count: 64 }));
        assert_eq!(runs.take_piece(5, 64), Some(Run { start: 128, count: 5 }));
    }
}
