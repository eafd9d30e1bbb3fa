//! What to do with snapshots and journal after a stop, as tables: each case has exactly one row.
//!
//! **An entry of a shard** whose state contains the records up to `have` (0: no snapshot, or an empty one):
//!
//! | entry's number | step | how it comes about |
//! |---|---|---|
//! | 0 | `Invalid` | never written: numbers begin at 1 |
//! | 1..=have | `Skip` | the snapshot was taken after it, the journal not yet cut |
//! | have + 1 | `Apply` | the ordinary case |
//! | above | `Gap` | a segment or a snapshot was taken away |
//!
//! **The end of a segment's entries** ([`End`]), in the newest segment or an older one; `unsynced`: the machine lost power,
//! and the place lies above the last sync mark, so that the device may have kept any part of what was written there:
//!
//! | end | segment | unsynced | step | how it comes about |
//! |---|---|---|---|---|
//! | Clean | any | any | `GoOn` | stopped between two entries |
//! | Torn | newest | any | `Cut` | stopped within an entry: nothing of it was acknowledged as durable |
//! | Torn | older | yes | `Cut` | the device kept a later segment and lost this one's tail |
//! | Torn | older | no | `Refuse` | damage: the newer segment continues what is not there |
//! | Damaged | any | yes | `Cut` | the device kept a later entry and lost an earlier one |
//! | Damaged | any | no | `Refuse` | damage below what was acknowledged |
//!
//! `Cut` zeroes the segment from the offset on and removes all newer segments.
//!
//! **A snapshot** that cannot be decoded, or whose header names another cluster, node or shard, refuses the start: the
//! rename that put it there was atomic, so that a crash cannot be the cause. Temporary files are removed unread.

use crate::journal::End;

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
    /// No entry has this number: refuse to start.
    Invalid,
}

/// What to do with entry `number` of a shard, when its state contains the records up to `have` (0 for an empty shard).
#[must_use]
pub const fn step(have: u64, number: u64) -> Step {
    if number == 0 {
        Step::Invalid
    } else if number <= have {
        Step::Skip
    } else if number == have + 1 {
        Step::Apply
    } else {
        Step::Gap { have, next: number }
    }
}

/// What to do at the end of a segment's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndStep {
    /// On to the next segment; behind the newest one new entries follow.
    GoOn,
    /// Zero the segment from this offset on and remove all newer segments.
    Cut(u64),
    /// Refuse to start, naming segment and offset.
    Refuse(u64),
}

/// What to do where a segment's entries end. `newest`: no later segment has entries. `unsynced`: the machine lost power
/// since, and the place lies above the last sync mark.
#[must_use]
pub const fn end_step(end: End, newest: bool, unsynced: bool) -> EndStep {
    match end {
        End::Clean => EndStep::GoOn,
        End::Torn { offset } if newest || unsynced => EndStep::Cut(offset),
        End::Damaged { offset, .. } if unsynced => EndStep::Cut(offset),
        End::Torn { offset } | End::Damaged { offset, .. } => EndStep::Refuse(offset),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_has_exactly_one_row() {
        type Row = (fn(u64, u64) -> bool, fn(Step) -> bool);
        let rows: [Row; 4] = [
            (|_, number| number == 0, |step| step == Step::Invalid),
            (|have, number| (1..=have).contains(&number), |step| step == Step::Skip),
            (|have, number| number == have + 1, |step| step == Step::Apply),
            (|have, number| number > have + 1, |step| matches!(step, Step::Gap { .. })),
        ];
        for have in 0..4 {
            for number in 0..7 {
                let fits: Vec<&Row> = rows.iter().filter(|(fits, _)| fits(have, number)).collect();
                assert_eq!(fits.len(), 1, "have {have}, entry {number}");
                assert!(fits[0].1(step(have, number)), "have {have}, entry {number}");
            }
        }
    }

    #[test]
    fn every_end_has_exactly_one_row() {
        type Row = (fn(End, bool, bool) -> bool, EndStep);
        let rows: [Row; 6] = [
            (|end, _, _| end == End::Clean, EndStep::GoOn),
            (|end, newest, _| matches!(end, End::Torn { .. }) && newest, EndStep::Cut(5)),
            (
                |end, newest, unsynced| matches!(end, End::Torn { .. }) && !newest && unsynced,
                EndStep::Cut(5),
            ),
            (
                |end, newest, unsynced| matches!(end, End::Torn { .. }) && !newest && !unsynced,
                EndStep::Refuse(5),
            ),
            (|end, _, unsynced| matches!(end, End::Damaged { .. }) && unsynced, EndStep::Cut(5)),
            (
                |end, _, unsynced| matches!(end, End::Damaged { .. }) && !unsynced,
                EndStep::Refuse(5),
            ),
        ];
        for end in [End::Clean, End::Torn { offset: 5 }, End::Damaged { offset: 5, next: 9 }] {
            for (newest, unsynced) in [(false, false), (false, true), (true, false), (true, true)] {
                let fits: Vec<&Row> =
                    rows.iter().filter(|(fits, _)| fits(end, newest, unsynced)).collect();
                assert_eq!(fits.len(), 1, "{end:?}, newest {newest}, unsynced {unsynced}");
                assert_eq!(end_step(end, newest, unsynced), fits[0].1);
            }
        }
    }
}
