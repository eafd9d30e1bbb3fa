//! The disk as futures: operations in flight, and syncs of the volume shared by all who wait for one.
//!
//! 1. A sync covers what completed before it was submitted: who asks while one is in flight waits for the next.
//! 2. A failed sync of the volume is the end of the core: the system reports the error once and takes the pages for clean,
//!    so that the next sync would succeed and say what is not true.

use std::cell::RefCell;
use std::collections::BTreeMap;

use sealfs_metrics::Histogram;
use sealfs_transport::tasks::{Receiver, Sender, oneshot};
use sealfs_transport::{Instant, Region, Slice};

use crate::figures::VolumeOp;
use crate::{Disk, DiskDone, DiskError, DiskOp};

/// What an operation became.
pub(crate) type Done = Result<DiskDone, DiskError>;

/// What a completion was.
pub(crate) enum Polled {
    /// Who waited for it is woken.
    Woken,
    /// Of an operation that was submitted by number.
    Named(u64, Done),
    /// A sync of the volume has failed: nobody knows what is on the device.
    SyncFailed(DiskError),
}

/// The operations of one core.
pub(crate) struct DiskCalls {
    inner: RefCell<Inner>,
}

struct Inner {
    disk: Box<dyn Disk>,
    next: u64,
    running: BTreeMap<u64, Running>,
    sync: VolumeSync,
    /// The turn's time.
    now: Instant,
    /// How long operations of the volume took, by [`VolumeOp`].
    took: [Histogram; VolumeOp::ALL.len()],
}

struct Running {
    ends: Ends,
    /// Of the volume's, and when it was begun.
    timed: Option<(VolumeOp, Instant)>,
}

#[derive(Default)]
struct VolumeSync {
    running: bool,
    next: Vec<Sender<Result<(), DiskError>>>,
}

enum Ends {
    Call(Sender<Done>),
    Sync(Vec<Sender<Result<(), DiskError>>>),
    Named,
}

impl DiskCalls {
    /// Nothing in flight.
    pub(crate) fn new(disk: Box<dyn Disk>) -> Self {
        Self {
            inner: RefCell::new(Inner {
                disk,
                next: 0,
                running: BTreeMap::new(),
                sync: VolumeSync::default(),
                now: Instant::default(),
                took: Default::default(),
            }),
        }
    }

    /// A turn begins.
    pub(crate) fn set_now(&self, now: Instant) {
        self.inner.borrow_mut().now = now;
    }

    /// How long operations of the volume took, by [`VolumeOp`], in turns.
    pub(crate) fn took(&self) -> [Histogram; VolumeOp::ALL.len()] {
        self.inner.borrow().took
    }

    /// Begins an operation.
    pub(crate) fn submit(&self, op: DiskOp) -> Receiver<Done> {
        let (sender, receiver) = oneshot();
        self.inner.borrow_mut().begin(op, Ends::Call(sender));
        receiver
    }

    /// Begins an operation whose completion [`DiskCalls::poll`] gives by number.
    pub(crate) fn submit_named(&self, op: DiskOp) -> u64 {
        self.inner.borrow_mut().begin(op, Ends::Named)
    }

    /// Reads `len` bytes of the volume into `region`.
    pub(crate) async fn read(
        &self,
        offset: u64,
        len: u32,
        region: Region,
    ) -> Result<Region, DiskError> {
        match self.submit(DiskOp::Read { offset, len, region }).await {
            Ok(Ok(DiskDone::Read(region))) => Ok(region),
            Ok(Err(error)) => Err(error),
            Ok(Ok(DiskDone::Done)) | Err(_) => Err(lost("read of the volume")),
        }
    }

    /// Writes to the volume.
    pub(crate) async fn write(&self, offset: u64, bytes: Vec<Slice>) -> Result<(), DiskError> {
        match self.submit(DiskOp::Write { offset, bytes }).await {
            Ok(done) => done.map(|_| ()),
            Err(_) => Err(lost("write to the volume")),
        }
    }

    /// What was written to the volume before is on the device.
    pub(crate) async fn sync_volume(&self) -> Result<(), DiskError> {
        let (sender, receiver) = oneshot();
        self.inner.borrow_mut().join_sync(sender);
        receiver.await.unwrap_or_else(|_| Err(lost("sync of the volume")))
    }

    /// Takes the next completion, and wakes who waits for it. `None`: no more.
    pub(crate) fn poll(&self) -> Option<Polled> {
        let (id, done, running) = {
            let mut inner = self.inner.borrow_mut();
            let (id, done) = inner.disk.poll()?;
            let running = inner.running.remove(&id);
            if let Some((op, since)) = running.as_ref().and_then(|running| running.timed) {
                let took = inner.now.0.saturating_sub(since.0);
                inner.took[op as usize].add(took);
            }
            (id, done, running)
        };
        match running.map(|running| running.ends) {
            Some(Ends::Call(sender)) => drop(sender.send(done)),
            Some(Ends::Named) => return Some(Polled::Named(id, done)),
            Some(Ends::Sync(senders)) => {
                let done = done.map(|_| ());
                senders.into_iter().for_each(|sender| drop(sender.send(done.clone())));
                self.inner.borrow_mut().on_sync();
                if let Err(error) = done {
                    return Some(Polled::SyncFailed(error));
                }
            }
            None => {}
        }
        Some(Polled::Woken)
    }

    /// Operations in flight.
    pub(crate) fn len(&self) -> usize {
        self.inner.borrow().running.len()
    }
}

impl Inner {
    fn begin(&mut self, op: DiskOp, ends: Ends) -> u64 {
        self.next += 1;
        let timed = VolumeOp::of(&op).map(|op| (op, self.now));
        self.running.insert(self.next, Running { ends, timed });
        self.disk.submit(self.next, op);
        self.next
    }

    fn join_sync(&mut self, sender: Sender<Result<(), DiskError>>) {
        if self.sync.running {
            self.sync.next.push(sender);
        } else {
            self.sync.running = true;
            self.begin(DiskOp::SyncVolume, Ends::Sync(vec![sender]));
        }
    }

    fn on_sync(&mut self) {
        let next = std::mem::take(&mut self.sync.next);
        self.sync.running = !next.is_empty();
        if self.sync.running {
            self.begin(DiskOp::SyncVolume, Ends::Sync(next));
        }
    }
}

fn lost(what: &str) -> DiskError {
    DiskError { what: what.into(), cause: "the operation was dropped".into() }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// Every operation fails.
    #[derive(Default)]
    struct Broken(Vec<u64>);

    impl Disk for Broken {
        fn submit(&mut self, id: u64, _: DiskOp) {
            self.0.push(id);
        }

        fn poll(&mut self) -> Option<(u64, Done)> {
            let error = DiskError { what: "sync".into(), cause: "no device".into() };
            self.0.pop().map(|id| (id, Err(error)))
        }
    }

    #[test]
    fn a_failed_sync_of_the_volume_is_told_to_the_core_and_to_who_waits() {
        let disk = DiskCalls::new(Box::new(Broken::default()));
        let mut sync = pin!(disk.sync_volume());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(sync.as_mut().poll(&mut cx).is_pending());
        disk.set_now(Instant(7));
        assert!(matches!(disk.poll(), Some(Polled::SyncFailed(_))));
        let took = disk.took();
        assert_eq!(took.map(|took| (took.count(), took.sum_ns())), [(0, 0), (0, 0), (1, 7)]);
        assert!(matches!(sync.as_mut().poll(&mut cx), Poll::Ready(Err(_))));
    }
}
