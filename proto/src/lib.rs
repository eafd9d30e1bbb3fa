//! Words that both ends share: ids, limits, the frame header, requests and replies, attributes, errors, the cluster map.
//!
//! Everything here is a plain value. A frame is one [`Header`] of 64 bytes, a body (a [`Request`] or a [`Reply`] in
//! bincode's bytes) and, where the transport carries payload in the stream, the bulk behind it.
//!
//! 1. Bytes from a peer or a disk become a value or a [`Corrupt`]; never a panic, never an allocation beyond [`limits`].
//! 2. The same value gives the same bytes on every platform; golden bytes in `tests/` hold every released version.
//! 3. Placement is a pure function of the stored cluster map: no list order, no platform hasher, no floating point.
//!
//! It does no I/O and reads no clock.
#![forbid(unsafe_code)]

mod attr;
mod codec;
mod errno;
mod header;
mod ids;
mod kind;
pub mod limits;
mod lock;
mod map;
pub mod nodes;
mod peers;
mod place;
mod reply;
mod request;

pub use attr::{Access, Attr, Kind, SetAttr, SetTime, Time, Who, Xattr, XattrFlag};
pub use codec::{Corrupt, decode, encode};
pub use errno::Errno;
pub use header::{Header, HeaderKind, Status};
pub use ids::{ClusterId, Epoch, Ino, NodeId, Sequence, SessionId, ShardId, TxId};
pub use lock::{Lock, LockKind, LockOwner, LockSpace};
pub use map::{Address, ClusterMap, MapError, Node, TransportKind};
pub use peers::{Path, Peer, PeerFigures, RdmaPath, Traffic};
pub use place::{Placement, chunk_shard, directory_shard, name_hash, spread};
pub use reply::{Entry, Listed, NodeStatus, Reply, Space};
pub use request::{Claim, New, Part, Prepare, RenameFlag, Request};
