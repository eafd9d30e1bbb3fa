//! What a mount logs, asked and changed from outside: an extended attribute of its root that the client answers itself, as
//! `crate::status` does.
//!
//! 1. Only root and the user who has mounted get an answer, and only they change anything.
//! 2. What is no filter changes nothing.
//!
//! The log itself belongs to the program that mounts, which lends a [`LogControl`].

use std::fmt::Debug;
use std::path::Path;

use sealfs_proto::limits;

use crate::{MountError, point};

/// A log whose filter can be changed while it is written.
pub trait LogControl: Debug + Send + Sync {
    /// The present filter.
    fn filter(&self) -> String;
    /// Logs by this filter from now on; nothing changes if it is none.
    fn set_filter(&self, filter: &str) -> Result<(), String>;
}

/// What the mount at `mountpoint` logs.
pub fn mount_log(mountpoint: &Path) -> Result<String, MountError> {
    let path = mounted(mountpoint)?;
    let mut value = vec![0; limits::XATTR_VALUE_LEN_MAX];
    let len = rustix::fs::getxattr(&path, LOG_XATTR, &mut value)
        .map_err(|error| refused(mountpoint, error))?;
    Ok(String::from_utf8_lossy(&value[..len]).into_owned())
}

/// Has the mount at `mountpoint` log by another filter.
pub fn set_mount_log(mountpoint: &Path, filter: &str) -> Result<(), MountError> {
    let path = mounted(mountpoint)?;
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&path, LOG_XATTR, filter.as_bytes(), flags)
        .map_err(|error| refused(mountpoint, error))
}

fn mounted(mountpoint: &Path) -> Result<std::path::PathBuf, MountError> {
    let shown = mountpoint.display();
    let path = std::fs::canonicalize(mountpoint)
        .map_err(|error| MountError(format!("{shown}: {error}")))?;
    if point::is_mounted(&path) {
        return Ok(path);
    }
    Err(MountError(format!(
        "no sealfs is mounted at {shown}; /proc/mounts shows where. A node reads `log` of its settings file on SIGHUP"
    )))
}

fn refused(mountpoint: &Path, error: rustix::io::Errno) -> MountError {
    use rustix::io::Errno;
    let cause = match error {
        Errno::ACCESS | Errno::PERM => "ask as root or as the user who has mounted it".into(),
        Errno::ROFS => {
            "the mount is read-only, and the kernel lets no attribute through; mount it again with --log".into()
        }
        Errno::INVAL => "that is no filter; write a level as info, or sealfs_client=debug,warn".into(),
        Errno::NODATA | Errno::OPNOTSUPP => "it is served by another version of sealfs".into(),
        other => other.to_string(),
    };
    MountError(format!("the log of the mount at {}: {cause}", mountpoint.display()))
}

/// The root's extended attribute with the filter, see the module's text.
pub(crate) const LOG_XATTR: &str = "user.sealfs.log";
