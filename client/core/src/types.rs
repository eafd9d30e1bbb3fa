//! What goes into [`crate::Fs`] and comes out of it, beyond the words of `sealfs_proto`.

use std::cell::Cell;
use std::rc::Rc;

use sealfs_proto::{Access, Errno, limits};
use sealfs_transport::Region;
use sealfs_transport::tasks::Waiters;

/// An open file; a number that is never used twice by one `Fs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u64);

/// What a file is opened for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// Bytes will be read.
    pub read: bool,
    /// Bytes will be written.
    pub write: bool,
    /// It will be executed (the right to execute is asked for instead of the right to read).
    pub execute: bool,
    /// The file is cut to nothing first.
    pub truncate: bool,
}

impl OpenFlags {
    /// The rights that this asks for.
    #[must_use]
    pub const fn access(self) -> Access {
        Access {
            read: self.read && !self.execute,
            write: self.write || self.truncate,
            execute: self.execute,
        }
    }
}

/// How bytes are written; each write says it anew, for fcntl(2) changes it while the file is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteFlags {
    /// They go to the end of the file, wherever other clients have moved it (O_APPEND).
    pub append: bool,
    /// The writer may not keep set-user-id and set-group-id bits.
    pub kill_suid_sgid: bool,
}

/// A run of bytes that a read found: the first `len` bytes of `region`. Holes are filled with zeros.
#[derive(Debug)]
pub struct Piece {
    /// Where the bytes lie; may be longer than they are.
    pub region: Region,
    /// How many there are.
    pub len: usize,
}

impl Piece {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.region.bytes()[..self.len]
    }
}

/// What fallocate(2) does with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallocate {
    /// Space for the range; the file grows to its end.
    Allocate,
    /// Space for the range; the size stays (FALLOC_FL_KEEP_SIZE).
    AllocateKeepSize,
    /// The range becomes a hole; the size stays (FALLOC_FL_PUNCH_HOLE).
    Punch,
    /// The range becomes zeros that have space; the file grows to its end (FALLOC_FL_ZERO_RANGE).
    Zero,
    /// The same, and the size stays.
    ZeroKeepSize,
}

impl Fallocate {
    /// From fallocate(2)'s mode bits. EOPNOTSUPP for collapsing and inserting ranges and for unknown bits.
    pub const fn from_mode(mode: u32) -> Result<Self, Errno> {
        const KEEP_SIZE: u32 = 0x01;
        const PUNCH_HOLE: u32 = 0x02;
        const ZERO_RANGE: u32 = 0x10;
        const PUNCH: u32 = PUNCH_HOLE | KEEP_SIZE;
        const ZERO_KEEP: u32 = ZERO_RANGE | KEEP_SIZE;
        match mode {
            0 => Ok(Self::Allocate),
            KEEP_SIZE => Ok(Self::AllocateKeepSize),
            PUNCH => Ok(Self::Punch),
            ZERO_RANGE => Ok(Self::Zero),
            ZERO_KEEP => Ok(Self::ZeroKeepSize),
            _ => Err(Errno::EOPNOTSUPP),
        }
    }
}

/// What lseek(2) looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// The next byte that has space (SEEK_DATA).
    Data,
    /// The next byte that has none; the end of the file counts as one (SEEK_HOLE).
    Hole,
}

/// How an `Fs` behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// A read trusts the size that it knows for so long, milliseconds; 0: every read asks.
    pub size_age_ms: u64,
    /// Size, times and blocks reach the inode's shard at least so often while dirty, milliseconds; 0: before the write is
    /// answered.
    pub settle_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { size_age_ms: limits::CACHE_MS, settle_ms: limits::SETTLE_MS }
    }
}

impl Options {
    /// What one client writes the others read at once (`--consistency strict`). Cost: a round trip more for each read, and
    /// for each write beyond a file's first chunk.
    #[must_use]
    pub const fn strict() -> Self {
        Self { size_age_ms: 0, settle_ms: 0 }
    }
}

/// Ends a wait for a lock from outside: the program that waits got a signal. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    raised: Rc<Cell<bool>>,
    waiters: Waiters,
}

impl Interrupt {
    /// One that has not been raised.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the wait, now or as soon as it begins.
    pub fn raise(&self) {
        self.raised.set(true);
        self.waiters.wake_all();
    }

    /// Ready once it has been raised.
    pub(crate) async fn raised(&self) {
        while !self.raised.get() {
            self.waiters.wait().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_of_fallocate_are_those_of_linux() {
        assert_eq!(Fallocate::from_mode(0), Ok(Fallocate::Allocate));
        assert_eq!(Fallocate::from_mode(1), Ok(Fallocate::AllocateKeepSize));
        assert_eq!(Fallocate::from_mode(3), Ok(Fallocate::Punch));
        assert_eq!(Fallocate::from_mode(0x10), Ok(Fallocate::Zero));
        assert_eq!(Fallocate::from_mode(0x11), Ok(Fallocate::ZeroKeepSize));
        // A hole without KEEP_SIZE, collapse, insert.
        for mode in [0x02, 0x08, 0x20, 0x40] {
            assert_eq!(Fallocate::from_mode(mode), Err(Errno::EOPNOTSUPP));
        }
    }
}
