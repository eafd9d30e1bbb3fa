//! Handles: opening, reopening after a lost session, closing.
//!
//! 1. The shard counts as many opens of this session as there are handles, and for a moment more, never fewer.
//! 2. A handle of a lost session is opened again before it is used: silently if the file is still there, else it is Gone.

use std::rc::Rc;

use sealfs_proto::{Attr, Errno, Ino, Lock, LockKind, LockOwner, LockSpace, Request, Who};

use crate::file::{File, Open, Standing};
use crate::{Fs, Handle, OpenFlags};

impl Fs {
    /// Opens a file. Every open is one request: it checks the rights and brings the present attributes.
    pub async fn open(
        &self,
        who: &Who,
        ino: Ino,
        flags: OpenFlags,
    ) -> Result<(Attr, Handle), Errno> {
        let file = self.file(ino);
        let _alone = match &file {
            Some(file) if flags.truncate => {
                let alone = file.data.exclusive().await;
                self.settle(file).await?;
                Some(alone)
            }
            _ => None,
        };
        let request = Request::Open {
            who: who.clone(),
            ino,
            access: flags.access(),
            truncate: flags.truncate,
        };
        let attr = self.ask_attr(ino, request).await?;
        if flags.truncate {
            self.mark(ino, self.node_of(ino));
        }
        let handle = self.opened(&attr, flags);
        Ok((self.shown(attr).await, handle))
    }

    /// A descriptor of the file was closed: settles, reports what failed, and gives up the fcntl locks of `owner`.
    pub async fn flush(&self, handle: Handle, owner: Option<LockOwner>) -> Result<(), Errno> {
        let open = self.table().open(handle)?;
        // A failure is counted by the file and told to every handle, this one now.
        let _ = self.settle(&open.file).await;
        let nodes = self.unsynced().nodes(open.file.ino);
        nodes.into_iter().for_each(|node| self.notice_losses(node));
        if let Some(owner) = owner {
            let unlocked = self.unlock_all(&open.file, LockSpace::Posix, owner).await;
            open.unlocked_by(LockSpace::Posix, owner);
            unlocked?;
        }
        open.check().and(self.report(&open))
    }

    /// The last descriptor of this open is closed; gives up the locks that are its own: flock(2)'s, and those of "open file
    /// descriptions" of fcntl(2), of which no close tells. The handle is gone, whatever is answered.
    pub async fn release(&self, handle: Handle) -> Result<(), Errno> {
        let open = self.table().remove(handle)?;
        let file = Rc::clone(&open.file);
        let _ = self.settle(&file).await;
        let mut unlocked = Ok(());
        for (space, owner) in open.lockers() {
            unlocked = self.unlock_all(&file, space, owner).await.and(unlocked);
        }
        let counted = open.session.get() == self.session_of(file.ino);
        if counted && file.close_due() {
            self.spawn(self.clone().close(file));
        } else {
            self.table().forget_idle(file.ino);
        }
        open.check().and(unlocked).and(open.report())
    }

    /// The file, if anything of it is open or unsettled here.
    pub(crate) fn file(&self, ino: Ino) -> Option<Rc<File>> {
        self.table().file(ino)
    }

    /// The handle, fit for use.
    pub(crate) async fn ready(&self, handle: Handle) -> Result<Rc<Open>, Errno> {
        let open = self.table().open(handle)?;
        open.check()?;
        let node = self.node_of(open.file.ino);
        if open.holds_locks() && !self.calls().is_session_sure(node) {
            // The node may have given the locks to others: a session that has ended shows itself now.
            self.ask_node_done(node, Request::Ping).await?;
            open.check()?;
        }
        if open.session.get() != self.session_of(open.file.ino) {
            self.reopen(&open).await?;
        }
        Ok(open)
    }

    /// A shard has just counted an open, in the present session (what was sent in an earlier one has failed): a handle
    /// for it.
    pub(crate) fn opened(&self, attr: &Attr, flags: OpenFlags) -> Handle {
        let session = self.session_of(attr.ino);
        let (handle, _) = self.table().insert(attr, flags, session, self.now());
        handle
    }

    /// Opens again what a lost session had open. The right to do so was checked by the first open, so that it is asked for
    /// in root's name.
    pub(crate) async fn reopen(&self, open: &Open) -> Result<(), Errno> {
        let _one = open.reopening.exclusive().await;
        let ino = open.file.ino;
        if open.session.get() == self.session_of(ino) {
            return open.check();
        }
        let access = open.flags.access();
        let request = Request::Open { who: Who::root(), ino, access, truncate: false };
        match self.ask_attr(ino, request).await {
            Ok(attr) => {
                open.session.set(self.session_of(ino));
                open.file.absorb_open(&attr, self.now());
                open.file.opened();
                Ok(())
            }
            Err(Errno::ENOENT | Errno::ESTALE) => {
                tracing::warn!(%ino, "a file that was open is gone, for the session has ended");
                open.standing.set(Standing::Gone);
                Err(Errno::ESTALE)
            }
            Err(errno) => Err(errno),
        }
    }

    /// Gives opens back until none are due; several that became due meanwhile go together.
    async fn close(self, file: Rc<File>) {
        loop {
            let opens = file.begin_close();
            if opens == 0 {
                break;
            }
            let request = Request::Close { ino: file.ino, opens };
            if let Err(errno) = self.ask_patiently(file.ino.shard(), request).await {
                // The session has ended, and they with it.
                tracing::warn!(ino = %file.ino, %errno, "could not give opens back");
            }
            file.closed(opens);
        }
        self.table().forget_idle(file.ino);
    }

    async fn unlock_all(
        &self,
        file: &Rc<File>,
        space: LockSpace,
        owner: LockOwner,
    ) -> Result<(), Errno> {
        if !file.holds(space, owner) {
            return Ok(());
        }
        let lock = Lock { space, kind: LockKind::Unlock, start: 0, end: u64::MAX, owner, pid: 0 };
        self.unlock(file, lock).await
    }
}
