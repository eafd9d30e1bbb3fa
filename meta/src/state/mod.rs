//! What one shard knows: inodes with their entries, unlinked inodes, transactions, kept replies and number ranges.
//!
//! Only [`crate::apply()`] changes what is durable. Reads go through the methods here and through [`crate::read()`].
//!
//! 1. `number` is the count of records applied since the shard began.
//! 2. An inode is in `unlinked` if and only if it has no links.
//! 3. Every prepared transaction holds the keys of its parts; what holds a key of nobody's transaction is a coordinator of
//!    this process, in memory only.
//! 4. Numbers are drawn below an end that is on the device.

mod directory;
mod holds;
mod inode;
mod numbers;
mod sessions;

use std::collections::{BTreeMap, BTreeSet};

use sealfs_proto::{
    Attr, Errno, Ino, Kind, Part, Prepare, Reply, Sequence, SessionId, ShardId, Time, TxId, limits,
};

use crate::snapshot::walk::Walk;

pub use directory::{Directory, DirectoryEntry};
pub(crate) use holds::{Hold, Holds, Key};
pub use inode::{Body, Inode, Unlinked};
pub(crate) use numbers::Numbers;
pub use numbers::Range;
pub use sessions::Kept;
pub(crate) use sessions::{Session, Sessions};

/// The state of one shard. An empty one is a few hundred bytes.
#[derive(Clone, Debug)]
pub struct State {
    pub(crate) shard: ShardId,
    pub(crate) number: u64,
    pub(crate) numbers: Numbers,
    pub(crate) inodes: BTreeMap<Ino, Inode>,
    pub(crate) unlinked: BTreeMap<Ino, Unlinked>,
    pub(crate) prepared: BTreeMap<TxId, Prepare>,
    pub(crate) decided: BTreeMap<TxId, Vec<ShardId>>,
    /// Commits of other coordinators that were carried out here and are not forgotten there.
    pub(crate) resolved: BTreeSet<TxId>,
    pub(crate) sessions: Sessions,
    pub(crate) holds: Holds,
    /// Of a snapshot that is being taken.
    pub(crate) walk: Option<Box<Walk>>,
}

/// How the root directory begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootOptions {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes per chunk of files, as the cluster map says.
    pub chunk_size: u32,
}

impl Default for RootOptions {
    fn default() -> Self {
        Self { mode: 0o755, uid: 0, gid: 0, chunk_size: limits::CHUNK_SIZE }
    }
}

impl State {
    /// An inode that can be used: ESTALE if there is none or its chunks are being dropped.
    pub(crate) fn live(&self, ino: Ino) -> Result<&Inode, Errno> {
        let inode = self.inodes.get(&ino).ok_or(Errno::ESTALE)?;
        match self.unlinked.get(&ino) {
            Some(Unlinked::Reclaiming) => Err(Errno::ESTALE),
            _ => Ok(inode),
        }
    }

    /// A live directory and its entries: ENOTDIR if it is something else.
    pub(crate) fn live_directory(&self, ino: Ino) -> Result<(&Inode, &Directory), Errno> {
        let inode = self.live(ino)?;
        Ok((inode, inode.directory().ok_or(Errno::ENOTDIR)?))
    }

    /// An empty shard, as format leaves it. Shard 0 is made by [`State::with_root`].
    #[must_use]
    pub fn new(shard: ShardId) -> Self {
        Self {
            shard,
            number: 0,
            numbers: Numbers::default(),
            inodes: BTreeMap::new(),
            unlinked: BTreeMap::new(),
            prepared: BTreeMap::new(),
            decided: BTreeMap::new(),
            resolved: BTreeSet::new(),
            sessions: Sessions::default(),
            holds: Holds::default(),
            walk: None,
        }
    }

    /// Shard 0 with the root directory, made at `now`. Format writes it as a snapshot (number 0) before the node serves.
    #[must_use]
    pub fn with_root(options: RootOptions, now: Time) -> Self {
        let mut state = Self::new(Ino::ROOT.shard());
        let attr = Attr {
            ino: Ino::ROOT,
            kind: Kind::Directory,
            mode: options.mode,
            nlink: 2,
            uid: options.uid,
            gid: options.gid,
            rdev: 0,
            size: 0,
            blocks: 0,
            chunk_size: options.chunk_size,
            atime: now,
            mtime: now,
            ctime: now,
            change: 1,
            generation: 1,
            bound: 0,
        };
        state.inodes.insert(Ino::ROOT, Inode::new(attr, Ino::ROOT, Vec::new(), Vec::new()));
        state
    }

    /// Whose state it is.
    #[must_use]
    pub const fn shard(&self) -> ShardId {
        self.shard
    }

    /// Records applied so far: the shard's own sequence number of the last journal entry it contains.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// Whether nothing was ever applied and nothing is there: such a shard needs no snapshot.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.number == 0 && self.inodes.is_empty()
    }

    /// Inodes that exist, unlinked ones included.
    #[must_use]
    pub fn inode_count(&self) -> usize {
        self.inodes.len()
    }

    /// An inode.
    #[must_use]
    pub fn inode(&self, ino: Ino) -> Option<&Inode> {
        self.inodes.get(&ino)
    }

    /// All inodes, ascending.
    pub fn inodes(&self) -> impl Iterator<Item = (Ino, &Inode)> {
        self.inodes.iter().map(|(ino, inode)| (*ino, inode))
    }

    /// Where the pending cut of a file begins. While there is one, the file neither grows nor is cut again.
    #[must_use]
    pub fn cut(&self, ino: Ino) -> Option<u64> {
        match self.inodes.get(&ino)?.body {
            Body::File { cut } => cut,
            _ => None,
        }
    }

    /// Files whose cut was begun and not finished: after a restart the server goes on with each.
    pub fn cuts(&self) -> impl Iterator<Item = (Ino, u64)> {
        self.inodes.iter().filter_map(|(ino, inode)| match inode.body {
            Body::File { cut: Some(from) } => Some((*ino, from)),
            _ => None,
        })
    }

    /// Inodes without links, and how far their end has come; after a restart the server goes on with each.
    pub fn unlinked(&self) -> impl Iterator<Item = (Ino, Unlinked)> {
        self.unlinked.iter().map(|(ino, stage)| (*ino, *stage))
    }

    /// Transactions of which this shard is a participant that awaits the decision.
    pub fn prepared(&self) -> impl Iterator<Item = (TxId, &Prepare)> {
        self.prepared.iter().map(|(tx, prepare)| (*tx, prepare))
    }

    /// The reply to a `Prepare` that arrives again, if its share is prepared.
    #[must_use]
    pub fn is_prepared(&self, tx: TxId) -> Option<Reply> {
        self.prepared.get(&tx).map(|prepare| crate::part::prepared_reply(self, &prepare.parts))
    }

    /// Transactions that this shard has decided to commit and whose participants have not all acknowledged.
    pub fn decided(&self) -> impl Iterator<Item = (TxId, &[ShardId])> {
        self.decided.iter().map(|(tx, others)| (*tx, others.as_slice()))
    }

    /// What became of a transaction that this shard coordinates: committed, aborted (or never heard of), `None` while it
    /// is open in this process. The answer to `Request::Decision`.
    #[must_use]
    pub fn decision(&self, tx: TxId) -> Option<bool> {
        if self.decided.contains_key(&tx) {
            Some(true)
        } else if self.holds.is_open(tx) {
            None
        } else {
            Some(false)
        }
    }

    /// The lowest number of this shard's transactions that is not forgotten.
    pub(crate) fn oldest(&self) -> u64 {
        let decided = self.decided.keys().next().map(|tx| tx.number);
        let open = self.holds.oldest_open(self.shard).map(|tx| tx.number);
        decided.into_iter().chain(open).min().unwrap_or(self.numbers.transaction)
    }

    /// The number of a new transaction of this shard, in memory. `None`: the range is spent (see [`State::range`]).
    pub fn draw_tx(&mut self) -> Option<TxId> {
        self.numbers.draw_tx().map(|number| TxId { coordinator: self.shard, number })
    }

    /// Opens a transaction in memory: holds the keys of the coordinator's own parts until [`State::release`] or its
    /// decision. The parts must have passed [`crate::plan()`] since the last change of this state.
    pub fn hold(&mut self, tx: TxId, own: &[Part]) {
        self.holds.hold(tx, own, true);
    }

    /// Gives up a transaction that was not decided.
    pub fn release(&mut self, tx: TxId) {
        self.holds.release(tx);
    }

    /// The range to reserve next, when less than half of one is left; `None` while there are enough numbers. The server
    /// appends `Change::Range`, syncs the journal to the device, then calls [`State::range_synced`].
    #[must_use]
    pub fn range(&self) -> Option<Range> {
        self.numbers.wanted()
    }

    /// All ranges applied so far are on the device: their numbers may be drawn.
    pub fn range_synced(&mut self) {
        self.numbers.synced();
    }

    /// After replay, before serving: numbers go on above the ranges, for a lost tail may have used what lies in them.
    pub fn recovered(&mut self) {
        self.numbers.skip();
    }

    /// What is kept for a change of a session.
    #[must_use]
    pub fn kept(&self, session: SessionId, sequence: Sequence) -> Kept<'_> {
        self.sessions.kept(session, sequence)
    }

    /// Whether the shard has journaled the session as alive or keeps replies for it.
    #[must_use]
    pub fn knows(&self, session: SessionId) -> bool {
        self.sessions.0.contains_key(&session)
    }

    /// The sessions this shard has journaled as alive or keeps replies for, ascending.
    pub fn sessions(&self) -> impl Iterator<Item = SessionId> {
        self.sessions.ids()
    }
}
