//! Flags and structures of the kernel in the words of `sealfs_proto`, and back. Pure.

use sealfs_client_core::{OpenFlags, WriteFlags};
use sealfs_proto::{
    Errno, Lock, LockKind, LockOwner, LockSpace, RenameFlag, SetAttr, SetTime, Space, Time,
    XattrFlag, limits,
};

use super::abi;

/// Permission, set-id and sticky bits of a mode.
pub(crate) const PERMISSIONS: u32 = 0o7777;

/// open(2)'s flags.
pub(crate) fn open_flags(flags: u32) -> OpenFlags {
    let has = |flag: i32| flags & flag as u32 != 0;
    let (read, write) = match flags as i32 & libc::O_ACCMODE {
        libc::O_RDONLY => (true, false),
        libc::O_WRONLY => (false, true),
        _ => (true, true),
    };
    OpenFlags { read, write, execute: flags & FMODE_EXEC != 0, truncate: has(libc::O_TRUNC) }
}

/// How a WRITE that is not of the page cache's is meant. The open file's flags come with each, for fcntl(2) changes them.
pub(crate) const fn write_flags(args: &abi::WriteIn) -> WriteFlags {
    WriteFlags {
        append: args.flags & libc::O_APPEND as u32 != 0,
        kill_suid_sgid: args.write_flags & abi::WRITE_KILL_SUIDGID != 0,
    }
}

/// What a write with O_DSYNC or O_SYNC waits for: `Some(true)` for its data, `Some(false)` for its times, too.
pub(crate) const fn synchronous(flags: u32) -> Option<bool> {
    match flags & libc::O_SYNC as u32 {
        0 => None,
        bits => Some(bits != libc::O_SYNC as u32),
    }
}

/// renameat2(2)'s flags.
pub(crate) fn rename_flag(flags: u32) -> Result<RenameFlag, Errno> {
    match flags {
        0 => Ok(RenameFlag::Replace),
        libc::RENAME_NOREPLACE => Ok(RenameFlag::NoReplace),
        libc::RENAME_EXCHANGE => Ok(RenameFlag::Exchange),
        _ => Err(Errno::EINVAL),
    }
}

/// setxattr(2)'s flags.
pub(crate) fn xattr_flag(flags: u32) -> Result<XattrFlag, Errno> {
    match flags as i32 {
        0 => Ok(XattrFlag::Any),
        libc::XATTR_CREATE => Ok(XattrFlag::Create),
        libc::XATTR_REPLACE => Ok(XattrFlag::Replace),
        _ => Err(Errno::EINVAL),
    }
}

/// What SETATTR changes.
pub(crate) fn set_attr(args: &abi::SetattrIn) -> SetAttr {
    let has = |bit| args.valid & bit != 0;
    let time = |bit, now_bit, seconds: u64, nanos| {
        let at = SetTime::At(Time { seconds: seconds as i64, nanos });
        has(bit).then_some(if has(now_bit) { SetTime::Now } else { at })
    };
    SetAttr {
        mode: has(abi::FATTR_MODE).then_some(args.mode & PERMISSIONS),
        uid: has(abi::FATTR_UID).then_some(args.uid),
        gid: has(abi::FATTR_GID).then_some(args.gid),
        size: has(abi::FATTR_SIZE).then_some(args.size),
        atime: time(abi::FATTR_ATIME, abi::FATTR_ATIME_NOW, args.atime, args.atimensec),
        mtime: time(abi::FATTR_MTIME, abi::FATTR_MTIME_NOW, args.mtime, args.mtimensec),
        kill_suid_sgid: has(abi::FATTR_KILL_SUIDGID),
    }
}

/// A lock that is asked for. The kernel's largest offset means "to the end", which sealfs writes as `u64::MAX`.
pub(crate) fn lock(args: &abi::LkIn) -> Result<Lock, Errno> {
    let abi::FileLock { start, end, kind, pid } = args.lk;
    let kind = match kind as i32 {
        libc::F_RDLCK => LockKind::Read,
        libc::F_WRLCK => LockKind::Write,
        libc::F_UNLCK => LockKind::Unlock,
        _ => return Err(Errno::EINVAL),
    };
    let flock = args.lk_flags & abi::LK_FLOCK != 0;
    Ok(Lock {
        space: if flock { LockSpace::Flock } else { LockSpace::Posix },
        kind,
        start,
        end: if end >= OFFSET_MAX { u64::MAX } else { end },
        owner: LockOwner(args.owner),
        pid,
    })
}

/// A lock that stands in the way, for F_GETLK.
pub(crate) fn file_lock(lock: &Lock) -> abi::FileLock {
    let kind = match lock.kind {
        LockKind::Read => libc::F_RDLCK,
        LockKind::Write => libc::F_WRLCK,
        LockKind::Unlock => libc::F_UNLCK,
    };
    let end = lock.end.min(OFFSET_MAX);
    abi::FileLock { start: lock.start, end, kind: kind as u32, pid: lock.pid }
}

/// statfs(2)'s numbers. Any block can become an inode: that is what is said of free inodes, for there is no other limit.
pub(crate) fn statfs(space: Space) -> abi::StatfsOut {
    let blocks = |bytes: u64| bytes / u64::from(limits::BLOCK_SIZE);
    abi::StatfsOut {
        blocks: blocks(space.total),
        bfree: blocks(space.free),
        bavail: blocks(space.available),
        files: space.inodes + blocks(space.available),
        ffree: blocks(space.available),
        bsize: limits::BLOCK_SIZE,
        namelen: limits::NAME_LEN_MAX as u32,
        frsize: limits::BLOCK_SIZE,
        ..abi::StatfsOut::default()
    }
}

/// The kernel's own flag of an open for execution (`__FMODE_EXEC` of linux/fs.h).
const FMODE_EXEC: u32 = 0x20;
/// The largest offset that the kernel knows.
const OFFSET_MAX: u64 = i64::MAX as u64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_ask_for_what_open_2_says() {
        let flags = |flags: i32| open_flags(flags as u32);
        let read = OpenFlags { read: true, ..OpenFlags::default() };
        assert_eq!(flags(libc::O_RDONLY), read);
        let write = OpenFlags { write: true, ..OpenFlags::default() };
        assert_eq!(flags(libc::O_WRONLY | libc::O_TRUNC), OpenFlags { truncate: true, ..write });
        let both = OpenFlags { read: true, ..write };
        assert_eq!(flags(libc::O_RDWR | libc::O_APPEND), both, "each write says it");
        assert_eq!(flags(0x20), OpenFlags { execute: true, ..read });
    }

    #[test]
    fn a_write_is_as_its_descriptor_is_now() {
        let write = |flags: i32, write_flags| {
            let args = abi::WriteIn { flags: flags as u32, write_flags, ..abi::WriteIn::default() };
            (super::write_flags(&args), synchronous(args.flags))
        };
        let append = WriteFlags { append: true, ..WriteFlags::default() };
        assert_eq!(write(libc::O_WRONLY | libc::O_APPEND, 0), (append, None));
        let kill = WriteFlags { kill_suid_sgid: true, ..WriteFlags::default() };
        assert_eq!(write(libc::O_DSYNC, abi::WRITE_KILL_SUIDGID), (kill, Some(true)));
        assert_eq!(write(libc::O_SYNC, 0), (WriteFlags::default(), Some(false)));
    }

    #[test]
    fn only_what_is_valid_is_set() {
        let args = abi::SetattrIn {
            valid: abi::FATTR_MODE | abi::FATTR_ATIME | abi::FATTR_MTIME | abi::FATTR_MTIME_NOW,
            mode: 0o104_755,
            atime: -3_i64 as u64,
            atimensec: 9,
            size: 5,
            ..abi::SetattrIn::default()
        };
        let expected = SetAttr {
            mode: Some(0o4755),
            atime: Some(SetTime::At(Time { seconds: -3, nanos: 9 })),
            mtime: Some(SetTime::Now),
            ..SetAttr::default()
        };
        assert_eq!(set_attr(&args), expected);
    }

    #[test]
    fn locks_survive_the_way_there_and_back() {
        let lk = abi::FileLock { start: 3, end: OFFSET_MAX, kind: libc::F_WRLCK as u32, pid: 7 };
        let args = abi::LkIn { owner: 5, lk, lk_flags: abi::LK_FLOCK, ..abi::LkIn::default() };
        let asked = lock(&args).unwrap();
        assert_eq!(
            (asked.space, asked.end, asked.owner),
            (LockSpace::Flock, u64::MAX, LockOwner(5))
        );
        assert_eq!(file_lock(&asked), lk);
        let odd = abi::FileLock { kind: 9, ..lk };
        assert_eq!(lock(&abi::LkIn { lk: odd, ..args }), Err(Errno::EINVAL));
    }

    #[test]
    fn unknown_flags_are_refused() {
        assert_eq!(rename_flag(1), Ok(RenameFlag::NoReplace));
        assert_eq!(rename_flag(3), Err(Errno::EINVAL));
        assert_eq!(xattr_flag(2), Ok(XattrFlag::Replace));
        assert_eq!(xattr_flag(3), Err(Errno::EINVAL));
    }
}
