//! What an entry has beside its data: owner, mode, times, extended attributes with POSIX ACLs.
//!
//! 1. Order: owner, attributes, mode, times. A change of the owner takes set-id bits and capabilities away, one of the
//!    mode changes no attribute, and each of them changes no time but ctime.
//! 2. What this user may not set is said once for all entries ([`Tally::note`]); a set-id bit is never given to
//!    another owner than the source's.
//! 3. An entry of DEST is reached by a descriptor alone.

use std::ffi::{CStr, CString};

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    fchmod, fchown, fgetxattr, flistxattr, fremovexattr, fsetxattr, futimens, getxattr, listxattr,
    setxattr, utimensat,
};
use rustix::io::Errno;

use super::tally::Tally;
use super::trouble::Trouble;

/// Extended attributes: names and values.
pub(crate) type Attributes = Vec<(CString, Vec<u8>)>;

/// Whether an object was opened for itself (files, folders) or as a place (O_PATH: links, special files).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opened {
    Itself,
    AsPlace,
}

/// The extended attributes of a source, but for those that its file system has for itself.
pub(crate) fn attributes(
    object: &OwnedFd,
    opened: Opened,
    tally: &Tally,
) -> Result<Attributes, Trouble> {
    let place = place(object);
    let names = grow(|buffer| match opened {
        Opened::Itself => flistxattr(object, buffer),
        Opened::AsPlace => listxattr(place.as_str(), buffer),
    });
    let names = match names {
        Ok(names) => names,
        // There are none.
        Err(Errno::OPNOTSUPP | Errno::PERM) => return Ok(Vec::new()),
        Err(errno) => return Err(Trouble::Call("attributes cannot be listed", errno)),
    };
    let mut found = Vec::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if is_of_its_place(name.to_bytes()) {
            continue;
        }
        let value = grow(|buffer| match opened {
            Opened::Itself => fgetxattr(object, name, buffer),
            Opened::AsPlace => getxattr(place.as_str(), name, buffer),
        });
        match value {
            Ok(value) => found.push((name.to_owned(), value)),
            // Removed meanwhile.
            Err(Errno::NODATA) => {}
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {
                let name = name.to_string_lossy();
                tally.note(&format!("attribute {name} is not kept where you may not read it"));
            }
            Err(errno) => return Err(Trouble::Call("attributes cannot be read", errno)),
        }
    }
    Ok(found)
}

/// Whether an attribute says how or where a file system keeps the file, or what a machine's policy makes of its place.
fn is_of_its_place(name: &[u8]) -> bool {
    matches!(name, b"trusted.lov" | b"security.selinux")
        || name.starts_with(b"lustre.")
        || name.starts_with(b"trusted.overlay.")
}

/// Gives an entry of DEST what the source's has. `now` is what it is like at the moment.
pub(crate) fn apply(
    target: &OwnedFd,
    opened: Opened,
    now: &Stat,
    source: &Stat,
    attributes: &Attributes,
    tally: &Tally,
) -> Result<(), Trouble> {
    let is_owner_kept = set_owner(target, now, source, tally)?;
    let mut wanted = source.st_mode;
    for (name, value) in attributes {
        let result = match opened {
            Opened::Itself => fsetxattr(target, name.as_c_str(), value, XattrFlags::empty()),
            Opened::AsPlace => {
                setxattr(place(target).as_str(), name.as_c_str(), value, XattrFlags::empty())
            }
        };
        match result {
            Ok(()) => {}
            Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL) => {
                let name = name.to_string_lossy();
                tally.note(&format!("attribute {name} is not kept: DEST or your rights forbid it"));
                if name == ACL {
                    wanted = without_acl(wanted, value);
                }
            }
            Err(errno) => return Err(Trouble::Call("attributes cannot be written", errno)),
        }
    }
    set_mode(target, opened, now, wanted, is_owner_kept, tally)?;
    let times = Timestamps {
        last_access: time(source.st_atime, source.st_atime_nsec),
        last_modification: time(source.st_mtime, source.st_mtime_nsec),
    };
    let result = match opened {
        Opened::Itself => futimens(target, &times),
        Opened::AsPlace => utimensat(target, c"", &times, AtFlags::EMPTY_PATH),
    };
    result.map_err(|errno| Trouble::Call("times cannot be set", errno))
}

/// Takes away the ACL that the folder has given by itself, if the source has none.
pub(crate) fn drop_given_acl(target: &OwnedFd, attributes: &Attributes) -> Result<(), Trouble> {
    for name in [c"system.posix_acl_access", c"system.posix_acl_default"] {
        if attributes.iter().any(|(other, _)| other.as_c_str() == name) {
            continue;
        }
        match fremovexattr(target, name) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::ACCESS) => {}
            Err(errno) => return Err(Trouble::Call("the folder's ACL cannot be removed", errno)),
        }
    }
    Ok(())
}

/// Whether the owner is now the source's.
fn set_owner(target: &OwnedFd, now: &Stat, source: &Stat, tally: &Tally) -> Result<bool, Trouble> {
    let uid = (now.st_uid != source.st_uid).then(|| Uid::from_raw(source.st_uid));
    let gid = (now.st_gid != source.st_gid).then(|| Gid::from_raw(source.st_gid));
    if uid.is_none() && gid.is_none() {
        return Ok(true);
    }
    let change = |uid, gid| match FileType::from_raw_mode(source.st_mode) {
        FileType::RegularFile | FileType::Directory => fchown(target, uid, gid),
        _ => chownat(target, c"", uid, gid, AtFlags::EMPTY_PATH),
    };
    match change(uid, gid) {
        Ok(()) => Ok(true),
        Err(Errno::PERM | Errno::INVAL) => {
            // A group that he is in a user may give.
            let is_group_kept = gid.is_none() || change(None, gid).is_ok();
            if uid.is_some() {
                tally.note("owners are not kept: only root may give files away");
            }
            if !is_group_kept {
                tally.note("groups that you are not in are not kept");
            }
            Ok(false)
        }
        Err(errno) => Err(Trouble::Call("the owner cannot be set", errno)),
    }
}

fn set_mode(
    target: &OwnedFd,
    opened: Opened,
    now: &Stat,
    wanted: u32,
    is_owner_kept: bool,
    tally: &Tally,
) -> Result<(), Trouble> {
    if FileType::from_raw_mode(wanted) == FileType::Symlink {
        return Ok(());
    }
    let mut mode = Mode::from_raw_mode(wanted);
    if !is_owner_kept && mode.intersects(Mode::SUID | Mode::SGID) {
        mode.remove(Mode::SUID | Mode::SGID);
        tally.note("set-id bits are not kept where the owner is not");
    }
    // What has set-id bits may have lost them, and what has an ACL shows another mode.
    if now.st_mode == wanted && now.st_mode & 0o6000 == 0 && opened == Opened::Itself {
        return Ok(());
    }
    let result = match opened {
        Opened::Itself => fchmod(target, mode),
        Opened::AsPlace => chmodat(rustix::fs::CWD, place(target).as_str(), mode, AtFlags::empty()),
    };
    result.map_err(|errno| Trouble::Call("the mode cannot be set", errno))
}

/// A mode whose group bits are the ACL's mask, with those of its owning group instead: what that may do without the ACL.
fn without_acl(mode: u32, acl: &[u8]) -> u32 {
    let (entries, _) = acl.get(ACL_HEAD_LEN..).unwrap_or_default().as_chunks::<8>();
    let group = entries.iter().find(|entry| entry[..2] == ACL_GROUP);
    let rights = group.map_or(0, |entry| u32::from(entry[2] & 7));
    mode & (!0o070 | rights << 3)
}

/// A path that is exactly what the descriptor is, also if that is a symbolic link.
pub(crate) fn place(object: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", object.as_raw_fd())
}

fn time(seconds: i64, nanoseconds: u64) -> Timespec {
    Timespec { tv_sec: seconds, tv_nsec: i64::try_from(nanoseconds).unwrap_or(0) }
}

/// Calls with more room until all fits.
fn grow(call: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 256];
    loop {
        match call(&mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(buffer);
            }
            // The kernel's limit for names and values alike.
            Err(Errno::RANGE) if buffer.len() < 1 << 16 => buffer.resize(1 << 16, 0),
            Err(errno) => return Err(errno),
        }
    }
}

/// The attribute that is a POSIX ACL: a version in 4 bytes, then entries: tag 2, rights 2, id 4, little-endian.
const ACL: &str = "system.posix_acl_access";
const ACL_HEAD_LEN: usize = 4;
/// The tag of the owning group's entry.
const ACL_GROUP: [u8; 2] = [4, 0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_its_acl_a_file_gives_its_group_no_more_than_before() {
        let acl = |group: u8| {
            let mut bytes = vec![2, 0, 0, 0];
            for (tag, rights, id) in
                [(1, 6, !0), (2, 7, 1_000), (4, group, !0), (16, 7, !0), (32, 0, !0_u32)]
            {
                bytes.extend_from_slice(&[tag, 0, rights, 0]);
                bytes.extend_from_slice(&id.to_le_bytes());
            }
            bytes
        };
        assert_eq!(without_acl(0o100_670, &acl(0)), 0o100_600);
        assert_eq!(without_acl(0o100_674, &acl(4)), 0o100_644);
        // The mask bounds the group, too.
        assert_eq!(without_acl(0o102_640, &acl(7)), 0o102_640);
        assert_eq!(without_acl(0o100_670, b"torn"), 0o100_600);
    }
}
