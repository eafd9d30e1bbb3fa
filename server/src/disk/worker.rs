//! A thread beside each core for what io_uring does not do without waiting: what changes the node's store, and the
//! syncs that go with it.
//!
//! Jobs are carried out in their order. Their number is bounded by whoever submits: a spare and a few closings of the
//! journal, and the snapshots that the core has asked for.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, unbounded};
use sealfs_proto::ShardId;
use sealfs_ring::Wake;

use crate::segments::Spare;
use crate::store::{Extent, FileError, JournalId, Place, Store};

/// What the worker is asked.
pub(super) enum Job {
    /// Makes a spare segment with room for `len` bytes.
    Spare { journal: JournalId, len: u64 },
    /// Makes a segment that is no longer appended to durable, and that the journal has a further one.
    Close { journal: JournalId, extent: Option<Extent> },
    /// Removes segments.
    Remove { id: u64, segments: Vec<Place> },
    /// Replaces or removes a shard's snapshot.
    Snapshot { id: u64, shard: ShardId, bytes: Option<Vec<Vec<u8>>> },
}

/// What became of a job.
pub(super) enum Outcome {
    /// Of a `Spare`.
    Spare(Result<Spare, FileError>),
    /// Of a `Close`.
    Closed(Result<(), FileError>),
    /// Of `Remove` and `Snapshot`.
    Done(u64, Result<(), FileError>),
}

/// The thread and its two queues. Dropping it waits for the jobs that were submitted.
pub(super) struct Worker {
    jobs: Option<Sender<Job>>,
    outcomes: Receiver<Outcome>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread, which works on `store`; `wake` is called after each job.
    pub(super) fn start(name: String, store: Arc<dyn Store>, wake: Wake) -> io::Result<Self> {
        let (jobs, todo) = unbounded::<Job>();
        let (done, outcomes) = unbounded();
        let thread = thread::Builder::new().name(name).spawn(move || {
            for job in todo {
                // Nobody listens any more only when the core is gone; the job was still done.
                let _ = done.send(job.carry_out(&*store));
                wake.wake();
            }
        })?;
        Ok(Self { jobs: Some(jobs), outcomes, thread: Some(thread) })
    }

    /// Queues a job.
    pub(super) fn submit(&self, job: Job) {
        let jobs = self.jobs.as_ref().expect("the queue is there until the worker is dropped");
        jobs.send(job).expect("the thread takes jobs until the queue is dropped");
    }

    /// The next outcome.
    pub(super) fn poll(&self) -> Option<Outcome> {
        self.outcomes.try_recv().ok()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Job {
    fn carry_out(self, store: &dyn Store) -> Outcome {
        match self {
            Self::Spare { journal, len } => Outcome::Spare(Spare::create(store, journal, len)),
            Self::Close { journal, extent } => {
                let synced = extent.map_or(Ok(()), |extent| extent.sync());
                Outcome::Closed(synced.and_then(|()| store.sync_names(journal)))
            }
            Self::Remove { id, segments } => Outcome::Done(id, store.remove(&segments)),
            Self::Snapshot { id, shard, bytes } => {
                Outcome::Done(id, store.set_snapshot(shard, bytes.as_deref()))
            }
        }
    }
}
