//! Mount options as fstab and `-o` write them.

use std::path::PathBuf;

use sealfs_proto::limits;

use crate::MountError;

/// Which transport may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransportChoice {
    /// The best that both ends have.
    #[default]
    Auto,
    /// TCP and nothing else.
    Tcp,
}

/// How to mount; [`MountOptions::default`] is what `sealfs mount` does when told nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// No writes through this mount (`ro`).
    pub read_only: bool,
    /// Devices cannot be opened (`nodev`).
    pub nodev: bool,
    /// Set-user-id bits do nothing (`nosuid`).
    pub nosuid: bool,
    /// Nothing can be executed (`noexec`).
    pub noexec: bool,
    /// Access times are not asked for (`noatime`; sealfs never changes them on reads anyway).
    pub noatime: bool,
    /// Every user may enter (`allow_other`), not only the one who mounts. On by default for root.
    pub allow_other: bool,
    /// `transport=`.
    pub transport: TransportChoice,
    /// How long an operation waits for a node before EIO, milliseconds; 0: for ever (`timeout=` in seconds).
    pub timeout_ms: u64,
    /// File with the cluster's key (`key=`).
    pub key: Option<PathBuf>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            nodev: false,
            nosuid: false,
            noexec: false,
            noatime: false,
            allow_other: false,
            transport: TransportChoice::Auto,
            timeout_ms: limits::TIMEOUT_MS,
            key: None,
        }
    }
}

impl MountOptions {
    /// Applies a comma-separated list, later words over earlier ones. Words that concern mount(8) itself (`defaults`,
    /// `_netdev`, `noauto`, `user`, `x-*`, ...) are accepted and do nothing; an unknown one is refused by name.
    pub fn apply(&mut self, list: &str) -> Result<(), MountError> {
        let _ = list;
        unimplemented!()
    }
}
