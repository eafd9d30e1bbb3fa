//! What `sealfs serve` is told: settings from flags and a TOML file, and the checked configuration they make.

use std::path::{Path, PathBuf};

use sealfs_proto::{NodeId, TransportKind};
use serde::Deserialize;

/// What a person says, on the command line or in a file; nothing is required and nothing is checked yet. Field names are
/// the flags' names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Data directory.
    pub data: Option<PathBuf>,
    /// `ADDR:PORT` to listen on; port 0 takes a free one.
    pub listen: Option<String>,
    /// The nodes: a list, or the path of a file that holds one, see [`sealfs_proto::nodes`].
    pub nodes: Option<String>,
    /// This node's id; else the node of the list whose address is `listen`.
    pub id: Option<u16>,
    /// Processors to pin a thread to, one each: `0-3`, `0,2,4`.
    pub cores: Option<String>,
    /// `tcp`.
    pub transport: Option<String>,
    /// Path of the key file.
    pub key: Option<PathBuf>,
    /// `process`, `power` or `scratch`.
    pub durability: Option<String>,
    /// Bytes of the volume, at format: `100G`.
    pub size: Option<String>,
    /// Bytes of buffers per core: `128M`.
    pub memory: Option<String>,
}

impl Settings {
    /// Reads a TOML file. An unknown field is refused, naming it and those that exist.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        unimplemented!("{}", path.display())
    }

    /// These settings where they say something, else those of `below` (flags over a file).
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        unimplemented!("{below:?}")
    }

    /// Checks everything, reads the nodes file and the key file, and finds the node's own id.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        unimplemented!()
    }
}

/// When a change counts as kept (DESIGN section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Written before the reply: survives the death of the process.
    #[default]
    Process,
    /// Synced before the reply: survives power loss.
    Power,
    /// Replied at once, written within 10 ms.
    Scratch,
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Data directory.
    pub data: PathBuf,
    /// Where to listen.
    pub listen: String,
    /// This node.
    pub id: NodeId,
    /// A processor per core thread; `None`: not pinned.
    pub cores: Vec<Option<usize>>,
    /// With what.
    pub transport: TransportKind,
    /// When a change counts as kept.
    pub durability: Durability,
    /// Bytes of the volume at format; `None`: half of what is free.
    pub volume_len: Option<u64>,
    /// Bytes of buffers per core.
    pub memory: usize,
}

/// Settings that make no configuration: names the setting, the cause and the next step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);
