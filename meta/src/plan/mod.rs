//! From a request to what is to be done: every check of the namespace.
//!
//! [`plan`] looks at the shard's state and changes nothing. What it cannot know, it asks for with a [`Question`]; the
//! server finds the answer (a call to another shard), puts it into [`Facts`] and plans again from the start, so that a
//! plan is always made on the present state.
//!
//! 1. A record or transaction that `plan` gives is valid for the state it was given, until the next change of that state.
//! 2. Facts about other shards may be stale: every part repeats its expectation and is checked again when prepared.

use sealfs_proto::{Errno, Ino, Kind, Reply, Request, Time};

use crate::{Origin, Record, State, Transaction};

/// Who asks, when, and what was found out so far.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Session, sequence and watermark of the request.
    pub origin: Origin,
    /// Wall time.
    pub now: Time,
    /// Shards of the cluster.
    pub shards: u32,
    /// Answers to earlier questions.
    pub facts: Facts,
}

/// Answers to questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// [`Question::Target`]: what the name is, `Some(None)` if there is none.
    pub target: Option<Option<(Ino, Kind)>>,
    /// [`Question::Ancestry`]: the rename lock is held and the walks met nothing forbidden.
    pub ancestry: bool,
    /// [`Question::End`]: the file's generation when it was asked, and the end of its data on all nodes.
    pub end: Option<(u64, u64)>,
}

/// What must be known before the plan can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// What is `name` in `dir`: `Request::Lookup` as root to the directory's shard (ENOENT: nothing).
    Target {
        /// The directory.
        dir: Ino,
        /// The name.
        name: Vec<u8>,
    },
    /// Take the rename lock (it is kept until the change has ended), then for each walk go up by `Request::Parent` from
    /// `.0` to the root: meeting `.1` ends the request with EINVAL.
    Ancestry {
        /// (from, forbidden).
        walks: Vec<(Ino, Ino)>,
    },
    /// Where the file's data ends: `Request::End` to every node, the highest answer.
    End {
        /// The file.
        ino: Ino,
        /// Its generation, to be handed back with the answer.
        generation: u64,
        /// Its chunk size.
        chunk_size: u32,
    },
}

/// What is to be done for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Planned {
    /// Nothing durable: answer (and, for `Open`, count it).
    Reply(Reply),
    /// Append and apply.
    Record(Record),
    /// Run as coordinator.
    Transaction(Transaction),
    /// Find this out and plan again.
    Ask(Question),
}

/// Why nothing is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The program gets this error.
    Errno(Errno),
    /// A key is held, or a cut is pending: answer `Status::Busy`.
    Busy,
    /// The number range is spent: reserve (see [`State::range`]), then plan again.
    Numbers,
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// Plans a change: every request that is a "Change" of names or inodes, `Open` included. Requests that only read go to
/// [`crate::read`]; those of chunks, locks, sessions and nodes are the server's (EOPNOTSUPP here). The chunk-0 write's
/// settlement is planned by [`plan_settle_write`].
pub fn plan(state: &State, request: &Request, asked: &Asked) -> Result<Planned, Refused> {
    let _ = (state, request, asked);
    unimplemented!()
}

/// The settlement of a write of `from..to` to chunk 0, to stand in the entry of that write; `blocks` more 512-byte units
/// are allocated. Busy while a cut is pending that the write would reach. The reply is `Written` with attributes.
pub fn plan_settle_write(
    state: &State,
    ino: Ino,
    to: u64,
    blocks: i64,
    asked: &Asked,
) -> Result<Record, Refused> {
    let _ = (state, ino, to, blocks, asked);
    unimplemented!()
}

/// The end of an inode without links that nobody has open; Busy while a transaction holds it, ENOENT if it has links or is
/// being reclaimed already.
pub fn plan_reclaim(state: &State, ino: Ino, now: Time) -> Result<Record, Refused> {
    let _ = (state, ino, now);
    unimplemented!()
}
