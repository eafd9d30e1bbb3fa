//! The system calls that std does not offer, each behind a safe function: fallocate(2) and statvfs(3).

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Makes `file` `len` bytes long, with space on the device for all of them; new bytes read as zeros. Where the file system
/// cannot promise space the file is made long all the same, and a warning says so.
pub(crate) fn preallocate(file: &File, len: u64) -> io::Result<()> {
    let signed = i64::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: fallocate takes no pointers; the descriptor is open while `file` is borrowed.
    if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, signed) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::EOPNOTSUPP) {
        return Err(error);
    }
    tracing::warn!("this file system cannot reserve space; writes may fail when it is full");
    file.set_len(len)
}

/// Bytes that this process may still write to the file system of `path`.
pub(crate) fn free_space(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: statvfs is plain numbers, for which all zeros is a value.
    let mut space: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends in a zero byte, `space` is a writable statvfs; both outlive the call.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut space) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}
