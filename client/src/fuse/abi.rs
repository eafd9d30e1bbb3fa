//! The kernel's FUSE protocol as bytes: the structures and numbers of `include/uapi/linux/fuse.h`, protocol 7.31 to 7.45.
//!
//! A message from the kernel is [`InHeader`], the operation's own structure, its names (each ended by a zero byte) and
//! its data; a message to the kernel is [`OutHeader`] and what the operation returns. All numbers are in the machine's
//! own byte order, for both ends are the same machine.
//!
//! 1. Every structure has the size that the kernel's has: asserted when this file compiles.
//! 2. No structure has padding or an invalid bit pattern: zerocopy refuses to derive otherwise.
//!
//! Only what the session uses is here; CUSE, DAX and passthrough are not.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! message {
    ($(#[$doc:meta])* $name:ident, $size:literal { $($field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
        pub(crate) struct $name {
            $(pub(crate) $field: $kind,)*
        }

        const _: () = assert!(size_of::<$name>() == $size);
    };
}

message! {
    /// Begins every message from the kernel. `total_extlen` counts 8-byte units of extensions at the message's end.
    InHeader, 40 {
        len: u32,
        opcode: u32,
        unique: u64,
        nodeid: u64,
        uid: u32,
        gid: u32,
        pid: u32,
        total_extlen: u16,
        padding: u16,
    }
}

message! {
    /// Begins every message to the kernel. `error` is 0 or a negative errno.
    OutHeader, 16 {
        len: u32,
        error: i32,
        unique: u64,
    }
}

message! {
    InitIn, 64 {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u32,
        flags2: u32,
        unused: [u32; 11],
    }
}

message! {
    InitOut, 64 {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u32,
        max_background: u16,
        congestion_threshold: u16,
        max_write: u32,
        time_gran: u32,
        max_pages: u16,
        map_alignment: u16,
        flags2: u32,
        max_stack_depth: u32,
        request_timeout: u16,
        unused: [u16; 11],
    }
}

message! {
    /// What an inode shows; times before 1970 are the two's complement of their seconds.
    Attr, 88 {
        ino: u64,
        size: u64,
        blocks: u64,
        atime: u64,
        mtime: u64,
        ctime: u64,
        atimensec: u32,
        mtimensec: u32,
        ctimensec: u32,
        mode: u32,
        nlink: u32,
        uid: u32,
        gid: u32,
        rdev: u32,
        blksize: u32,
        flags: u32,
    }
}

message! {
    EntryOut, 128 {
        nodeid: u64,
        generation: u64,
        entry_valid: u64,
        attr_valid: u64,
        entry_valid_nsec: u32,
        attr_valid_nsec: u32,
        attr: Attr,
    }
}

message! {
    AttrOut, 104 {
        attr_valid: u64,
        attr_valid_nsec: u32,
        dummy: u32,
        attr: Attr,
    }
}

message! {
    /// One of a BATCH_FORGET; a FORGET has the count only.
    ForgetOne, 16 {
        nodeid: u64,
        nlookup: u64,
    }
}

message! {
    BatchForgetIn, 8 {
        count: u32,
        dummy: u32,
    }
}

message! {
    GetattrIn, 16 {
        getattr_flags: u32,
        dummy: u32,
        fh: u64,
    }
}

message! {
    SetattrIn, 88 {
        valid: u32,
        padding: u32,
        fh: u64,
        size: u64,
        lock_owner: u64,
        atime: u64,
        mtime: u64,
        ctime: u64,
        atimensec: u32,
        mtimensec: u32,
        ctimensec: u32,
        mode: u32,
        unused4: u32,
        uid: u32,
        gid: u32,
        unused5: u32,
    }
}

message! {
    MknodIn, 16 {
        mode: u32,
        rdev: u32,
        umask: u32,
        padding: u32,
    }
}

message! {
    MkdirIn, 8 {
        mode: u32,
        umask: u32,
    }
}

message! {
    RenameIn, 8 {
        newdir: u64,
    }
}

message! {
    Rename2In, 16 {
        newdir: u64,
        flags: u32,
        padding: u32,
    }
}

message! {
    LinkIn, 8 {
        oldnodeid: u64,
    }
}

message! {
    OpenIn, 8 {
        flags: u32,
        open_flags: u32,
    }
}

message! {
    /// Of CREATE and TMPFILE.
    CreateIn, 16 {
        flags: u32,
        mode: u32,
        umask: u32,
        open_flags: u32,
    }
}

message! {
    OpenOut, 16 {
        fh: u64,
        open_flags: u32,
        padding: u32,
    }
}

message! {
    ReleaseIn, 24 {
        fh: u64,
        flags: u32,
        release_flags: u32,
        lock_owner: u64,
    }
}

message! {
    FlushIn, 24 {
        fh: u64,
        unused: u32,
        padding: u32,
        lock_owner: u64,
    }
}

message! {
    /// Of READ, READDIR and READDIRPLUS.
    ReadIn, 40 {
        fh: u64,
        offset: u64,
        size: u32,
        read_flags: u32,
        lock_owner: u64,
        flags: u32,
        padding: u32,
    }
}

message! {
    WriteIn, 40 {
        fh: u64,
        offset: u64,
        size: u32,
        write_flags: u32,
        lock_owner: u64,
        flags: u32,
        padding: u32,
    }
}

message! {
    WriteOut, 8 {
        size: u32,
        padding: u32,
    }
}

message! {
    StatfsOut, 80 {
        blocks: u64,
        bfree: u64,
        bavail: u64,
        files: u64,
        ffree: u64,
        bsize: u32,
        namelen: u32,
        frsize: u32,
        padding: u32,
        spare: [u32; 6],
    }
}

message! {
    /// Of FSYNC and FSYNCDIR.
    FsyncIn, 16 {
        fh: u64,
        fsync_flags: u32,
        padding: u32,
    }
}

message! {
    /// As `INIT_SETXATTR_EXT` extends it; without that the last two fields are missing.
    SetxattrIn, 16 {
        size: u32,
        flags: u32,
        setxattr_flags: u32,
        padding: u32,
    }
}

message! {
    /// Of GETXATTR and LISTXATTR; also what they return when asked for the size.
    GetxattrIn, 8 {
        size: u32,
        padding: u32,
    }
}

message! {
    FileLock, 24 {
        start: u64,
        end: u64,
        kind: u32,
        pid: u32,
    }
}

message! {
    LkIn, 48 {
        fh: u64,
        owner: u64,
        lk: FileLock,
        lk_flags: u32,
        padding: u32,
    }
}

message! {
    InterruptIn, 8 {
        unique: u64,
    }
}

message! {
    FallocateIn, 32 {
        fh: u64,
        offset: u64,
        length: u64,
        mode: u32,
        padding: u32,
    }
}

message! {
    LseekIn, 24 {
        fh: u64,
        offset: u64,
        whence: u32,
        padding: u32,
    }
}

message! {
    LseekOut, 8 {
        offset: u64,
    }
}

message! {
    /// Of COPY_FILE_RANGE and COPY_FILE_RANGE_64.
    CopyFileRangeIn, 56 {
        fh_in: u64,
        off_in: u64,
        nodeid_out: u64,
        fh_out: u64,
        off_out: u64,
        len: u64,
        flags: u64,
    }
}

message! {
    CopyFileRangeOut, 8 {
        bytes_copied: u64,
    }
}

message! {
    SyncfsIn, 8 {
        padding: u64,
    }
}

message! {
    /// Before each name of a READDIR; name and zeros up to a multiple of 8 follow.
    Dirent, 24 {
        ino: u64,
        off: u64,
        namelen: u32,
        kind: u32,
    }
}

message! {
    /// A notice: attributes, and with `off >= 0` pages, are to be dropped.
    InvalInodeOut, 24 {
        ino: u64,
        off: i64,
        len: i64,
    }
}

macro_rules! numbers {
    ($kind:ty: $($(#[$doc:meta])* $name:ident = $value:expr,)*) => {
        $($(#[$doc])* pub(crate) const $name: $kind = $value;)*
    };
}

/// The protocol's major version; it has been 7 since 2.6.14.
pub(crate) const MAJOR: u32 = 7;
/// The newest minor version that this file describes.
pub(crate) const MINOR: u32 = 45;
/// The oldest kernel protocol that is accepted (Linux 5.4).
pub(crate) const MINOR_MIN: u32 = 31;

// Operations.
numbers! { u32:
    LOOKUP = 1,
    FORGET = 2,
    GETATTR = 3,
    SETATTR = 4,
    READLINK = 5,
    SYMLINK = 6,
    MKNOD = 8,
    MKDIR = 9,
    UNLINK = 10,
    RMDIR = 11,
    RENAME = 12,
    LINK = 13,
    OPEN = 14,
    READ = 15,
    WRITE = 16,
    STATFS = 17,
    RELEASE = 18,
    FSYNC = 20,
    SETXATTR = 21,
    GETXATTR = 22,
    LISTXATTR = 23,
    REMOVEXATTR = 24,
    FLUSH = 25,
    INIT = 26,
    OPENDIR = 27,
    READDIR = 28,
    RELEASEDIR = 29,
    FSYNCDIR = 30,
    GETLK = 31,
    SETLK = 32,
    SETLKW = 33,
    CREATE = 35,
    INTERRUPT = 36,
    DESTROY = 38,
    NOTIFY_REPLY = 41,
    BATCH_FORGET = 42,
    FALLOCATE = 43,
    READDIRPLUS = 44,
    RENAME2 = 45,
    LSEEK = 46,
    COPY_FILE_RANGE = 47,
    SYNCFS = 50,
    TMPFILE = 51,
    COPY_FILE_RANGE_64 = 53,
}

// Bits of INIT's flags; 32 and above travel in `flags2`.
numbers! { u64:
    INIT_ASYNC_READ = 1 << 0,
    INIT_POSIX_LOCKS = 1 << 1,
    INIT_BIG_WRITES = 1 << 5,
    INIT_DONT_MASK = 1 << 6,
    INIT_FLOCK_LOCKS = 1 << 10,
    INIT_AUTO_INVAL_DATA = 1 << 12,
    INIT_DO_READDIRPLUS = 1 << 13,
    INIT_READDIRPLUS_AUTO = 1 << 14,
    INIT_ASYNC_DIO = 1 << 15,
    INIT_PARALLEL_DIROPS = 1 << 18,
    INIT_POSIX_ACL = 1 << 20,
    INIT_MAX_PAGES = 1 << 22,
    INIT_CACHE_SYMLINKS = 1 << 23,
    INIT_HANDLE_KILLPRIV_V2 = 1 << 28,
    INIT_SETXATTR_EXT = 1 << 29,
    INIT_INIT_EXT = 1 << 30,
    INIT_DIRECT_IO_ALLOW_MMAP = 1 << 36,
}

// SETATTR's `valid`.
numbers! { u32:
    FATTR_MODE = 1 << 0,
    FATTR_UID = 1 << 1,
    FATTR_GID = 1 << 2,
    FATTR_SIZE = 1 << 3,
    FATTR_ATIME = 1 << 4,
    FATTR_MTIME = 1 << 5,
    FATTR_FH = 1 << 6,
    FATTR_ATIME_NOW = 1 << 7,
    FATTR_MTIME_NOW = 1 << 8,
    FATTR_KILL_SUIDGID = 1 << 11,
}

// Answers to OPEN and CREATE.
numbers! { u32:
    FOPEN_DIRECT_IO = 1 << 0,
    FOPEN_KEEP_CACHE = 1 << 1,
    FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6,
}

// Flags of single operations.
numbers! { u32:
    /// OPEN, CREATE: a truncation takes set-user-id and set-group-id away.
    OPEN_KILL_SUIDGID = 1 << 0,
    /// WRITE: comes from a shared mapping; `fh` is any of the inode's.
    WRITE_CACHE = 1 << 0,
    /// WRITE: takes set-user-id and set-group-id away.
    WRITE_KILL_SUIDGID = 1 << 2,
    /// FSYNC: data and what is needed to read it (fdatasync).
    FSYNC_FDATASYNC = 1 << 0,
    /// GETLK, SETLK, SETLKW: flock(2).
    LK_FLOCK = 1 << 0,
    /// SETXATTR: setting an access ACL takes set-group-id away.
    SETXATTR_ACL_KILL_SGID = 1 << 0,
}

/// In the place of an errno in a message that answers nothing (`unique` 0).
pub(crate) const NOTIFY_INVAL_INODE: i32 = 2;

/// Names in a READDIR begin at multiples of this.
pub(crate) const DIRENT_ALIGN: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_64_bits_lie_on_multiples_of_8() {
        assert_eq!(core::mem::offset_of!(EntryOut, attr), 40);
        assert_eq!(core::mem::offset_of!(InitOut, flags2), 32);
        assert_eq!(core::mem::offset_of!(WriteIn, lock_owner), 24);
        assert_eq!(core::mem::offset_of!(LkIn, lk_flags), 40);
    }
}
