//! Advisory locks: taken, tested, waited for, given up.
//!
//! 1. Before a lock is given up, everything written under it is settled; after one was granted, sizes are asked for anew.
//! 2. A wait that was interrupted ends by the shard's word: granted just before, or EINTR. Nobody ends up holding a lock
//!    that they were told they do not have.

use std::rc::Rc;

use sealfs_proto::{Errno, Ino, Lock, LockKind, Reply, Request};
use sealfs_transport::tasks::{Either, oneshot, race};

use crate::file::{File, Open};
use crate::net::{errno, unexpected};
use crate::{Fs, Handle, Interrupt};

impl Fs {
    /// Takes, converts or gives up a lock. Without `wait`: EAGAIN if another stands in the way; with it: EINTR once it is
    /// raised, unless the lock was granted first.
    pub async fn lock(
        &self,
        handle: Handle,
        lock: Lock,
        wait: Option<&Interrupt>,
    ) -> Result<(), Errno> {
        let open = self.ready(handle).await?;
        if lock.kind == LockKind::Unlock {
            return self.unlock(&open.file, lock).await;
        }
        let ino = open.file.ino;
        match wait {
            None => {
                self.ask_done(ino.shard(), Request::Lock { ino, lock, wait: false }).await?;
            }
            Some(interrupt) => self.wait_for_lock(&open, lock, interrupt).await?,
        }
        // While it waited, the session has ended and the handle lost another lock.
        if let Err(errno) = open.check() {
            let _ = self.unlock(&open.file, Lock { kind: LockKind::Unlock, ..lock }).await;
            return Err(errno);
        }
        open.file.apply_lock(lock);
        open.locked_by(lock.space, lock.owner);
        open.file.make_stale();
        Ok(())
    }

    /// The lock that stands in the way of `lock`.
    pub async fn lock_test(&self, handle: Handle, lock: Lock) -> Result<Option<Lock>, Errno> {
        let ino = self.ready(handle).await?.file.ino;
        match self.ask(ino.shard(), Request::LockTest { ino, lock }).await? {
            Reply::Conflict(conflict) => Ok(conflict),
            other => Err(unexpected("LockTest", &other)),
        }
    }

    /// Gives up what `lock` names, after everything that was written is settled.
    pub(crate) async fn unlock(&self, file: &File, lock: Lock) -> Result<(), Errno> {
        // A failure is counted by the file and told to every handle.
        let _ = self.settle(file).await;
        let ino = file.ino;
        self.ask_done(ino.shard(), Request::Lock { ino, lock, wait: false }).await?;
        file.apply_lock(lock);
        Ok(())
    }

    /// Waits until the lock is granted or the wait is interrupted. The wait is a task of its own, so that it comes to a
    /// proper end also if the program is answered earlier or this future is dropped.
    async fn wait_for_lock(
        &self,
        open: &Rc<Open>,
        lock: Lock,
        interrupt: &Interrupt,
    ) -> Result<(), Errno> {
        let (sender, mut receiver) = oneshot();
        let cancel = Interrupt::new();
        let on_drop = RaiseOnDrop(cancel.clone());
        let (fs, file) = (self.clone(), Rc::clone(&open.file));
        self.spawn(async move {
            let result = fs.hold_lock(file.ino, lock, &cancel).await;
            if sender.send(result) == Err(Ok(())) {
                let given_up = Lock { kind: LockKind::Unlock, ..lock };
                let _ = fs.unlock(&file, given_up).await;
            }
        });
        match race(&mut receiver, interrupt.raised()).await {
            Either::First(result) => return result.unwrap_or(Err(Errno::EIO)),
            Either::Second(()) => on_drop.0.raise(),
        }
        let patience = self.timers().sleep_until(self.now().after_ms(PATIENCE_MS));
        match race(receiver, patience).await {
            Either::First(result) => result.unwrap_or(Err(Errno::EIO)),
            Either::Second(()) => Err(Errno::EINTR),
        }
    }

    /// Asks for the lock until the shard has said yes or no; once cancelled, asks it to stop waiting.
    async fn hold_lock(&self, ino: Ino, lock: Lock, cancel: &Interrupt) -> Result<(), Errno> {
        let mut call = self.ask_for_lock(ino.shard(), Request::Lock { ino, lock, wait: true });
        let mut answer = match race(&mut call, cancel.raised()).await {
            Either::First(answer) => Some(answer),
            Either::Second(()) => None,
        };
        loop {
            if let Some(answer) = answer {
                return answer.map(drop).map_err(|error| errno(&error));
            }
            // After a reconnect the wait has another number, so that one cancel may come to nothing.
            if let Some(waiting) = call.sequence() {
                let _ = self.ask_done(ino.shard(), Request::LockCancel { ino, waiting }).await;
            }
            let again = self.timers().sleep_until(self.now().after_ms(PATIENCE_MS));
            answer = match race(&mut call, again).await {
                Either::First(answer) => Some(answer),
                Either::Second(()) => None,
            };
        }
    }
}

/// Whoever waited is gone.
struct RaiseOnDrop(Interrupt);

impl Drop for RaiseOnDrop {
    fn drop(&mut self) {
        self.0.raise();
    }
}

/// How long an interrupted wait waits for the shard's word before it is answered without it, milliseconds: a program that
/// is being killed should not notice, and a node that lives answers much sooner.
const PATIENCE_MS: u64 = 500;
