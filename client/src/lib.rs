//! The client's shell: turns a cluster into a mount.
//!
//! [`Mount::start`] runs one thread that owns everything of a mount: an io_uring, a pool of regions, the connections to
//! the nodes, `Fs`, and a FUSE session over /dev/fuse. The thread moves bytes between them and decides nothing: what an
//! operation means is `sealfs_client_core`'s, how a program's call looks is `fuse`'s.
//!
//! 1. A mount is `ready` only when it has answered a stat of its own root.
//! 2. When the kernel ends the mount, whatever was acknowledged to programs is settled and flushed before the thread ends.
//! 3. Nothing is left behind by a failed start: no mount, no thread, no session.

mod daemon;
mod fuse;
mod link;
mod log;
mod metrics;
mod mount;
mod options;
mod point;
mod probe;
mod status;
mod sys;

pub use daemon::{Forked, Started, daemonize, default_log};
pub use link::Network;
pub use log::{LogControl, mount_log, set_mount_log};
pub use metrics::{Late, MountMetrics};
pub use mount::{Mount, MountConfig, MountError, POOL_LEN, unmount};
pub use options::{Consistency, MountOptions};
pub use point::{is_mounted, mount_source, remount};
pub use probe::{BULK_LEN, Measured, Probed, ROUND_TRIPS, probe_nodes};
pub use sealfs_net::{
    Choice, FileError, Libraries, libraries, memory_beside_arena, port_mtu, read_key, read_nodes,
};
pub use status::{ClusterStatus, MountStatus, Reached, cluster_status, mount_status};

/// Whether the bytes are a request as the kernel's FUSE writes it, with `behind` bytes of data that lie elsewhere: what a mount
/// asks of everything that it reads. For tests of the decoder, whose types are the session's own.
#[must_use]
pub fn is_fuse_message(bytes: &[u8], behind: usize) -> bool {
    fuse::is_message(bytes, behind)
}
