//! Whether what lies at a path is gone with the machine's power: in tmpfs or ramfs, or on a block device made of memory.
//!
//! 1. What the kernel does not tell counts as a device: file systems without a device of their own (btrfs, overlay, those of
//!    the network), and drives whose cache has no battery.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Whether a data directory's file system, or a block device, is made of memory; also through loop devices, partitions,
/// device mapper and md.
pub(crate) fn is_in_memory(path: &Path) -> bool {
    is_made_of_memory(path, LAYERS_MAX)
}

fn is_made_of_memory(path: &Path, layers: usize) -> bool {
    let Ok(metadata) = fs::metadata(path) else { return false };
    if metadata.file_type().is_block_device() {
        return is_memory_device(&sysfs(&number(metadata.rdev())), layers);
    }
    let number = number(metadata.dev());
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    matches!(kind_of(&table, &number), Some("tmpfs" | "ramfs"))
        || is_memory_device(&sysfs(&number), layers)
}

/// `device`: its directory in /sys.
fn is_memory_device(device: &Path, layers: usize) -> bool {
    let Ok(device) = device.canonicalize() else { return false };
    let name = device.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if name.starts_with("ram") || name.starts_with("zram") {
        return true;
    }
    let Some(layers) = layers.checked_sub(1) else { return false };
    if device.join("partition").exists() {
        return device.parent().is_some_and(|whole| is_memory_device(whole, layers));
    }
    if let Ok(file) = fs::read_to_string(device.join("loop/backing_file")) {
        return is_made_of_memory(Path::new(file.trim_end()), layers);
    }
    let below = fs::read_dir(device.join("slaves")).into_iter().flatten().flatten();
    below.into_iter().any(|below| is_memory_device(&below.path(), layers))
}

/// The type of the file system with this number in /proc/self/mountinfo (proc_pid_mountinfo(5): id, parent, major:minor,
/// root, mountpoint, options, any optional fields, `-`, type, ...).
fn kind_of<'a>(table: &'a str, number: &str) -> Option<&'a str> {
    let line = table.lines().find(|line| line.split(' ').nth(2) == Some(number))?;
    line.split_once(" - ")?.1.split(' ').next()
}

fn number(device: u64) -> String {
    format!("{}:{}", libc::major(device), libc::minor(device))
}

fn sysfs(number: &str) -> PathBuf {
    Path::new("/sys/dev/block").join(number)
}

/// Devices on devices: more than anybody stacks, so that nothing can lead round in a circle.
const LAYERS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_of_a_file_system_is_found_by_its_number() {
        let table = "36 35 98:0 / /a\\040- rw,noatime shared:1 - ext3 /dev/root rw\n\
                     37 36 0:44 / /dev/shm rw - tmpfs tmpfs rw\nbroken\n";
        assert_eq!(kind_of(table, "98:0"), Some("ext3"));
        assert_eq!(kind_of(table, "0:44"), Some("tmpfs"));
        assert_eq!(kind_of(table, "0:4"), None);
    }

    #[test]
    fn memory_is_known_through_a_partition_and_through_what_lies_below() {
        let dir = tempfile::tempdir().unwrap();
        let make = |path: &str| fs::create_dir_all(dir.path().join(path)).unwrap();
        for path in ["zram0/zram0p1/partition", "sda/slaves", "dm-0/slaves/ram1", "dm-1/slaves/sda"]
        {
            make(path);
        }
        let is = |name: &str| is_memory_device(&dir.path().join(name), LAYERS_MAX);
        assert!(is("zram0") && is("zram0/zram0p1") && is("dm-0"));
        assert!(!is("sda") && !is("dm-1") && !is("none"));
    }

    #[test]
    fn a_file_system_without_a_device_is_none_of_memory() {
        assert!(!is_in_memory(Path::new("/proc")));
        assert!(!is_in_memory(Path::new("/no/such/directory")));
    }
}
