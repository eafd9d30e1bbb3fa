//! What an inode shows of itself, and who asks.

use wincode::{SchemaRead, SchemaWrite};

use crate::{Errno, Ino};

/// Seconds and nanoseconds since 1970-01-01 00:00 UTC; `nanos < 1_000_000_000`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite,
)]
pub struct Time {
    /// Whole seconds, negative before 1970.
    pub seconds: i64,
    /// The rest.
    pub nanos: u32,
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
}

impl Kind {
    /// The S_IFMT bits of st_mode (inode(7)).
    #[must_use]
    pub const fn mode_bits(self) -> u32 {
        match self {
            Self::Fifo => 0o010_000,
            Self::CharDevice => 0o020_000,
            Self::Directory => 0o040_000,
            Self::BlockDevice => 0o060_000,
            Self::File => 0o100_000,
            Self::Symlink => 0o120_000,
            Self::Socket => 0o140_000,
        }
    }

    /// The kind that the S_IFMT bits of `mode` name; none of them set means a regular file, as mknod(2) has it.
    pub const fn from_mode(mode: u32) -> Result<Self, Errno> {
        match mode & 0o170_000 {
            0 | 0o100_000 => Ok(Self::File),
            0o010_000 => Ok(Self::Fifo),
            0o020_000 => Ok(Self::CharDevice),
            0o040_000 => Ok(Self::Directory),
            0o060_000 => Ok(Self::BlockDevice),
            0o120_000 => Ok(Self::Symlink),
            0o140_000 => Ok(Self::Socket),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// An inode's attributes, as its shard knows them.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Attr {
    /// The inode.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, set-id and sticky: `mode & 0o7777`.
    pub mode: u32,
    /// Hard links; for a directory 2 + subdirectories.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device, in the kernel's 32-bit encoding (new_encode_dev).
    pub rdev: u32,
    /// Bytes; for a symlink the target's length.
    pub size: u64,
    /// Allocated space in 512-byte units. Below 0 when a settlement of what was freed has overtaken one of what was
    /// allocated: shown as 0.
    pub blocks: i64,
    /// Bytes per chunk of a file, a power of two; of a directory, what its new files get.
    pub chunk_size: u32,
    /// Last access; changes only by create and utimens.
    pub atime: Time,
    /// Last change of the data.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Grows with every change of the inode; equal values mean equal attributes.
    pub change: u64,
    /// Grows with every truncate and every explicit setting of times: a settlement made under an older one
    /// neither sets the size nor the times (DESIGN section 4).
    pub generation: u64,
    /// No byte at or beyond this offset has ever been written since the last cut: durable before a client writes
    /// beyond it.
    pub bound: u64,
}

impl Attr {
    /// st_mode: kind and permission bits.
    #[must_use]
    pub const fn st_mode(&self) -> u32 {
        self.kind.mode_bits() | self.mode
    }
}

/// Who asks: the program's effective (file-system) uid, gid and groups, as the client's kernel and /proc tell them.
#[derive(Clone, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Who {
    /// User; 0 may do everything.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups, at most [`crate::limits::GROUPS_MAX`].
    pub groups: Vec<u32>,
}

impl Who {
    /// The superuser.
    #[must_use]
    pub const fn root() -> Self {
        Self { uid: 0, gid: 0, groups: Vec::new() }
    }

    /// Whether `gid` is one of the groups.
    #[must_use]
    pub fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

/// The rights that an open or a check asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Access {
    /// Read, or list a directory.
    pub read: bool,
    /// Write, or change a directory's entries.
    pub write: bool,
    /// Execute, or pass through a directory.
    pub execute: bool,
}

/// A time that is being set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum SetTime {
    /// The server's present (UTIME_NOW; who may write the file may do this).
    Now,
    /// This one (only the owner may).
    At(Time),
}

/// A change of attributes; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct SetAttr {
    /// Permission bits, `mode & 0o7777`.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size: truncate or extend.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// Clear set-user-id and set-group-id (what a write by a user without CAP_FSETID does; FUSE_HANDLE_KILLPRIV_V2).
    pub kill_suid_sgid: bool,
}

/// An extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Xattr {
    /// Full name with its namespace ("user.x", "system.posix_acl_access"), 1..=255 bytes.
    pub name: Vec<u8>,
    /// At most 64 KiB.
    pub value: Vec<u8>,
}

/// What setxattr(2) demands of the present state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum XattrFlag {
    /// Nothing.
    Any,
    /// The attribute must not exist (XATTR_CREATE).
    Create,
    /// The attribute must exist (XATTR_REPLACE).
    Replace,
}
