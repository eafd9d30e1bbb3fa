//! The namespace of one shard as a deterministic state machine, and the formats that make it durable.
//!
//! [`State`] is everything a shard knows of names and inodes. [`plan()`] turns a request into a [`Planned`]: a reply, a
//! [`Record`], a [`Transaction`] over several shards, or a [`Question`] that must be answered elsewhere first. [`apply()`]
//! carries a record out. A record is appended to the [`journal`] when applied; a [`snapshot`] bounds the journal; [`recover`]
//! says what to do with both after a stop; [`check`] finds what must not be.
//!
//! 1. `plan` holds every check and changes nothing; `apply` is total and the only durable mutation.
//! 2. The same records applied in the same order to the same state give the same state, replies and effects: no clock, no
//!    randomness, no unordered iteration. Time and numbers stand in the record.
//! 3. Equal states give equal snapshot bytes.
//! 4. What only lives in memory ([`State::hold`], number ranges not yet synced) is never in a snapshot.
//!
//! It does no I/O. Opens, locks, leases and chunks' data are the server's (`sealfs-server-core`).
#![forbid(unsafe_code)]

mod access;
mod apply;
pub mod check;
pub mod journal;
mod part;
mod plan;
#[cfg(test)]
mod random_test;
mod read;
mod record;
pub mod recover;
pub mod snapshot;
mod state;
#[cfg(test)]
mod testing;
mod tx;

pub use apply::{Applied, Effect, apply};
pub use plan::{
    Asked, Facts, Planned, Question, Refused, Target, plan, plan_reclaim, plan_settle_write,
};
pub use read::{read, waits, walk_waits};
pub use record::{Answer, AttrChange, Change, KIND_VERSION, Origin, Record, Times};
pub use state::{
    Body, Directory, DirectoryEntry, Inode, Kept, Range, RootOptions, State, Unlinked,
};
pub use tx::{Transaction, forget, prepare, resolve};
