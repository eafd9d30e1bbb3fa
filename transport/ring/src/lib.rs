//! A pinned thread's completion loop over io_uring, and the memory that its operations use.
//!
//! Each thread of a node or client has one [`Ring`], and everything that the thread waits for goes through it: sockets, the
//! disk, /dev/fuse, wake-ups by other threads, deadlines. One turn of the loop is one system call:
//!
//! ```text
//! loop {
//!     ring.enter(time until the nearest deadline)?;          submits all, waits for one completion
//!     while let Some(done) = ring.next() { match done.owner { ... } }
//!     turn the core; flush the transport                      both submit, neither waits
//! }
//! ```
//!
//! A [`Ring`] is a handle: its clones (the transport's, the disk's, the session's) are the same ring, so that the ports of a
//! core can submit without an argument. It stays on the thread that made it (SINGLE_ISSUER); other threads hold a
//! [`Wake`].
//!
//! 1. What the kernel reads or writes was moved into the [`Op`] and comes back in its [`Completion`]; nobody can touch it
//!    between.
//! 2. Each submitted operation completes exactly once, also if it was cancelled.
//! 3. A ring that is dropped cancels what is in flight and waits for the kernel to let go before it frees any memory.
//! 4. A [`Pool`]'s mapping lives as long as its last region, wherever that is.
//!
//! `unsafe` is in `ring`, `pool` and `sys` only. The crate decides nothing: no retries, no partial writes continued (sockets
//! excepted, where the kernel does it: MSG_WAITALL), no errors swallowed.
//! Not here: a second entry size (SQE128, which FUSE over io_uring needs) would be one more field of [`Config`] and one more
//! [`Op`]; registered files would hide in [`File`].

mod clock;
mod op;
mod poll;
mod pool;
mod resolve;
mod ring;
mod socket;
mod sys;

pub use clock::{now, pin};
pub use op::{Completion, File, Key, Op, Owner, Piece};
pub use poll::Poll;
pub use pool::{Pool, REGION_LEN_MAX};
pub use resolve::Resolver;
pub use ring::{Config, Ring, Waits, Wake};
pub use socket::{Timeouts, bind_listener, peer_address, stream};
