//! The core's disk over its thread's ring: the node's volume, this core's journal, snapshots.
//!
//! Reads and writes are completed here if the kernel cut them short; nothing is retried after an error. What would block
//! (names, directories) goes to a worker thread.
//!
//! The volume is read and written through the page cache. O_DIRECT and fixed files would change [`RingDisk::new`] only.

mod journal;
mod worker;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use sealfs_ring::{Completion, File, Op, Owner, Piece, Ring};
use sealfs_server_core::{Disk, DiskDone, DiskError, DiskOp};

use crate::StartError;
use crate::datadir::VOLUME_AT;
use crate::segments::Segments;
use crate::store::{Extent, Store};
use journal::{Journal, Step};
use worker::{Job, Outcome, Worker};

/// A core's disk; a clone is the same one (the core has one as its port, the loop one to hand completions in).
#[derive(Clone)]
pub(crate) struct RingDisk(Rc<RefCell<Inner>>);

struct Inner {
    ring: Ring,
    volume: File,
    /// Where the volume's blocks begin in its file.
    blocks_at: u64,
    journal: Journal,
    worker: Worker,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    done: VecDeque<(u64, Result<DiskDone, DiskError>)>,
}

/// What an operation of the ring is for.
#[derive(Clone, Copy, Debug)]
enum Flight {
    /// Of the volume: a read or write of `len` bytes at `offset`, `moved` of them done.
    Transfer {
        id: u64,
        offset: u64,
        len: u64,
        moved: u64,
    },
    SyncVolume {
        id: u64,
    },
    /// The journal's write.
    Append {
        len: u64,
        moved: u64,
    },
    SyncJournal {
        id: u64,
    },
}

impl RingDisk {
    /// The disk of core `core`: `volume` is the node's, in `store`, and `segments` the recovered journal.
    pub(crate) fn new(
        ring: Ring,
        core: u16,
        store: Arc<dyn Store>,
        volume: &Extent,
        segments: Segments,
    ) -> Result<Self, StartError> {
        let worker = Worker::start(format!("disk {core}"), store, ring.wake())
            .map_err(|error| StartError(format!("cannot start a thread: {error}")))?;
        Ok(Self(Rc::new(RefCell::new(Inner {
            ring,
            volume: File::new(volume.file()?),
            blocks_at: volume.start() + VOLUME_AT,
            journal: Journal::new(segments)?,
            worker,
            flights: Vec::new(),
            free: Vec::new(),
            done: VecDeque::new(),
        }))))
    }

    /// Whether [`Disk::poll`] would give something that was complete when it was submitted.
    pub(crate) fn has_completions(&self) -> bool {
        !self.0.borrow().done.is_empty()
    }

    /// Takes a completion of the ring whose owner is [`Owner::Disk`].
    pub(crate) fn on_completion(&self, completion: Completion) {
        self.0.borrow_mut().on_completion(completion);
    }
}

impl Disk for RingDisk {
    fn submit(&mut self, id: u64, op: DiskOp) {
        self.0.borrow_mut().submit(id, op);
    }

    fn poll(&mut self) -> Option<(u64, Result<DiskDone, DiskError>)> {
        let mut inner = self.0.borrow_mut();
        while let Some(outcome) = inner.worker.poll() {
            inner.on_outcome(outcome);
        }
        inner.done.pop_front()
    }
}

impl Inner {
    fn submit(&mut self, id: u64, op: DiskOp) {
        match op {
            DiskOp::Read { offset, len, region } => {
                let (file, at) = (self.volume.clone(), Some(self.blocks_at + offset));
                let flight = Flight::Transfer { id, offset, len: u64::from(len), moved: 0 };
                self.launch(flight, Op::Read { file, at, region, from: 0, to: len as usize });
            }
            DiskOp::Write { offset, bytes } => {
                let (file, at) = (self.volume.clone(), Some(self.blocks_at + offset));
                let len = bytes.iter().map(|slice| slice.len() as u64).sum();
                let pieces = bytes.into_iter().map(Piece::Slice).collect();
                let flight = Flight::Transfer { id, offset, len, moved: 0 };
                self.launch(flight, Op::Write { file, at, pieces, skip: 0 });
            }
            DiskOp::SyncVolume => {
                let file = self.volume.clone();
                self.launch(Flight::SyncVolume { id }, Op::Sync { file, data_only: true });
            }
            DiskOp::Append { bytes } => {
                self.journal.append(id, bytes);
                self.advance(Vec::new());
            }
            DiskOp::SyncJournal => {
                self.journal.sync(id);
                self.advance(Vec::new());
            }
            DiskOp::Snapshot { shard, bytes } => {
                self.worker.submit(Job::Snapshot { id, shard, bytes });
            }
            DiskOp::Cut { position } => {
                let job = self.journal.cut(id, position);
                self.worker.submit(job);
            }
        }
    }

    fn launch(&mut self, flight: Flight, op: Op) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.flights.push(None);
            self.flights.len() - 1
        });
        self.flights[slot] = Some(flight);
        self.ring.submit(Owner::Disk, slot as u64, op);
    }

    fn on_completion(&mut self, completion: Completion) {
        let slot = completion.id as usize;
        let flight = self.flights[slot].take().expect("an operation in flight has its flight");
        self.free.push(slot);
        match flight {
            Flight::Transfer { id, offset, len, moved } => {
                let moved = match progress(&completion.result, moved, len) {
                    Ok(moved) => moved,
                    Err(error) => {
                        let end = offset + len;
                        let what = match completion.op {
                            Op::Read { .. } => format!("read of volume bytes {offset}..{end}"),
                            _ => format!("write of volume bytes {offset}..{end}"),
                        };
                        let error = DiskError { what, cause: error.to_string() };
                        return self.done.push_back((id, Err(error)));
                    }
                };
                if moved < len {
                    let flight = Flight::Transfer { id, offset, len, moved };
                    return self
                        .launch(flight, go_on(completion.op, self.blocks_at + offset, moved));
                }
                let done = match completion.op {
                    Op::Read { region, .. } => DiskDone::Read(region),
                    _ => DiskDone::Done,
                };
                self.done.push_back((id, Ok(done)));
            }
            Flight::SyncVolume { id } => {
                let what = || "sync of the volume".to_owned();
                let result = completion.result.map(|_| DiskDone::Done);
                let result =
                    result.map_err(|error| DiskError { what: what(), cause: error.to_string() });
                self.done.push_back((id, result));
            }
            Flight::Append { len, moved } => self.on_append(completion, len, moved),
            Flight::SyncJournal { id } => {
                let failed = |error| self.journal.failed("sync", error);
                let result = completion.result.map(drop).map_err(failed);
                if let Err(error) = &result {
                    self.journal.on_sync_failed(error);
                }
                self.advance(vec![Step::Complete(id, result)]);
            }
        }
    }

    fn on_append(&mut self, completion: Completion, len: u64, moved: u64) {
        let mut steps = Vec::new();
        match progress(&completion.result, moved, len) {
            Ok(moved_now) if moved_now < len => {
                let Op::Write { at: Some(at), .. } = &completion.op else {
                    unreachable!("an append is a positioned write")
                };
                let start = at - moved;
                let op = go_on(completion.op, start, moved_now);
                return self.launch(Flight::Append { len, moved: moved_now }, op);
            }
            Ok(_) => self.journal.on_written(Ok(len), &mut steps),
            Err(error) => {
                let error = self.journal.failed("append to", error);
                self.journal.on_written(Err(error), &mut steps);
            }
        }
        self.advance(steps);
    }

    fn on_outcome(&mut self, outcome: Outcome) {
        let mut steps = Vec::new();
        match outcome {
            Outcome::Spare(result) => self.journal.on_spare(result),
            Outcome::Closed(result) => self.journal.on_closed(result),
            Outcome::Done(id, result) => steps.push(Step::Complete(id, result)),
        }
        self.advance(steps);
    }

    /// Carries out `steps`, and what the journal can do now.
    fn advance(&mut self, mut steps: Vec<Step>) {
        self.journal.next(&mut steps);
        for step in steps {
            match step {
                Step::Write(op) => {
                    let Op::Write { pieces, .. } = &op else {
                        unreachable!("an append is a write")
                    };
                    let len = pieces.iter().map(|piece| piece.bytes().len() as u64).sum();
                    self.launch(Flight::Append { len, moved: 0 }, op);
                }
                Step::Sync(id, op) => self.launch(Flight::SyncJournal { id }, op),
                Step::Job(job) => self.worker.submit(job),
                Step::Complete(id, result) => {
                    let result = result.map(|()| DiskDone::Done).map_err(DiskError::from);
                    self.done.push_back((id, result));
                }
            }
        }
    }
}

/// Bytes moved after this completion. A file that ends too early is an error, or it would be asked for ever.
fn progress(result: &io::Result<u32>, moved: u64, len: u64) -> io::Result<u64> {
    match result {
        Ok(0) if moved < len => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(more) => Ok(moved + u64::from(*more)),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(moved),
        Err(error) => Err(match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => error.kind().into(),
        }),
    }
}

/// The rest of a transfer that began at `start` of the file, `moved` bytes of which are done.
fn go_on(op: Op, start: u64, moved: u64) -> Op {
    let at = Some(start + moved);
    match op {
        Op::Read { file, region, to, .. } => {
            Op::Read { file, at, region, from: moved as usize, to }
        }
        Op::Write { file, pieces, .. } => Op::Write { file, at, pieces, skip: moved as usize },
        other => other,
    }
}

#[cfg(test)]
mod tests;
