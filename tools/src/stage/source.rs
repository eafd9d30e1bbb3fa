//! What staging asks of a source, and how it opens one.
//!
//! 1. A look is at what the file system's server says now, not at what this machine remembers for a second.
//! 2. A state of a source that its next change might not tell from is never remembered: see [`is_settled`].
//! 3. Nothing but a regular file is ever opened for reading: a device that came in a file's place would notice.

use std::ffi::CStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fd::OwnedFd;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, StatxFlags, fstat, fstatfs, fstatvfs, open, openat,
    statat, statx,
};
use rustix::io::Errno;

use super::marks::place;
use super::names::digest;
use super::tree::FOLDER;
use super::trouble::Trouble;

/// What stat(2) says of `name` in `dir`, or with an empty name of `dir` itself, after a word with the file system's server.
pub(crate) fn look(dir: &OwnedFd, name: &CStr) -> Result<Stat, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    statx(dir, name, flags | AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS)?;
    statat(dir, name, flags)
}

/// Whether a change from now on shows in ctime: the clock that ctime comes from has ticked since. Clocks of file systems
/// tick every 10 ms or faster, and those of two machines differ by less than the rest.
pub(crate) fn is_settled(stat: &Stat) -> bool {
    let ctime = Duration::new(
        u64::try_from(stat.st_ctime).unwrap_or(0),
        u32::try_from(stat.st_ctime_nsec).unwrap_or(0),
    );
    SystemTime::now().duration_since(UNIX_EPOCH + ctime).is_ok_and(|age| age >= SETTLED_AFTER)
}

/// Opens a file that looked like `seen`, without a trace where its owner or root does, and tells what it is like now.
pub(crate) fn open_file(
    dir: &OwnedFd,
    name: &CStr,
    seen: &Stat,
) -> Result<(OwnedFd, Stat), Trouble> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat(dir, name, flags, Mode::empty()).map_err(Trouble::reading)?;
    let now = fstat(&found).map_err(Trouble::reading)?;
    let is_file = FileType::from_raw_mode(now.st_mode) == FileType::RegularFile;
    if !is_file || (now.st_dev, now.st_ino) != (seen.st_dev, seen.st_ino) {
        return Err(Trouble::Changed);
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let opened = quietly(seen, flags, |flags| open(place(&found), flags, Mode::empty()));
    let source = opened.map_err(Trouble::reading)?;
    let now = look(&source, c"").map_err(Trouble::reading)?;
    Ok((source, now))
}

/// Opens a folder again, so that reading it leaves no trace where its owner or root does.
pub(crate) fn open_folder(folder: &OwnedFd, seen: &Stat) -> Result<OwnedFd, Errno> {
    quietly(seen, FOLDER, |flags| openat(folder, c".", flags, Mode::empty()))
}

fn quietly(
    seen: &Stat,
    flags: OFlags,
    open: impl Fn(OFlags) -> Result<OwnedFd, Errno>,
) -> Result<OwnedFd, Errno> {
    let uid = rustix::process::geteuid();
    let is_owner = uid.is_root() || uid.as_raw() == seen.st_uid;
    match open(if is_owner { flags | OFlags::NOATIME } else { flags }) {
        Err(Errno::PERM) => open(flags),
        opened => opened,
    }
}

/// Tells file systems apart that are mounted at `path`, one after the other: alike on all nodes, and so only by what a
/// device carries along. Where statfs(2) gives no such thing all are one.
pub(crate) fn mount_id(folder: &OwnedFd, path: &[u8]) -> Result<[u8; 16], Errno> {
    let kind = fstatfs(folder)?.f_type;
    let id = if NAMED_BY_UUID.contains(&kind) { fstatvfs(folder)?.f_fsid } else { 0 };
    Ok(digest(&[path, &[0], &id.to_le_bytes()]))
}

const SETTLED_AFTER: Duration = Duration::from_secs(2);
/// statfs(2): f_type of file systems whose f_fsid is made of the UUID on their device: ext2 to ext4, btrfs.
const NAMED_BY_UUID: [rustix::fs::FsWord; 2] = [0xef53, 0x9123_683e];

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, mkfifoat};

    #[test]
    fn what_came_in_a_files_place_is_never_opened() {
        let dir = tempfile::tempdir().unwrap();
        mkfifoat(CWD, dir.path().join("fifo"), Mode::RUSR | Mode::WUSR).unwrap();
        let folder = open(dir.path(), FOLDER, Mode::empty()).unwrap();
        // A file was seen, and its inode is now a fifo's.
        let mut seen = look(&folder, c"fifo").unwrap();
        seen.st_mode = FileType::RegularFile.as_raw_mode() | 0o600;
        let opened = open_file(&folder, c"fifo", &seen);
        assert!(matches!(opened, Err(Trouble::Changed)));
        std::fs::write(dir.path().join("file"), "x").unwrap();
        let seen = look(&folder, c"file").unwrap();
        assert!(open_file(&folder, c"file", &seen).is_ok());
    }

    #[test]
    fn a_state_that_the_clock_may_still_repeat_is_not_settled() {
        let file = tempfile::tempfile().unwrap().into();
        let mut stat = look(&file, c"").unwrap();
        assert!(!is_settled(&stat));
        stat.st_ctime -= 3;
        assert!(is_settled(&stat));
        stat.st_ctime += 3_600;
        assert!(!is_settled(&stat));
    }
}
