//! Advisory locks: taken, tested, waited for, given up.
//!
//! 1. Before a lock is given up, every write that has begun is over and settled, also one whose program was killed; after
//!    one was granted, sizes are asked for anew.
//! 2. A wait that was interrupted ends by the shard's word: granted just before, or EINTR. Nobody ends up holding a lock
//!    that they were told they do not have, or without one that they had before.
//! 3. What is asked for and not answered yet is claimed after a reconnect as little as the shard may have left of it: a claim
//!    never contradicts another client's.
//! 4. What is given up is given up some time, whatever the timeout: a shard never keeps a lock that no program has. Until
//!    then its owner's next request waits.

use std::cell::RefCell;
use std::rc::Rc;

use sealfs_proto::{Errno, Ino, Lock, LockKind, LockSpace, Reply, Request, limits};
use sealfs_transport::tasks::{Either, oneshot, race};

use crate::file::{File, Open, Unsure};
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
        if lock.kind == LockKind::Unlock {
            let open = self.table().open(handle)?;
            self.unlock(&open.file, lock).await?;
            return open.check();
        }
        let open = self.ready(handle).await?;
        self.sure(&open.file, lock, wait).await?;
        let ino = open.file.ino;
        let converts = lock.space == LockSpace::Flock && open.file.holds(lock.space, lock.owner);
        let before = open.file.ask_lock(lock);
        let taken = match wait {
            None => self.ask_done(ino.shard(), Request::Lock { ino, lock, wait: false }).await,
            Some(interrupt) => self.wait_for_lock(&open, lock, interrupt).await,
        };
        if let Err(errno) = taken {
            if converts {
                // flock(2): a conversion gives up the existing lock first, also if it then fails. Whether the shard has come
                // that far is made certain.
                let given_up = Lock { kind: LockKind::Unlock, ..lock };
                open.file.apply_lock(given_up);
                let unsure = Rc::clone(&open.file).unsure(lock.space, lock.owner);
                self.spawn(self.clone().set_locks(Rc::clone(&open.file), vec![given_up], unsure));
            } else {
                before.into_iter().for_each(|lock| open.file.apply_lock(lock));
            }
            return Err(errno);
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

    /// Gives up what `lock` names, after everything that was written is settled. If the node does not answer in time that
    /// is an error, but it is done all the same as soon as it answers.
    pub(crate) async fn unlock(&self, file: &Rc<File>, lock: Lock) -> Result<(), Errno> {
        if let Err(errno) = self.sure(file, lock, None).await {
            let (fs, file) = (self.clone(), Rc::clone(file));
            self.spawn(async move {
                file.sure(lock.space, lock.owner).await;
                let unsure = Rc::clone(&file).unsure(lock.space, lock.owner);
                fs.set_locks(file, vec![lock], unsure).await;
            });
            return Err(errno);
        }
        file.writes_ended().await;
        // A failure is counted by the file and told to every handle.
        let _ = self.settle(file).await;
        let ino = file.ino;
        let session = self.session_of(ino);
        file.ask_lock(lock);
        match self.ask_done(ino.shard(), Request::Lock { ino, lock, wait: false }).await {
            Err(Errno::EIO) if session == self.session_of(ino) => {
                let unsure = Rc::clone(file).unsure(lock.space, lock.owner);
                self.spawn(self.clone().set_locks(Rc::clone(file), vec![lock], unsure));
                Err(Errno::EIO)
            }
            answer => {
                file.apply_lock(lock);
                answer
            }
        }
    }

    /// Has the shard know that the owner holds this and no more, however long that takes.
    async fn set_locks(self, file: Rc<File>, locks: Vec<Lock>, unsure: Unsure) {
        let ino = file.ino;
        let session = self.session_of(ino);
        for lock in locks {
            file.ask_lock(lock);
            let set = self.ask_patiently(ino.shard(), Request::Lock { ino, lock, wait: false });
            match set.await {
                Ok(()) => file.apply_lock(lock),
                // The session took them all.
                Err(_) if session != self.session_of(ino) => break,
                Err(errno) => {
                    tracing::warn!(%ino, %errno, "what is left of a lock could not be kept");
                    file.apply_lock(Lock { kind: LockKind::Unlock, ..lock });
                }
            }
        }
        drop(unsure);
        self.table().forget_idle(ino);
    }

    /// Waits until it is known what the owner of `lock` holds; without `wait` no longer than a moment.
    async fn sure(&self, file: &File, lock: Lock, wait: Option<&Interrupt>) -> Result<(), Errno> {
        let sure = file.sure(lock.space, lock.owner);
        match wait {
            Some(interrupt) => match race(sure, interrupt.raised()).await {
                Either::First(()) => Ok(()),
                Either::Second(()) => Err(Errno::EINTR),
            },
            None => {
                let patience = self.timers().sleep_until(self.now().after_ms(DOUBT_MS));
                match race(sure, patience).await {
                    Either::First(()) => Ok(()),
                    Either::Second(()) => Err(Errno::EIO),
                }
            }
        }
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
        let (cancel, doubt) = (Interrupt::new(), Rc::new(RefCell::new(None)));
        let (fs, file) = (self.clone(), Rc::clone(&open.file));
        let wait =
            Wait { file: Rc::clone(&file), lock, cancel: cancel.clone(), doubt: Rc::clone(&doubt) };
        self.spawn(async move {
            let result = fs.hold_lock(file.ino, lock, &cancel).await;
            let unwanted = sender.send(result) == Err(Ok(()));
            let unsure = doubt.take();
            if let (true, Some(unsure)) = (unwanted, unsure) {
                // What the owner had of the range before it has again.
                let before = file.held_within(lock);
                fs.set_locks(file, before, unsure).await;
            }
        });
        match race(&mut receiver, interrupt.raised()).await {
            Either::First(result) => return result.unwrap_or(Err(Errno::EIO)),
            Either::Second(()) => wait.cancel.raise(),
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

/// A program waits. When it does so no longer the wait is cancelled, and what its owner holds is in doubt until the shard
/// has said its word (if that has come, the doubt ends here).
struct Wait {
    file: Rc<File>,
    lock: Lock,
    cancel: Interrupt,
    doubt: Rc<RefCell<Option<Unsure>>>,
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.cancel.raise();
        let Lock { space, owner, .. } = self.lock;
        *self.doubt.borrow_mut() = Some(Rc::clone(&self.file).unsure(space, owner));
    }
}

/// How long the next request of an owner waits for the end of what its last one began, milliseconds: as long as for a node.
const DOUBT_MS: u64 = limits::TIMEOUT_MS;
/// How long an interrupted wait waits for the shard's word before it is answered without it, milliseconds: a program that
/// is being killed should not notice, and a node that lives answers much sooner.
const PATIENCE_MS: u64 = 500;
