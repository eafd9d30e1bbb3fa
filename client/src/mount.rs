//! A running mount: its thread from start to end.

use std::path::{Path, PathBuf};

use crate::MountOptions;

/// What to mount where.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// Addresses (`host:port`) of some or all nodes; the map is learned from the first that answers.
    pub nodes: Vec<String>,
    /// An existing directory.
    pub mountpoint: PathBuf,
    /// The rest; `options.key` must be set.
    pub options: MountOptions,
    /// Pin the thread to this processor.
    pub pin: Option<usize>,
}

/// Why a mount could not be made or undone; the text names the thing, the cause and the next step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MountError(pub String);

/// A mount of this process.
#[derive(Debug)]
pub struct Mount(());

impl Mount {
    /// Connects, mounts, and returns when the mount has answered a stat of its root; fails within the options' timeout
    /// (at most 30 s) with everything undone.
    pub fn start(config: MountConfig) -> Result<Self, MountError> {
        let _ = config;
        unimplemented!()
    }

    /// Waits until the mount has ended (`sealfs umount`, umount(8), or [`Mount::unmount`] from another thread).
    pub fn wait(self) -> Result<(), MountError> {
        unimplemented!()
    }

    /// Unmounts; with `force` also while files are open (they stay usable until closed). [`Mount::wait`] returns when
    /// everything has been flushed.
    pub fn unmount(&self, force: bool) -> Result<(), MountError> {
        let _ = force;
        unimplemented!()
    }
}

/// Unmounts any sealfs mount by its path, also one whose client is dead; as root or, for one's own mounts, through
/// fusermount3. `force`: even while files are open.
pub fn unmount(mountpoint: &Path, force: bool) -> Result<(), MountError> {
    let _ = (mountpoint, force);
    unimplemented!()
}
