//! What a server decides. One [`Core`] is one pinned thread's worth of shards: it owns them, so that no state needs a lock.
//!
//! A core talks to the world through four ports that its shell (or the simulation) provides: a
//! [`sealfs_transport::Transport`], a [`Disk`], a [`Mailbox`] to the node's other cores, and an
//! [`sealfs_transport::Arena`]. [`Core::turn`] takes what the ports report, lets the shards decide, and leaves effects in
//! the ports; it never waits. Changes of several steps (transactions, truncation, partial overwrites) are futures that
//! the core polls itself; a request of one step never becomes one.
//!
//! 1. A record is applied when appended; no reply that depends on it leaves before its durability point.
//! 2. One journal write per turn.
//! 3. The same inputs in the same order give the same effects: no clock, no randomness, no unordered iteration.
#![forbid(unsafe_code)]

pub mod chunk;
mod config;
mod connections;
mod core;
mod disk;
mod figures;
mod flow;
mod gate;
mod locks;
mod mail;
mod memory;
mod net;
mod opens;
mod ports;
mod recovery;
mod serve;
mod sessions;
mod siblings;
mod world;

pub use config::{Config, Durability};
pub use core::{Core, Fatal, Ports};
pub use figures::{
    BlockFigures, CoreFigures, Counted, Counters, PutOff, Queues, RequestKind, VolumeOp,
};
pub use mail::Mail;
pub use ports::{CoreId, Disk, DiskDone, DiskError, DiskOp, Mailbox};
pub use recovery::{Recovery, sync_mark};
