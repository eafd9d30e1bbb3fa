//! Advisory locks as they travel: flock(2) and fcntl(2) byte ranges.

use wincode::{SchemaRead, SchemaWrite};

/// flock and fcntl locks of one file do not see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub enum LockSpace {
    /// Whole-file locks of open file descriptions.
    Flock,
    /// Byte ranges, owned by processes (or open file descriptions: OFD locks).
    Posix,
}

/// What is held or asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub enum LockKind {
    /// Shared.
    Read,
    /// Exclusive.
    Write,
    /// Gives the range up.
    Unlock,
}

/// Who holds a lock inside its session: the kernel's opaque owner number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub struct LockOwner(pub u64);

/// A lock that is held, asked for or given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub struct Lock {
    /// Which kind of lock.
    pub space: LockSpace,
    /// Shared, exclusive, none.
    pub kind: LockKind,
    /// First byte.
    pub start: u64,
    /// Last byte, inclusive; `u64::MAX` for "to the end".
    pub end: u64,
    /// Owner within the session.
    pub owner: LockOwner,
    /// The process to name in F_GETLK; 0 if unknown.
    pub pid: u32,
}
