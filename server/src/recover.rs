//! From files to a core: snapshots first, then the journal behind them.
//!
//! | last run | journal's end | what happens |
//! |---|---|---|
//! | any | zeros | goes on there |
//! | clean, or in this boot | one torn entry | cut: it was never acknowledged |
//! | clean, or in this boot | anything else | refused: acknowledged changes are damaged |
//! | power was lost | contradicts a sync mark behind it | refused |
//! | power was lost | anything else | cut with a warning: what was not synced may be missing |
//!
//! A node that is started with another number of cores first turns its state into snapshots ([`convert`]), for a journal
//! holds the entries of its own core's shards only.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use sealfs_meta::journal::SegmentHeader;
use sealfs_server_core::chunk::VolumeRead;
use sealfs_server_core::{Config, Recovery};

use crate::StartError;
use crate::datadir::{DataDir, LastRun, VOLUME_AT, snapshot_name};
use crate::files::{failed, remove, replace};
use crate::segments::Segments;

/// What a core's thread needs of the data directory.
#[derive(Debug)]
pub(crate) struct CoreFiles {
    /// Its journal.
    pub(crate) journal: PathBuf,
    /// Where snapshots lie.
    pub(crate) snapshots: PathBuf,
    /// Header of its segments.
    pub(crate) owner: SegmentHeader,
    /// How the last run ended.
    pub(crate) last: LastRun,
    /// The node's volume.
    pub(crate) volume: File,
}

impl CoreFiles {
    /// Those of `core`.
    pub(crate) fn of(dir: &DataDir, core: u16) -> Result<Self, StartError> {
        Ok(Self {
            journal: dir.journal(core),
            snapshots: dir.snapshots(),
            owner: dir.segment_header(core),
            last: dir.last_run(),
            volume: dir.open_volume()?,
        })
    }

    /// Reads snapshots and journal of the core that `config` describes.
    pub(crate) fn recover(&self, config: Config) -> Result<(Recovery, Segments), StartError> {
        let core = config.core;
        let owned = config.owners().into_iter().filter(|(_, owner)| *owner == core);
        let shards: Vec<_> = owned.map(|(shard, _)| shard).collect();
        let mut recovery = Recovery::new(config);
        for shard in shards {
            let path = self.snapshots.join(snapshot_name(shard));
            let bytes = match fs::read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                read => read.map_err(failed("read", &path))?,
            };
            recovery.snapshot(shard, &bytes).map_err(|error| {
                StartError(format!(
                    "snapshot {}: {error}; restore the data directory, or start this node with an empty one",
                    path.display()
                ))
            })?;
        }
        let segments = Segments::recover(&self.journal, self.owner, self.last, |bytes| {
            recovery.journal(bytes)
        })?;
        if self.last.lost_power() {
            self.verify(&mut recovery)?;
        }
        Ok((recovery, segments))
    }

    /// Reads what may not have reached the device, and takes back what did not, until nothing is doubtful.
    fn verify(&self, recovery: &mut Recovery) -> Result<(), StartError> {
        let mut bytes = Vec::new();
        loop {
            let suspects = recovery.suspects();
            if suspects.is_empty() {
                return Ok(());
            }
            for suspect in suspects {
                let VolumeRead { offset, len } = suspect.read;
                bytes.resize(len as usize, 0);
                let read = self.volume.read_exact_at(&mut bytes, VOLUME_AT + offset);
                read.map_err(|error| {
                    StartError(format!("cannot read volume bytes {offset}..+{len}: {error}"))
                })?;
                if !suspect.holds(&bytes) {
                    tracing::warn!(offset, len, "a write had not reached the device: taken back");
                    recovery.reject(suspect.position);
                }
            }
        }
    }
}

/// Turns the state of all cores into snapshots and goes over to an empty journal for `cores` cores. `config_of` gives the
/// configuration of a core (number, of how many).
pub(crate) fn convert(
    dir: &mut DataDir,
    cores: u16,
    config_of: impl Fn(u16, u16) -> Config,
) -> Result<(), StartError> {
    let before = dir.superblock().journal_cores;
    tracing::info!(before, cores, "the number of cores has changed: all shards go to snapshots");
    // A snapshot's extents are not verified again, so that they must be on the device before it.
    let volume = dir.open_volume()?;
    volume.sync_data().map_err(|error| StartError(format!("cannot sync the volume: {error}")))?;
    for core in 0..before {
        let files = CoreFiles::of(dir, core)?;
        let (recovery, _) = files.recover(config_of(core, before))?;
        for (shard, bytes) in recovery.snapshots() {
            // CRASH: entries that a snapshot contains are skipped, so that old and new ones may stand side by side.
            let name = snapshot_name(shard);
            match bytes {
                Some(bytes) => replace(&files.snapshots, &name, &bytes)?,
                None => remove(&files.snapshots, &name)?,
            }
        }
    }
    Ok(dir.renew_journal(cores)?)
}
