//! POSIX operations as async functions over calls to nodes, with no FUSE word in it.
//!
//! [`Fs`] is what a mount, the simulation and the tests share. It speaks of inodes, not of paths: whoever stands above
//! (the kernel) walks paths. It knows the cluster map, computes which node serves what, splits reads and writes at chunk
//! borders, keeps what is open and what is not settled yet, and turns what can go wrong into an errno.
//!
//! 1. Everything runs on one thread; no borrow of state lives across an await.
//! 2. No clock and no I/O of its own: [`Fs::turn`] brings the time, [`sealfs_transport::Calls`] the network.
//! 3. What an operation has answered holds between clients as SEMANTICS.md promises.
//!
//! It caches no data (the kernel does) and decides no permissions (the kernel and the shards do).
#![forbid(unsafe_code)]

mod file;
mod fs;
mod gate;
mod held;
mod net;
mod ops;
mod route;
mod share;
mod types;
mod unsynced;

pub use fs::{Fs, FsFigures};
pub use types::{Fallocate, Handle, Interrupt, OpenFlags, Options, Piece, Whence, WriteFlags};
