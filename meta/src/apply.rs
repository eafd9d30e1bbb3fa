//! Carrying out a record: total, and the only durable change of a [`State`].

use sealfs_proto::{Ino, Reply};

use crate::{Record, State};

/// What became of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The reply to the request it came from, to be sent at its durability point. For a record with an origin the state
    /// keeps it.
    pub reply: Reply,
    /// What the server does next. Replay ignores it: after a restart [`State::cuts`], [`State::unlinked`],
    /// [`State::prepared`] and [`State::decided`] say what is unfinished.
    pub effects: Vec<Effect>,
}

/// What follows from a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The inode has no links any more: when no open holds it, [`crate::plan_reclaim`].
    Unlinked(Ino),
    /// Discard `from..bound` of the file: in this shard only if `bound` is at most `chunk_size`, else on every node; then
    /// append `Change::CutDone`. The request is answered after that.
    Cut {
        /// Which file.
        ino: Ino,
        /// First byte to discard.
        from: u64,
        /// No data lies at or beyond.
        bound: u64,
        /// Bytes per chunk.
        chunk_size: u32,
    },
    /// The inode is forgotten; nothing of it lies outside this shard: free its chunk 0 in this entry.
    Dropped(Ino),
    /// Have every node discard all of the inode, then append `Change::Reclaimed` (whose effect is `Dropped`).
    Reclaim {
        /// Which inode.
        ino: Ino,
        /// Bytes per chunk.
        chunk_size: u32,
    },
}

/// Carries `record` out. Never fails: a record comes from this crate's plans or from the journal they went to, and what
/// does not fit the state (which only a bug or a forged journal could bring) changes nothing but the record's number.
pub fn apply(state: &mut State, record: &Record) -> Applied {
    let _ = (state, record);
    unimplemented!()
}
