//! A thread beside each core for what io_uring does not do without waiting: creating, renaming and removing files, and the
//! syncs of directories that go with it.
//!
//! Jobs are carried out in their order. Their number is bounded by whoever submits: a spare and a few closings of the
//! journal, and the snapshots that the core has asked for.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, unbounded};
use sealfs_proto::ShardId;
use sealfs_ring::Wake;

use crate::datadir::snapshot_name;
use crate::files::{
    FileError, failed, remove, remove_file_if_there, replace_by_pieces, sync_directory,
};
use crate::segments::Spare;

/// What the worker is asked.
pub(super) enum Job {
    /// Makes a spare segment with room for `len` bytes in the journal `dir`.
    Spare { dir: PathBuf, len: u64 },
    /// Makes a segment that is no longer appended to durable, and the names in its directory.
    Close { file: Option<File>, path: PathBuf, dir: PathBuf },
    /// Removes segments.
    Remove { id: u64, paths: Vec<PathBuf> },
    /// Replaces or removes a shard's snapshot in `dir`.
    Snapshot { id: u64, dir: PathBuf, shard: ShardId, bytes: Option<Vec<Vec<u8>>> },
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
    /// Starts the thread; `wake` is called after each job.
    pub(super) fn start(name: String, wake: Wake) -> io::Result<Self> {
        let (jobs, todo) = unbounded::<Job>();
        let (done, outcomes) = unbounded();
        let thread = thread::Builder::new().name(name).spawn(move || {
            for job in todo {
                // Nobody listens any more only when the core is gone; the job was still done.
                let _ = done.send(job.carry_out());
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
    fn carry_out(self) -> Outcome {
        match self {
            Self::Spare { dir, len } => Outcome::Spare(Spare::create(&dir, len)),
            Self::Close { file, path, dir } => {
                let synced = file.map_or(Ok(()), |file| file.sync_data());
                let closed = synced.map_err(failed("sync", &path));
                Outcome::Closed(closed.and_then(|()| sync_directory(&dir)))
            }
            Self::Remove { id, paths } => {
                let mut removed = paths.iter().map(|path| remove_file_if_there(path));
                Outcome::Done(id, removed.find(Result::is_err).unwrap_or(Ok(())))
            }
            Self::Snapshot { id, dir, shard, bytes } => {
                let name = snapshot_name(shard);
                let done = match bytes {
                    Some(pieces) => replace_by_pieces(&dir, &name, &pieces),
                    None => remove(&dir, &name),
                };
                Outcome::Done(id, done)
            }
        }
    }
}
