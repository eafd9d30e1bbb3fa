//! What is open, and what of it the shards do not know yet.
//!
//! ```text
//!              write beyond chunk 0            Settle sent              answered
//!     clean ------------------------> dirty ----------------> settling ---------> clean
//!                                       ^---- write again; Settle failed ----'
//! ```
//! A [`File`] is an inode that has handles, or had them and is not settled or closed at its shard yet. A [`Open`] is one
//! handle. Methods take `&self` and borrow only inside, so that no borrow lives across an await.
//!
//! 1. The size that is shown is at least the end of every byte that this client has written and nobody has cut.
//! 2. What could not be settled is reported to every handle once, by its next flush, fsync or release.
//! 3. What may hold a lock, or write, is claimed and settled: it is not idle.
//! 4. `opens` counts what the shard has acknowledged: it is never lower than what the shard counts down to, so that no
//!    claim after a restart lets a file go that is still open here.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use sealfs_proto::{Attr, Claim, Errno, Ino, Lock, LockOwner, LockSpace};
use sealfs_transport::Instant;
use sealfs_transport::tasks::Waiters;

use crate::gate::Gate;
use crate::held::Held;
use crate::{FsFigures, Handle, OpenFlags};

/// What writes did that the inode's shard has not been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dirty {
    /// The oldest generation that one of the writes began under.
    pub(crate) generation: u64,
    /// The end of the last byte written.
    pub(crate) size: u64,
    /// Space taken (or freed), 512-byte units.
    pub(crate) blocks: i64,
    /// The data changed, so that times move.
    pub(crate) wrote: bool,
}

impl Dirty {
    fn with(self, other: Self) -> Self {
        Self {
            generation: self.generation.min(other.generation),
            size: self.size.max(other.size),
            blocks: self.blocks.saturating_add(other.blocks),
            wrote: self.wrote || other.wrote,
        }
    }
}

/// An inode that is open or not settled.
#[derive(Debug)]
pub(crate) struct File {
    /// Which.
    pub(crate) ino: Ino,
    /// Reads and writes of data share it; what changes many chunks at once (truncate, fallocate) has it alone.
    pub(crate) data: Gate,
    /// One settlement at a time.
    pub(crate) settling: Gate,
    /// One raising of `bound` at a time.
    pub(crate) raising: Gate,
    /// One question for the size at a time.
    pub(crate) asking: Gate,
    /// Woken when a write ends.
    ended: Waiters,
    /// Woken when what an owner does about its locks has ended.
    owners: Waiters,
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    attr: Attr,
    fetched: Option<Instant>,
    asked: u64,
    answered: u64,
    dirty: Option<Dirty>,
    settling: Option<Dirty>,
    last_write: u64,
    writing: BTreeSet<u64>,
    failures: u64,
    failure: Errno,
    handles: u32,
    opens: u32,
    closes_due: u32,
    is_closing: bool,
    held: Held,
    /// Owners about whose locks the shard's word is still awaited, though no program waits for it any more.
    unsure: Vec<(LockSpace, LockOwner)>,
}

impl File {
    fn new(attr: Attr) -> Self {
        let state = State {
            attr,
            fetched: None,
            asked: 0,
            answered: 0,
            dirty: None,
            settling: None,
            last_write: 0,
            writing: BTreeSet::new(),
            failures: 0,
            failure: Errno::EIO,
            handles: 0,
            opens: 0,
            closes_due: 0,
            is_closing: false,
            held: Held::default(),
            unsure: Vec::new(),
        };
        Self {
            ino: state.attr.ino,
            data: Gate::default(),
            settling: Gate::default(),
            raising: Gate::default(),
            asking: Gate::default(),
            ended: Waiters::new(),
            owners: Waiters::new(),
            state: RefCell::new(state),
        }
    }

    /// Attributes as the shard told them last.
    pub(crate) fn attr(&self) -> Attr {
        self.state.borrow().attr.clone()
    }

    /// Bytes per chunk; never changes.
    pub(crate) fn chunk_size(&self) -> u32 {
        self.state.borrow().attr.chunk_size
    }

    /// The generation that a write that begins now is made under.
    pub(crate) fn generation(&self) -> u64 {
        self.state.borrow().attr.generation
    }

    /// Offsets below it may be written.
    pub(crate) fn bound(&self) -> u64 {
        self.state.borrow().attr.bound
    }

    /// The size with everything that was written here.
    pub(crate) fn size(&self) -> u64 {
        let state = self.state.borrow();
        let unsettled = state.unsettled().map_or(0, |dirty| dirty.size);
        state.attr.size.max(unsettled)
    }

    /// Attributes with everything that was written here.
    pub(crate) fn shown(&self) -> Attr {
        let state = self.state.borrow();
        let mut attr = state.attr.clone();
        if let Some(dirty) = state.unsettled() {
            attr.size = attr.size.max(dirty.size);
            attr.blocks = attr.blocks.saturating_add(dirty.blocks);
        }
        attr
    }

    /// The shard has answered with these attributes. An answer that another one has overtaken changes nothing.
    pub(crate) fn absorb(&self, attr: &Attr, now: Instant) {
        let mut state = self.state.borrow_mut();
        if attr.change >= state.attr.change {
            state.attr.clone_from(attr);
            state.fetched = Some(now);
        }
    }

    /// The shard has answered an open: whatever was known before, this is the present.
    pub(crate) fn absorb_open(&self, attr: &Attr, now: Instant) {
        let mut state = self.state.borrow_mut();
        state.attr.clone_from(attr);
        state.fetched = Some(now);
    }

    /// The shard may have lost changes that it had told of: whatever it answers next is the present.
    pub(crate) fn doubt(&self) {
        let mut state = self.state.borrow_mut();
        state.attr.change = 0;
        state.fetched = None;
    }

    /// Whether the size is younger than `age_ms`.
    pub(crate) fn is_fresh(&self, now: Instant, age_ms: u64) -> bool {
        self.state.borrow().fetched.is_some_and(|fetched| now.ms_since(fetched) < age_ms)
    }

    /// The next read asks for the size: somebody may have changed it (a lock was granted).
    pub(crate) fn make_stale(&self) {
        self.state.borrow_mut().fetched = None;
    }

    /// The number of questions for the attributes so far; one with a higher number began later.
    pub(crate) fn asked(&self) -> u64 {
        self.state.borrow().asked
    }

    /// Begins a question; gives its number.
    pub(crate) fn ask(&self) -> u64 {
        let mut state = self.state.borrow_mut();
        state.asked += 1;
        state.asked
    }

    /// Question `number` was answered.
    pub(crate) fn answered(&self, number: u64) {
        let mut state = self.state.borrow_mut();
        state.answered = state.answered.max(number);
    }

    /// Whether a question that began after `asked` was answered.
    pub(crate) fn is_answered_since(&self, asked: u64) -> bool {
        self.state.borrow().answered > asked
    }

    /// A write begins; it ends when what this gives is dropped.
    pub(crate) fn begin_write(&self) -> Writing<'_> {
        let mut state = self.state.borrow_mut();
        state.last_write += 1;
        let number = state.last_write;
        state.writing.insert(number);
        Writing { file: self, number }
    }

    /// Ready when every write that has begun before has ended. Unlike passing `data` alone, this holds nobody up.
    pub(crate) async fn writes_ended(&self) {
        let last = self.state.borrow().last_write;
        loop {
            let waits = self.state.borrow().writing.first().is_some_and(|first| *first <= last);
            if !waits {
                return;
            }
            self.ended.wait().await;
        }
    }

    /// Writes were acknowledged. Tells whether the file was clean before.
    pub(crate) fn wrote(&self, dirty: Dirty) -> bool {
        let mut state = self.state.borrow_mut();
        let was_clean = state.dirty.is_none();
        state.dirty = Some(state.dirty.map_or(dirty, |before| before.with(dirty)));
        was_clean
    }

    /// Whether the shard does not know everything.
    pub(crate) fn is_dirty(&self) -> bool {
        self.state.borrow().unsettled().is_some()
    }

    /// Takes what is to be settled; it still counts for [`File::size`] until [`File::settled`] or [`File::not_settled`].
    pub(crate) fn begin_settling(&self) -> Option<Dirty> {
        let mut state = self.state.borrow_mut();
        state.settling = state.unsettled();
        state.dirty = None;
        state.settling
    }

    /// The shard knows what was taken.
    pub(crate) fn settled(&self) {
        self.state.borrow_mut().settling = None;
    }

    /// It does not know it, or, after EIO, may; the failure is reported. With `again` it is dirty again, but for what must
    /// not be told twice; tells whether the file was clean but for that.
    pub(crate) fn not_settled(&self, errno: Errno, again: bool) -> bool {
        let lost = self.state.borrow_mut().settling.take();
        self.fail(errno);
        lost.is_some_and(|lost| {
            let blocks = if errno == Errno::EIO { 0 } else { lost.blocks };
            again && self.wrote(Dirty { blocks, ..lost })
        })
    }

    /// Something failed that no program was waiting for: every handle is told.
    pub(crate) fn fail(&self, errno: Errno) {
        let mut state = self.state.borrow_mut();
        state.failures += 1;
        state.failure = errno;
    }

    /// A lock was granted or given up.
    pub(crate) fn apply_lock(&self, lock: Lock) {
        self.state.borrow_mut().held.apply(lock);
    }

    /// A lock is about to be asked for or given up: see [`Held::ask`].
    pub(crate) fn ask_lock(&self, lock: Lock) -> Vec<Lock> {
        self.state.borrow_mut().held.ask(lock)
    }

    /// Whether anybody holds locks here.
    pub(crate) fn is_locked(&self) -> bool {
        !self.state.borrow().held.is_empty()
    }

    /// What the owner of `lock` had of its range before, see [`Held::within`].
    pub(crate) fn held_within(&self, lock: Lock) -> Vec<Lock> {
        self.state.borrow().held.within(lock)
    }

    /// Until what this gives is dropped, nobody knows what `owner` holds at the shard, and its next request waits.
    pub(crate) fn unsure(self: Rc<Self>, space: LockSpace, owner: LockOwner) -> Unsure {
        self.state.borrow_mut().unsure.push((space, owner));
        Unsure { file: self, of: (space, owner) }
    }

    /// Ready when it is known what `owner` holds.
    pub(crate) async fn sure(&self, space: LockSpace, owner: LockOwner) {
        while self.state.borrow().unsure.contains(&(space, owner)) {
            self.owners.wait().await;
        }
    }

    /// Whether `owner` holds locks here.
    pub(crate) fn holds(&self, space: LockSpace, owner: LockOwner) -> bool {
        self.state.borrow().held.holds(space, owner)
    }

    /// The session has ended: no opens are counted, no locks are held any more.
    pub(crate) fn lose_session(&self) {
        let mut state = self.state.borrow_mut();
        state.opens = 0;
        state.closes_due = 0;
        state.held.clear();
        state.fetched = None;
    }

    /// One open more is counted at the shard.
    pub(crate) fn opened(&self) {
        self.state.borrow_mut().opens += 1;
    }

    /// A handle has gone whose open is to be given back. Tells whether nobody is giving back opens yet.
    pub(crate) fn close_due(&self) -> bool {
        let mut state = self.state.borrow_mut();
        state.closes_due += 1;
        !std::mem::replace(&mut state.is_closing, true)
    }

    /// How many opens to give back now; 0 ends the giving back.
    pub(crate) fn begin_close(&self) -> u32 {
        let mut state = self.state.borrow_mut();
        let due = std::mem::take(&mut state.closes_due);
        state.is_closing = due > 0;
        due
    }

    /// They were given back, or the session took them.
    pub(crate) fn closed(&self, opens: u32) {
        let mut state = self.state.borrow_mut();
        state.opens = state.opens.saturating_sub(opens);
    }

    fn claim(&self) -> Option<Claim> {
        let state = self.state.borrow();
        let claim = Claim { ino: self.ino, opens: state.opens, locks: state.held.all().to_vec() };
        (claim.opens > 0 || !claim.locks.is_empty()).then_some(claim)
    }

    fn is_idle(&self) -> bool {
        let state = self.state.borrow();
        let is_quiet = state.writing.is_empty() && state.unsure.is_empty();
        state.handles == 0 && !state.is_closing && state.unsettled().is_none() && is_quiet
    }
}

impl State {
    fn unsettled(&self) -> Option<Dirty> {
        match (self.dirty, self.settling) {
            (Some(dirty), Some(settling)) => Some(dirty.with(settling)),
            (dirty, settling) => dirty.or(settling),
        }
    }
}

/// A write in flight.
#[derive(Debug)]
pub(crate) struct Writing<'a> {
    file: &'a File,
    number: u64,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.file.state.borrow_mut().writing.remove(&self.number);
        self.file.ended.wake_all();
    }
}

/// An owner's locks are in doubt.
#[derive(Debug)]
pub(crate) struct Unsure {
    file: Rc<File>,
    of: (LockSpace, LockOwner),
}

impl Drop for Unsure {
    fn drop(&mut self) {
        let mut state = self.file.state.borrow_mut();
        let at = state.unsure.iter().position(|of| *of == self.of);
        at.map(|at| state.unsure.swap_remove(at));
        drop(state);
        self.file.owners.wake_all();
    }
}

/// Whether a handle can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It can.
    Good,
    /// A lock that was taken through it is lost: EIO until it is closed.
    LockLost,
    /// The file went with the session: ESTALE until it is closed.
    Gone,
}

/// One handle.
#[derive(Debug)]
pub(crate) struct Open {
    /// Of which file.
    pub(crate) file: Rc<File>,
    /// For what.
    pub(crate) flags: OpenFlags,
    /// Whether it can be used.
    pub(crate) standing: Cell<Standing>,
    /// The count of sessions with the file's node in which it was opened.
    pub(crate) session: Cell<u64>,
    /// One reopening at a time.
    pub(crate) reopening: Gate,
    /// The owners that took locks through it.
    lockers: RefCell<Vec<(LockSpace, LockOwner)>>,
    failures_seen: Cell<u64>,
}

impl Open {
    /// `Err` if the handle cannot be used.
    pub(crate) fn check(&self) -> Result<(), Errno> {
        match self.standing.get() {
            Standing::Good => Ok(()),
            Standing::LockLost => Err(Errno::EIO),
            Standing::Gone => Err(Errno::ESTALE),
        }
    }

    /// The failure that this handle has not been told yet.
    pub(crate) fn report(&self) -> Result<(), Errno> {
        let state = self.file.state.borrow();
        if self.failures_seen.replace(state.failures) < state.failures {
            Err(state.failure)
        } else {
            Ok(())
        }
    }

    /// `owner` took a lock through this handle.
    pub(crate) fn locked_by(&self, space: LockSpace, owner: LockOwner) {
        let mut lockers = self.lockers.borrow_mut();
        if !lockers.contains(&(space, owner)) {
            lockers.push((space, owner));
        }
    }

    /// Whether an owner that took locks through this handle has some.
    pub(crate) fn holds_locks(&self) -> bool {
        let lockers = self.lockers.borrow();
        lockers.iter().any(|&(space, owner)| self.file.holds(space, owner))
    }

    /// Who took locks through this handle.
    pub(crate) fn lockers(&self) -> Vec<(LockSpace, LockOwner)> {
        self.lockers.borrow().clone()
    }

    /// What `owner` took through this handle is given up: what it takes later it takes through another.
    pub(crate) fn unlocked_by(&self, space: LockSpace, owner: LockOwner) {
        self.lockers.borrow_mut().retain(|locker| *locker != (space, owner));
    }

    /// The session has ended.
    fn lose_session(&self) {
        let lockers = self.lockers.take();
        if lockers.iter().any(|&(space, owner)| self.file.holds(space, owner)) {
            let ino = self.file.ino;
            tracing::error!(%ino, "a lock is lost with the session; its descriptor gets EIO until it is closed");
            self.standing.set(Standing::LockLost);
        }
    }
}

/// All files and handles of a client.
#[derive(Debug, Default)]
pub(crate) struct Table {
    files: BTreeMap<Ino, Rc<File>>,
    opens: BTreeMap<Handle, Rc<Open>>,
    last: u64,
}

impl Table {
    /// The file, if it is here.
    pub(crate) fn file(&self, ino: Ino) -> Option<Rc<File>> {
        self.files.get(&ino).cloned()
    }

    /// The handle; EBADF if there is none.
    pub(crate) fn open(&self, handle: Handle) -> Result<Rc<Open>, Errno> {
        self.opens.get(&handle).cloned().ok_or(Errno::EBADF)
    }

    /// All files, ascending by inode.
    pub(crate) fn files(&self) -> Vec<Rc<File>> {
        self.files.values().cloned().collect()
    }

    /// The shard has counted an open and answered `attr`: a handle for it.
    pub(crate) fn insert(
        &mut self,
        attr: &Attr,
        flags: OpenFlags,
        session: u64,
        now: Instant,
    ) -> (Handle, Rc<File>) {
        let file = self.files.entry(attr.ino).or_insert_with(|| Rc::new(File::new(attr.clone())));
        file.absorb_open(attr, now);
        let failures = {
            let mut state = file.state.borrow_mut();
            state.handles += 1;
            state.opens += 1;
            state.failures
        };
        let open = Open {
            file: Rc::clone(file),
            flags,
            standing: Cell::new(Standing::Good),
            session: Cell::new(session),
            reopening: Gate::default(),
            lockers: RefCell::default(),
            failures_seen: Cell::new(failures),
        };
        self.last += 1;
        self.opens.insert(Handle(self.last), Rc::new(open));
        (Handle(self.last), Rc::clone(file))
    }

    /// The handle is gone.
    pub(crate) fn remove(&mut self, handle: Handle) -> Result<Rc<Open>, Errno> {
        let open = self.opens.remove(&handle).ok_or(Errno::EBADF)?;
        open.file.state.borrow_mut().handles -= 1;
        Ok(open)
    }

    /// How many there are of each; the sessions are not known here.
    pub(crate) fn figures(&self) -> FsFigures {
        let count = |is: fn(&File) -> bool| self.files.values().filter(|file| is(file)).count();
        FsFigures {
            handles: self.opens.len(),
            files: self.files.len(),
            dirty: count(File::is_dirty),
            locked: count(File::is_locked),
            sessions_ended: 0,
        }
    }

    /// Forgets the file if nothing keeps it.
    pub(crate) fn forget_idle(&mut self, ino: Ino) {
        if self.files.get(&ino).is_some_and(|file| file.is_idle()) {
            self.files.remove(&ino);
        }
    }

    /// What is held of the inodes that `of_node` accepts.
    pub(crate) fn claims(&self, of_node: impl Fn(Ino) -> bool) -> Vec<Claim> {
        self.files
            .values()
            .filter(|file| of_node(file.ino))
            .filter_map(|file| file.claim())
            .collect()
    }

    /// The session with the node of the inodes that `of_node` accepts has ended; gives the handles that must be reopened.
    pub(crate) fn lose_session(&self, of_node: impl Fn(Ino) -> bool) -> Vec<Handle> {
        let concerned = |open: &&Rc<Open>| of_node(open.file.ino);
        self.opens.values().filter(concerned).for_each(|open| open.lose_session());
        self.files.values().filter(|file| of_node(file.ino)).for_each(|file| file.lose_session());
        let handles = self.opens.iter().filter(|(_, open)| of_node(open.file.ino));
        handles.map(|(handle, _)| *handle).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use sealfs_proto::{Kind, LockKind, Time};

    /// An empty file.
    pub(crate) fn attr(ino: Ino) -> Attr {
        Attr {
            ino,
            kind: Kind::File,
            mode: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            chunk_size: 65_536,
            atime: Time::default(),
            mtime: Time::default(),
            ctime: Time::default(),
            change: 1,
            generation: 1,
            bound: 0,
        }
    }

    fn opened(table: &mut Table) -> Rc<Open> {
        let (handle, _) = table.insert(&attr(Ino(9)), OpenFlags::default(), 0, Instant::default());
        table.open(handle).unwrap()
    }

    const DIRTY: Dirty = Dirty { generation: 1, size: 100, blocks: 8, wrote: true };

    #[test]
    fn what_is_being_settled_is_still_shown() {
        let mut table = Table::default();
        let open = opened(&mut table);
        let file = &open.file;
        assert!(file.wrote(DIRTY));
        assert_eq!(file.begin_settling(), Some(DIRTY));
        assert_eq!((file.size(), file.shown().blocks), (100, 8));
        assert!(file.wrote(Dirty { size: 50, ..DIRTY }), "a new settlement becomes due");
        assert_eq!((file.size(), file.shown().blocks), (100, 16));
        file.absorb(&Attr { size: 100, blocks: 8, change: 2, ..attr(Ino(9)) }, Instant(1));
        file.settled();
        assert_eq!((file.size(), file.shown().blocks), (100, 16));
        assert!(file.is_dirty());
    }

    #[test]
    fn a_failed_settlement_is_told_to_every_handle_once() {
        let mut table = Table::default();
        let (one, two) = (opened(&mut table), opened(&mut table));
        one.file.wrote(DIRTY);
        one.file.begin_settling();
        assert!(one.file.not_settled(Errno::ENOSPC, true));
        let late = opened(&mut table);
        assert_eq!(one.report(), Err(Errno::ENOSPC));
        assert_eq!(one.report(), Ok(()));
        assert_eq!(two.report(), Err(Errno::ENOSPC));
        assert_eq!(late.report(), Ok(()), "it was opened afterwards");
        assert_eq!(one.file.begin_settling(), Some(DIRTY), "the shard has refused all of it");
        assert!(one.file.not_settled(Errno::EIO, true));
        let again = Some(Dirty { blocks: 0, ..DIRTY });
        assert_eq!(one.file.begin_settling(), again, "it may have been counted");
    }

    #[test]
    fn an_overtaken_answer_changes_nothing() {
        let mut table = Table::default();
        let file = Rc::clone(&opened(&mut table).file);
        file.absorb(&Attr { size: 7, change: 5, ..attr(Ino(9)) }, Instant(1));
        file.absorb(&Attr { size: 3, change: 4, ..attr(Ino(9)) }, Instant(1));
        assert_eq!(file.size(), 7);
    }

    #[test]
    fn a_file_stays_until_it_is_closed_settled_and_has_no_handle() {
        let mut table = Table::default();
        let (handle, file) =
            table.insert(&attr(Ino(9)), OpenFlags::default(), 0, Instant::default());
        file.wrote(DIRTY);
        table.forget_idle(Ino(9));
        table.remove(handle).unwrap();
        assert!(file.close_due());
        table.forget_idle(Ino(9));
        file.begin_settling();
        file.settled();
        table.forget_idle(Ino(9));
        assert_eq!(file.begin_close(), 1);
        assert_eq!(table.claims(|_| true)[0].opens, 1, "claimed until the shard has answered");
        file.closed(1);
        assert_eq!(file.begin_close(), 0);
        assert!(table.file(Ino(9)).is_some());
        table.forget_idle(Ino(9));
        assert!(table.file(Ino(9)).is_none());
        assert!(table.claims(|_| true).is_empty());
    }

    #[test]
    fn a_lost_lock_breaks_the_handles_it_was_taken_through() {
        let mut table = Table::default();
        let (locked, other) = (opened(&mut table), opened(&mut table));
        let lock = Lock {
            space: LockSpace::Posix,
            kind: LockKind::Write,
            start: 0,
            end: 9,
            owner: LockOwner(4),
            pid: 1,
        };
        locked.file.apply_lock(lock);
        locked.locked_by(LockSpace::Posix, LockOwner(4));
        assert_eq!(table.claims(|_| true)[0].locks, [lock]);
        assert_eq!(table.lose_session(|_| true).len(), 2);
        assert_eq!((locked.check(), other.check()), (Err(Errno::EIO), Ok(())));
        assert!(table.claims(|_| true).is_empty());
    }
}
