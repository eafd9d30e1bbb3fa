//! Where a job's data lies on this node, how its place is made, and how it is wiped.
//!
//! In a directory the mark (see [`super::marked`]) has the node's directory beside it, `data`. For a device there is a
//! marked directory, too, that says which one, and which cluster it holds. Memory needs none: it ends with the machine's run.
//!
//! 1. A device is wiped only if it holds the cluster that the mark names. Whatever else lies on it stays.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use rustix::mount::{MountFlags, UnmountFlags};
use sealfs_proto::ClusterId;
use serde::{Deserialize, Serialize};

use super::marked::{self, Mark};
use super::state::unless;
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

    /// Makes the place for the data of cluster `cluster`; `size`: of the volume, which memory must be told.
    pub(super) fn make(
        &self,
        id: &str,
        cluster: ClusterId,
        size: Option<u64>,
    ) -> Result<(), Failure> {
        let (directory, device) = match self {
            Self::Directory(path) => (path, None),
            Self::Device { device, note } => (note, Some(device.clone())),
            Self::Memory(path) => return make_memory(path, size),
        };
        let mark = Mark { id: id.to_string(), device, cluster: cluster.to_string() };
        marked::make(directory, 0o700, &mark)
    }

    /// Removes the data and its place. Nothing is there: done.
    pub(super) fn wipe(&self) -> Result<(), Failure> {
        match self {
            Self::Directory(path) | Self::Device { note: path, .. } => wipe_marked(path),
            Self::Memory(path) => wipe_memory(path),
        }
    }
}

fn wipe_marked(directory: &Path) -> Result<(), Failure> {
    if let Some(Mark { device: Some(device), cluster, .. }) = marked::mark_of(directory) {
        wipe_device(&device, &cluster)?;
    }
    marked::remove(directory)
}

/// Makes a device that holds the cluster `cluster` empty: as a whole where the device can forget, else so that it holds
/// nothing that a format would have to respect.
fn wipe_device(device: &Path, cluster: &str) -> Result<(), Failure> {
    let is_device = fs::metadata(device).is_ok_and(|found| found.file_type().is_block_device());
    if !is_device {
        return Err(format!("cannot wipe {}: there is no such device now", device.display()).into());
    }
    match sealfs_server::cluster_at(device) {
        Ok(None) => return Ok(()),
        Ok(Some(held)) if held.to_string() == cluster => {}
        Ok(Some(held)) => {
            tracing::info!("{} belongs to cluster {held} and stays as it is", device.display());
            return Ok(());
        }
        Err(error) if is_in_use(device) => {
            return Err(format!("cannot wipe {}: {error}", device.display()).into());
        }
        // What `up` was refused for.
        Err(error) => {
            tracing::warn!("{} stays as it is: {error}", device.display());
            return Ok(());
        }
    }
    let failed =
        |error: io::Error| Failure::from(format!("cannot wipe {}: {error}", device.display()));
    let file = fs::OpenOptions::new().write(true).open(device).map_err(failed)?;
    let len = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(io::Error::from);
    let len = len.map_err(failed)?;
    // The second slot first: with the first one alone it is still known whose it is.
    for at in [HEAD_LEN, 0] {
        file.write_all_at(&vec![0; HEAD_LEN as usize], at).map_err(failed)?;
        file.sync_data().map_err(failed)?;
    }
    let whole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if let Err(error) = rustix::fs::fallocate(&file, whole, 0, len) {
        tracing::info!("{} cannot forget its data: {error}", device.display());
    }
    Ok(())
}

/// Whether somebody holds the device for himself, as a server or a mount does.
fn is_in_use(device: &Path) -> bool {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::EXCL | rustix::fs::OFlags::CLOEXEC;
    let opened = rustix::fs::open(device, flags, rustix::fs::Mode::empty());
    opened.is_err_and(|error| error == rustix::io::Errno::BUSY)
}

fn make_memory(path: &Path, size: Option<u64>) -> Result<(), Failure> {
    let shown = path.display();
    let failed =
        |error: io::Error| Failure::from(format!("cannot mount memory at {shown}: {error}"));
    fs::DirBuilder::new().mode(0o700).create(path).map_err(failed)?;
    if rustix::process::geteuid().is_root() {
        let size = size.ok_or("data in memory needs a size; add --size 16G")?;
        let options = format!("size={},mode=0700", size + size / 8 + MEMORY_BESIDE);
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
/// Journals, snapshots and the superblock beside a volume in memory, with an eighth of it for what many small files need.
const MEMORY_BESIDE: u64 = 1 << 30;
