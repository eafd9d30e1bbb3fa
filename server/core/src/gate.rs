//! The gate that no answer passes before its record: batches of journal entries, and what waits for them.
//!
//! ```text
//! building n ──close──> appending n ──on_written──> written n ──on_synced──> synced n
//! ```
//! Every turn that appends builds one batch. An answer names the batch that holds the newest record of what it shows,
//! whoever made that record, so that a read never shows what a crash could take back.
//!
//! 1. `synced <= written < building`; all three only grow.
//! 2. An item leaves once its batch is acknowledged as the durability asks, items of older batches first.
//! 3. A step, on which another journal goes on, leaves once its batch is written, also where a program's answer would not
//!    wait: the death of this process must not take back what another node or core has built on.
//! 4. A forced step, one of a change that several journals make together, leaves once its batch is on the device: a loss of
//!    power takes the end of one journal and not of the others. Scratch promises nothing then, and forces nothing.
//!
//! It knows neither disk nor journal.

use std::collections::BTreeMap;

use crate::Durability;

/// Number of a batch of journal entries: 0 is none, 1 is [`Batch::REPLAYED`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Batch(pub(crate) u64);

impl Batch {
    /// What the journal held before this process: written, but perhaps never synced.
    pub(crate) const REPLAYED: Self = Self(1);
}

/// Batches and the items that wait for them.
#[derive(Debug)]
pub(crate) struct Gate<T> {
    durability: Durability,
    building: Batch,
    written: Batch,
    synced: Batch,
    acknowledged: BTreeMap<Batch, Vec<T>>,
    on_device: BTreeMap<Batch, Vec<T>>,
}

impl<T> Gate<T> {
    /// Nothing appended yet; what was replayed is written.
    pub(crate) fn new(durability: Durability) -> Self {
        Self {
            durability,
            building: Batch(Batch::REPLAYED.0 + 1),
            written: Batch::REPLAYED,
            synced: Batch(0),
            acknowledged: BTreeMap::new(),
            on_device: BTreeMap::new(),
        }
    }

    /// The batch that an entry appended now is part of.
    pub(crate) fn building(&self) -> Batch {
        self.building
    }

    /// The newest batch that is closed.
    pub(crate) fn closed(&self) -> Batch {
        Batch(self.building.0 - 1)
    }

    /// The newest batch that is written.
    pub(crate) fn written(&self) -> Batch {
        self.written
    }

    /// The newest batch that is on the device.
    pub(crate) fn synced(&self) -> Batch {
        self.synced
    }

    /// Ends the batch being built, for it is handed to the disk.
    pub(crate) fn close(&mut self) -> Batch {
        let closed = self.building;
        self.building = Batch(closed.0 + 1);
        closed
    }

    /// Whether an answer that shows `batch` may leave.
    pub(crate) fn is_open(&self, batch: Batch) -> bool {
        self.durability == Durability::Scratch || batch <= self.upto()
    }

    /// Keeps `item` until `batch` is acknowledged; gives it back if it is already.
    pub(crate) fn hold(&mut self, batch: Batch, item: T) -> Option<T> {
        if self.is_open(batch) {
            return Some(item);
        }
        self.acknowledged.entry(batch).or_default().push(item);
        None
    }

    /// As [`Gate::hold`], for a step between journals.
    pub(crate) fn hold_step(&mut self, batch: Batch, item: T) -> Option<T> {
        if batch <= self.upto() {
            return Some(item);
        }
        self.acknowledged.entry(batch).or_default().push(item);
        None
    }

    /// As [`Gate::hold`], for a forced step.
    pub(crate) fn hold_forced(&mut self, batch: Batch, item: T) -> Option<T> {
        match self.durability {
            Durability::Scratch => self.hold_step(batch, item),
            Durability::Process | Durability::Power => self.hold_for_device(batch, item),
        }
    }

    /// Keeps `item` until `batch` is on the device, in every durability; gives it back if it is already.
    pub(crate) fn hold_for_device(&mut self, batch: Batch, item: T) -> Option<T> {
        if batch <= self.synced {
            return Some(item);
        }
        self.on_device.entry(batch).or_default().push(item);
        None
    }

    /// `batch` and all before it are written; what may leave because of it.
    pub(crate) fn on_written(&mut self, batch: Batch) -> Vec<T> {
        assert!(batch < self.building, "only a closed batch is written");
        self.written = self.written.max(batch);
        self.leaving()
    }

    /// `batch` and all before it are on the device; what may leave because of it.
    pub(crate) fn on_synced(&mut self, batch: Batch) -> Vec<T> {
        assert!(batch <= self.written, "only a written batch is synced");
        self.synced = self.synced.max(batch);
        let mut leaving = self.leaving();
        leaving.extend(split(&mut self.on_device, self.synced));
        leaving
    }

    /// Whether anything waits for the device, so that a sync is needed.
    pub(crate) fn wants_sync(&self) -> bool {
        !self.on_device.is_empty()
            || (self.durability == Durability::Power && !self.acknowledged.is_empty())
    }

    /// Items that wait.
    pub(crate) fn len(&self) -> usize {
        self.acknowledged.values().chain(self.on_device.values()).map(Vec::len).sum()
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.acknowledged.is_empty() && self.on_device.is_empty()
    }

    fn leaving(&mut self) -> Vec<T> {
        let upto = self.upto();
        split(&mut self.acknowledged, upto)
    }

    /// The newest batch that nothing but a fault which this durability does not outlive can take back.
    fn upto(&self) -> Batch {
        match self.durability {
            Durability::Scratch | Durability::Process => self.written,
            Durability::Power => self.synced,
        }
    }
}

/// Takes the items of all batches up to `upto`, in order.
fn split<T>(items: &mut BTreeMap<Batch, Vec<T>>, upto: Batch) -> Vec<T> {
    let later = items.split_off(&Batch(upto.0 + 1));
    std::mem::replace(items, later).into_values().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_waits_for_its_batch_and_no_longer() {
        let mut gate = Gate::new(Durability::Process);
        let first = gate.building();
        assert_eq!(gate.hold(first, "a"), None);
        assert_eq!(gate.hold(Batch(0), "read"), Some("read"));
        gate.close();
        let second = gate.building();
        assert_eq!(gate.hold(second, "b"), None);
        gate.close();
        assert_eq!(gate.on_written(first), ["a"]);
        assert_eq!(gate.hold(first, "c"), Some("c"));
        assert_eq!(gate.on_written(second), ["b"]);
        assert!(gate.is_empty() && !gate.wants_sync());
    }

    #[test]
    fn what_was_replayed_counts_as_written_and_not_as_synced() {
        let mut process = Gate::new(Durability::Process);
        assert_eq!(process.hold(Batch::REPLAYED, 1), Some(1));
        assert_eq!(process.hold_for_device(Batch::REPLAYED, 2), None);
        assert!(process.wants_sync() && process.written() > process.synced());
        assert_eq!(process.on_synced(process.written()), [2]);
        let mut power = Gate::new(Durability::Power);
        assert_eq!(power.hold(Batch::REPLAYED, 3), None, "the loss of power could take it back");
        assert!(power.wants_sync());
        assert_eq!(power.on_synced(power.written()), [3]);
    }

    #[test]
    fn a_forced_step_waits_for_the_device_where_anything_is_promised_of_it() {
        let mut process = Gate::new(Durability::Process);
        assert_eq!(process.hold_forced(process.building(), 1), None);
        let batch = process.close();
        assert_eq!(process.on_written(batch), []);
        assert!(process.wants_sync());
        assert_eq!(process.on_synced(batch), [1]);
        let mut scratch = Gate::new(Durability::Scratch);
        assert_eq!(scratch.hold_forced(scratch.building(), 1), None);
        let batch = scratch.close();
        assert_eq!(scratch.on_written(batch), [1]);
        assert!(!scratch.wants_sync());
    }

    #[test]
    fn power_waits_for_the_device_and_scratch_for_nothing_but_steps() {
        let mut power = Gate::new(Durability::Power);
        assert_eq!(power.hold(power.building(), 1), None);
        let batch = power.close();
        assert_eq!(power.on_written(batch), []);
        assert!(power.wants_sync());
        assert_eq!(power.on_synced(batch), [1]);
        let mut scratch = Gate::new(Durability::Scratch);
        assert_eq!(scratch.hold(scratch.building(), 1), Some(1));
        assert_eq!(scratch.hold_for_device(scratch.building(), 2), None);
        assert_eq!(scratch.hold_step(scratch.building(), 3), None, "another journal builds on it");
        let batch = scratch.close();
        assert_eq!((scratch.on_written(batch), scratch.on_synced(batch)), (vec![3], vec![2]));
        assert_eq!(scratch.hold_step(batch, 4), Some(4));
    }
}
