//! How long something took, in a fixed set of buckets.
//!
//! All histograms have the same bounds, so that any two can be added and compared: those of a node's cores, of nodes and of
//! mounts. Bounds are in nanoseconds here and in seconds where they are shown.

/// A histogram of durations. Adding to it costs a walk over at most [`BOUNDS_NS`] and two additions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// How many durations are at most as long as the bound of the same place and longer than the one before; the last
    /// bucket has no bound.
    buckets: [u64; BOUNDS_NS.len() + 1],
    sum_ns: u64,
}

/// The buckets' upper bounds: from a request that memory answers over TCP to one that a dead node holds up for half a minute.
/// Each is one more time series per kind of request, so they are few.
pub const BOUNDS_NS: [u64; 14] = [
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    50_000_000,
    250_000_000,
    1_000_000_000,
    5_000_000_000,
    30_000_000_000,
];

impl Histogram {
    /// Something took so long.
    pub fn add(&mut self, ns: u64) {
        let bucket = BOUNDS_NS.iter().position(|bound| ns <= *bound).unwrap_or(BOUNDS_NS.len());
        self.buckets[bucket] += 1;
        self.sum_ns = self.sum_ns.saturating_add(ns);
    }

    /// Adds all that `other` has seen.
    pub fn merge(&mut self, other: &Self) {
        for (own, more) in self.buckets.iter_mut().zip(other.buckets) {
            *own += more;
        }
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// How long all of them took together, nanoseconds.
    #[must_use]
    pub const fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    /// For each of [`BOUNDS_NS`] how many took at most so long.
    pub(crate) fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut sum = 0;
        BOUNDS_NS.into_iter().zip(self.buckets).map(move |(bound, count)| {
            sum += count;
            (bound, sum)
        })
    }
}

const _: () = {
    let mut at = 1;
    while at < BOUNDS_NS.len() {
        assert!(BOUNDS_NS[at - 1] < BOUNDS_NS[at], "bounds ascend");
        at += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_the_bucket_below_it() {
        let mut histogram = Histogram::default();
        for ns in [0, BOUNDS_NS[0], BOUNDS_NS[0] + 1, u64::MAX] {
            histogram.add(ns);
        }
        let counts: Vec<u64> = histogram.cumulative().map(|(_, count)| count).collect();
        assert_eq!((counts[0], counts[1], counts[13], histogram.count()), (2, 3, 3, 4));
    }

    #[test]
    fn merging_is_adding_everything_again() {
        let (mut one, mut other, mut both) =
            (Histogram::default(), Histogram::default(), Histogram::default());
        for ns in [1, 40_000, 7_000_000, 60_000_000_000] {
            one.add(ns);
            both.add(ns);
            other.add(2 * ns);
            both.add(2 * ns);
        }
        one.merge(&other);
        assert_eq!(one, both);
    }
}
