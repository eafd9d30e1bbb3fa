//! Appending to the journal: one write at a time, all batches that wait in it, rolling over to a spare segment.
//!
//! ```text
//! append ──> queue ──> write in flight ──> done          a spare is made while the segment before it fills
//!               │ no room: roll over (needs a spare)
//! sync   ──> waits for the appends before it and for closed segments, then fdatasync of the last segment
//! ```
//! 1. Appends complete in their order, and a batch is written only when all batches before it are: after the death of the
//!    process, what is missing is missing at the end.
//! 2. After an error nothing is written any more, and everything fails: the core ends the process. A spare that cannot be
//!    made is one only when a batch has no other room; until then every batch tries again.

use std::collections::VecDeque;

use sealfs_meta::journal::position_of;
use sealfs_ring::{File, Op, Piece};

use super::worker::Job;
use crate::segments::{Segments, Spare};
use crate::store::{FileError, Place};

/// The journal's queue. It decides what happens next; [`super::RingDisk`] carries it out.
pub(super) struct Journal {
    segments: Segments,
    /// The last segment, for the ring.
    file: Option<(File, Place)>,
    waiting: VecDeque<(u64, Vec<u8>)>,
    writing: Vec<u64>,
    /// Appends taken and completed since the start.
    taken: u64,
    completed: u64,
    /// Syncs that wait: after how many completed appends, and their ids.
    syncs: VecDeque<(u64, u64)>,
    /// Segments that the worker makes durable.
    closing: u32,
    spare: Option<Spare>,
    spare_wanted: bool,
    /// A batch has no room without a spare.
    spare_needed: bool,
    failed: Option<FileError>,
}

/// What is to be done next.
pub(super) enum Step {
    /// Submits a write of the journal.
    Write(Op),
    /// Submits a sync of the journal, which completes this id.
    Sync(u64, Op),
    /// Gives a job to the worker.
    Job(Job),
    /// Completes an operation.
    Complete(u64, Result<(), FileError>),
}

impl Journal {
    /// A journal that goes on behind what was recovered.
    pub(super) fn new(mut segments: Segments) -> Result<Self, FileError> {
        let file = match segments.room(0) {
            Some(tail) => Some((File::new(tail.extent.file()?), tail.extent.place().clone())),
            None => None,
        };
        Ok(Self {
            segments,
            file,
            waiting: VecDeque::new(),
            writing: Vec::new(),
            taken: 0,
            completed: 0,
            syncs: VecDeque::new(),
            closing: 0,
            spare: None,
            spare_wanted: false,
            spare_needed: false,
            failed: None,
        })
    }

    /// Queues a batch.
    pub(super) fn append(&mut self, id: u64, bytes: Vec<u8>) {
        self.taken += 1;
        self.waiting.push_back((id, bytes));
    }

    /// Queues a sync of all appends so far.
    pub(super) fn sync(&mut self, id: u64) {
        self.syncs.push_back((self.taken, id));
    }

    /// What may go when nothing below `position` is needed.
    pub(super) fn cut(&mut self, id: u64, position: u64) -> Job {
        Job::Remove { id, segments: self.segments.cut(position) }
    }

    /// An error in what was done to the segment that is appended to.
    pub(super) fn failed(&self, what: &str, error: std::io::Error) -> FileError {
        match &self.file {
            Some((_, place)) => place.failed(what)(error),
            None => FileError::new(what, "the journal", &error),
        }
    }

    /// The write in flight is on its way to the device, or failed.
    pub(super) fn on_written(&mut self, result: Result<u64, FileError>, steps: &mut Vec<Step>) {
        let ids = std::mem::take(&mut self.writing);
        match result {
            Ok(len) => {
                let tail = self.segments.room(len).expect("what was written had room");
                tail.used += len;
                self.completed += ids.len() as u64;
                steps.extend(ids.into_iter().map(|id| Step::Complete(id, Ok(()))));
            }
            Err(error) => {
                steps.extend(ids.into_iter().map(|id| Step::Complete(id, Err(error.clone()))));
                self.failed = Some(error);
            }
        }
    }

    /// A spare is there, or could not be made.
    pub(super) fn on_spare(&mut self, result: Result<Spare, FileError>) {
        self.spare_wanted = false;
        match result {
            Ok(spare) => self.spare = Some(spare),
            Err(error) if self.spare_needed => self.failed = Some(error),
            Err(error) => {
                tracing::warn!(%error, "there is room in the journal's last segment only");
            }
        }
    }

    /// A closed segment is on the device, or a sync failed.
    pub(super) fn on_closed(&mut self, result: Result<(), FileError>) {
        self.closing -= 1;
        self.failed = self.failed.take().or(result.err());
    }

    /// A sync failed: what was to be durable may not be, and asking again would not tell (fsync(2)).
    pub(super) fn on_sync_failed(&mut self, error: &FileError) {
        self.failed.get_or_insert_with(|| error.clone());
    }

    /// What can be done now.
    pub(super) fn next(&mut self, steps: &mut Vec<Step>) {
        if self.writing.is_empty() && self.failed.is_none() && !self.waiting.is_empty() {
            self.write(steps);
        }
        if let Some(error) = &self.failed {
            let ids = self.waiting.drain(..).map(|(id, _)| id);
            let ids = ids.chain(self.syncs.drain(..).map(|(_, id)| id));
            steps.extend(ids.map(|id| Step::Complete(id, Err(error.clone()))));
            return;
        }
        while self.closing == 0 && self.syncs.front().is_some_and(|(at, _)| *at <= self.completed) {
            let Some((_, id)) = self.syncs.pop_front() else { break };
            steps.push(match &self.file {
                Some((file, _)) => Step::Sync(id, Op::Sync { file: file.clone(), data_only: true }),
                None => Step::Complete(id, Ok(())),
            });
        }
    }

    /// Writes all batches that have room in the last segment; rolls over if not even the first has.
    fn write(&mut self, steps: &mut Vec<Step>) {
        let first_len = self.waiting.front().map_or(0, |(_, bytes)| bytes.len() as u64);
        if self.segments.room(first_len).is_none() && !self.roll(first_len, steps) {
            return;
        }
        let Some(tail) = self.segments.room(first_len) else { return };
        let (at, len) = (tail.extent.start() + tail.used, tail.extent.len());
        let mut room = len - tail.used;
        let half_full = room < len / 2;
        let mut pieces = Vec::new();
        while self.waiting.front().is_some_and(|(_, bytes)| bytes.len() as u64 <= room) {
            if pieces.len() == Op::PIECES_MAX {
                break;
            }
            let Some((id, bytes)) = self.waiting.pop_front() else { break };
            room -= bytes.len() as u64;
            self.writing.push(id);
            pieces.push(Piece::Bytes(bytes));
        }
        if let Some((file, _)) = self.file.clone() {
            steps.push(Step::Write(Op::Write { file, at: Some(at), pieces, skip: 0 }));
        }
        if half_full {
            self.want_spare(0, steps);
        }
    }

    /// Goes over to a new segment; `false`: not yet, or never.
    fn roll(&mut self, len: u64, steps: &mut Vec<Step>) -> bool {
        match self.spare.take_if(|spare| spare.room() >= len) {
            None => {
                // A spare that is too small for a batch is made anew, with room.
                self.spare = None;
                // One that is being made may be too small, too, or fail: its batch then asks again.
                self.spare_needed = !self.spare_wanted;
                self.want_spare(len, steps);
                false
            }
            Some(spare) => match self.roll_to(spare, steps) {
                Ok(()) => {
                    self.spare_needed = false;
                    true
                }
                Err(error) => {
                    self.failed = Some(error);
                    false
                }
            },
        }
    }

    fn roll_to(&mut self, spare: Spare, steps: &mut Vec<Step>) -> Result<(), FileError> {
        let batch = self.waiting.front().map(|(_, bytes)| bytes.as_slice()).unwrap_or_default();
        let first = position_of(batch).expect("what is appended are whole entries");
        let closed = self.segments.roll(spare, first)?;
        let tail = self.segments.room(0).expect("a new segment has room");
        self.file = Some((File::new(tail.extent.file()?), tail.extent.place().clone()));
        self.closing += 1;
        let extent = closed.map(|closed| closed.extent);
        steps.push(Step::Job(Job::Close { journal: self.segments.journal(), extent }));
        Ok(())
    }

    fn want_spare(&mut self, len: u64, steps: &mut Vec<Step>) {
        if self.spare.is_none() && !self.spare_wanted {
            self.spare_wanted = true;
            steps.push(Step::Job(Job::Spare { journal: self.segments.journal(), len }));
        }
    }
}
