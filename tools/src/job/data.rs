//! Where a job's data lies on this node, how its place is made, and how it is wiped.
//!
//! In a directory the mark (see [`super::marked`]) has the node's directory beside it, `data`. For
//! a device there is a marked directory, too, that says which one, and which cluster it holds.
//! Memory needs none: it ends with the machine's run.
//!
//! 1. A device is wiped only if it holds the cluster that the mark names. Whatever else lies on it
//!    stays, as of another job that has it.
//! 2. Nothing is wiped that a server has open: the caller has ended the job's, and the data would
//!    be another's.

use std::fs::{self, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use rustix::mount::{MountFlags, UnmountFlags};
use sealfs_proto::ClusterId;
use serde::{Deserialize, Serialize};

use super::marked::{self, Mark};
use super::state::{Home, unless};
use crate::Failure;

/// Where a job's data lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Data {
    /// In this directory.
    Directory(PathBuf),
    /// On this block device.
    Device {
        /// The device.
        device: PathBuf,
        /// The directory with its mark.
        note: PathBuf,
    },
    /// In a tmpfs that is mounted here.
    Memory(PathBuf),
}

impl Data {
    /// What `sealfs serve --data` is told.
    pub(super) fn argument(&self) -> PathBuf {
        match self {
            Self::Directory(path) | Self::Memory(path) => path.join("data"),
            Self::Device { device, .. } => device.clone(),
        }
    }

    /// Makes the place for the data of cluster `cluster`; `size`: of the volume, which memory must
    /// be told.
    pub(super) fn make(
        &self,
        home: &Home,
        cluster: ClusterId,
        size: Option<u64>,
    ) -> Result<(), Failure> {
        let (directory, device) = match self {
            Self::Directory(path) => (path, None),
            Self::Device { device, note } => (note, Some(device.clone())),
            Self::Memory(path) => return make_memory(path, size),
        };
        marked::make(directory, 0o700, &Mark::of(home, device, cluster.to_string()))
    }

    /// Removes the data and its place. Nothing is there, or nothing that is this job's: done.
    pub(super) fn wipe(&self, home: &Home) -> Result<(), Failure> {
        match self {
            Self::Directory(path) | Self::Device { note: path, .. } => wipe_marked(path, home),
            Self::Memory(path) => wipe_memory(path),
        }
    }
}

fn wipe_marked(directory: &Path, home: &Home) -> Result<(), Failure> {
    if let Some(mark) = marked::mark_for(directory, home.state()) {
        check_unused(directory)?;
        if let Some(device) = &mark.device {
            wipe_device(device, &mark.cluster)?;
        }
    }
    marked::remove(directory, home.state())
}

/// Refuses data that a server has open. It locks a file in it, see `server/src/store/directory.rs`.
fn check_unused(directory: &Path) -> Result<(), Failure> {
    let path = directory.join("data/lock");
    let failed = |error: io::Error| format!("cannot look at {}: {error}", path.display());
    let file = match fs::File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file.map_err(failed)?,
    };
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::Error(error)) => Err(failed(error).into()),
        Err(TryLockError::WouldBlock) => Err(format!(
            "cannot remove {}: a server has it open that is not this job's; `fuser {}` tells which",
            directory.display(),
            path.display()
        )
        .into()),
    }
}

/// Makes a device that holds the cluster `cluster` empty: as a whole where the device can forget,
/// else so that it holds nothing that a format would have to respect.
fn wipe_device(device: &Path, cluster: &str) -> Result<(), Failure> {
    let is_device = fs::metadata(device).is_ok_and(|found| found.file_type().is_block_device());
    if !is_device {
        return Err(format!("cannot wipe {}: there is no such device now", device.display()).into());
    }
    let failed =
        |error: io::Error| Failure::from(format!("cannot wipe {}: {error}", device.display()));
    match sealfs_server::cluster_on(device).map_err(failed)? {
        Some(held) if held.to_string() == cluster => {}
        held => {
            let holds =
                held.map_or("none of this job's data".into(), |held| format!("cluster {held}"));
            tracing::info!("{} holds {holds} and stays as it is", device.display());
            return Ok(());
        }
    }
    // As a server opens it: it is refused to whoever comes second.
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::EXCL | rustix::fs::OFlags::CLOEXEC;
    let opened = rustix::fs::open(device, flags, rustix::fs::Mode::empty());
    let file = fs::File::from(opened.map_err(io::Error::from).map_err(failed)?);
    let len = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(io::Error::from);
    let len = len.map_err(failed)?;
    // CRASH: from the front, the first sector behind the rest of the first slot: until all is
    // empty, the head tells whose it is.
    for (at, len) in [(SECTOR, HEAD_LEN - SECTOR), (0, SECTOR), (HEAD_LEN, HEAD_LEN)] {
        file.write_all_at(&vec![0; len as usize], at).map_err(failed)?;
        file.sync_data().map_err(failed)?;
    }
    let whole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if let Err(error) = rustix::fs::fallocate(&file, whole, 0, len) {
        eprintln!(
            "sealfs: device {} cannot discard ({error}): it counts as empty, and what files held can be read from it by root \
             until it is written over",
            device.display()
        );
    }
    Ok(())
}

/// What data of a volume of `size` bytes may take in memory.
pub(super) const fn memory_len(size: u64) -> u64 {
    size.saturating_add(size / 8).saturating_add(MEMORY_BESIDE)
}

fn make_memory(path: &Path, size: Option<u64>) -> Result<(), Failure> {
    let shown = path.display();
    let failed =
        |error: io::Error| Failure::from(format!("cannot mount memory at {shown}: {error}"));
    fs::DirBuilder::new().mode(0o700).create(path).map_err(failed)?;
    if rustix::process::geteuid().is_root() {
        let size = size.ok_or("data in memory needs a size; add --size 16G")?;
        let options = format!("size={},mode=0700", memory_len(size));
        let options = std::ffi::CString::new(options)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        let made = rustix::mount::mount("sealfs-job", path, "tmpfs", flags, options.as_c_str());
        made.map_err(io::Error::from).map_err(failed)?;
    }
    Ok(())
}

fn wipe_memory(path: &Path) -> Result<(), Failure> {
    let failed = |what: &str, error: io::Error| {
        Failure::from(format!("cannot {what} {}: {error}", path.display()))
    };
    if fs::symlink_metadata(path).is_err() {
        return Ok(());
    }
    check_unused(path)?;
    if rustix::process::geteuid().is_root() {
        // Once for every mount that lies on another.
        while is_mountpoint(path) {
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            rustix::mount::unmount(path, flags).map_err(|error| failed("unmount", error.into()))?;
        }
    }
    fs::remove_dir_all(path)
        .or_else(unless(io::ErrorKind::NotFound))
        .map_err(|error| failed("remove", error))
}

/// Whether something else than its parent's file system lies there.
fn is_mountpoint(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::symlink_metadata(path).map(|found| found.dev()).ok();
    device(path) != path.parent().and_then(device)
}

/// A slot of a device's head, see `server/src/store/device.rs`.
const HEAD_LEN: u64 = 1 << 20;
/// What a device writes as a whole, at the least.
const SECTOR: u64 = 512;
/// Journals, snapshots and the superblock beside a volume in memory, with an eighth of it for what
/// many small files need.
const MEMORY_BESIDE: u64 = 1 << 30;
