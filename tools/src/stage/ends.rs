//! SOURCE and DEST: opened, and refused where they are not what the caller thinks.

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, fstat, fstatfs, mkdirat, open, openat};
use rustix::io::Errno;

use super::names::STAGE_DIR;
use super::tree::{FOLDER, let_owner_write};
use super::{Direction, Plan};
use crate::Failure;

/// Both roots, and the stage's folder in DEST.
pub(crate) struct Ends {
    pub(crate) source: OwnedFd,
    pub(crate) target: OwnedFd,
    pub(crate) stage: OwnedFd,
    /// Where the stage's folder is, for people.
    pub(crate) stage_path: PathBuf,
    /// Whether files are to be synced one by one: DEST is not known to make all durable by a syncfs(2).
    pub(crate) syncs_each: bool,
    /// Whether the stage's folder was there: an earlier run did not end well, or others work here.
    pub(crate) is_resumed: bool,
}

impl Ends {
    /// Opens both; makes DEST, but not what it lies in.
    pub(crate) fn open(plan: &Plan) -> Result<Self, Failure> {
        let source_path = &plan.source;
        let source = open(source_path, FOLDER.difference(OFlags::NOFOLLOW), Mode::empty());
        let source = source.map_err(|errno| match errno {
            Errno::NOTDIR => format!("SOURCE {} is no directory", source_path.display()),
            errno => format!("SOURCE {}: {}", source_path.display(), cause(errno)),
        })?;
        let (parent, name) = place_of(&plan.target)?;
        let parent_fd = open(&parent, FOLDER, Mode::empty()).map_err(|errno| {
            format!("{}, where DEST is to be: {}", parent.display(), cause(errno))
        })?;
        let name = name.as_deref();
        // What exists is looked at itself: it may be a mountpoint.
        let existing = match name {
            None => Some(parent_fd.try_clone()?),
            Some(name) => match openat(&parent_fd, name.as_bytes(), FOLDER, Mode::empty()) {
                Ok(target) => Some(target),
                Err(Errno::NOENT) => None,
                Err(errno) => {
                    return Err(format!("DEST {}: {}", plan.target.display(), cause(errno)).into());
                }
            },
        };
        let look = existing.as_ref().unwrap_or(&parent_fd);
        refuse_wrong_side(plan, &source, look)?;
        refuse_nesting(plan, &source, look, existing.is_some())?;
        let is_made = existing.is_none();
        let target = match (existing, name) {
            (Some(target), _) => target,
            (None, Some(name)) => {
                match mkdirat(&parent_fd, name.as_bytes(), Mode::RWXU) {
                    // Another part was faster.
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => {
                        let target = plan.target.display();
                        return Err(
                            format!("DEST {target} cannot be made: {}", cause(errno)).into()
                        );
                    }
                }
                openat(&parent_fd, name.as_bytes(), FOLDER, Mode::empty())?
            }
            (None, None) => return Err("DEST is gone".into()),
        };
        Self::with_stage(source, target, &parent, name, is_made)
    }

    fn with_stage(
        source: OwnedFd,
        target: OwnedFd,
        parent: &Path,
        name: Option<&std::ffi::OsStr>,
        is_made: bool,
    ) -> Result<Self, Failure> {
        let former_mode = let_owner_write(&target)?;
        let path = name.map_or_else(|| parent.to_owned(), |name| parent.join(name));
        let stage_path = path.join(STAGE_DIR);
        let failed = |errno: Errno| {
            format!("{}, where staging keeps its manifest: {}", stage_path.display(), cause(errno))
        };
        let is_resumed = match mkdirat(&target, STAGE_DIR, Mode::RWXU) {
            Ok(()) => false,
            Err(Errno::EXIST) => true,
            Err(errno) => return Err(failed(errno).into()),
        };
        let stage = openat(&target, STAGE_DIR, FOLDER, Mode::empty()).map_err(failed)?;
        // Whoever writes here decides what counts as copied, and which files are linked into DEST.
        let stat = fstat(&stage).map_err(failed)?;
        if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
            return Err(format!(
                "{} is not yours alone (owner {}, mode {:o}); remove it, or run as its owner",
                stage_path.display(),
                stat.st_uid,
                stat.st_mode & 0o7777
            )
            .into());
        }
        if let Some(mode) = former_mode {
            // CRASH before this line: DEST keeps the rights that its owner was given.
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            match openat(&stage, FORMER_MODE, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => fs::File::from(file).write_all(&mode.as_raw_mode().to_le_bytes())?,
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed(errno).into()),
            }
        }
        if is_made {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            openat(&stage, MADE, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        }
        let syncs_each = !SYNCED_AS_ONE.contains(&fstatfs(&target)?.f_type);
        Ok(Self { source, target, stage, stage_path, syncs_each, is_resumed })
    }
}

/// A path without symbolic links: of what exists all of it, else its parent and its name.
fn place_of(path: &Path) -> Result<(PathBuf, Option<std::ffi::OsString>), Failure> {
    match fs::canonicalize(path) {
        Ok(path) => return Ok((path, None)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(format!("DEST {}: {error}", path.display()).into()),
    }
    let name = path.file_name().ok_or_else(|| format!("DEST {} has no name", path.display()))?;
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    };
    let parent_path = fs::canonicalize(parent).map_err(|error| {
        format!("DEST {}: its parent {}: {error}; make it first", path.display(), parent.display())
    })?;
    Ok((parent_path, Some(name.to_owned())))
}

fn refuse_wrong_side(plan: &Plan, source: &OwnedFd, target: &OwnedFd) -> Result<(), Failure> {
    if plan.any {
        return Ok(());
    }
    let table = fs::read("/proc/self/mountinfo")?;
    let on_sealfs = |fd: &OwnedFd| -> Result<bool, Failure> {
        let device = fstat(fd)?.st_dev;
        Ok(is_sealfs(&table, rustix::fs::major(device), rustix::fs::minor(device)))
    };
    let (source_is, target_is) = (on_sealfs(source)?, on_sealfs(target)?);
    let (source, target) = (plan.source.display(), plan.target.display());
    let text = match (plan.direction, source_is, target_is) {
        (Direction::In, _, true) | (Direction::Out, true, _) => return Ok(()),
        (Direction::In, true, false) => {
            format!("SOURCE {source} is on sealfs and DEST {target} is not: that is `stage out`")
        }
        (Direction::Out, false, true) => {
            format!("DEST {target} is on sealfs and SOURCE {source} is not: that is `stage in`")
        }
        (Direction::In, false, false) => {
            format!("DEST {target} is not on a sealfs mount; mount it, or say --any to copy anyway")
        }
        (Direction::Out, false, false) => format!(
            "SOURCE {source} is not on a sealfs mount; mount it, or say --any to copy anyway"
        ),
    };
    Err(text.into())
}

/// Whether /proc/self/mountinfo has sealfs under a device number.
fn is_sealfs(table: &[u8], major: u32, minor: u32) -> bool {
    let device = format!("{major}:{minor}");
    table.split(|byte| *byte == b'\n').any(|line| {
        let Ok(line) = std::str::from_utf8(line) else { return false };
        let is_it = line.split(' ').nth(2) == Some(&device);
        is_it && line.split_once(" - ").is_some_and(|(_, tail)| tail.starts_with("fuse.sealfs "))
    })
}

/// One in the other would be copied into itself, or over itself.
fn refuse_nesting(
    plan: &Plan,
    source: &OwnedFd,
    target: &OwnedFd,
    is_target: bool,
) -> Result<(), Failure> {
    let (source_path, target_path) = (plan.source.display(), plan.target.display());
    if is_within(target, source)? {
        return Err(format!("DEST {target_path} is SOURCE {source_path}, or inside it").into());
    }
    if is_target && is_within(source, target)? {
        return Err(format!("SOURCE {source_path} is inside DEST {target_path}").into());
    }
    Ok(())
}

/// Whether `inner` is `outer` or lies anywhere below it.
fn is_within(inner: &OwnedFd, outer: &OwnedFd) -> Result<bool, Failure> {
    let id = |fd: &OwnedFd| fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    let wanted = id(outer)?;
    let mut at = inner.try_clone()?;
    loop {
        let here = id(&at)?;
        if here == wanted {
            return Ok(true);
        }
        // Searching needs less than reading.
        let up = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        at = match openat(&at, c"..", up, Mode::empty()) {
            Ok(parent) if id(&parent)? == here => return Ok(false),
            Ok(parent) => parent,
            Err(errno) => return Err(format!("a parent directory: {}", cause(errno)).into()),
        };
    }
}

fn cause(errno: Errno) -> std::io::Error {
    errno.into()
}

/// A mark in the stage's folder: DEST is ours, and gets SOURCE's owner, mode and times.
pub(crate) const MADE: &str = "made";
/// A file there: the mode that DEST had before its owner got the right to write into it, as 4 bytes, little-endian.
pub(crate) const FORMER_MODE: &str = "former-mode";
/// statfs(2): f_type of file systems whose syncfs(2) makes all durable and tells of errors: ext4, xfs, btrfs, tmpfs.
const SYNCED_AS_ONE: [rustix::fs::FsWord; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealfs_is_told_by_the_device_number() {
        let table = b"36 35 0:40 / /mnt/a rw,nosuid shared:1 - fuse.sealfs sealfs rw\n\
                      37 35 0:41 / /mnt/b rw - ext4 /dev/sda rw\n";
        assert!(is_sealfs(table, 0, 40));
        assert!(!is_sealfs(table, 0, 41));
        assert!(!is_sealfs(table, 0, 4));
    }
}
