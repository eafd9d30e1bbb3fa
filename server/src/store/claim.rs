//! Getting a block device for ourselves, and telling one device from another.
//!
//! An exclusive opening (open(2), O_EXCL without O_CREAT) is refused by the kernel while the device, one of its partitions
//! or the whole that it is a part of is mounted, swapped to, a member of something (md, dm) or opened so by another
//! process. It ends with the process, however that dies.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh64::xxh64;

use crate::StartError;

/// Opens a device for reading and writing, and keeps everybody else from using it.
pub(super) fn claim(path: &Path) -> Result<File, StartError> {
    let shown = path.display();
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(path).map_err(|error| {
        StartError(match error.kind() {
            io::ErrorKind::ResourceBusy => format!(
                "device {shown} is in use: {}; end that use, or give another --data",
                user(path)
            ),
            io::ErrorKind::PermissionDenied => format!(
                "cannot open device {shown}: {error}; run the node as a user who may write to it (root, or its group)"
            ),
            _ => format!("cannot open device {shown} for writing: {error}; give another --data"),
        })
    })
}

/// What is known to stay with a device over restarts, as a number: its serial number or the file behind it, and where in
/// it a partition begins. 0: nothing is known.
pub(super) fn identity(path: &Path) -> u64 {
    let Ok(metadata) = fs::metadata(path) else { return 0 };
    let device = sysfs(metadata.rdev());
    let (whole, start) = match read(&device.join("start")) {
        Some(start) => (device.join(".."), start),
        None => (device, String::new()),
    };
    let known = IDENTITIES.iter().find_map(|name| read(&whole.join(name)));
    known.map_or(0, |known| xxh64(format!("{known}\n{start}").as_bytes(), 0))
}

/// Who uses a device, as far as it is easily told.
fn user(path: &Path) -> String {
    let Ok(metadata) = fs::metadata(path) else { return UNKNOWN_USER.into() };
    let number = metadata.rdev();
    let number_text = format!("{}:{}", libc::major(number), libc::minor(number));
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // proc_pid_mountinfo(5): id, parent, major:minor, root, mountpoint.
    let mount = table.lines().find_map(|line| {
        let mut words = line.split(' ').skip(2);
        (words.next() == Some(&number_text)).then(|| words.nth(1).unwrap_or_default().to_owned())
    });
    if let Some(mountpoint) = mount {
        return format!("it is mounted at {mountpoint}");
    }
    let holders = fs::read_dir(sysfs(number).join("holders")).into_iter().flatten().flatten();
    let holders: Vec<String> =
        holders.map(|holder| holder.file_name().to_string_lossy().into_owned()).collect();
    if holders.is_empty() { UNKNOWN_USER.into() } else { format!("by {}", holders.join(", ")) }
}

fn sysfs(number: u64) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}:{}", libc::major(number), libc::minor(number)))
}

fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// What names a disk in /sys/dev/block: NVMe, SCSI, virtio, device mapper, md, loop.
const IDENTITIES: [&str; 6] =
    ["wwid", "device/wwid", "serial", "dm/uuid", "md/uuid", "loop/backing_file"];
const UNKNOWN_USER: &str = "by another process (as `fuser -v` tells), or a part of it is mounted (as \
                            `lsblk` tells)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_opened_is_refused_with_a_next_step() {
        let error = claim(Path::new("/no/such/device")).unwrap_err().to_string();
        assert!(error.contains("/no/such/device") && error.contains("another --data"), "{error}");
    }

    #[test]
    fn what_is_no_device_has_no_identity() {
        assert_eq!(identity(Path::new("/proc/self/stat")), 0);
        assert_eq!(identity(Path::new("/no/such/device")), 0);
    }
}
