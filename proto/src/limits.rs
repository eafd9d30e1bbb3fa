//! Every limit, with its reason; relations between them are asserted when this file compiles.

/// A name in a directory, bytes. POSIX NAME_MAX of every Linux file system.
pub const NAME_LEN_MAX: usize = 255;
/// A symlink's target, bytes, without a terminating zero (PATH_MAX - 1).
pub const TARGET_LEN_MAX: usize = 4_095;
/// An extended attribute's name, bytes (XATTR_NAME_MAX).
pub const XATTR_NAME_LEN_MAX: usize = 255;
/// An extended attribute's value, bytes (XATTR_SIZE_MAX).
pub const XATTR_VALUE_LEN_MAX: usize = 65_536;
/// All extended attributes of an inode, names, values and [`XATTR_OVERHEAD`] for each, bytes. Bounds an inode's record, its
/// memory, and the reply that lists the names.
pub const XATTR_TOTAL_LEN_MAX: usize = 256 * 1024;
/// What an extended attribute takes besides its name and value where it is encoded: their lengths.
pub const XATTR_OVERHEAD: usize = 16;
/// Supplementary groups that a request carries (NGROUPS_MAX is 65,536; more than this many are cut, with a log line).
pub const GROUPS_MAX: usize = 1_024;
/// Hard links of an inode. Kept below u32 with room for transactions in flight.
pub const LINKS_MAX: u32 = 1 << 30;
/// A file's size, bytes: the largest offset the kernel can name.
pub const FILE_SIZE_MAX: u64 = i64::MAX as u64;

/// Smallest piece of the disk, bytes: the unit of allocation and of the checksum.
pub const BLOCK_SIZE: u32 = 4_096;
/// Default chunk, bytes.
pub const CHUNK_SIZE: u32 = 1 << 20;
/// Smallest chunk, bytes: one checksum unit of a large file.
pub const CHUNK_SIZE_MIN: u32 = 64 * 1024;
/// Largest chunk, bytes: one bulk transfer must be able to carry it.
pub const CHUNK_SIZE_MAX: u32 = BULK_LEN_MAX;

/// Shards of a cluster: at least this many.
pub const SHARDS_MIN: u32 = 4_096;
/// Shards of a cluster: at most this many, for a shard is the top 16 bits of an inode number.
pub const SHARDS_MAX: u32 = 65_536;
/// Nodes of a cluster.
pub const NODES_MAX: usize = 1_024;
/// A node's weight in placement.
pub const WEIGHT_MAX: u32 = 1_000_000;

/// A frame's body, bytes: the largest are a listing, an inode's extended attributes and a set of claims.
pub const BODY_LEN_MAX: u32 = 512 * 1024;
/// A frame's payload, bytes: one FUSE request, one default chunk.
pub const BULK_LEN_MAX: u32 = 1 << 20;
/// Bytes of entries in one listing's reply; one FUSE directory read is smaller.
pub const LIST_LEN_MAX: u32 = 128 * 1024;
/// Ranges in one `Extents` reply.
pub const EXTENTS_MAX: usize = 4_096;
/// Inodes and locks in one `Claim` request; a client sends as many requests as it needs.
pub const CLAIMS_MAX: usize = 4_096;

/// Peers in one `Peers` reply, of about 700 bytes at most; who asks comes again for more.
pub const PEERS_PAGE: usize = 64;

/// Calls in flight from one connection; the peer's receive queue is sized for it.
pub const CREDITS: u32 = 256;
/// Payload in flight from one connection to a node, bytes.
pub const BULK_CREDIT: u32 = 32 << 20;
/// Connections of one node, all kinds.
pub const CONNECTIONS_MAX: usize = 4_096;
/// Locks held or waited for on one inode.
pub const LOCKS_MAX: usize = 65_536;
/// Directory entries between which a transaction may choose: participants of one change.
pub const PARTS_MAX: usize = 8;

/// A session that has sent nothing for so long has ended, milliseconds.
pub const LEASE_MS: u64 = 120_000;
/// Default of `--timeout`: how long an operation waits for a node before EIO, milliseconds.
pub const TIMEOUT_MS: u64 = 60_000;
/// The shortest lease that a node grants, and what clients rely on: an operation that has waited for its whole timeout is
/// over before anybody else gets a lock that it relied on, with room for a ping that is late.
pub const LEASE_MS_MIN: u64 = TIMEOUT_MS + 30_000;
/// A client's size, times and blocks reach the inode's shard at least so often while dirty, milliseconds.
pub const SETTLE_MS: u64 = 400;
/// The kernel may answer from its attribute and entry caches for so long, milliseconds. Together with
/// [`SETTLE_MS`] it stays below the promised second.
pub const CACHE_MS: u64 = 500;

const _: () = {
    assert!(SHARDS_MAX == 1 << 16);
    assert!(SHARDS_MIN <= SHARDS_MAX && SHARDS_MIN.is_power_of_two());
    assert!(CHUNK_SIZE_MIN <= CHUNK_SIZE && CHUNK_SIZE <= CHUNK_SIZE_MAX);
    assert!(CHUNK_SIZE_MIN.is_multiple_of(BLOCK_SIZE));
    assert!(CHUNK_SIZE_MAX <= BULK_LEN_MAX);
    assert!(BULK_CREDIT >= BULK_LEN_MAX);
    assert!(LIST_LEN_MAX < BODY_LEN_MAX);
    // A tag and a count, and each name with its length.
    assert!(XATTR_TOTAL_LEN_MAX + 12 <= BODY_LEN_MAX as usize && XATTR_OVERHEAD >= 8);
    assert!(XATTR_VALUE_LEN_MAX <= XATTR_TOTAL_LEN_MAX);
    assert!(LEASE_MS > TIMEOUT_MS + 30_000);
    assert!(SETTLE_MS + CACHE_MS < 1_000);
};
