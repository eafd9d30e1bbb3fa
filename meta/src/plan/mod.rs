//! From a request to what is to be done: every check of the namespace.
//!
//! [`plan()`] looks at the shard's state and changes nothing. What it cannot know, it asks for with a [`Question`]; the
//! server finds the answer (a call to another shard), puts it into [`Facts`] and plans again from the start, so that a
//! plan is always made on the present state.
//!
//! 1. A record or transaction that `plan` gives is valid for the state it was given, until the next change of that state.
//! 2. Facts about other shards may be stale: every part repeats its expectation and is checked again when prepared.

mod attr;
mod create;
mod link;
mod remove;
mod rename;
mod size;
pub(crate) mod xattr;

use std::collections::BTreeMap;

use sealfs_proto::{Attr, Errno, Ino, Kind, Part, Reply, Request, ShardId, Time};

use crate::read::making;
use crate::{Answer, Change, Origin, Record, State, Transaction, part};
use remove::Removal;
pub use size::{plan_reclaim, plan_settle_write};

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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// [`Question::Target`].
    pub target: Option<Target>,
    /// [`Question::Ancestry`]: the rename lock is held and the walks met nothing forbidden.
    pub ancestry: bool,
    /// [`Question::End`]: the file's generation when it was asked, and the end of its data on all nodes.
    pub end: Option<(u64, u64)>,
}

/// The place that a rename goes to, in another shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The directory's attributes.
    pub dir: Attr,
    /// What the name is at present.
    pub entry: Option<(Ino, Kind)>,
}

/// What must be known before the plan can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// What is `name` in `dir`: `Request::Stat` of the directory and `Request::Lookup` as root, both to its shard. An errno
    /// of the first, or another than ENOENT of the second, ends the request with it.
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
/// [`crate::read()`]; those of chunks, locks, sessions and nodes, and `Close`, are the server's (EOPNOTSUPP here). A write of
/// chunk 0 is planned by [`plan_settle_write`].
pub fn plan(state: &State, request: &Request, asked: &Asked) -> Result<Planned, Refused> {
    if making(state, request).is_some() {
        return Err(Refused::Busy);
    }
    match request {
        Request::Create { .. } | Request::CreateUnnamed { .. } | Request::Mkdir { .. } => {
            create::plan(state, request, asked)
        }
        Request::Unlink { who, dir, name } => {
            remove::plan(state, asked, who, *dir, name, Removal::File)
        }
        Request::Rmdir { who, dir, name } => {
            remove::plan(state, asked, who, *dir, name, Removal::Directory)
        }
        Request::Rename { who, dir, name, target_dir, target_name, flag } => {
            let source = rename::Place { dir: *dir, name };
            let target = rename::Place { dir: *target_dir, name: target_name };
            rename::plan(state, asked, who, source, target, *flag)
        }
        Request::Link { who, ino, dir, name } => link::plan(state, asked, who, *ino, *dir, name),
        Request::SetAttr { who, ino, set, opened } => {
            attr::plan(state, asked, who, *ino, set, *opened)
        }
        Request::Open { who, ino, access, truncate } => {
            attr::plan_open(state, asked, who, *ino, *access, *truncate)
        }
        Request::Raise { .. } | Request::Settle { .. } | Request::Reserve { .. } => {
            size::plan(state, request, asked)
        }
        Request::XattrSet { who, ino, xattr, flag, clear_sgid } => {
            xattr::plan_set(state, asked, who, *ino, xattr, *flag, *clear_sgid)
        }
        Request::XattrRemove { who, ino, name } => {
            xattr::plan_remove(state, asked, who, *ino, name)
        }
        _ => Err(Errno::EOPNOTSUPP.into()),
    }
}

impl Asked {
    /// The record of this request that changes `change`.
    fn record(&self, change: Change) -> Planned {
        Planned::Record(Record { origin: Some(self.origin), now: self.now, change })
    }

    /// A change of names: the parts by the shard that they are for. One record if all are this shard's own.
    fn parts(&self, state: &State, parts: Shares, answer: Answer) -> Result<Planned, Refused> {
        let mut shares = parts.0;
        let mut own = shares.remove(&state.shard).unwrap_or_default();
        part::check(state, &own)?;
        if !shares.is_empty() {
            let others = shares.into_iter().collect();
            let (origin, now, oldest) = (self.origin, self.now, state.oldest());
            let transaction = Transaction { origin, now, own, oldest, others, answer };
            return Ok(Planned::Transaction(transaction));
        }
        part::draw_numbers(state, &mut own);
        let new = part::new_attrs(&own);
        part::fill_in(&mut own, &new);
        let answer = answer.filled_in(&new);
        Ok(self.record(Change::Parts { parts: own, answer }))
    }
}

/// The parts of a change, by the shard that they are for.
#[derive(Default)]
struct Shares(BTreeMap<ShardId, Vec<Part>>);

impl Shares {
    fn add(&mut self, shard: ShardId, part: Part) {
        self.0.entry(shard).or_default().push(part);
    }
}
