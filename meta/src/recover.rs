//! What to do with a shard's snapshot and a journal entry of it after a stop.

/// What becomes of an entry, or why the shard cannot be recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The state contains it already.
    Skip,
    /// Apply it.
    Apply,
    /// Entries are missing between the state and this one: refuse to start, naming shard, `have` and `next`.
    Gap {
        /// Number of the last record the state contains.
        have: u64,
        /// Number of the entry.
        next: u64,
    },
}

/// What to do with entry `number` of a shard, when its state contains the records up to `have` (0 for an empty shard).
#[must_use]
pub const fn step(have: u64, number: u64) -> Step {
    if number <= have {
        Step::Skip
    } else if number == have + 1 {
        Step::Apply
    } else {
        Step::Gap { have, next: number }
    }
}
